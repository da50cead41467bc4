"""Fills the report from a compiled program."""

from __future__ import annotations

from torch import nn

from tracecompile.diagnostics.report import ConversionReport, LayerReport, ParameterReport
from tracecompile.layers import Jacobian, Layer
from tracecompile.passes.insert_input_traces import layer_decay
from tracecompile.program import StepProgram
from tracecompile.reach import reached_parameters
from tracecompile.rules.analytic import RateCurve


def describe(program: StepProgram) -> ConversionReport:
    """Returns the report of a program that has gone through all passes."""
    settings = program.settings
    return ConversionReport(
        layers=tuple(_layer(program, layer) for layer in program.layers),
        parameters=_parameters(program),
        schedule=tuple(_block(program, index) for index in range(len(program.blocks))),
        notes=(*program.notes, *_notes(program)),
        rule=settings.rule,
        bins=settings.bins,
        backend="eager",
    )


def _layer(program: StepProgram, layer: Layer) -> LayerReport:
    names = {carry.placeholder: carry.name for carry in program.carries}
    delayed = [source for source in layer.sources if source.delay]
    decay = layer_decay(program, layer)
    return LayerReport(
        name=layer.name,
        kind=layer.kind if not isinstance(layer.response, RateCurve) else f"{layer.kind} ({layer.response.kind} curve)",
        inputs=tuple(source.value for source in layer.sources),
        states=tuple(f"{names[s]} ({kind})" for s, kind in zip(layer.states, layer.state_kinds, strict=True)),
        outputs=layer.outputs,
        trace="mean of each time bin" if decay is None else f"decay {decay}",
        recurrence=", ".join(
            f"{source.origin} {source.delay} step{'s' * (source.delay > 1)} ago" for source in delayed
        ),
        reset=layer.reset if layer.spikes else "",
    )


def _block(program: StepProgram, index: int) -> str:
    block = program.blocks[index]
    names = ", ".join(program.layers[layer].name for layer in block.layers)
    return f"{names}: {'recurrent, solved together bin by bin' if block.recurrent else 'feed-forward'}"


def _parameters(program: StepProgram) -> dict[str, ParameterReport]:
    reached = reached_parameters(program)
    rule = program.settings.rule
    found = {}
    for name, parameter in program.root.named_parameters():
        found[name] = _status(parameter, reached, rule, program)
    return found


def _status(parameter: nn.Parameter, reached: set[nn.Parameter], rule: str, program: StepProgram) -> ParameterReport:
    if not parameter.requires_grad:
        return ParameterReport("frozen", "requires_grad is False")
    if parameter not in reached:
        return ParameterReport("frozen", "no differentiable way leads from it to what the model returns")
    if rule == "bptt":
        return ParameterReport("exact", "ordinary backpropagation through time")
    if rule == "analytic":
        return ParameterReport("trace", "rate curve at the mean input")
    return ParameterReport(
        "trace", f"measured slope, {program.settings.bins} time bin{'s' * (program.settings.bins > 1)}"
    )


def _notes(program: StepProgram) -> list[str]:
    notes = []
    replayed = [
        layer.name
        for layer in program.layers
        if isinstance(layer.response, RateCurve) and layer.response.kind == "replay"
    ]
    if replayed:
        notes.append(f"No rate curve is known for {', '.join(replayed)}: replayed under their mean current.")
    styles = {
        layer.reset for layer in program.layers if layer.spikes and isinstance(layer.response, (Jacobian, RateCurve))
    }
    if "detached" in styles:
        notes.append("The reset is detached from the gradient, as in the model's own backpropagation.")
    if "in graph" in styles:
        notes.append("The reset is differentiated, as in the model's own backpropagation.")
    if program.settings.rule == "analytic" and any(layer.spikes for layer in program.layers):
        notes.append("The analytic rule does not look at detach: its slopes are those of the rate curves.")
    return notes
