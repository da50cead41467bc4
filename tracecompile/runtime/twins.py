"""Calls a graph with other tensors in the places of Parameters, and leaves the user's modules as they are.

Other threads may read, copy or run the model meanwhile. So a graph is called on twins of what it calls: shallow copies
of modules that have tables of Parameters of their own, and share everything else with the modules that they are like.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from tracecompile.errors import UnsupportedOperation

StandIns = Mapping[Tensor, Tensor]
"""What stands in the place of each Parameter."""
LOST = (
    "A synapse reads a Parameter from elsewhere than from a module: its gradient would be lost.",
    "Let what runs in a layer, its hooks included, read Parameters as attributes of modules.",
)
"""What an error says where no way leads to a stand-in."""


def on_twins(graph: nn.Module, stand_ins: StandIns) -> Callable[..., Any]:
    """Returns what calls a graph with stand-ins, and fails where no gradient would come to one of them.

    Args:
        graph: As it is printed, or a graph of torch.
        stand_ins: Of all Parameters of the modules that it calls, as far as they require a gradient.
    """
    if not stand_ins:
        return graph
    call = Twins(stand_ins).called(graph)

    def run(*given: Any) -> Any:
        found = call(*given)
        if not leads_past(found, stand_ins):
            return found
        # A hook, or what a module keeps beside its tables, has found its way back to the model itself.
        found = functional_call(graph, _by_place(graph, stand_ins), given, tie_weights=False)
        if leads_past(found, stand_ins):
            raise UnsupportedOperation(*LOST)
        return found

    return run


class Twins:
    """Twins of modules, each made once. They live as long as the modules do."""

    def __init__(self, stand_ins: StandIns) -> None:
        """Makes nothing yet.

        Args:
            stand_ins: In the places of Parameters; of buffers too, where a graph takes them as arguments.
        """
        self.stand_ins = stand_ins
        self.made: dict[int, Any] = {}
        self.whole: set[int] = set()
        self._called: dict[int, Callable[..., Any]] = {}

    def called(self, graph: nn.Module) -> Callable[..., Any]:
        """Returns what runs a graph on twins, or the graph itself where nothing stands in."""
        if not self.stand_ins:
            return graph.forward
        if id(graph) not in self._called:
            self._called[id(graph)] = self._of_graph(graph)
        return self._called[id(graph)]

    def _of_graph(self, graph: nn.Module) -> Callable[..., Any]:
        forward = vars(graph).get("forward")  # a function, where the graph is printed
        if isinstance(forward, partial):
            return partial(self._calling_twins(forward.func), self._with_parts(forward.args[0], graph))
        run: Callable[..., Any] = self.of(graph).forward if forward is None else self._calling_twins(forward)
        return run

    def of(self, module: nn.Module) -> Any:
        """Returns a twin of a module and of all below it; the module itself where nothing stands in."""
        if not self.stand_ins:
            return module
        twin = self._alone(module)
        if id(module) not in self.whole and twin is not module:
            self.whole.add(id(module))
            twin._modules.update((name, self.of(part)) for name, part in module._modules.items() if part is not None)
        return twin

    def _alone(self, module: nn.Module) -> Any:
        """Returns a twin of a module whose parts are those of the module."""
        if isinstance(module, torch.jit.ScriptModule):  # its tables are not Python's
            return module
        if id(module) not in self.made:
            twin = self.made[id(module)] = object.__new__(type(module))
            held = {name: self._instead(value) for name, value in module._parameters.items()}
            vars(twin).update(vars(module), _modules=dict(module._modules), _parameters=held)
            if any(value in self.stand_ins for value in module._buffers.values()):
                twin._buffers = {name: self._instead(value) for name, value in module._buffers.items()}
        return self.made[id(module)]

    def _instead(self, value: Tensor | None) -> Tensor | None:
        return None if value is None else self.stand_ins.get(value, value)

    def _with_parts(self, root: nn.Module, graph: nn.Module) -> Any:
        """Returns a twin of the model, with twins of those of its parts alone that a graph names."""
        for path, module in graph.named_modules(remove_duplicate=False):
            above: nn.Module = root
            for name in path.split(".") if path else ():
                part = above._modules.get(name)
                if part is None:
                    break
                self._alone(above)._modules[name] = self.of(part) if part is module else self._alone(part)
                above = part
        return self._alone(root)

    def _calling_twins(self, function: Any) -> Callable[..., Any]:
        """Returns a function that calls twins of the modules that it knows by global names: the program's own."""
        named = {name: function.__globals__.get(name) for name in function.__code__.co_names}
        twins = {name: self.of(value) for name, value in named.items() if isinstance(value, nn.Module)}
        known = {**function.__globals__, **twins}
        return FunctionType(function.__code__, known, function.__name__) if twins else function


def _by_place(graph: nn.Module, stand_ins: StandIns) -> dict[str, Tensor]:
    """Returns stand-ins by their places, each under one name.

    Torch would put a stand-in in a second time where a module is there twice, and leave it.
    """
    parts = {id(part): (path, part) for path, part in graph.named_modules(remove_duplicate=False)}
    return {
        f"{path}.{name}" if path else name: stand_ins[parameter]
        for path, part in parts.values()
        for name, parameter in part._parameters.items()
        if parameter in stand_ins
    }


def leads_past(found: Any, stand_ins: StandIns) -> bool:
    """Tells whether the graph of some values leads to a Parameter itself."""
    made = {parameter.grad_fn for parameter in stand_ins} - {None}  # such as a caller of functional_call hands over
    waiting = [value.grad_fn for value in pytree.tree_leaves(found) if isinstance(value, Tensor)]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node in made or getattr(node, "variable", None) in stand_ins:
            return True
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
    return False
