"""Stateless layers of SpikingJelly, which take one time step or a whole sequence, as their step_mode says.

In mode 'm' such a layer treats the (T, N, ...) of a sequence as a batch of T * N. The program calls it once a step:
there it stands in mode 's'. Copies that run the user's forward are as the user wrote them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from torch import nn

from tracecompile.capture.tracing.opaque import library_class
from tracecompile.program import TWIN_OF

OVER_TIME = "_computed_over_time"
"""Mark on a copy of a layer that the user's model calls with all time steps at once."""

WRAPPED: tuple[type[nn.Module], ...] = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d,
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.Upsample, nn.Flatten,
)  # fmt: skip


def is_wrapper(module: nn.Module) -> bool:
    """Tells whether a module is one of torch's layers with a step_mode, and runs the library's own forward."""
    if not isinstance(module, WRAPPED) or library_class(module, "StepModule") is None:
        return False
    owner = next(base for base in type(module).__mro__ if "forward" in vars(base))
    return owner.__module__.startswith(("spikingjelly.", "torch."))


def in_single_steps(model: nn.Module) -> nn.Module:
    """Sets the layers of a copy to one step a call."""
    for module in _wrappers(model):
        if module.step_mode == "m":
            module.step_mode = "s"
            vars(module)[OVER_TIME] = True
    return model


def single_steps_of(model: nn.Module) -> dict[str, nn.Module]:
    """Returns twins of those layers of the user's model that take whole sequences, set to one step a call, by path.

    They have the layer's own tables of Parameters and buffers. The model stays as it is.
    """
    return {path: _single(module) for path, module in model.named_modules() if _is_over_time(module)}


def follow_modes(leaves: Iterable[nn.Module]) -> None:
    """Sets the twins among some modules to training or evaluation, as the layers that they are of."""
    for module in leaves:
        layer = vars(module).get(TWIN_OF)
        if layer is not None:
            module.training = layer.training


def _is_over_time(module: nn.Module) -> bool:
    return is_wrapper(module) and module.step_mode == "m"


def _single(module: nn.Module) -> nn.Module:
    twin: Any = copy.copy(module)
    twin.step_mode = "s"
    vars(twin)[TWIN_OF] = module
    return twin  # type: ignore[no-any-return]


def as_written(model: nn.Module) -> nn.Module:
    """Sets the layers of a copy to the mode that the user's model has."""
    for module in _wrappers(model):
        if vars(module).pop(OVER_TIME, False):
            module.step_mode = "m"
    return model


def _wrappers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if is_wrapper(module)]
