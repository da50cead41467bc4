"""What an exported network is compared on: a sequence, step by step, as its parts compute it in torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tracecompile.exporting.parts import Part, run_prologue
from tracecompile.program import StepProgram
from tracecompile.runtime.collector import Collector
from tracecompile.runtime.draws import Drawer

Run = tuple[list[Tensor], list[Tensor]]
"""(arguments, results) of a part."""


@dataclass
class Trajectory:
    """One sequence; the runs of each part, those of the step one after the other."""

    begin: list[Run] = field(default_factory=list)
    step: list[Run] = field(default_factory=list)
    end: list[Run] = field(default_factory=list)

    def of(self, part: Part) -> list[Run]:
        """Returns the runs of a part."""
        runs: list[Run] = getattr(self, part.name)
        return runs


def run(part: Part, values: Mapping[tuple[str, str], Tensor], runs: list[Run]) -> list[Tensor]:
    """Runs a part on values by (kind, node)."""
    given = [values[value.kind, value.node] for value in part.takes]
    with torch.no_grad():
        results = list(part.module(*given))
    # What returns its input, or one value twice, returns tensors of its own here.
    runs.append((given, [result.clone() for result in results]))
    return runs[-1][1]


def trajectory(
    program: StepProgram,
    begin: Part,
    step: Part,
    end: Part | None,
    leaves: Sequence[tuple[Any, ...]],
    states: Sequence[Tensor],
) -> Trajectory:
    """Runs the parts of a program over one sequence.

    Args:
        program: The program.
        begin, step, end: Its parts; a step model has no end.
        leaves: Of the call; of a step model, of each call.
        states: That the caller of a step model hands in.
    """
    found, drawer = Trajectory(), Drawer(program)
    inputs, invariants, initial = run_prologue(program, leaves[0])
    names = [node.name for node in program.prologue.graph.nodes if node.op == "placeholder"]
    now: dict[tuple[str, str], Any] = {("input", name): leaf for name, leaf in zip(names, leaves[0], strict=True)}
    begun = run(begin, now, found.begin)
    given = [state.clone() for state in states]
    places = [carry.placeholder for carry in program.carries]
    known: dict[str, Any] = dict(
        zip(places, [given.pop(0) if c.explicit else None for c in program.carries], strict=True)
    )
    known |= {name: value for name, value in zip(places, initial, strict=False) if value is not None}
    known |= {value.node: made for value, made in zip(begin.returns, begun, strict=True) if value.kind == "state"}
    whole = program.kind == "sequence"
    steps = _length(program, inputs) if whole else len(leaves)
    collector = Collector(program, steps)
    for time in range(steps):
        if not whole:
            inputs, invariants, _ = run_prologue(program, leaves[time])
        slices = [v.select(x.dim, time) if whole else v for x, v in zip(program.inputs, inputs, strict=True)]
        drawn = drawer.draw((*slices, *invariants, *(known[name] for name in places)))
        now = {("input", x.name): value for x, value in zip(program.inputs, slices, strict=True)}
        if not whole:
            now = {("input", name): leaf for name, leaf in zip(names, leaves[time], strict=True)}
        now |= {("random", name): value for name, value in zip(program.draws.names, drawn, strict=True)}
        now |= {("invariant", name): value for name, value in zip(program.invariants, invariants, strict=True)}
        now |= {("state", name): known[name] for name in places}
        results = run(step, now, found.step)
        split = len(results) - len(places)
        known = dict(zip(places, results[split:], strict=True))
        if whole:
            collector.add(results[:split])
    if end is not None:
        now = {
            ("output", output.name): value for output, value in zip(program.outputs, collector.results(), strict=True)
        }
        now |= {("state", name): value for name, value in known.items()}
        now |= {
            ("invariant", name): _as_tensor(value) for name, value in zip(program.invariants, invariants, strict=True)
        }
        run(end, now, found.end)
    return found


def _length(program: StepProgram, inputs: Sequence[Tensor]) -> int:
    return program.length or min(value.shape[x.dim] for x, value in zip(program.inputs, inputs, strict=True))


def _as_tensor(value: Any) -> Any:
    return torch.tensor(value) if isinstance(value, (int, float)) else value
