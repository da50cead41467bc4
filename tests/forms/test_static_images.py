"""One image shown several times: from a single step up, reset inside or outside, the first step before the loop."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.oracle import HIDDEN, INPUTS, OUTPUTS, Program, require_right, spike
from torch import Tensor, nn

import tracecompile

STEPS = (1, 2, 3, 4, 12)


class Shown(nn.Module):
    """A layer of leaky neurons and a readout, for the loops below."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.inp, self.out = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)

    def step(self, image: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v = 0.9 * v + self.inp(image)
        z = spike(v - 0.8)
        return z, v - 0.8 * z


class StateInLocals(Shown):
    def forward(self, image: Tensor) -> Tensor:
        v, out = image.new_zeros(image.shape[0], HIDDEN), 0
        for _ in range(self.steps):
            z, v = self.step(image, v)
            out = out + self.out(z)
        return out / self.steps


class CurrentBefore(Shown):
    def forward(self, image: Tensor) -> Tensor:
        current = self.inp(image)
        v, outs = torch.zeros_like(current), []
        for _ in range(self.steps):
            v = 0.9 * v + current
            z = spike(v - 0.8)
            v = v - 0.8 * z
            outs.append(self.out(z))
        return torch.stack(outs).mean(0)


class FirstStepBefore(Shown):
    def forward(self, image: Tensor) -> Tensor:
        v = image.new_zeros(image.shape[0], HIDDEN)
        z, v = self.step(image, v)
        out = self.out(z)
        for _ in range(1, self.steps):
            z, v = self.step(image, v)
            out += self.out(z)
        return out / self.steps


class Repeated(Shown):
    def forward(self, image: Tensor) -> Tensor:
        v, out = image.new_zeros(image.shape[0], HIDDEN), 0.0
        for x_t in image.unsqueeze(0).repeat(self.steps, 1, 1):
            z, v = self.step(x_t, v)
            out = out + self.out(z)
        return out / self.steps


class ResetOutside(Shown):
    def __init__(self, steps: int) -> None:
        super().__init__(steps)
        self.v: Any = None

    def reset(self) -> None:
        self.v = None

    def forward(self, image: Tensor) -> Tensor:
        out = 0.0
        for _ in range(self.steps):
            if self.v is None:
                self.v = image.new_zeros(image.shape[0], HIDDEN)
            z, self.v = self.step(image, self.v)
            out = out + self.out(z)
        return out / self.steps


class ResetInside(ResetOutside):
    def forward(self, image: Tensor) -> Tensor:
        self.reset()
        return super().forward(image)


class FirstStepBeforeResetOutside(ResetOutside):
    """The first step is before the loop, and the state outlives the call."""

    def forward(self, image: Tensor) -> Tensor:
        if self.v is None:
            self.v = image.new_zeros(image.shape[0], HIDDEN)
        z, self.v = self.step(image, self.v)
        out = self.out(z)
        for _ in range(1, self.steps):
            z, self.v = self.step(image, self.v)
            out += self.out(z)
        return out / self.steps


def images(steps: int, batch: int) -> Tensor:
    return 2 * torch.randn(batch, INPUTS)


FORMS = [
    *(StateInLocals, CurrentBefore, FirstStepBefore, Repeated, ResetOutside, ResetInside),
    FirstStepBeforeResetOutside,
]


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_an_image_is_shown_any_number_of_times(form: type[Shown], steps: int) -> None:
    """What is returned, and the gradients with a bin per step, for images that the conversion did not see."""
    torch.manual_seed(0)
    model = form(steps)
    net = tracecompile.convert(model, images(steps, 2), backend="eager", bins=steps)
    for batch in (1, 5):
        image, found = images(steps, batch), []
        for module in (model, net):
            if isinstance(model, ResetOutside):
                module.reset()  # type: ignore[operator]
            model.zero_grad()
            result = module(image)
            result.pow(2).sum().backward()
            found.append((result, [parameter.grad for parameter in model.parameters()]))
        assert torch.equal(found[0][0], found[1][0])
        for wanted, got in zip(found[0][1], found[1][1], strict=True):
            torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_memory_is_the_same_however_often_an_image_is_shown(form: type[Shown]) -> None:
    require_right(Program(form, images, fixed_steps=True, runs=((12, 1), (12, 5))))


class NumberOfSteps(Shown):
    """How often the image is shown is an argument."""

    def forward(self, image: Tensor, steps: int) -> Tensor:
        v, out = image.new_zeros(image.shape[0], HIDDEN), 0.0
        for _ in range(steps):
            z, v = self.step(image, v)
            out = out + self.out(z)
        return out / steps


@pytest.mark.parametrize("example", [3, 6])
def test_how_often_an_image_is_shown_may_be_an_argument(example: int) -> None:
    torch.manual_seed(0)
    model = NumberOfSteps(0)
    net = tracecompile.convert(model, (images(6, 2), example), backend="eager")
    for steps in STEPS:
        image = images(steps, 3)
        assert torch.equal(net(image, steps), model(image, steps))


def test_calls_of_an_image_that_is_shown_once_have_nothing_to_do_with_each_other() -> None:
    torch.manual_seed(0)
    model = StateInLocals(1)
    net = tracecompile.convert(model, images(1, 2), backend="eager")
    first, second = images(1, 3), images(1, 7)
    expected = model(first).sum() + model(second).pow(2).sum()
    found = net(first).sum() + net(second).pow(2).sum()
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    got = torch.autograd.grad(found, list(model.parameters()))
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


class AnotherFirstStep(ResetOutside):
    """The first step is before the loop, and sees a fainter image."""

    def forward(self, image: Tensor) -> Tensor:
        if self.v is None:
            self.v = image.new_zeros(image.shape[0], HIDDEN)
        z, self.v = self.step(0.5 * image, self.v)
        out = self.out(z)
        for _ in range(1, self.steps):
            z, self.v = self.step(image, self.v)
            out += self.out(z)
        return out / self.steps


def test_a_loop_that_cannot_be_rolled_is_written_out_for_few_steps_and_refused_for_many() -> None:
    torch.manual_seed(0)
    model = AnotherFirstStep(3)
    twin = copy.deepcopy(model)
    image = images(3, 5)
    net = tracecompile.convert(model, images(3, 2), backend="eager")
    assert torch.equal(net(image), twin(image))
    with pytest.raises(tracecompile.ConversionError, match="outlive the call") as refusal:
        tracecompile.convert(AnotherFirstStep(20), images(20, 2), backend="eager")
    assert __file__ in str(refusal.value)


class NormInFirstStepBefore(Shown):
    """The first step, with a normalisation that moves its statistics, is written before the loop; its state is zeros
    like what the normalisation makes."""

    def __init__(self, steps: int) -> None:
        super().__init__(steps)
        self.norm = nn.BatchNorm1d(HIDDEN)

    def forward(self, image: Tensor) -> Tensor:
        current = self.norm(self.inp(image))
        v = 0.9 * torch.zeros_like(current) + current
        z = spike(v - 0.2)
        out, v = self.out(z), v - 0.2 * z
        for _ in range(1, self.steps):
            v = 0.9 * v + self.norm(self.inp(image))
            z = spike(v - 0.2)
            out, v = out + self.out(z), v - 0.2 * z
        return out / self.steps


class NormBeforeUnread(NormInFirstStepBefore):
    """The negative twin: only the shape is read of what a normalisation makes before the loop, which runs it too."""

    def forward(self, image: Tensor) -> Tensor:
        v, out = torch.zeros_like(self.norm(3 * self.inp(image))), 0.0
        for _ in range(self.steps):
            v = 0.9 * v + self.norm(self.inp(image))
            z = spike(v - 0.2)
            out, v = out + self.out(z), v - 0.2 * z
        return out / self.steps


@pytest.mark.parametrize(
    ("form", "steps"),
    [*((NormInFirstStepBefore, steps) for steps in (2, 3, 12)), *((NormBeforeUnread, steps) for steps in (3, 12))],
)
def test_statistics_move_as_often_as_the_model_moves_them(form: type[NormInFirstStepBefore], steps: int) -> None:
    torch.manual_seed(0)
    model = form(steps)
    twin = copy.deepcopy(model)
    net = tracecompile.convert(model, images(steps, 4), backend="eager", bins=steps)
    for batch in (5, 3):
        image = images(steps, batch)
        expected, found = twin(image), net(image)
        assert torch.equal(found, expected)
        for name, value in twin.named_buffers():
            assert torch.equal(dict(net.named_buffers())[name], value), name
    assert int(twin.norm.num_batches_tracked) == 2 * (steps + (form is NormBeforeUnread))
