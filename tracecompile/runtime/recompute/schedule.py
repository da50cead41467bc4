"""Which moments of a sequence are kept, and when: the binomial schedule.

With S snapshots and at most r recomputations of any piece, C(S + r, S) pieces can be reversed, and none of the
schedules of as many snapshots recomputes less (A. Griewank, A. Walther, "Algorithm 799: Revolve", 2000).
"""

from __future__ import annotations

from collections.abc import Callable
from math import comb
from typing import TypeVar

State = TypeVar("State")


def advance(pieces: int, snapshots: int) -> int:
    """Returns how many pieces to run from a snapshot to the next one.

    Args:
        pieces: How many are to be reversed from this snapshot on, at least 2.
        snapshots: How many may be held, this one included, at least 1.
    """
    runs = 1  # the fewest with which so many pieces can be reversed
    while _most(snapshots, runs) < pieces:
        runs += 1
    if pieces <= _most(snapshots, runs - 1) + _most(snapshots - 2, runs - 1):
        return max(1, _most(snapshots, runs - 2))
    if pieces >= _most(snapshots, runs) - _most(snapshots - 3, runs):
        return _most(snapshots, runs - 1)
    return pieces - _most(snapshots - 1, runs - 1) - _most(snapshots - 2, runs - 1)


def _most(snapshots: int, runs: int) -> int:
    """Returns the most pieces that can be reversed with so many runs of each."""
    return comb(snapshots + runs, snapshots) if snapshots >= 0 and runs >= 0 else 0


def first_snapshots(pieces: int, snapshots: int) -> list[int]:
    """Returns the pieces before which the first run forward leaves a snapshot.

    The last piece is always among them, on top of the snapshots: in its place other schedules hold its graph.
    """
    found = [0]
    while found[-1] < pieces - 1:
        found.append(found[-1] + advance(pieces - found[-1], snapshots + 1 - len(found)))
    return found


def reverse(
    kept: list[tuple[int, State]],
    pieces: int,
    snapshots: int,
    forward: Callable[[State, int, int], State],
    backward: Callable[[int, State], None],
) -> None:
    """Goes through all pieces, the last one first.

    Args:
        kept: Snapshots by piece, in the order of time, the first piece's among them. Those of later pieces are used up.
        pieces: How many there are.
        snapshots: How many may be held.
        forward: Maps (state before a piece, that piece, a later one) to the state before the later one.
        backward: Takes a piece and the state before it.
    """
    for piece in reversed(range(pieces)):
        while kept[-1][0] > piece:
            kept.pop()
        while (begin := kept[-1][0]) < piece:
            end = begin + advance(piece + 1 - begin, max(1, snapshots + 1 - len(kept)))
            kept.append((end, forward(kept[-1][1], begin, end)))
        backward(piece, kept[-1][1])
