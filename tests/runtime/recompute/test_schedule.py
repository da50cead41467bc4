"""The schedule of snapshots: as few recomputations as there can be."""

from __future__ import annotations

import pytest
from checkpoint_schedules import EndReverse, Forward, Revolve

from tracecompile.runtime.recompute.schedule import first_snapshots, reverse

PAIRS = [(pieces, snapshots) for pieces in (1, 2, 3, 7, 16, 33, 34, 100, 257, 561) for snapshots in (1, 2, 3, 8, 32)]


def of_revolve(pieces: int, snapshots: int) -> int:
    """Returns how often a piece is run again by the schedule of Griewank and Walther."""
    if pieces == 1:
        return 0
    count, schedule = 0, Revolve(pieces, min(snapshots, pieces - 1))
    while not isinstance(action := next(schedule), EndReverse):
        count += action.n1 - action.n0 if isinstance(action, Forward) else 0
    return count - pieces


class Runs:
    """Counts the pieces that are run, and what is held."""

    def __init__(self, pieces: int, snapshots: int) -> None:
        self.pieces, self.snapshots, self.again, self.most = pieces, snapshots, 0, 0
        self.order: list[int] = []
        self.kept = [(place, place) for place in first_snapshots(pieces, snapshots)]

    def forward(self, state: int, begin: int, end: int) -> int:
        assert state == begin, "a piece is run from the state before it"
        self.again += end - begin
        return end

    def backward(self, piece: int, state: int) -> None:
        assert state == piece
        self.order.append(piece)
        self.again += 1
        self.most = max(self.most, len(self.kept))

    def run(self) -> Runs:
        self.most = len(self.kept)
        reverse(self.kept, self.pieces, self.snapshots, self.forward, self.backward)
        return self


@pytest.mark.parametrize(("pieces", "snapshots"), PAIRS)
def test_as_few_pieces_are_run_again_as_by_revolve(pieces: int, snapshots: int) -> None:
    runs = Runs(pieces, snapshots).run()
    assert runs.order == list(reversed(range(pieces)))
    # Revolve holds the graph of the last piece from the forward pass on; here the state before it is held instead.
    assert runs.again - 1 == of_revolve(pieces, snapshots)
    assert runs.most <= snapshots + 1


def test_one_snapshot_more_than_pieces_is_one_run_of_each() -> None:
    assert Runs(40, 40).run().again == 40
    assert Runs(528 // 16, 32).run().again == 528 // 16
    assert Runs(528 // 16 + 1, 32).run().again > 528 // 16 + 1


def test_a_second_pass_goes_from_the_first_snapshot() -> None:
    runs = Runs(20, 3).run()
    assert [place for place, _ in runs.kept] == [0]
    first, runs.order, runs.again = runs.again, [], 0
    runs.run()
    assert runs.order == list(reversed(range(20)))
    assert runs.again >= first
