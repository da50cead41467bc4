"""Parameters that multiply a current neuron by neuron: the scale of a normalisation, a gain per channel."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from torch import fx, nn

from tracecompile.analysis.norms import argument_names
from tracecompile.layers import Layer, Scale
from tracecompile.operations import Fact, operation_of
from tracecompile.program import StepProgram, example_value, is_tensor

_BY_CHANNEL = ("batch_norm", "instance_norm", "group_norm")
_BY_FEATURE = ("layer_norm", "rms_norm")


def scales_of(program: StepProgram, layer: Layer, trainable: Collection[str]) -> tuple[Scale, ...]:
    """Returns the scales of a layer's currents.

    Args:
        program: Owner of the modules that the synapse calls.
        layer: A layer.
        trainable: Static values that depend on a parameter.
    """
    output = next(node for node in reversed(layer.synapse.graph.nodes) if node.op == "output")
    returned: Any = output.args[0]
    walk = _Walk(program, layer, trainable)
    pairs = zip(layer.currents, returned, strict=True)
    return tuple(scale for current, node in pairs for scale in walk.above(current, node, node))


class _Walk:
    """From a current upwards, for as long as it is affine in what is there, neuron by neuron."""

    def __init__(self, program: StepProgram, layer: Layer, trainable: Collection[str]) -> None:
        self.program, self.trainable = program, trainable
        given = (node for node in layer.synapse.graph.nodes if node.op == "placeholder")
        self.static = {node for node in given if node.name in layer.synapse_statics}

    def above(
        self, current: str, top: fx.Node, node: fx.Node, divides: bool = False, moves: bool = False
    ) -> Iterator[Scale]:
        """Yields the scales in a node and above it.

        Args:
            current: Name of the current.
            top: Its node.
            node: Where the walk is.
            divides: Whether the current is divided by what is here.
            moves: Whether the current is a product of what is here and of something that changes over time. Then an
                offset up here would do so as well.
        """
        if node in self.static:
            if node.name in self.trainable:
                yield Scale(current, static=node.name, divides=divides)
            return
        if not is_tensor(node) or example_value(node).shape != example_value(top).shape:
            return
        module = self.program.resolve(str(node.target)) if node.op == "call_module" else None
        operation = operation_of(node, module)
        if operation.name in (*_BY_CHANNEL, *_BY_FEATURE):
            shifts, scale = self._of_norm(current, node, module, operation.name in _BY_CHANNEL)
            if scale is not None and not divides and not (moves and shifts):
                yield scale
            return
        operands = [argument for argument in node.args if isinstance(argument, fx.Node) and is_tensor(argument)]
        varying = [operand for operand in operands if operand not in self.static]
        if operation.facts & (Fact.PRODUCT | Fact.QUOTIENT) and Fact.ELEMENTWISE in operation.facts:
            for place, operand in enumerate(operands):
                under = divides != (place > 0 and bool(operation.facts & Fact.QUOTIENT))
                others = any(other is not operand for other in varying)
                yield from self.above(current, top, operand, under, moves or others)
        elif Fact.ELEMENTWISE | Fact.LINEAR in operation.facts and len(varying) == 1:
            offset = len(node.args) > 1
            if not (offset and (moves or divides)):
                yield from self.above(current, top, varying[0], divides, moves)

    def _of_norm(
        self, current: str, node: fx.Node, module: nn.Module | None, channels: bool
    ) -> tuple[bool, Scale | None]:
        """Returns whether a normalisation has an offset, and its scale."""
        if module is not None:
            held = isinstance(getattr(module, "weight", None), nn.Parameter)
            shifts = getattr(module, "bias", None) is not None
            return shifts, Scale(current, module=str(node.target), channels=channels) if held else None
        given = {**dict(zip(argument_names(node.target), node.args, strict=False)), **node.kwargs}
        weight, shifts = given.get("weight"), given.get("bias") is not None
        if not isinstance(weight, fx.Node) or weight.name not in self.trainable:
            return shifts, None
        return shifts, Scale(current, static=weight.name, channels=channels)
