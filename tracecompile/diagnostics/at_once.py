"""What is said of what a model computes of all time steps together: which, and what memory that takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, fx

from tracecompile.program import StepProgram, example_value
from tracecompile.segment import segments_of, with_segments

BYTE = 8
MOST_NAMES = 4


def said_of_mixing(program: StepProgram) -> list[str]:
    """Returns sentences about what grows with the number of time steps; none where nothing does."""
    programs = [each for each in with_segments(program) if each.prologue_again]
    if not programs:
        return []
    names = list(dict.fromkeys(name for each in programs for name in _modules(each)))
    listed = ", ".join(names[:MOST_NAMES]) + (f" and {len(names) - MOST_NAMES} more" * (len(names) > MOST_NAMES))
    largest = max(map(_alive, programs))
    found = [
        f"All time steps are taken together by what is computed before a loop ({listed}): each layer runs over the "
        "whole sequence before the next one begins, and the values are those of the model. The values of one such "
        f"layer are alive for all steps at a time, at most about {_size(largest)} per sample and step, and as much "
        "again for their gradients in backward, which computes them once more: that memory grows with the sequence, "
        "for these layers alone."
    ]
    kept = sum(_kept(call) for call in _calls(program)) // _rows(programs[0])
    if kept:
        found.append(
            f"Between them spikes are kept for backward as bits, about {_size(kept)} per sample and step; whole "
            "numbers up to 255 are kept as bytes, and any other value as it is."
        )
    return found


def _modules(program: StepProgram) -> list[str]:
    """Returns the names of the layers with parameters that a prologue calls."""
    calls = [node for node in program.prologue.graph.nodes if node.op == "call_module"]
    segments = dict(segments_of(program.leaves))
    return [str(node.target) for node in calls if str(node.target) not in segments]


def _alive(program: StepProgram) -> int:
    """Returns the bytes per sample and step of what a prologue makes, each piece of memory once."""
    made = {}
    for node in program.prologue.graph.nodes:
        value = example_value(node)
        if isinstance(value, Tensor) and node.op != "placeholder":
            made[value.untyped_storage().data_ptr()] = value.numel() * value.element_size()
    return sum(made.values()) // _rows(program)


def _kept(call: fx.Node) -> int:
    """Returns the bytes that the results of a segment take as bits; those that are no spikes take more."""
    values: Iterable[object] = example_value(call)
    elements = sum(value.numel() for value in values if isinstance(value, Tensor) and value.is_floating_point())
    return elements // BYTE


def _calls(program: StepProgram) -> Sequence[fx.Node]:
    segments = dict(segments_of(program.leaves))
    return [node for node in program.prologue.graph.nodes if str(node.target) in segments]


def _rows(program: StepProgram) -> int:
    """Returns the number of samples times the number of steps in the example."""
    results: Any = next(node for node in reversed(program.prologue.graph.nodes) if node.op == "output").args[0]
    for x, node in zip(program.inputs, results[0], strict=True):
        value = example_value(node)
        if isinstance(value, Tensor):
            batch = next((size for axis, size in enumerate(value.shape) if axis != x.dim), 1)
            return max(1, int(value.shape[x.dim]) * batch)
    return 1


def _size(count: float) -> str:
    return f"{count / 1000:.3g} kB" if count >= 1000 else f"{count:.0f} B"
