"""Which units take turns, one step of each before the next of any: what a step does in order ties them together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import fx

from tracecompile.analysis.moving import Moving
from tracecompile.analysis.norms import moved_by
from tracecompile.program import StepProgram, step_results
from tracecompile.units import Unit, one_by_one

Tie = tuple[int, int, str]
"""(first, last, why) of units that take turns; those between them are among them."""


def in_turns(program: StepProgram, units: Sequence[Unit]) -> tuple[tuple[Unit, ...], str]:
    """Returns units of which those that must take turns do so; and why none can be more than a step ahead, if so.

    Args:
        program: Before it has units.
        units: Of all blocks, none of which takes turns yet; one of them moves the statistics, if any are moved.
    """
    found = list(units)
    for first, last, why in ties(program, units):
        for number, unit in enumerate(found):
            if first <= number <= last and not unit.in_turn:
                found[number] = replace(unit, fold=None, alone=why, in_turn=True)
    return tuple(found), found[0].alone if one_by_one(found) else ""


def ties(program: StepProgram, units: Sequence[Unit]) -> Iterator[Tie]:
    """Yields which units of a program must take turns."""
    if program.kind == "step":
        yield 0, len(units) - 1, "each is a call of its own"
        return
    yield from _of_statistics(program, units)
    places = _places(units)
    for why, nodes in _repeated_norms(program):
        used = [places.get(node.name) for node in nodes]
        known = [place for place in used if place is not None]
        if known != used or known != sorted(known):
            # The units do it in another order than the model, whoever goes first.
            yield 0, len(units) - 1, why
        elif len({place[:2] for place in known}) > 1:
            yield known[0][0], known[-1][0], why


def _of_statistics(program: StepProgram, units: Sequence[Unit]) -> Iterator[Tie]:
    """Yields the units from the first that reads a moved statistic to the last that makes what it moves by."""
    moved = {carry.placeholder: carry.statistic for carry in program.carries if carry.statistic}
    readers = [(number, name) for number, unit in enumerate(units) for name in _read(program, unit) if name in moved]
    last = maker_of_moves(program, units)
    if readers and readers[0][0] <= last:
        first, name = readers[0]
        yield first, last, f"each moves {moved[name]}, which the next one takes up"


def _read(program: StepProgram, unit: Unit) -> list[str]:
    return [source.value for index in unit.layers for source in program.layers[index].sources]


def maker_of_moves(program: StepProgram, units: Sequence[Unit]) -> int:
    """Returns the last unit of whose values something is moved, the first where there is none."""
    needed = {node.name for node in Moving(program).read}
    following = delayed_by(program)
    for _ in following:
        needed = {following.get(name, name) for name in needed}
    makers = [number for number, unit in enumerate(units) if needed & set(unit.outputs)]
    return max(makers, default=0)


def delayed_by(program: StepProgram) -> dict[str, str]:
    """Returns what each state is one step later, by placeholder; statistics aside."""
    pairs = zip(program.carries, step_results(program.step)[1], strict=True)
    return {carry.placeholder: node.name for carry, node in pairs if not carry.statistic}


def _repeated_norms(program: StepProgram) -> Iterator[tuple[str, list[fx.Node]]]:
    """Yields the calls of each normalisation that a step uses more than once, after what is said of it."""
    norms: dict[int, list[fx.Node]] = {}
    for node in program.step.graph.nodes:
        if (moved := moved_by(program, node)) is not None:
            norms.setdefault(moved, []).append(node)
    for nodes in norms.values():
        if len(nodes) > 1:
            name = nodes[0].target if nodes[0].op == "call_module" else nodes[0].name
            yield f"the normalisation {name} is used twice in a step, and counts its statistics in order", nodes


def _places(units: Sequence[Unit]) -> dict[str, tuple[int, int, int]]:
    """Returns (unit, part, position) of every node that a unit computes."""
    found: dict[str, tuple[int, int, int]] = {}
    for number, unit in enumerate(units):
        for part, module in enumerate((unit.below, unit.step)):
            for position, node in enumerate(module.graph.nodes if module is not None else ()):
                if node.op not in ("placeholder", "output"):
                    found.setdefault(node.name, (number, part, position))
    return found
