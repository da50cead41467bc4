"""Fills the report from a compiled program."""

from __future__ import annotations

from torch import fx, nn

from tracecompile.analysis.linearity import nonlinear_operations
from tracecompile.diagnostics.aloud import said_aloud, why_cut_off
from tracecompile.diagnostics.at_once import said_of_mixing
from tracecompile.diagnostics.footprint import added, footprint
from tracecompile.diagnostics.hooks import of_hooks
from tracecompile.exact import exact_value
from tracecompile.layers import Layer, StateKind
from tracecompile.operations import Fact, has
from tracecompile.program import Carry, StepProgram, step_results
from tracecompile.report import ConversionReport, LayerReport, ParameterReport
from tracecompile.rules import rule_of
from tracecompile.runtime.engine.choice import foretell
from tracecompile.runtime.sampled import SAMPLES
from tracecompile.segment import with_segments
from tracecompile.units import one_by_one

AT_ONCE = "for all steps of a chunk at once"


def describe(program: StepProgram) -> ConversionReport:
    """Returns the report of a program that has gone through all passes, as if all its parameters were trained."""
    settings = program.settings
    growing = _growing(program)
    programs = with_segments(program)
    return ConversionReport(
        layers=tuple(_layer(each, layer) for each in programs for layer in each.layers),
        parameters=_parameters(program),
        schedule=tuple(_block(each, index) for each in programs for index in range(len(each.blocks))),
        notes=(
            *program.notes,
            *_stepwise(program),
            *dict.fromkeys(note for each in programs for note in said_aloud(each)),
            *of_hooks(program),
            *dict.fromkeys(note for each in programs for note in _notes(each)),
            *growing,
            *foretell(program),
        ),
        rule=settings.rule,
        bins=settings.bins,
        backend=settings.backend,
        memory=added([footprint(each, grows=bool(growing)) for each in programs]),
    )


def _layer(program: StepProgram, layer: Layer) -> LayerReport:
    names = {carry.placeholder: _place(program, carry) for carry in program.carries}
    made = dict(zip((carry.placeholder for carry in program.carries), step_results(program.step)[1], strict=True))
    delayed = [(source.origin, source.delay) for source in layer.sources if source.delay]
    states = list(zip(layer.states, layer.state_kinds, strict=True))
    delayed += [(made[state].name, 1) for state, kind in states if kind == "spikes"]
    decay = layer.decay
    kind = _kind(program, layer)
    curve = "" if layer.response is None else layer.response.kind
    return LayerReport(
        name=layer.name,
        kind=f"{kind} ({curve})" if curve else kind,
        inputs=tuple(source.value for source in layer.sources),
        states=tuple(_named(names[state], part) for state, part in states if part != "spikes"),
        outputs=layer.outputs,
        trace=_trace(program, decay),
        recurrence=", ".join(
            f"{origin} {delay} step{'s' * (delay > 1)} ago" for origin, delay in dict.fromkeys(delayed)
        ),
        reset=layer.reset if layer.spikes else "",
    )


def _trace(program: StepProgram, decay: float | None) -> str:
    """Says what the input traces of a layer are; nothing under a rule that keeps none."""
    if not rule_of(program.settings).records:
        return ""
    return "mean of each time bin" if decay is None else f"decay {decay}"


def _place(program: StepProgram, carry: Carry) -> str:
    """Returns what the user would write for a state: the module's attribute that its name was made of, if one is."""
    if carry.place:
        return carry.place
    for path, module in program.root.named_modules():
        start = f"{path.replace('.', '_')}_" if path else ""
        attribute = carry.name.removeprefix(start)
        if start and carry.name.startswith(start) and hasattr(module, attribute):
            return f"{path}.{attribute}"
    return carry.name


def _named(name: str, kind: StateKind) -> str:
    return name if kind == "state" else f"{name} ({kind})"


def _kind(program: StepProgram, layer: Layer) -> str:
    """Says what a layer is, see ``LayerReport``."""
    if layer.kind == "spiking":
        return "spiking"
    if layer.kind == "stateless":
        return "spiking without a state" if layer.spikes else "drawn"
    read = {source.origin for each in program.layers if each is not layer for source in each.sources}
    if layer.kind == "readout":
        return "without spikes" if read & set(layer.outputs) else "readout"
    learns = any(True for _ in layer.synapse.parameters()) or bool(program.trainable & set(layer.synapse_statics))
    return "readout" if layer.outputs[0] not in read and learns else "sum"


def _block(program: StepProgram, index: int) -> str:
    block = program.blocks[index]
    names = ", ".join(program.layers[layer].name for layer in block.layers)
    kind = "recurrent, solved together bin by bin" if block.recurrent else "feed-forward"
    if one_by_one(program.units) or rule_of(program.settings).through_time:
        return f"{names}: {kind}"
    unit = program.units[index]
    if unit.in_turn:
        return f"{names}: {kind}; one step at a time ({unit.alone})"
    parts = []
    if unit.values:
        parts.append("what it reads " + (f"step by step ({unit.alone})" if unit.alone else AT_ONCE))
    if unit.step is not None:
        parts.append("its neurons and lateral weights step by step" if unit.recurrent else "its neurons as a scan")
    return f"{names}: {kind}; {', '.join(parts)}"


