"""A network as a NIR graph."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import fx

from tracecompile.errors import InvalidInput, UnsupportedOperation
from tracecompile.exporting.exported import Exported
from tracecompile.exporting.idle import without_idle_draws
from tracecompile.exporting.nir.check import compare, read_back
from tracecompile.exporting.nir.graph import Assembly, Made
from tracecompile.exporting.nir.values import run_of
from tracecompile.exporting.program import Calls, calls_of, in_eval_mode
from tracecompile.program import StepProgram
from tracecompile.runtime.module import TracedModule

STEPS = 24
"""Of the sequences that an export is compared on."""
SCALES = (1.0, 8.0, 0.2)
"""By which their inputs are multiplied, so that many spikes are made and few."""
COLLECTED = {"last": "takes the output of the last step", "sum": "adds up the output of all steps"}


def to_nir(net: TracedModule, dt: float) -> Exported:
    """Returns a network as a NIR graph, compared with the network after it was read back; see ``export``."""
    try:
        import nir
    except ImportError as error:
        raise InvalidInput(
            "Writing a NIR graph needs the package nir.", "Install it: pip install 'tracecompile[nir]'."
        ) from error
    if not dt > 0:
        raise InvalidInput(f"A time step of {dt} seconds is none.", "Choose a positive dt.")
    program = without_idle_draws(in_eval_mode(net))
    _require_no_random(program)
    calls = calls_of(net, program, STEPS)
    few, many = (run_of(program, *each) for each in zip((calls.few, calls.many), calls.states, strict=True))
    made = Assembly(program, few, many, dt).made()
    graph = nir.NIRGraph(made.building.nodes, made.building.edges, metadata={"dt": dt, "made_by": "tracecompile"})
    spiked = _compared(graph, made, program, calls, dt)
    notes = _notes(program, made, set(made.spiking) - spiked)
    return Exported("nir", graph, {}, _guide(made, dt), _described(made, dt), tuple(notes))


def write_nir(exported: Exported, path: Path) -> Exported:
    """Writes a graph, whole or not at all."""
    import nir

    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.part")
    try:
        nir.write(unfinished, exported.model)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return replace(exported, files=(path,))


def _require_no_random(program: StepProgram) -> None:
    if not program.draws.names:
        return
    drawn = next((node for node in program.step.graph.nodes if node.name in program.draws.names), None)
    reader = next(iter(drawn.users), drawn) if drawn is not None else None
    raise UnsupportedOperation(
        "The step draws random numbers in eval mode too, and NIR has no node for that.",
        'Draw none in eval mode, or export it as ONNX: tracecompile.export(net, "onnx").',
        None if reader is None else reader.meta.get("where"),
    )


def _compared(graph: Any, made: Made, program: StepProgram, calls: Calls, dt: float) -> set[str]:
    """Compares a graph on sequences of two sizes; returns the nodes of which spikes were seen."""
    net, spiked = read_back(graph, dt), set[str]()
    keep = {made.input, made.output, *made.spiking.values()}
    for leaves, states in zip((calls.few, calls.many), calls.states, strict=True):
        for scale in SCALES:
            spiked |= compare(net, made, run_of(program, leaves, states, scale, keep))
    return spiked


def _described(made: Made, dt: float) -> dict[str, Any]:
    nodes = {name: type(node).__name__ for name, node in made.building.nodes.items()}
    return {
        "dt": dt,
        "nodes": nodes,
        "edges": [list(edge) for edge in made.building.edges],
        "input": made.input,
        "output": made.output,
        "compared": "read back in float64: spikes are the same, other outputs to 1e-9",
    }


def _guide(made: Made, dt: float) -> str:
    kinds = [f"{name} ({type(node).__name__})" for name, node in made.building.nodes.items()]
    return (
        f"A NIR graph with time constants for steps of {dt:g} s, by Euler's method. It takes one step of {made.input} "
        f"and gives one of {made.output}.\nNodes: {', '.join(kinds)}."
    )


def _notes(program: StepProgram, made: Made, silent: set[str]) -> list[str]:
    notes = [
        "Of eval mode: dropout is off, and a batch normalisation uses its running statistics.",
        "All spikes are those of the network in float64. In float32 a membrane next to its threshold may spike where "
        "the other does not.",
    ]
    if made.left:
        notes.append(f"The graph has no output for {', '.join(made.left)}: NIR's neurons give their spikes alone.")
    for output, node in zip(program.outputs, _step_outputs(program), strict=True):
        if node == made.output and output.collect in COLLECTED:
            notes.append(f"The model {COLLECTED[output.collect]}; the graph gives that of each step.")
    for what, graph in (("before its first step", program.prologue), ("after its last step", program.epilogue)):
        lines = _lines(graph, program, what.startswith("before"))
        if lines:
            notes.append(f"What the model computes {what} is not in the graph: {'; '.join(lines)}.")
    if any(carry.explicit for carry in program.carries):
        notes.append("The states that the model is handed start as zeros.")
    if made.at_threshold:
        notes.append(
            f"In {', '.join(sorted(made.at_threshold))} a membrane exactly at its threshold spikes; in NIR it does not."
        )
    if silent:
        notes.append(f"Compared without a spike of {', '.join(sorted(silent))}: the inputs drawn made none, or all.")
    return notes


def _step_outputs(program: StepProgram) -> list[str]:
    output = next(node for node in reversed(program.step.graph.nodes) if node.op == "output")
    return [node.name for node in output.args[0][0]]


def _lines(module: fx.GraphModule, program: StepProgram, inputs: bool) -> list[str]:
    """Returns the user's lines of what makes the sequences, or the results, of other values than they are."""
    output = next(node for node in reversed(module.graph.nodes) if node.op == "output")
    waiting: list[Any] = list(output.args[0][0] if inputs else output.args[0])
    found: dict[str, None] = {}
    while waiting:
        node = waiting.pop()
        if isinstance(node, fx.Node) and node.op != "placeholder":
            waiting.extend(node.all_input_nodes)
            where = node.meta.get("where")
            where = where if where is None or where.caller is None else where.caller
            if where is not None:
                found[f"{Path(where.file).name}:{where.line}: {where.source}"] = None
    return sorted(found)
