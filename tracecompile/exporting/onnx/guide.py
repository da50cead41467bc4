"""How an exported network is run: as data, and in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from tracecompile.exporting.onnx.write import Proto
from tracecompile.exporting.parts import Part, Value
from tracecompile.exporting.trajectory import Trajectory
from tracecompile.program import StepProgram

COLLECTED = {
    "stack": "stack those of all steps along a new axis 0",
    "last": "take that of the last step",
    "sum": "add up those of all steps",
    "step": "it is the result of the step",
}


@dataclass(frozen=True)
class Plan:
    """What is written of a network.

    Attributes:
        program: In eval mode.
        step, begin, end: Its parts; begin and end are None where nothing is left for them to do.
        starts: By state, the number that it is everywhere at the start of a sequence, where that is so.
        notes: For the user.
    """

    program: StepProgram
    step: Part
    begin: Part | None
    end: Part | None
    starts: Mapping[str, float]
    notes: tuple[str, ...]

    @property
    def parts(self) -> list[Part]:
        """Those that are written."""
        return [part for part in (self.step, self.begin, self.end) if part is not None]

    @classmethod
    def of(
        cls, program: StepProgram, step: Part, begin: Part, end: Part | None, few: Trajectory, many: Trajectory
    ) -> Plan:
        """Finds out what has to be written."""
        starts: dict[str, float] = {}
        first = dict(
            zip((value.node for value in step.takes), zip(few.step[0][0], many.step[0][0], strict=True), strict=True)
        )
        made = {value.node for value in begin.returns}
        for value in step.takes:
            if value.kind == "state" and value.node in made and (start := _constant(*first[value.node])) is not None:
                starts[value.node] = start
        begins = [value for value in begin.returns if value.node not in starts]
        ends = end is not None and any(node.op not in ("placeholder", "output") for node in end.module.graph.nodes)
        return cls(program, step, begin if begins else None, end if ends else None, starts, _notes(program, step))


def _constant(*tensors: Tensor) -> float | None:
    """Returns the number that tensors are everywhere, None where they are not."""
    numbers = {float(number) for tensor in tensors for number in torch.unique(tensor.double())}
    return numbers.pop() if len(numbers) == 1 else None


def _notes(program: StepProgram, step: Part) -> tuple[str, ...]:
    notes = ["Of eval mode: dropout is off, and a batch normalisation uses its running statistics."]
    if drawn := [value.name for value in step.takes if value.kind == "random"]:
        notes.append(
            f"The step takes the random numbers {', '.join(drawn)}, which the model draws anew at every step: draw "
            "them where it runs."
        )
    if program.length_bound:
        notes.append("The model is another program for another number of time steps: this is that of the example's.")
    return tuple(notes)


def described(plan: Plan, models: Mapping[str, Proto]) -> dict[str, Any]:
    """Returns how a network is run, as data."""
    step = plan.step
    model = models["step"]
    shapes = {each.name: _shape(each) for each in (*model.graph.input, *model.graph.output)}
    dims = {x.name: x.dim for x in plan.program.inputs}
    from_begin = set() if plan.begin is None else {value.node for value in plan.begin.returns}

    def entry(value: Value) -> dict[str, Any]:
        found: dict[str, Any] = {"name": value.name, **shapes[value.name]}
        if value.kind == "input" and plan.program.kind == "sequence":
            found |= {"time_axis": dims[value.node], "of": _origin(plan, value, from_begin)}
        if value.kind == "state":
            start: Any = plan.starts.get(value.node, "begin" if value.node in from_begin else "caller")
            found |= {"next": f"{value.name}.next", "start": start}
        if value.kind == "invariant":
            found |= {"of": _origin(plan, value, from_begin)}
        return found

    outputs = [value for value in step.returns if value.kind == "output"]
    collect = {output.name: output for output in plan.program.outputs}
    return {
        "kind": plan.program.kind,
        "inputs": [entry(value) for value in step.takes if value.kind == "input"],
        "random": [entry(value) for value in step.takes if value.kind == "random"],
        "invariants": [entry(value) for value in step.takes if value.kind == "invariant"],
        "states": [entry(value) for value in step.takes if value.kind == "state"],
        "outputs": [
            {
                "name": value.name,
                **shapes[value.name],
                "collect": collect[value.node].collect if value.node in collect else "step",
                "chosen": _chosen(collect[value.node].chosen) if value.node in collect else None,
            }
            for value in outputs
        ],
        "begin": None if plan.begin is None else _part(plan.begin),
        "end": None if plan.end is None else _part(plan.end),
        "afterwards": [] if plan.end is None else _operations(plan),
        "tolerance": "1e-5 of the largest value in float32, 1e-12 in float64; spikes are the same",
    }


def _chosen(chosen: Any) -> Any:
    if chosen is None:
        return None
    return list(chosen.numbers) if chosen.bounds is None else {"slice": list(chosen.bounds)}


def _origin(plan: Plan, value: Value, from_begin: set[str]) -> str:
    """Returns where a sequence or an invariant comes from: an argument of the model, or what begins."""
    if value.node in from_begin:
        return "begin"
    output = next(node for node in reversed(plan.program.prologue.graph.nodes) if node.op == "output")
    names = [*(x.name for x in plan.program.inputs), *plan.program.invariants]
    given = dict(zip(names, (*output.args[0][0], *output.args[0][1]), strict=True))
    origin = given[value.node]
    return origin.name if isinstance(origin, fx.Node) else str(origin)


def _shape(value: Any) -> dict[str, Any]:
    from onnx import helper

    kind = value.type.tensor_type
    shape = [each.dim_param or each.dim_value for each in kind.shape.dim]
    return {"shape": shape, "dtype": str(helper.tensor_dtype_to_np_dtype(kind.elem_type))}


def _part(part: Part) -> dict[str, Any]:
    return {"takes": [value.name for value in part.takes], "returns": [value.name for value in part.returns]}


def _operations(plan: Plan) -> list[dict[str, Any]]:
    """Returns what is computed after the last step, with the user's line of each operation."""
    assert plan.end is not None
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for node in plan.end.module.graph.nodes:
        where = node.meta.get("where")
        where = where if where is None or where.caller is None else where.caller
        if node.op not in ("placeholder", "output") and where is not None:
            name = str(node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target))
            line = found.setdefault(
                (where.file, where.line), {"line": f"{Path(where.file).name}:{where.line}", "source": where.source}
            )
            line.setdefault("operations", []).append(name)
    return list(found.values())


