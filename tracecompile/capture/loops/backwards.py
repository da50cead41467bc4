"""A loop that goes backwards through what an earlier one computed: it begins when that is over, with all it made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import fx

from tracecompile.capture.loops.places import place_key, visits_of
from tracecompile.capture.tracing.tape import Tape
from tracecompile.errors import SourceLine, UnrollableLoop
from tracecompile.operations.cone import cone

FEWEST_STEPS = 3


def begins_with_the_last(where: SourceLine | None) -> UnrollableLoop:
    """Makes the refusal of a loop over the steps of another, the last one first."""
    return UnrollableLoop(
        "A loop over time begins with the last time step of an earlier loop: all steps of the earlier one would have "
        "to be kept until then, and memory would grow with the sequence.",
        "Let both loops go through time in one direction; only the input can be read backwards.",
        where,
    )


@contextmanager
def naming_what_is_read_backwards(tape: Tape) -> Iterator[None]:
    """Lets the refusal of a loop say that it is read backwards, and where, if that is why it is none.

    The places of two such loops do not follow each other in any step, which reads as a body that changes with time.
    """
    try:
        yield
    except UnrollableLoop as refusal:
        reader = _reader(tape)
        if reader is None:
            raise
        raise begins_with_the_last(reader.meta.get("where")) from refusal


def _reader(tape: Tape) -> fx.Node | None:
    """Returns the first visit of a place that reads what the last step of another loop made, then the one before."""
    visits = visits_of(tape)
    turn = {node: number for nodes in visits.values() for number, node in enumerate(nodes)}
    for nodes in visits.values():
        if len(nodes) < FEWEST_STEPS:
            continue
        for source in nodes[0].all_input_nodes:
            read = visits.get(place_key(source), [])
            backwards = len(read) == len(nodes) and all(read[-1 - turn[node]] in node.all_input_nodes for node in nodes)
            if backwards and _goes_on(read, turn):
                return nodes[0]
    return None


def _goes_on(nodes: list[fx.Node], turn: dict[fx.Node, int]) -> bool:
    """Tells whether the last visit of a place needs what the first steps computed: a state lies between."""
    above = cone([nodes[-1]])
    first = {place_key(node) for node in above if turn.get(node) == 0}
    return any(place_key(node) in first for node in above if turn.get(node) == len(nodes) - 1)
