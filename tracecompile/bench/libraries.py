"""The same networks in SpikingJelly and snnTorch, where these are installed, trained as their documentation shows."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

import tracecompile.nn as snn
from tracecompile.bench.case import Case
from tracecompile.bench.networks import LEAK, SURROGATE, Looped
from tracecompile.bench.running import Run, Skipped
from tracecompile.diagnostics.check import projection_loss

TAU = 1.0 / (1.0 - LEAK)
"""Time constant with which SpikingJelly's ``v <- (1 - 1 / tau) v + x`` is the model's ``v <- leak v + x``."""


def spikingjelly_ottt(case: Case) -> Run:
    """Online training through time (Xiao et al. 2022): the weights see traces of the spikes, no gradient over time.

    The input has a trace as well; without one the first layer would learn from the current step alone.
    """
    jelly = Jelly()
    looped, (x,) = feed_forward(case), case.inputs

    def fresh() -> nn.Module:
        return _twin(looped, jelly.layer.OTTTSequential, lambda: jelly.node("OTTTLIFNode"))

    def body(net: nn.Module) -> None:
        trace = torch.zeros_like(x[0])
        for x_t in x:
            trace = LEAK * trace + x_t
            projection_loss(net([x_t, trace]) / case.steps).backward()
        jelly.functional.reset_net(net)

    return Run(fresh, body, gradient_of=_names(looped))


def spikingjelly_sltt(case: Case) -> Run:
    """Spatial learning through time (Meng et al. 2023): backward in every step, no gradient over time."""
    jelly = Jelly()
    looped, (x,) = feed_forward(case), case.inputs

    def fresh() -> nn.Module:
        return _twin(looped, nn.Sequential, lambda: jelly.node("SLTTLIFNode"))

    def body(net: nn.Module) -> None:
        for x_t in x:
            projection_loss(net(x_t) / case.steps).backward()
        jelly.functional.reset_net(net)

    return Run(fresh, body, gradient_of=_names(looped))


def snntorch_loop(case: Case) -> Run:
    """snnTorch's usual loop: backpropagation through time over its own neurons, which reset one step later."""
    snntorch = imported("snntorch")
    if case.looped is None:
        raise Skipped(_ONLY_BUILT_IN)
    looped, (x,) = case.looped, case.inputs

    # Made once: snnTorch keeps every neuron that was ever made in a list of its own.
    twin = nn.ModuleList([_in_snntorch(snntorch, looped.get_submodule(name)) for name in looped.order]).to(x.device)

    def loss(net: nn.Module) -> Tensor:
        assert isinstance(net, nn.ModuleList)
        total = torch.zeros((), device=x.device)
        for module in net:
            if "reset_mem" in dir(module):
                cast(Any, module).reset_mem()
        for signal in x:
            for module in net:
                signal = module(signal)
            total = total + signal
        return projection_loss(total / case.steps)

    note = "its neurons reset one step later, so the gradient is of another network"
    return Run(lambda: twin, lambda net: loss(net).backward(), grows=loss, gradient_of=None, note=note)


_ONLY_BUILT_IN = "only for the built-in networks, which are written in the library once more"


class Jelly:
    """The parts of SpikingJelly that are used.

    Raises:
        Skipped: It is not installed, or cannot be imported.
    """

    def __init__(self) -> None:
        self.neuron, self.layer, self.functional = (
            imported(f"spikingjelly.activation_based.{name}") for name in ("neuron", "layer", "functional")
        )

    def node(self, kind: str, **options: Any) -> nn.Module:
        """Returns the library's neurons of a kind that compute what the networks' neurons do."""
        options |= {"tau": TAU, "decay_input": False, "v_threshold": 1.0, "v_reset": None, "detach_reset": True}
        made: nn.Module = getattr(self.neuron, kind)(surrogate_function=SURROGATE, **options)
        return made


def imported(name: str) -> Any:
    """Returns a module of a library.

    Raises:
        Skipped: It is not installed, or cannot be imported.
    """
    library = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == library:
            raise Skipped(f"{library} is not installed") from error
        raise Skipped(f"{library} cannot be imported: {error}") from error
    except Exception as error:
        raise Skipped(f"{library} cannot be imported: {error}") from error


def feed_forward(case: Case) -> Looped:
    """Returns the model of a built-in network without lateral weights.

    Raises:
        Skipped: It is another one.
    """
    if case.looped is None:
        raise Skipped(_ONLY_BUILT_IN)
    if any(isinstance(module, snn.RLIF) for module in case.looped.modules()):
        raise Skipped("SpikingJelly's nodes that are compared here have no lateral weights")
    return case.looped


def _twin(looped: Looped, container: type[nn.Sequential], neuron: Callable[[], nn.Module]) -> nn.Module:
    modules: Sequence[nn.Module] = [looped.get_submodule(name) for name in looped.order]
    return container(*(neuron() if isinstance(module, snn.LIF) else copy.deepcopy(module) for module in modules))


def _names(looped: Looped) -> dict[str, str]:
    """Returns the names of a twin's parameters by those of the model's."""
    places = {name: str(place) for place, name in enumerate(looped.order)}
    return {
        f"{module}.{name}": f"{place}.{name}"
        for module, place in places.items()
        for name, _ in looped.get_submodule(module).named_parameters()
    }


def _in_snntorch(library: Any, module: nn.Module) -> nn.Module:
    options = {"beta": LEAK, "spike_grad": SURROGATE, "init_hidden": True}
    if isinstance(module, snn.RLIF):
        made: nn.Module = library.RLeaky(linear_features=module.features, **options)
        with torch.no_grad():
            made.recurrent.weight.copy_(module.lateral.weight)  # type: ignore[operator, union-attr]
            made.recurrent.bias.zero_()  # type: ignore[operator, union-attr]
        return made
    if isinstance(module, snn.LIF):
        found: nn.Module = library.Leaky(**options)
        return found
    return copy.deepcopy(module)
