"""Local graphs: a layer's synapse on the mean input of every bin, the first half of its backward step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tracecompile.layers import Layer


class LocalGraph:
    """A layer's synapse, evaluated on the mean input of every bin, with a graph."""

    def __init__(
        self,
        layer: Layer,
        means: list[dict[str, Tensor]],
        norms: list[list[Tensor]],
        statics: Mapping[str, Tensor],
        wanted: set[str],
    ) -> None:
        """Evaluates the synapse.

        Args:
            layer: The layer.
            means: Mean input by source value, per bin.
            norms: Recorded statistics of its normalisations, per bin.
            statics: Static values.
            wanted: Sources whose learning signal someone upstream needs.
        """
        local = layer.local
        assert local is not None
        self.layer = layer
        self.leaves: list[dict[str, Tensor]] = []
        self.currents: list[tuple[Tensor, ...]] = []
        # Stand-ins, because a hook on a parameter must see its whole gradient once, not the parts of it.
        owned = {name: p for name, p in _places(local).items() if p.requires_grad}
        self.parameters: dict[Tensor, Tensor] = {p: p.detach().requires_grad_() for p in owned.values()}
        stand_ins = {name: self.parameters[p] for name, p in owned.items()}
        self.statics = {name: statics[name] for name in layer.synapse_statics}
        with torch.enable_grad():
            for given, statistics in zip(means, norms, strict=True):
                leaves = {
                    name: value.detach().requires_grad_(name in wanted and value.is_floating_point())
                    for name, value in given.items()
                }
                self.leaves.append(leaves)
                given_all = (*leaves.values(), *self.statics.values(), *statistics)
                self.currents.append(_called(local, stand_ins, given_all) if stand_ins else local(*given_all))

    def upstream(self, index: int, signals: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the learning signal on the sources of one bin; keeps the graph."""
        leaves = {name: leaf for name, leaf in self.leaves[index].items() if leaf.requires_grad}
        found = self._pull([index], [signals], list(leaves.values()))
        return {name: signal for name, signal in zip(leaves, found, strict=True) if signal is not None}

    def weight_gradients(
        self, signals: Sequence[Mapping[str, Tensor]]
    ) -> tuple[dict[Tensor, Tensor], dict[str, Tensor]]:
        """Returns the gradients of the synapse's parameters and the learning signals of its static values."""
        statics = {
            name: value for name, value in self.statics.items() if isinstance(value, Tensor) and value.requires_grad
        }
        found = self._pull(range(len(signals)), signals, [*self.parameters.values(), *statics.values()])
        split = len(self.parameters)
        weights = {p: g for p, g in zip(self.parameters, found[:split], strict=True) if g is not None}
        return weights, {name: g for name, g in zip(statics, found[split:], strict=True) if g is not None}

    def _pull(
        self, bins: Sequence[int], signals: Sequence[Mapping[str, Tensor]], inputs: list[Tensor]
    ) -> list[Tensor | None]:
        outputs: list[Tensor] = []
        pulls: list[Tensor] = []
        for index, given in zip(bins, signals, strict=True):
            for name, current in zip(self.layer.currents, self.currents[index], strict=True):
                if name in given and current.requires_grad:
                    outputs.append(current)
                    pulls.append(_fitted(given[name], current))
        if not outputs or not inputs:
            return [None] * len(inputs)
        return list(torch.autograd.grad(outputs, inputs, pulls, retain_graph=True, allow_unused=True))


def _fitted(signal: Tensor, current: Tensor) -> Tensor:
    """Returns a learning signal in the shape of a current: summed where one current serves several neurons."""
    if signal.ndim > current.ndim or signal.numel() > current.numel():
        signal = signal.sum_to_size(current.shape)
    return signal.to(current.dtype).expand_as(current)


def _places(module: nn.Module) -> dict[str, nn.Parameter]:
    """Returns all places where parameters are, each under one name: a module may be there under several."""
    parts = {id(part): (path, part) for path, part in module.named_modules(remove_duplicate=False)}
    return {
        f"{path}.{name}" if path else name: parameter
        for path, part in parts.values()
        for name, parameter in part._parameters.items()
        if parameter is not None
    }


def _called(graph: nn.Module, stand_ins: Mapping[str, Tensor], given: tuple[Any, ...]) -> Any:
    """Calls a graph with other tensors in the places of parameters."""
    forward = vars(graph).get("forward")
    if isinstance(forward, partial) and (twin := _twin(forward.args[0], graph, stand_ins)) is not None:
        return forward.func(twin, *given)
    # Every place is named: torch would put a stand-in in a second time where a module is there twice, and leave it.
    return functional_call(graph, dict(stand_ins), given, tie_weights=False)


def _twin(root: nn.Module, graph: nn.Module, stand_ins: Mapping[str, Tensor]) -> Any:
    """Returns a module like the model, which a graph can be called on, with stand-ins in the places of parameters.

    Torch's own layers are called so: others may look at the model meanwhile, in other threads. None where the graph
    calls anything else that has parameters, which may find its way back to the model itself.
    """
    made = _like(root)
    for path, module in graph.named_modules(remove_duplicate=False):
        if not module._parameters:
            continue
        twin = made
        for name in path.split("."):
            part = twin._modules.get(name)
            if part is None:
                return None
            twin._modules[name] = twin = part if "_stand_ins" in vars(part) else _like(part)
        if root.get_submodule(path) is not module:
            return None
        plain = type(module).__module__.startswith("torch.nn.modules") and "forward" not in vars(module)
        if not plain or module._modules or twin._parameters.keys() != module._parameters.keys():
            return None
        names = {name: f"{path}.{name}" for name in module._parameters}
        twin._parameters = {name: stand_ins.get(place, module._parameters[name]) for name, place in names.items()}
    return made


def _like(module: nn.Module) -> Any:
    made = object.__new__(type(module))
    vars(made).update(vars(module), _modules=dict(module._modules), _stand_ins=True)
    return made
