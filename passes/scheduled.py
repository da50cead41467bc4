"""What a schedule must be: the promise of schedule_time."""

from __future__ import annotations

from collections.abc import Sequence

from tracecompile.analysis.moving import Moving
from tracecompile.graphs.glue import accruals_of
from tracecompile.graphs.turns import maker_of_moves, ties
from tracecompile.passes.compared import difference, returned_by, taken_by
from tracecompile.program import StepProgram, is_tensor, step_results
from tracecompile.units import Unit, one_by_one

Edges = Sequence[tuple[int, int, int]]


def fault_of_order(program: StepProgram, edges: Edges) -> str | None:
    """Returns which block comes before what it reads, or is one, or recurrent, without feeding itself, or None.

    Args:
        program: After the pass.
        edges: (reader, maker, delay) for every source that a layer reads from a layer.
    """
    place = {index: number for number, block in enumerate(program.blocks) for index in block.layers}
    readers: dict[int, set[int]] = {index: set() for index in place}
    for reader, maker, _ in edges:
        if place[maker] > place[reader]:
            return f"{program.layers[reader].name} comes before {program.layers[maker].name}, which it reads"
        if place[maker] == place[reader]:
            readers[maker].add(reader)
    for block in program.blocks:
        names = ", ".join(program.layers[index].name for index in block.layers)
        feeds_itself = all(set(block.layers) <= _reached(readers, index) for index in block.layers)
        if block.recurrent != feeds_itself or (len(block.layers) > 1 and not feeds_itself):
            return f"{names} {'feeds itself' if feeds_itself else 'does not feed itself'}, and is scheduled otherwise"
    return None


def _reached(readers: dict[int, set[int]], start: int) -> set[int]:
    """Returns the layers of a block that what a layer makes comes to, in one step or several."""
    found: set[int] = set()
    waiting = [start]
    while waiting:
        fresh = readers[waiting.pop()] - found
        found |= fresh
        waiting += fresh
    return found


def fault_of_units(before: StepProgram, after: StepProgram) -> str | None:
    """Returns which unit does not compute its block, what the block does not feed itself at once, or None."""
    if [(unit.layers, unit.recurrent) for unit in after.units] != [(b.layers, b.recurrent) for b in after.blocks]:
        return "the units are not those of the blocks"
    if one_by_one(after.units) and after.kind == "sequence" and len(after.notes) == len(before.notes):
        return "there is no word why every step is taken by itself"
    faults = (fault(after, unit) for unit in after.units for fault in (_fault_of_unit, _fault_of_pace))
    return next(filter(None, faults), None) or _fault_of_turns(after) or _fault_of_moves(after)


def _fault_of_pace(program: StepProgram, unit: Unit) -> str | None:
    """Returns in what a unit and the word why its steps are taken one at a time disagree, or None."""
    names = _names(program, unit)
    if unit.fold is None and not unit.alone:
        return f"the steps of {names} are taken one at a time, and no word says why"
    if unit.fold is not None and (unit.alone or unit.in_turn):
        return f"the steps of {names} are computed at once, although {unit.alone or 'it takes turns'}"
    return None


def _fault_of_turns(program: StepProgram) -> str | None:
    """Returns which unit would be ahead of what the model does in order, or None."""
    for first, last, why in ties(program, program.units):
        ahead = next((unit for unit in program.units[first : last + 1] if not unit.in_turn), None)
        if ahead is not None:
            return f"{_names(program, ahead)} does not take turns, although {why}"
    return None


def _fault_of_moves(program: StepProgram) -> str | None:
    """Returns what is wrong about how the statistics that no layer needs are moved, or None."""
    inside = set(Moving(program).nodes)
    pairs = zip(program.carries, step_results(program.step)[1], strict=True)
    moved = {carry.placeholder: node for carry, node in pairs if node in inside}
    movers = [number for number, unit in enumerate(program.units) if unit.moves is not None]
    if len(movers) != bool(moved):
        return f"{len(movers)} units move the statistics {list(moved)}"
    for moves in (unit.moves for unit in program.units if unit.moves is not None):
        results = returned_by(moves.graph)
        if list(moves.statistics) != list(moved) or len(results) != len(moved):
            return f"the statistics {list(moves.statistics)} are moved, not {list(moved)}"
        if movers[0] < maker_of_moves(program, program.units):
            return "statistics are moved before what they are moved by is made"
        arguments = {node.name: node for node in moves.graph.graph.nodes if node.op == "placeholder"}
        known = {node: arguments[node.name] for node in program.step.graph.nodes if node.name in arguments}
        return difference(zip(moved.values(), results, strict=True), known)
    return None


def _names(program: StepProgram, unit: Unit) -> str:
    return ", ".join(program.layers[index].name for index in unit.layers)


def _fault_of_unit(program: StepProgram, unit: Unit) -> str | None:
    layers = [program.layers[index] for index in unit.layers]
    names = _names(program, unit)
    made = {output for layer in layers for output in layer.outputs}
    origins = {source.value: source.origin for layer in layers for source in layer.sources}
    if any(origins[source] in made for source in unit.sources):
        return f"what {names} reads of itself is computed for many steps at once"
    if taken_by(unit.below) != [*unit.sources, *unit.below_statics]:
        return f"what is computed of {names} for many steps at once takes {taken_by(unit.below)}"
    nodes = {node.name: node for node in program.step.graph.nodes}
    currents = {current for layer in layers for current in layer.currents}
    if not unit.recurrent and set(unit.made) != currents and all(is_tensor(nodes[name]) for name in currents):
        return f"what {names} reads could be computed for many steps at once, and is not"
    if unit.accruals != tuple(accrual for layer in layers for accrual in accruals_of(layer)):
        return f"the unit of {names} does not carry what its layers do"
    if unit.step is None:
        left = unit.recurrent or layers[0].core is not None
        return f"nothing of {names} is taken step by step" if left else None
    takes = {*unit.values, *unit.carries, *unit.step_statics, *(accrual.name for accrual in unit.accruals)}
    return None if set(taken_by(unit.step)) == takes else f"one step of {names} takes {taken_by(unit.step)}"
