"""Several steps of a built-in network at once, as one would write them by hand: step by step, and layer by layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

import tracecompile.nn as snn
from tracecompile.bench.case import Case
from tracecompile.bench.networks import Looped, States
from tracecompile.bench.running import Skipped


def looped_of(case: Case) -> Looped:
    """Returns the model of a built-in network.

    Raises:
        Skipped: It is another model, of which the step between two states is not known.
    """
    if case.looped is None:
        raise Skipped("only for the built-in networks, whose step can be called by itself")
    return case.looped


def step_by_step(model: Looped, part: Tensor, states: States) -> tuple[Tensor, States]:
    """Returns the sum of the scores [batch, classes] of some steps [time, batch, ...], and the states after them."""
    total = torch.zeros((), device=part.device)
    for x_t in part:
        scores, states = model.step(x_t, states)
        total = total + scores
    return total, states


def layer_by_layer(model: Looped, part: Tensor, states: States) -> tuple[Tensor, States]:
    """Returns what ``step_by_step`` returns; all synapses but the lateral ones see all steps in one product.

    Batch normalisation in training is applied step by step: its statistics are those of a step.
    """
    signal, before, after = part, iter(states), []
    for name in model.order:
        module = model.get_submodule(name)
        if isinstance(module, snn.LIF):
            signal, state = _fired(module, signal, next(before))
            after.append(state)
        elif isinstance(module, _BatchNorm) and module.training:
            signal = torch.stack([module(x_t) for x_t in signal])
        else:
            signal = module(signal.flatten(0, 1)).unflatten(0, signal.shape[:2])
    return signal.sum(0), tuple(after)


def start_of(model: Looped, x: Tensor) -> States:
    """Returns the states before the first step as tensors, which require gradients as those of later steps do.

    So one compiled piece serves for the first steps and for all others.
    """
    training = model.training
    model.eval()  # moves no running statistics
    with torch.no_grad():
        _, states = model.step(x[0], model.start())
    model.train(training)
    made: States = pytree.tree_map(lambda value: torch.zeros_like(value).requires_grad_(), states)
    return made


def _fired(module: nn.Module, currents: Tensor, state: Any) -> tuple[Tensor, Any]:
    spikes = []
    for current in currents:
        fired, state = module(current, state)
        spikes.append(fired)
    return torch.stack(spikes), state
