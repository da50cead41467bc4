"""What does not commute with the mean over time is seen at steps as they were: which, how many, and what it buys."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import tracecompile
import tracecompile.nn as snn
from tracecompile.errors import InvalidInput
from tracecompile.passes import insert_rate_inversion
from tracecompile.runtime.bins import Bins, SequenceClock, StreamClock
from tracecompile.runtime.layout import with_layout
from tracecompile.runtime.module import session_of
from tracecompile.runtime.sampled import SAMPLES, Samples

PAIR = ("spikes", "")


def kept(samples: Samples, steps: int) -> list[list[int]]:
    """Returns the steps that are kept of each bin, of as many as were taken one after the other."""
    clock = samples.clock
    for step in range(steps):
        if clock.must_merge():
            clock.merge()
            samples.merge()
        index = clock.tick()
        for due in samples.due(index, 1):
            samples.put(due, index, {PAIR: torch.tensor(step)})
    assert all(int(values[PAIR]) == step for row in samples.rows for step, values in row.samples())
    return [[step for step, _ in row.samples()] for row in samples.rows]


@given(st.integers(1, 300), st.integers(1, 20))
def test_a_bin_of_a_sequence_keeps_a_step_of_each_share(steps: int, count: int) -> None:
    bins = Bins.over(steps, count)
    found = kept(Samples([PAIR], SequenceClock(bins)), steps)
    for rows, (first, end) in zip(found, itertools.pairwise(bins.edges), strict=True):
        assert len(rows) == min(SAMPLES, end - first)
        assert all(first <= step < end for step in rows)
        width = -(-(end - first) // len(rows))
        assert all(after - before < 2 * width for before, after in itertools.pairwise([first - 1, *rows, end]))


@given(st.integers(1, 300), st.integers(1, 20), st.integers(1, 40))
def test_a_piece_of_several_steps_keeps_the_same(steps: int, count: int, size: int) -> None:
    bins = Bins.over(steps, count)
    one_by_one = kept(Samples([PAIR], SequenceClock(bins)), steps)
    clock = SequenceClock(bins)
    samples = Samples([PAIR], clock)
    for index, (first, end) in enumerate(itertools.pairwise(bins.edges)):
        for begin in range(first, end, size):
            clock.steps = min(begin + size, end)
            for step in samples.due(index, clock.steps - begin):
                samples.put(step, index, {PAIR: torch.tensor(step)})
    assert [[step for step, _ in row.samples()] for row in samples.rows] == one_by_one


@pytest.mark.parametrize("capacity", [2, 4, 5, 8])
def test_a_bin_of_a_stream_that_is_full_keeps_what_that_of_a_sequence_keeps(capacity: int) -> None:
    for steps in range(1, 150):
        clock = StreamClock(capacity)
        found = kept(Samples([PAIR], clock), steps)
        full = steps // clock.width
        if full:
            edges = tuple(index * clock.width for index in range(full + 1))
            assert found[:full] == kept(Samples([PAIR], SequenceClock(Bins(edges))), edges[-1])


def test_the_only_bin_of_a_stream_keeps_few() -> None:
    for steps in (1, 7, 8, 9, 1000):
        (rows,) = kept(Samples([PAIR], StreamClock(1)), steps)
        assert min(steps, SAMPLES // 2) <= len(rows) <= SAMPLES


@pytest.mark.parametrize("period", [2, 3, 4, 5, 7])
@pytest.mark.parametrize("width", [8, 12, 16, 32])
def test_no_period_is_missed(period: int, width: int) -> None:
    """Neurons that fire at every second step are seen in about every second sample."""
    steps = 64 * width
    found = [step for row in kept(Samples([PAIR], SequenceClock(Bins.over(steps, 64))), steps) for step in row]
    for phase in range(period):
        share = sum(step % period == phase for step in found) / len(found)
        assert abs(share - 1 / period) < 0.15


def fire(v: Tensor, current: Tensor) -> tuple[Tensor, Tensor]:
    v = 0.8 * v + current
    z = snn.fast_sigmoid(4.0)(v - 1.0)
    return v - z, z


class Images(nn.Module):
    """Two convolutions, with something between that does not commute with a mean."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norms = nn.ModuleList(nn.GroupNorm(2, 6) if norm else nn.MaxPool2d(1 + each) for each in range(2))
        self.out = nn.Linear(6 * (36 if norm else 9), 4)

    def forward(self, x: Tensor) -> Tensor:
        v = w = torch.zeros(())
        total: Tensor | float = 0.0
        for x_t in x:
            v, z = fire(v, 3 * self.norms[0](self.first(x_t)))
            w, z = fire(w, 2 * self.second(self.norms[1](z) if len(self.out.weight[0]) == 54 else z))
            total = total + self.out(z.flatten(1))
        return total / len(x)


