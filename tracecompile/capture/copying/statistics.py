"""Statistics that a model moves when it runs: running averages, counters, records of what it last saw.

They outlive the sequence, no gradient flows through them, and they belong to the model rather than to its samples: a
batch of another size leaves their shape as it is. That is what tells them from the states of neurons.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from tracecompile.capture.copying.copies import share_parameters, tensor_attributes
from tracecompile.capture.copying.fresh_start import library_of
from tracecompile.capture.copying.registries import registries_redirected
from tracecompile.capture.tracing.tape import Tape
from tracecompile.errors import UnsupportedState


def find_statistics(
    model: nn.Module, tape: Tape, args: tuple[Any, ...], kwargs: dict[str, Any], time: int | None
) -> tuple[str, ...]:
    """Returns the names of the attributes that a run has moved as statistics.

    Args:
        model: As it was before that run; copies of it run here.
        tape: What the run left behind.
        args, kwargs: Of the run.
        time: The axis of the inputs that holds the time steps, if one does.

    Raises:
        UnsupportedState: One is kept in a container, where nobody else can find it again.
    """
    present = dict(tensor_attributes(model))
    candidates = [
        name
        for name in tape.written
        if name in present
        and not tape.learning[name]
        and tape.attributes[name].meta["val"].shape == present[name].shape
        and library_of(model.get_submodule(name.partition("[")[0].rpartition(".")[0])) is None
    ]
    found = _of_any_batch(model, candidates, args, kwargs, time) if candidates else ()
    for name in found:
        if "[" in name:
            raise UnsupportedState(
                f"The statistic {name} outlives the sequence, and is kept in a container.",
                "Keep it in a buffer: register_buffer in the constructor.",
                tape.attributes[name].meta.get("where"),
            )
    return found


def with_statistics(tape: Tape, names: tuple[str, ...]) -> Tape:
    """Makes what the statistics hold at the end a part of the result, which all later stages see to."""
    if names:
        tape.statistics = names
        tape.result = (tape.result, {name: tape.attributes.get(name) for name in names})
    return tape


def _of_any_batch(
    model: nn.Module, names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any], time: int | None
) -> tuple[str, ...]:
    """Returns those whose shape is the same after a batch of another size, whichever axis that is."""
    shapes = {name: value.shape for name, value in tensor_attributes(model)}
    ran = False
    for axis in (0, 1):
        if axis == time:
            continue
        other = share_parameters(model)
        try:
            with torch.no_grad(), registries_redirected(other):
                other(*_doubled(args, axis), **_doubled(kwargs, axis))
        except Exception:  # the user's code, on sizes that it was not made for
            continue
        ran = True
        after = dict(tensor_attributes(other))
        names = [name for name in names if name in after and after[name].shape == shapes[name]]
    return tuple(names) if ran else ()


def _doubled(value: Any, axis: int) -> Any:
    """Returns arguments whose tensors are twice as long along an axis, where they have it."""

    def twice(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor) and leaf.dim() > axis:
            return torch.cat([leaf.detach(), leaf.detach()], axis)
        return leaf

    return pytree.tree_map(twice, value)
