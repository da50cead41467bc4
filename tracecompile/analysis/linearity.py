"""Which synapses commute with the mean over time, and which operations must not be in a step at all."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from tracecompile.analysis.norms import NORMS, norm_arguments
from tracecompile.errors import UnsupportedOperation
from tracecompile.layers import Layer
from tracecompile.program import StepProgram

_LINEAR_MODULES: tuple[type[nn.Module], ...] = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.Flatten, nn.Unflatten, nn.Identity, nn.Upsample, nn.ZeroPad2d,
)  # fmt: skip
_LINEAR_NAMES = frozenset(
    """add sub neg rsub linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d avg_pool1d
    avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d cat stack flatten view reshape
    permute transpose t unsqueeze squeeze expand expand_as movedim swapaxes contiguous clone detach to float double
    half bfloat16 type type_as sum mean getitem select narrow chunk split unbind pad interpolate roll flip size getattr
    concat concatenate zeros_like repeat unflatten index_select exact_value""".split()
)
_PRODUCTS = frozenset("mul truediv div matmul mm bmm einsum multiply divide addmm baddbmm".split())


def operation_name(program: StepProgram, node: fx.Node) -> str:
    """Returns what a node does, in one word, as the user wrote it."""
    if node.op == "call_module":
        return type(program.resolve(str(node.target))).__name__
    return (
        node.target.strip("_") if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    )


def nonlinear_operations(program: StepProgram, layer: Layer) -> tuple[str, ...]:
    """Returns the operations of a synapse that do not commute with the mean over time, each once."""
    statics = set(layer.synapse_statics)
    varying: set[fx.Node] = set()
    found: dict[str, None] = {}
    for node in layer.synapse.graph.nodes:
        if node.op == "placeholder":
            if node.name not in statics:
                varying.add(node)
        elif node.op != "output" and any(source in varying for source in node.all_input_nodes):
            varying.add(node)
            if not _is_linear(program, node, varying):
                found[operation_name(program, node)] = None
    return tuple(found)


def _is_linear(program: StepProgram, node: fx.Node, varying: set[fx.Node]) -> bool:
    if node.op == "call_module":
        module = program.resolve(str(node.target))
        return isinstance(module, (*_LINEAR_MODULES, nn.Dropout)) or (isinstance(module, NORMS) and not module.training)
    name = operation_name(program, node)
    norm = norm_arguments(node.target, node.args, dict(node.kwargs))
    if norm is not None:
        return not norm["training"]
    if name in _PRODUCTS:
        moving = [source for source in node.all_input_nodes if source in varying]
        by_varying = name in ("truediv", "div", "divide") and len(node.args) > 1 and node.args[1] in varying
        return len(moving) == 1 and not by_varying
    return name in _LINEAR_NAMES


def refuse_random(program: StepProgram) -> None:
    """Refuses a step that draws random numbers: its local graph, which runs once, cannot draw the same ones.

    Raises:
        UnsupportedOperation: With the user's line.
    """
    for node in program.step.graph.nodes:
        if node.meta.get("draws") and node.op != "call_module":
            raise UnsupportedOperation(
                f"The step draws random numbers ({operation_name(program, node)}) at every time step.",
                "Draw them once per sequence, before the loop, and use the same in every step.",
                node.meta.get("where"),
            )


def draws_random(program: StepProgram, node: fx.Node) -> bool:
    """Tells whether a node draws random numbers; a module with a dropout may, since its mode may change."""
    if node.op == "call_module":
        return any(map(_may_drop, program.resolve(str(node.target)).modules()))
    return bool(node.meta.get("draws"))


def _may_drop(module: nn.Module) -> bool:
    """Tells whether a module draws random numbers when it is trained."""
    share = module.p if isinstance(module, nn.modules.dropout._DropoutNd) else getattr(module, "dropout", 0.0)
    return isinstance(module, nn.RReLU) or (isinstance(share, (int, float)) and share > 0)


def refuse_active_dropout(program: StepProgram) -> None:
    """Refuses, in training mode, a module that draws new random numbers, such as a dropout's mask, in every step.

    Raises:
        UnsupportedOperation: With the user's line.
    """
    for node in program.step.graph.nodes:
        if node.op == "call_module":
            module: Any = program.resolve(str(node.target))
            if any(part.training and _may_drop(part) for part in module.modules()):
                raise UnsupportedOperation(
                    f"The layer {node.target} draws a new mask in every step, which no mean over time reproduces.",
                    "Draw one mask per sequence before the loop (F.dropout of ones) and multiply by it, or set p to 0.",
                    node.meta.get("where"),
                )
