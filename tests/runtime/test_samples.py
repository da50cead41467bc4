"""``net.reset(samples=mask)`` and ``net.detach()``: some samples start afresh, or a new window of gradients begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracecompile
import tracecompile.nn as snn
from runtime.nets import HIDDEN, INPUTS, OUTPUTS, Fire, Step, Whole, assert_same, events, gradients, twins
from tracecompile.errors import InvalidInput

STEPS, BATCH = 9, 4
ENDS = {2: [0], 3: [1, 2], 6: [0, 3]}
"""Before which step which samples start afresh."""


def mask_of(step: int) -> Tensor:
    mask = torch.zeros(BATCH, dtype=torch.bool)
    mask[ENDS.get(step, [])] = True
    return mask


def cut(model: nn.Module, names: tuple[str, ...], mask: Tensor, **starts: Tensor) -> None:
    """Lets samples of an ordinary model start afresh, cut off from what was before."""
    for name in names:
        state = getattr(model, name)
        setattr(model, name, torch.where(mask[:, None], starts.get(name, torch.zeros(1).to(state)), state))


class Gradual(nn.Module):
    """An integrator behind spikes, with learned leaks; starts from a buffer that is not zero."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.above = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)
        self.leak, self.fade = nn.Parameter(torch.rand(HIDDEN)), nn.Parameter(torch.rand(OUTPUTS))
        self.register_buffer("begin", torch.full((1, HIDDEN), 0.3))
        self.v: Tensor | None = None
        self.a: Tensor | None = None
        self.y: Tensor | None = None

    def reset(self) -> None:
        self.v = self.a = self.y = None

    def forward(self, x: Tensor) -> Tensor:
        if self.v is None or self.a is None or self.y is None:
            self.v = self.begin.expand(x.shape[0], HIDDEN)
            self.a, self.y = x.new_zeros(x.shape[0], HIDDEN), x.new_zeros(x.shape[0], OUTPUTS)
        v = torch.sigmoid(self.leak) * self.v + 2 * self.below(x)
        z = Fire.apply(v - 0.5 - 0.2 * self.a)
        self.v, self.a = v - 0.5 * z, 0.7 * self.a + z
        self.y = torch.sigmoid(self.fade) * self.y + self.above(z)
        return self.y


STATES: dict[type[nn.Module], tuple[str, ...]] = {Step: ("v", "y"), Gradual: ("v", "a", "y")}


def begin_again(model: nn.Module, mask: Tensor) -> None:
    starts = {"v": model.begin} if isinstance(model, Gradual) else {}
    cut(model, STATES[type(model)], mask, **starts)


def pair(
    kind: type[nn.Module], rule: str = "measured", **options: Any
) -> tuple[nn.Module, tracecompile.TracedModule, nn.Module]:
    model, twin = twins(kind)
    options |= {"bins": STEPS} if rule == "measured" else {}
    net = tracecompile.convert(model, torch.rand(2, INPUTS).double(), rule=rule, backend="eager", **options)
    return model, net, twin


def ran(module: Callable[[Tensor], Tensor], x: Tensor, restart: Callable[[Tensor], None]) -> list[Tensor]:
    outs = []
    for step, x_t in enumerate(x):
        if step in ENDS:
            restart(mask_of(step))
        outs.append(module(x_t))
    return outs


def loss_of(outs: list[Tensor]) -> Tensor:
    return sum(((step + 1) * out**2).sum() for step, out in enumerate(outs))  # type: ignore[return-value]


@pytest.mark.parametrize("rule", ["measured", "exact", "bptt"])
@pytest.mark.parametrize("kind", [Step, Gradual])
def test_some_samples_start_afresh(kind: type[nn.Module], rule: str) -> None:
    model, net, twin = pair(kind, rule)
    x = events(STEPS, BATCH)
    found, wanted = (
        ran(net, x, lambda mask: net.reset(samples=mask)),
        ran(twin, x, lambda mask: begin_again(twin, mask)),
    )
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    loss_of(found).backward()
    loss_of(wanted).backward()
    assert_same(gradients(model), gradients(twin))


