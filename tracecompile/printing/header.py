"""The comments at the top of a stage: the model, and what the passes have found so far."""

from __future__ import annotations

from collections.abc import Mapping

from tracecompile.layers import Layer, Trace
from tracecompile.printing.layout import WIDTH
from tracecompile.program import StepProgram


def title(program: StepProgram, stage: str) -> str:
    """Returns the first line of a stage."""
    return f"# {program.root._get_name()} after {stage}"


def facts(program: StepProgram, names: Mapping[str, str]) -> list[str]:
    """Returns what is known of a program.

    Args:
        program: After some passes.
        names: What the text calls the values of the step, by the names of its nodes.
    """
    settings = program.settings
    bins = f", {settings.bins} {'bin' if settings.bins == 1 else 'bins'}" if settings.rule == "measured" else ""
    what = "a whole sequence" if program.kind == "sequence" else "one time step"
    lines = [f"Rule: {settings.rule}{bins}. A call is {what}."]

    def called(values: tuple[str, ...]) -> str:
        return ", ".join(names.get(value, value) for value in values) or "none"

    if not program.layers:
        for core in program.cores:
            lines.append(
                f"Core: states {called(core.states)}; spikes {called(core.spikes)}; {len(core.nodes)} operations."
            )
    recurrent = {index for block in program.blocks if block.recurrent for index in block.layers}
    for index, layer in enumerate(program.layers):
        lines.append(_layer(layer, index in recurrent, names))
    lines += [_trace(trace, names) for trace in program.traces]
    for number, block in enumerate(program.blocks):
        together = ", ".join(program.layers[index].name for index in block.layers)
        lines.append(f"Block {number}: {together}{' (recurrent)' if block.recurrent else ''}.")
    return [f"# {line}" if len(line) < WIDTH - 2 else f"# {line[: WIDTH - 6]}..." for line in lines]


def _layer(layer: Layer, recurrent: bool, names: Mapping[str, str]) -> str:
    words = [layer.kind, *(["recurrent"] if recurrent else [])]
    if layer.reset != "none":
        words.append(f"reset {layer.reset}")
    kinds = zip(layer.states, layer.state_kinds, strict=True)
    states = ", ".join(f"{names.get(state, state)} ({kind})" for state, kind in kinds)
    text = f"Layer {layer.name}: {', '.join(words)}"
    text += f"; states {states}" if states else ""
    if layer.response is None:
        return f"{text}."
    return f"{text}; {layer.response.kind or 'slopes recorded'}."


def _trace(trace: Trace, names: Mapping[str, str]) -> str:
    decay = "mean over time" if trace.decay is None else f"decay {trace.decay}"
    return f"Trace of {names.get(trace.value, trace.value)}: {decay}; read by {', '.join(trace.readers)}."