def _parameters(program: StepProgram) -> dict[str, ParameterReport]:
    cut_off, exact = why_cut_off(program), _exact_parameters(program)
    return {
        name: ParameterReport("frozen", cut_off[name]) if name in cut_off else _status(parameter, exact, program)
        for name, parameter in program.root.named_parameters()
    }


def _exact_parameters(program: StepProgram) -> set[nn.Parameter]:
    """Returns the parameters of linear readouts that only the user reads: their gradient needs no slope of a neuron."""
    read = {source.origin for layer in program.layers for source in layer.sources}
    found: set[nn.Parameter] = set()
    before = [layer for each in with_segments(program)[:-1] for layer in each.layers]
    others: set[nn.Parameter] = {parameter for layer in before for parameter in layer.synapse.parameters()}
    for layer in program.layers:
        is_readout = (
            layer.kind == "junction" and layer.outputs[0] not in read and not nonlinear_operations(program, layer)
        )
        (found if is_readout else others).update(layer.synapse.parameters())
    return found - others


def _status(parameter: nn.Parameter, exact: set[nn.Parameter], program: StepProgram) -> ParameterReport:
    rule = rule_of(program.settings)
    if parameter in exact and rule.records:
        return ParameterReport("exact", "linear readout without a state: exact for a loss on the mean over time")
    return ParameterReport(*rule.status(program.settings))


def _notes(program: StepProgram) -> list[str]:
    rule = rule_of(program.settings)
    notes = rule.notes(program)
    if rule.records:
        notes += _approximations(program)
    styles = {layer.reset for layer in program.layers if layer.spikes and layer.response is not None}
    if "detached" in styles:
        notes.append("The reset is detached from the gradient, as in the model's own backpropagation.")
    if "in graph" in styles:
        notes.append("The reset is differentiated, as in the model's own backpropagation.")
    return notes


def _stepwise(program: StepProgram) -> list[str]:
    return [
        f"The model computes {name} for all steps at once, this network step by step: equal up to rounding, by which a "
        "spike may differ where its membrane is within rounding of the threshold."
        for name in program.stepwise
    ]


def _approximations(program: StepProgram) -> list[str]:
    notes = []
    for layer in program.layers:
        operations = nonlinear_operations(program, layer)
        if operations:
            notes.append(
                f"{layer.name}: {', '.join(operations)} does not commute with the mean over time; it is evaluated "
                + (f"at {SAMPLES} steps of each bin, as they were." if layer.sampled else "on the mean input.")
            )
        if layer.norms:
            notes.append(
                f"{layer.name}: in training, batch statistics are recorded per step and averaged over each bin."
            )
    if program.epilogue_again is not None:
        own = program.epilogue_again.caller or program.epilogue_again
        line = f"{own.file}:{own.line}"
        notes.append(
            f"The derivative of what is computed after the loop needs the values of all time steps ({line}): they are "
            "not kept, and backward runs the sequence forward once more, from the same inputs."
        )
    parts = (program.step.graph, program.epilogue.graph)
    if any(node.target is exact_value for graph in parts for node in graph.nodes):
        notes.append(
            "Work on the whole sequence is trained step by step; its values are those of the whole, as in the model."
        )
    return notes


def _growing(program: StepProgram) -> list[str]:
    """Says what keeps something of every time step."""
    if rule_of(program.settings).through_time:
        return ["Autograd keeps every time step for backward, as for the model: that memory grows with the sequence."]
    notes = []
    if any(node.op == "call_module" and _trains(program, node) for node in program.epilogue.graph.nodes):
        notes.append(
            "Layers after the loop keep the collected outputs for backward: that memory grows with the sequence."
        )
    notes += said_of_mixing(program)
    arguments = program.emitted.arguments if program.emitted is not None else program.prologue
    if not notes and any(node.op == "call_module" and _trains(program, node) for node in arguments.graph.nodes):
        notes.append("Layers before the loop keep the whole input for backward: that memory grows with the sequence.")
    return notes


def _trains(program: StepProgram, node: fx.Node) -> bool:
    """Tells whether a module has parameters that learn from what this node of a prologue or epilogue computes."""
    waiting, seen = [node], {node}
    while waiting:
        fresh = {user for user in waiting.pop().users if not has(user, Fact.DETACHES)} - seen
        waiting += fresh
        seen |= fresh
    learns = any(reached.op == "output" for reached in seen)
    return learns and any(parameter.requires_grad for parameter in program.resolve(str(node.target)).parameters())