@pytest.mark.parametrize("rule", ["measured", "exact", "bptt"])
def test_it_may_be_done_under_no_grad(rule: str) -> None:
    model, net, twin = pair(Step, rule)
    x = events(STEPS, BATCH)

    def restart(mask: Tensor) -> None:
        with torch.no_grad():
            net.reset(samples=mask)

    found, wanted = ran(net, x, restart), ran(twin, x, lambda mask: begin_again(twin, mask))
    loss_of(found).backward()
    loss_of(wanted).backward()
    assert_same(gradients(model), gradients(twin))


def test_windows_that_are_closed_in_between() -> None:
    model, net, twin = pair(Gradual)
    x = events(STEPS, BATCH)
    for module, restart in ((net, lambda mask: net.reset(samples=mask)), (twin, lambda mask: begin_again(twin, mask))):
        outs = ran(module, x[:4], restart)
        loss_of(outs).backward()
        if module is twin:
            for name in STATES[Gradual]:
                setattr(twin, name, getattr(twin, name).detach())
        restart(mask_of(6))
        loss_of([module(x_t) for x_t in x[4:]]).backward()
    assert_same(gradients(model), gradients(twin))


def test_each_sample_is_as_if_it_were_alone() -> None:
    _, net, twin = pair(Gradual)
    x = events(STEPS, BATCH)
    found = ran(net, x, lambda mask: net.reset(samples=mask))
    for sample in range(BATCH):
        twin.reset()
        for step, x_t in enumerate(x):
            if sample in ENDS.get(step, []):
                twin.reset()
            torch.testing.assert_close(twin(x_t[sample : sample + 1])[0], found[step][sample])


def test_a_bin_of_many_steps_forgets_as_well() -> None:
    """With few bins, on inputs that stay, the gradient comes near that of the model with cuts, not that without."""
    model, twin = twins(Gradual)
    net = tracecompile.convert(model, torch.rand(2, INPUTS).double(), bins=4, backend="eager")
    x = torch.rand(1, BATCH, INPUTS).double().expand(32, BATCH, INPUTS)
    mask = torch.tensor([True, False, True, False])

    def gradient_of(module: nn.Module, owner: nn.Module, restart: Callable[[Tensor], None]) -> Tensor:
        outs = []
        for step, x_t in enumerate(x):
            if step in (11, 22):
                restart(mask)
            outs.append(module(x_t))
        (torch.stack(outs).mean(0) ** 2).sum().backward()
        return torch.cat([each.flatten() for each in gradients(owner).values()])

    found = gradient_of(net, model, lambda mask: net.reset(samples=mask))
    with_cuts = gradient_of(twin, twin, lambda mask: begin_again(twin, mask))
    twin.reset()
    without = gradient_of(twin, twin, lambda mask: None)
    assert (found - with_cuts).norm() < 0.2 * (with_cuts - without).norm()


def test_states_in_the_model_start_afresh_at_once() -> None:
    model, net, _ = pair(Gradual)
    for x_t in events(3, BATCH):
        net(x_t)
    before = net.v.clone()
    net.reset(samples=torch.tensor([False, True, False, True]))
    assert torch.equal(model.v[[1, 3]], model.begin.expand(2, HIDDEN))
    assert torch.equal(model.v[[0, 2]], before[[0, 2]])
    assert not model.a[[1, 3]].any()
    states = [value for name, value in net.snapshot().items() if name.startswith("state")]
    assert any(torch.equal(state, model.v) for state in states)


def test_nobody_and_everybody() -> None:
    _, net, twin = pair(Gradual)
    x = events(6, BATCH)
    for x_t in x[:3]:
        assert torch.equal(net(x_t), twin(x_t))
    net.reset(samples=torch.zeros(BATCH, dtype=torch.bool))
    assert torch.equal(net(x[3]), twin(x[3]))
    net.reset(samples=torch.ones(BATCH, dtype=torch.bool))
    twin.reset()
    assert torch.equal(net(x[4]), twin(x[4]))