class Attention(nn.Module):
    """Spiking self-attention: products of spikes with spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.qkv, self.out = nn.Linear(3, 8), nn.Linear(8, 24), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        u = v = w = torch.zeros(())
        total: Tensor | float = 0.0
        for x_t in x:
            u, z = fire(u, 3 * self.inp(x_t))
            v, qkv = fire(v, 3 * self.qkv(z))
            batch, tokens, width = qkv.shape
            query, key, value = qkv.reshape(batch, tokens, 3, 2, width // 3 // 2).permute(2, 0, 3, 1, 4)
            seen = (query @ key.transpose(-2, -1)) @ value
            w, z = fire(w, seen.transpose(1, 2).flatten(2))
            total = total + self.out(z.mean(1))
        return total / len(x)


def pattern(*shape: int) -> Callable[[int], Tensor]:
    """Returns what draws spikes at rates that stay the same."""
    rates = torch.rand(3, *shape)
    return lambda steps: (torch.rand(steps, 3, *shape) < rates).float()


IMAGES = (1, 6, 6)
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "maximum": (lambda: Images(norm=False), IMAGES),
    "group norm": (lambda: Images(norm=True), IMAGES),
    "attention": (Attention, (5, 3)),
}
every_model = pytest.mark.parametrize(("make", "shape"), MODELS.values(), ids=MODELS.keys())


def gradients(model: nn.Module, run: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    F.cross_entropy(run(x), torch.arange(3)).backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def error(model: nn.Module, net: nn.Module, x: Tensor) -> float:
    """Returns how far gradients are from the exact ones, in the mean over the parameters."""
    wanted, found = gradients(model, model, x), gradients(model, net, x)
    assert all(float(each.norm()) > 0 for each in wanted.values())
    each = [float((found[name] - value).norm() / value.norm()) for name, value in wanted.items()]
    return sum(each) / len(each)


def test_it_is_nearer_than_at_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, draw = Images(norm=False), pattern(*IMAGES)
    x = draw(64)
    net = tracecompile.convert(model, draw(6), bins=4, backend="eager")
    assert any(f"at {SAMPLES} steps of each bin" in note for note in net.report.notes)
    assert [layer.sampled for layer in net.program.layers].count(True) > 0
    monkeypatch.setattr(insert_rate_inversion, "wants_steps", lambda program, layer: False)
    at_means = tracecompile.convert(model, draw(6), bins=4, backend="eager")
    assert not any(layer.sampled for layer in at_means.program.layers)
    assert error(model, net, x) < 0.85 * error(model, at_means, x)


def test_products_of_spikes_are_seen_at_their_means() -> None:
    torch.manual_seed(0)
    model, draw = Attention(), pattern(5, 3)
    net = tracecompile.convert(model, draw(6), bins=4, backend="eager")
    assert not any(layer.sampled for layer in net.program.layers)
    assert any("matmul does not commute" in note and "mean input" in note for note in net.report.notes)
    assert error(model, net, draw(64)) < 0.3


def test_a_decaying_trace_is_seen_at_its_mean() -> None:
    torch.manual_seed(0)
    net = tracecompile.convert(Images(norm=False), torch.rand(6, 3, *IMAGES), decay=0.9)
    assert not any(layer.sampled for layer in net.program.layers)
    assert any("on the mean input" in note for note in net.report.notes)


@every_model
@pytest.mark.parametrize("chunk", [None, 5])
def test_every_step_of_short_bins(make: Callable[[], nn.Module], shape: tuple[int, ...], chunk: int | None) -> None:
    """What is sampled of a bin of one step is that step."""
    torch.manual_seed(0)
    model, draw = make().double(), pattern(*shape)
    net = tracecompile.convert(model, draw(6).double(), bins=11, backend="eager", chunk=chunk)
    x = draw(11).double()
    wanted, found = gradients(model, model, x), gradients(model, net, x)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)


class Stepped(nn.Module):
    """One step a call."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(6, 8), nn.Linear(4, 3)

    def forward(self, x_t: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v, z = fire(v, 3 * self.inp(x_t))
        return self.out(F.max_pool1d(z, 2)), v


@pytest.mark.parametrize("bins", [1, 4])
def test_a_stream_holds_no_more_for_more_steps(bins: int) -> None:
    net = tracecompile.convert(Stepped(), (torch.rand(2, 6), torch.zeros(2, 8)), bins=bins)
    sizes = []
    for steps in (40, 400):
        net.reset()
        v = torch.zeros(2, 8)
        for x_t in (torch.rand(steps, 2, 6) < 0.5).float():
            _, v = net(x_t, v)
        window = session_of(net).window
        assert window is not None
        sizes.append([len(row.steps) for row in window.record.samples.rows])
    assert max(map(max, sizes)) <= SAMPLES
    assert min(sizes[1][:-1] or [SAMPLES]) == SAMPLES


@pytest.mark.parametrize("bins", [1, 4])
@pytest.mark.parametrize("steps", [3, 23])
def test_a_stream_goes_on_from_a_snapshot(bins: int, steps: int) -> None:
    """Within a window, with steps of it kept."""
    torch.manual_seed(0)
    model, x = Stepped(), (torch.rand(steps + 9, 2, 6) < 0.5).float()
    found = []
    for stops in (False, True):
        net = tracecompile.convert(model, (x[0], torch.zeros(2, 8)), bins=bins, backend="eager")
        v, y = torch.zeros(2, 8), torch.zeros(())
        for step, x_t in enumerate(x):
            if stops and step == steps:
                snapshot = {name: value.clone() for name, value in net.snapshot().items()}
                net = tracecompile.convert(model, (x[0], torch.zeros(2, 8)), bins=bins, backend="eager")
                net.restore(snapshot)
            y, v = net(x_t, v.detach())
        model.zero_grad()
        y.square().sum().backward()
        found.append([value.grad.clone() for value in model.parameters() if value.grad is not None])
    assert len(found[0]) == 4
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_snapshot_of_an_earlier_version_is_refused() -> None:
    example = (torch.rand(2, 6), torch.zeros(2, 8))
    net = tracecompile.convert(Stepped(), example, bins=4)
    _, v = net(*example)
    lacking = {
        name: value
        for name, value in net.snapshot().items()
        if not {"sample", "sampled", "stride"} & {*name.split("|")}
    }
    lacking.pop("layout")
    net.restore(with_layout(net.program, lacking))
    with pytest.raises(InvalidInput, match="an earlier version has taken it"):
        net(example[0], v.detach())