def guide(description: Mapping[str, Any], files: Mapping[str, str]) -> str:
    """Returns how a network is run, in words."""
    lines = [f"{files['step']} computes one time step. Hand it the states that it returned for the step before."]
    lines += ["", "Before the first step:"]
    begin = description["begin"]
    if begin is not None:
        lines.append(f"  run {files['begin']} on {', '.join(begin['takes'])}: it returns {', '.join(begin['returns'])}")
    for state in description["states"]:
        start = {"begin": f"from {files.get('begin')}", "caller": "handed in by the caller"}.get(
            state["start"], f"filled with {state['start']:g}" if isinstance(state["start"], float) else ""
        )
        lines.append(f"  {state['name']}: {state['dtype']} {state['shape']}, {start}")
    lines += ["", "At every step it takes:"]
    for value in description["inputs"]:
        cut = f": its slice of {value['of']} along axis {value['time_axis']}" if "of" in value else ""
        lines.append(f"  {value['name']}: {value['dtype']} {value['shape']}{cut}")
    lines += [f"  {v['name']}: {v['dtype']} {v['shape']}, random, drawn anew" for v in description["random"]]
    lines += [f"  {v['name']}: {v['dtype']} {v['shape']}, the same at every step" for v in description["invariants"]]
    lines += [f"  {s['name']}: what was returned as {s['next']}" for s in description["states"]]
    lines += ["", "It returns, beside the next states:"]
    for value in description["outputs"]:
        chosen = "" if value["chosen"] is None else f", of the steps {value['chosen']} alone"
        lines.append(f"  {value['name']}: {value['dtype']} {value['shape']}; {COLLECTED[value['collect']]}{chosen}")
    if description["end"] is not None:
        end = description["end"]
        lines += ["", f"After the last step run {files['end']} on {', '.join(end['takes'])}: it returns the result."]
        for each in description["afterwards"]:
            lines.append(f"  {', '.join(each['operations'])}: {each['line']}: {each['source']}")
    return "\n".join(lines)
