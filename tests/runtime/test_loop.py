"""A loop goes on in another mode of the model, if that carries the same, and refuses it otherwise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tracecompile
from tracecompile import nn as snn
from tracecompile.errors import InvalidInput
from tracecompile.runtime.module import session_of

BATCH, INPUTS, NEURONS = 3, 4, 5


class SameLayers(nn.Module):
    """One step per call; the threshold is another when it is evaluated."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.readout = nn.Linear(INPUTS, NEURONS), nn.Linear(NEURONS, 2)
        self.spike = snn.sigmoid(4.0)
        self.mem: Tensor | None = None

    def reset(self) -> None:
        self.mem = None

    def forward(self, x_t: Tensor) -> Tensor:
        mem = x_t.new_zeros(len(x_t), NEURONS) if self.mem is None else self.mem
        mem = 0.8 * mem + self.current(x_t)
        spikes = self.spike(mem - self.threshold())
        self.mem = mem - spikes
        output: Tensor = self.readout(spikes)
        return output

    def current(self, x_t: Tensor) -> Tensor:
        current: Tensor = self.below(x_t)
        return current

    def threshold(self) -> float:
        return 0.5 if self.training else 0.7


class OtherLayers(SameLayers):
    """When it is evaluated, the input comes in past its weights too, as a second current."""

    def forward(self, x_t: Tensor) -> Tensor:
        if self.training:
            return super().forward(x_t)
        mem = x_t.new_zeros(len(x_t), NEURONS) if self.mem is None else self.mem
        mem = 0.8 * mem + 0.5 * self.below(x_t) + self.below(x_t).tanh()
        spikes = self.spike(mem - 0.7)
        self.mem = mem - spikes
        output: Tensor = self.readout(spikes)
        return output


def pair(kind: type[SameLayers]) -> tuple[tracecompile.TracedModule, SameLayers, Tensor]:
    """Returns a net that goes step by step, its model's twin, and the input of six steps."""
    models = []
    for _ in range(2):
        torch.manual_seed(5)
        models.append(kind().double())
    x = 2 * torch.randn(6, BATCH, INPUTS).double()
    return tracecompile.convert(models[0], x[0], bins=8), models[1], x


def test_a_mode_with_other_layers_is_refused_in_the_midst_of_a_stream() -> None:
    net, _, x = pair(OtherLayers)
    net.train()
    outputs = [net(x_t) for x_t in x[:2]]
    net.eval()
    with pytest.raises(InvalidInput, match="the model is made of other layers") as refusal:
        net(x[2])
    assert "reset()" in refusal.value.advice
    assert outputs[0].requires_grad


def test_after_backward_or_reset_any_mode_begins() -> None:
    for ends in (lambda net, outputs: torch.stack(outputs).sum().backward(), lambda net, outputs: net.reset()):
        net, _, x = pair(OtherLayers)
        outputs = [net(x_t) for x_t in x[:2]]
        ends(net, outputs)
        net.eval()
        net(x[2]).sum().backward()
        assert net.get_parameter("below.weight").grad is not None


def test_what_learns_nothing_changes_its_mode_as_it_likes() -> None:
    net, twin, x = pair(OtherLayers)
    with torch.no_grad():
        for training, x_t in zip((True, True, False, True, False, False), x, strict=True):
            assert torch.equal(net.train(training)(x_t), twin.train(training)(x_t))


@pytest.mark.parametrize("modes", [(True, True, False, False, True, False), (False, True, True, False, False, True)])
def test_a_mode_with_the_same_layers_goes_on(modes: tuple[bool, ...]) -> None:
    net, twin, x = pair(SameLayers)
    found = [net.train(training)(x_t) for training, x_t in zip(modes, x, strict=True)]
    wanted = [twin.train(training)(x_t) for training, x_t in zip(modes, x, strict=True)]
    assert all(map(torch.equal, found, wanted))
    assert sum(bool(out.detach().abs().sum() > 0) for out in wanted) == 6
    assert len({id(compiled) for compiled, _ in session_of(net).programs}) == 2
    weigh = torch.randn(6, BATCH, 2).double()
    gradients = [
        torch.autograd.grad((torch.stack(outs) * weigh).sum(), list(owner.parameters()))
        for owner, outs in ((net, found), (twin, wanted))
    ]
    for one, other in zip(*gradients, strict=True):
        assert (one - other).norm() <= 1e-9 * other.norm()
        assert other.norm() > 0
