"""Prints a program as readable Python, each statement under the user's own line."""

from __future__ import annotations

from torch import fx

from tracecompile.layers import Layer
from tracecompile.program import StepProgram


def listing(program: StepProgram) -> str:
    """Returns a program as text: the prologue, the step (by layers once they are known) and the epilogue."""
    parts = [_function("prologue", program.prologue)]
    if program.emitted is not None:
        parts.append(_function("traced_step", program.emitted.traced))
    elif program.layers:
        parts += [_layer(layer) for layer in program.layers]
    else:
        parts.append(_function("step", program.step))
    if program.cores and not program.layers:
        parts += [
            f"# core: {', '.join(core.nodes)}; states: {', '.join(core.states) or 'none'}" for core in program.cores
        ]
    parts += [f"# trace of {t.value} (decay {t.decay}), read by {', '.join(t.readers)}" for t in program.traces]
    for block in program.blocks:
        names = ", ".join(program.layers[index].name for index in block.layers)
        parts.append(f"# block: {names}{' (recurrent)' if block.recurrent else ''}")
    parts.append(_function("epilogue", program.epilogue))
    return "\n\n".join(parts) + "\n"


def _layer(layer: Layer) -> str:
    text = [f"# layer {layer.name}: {layer.kind}, reset {layer.reset}", _function("synapse", layer.synapse)]
    response = getattr(layer.response, "graph", None)
    if isinstance(response, fx.GraphModule):
        text.append(_function("core_with_derivatives", response))
    elif layer.core is not None:
        text.append(_function("core", layer.core))
    return "\n".join(text)


def _function(name: str, module: fx.GraphModule) -> str:
    lines = []
    previous = None
    for node in module.graph.nodes:
        if node.op == "placeholder":
            continue
        where = node.meta.get("where")
        if where is not None and where != previous:
            lines.append(f"    # {where.file}:{where.line}: {where.source}")
            previous = where
        if node.op == "output":
            lines.append(f"    return {node.args[0]}")
        else:
            lines.append(f"    {node.name} = {_call(node)}")
    taken = ", ".join(node.name for node in module.graph.nodes if node.op == "placeholder")
    return "\n".join([f"def {name}({taken}):", *lines])


def _call(node: fx.Node) -> str:
    arguments = [_text(argument) for argument in node.args]
    arguments += [f"{key}={_text(value)}" for key, value in node.kwargs.items()]
    if node.op == "get_attr":
        return f"self.{node.target}"
    if node.op == "call_module":
        return f"self.{node.target}({', '.join(arguments)})"
    if node.op == "call_method":
        return f"{arguments[0]}.{node.target}({', '.join(arguments[1:])})"
    name = getattr(node.target, "__name__", str(node.target))
    return f"{name}({', '.join(arguments)})"


def _text(argument: object) -> str:
    return str(argument) if isinstance(argument, (fx.Node, tuple, list)) else repr(argument)
