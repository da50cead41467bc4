"""SpikingJelly's own way to save memory (Huang et al. 2025): layers are run once more, and spikes are kept as bits.

Its first level is used, which runs on every device.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import tracecompile.nn as snn
from tracecompile.bench.case import Case
from tracecompile.bench.libraries import Jelly, feed_forward, imported
from tracecompile.bench.networks import Looped
from tracecompile.bench.running import Run
from tracecompile.diagnostics.check import projection_loss


class Layer(nn.Module):
    """Currents, then neurons: what memopt keeps the input of, and runs once more."""

    def __init__(self, currents: nn.Module, neurons: nn.Module) -> None:
        super().__init__()
        self.currents, self.neurons = currents, neurons

    def forward(self, x: Tensor) -> Tensor:
        """Returns the spikes."""
        spikes: Tensor = self.neurons(self.currents(x))
        return spikes


def optimized(model: nn.Module, example: Tensor) -> nn.Module:
    """Changes a model of such layers in place, so that it saves memory, and returns it.

    Args:
        model: Is run once, without being reset afterwards.
        example: What it is run on.
    """
    memopt = imported("spikingjelly.activation_based.memopt")
    changed: nn.Module = memopt.optimize_memory(model, (Layer,), lambda each: each(example), level=1)
    return changed


def spikingjelly_memopt(case: Case) -> Run:
    """Backpropagation through time over SpikingJelly's neurons, which take all steps at once, with its memopt."""
    jelly = Jelly()
    looped, (x,) = feed_forward(case), case.inputs
    layers, names = _twin(looped, jelly)
    twin = optimized(layers, x[:2])

    def fresh() -> nn.Module:
        jelly.functional.reset_net(twin)
        return twin

    def body(net: nn.Module) -> None:
        projection_loss(net(x).mean(0)).backward()

    own = {id(parameter): name for name, parameter in twin.named_parameters()}
    return Run(fresh, body, gradient_of={name: own[place] for name, place in names.items()}, note="its level 1")


def _twin(looped: Looped, jelly: Jelly) -> tuple[nn.Sequential, dict[str, int]]:
    """Returns the same network of layers that take all steps, and its parameters' ids by the names of the model's."""
    layers: list[nn.Module] = []
    currents: list[nn.Module] = []
    names: dict[str, int] = {}
    for name in looped.order:
        module = looped.get_submodule(name)
        if isinstance(module, snn.LIF):
            layers.append(Layer(nn.Sequential(*currents), jelly.node("LIFNode", step_mode="m")))
            currents = []
            continue
        own = copy.deepcopy(module)
        names |= {f"{name}.{part}": id(parameter) for part, parameter in own.named_parameters()}
        # Its norms over all steps at once would have other statistics than the model's, which are those of a step.
        one_by_one = isinstance(own, _BatchNorm)
        currents.append((jelly.layer.MultiStepContainer if one_by_one else jelly.layer.SeqToANNContainer)(own))
    return nn.Sequential(*layers, *currents), names
