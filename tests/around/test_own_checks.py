"""A model that refuses inputs itself: its net refuses them as well, with the model's own error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracecompile
from around.nets import INPUTS, Sequence, Step, assert_trains_alike, events, twins
from tracecompile.errors import ConversionError


def require_short(x: Tensor) -> None:
    if x.shape[0] >= 20:
        raise ValueError("fewer than 20 steps")


class Careful(Sequence):
    def forward(self, x: Tensor) -> Tensor:
        require_short(x)
        assert x.shape[1] % 2 == 0, "an even number of samples"
        return super().forward(x)


class CarefulStep(Step):
    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[0] < 8, "at most seven samples"
        return super().forward(x)


class Counting(nn.BatchNorm1d):
    """Normalisation within a model that checks: asking the model moves no statistics."""


class Normed(Careful):
    def __init__(self) -> None:
        super().__init__()
        self.norm = Counting(INPUTS)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.stack([self.norm(x_t) for x_t in x]))


@pytest.mark.parametrize(
    ("steps", "batch", "kind"),
    [(30, 2, ValueError), (6, 3, AssertionError), (25, 4, ValueError), (1, 1, AssertionError)],
)
def test_what_the_model_refuses_its_net_refuses(steps: int, batch: int, kind: type[Exception]) -> None:
    model, twin = twins(Careful)
    net = tracecompile.convert(model, events(6, 2), bins=7, backend="eager")
    for _ in range(2):
        # A condition on the number of steps makes each another program: then it is capture that meets the refusal.
        with pytest.raises((kind, ConversionError), match=r"steps|samples"):
            net(events(steps, batch))
    assert_trains_alike(net, model, twin, events(7, 4))
    assert any("may refuse an input itself" in note for note in net.report.notes)


def test_a_model_of_one_step_is_asked_in_the_midst_of_a_sequence() -> None:
    model, twin = twins(CarefulStep)
    net = tracecompile.convert(model, events(1, 2)[0], backend="eager")
    x = events(6, 4)
    for x_t in x[:3]:
        assert torch.equal(net(x_t), twin(x_t))
    with pytest.raises(Exception, match=r"at most seven samples|reset"):
        net(events(1, 9)[0])
    for x_t in x[3:]:
        assert torch.equal(net(x_t), twin(x_t))


def test_asking_moves_nothing() -> None:
    model, twin = twins(Normed)
    net = tracecompile.convert(model, events(6, 2), bins=7, backend="eager")
    torch.manual_seed(3)
    for steps, batch in ((7, 4), (9, 6), (7, 4)):
        x = events(steps, batch)
        state = torch.get_rng_state()
        net(x), twin(x)
        assert torch.equal(torch.get_rng_state(), state)
    assert int(model.norm.num_batches_tracked) == int(twin.norm.num_batches_tracked)
    assert torch.equal(model.norm.running_mean, twin.norm.running_mean)


def test_a_model_that_refuses_nothing_is_not_asked() -> None:
    ran: list[Any] = []

    class Noted(Sequence):
        def forward(self, x: Tensor) -> Tensor:
            ran.append(x.shape)
            return super().forward(x)

    model, _ = twins(Noted)
    net = tracecompile.convert(model, events(6, 2), backend="eager")
    ran.clear()
    net(events(9, 5))
    assert not ran
