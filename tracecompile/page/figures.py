"""All that the page shows, as plain JSON values: the page is made of these alone."""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor, fx

from tracecompile.diagnostics.one_step import graph_bytes
from tracecompile.layers import Layer
from tracecompile.page.approximations import approximations
from tracecompile.page.excerpts import excerpts, places
from tracecompile.page.watched import Watched, watched
from tracecompile.program import StepProgram, step_results
from tracecompile.rules import rule_of
from tracecompile.runtime.module import TracedModule
from tracecompile.version import VERSION

LENGTHS = tuple(round(10 ** (1 + step / 4)) for step in range(17))
"""Numbers of time steps for which memory is foretold: 10 to 100,000."""


def figures_of(net: TracedModule, inputs: Any = None, title: str = "") -> dict[str, Any]:
    """Returns what is known of a converted network, and what an input shows of it; the network stays as it is.

    Args:
        net: A converted network.
        inputs: The arguments of one call as a tuple (of a step model: of a step, which is repeated); None to look at
            the conversion alone.
        title: What to call it; the name of the model's class without.
    """
    program, seen = net.program, watched(net, inputs)
    report = net.report.to_dict()
    return {
        "title": title or type(net.source).__name__,
        "model": type(net.source).__name__,
        "version": VERSION,
        "report": report,
        "inputs": [{"name": each.name, "shape": _shape(_values(program)[each.name])} for each in program.inputs],
        "layers": [_layer(net, layer, report["layers"][place], seen) for place, layer in enumerate(program.layers)],
        "edges": _edges(program),
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "memory": _memory(program, report, seen),
        "fidelity": seen.fidelity,
        "activity": {"steps": seen.steps, "repeated": seen.repeated, "why": seen.silent},
        "why_no_fidelity": seen.uncompared,
        "approximations": approximations(program, report, seen.fidelity),
    }


def _values(program: StepProgram) -> dict[str, Any]:
    return {node.name: node.meta.get("val") for node in program.step.graph.nodes}


def _shape(value: object) -> list[int]:
    """Returns the sizes of a value without its batch."""
    return list(value.shape[1:]) if isinstance(value, Tensor) else []


def _layer(net: TracedModule, layer: Layer, reported: dict[str, Any], seen: Watched) -> dict[str, Any]:
    program, values = net.program, _values(net.program)
    named = {carry.placeholder: carry.name for carry in program.carries}
    traces = program.traces if rule_of(program.settings).records else ()
    kept = (
        [accrual.role for accrual in program.emitted.accruals if accrual.layer == layer.name] if program.emitted else []
    )
    shape = _shape(values.get(layer.outputs[0])) if layer.outputs else []
    states = zip(layer.states, layer.state_kinds, strict=True)
    return {
        **reported,
        "shape": shape,
        "units": prod(shape) if shape else 0,
        "parameters": _parameters(program, layer),
        "held": [{"name": named[state], "kind": kind, "shape": _shape(values[state])} for state, kind in states],
        "traces": [
            {"of": trace.value, "shape": _shape(values.get(trace.value)), "decay": trace.decay}
            for trace in traces
            if layer.name in trace.readers
        ],
        "derivatives": {role: kept.count(role) for role in ("tangent", "response")},
        "places": places(program, layer),
        "stages": excerpts(net.stages, program, layer),
        "activity": seen.activity.get(layer.name),
    }


def _parameters(program: StepProgram, layer: Layer) -> list[dict[str, Any]]:
    """Returns the parameters that a layer reads itself, or through values that are computed once."""
    parts = [part for part in (layer.synapse, layer.core) if part is not None]
    own = {id(parameter) for part in parts for parameter in part.parameters()}
    if program.statics is not None:
        wanted = {*layer.synapse_statics, *layer.core_statics}
        nodes = list(program.statics.graph.graph.nodes)
        attributes = [node for node in nodes if node.op == "placeholder"][: len(program.statics.attributes)]
        for name, result in zip(program.statics.names, nodes[-1].args[0], strict=True):
            if name in wanted and isinstance(result, fx.Node):
                behind = _behind(result)
                found = zip(attributes, program.statics.attributes, strict=True)
                own |= {id(program.resolve(path)) for node, path in found if node in behind}
    return [
        {"name": name, "shape": list(value.shape)}
        for name, value in program.root.named_parameters()
        if id(value) in own
    ]


def _behind(node: fx.Node) -> set[fx.Node]:
    found, waiting = set[fx.Node](), [node]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def _edges(program: StepProgram) -> list[dict[str, Any]]:
    """Returns who reads whom, by places among the layers, -1 - place for an input, and how many steps later."""
    owner = {name: place for place, layer in enumerate(program.layers) for name in (*layer.nodes, *layer.outputs)}
    owner |= {each.name: -1 - place for place, each in enumerate(program.inputs)}
    made = dict(zip((carry.placeholder for carry in program.carries), step_results(program.step)[1], strict=True))
    found = {}
    for place, layer in enumerate(program.layers):
        read = [(source.origin, source.delay) for source in layer.sources]
        states = zip(layer.states, layer.state_kinds, strict=True)
        read += [(made[state].name, 1) for state, kind in states if kind == "spikes"]
        for origin, delay in read:
            if origin in owner:
                found[owner[origin], place, delay] = {"from": owner[origin], "to": place, "delay": delay}
    return list(found.values())


def _memory(program: StepProgram, report: dict[str, Any], seen: Watched) -> dict[str, Any]:
    values = _values(program)
    sized = (values.get(layer.outputs[0]) for layer in program.layers if layer.outputs)
    batch = next((value.shape[0] for value in sized if isinstance(value, Tensor) and value.ndim > 1), 1)
    step = -(-graph_bytes(program) // batch)
    rule = rule_of(program.settings)
    held = [step * steps if rule.through_time else report["memory"]["total"] for steps in LENGTHS]
    return {
        "steps": list(LENGTHS),
        "through_time": [step * steps for steps in LENGTHS],
        "converted": held,
        "grows": report["memory"]["grows"],
        "measured": seen.measured,
    }
