"""What stands between neurons as nodes of NIR: layers with weights, pooling, flattening, factors, sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from tracecompile.analysis.linearity import operation_name
from tracecompile.errors import UnsupportedOperation
from tracecompile.exact import exact_value
from tracecompile.exporting.nir.algebra import SAME
from tracecompile.exporting.nir.building import Building, Flow, array
from tracecompile.exporting.nir.layers import LAYERS, Unsayable
from tracecompile.exporting.nir.values import as_double, doubled
from tracecompile.operations import operation_of
from tracecompile.program import StepProgram

LARGEST = 1 << 26
"""Numbers in a matrix that is found by asking."""


class Synapse:
    """The synapse of one layer.

    Attributes:
        program: Whose it is.
        building: Takes its nodes.
        values: Of the nodes of the step on an example, in float64.
    """

    def __init__(self, program: StepProgram, building: Building, values: Mapping[str, Any]) -> None:
        self.program, self.building, self.values = program, building, values

    def currents(self, graph: fx.Graph, known: Mapping[str, Flow], statics: Sequence[str]) -> list[Any]:
        """Adds the nodes of a synapse; returns its currents.

        Args:
            graph: Of the synapse.
            known: What it reads.
            statics: Names of what it takes beside that.

        Raises:
            UnsupportedOperation: NIR has no node for one of its operations; names the user's line.
        """
        found: dict[fx.Node, Any] = {}
        for node in graph.nodes:
            if node.op == "placeholder":
                found[node] = self.values[node.name] if node.name in statics else known[node.name]
            elif node.op == "output":
                return [found[each] for each in node.args[0]]
            else:
                try:
                    found[node] = self._value(node, found)
                except Unsayable as fault:
                    raise UnsupportedOperation(
                        f"NIR has no node for {fault}.",
                        'Write it as layers that NIR has, or export it as ONNX: tracecompile.export(net, "onnx").',
                        node.meta.get("where"),
                    ) from fault
        raise AssertionError("a graph without an output node")

    def _value(self, node: fx.Node, found: Mapping[fx.Node, Any]) -> Any:
        args: list[Any] = [found[each] if isinstance(each, fx.Node) else each for each in node.args]
        named: dict[str, Any] = {
            key: found[each] if isinstance(each, fx.Node) else each for key, each in node.kwargs.items()
        }
        moving = [each for each in (*args, *named.values()) if isinstance(each, Flow)]
        if not any(isinstance(found[each], Flow) for each in node.all_input_nodes):
            return self.values[node.name]
        if not isinstance(self.values[node.name], Tensor):
            return self.values[node.name]  # a size
        if not moving:
            raise Unsayable(f"{operation_name(self.program, node)} of several values")
        if node.target is exact_value:
            return args[0]  # the other one is the same, made before the loop
        module = self._module(node)
        name = operation_of(node, module).name
        if name in SAME or isinstance(module, (nn.Identity, nn.modules.dropout._DropoutNd)):
            return moving[0]
        if name in SUMS and len(moving) == 2:
            return self._sum(node, name, *args, **named)
        if len(moving) > 1:
            raise Unsayable(f"{operation_name(self.program, node)} of two values that change")
        shape = tuple(self.values[node.name].shape[1:])
        apply = self._applied(node, args, named, module)
        layer = LAYERS.get(name)
        made = None if layer is None else layer(module, args, named, moving[0].shape, shape)
        if made is None and shape == moving[0].shape and name in KEEPS:
            return moving[0]
        if made is None and shape == moving[0].shape:
            before = next(each for each in node.all_input_nodes if found[each] is moving[0])
            alone = before.op != "placeholder" and len(before.users) == 1
            if (flow := self._each(node, moving[0], apply, alone)) is not None:
                return flow
        if made is None:
            made = self._matrix(node, apply, moving[0].shape, shape)
        return self._through(node, made, moving[0], apply, shape)

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.program.resolve(str(node.target)) if node.op == "call_module" else None

    def _applied(
        self, node: fx.Node, args: Sequence[Any], named: Mapping[str, Any], module: nn.Module | None
    ) -> Callable[[Tensor], Tensor]:
        """Returns an operation of one moving value as a function of it."""
        own = None if module is None else as_double(module)

        def apply(value: Tensor) -> Tensor:
            given, names = pytree.tree_map(
                lambda each: value if isinstance(each, Flow) else doubled(each), (list(args), dict(named))
            )
            called: Any = node.target if own is None else own
            if node.op == "call_method":
                called, given = getattr(given[0], str(node.target)), given[1:]
            try:
                with torch.no_grad():
                    made: Tensor = called(*given, **names)
            except RuntimeError as fault:  # of a size that is that of the example's batch
                raise Unsayable(operation_name(self.program, node)) from fault
            return made

        return apply

    def _through(
        self, node: fx.Node, made: Any, flow: Flow, apply: Callable[[Tensor], Tensor], shape: tuple[int, ...]
    ) -> Flow:
        """Adds a node that a flow goes through; the constant of the flow goes through as well."""
        name = self.building.add(self._hint(node), made, flow)
        if flow.constant is None:
            return Flow((name,), shape)
        if type(made).__name__ == "Flatten":
            return Flow((name,), shape, flow.constant.reshape(shape))
        both = torch.stack([flow.constant, torch.zeros(flow.shape, dtype=torch.float64)])
        one, zero = apply(both)
        return Flow((name,), shape).plus(one - zero)

    def _hint(self, node: fx.Node) -> str:
        return str(node.target) if node.op == "call_module" else node.name

    def _scaled(self, node: fx.Node, flow: Flow, factor: float | Tensor) -> Flow:
        return self.building.scaled(self._hint(node), flow, torch.as_tensor(factor))

    def _each(self, node: fx.Node, flow: Flow, apply: Callable[[Tensor], Tensor], alone: bool) -> Flow | None:
        """Returns an operation that multiplies every number and adds to it; None where it is another one.

        Where nobody else reads its input, it goes into the weights that make this.
        """
        generator = torch.Generator().manual_seed(0)
        given = torch.randn(5, *flow.shape, generator=generator, dtype=torch.float64)
        given[0], given[1] = 0, 1
        found = apply(given)
        zero, one = found[0], found[1]
        if not torch.allclose(found, zero + given * (one - zero), rtol=1e-9, atol=1e-9):
            return None
        if alone and flow.constant is None and self.building.fold(flow, one - zero, zero):
            return flow
        scaled = self._scaled(node, flow, one - zero)
        return scaled.plus(zero) if bool(zero.any()) else scaled

    def _sum(self, node: fx.Node, name: str, one: Flow, other: Flow, alpha: float = 1) -> Flow:
        shape = tuple(self.values[node.name].shape[1:])
        signs = {"add": (1, alpha), "sub": (1, -alpha), "rsub": (-alpha, 1)}[name]
        total = Flow((), shape)
        for value, sign in zip((one, other), signs, strict=True):
            if value.shape != shape:
                raise Unsayable("a sum of values of two shapes")
            part = self._scaled(node, value, float(sign))
            total = Flow((*total.names, *part.names), shape, total.constant)
            total = total if part.constant is None else total.plus(part.constant)
        return total

    def _matrix(
        self, node: fx.Node, apply: Callable[[Tensor], Tensor], inputs: tuple[int, ...], outputs: tuple[int, ...]
    ) -> Any:
        """Returns an operation from vectors to vectors as a product with a matrix, found by asking it."""
        import nir

        what = operation_name(self.program, node)
        if len(inputs) != 1 or len(outputs) != 1 or inputs[0] * outputs[0] > LARGEST:
            raise Unsayable(what)
        zero = apply(torch.zeros(2, *inputs, dtype=torch.float64))
        unit = apply(torch.eye(inputs[0], dtype=torch.float64)) - zero[:1]
        generator = torch.Generator().manual_seed(0)
        trial = torch.randn(5, *inputs, generator=generator, dtype=torch.float64)
        if not torch.allclose(apply(trial), trial @ unit + zero[:1], rtol=1e-9, atol=1e-9):
            raise Unsayable(f"{what}, which is no linear function of its input")
        weight = array(unit.T.contiguous())
        return nir.Affine(weight=weight, bias=array(zero[0])) if bool(zero.any()) else nir.Linear(weight=weight)


SUMS = ("add", "sub", "rsub")
KEEPS = ("reshape", "view", "flatten", "squeeze", "expand", "unsqueeze")
"""Operations that leave a value as it is where they leave its shape."""