def test_before_the_first_step_all_are_at_the_start() -> None:
    model, twin = twins(Step)
    net = tracecompile.convert(model)
    net.reset(samples=torch.ones(3, dtype=torch.bool))
    x = events(2, BATCH)
    assert torch.equal(net(x[0]), twin(x[0]))


# Streams.


class Integrating(nn.Module):
    """[B, T, 5] in: time is not the first axis."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.above = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)
        self.lif, self.readout = snn.LIF(HIDDEN), snn.LI(OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        state, last, outs = None, None, []
        for t in range(x.shape[1]):
            spikes, state = self.lif(3 * self.below(x[:, t]), state)
            out, last = self.readout(self.above(spikes), last)
            outs.append(out)
        return torch.stack(outs, 1)


def test_samples_of_a_stream() -> None:
    model, twin = twins(Integrating)
    net = tracecompile.convert(model, torch.rand(2, 5, INPUTS).double(), bins=STEPS, backend="eager")
    x, mask = events(STEPS, BATCH), torch.tensor([True, False, False, True])
    found = list(net.stream(x[:4]))
    net.reset(samples=mask)
    found += list(net.stream(x[4:]))
    loss_of(found).backward()
    whole = twin(x.transpose(0, 1)).transpose(0, 1)
    parts = torch.cat([twin(part.transpose(0, 1)).transpose(0, 1) for part in (x[:4], x[4:])])
    wanted = torch.where(mask[:, None], parts, whole)
    torch.testing.assert_close(torch.stack(found), wanted)
    loss_of(list(wanted)).backward()
    assert_same(gradients(model), gradients(twin))


# Windows.


@pytest.mark.parametrize("rule", ["measured", "exact", "bptt"])
@pytest.mark.parametrize("kind", [Step, Gradual])
def test_a_new_window_begins(kind: type[nn.Module], rule: str) -> None:
    model, net, twin = pair(kind, rule)
    x = events(STEPS, BATCH)
    found, wanted = [], []
    for step, x_t in enumerate(x):
        if step in (3, 4, 7):
            net.detach()
            for name in STATES[kind]:
                setattr(twin, name, getattr(twin, name).detach())
        found.append(net(x_t))
        wanted.append(twin(x_t))
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    loss_of(found).backward()
    loss_of(wanted).backward()
    assert_same(gradients(model), gradients(twin))


def test_a_window_of_a_stream_ends() -> None:
    model, twin = twins(Whole)
    net = tracecompile.convert(model, events(5, 2), bins=STEPS, backend="eager")
    x = events(STEPS, BATCH)
    list(net.stream(x[:5]))
    net.detach()
    found = list(net.stream(x[5:]))
    loss_of(found).backward()
    got = gradients(model)
    again = tracecompile.convert(twin, events(5, 2), bins=STEPS, backend="eager")
    with torch.no_grad():
        list(again.stream(x[:5]))
    loss_of(list(again.stream(x[5:]))).backward()
    assert_same(got, gradients(twin))


# What is refused.


class Lateral(Step):
    """Spikes of the last step come back."""

    def __init__(self) -> None:
        super().__init__()
        self.lateral = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.z: Tensor | None = None

    def reset(self) -> None:
        self.v = self.y = self.z = None

    def forward(self, x: Tensor) -> Tensor:
        if self.v is None or self.y is None or self.z is None:
            self.v, self.y = x.new_zeros(x.shape[0], HIDDEN), x.new_zeros(x.shape[0], OUTPUTS)
            self.z = torch.zeros_like(self.v)
        v = 0.9 * self.v + 2 * self.below(x) + self.lateral(self.z)
        self.z = Fire.apply(v - 0.5)
        self.v = v - 0.5 * self.z
        self.y = 0.8 * self.y + self.above(self.z)
        return self.y


@pytest.mark.parametrize("close", ["backward", "detach"])
def test_lateral_weights_need_a_closed_window(close: str) -> None:
    model, net, twin = pair(Lateral)
    x, mask = events(STEPS, BATCH), mask_of(3)
    first = [net(x_t) for x_t in x[:4]]
    before = [value.clone() for value in (net.v, net.y, net.z)]
    with pytest.raises(InvalidInput, match=r"reads z of an earlier step.*detach\(\)"):
        net.reset(samples=mask)
    assert all(torch.equal(one, other) for one, other in zip(before, (net.v, net.y, net.z), strict=True))
    loss_of(first).backward() if close == "backward" else net.detach()
    net.reset(samples=mask)
    second = [net(x_t) for x_t in x[4:]]
    loss_of(second if close == "backward" else [*first, *second]).backward()
    first, second = [twin(x_t) for x_t in x[:4]], []
    for name in ("v", "y", "z"):
        setattr(twin, name, getattr(twin, name).detach())
    cut(twin, ("v", "y", "z"), mask)
    second = [twin(x_t) for x_t in x[4:]]
    total = loss_of(first) + loss_of(second) if close == "backward" else loss_of([*first, *second])
    total.backward()
    assert_same(gradients(model), gradients(twin))


@pytest.mark.parametrize("rule", ["exact", "bptt"])
def test_lateral_weights_are_no_matter_to_other_rules(rule: str) -> None:
    model, net, twin = pair(Lateral, rule)
    x = events(STEPS, BATCH)
    found = ran(net, x, lambda mask: net.reset(samples=mask))
    wanted = ran(twin, x, lambda mask: cut(twin, ("v", "y", "z"), mask))
    loss_of(found).backward()
    loss_of(wanted).backward()
    assert_same(gradients(model), gradients(twin))


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (torch.ones(BATCH), "torch.float32"),
        (torch.ones(BATCH, 1, dtype=torch.bool), r"shape \(4, 1\)"),
        (torch.ones(BATCH + 1, dtype=torch.bool), "5 entries, and the state"),
        (torch.ones(BATCH, dtype=torch.bool, device="meta"), "is on meta"),
        (torch.tensor(True), r"shape \(\)"),
        ([True] * BATCH, "list"),
        (True, "bool"),
    ],
    ids=["numbers", "a column", "another batch", "another device", "no axis", "a list", "a truth"],
)
def test_what_is_no_mask_is_refused(mask: Any, said: str) -> None:
    _, net, twin = pair(Step)
    x = events(2, BATCH)
    net(x[0]), twin(x[0])
    with pytest.raises(InvalidInput, match=said):
        net.reset(samples=mask)
    assert torch.equal(net(x[1]), twin(x[1]))


class OneForAll(Step):
    """An average over the batch is the state of no sample."""

    def __init__(self) -> None:
        super().__init__()
        self.mean: Tensor | None = None

    def reset(self) -> None:
        super().reset()
        self.mean = None

    def forward(self, x: Tensor) -> Tensor:
        if self.mean is None:
            self.mean = x.new_zeros(INPUTS)
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return super().forward(x - self.mean)


class FromTheInput(Step):
    """The first input says where the membrane starts."""

    def forward(self, x: Tensor) -> Tensor:
        if self.v is None or self.y is None:
            self.v, self.y = torch.tanh(self.below(x)), x.new_zeros(x.shape[0], OUTPUTS)
        return super().forward(x)


class LearnedStart(Step):
    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.full((HIDDEN,), 0.2))

    def forward(self, x: Tensor) -> Tensor:
        if self.v is None or self.y is None:
            self.v, self.y = self.start.expand(x.shape[0], HIDDEN), x.new_zeros(x.shape[0], OUTPUTS)
        return super().forward(x)


class HandedIn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.below = nn.Linear(INPUTS, HIDDEN)

    def forward(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v = 0.9 * v + 2 * self.below(x)
        z = Fire.apply(v - 0.5)
        return z, v - z


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (FromTheInput, "v starts from the input"),
        (LearnedStart, "is trained"),
    ],
)
def test_a_state_that_cannot_be_taken_apart_is_refused(kind: type[nn.Module], said: str) -> None:
    _, net, twin = pair(kind)
    x = events(2, BATCH)
    net(x[0]), twin(x[0])
    with pytest.raises(InvalidInput, match=said):
        net.reset(samples=mask_of(3))
    assert torch.equal(net(x[1]), twin(x[1]))


def test_a_state_of_no_sample_is_refused() -> None:
    _, net, _ = pair(OneForAll, "bptt")
    net(events(1, BATCH)[0])
    with pytest.raises(InvalidInput, match="Which axis of the state mean"):
        net.reset(samples=mask_of(3))


def test_a_learned_start_is_learned_by_bptt() -> None:
    model, net, twin = pair(LearnedStart, "bptt")
    x = events(STEPS, BATCH)
    found = ran(net, x, lambda mask: net.reset(samples=mask))

    def restart(mask: Tensor) -> None:
        twin.v = torch.where(mask[:, None], twin.start, twin.v)
        cut(twin, ("y",), mask)

    wanted = ran(twin, x, restart)
    loss_of(found).backward()
    loss_of(wanted).backward()
    assert_same(gradients(model), gradients(twin))


def test_states_that_the_caller_holds_are_the_callers() -> None:
    net = tracecompile.convert(HandedIn().double(), (torch.rand(2, INPUTS).double(), torch.zeros(2, HIDDEN).double()))
    net(events(1, BATCH)[0], torch.zeros(BATCH, HIDDEN).double())
    with pytest.raises(InvalidInput, match="hands the states in"):
        net.reset(samples=mask_of(3))


def test_a_state_that_was_set_is_set_by_rows_as_well() -> None:
    model, net, _ = pair(Step)
    net(events(1, BATCH)[0])
    model.v = torch.zeros(BATCH, HIDDEN).double()
    with pytest.raises(InvalidInput, match="set from outside"):
        net.reset(samples=mask_of(3))


def test_a_restored_run_goes_on_with_some_afresh() -> None:
    _, net, _ = pair(Step)
    x = events(6, BATCH)
    for x_t in x[:3]:
        net(x_t)
    kept = net.snapshot()
    other = pair(Step)[1]
    other.restore(kept)
    with pytest.raises(InvalidInput, match="snapshot"):
        other.reset(samples=mask_of(3))
    for each in (net, other):
        each.detach()
        each.reset(samples=mask_of(3))
    assert all(torch.equal(net(x_t), other(x_t)) for x_t in x[3:])


class KeepsOn(nn.Module):
    """An image is shown for some steps; the neurons stay as they are for the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.above = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)
        self.v: Tensor | float = 0.0

    def forward(self, image: Tensor) -> Tensor:
        total = 0.0
        for _ in range(STEPS):
            self.v = 0.9 * self.v + 2 * self.below(image)
            z = Fire.apply(self.v - 0.5)
            self.v = self.v - 0.5 * z
            total = total + self.above(z)
        return total


@pytest.mark.parametrize("rule", ["measured", "exact", "bptt"])
def test_samples_of_sequences_that_go_on(rule: str) -> None:
    model, net, twin = pair(KeepsOn, rule)
    mask = mask_of(3)
    found, wanted = [], []
    for number, image in enumerate(events(3, BATCH)):
        if number == 2:
            net.reset(samples=mask)
            cut(twin, ("v",), mask)
        found.append(net(image))
        wanted.append(twin(image))
        twin.v = twin.v.detach()
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    loss_of(found).backward()
    loss_of(wanted).backward()
    assert_same(gradients(model), gradients(twin))
