"""Normalisation over time and batch, and all else that makes of several time steps together what a loop reads."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from requirements import library
from support.containers import SeqToANN
from support.fired import fire
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import tracecompile
from tracecompile.errors import ConversionError, UnsupportedOperation
from tracecompile.runtime import ends
from tracecompile.runtime.module import session_of
from tracecompile.runtime.packed import Packed

SIZES = ((7, 3), (1, 4), (18, 2))
CHANNELS, SIDE = 3, 4


class Flattened(nn.Module):
    """Time is flattened into the batch around convolution and norm, twice, with a residual way around the second."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(2, CHANNELS, 3, padding=1), nn.BatchNorm2d(CHANNELS)
        self.conv2, self.norm2 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS)
        self.out = nn.Linear(CHANNELS * SIDE * SIDE, 4)

    def forward(self, x: Tensor) -> Tensor:
        steps, batch = x.shape[:2]
        first = fire(self.norm1(self.conv1(x.flatten(0, 1))).view(steps, batch, CHANNELS, SIDE, SIDE))
        currents = self.norm2(self.conv2(first.flatten(0, 1))).view(steps, batch, CHANNELS, SIDE, SIDE)
        second = fire(currents) + first
        return self.out(second.flatten(2)).mean(0)


class BatchFirst(nn.Module):
    """Batch first, one norm before the only loop, and its own statistics in a second branch."""

    def __init__(self) -> None:
        super().__init__()
        self.block = SeqToANN(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 6), nn.BatchNorm1d(6))
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        currents = self.block(x).transpose(0, 1)
        return self.out(fire(2 * currents)).sum(0)


class ScaledNorm(nn.BatchNorm2d):
    """Scales by the threshold, as threshold-dependent normalisation does, with the time axis within the statistics."""

    def forward(self, x: Tensor) -> Tensor:
        over = super().forward(x.transpose(0, 2).transpose(0, 1).flatten(2).unsqueeze(-1))
        return 0.7 * over.view(x.shape[1], x.shape[2], x.shape[0], *x.shape[3:]).permute(2, 0, 1, 3, 4)


class Scaled(nn.Module):
    """Two blocks with a norm of one's own on [T, B, C, H, W], and a layer that is without a norm between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = SeqToANN(nn.Conv2d(2, CHANNELS, 3)), SeqToANN(nn.Conv2d(CHANNELS, CHANNELS, 1))
        self.norm1, self.norm2 = ScaledNorm(CHANNELS), ScaledNorm(CHANNELS)
        self.between, self.out = nn.Linear(2, 2), nn.Linear(CHANNELS * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        first = fire(3 * self.norm1(self.conv1(x)))
        plain = fire(4 * self.between(first))
        second = fire(2 * self.norm2(self.conv2(plain)) + first)
        return self.out(second.flatten(2)).mean(0) + self.out(first.flatten(2)).mean(0)


class Mixed(nn.Module):
    """A convolution along time between two loops, and a softmax over time of learned scores before the first."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.score, self.out = nn.Linear(5, 6), nn.Linear(5, 1), nn.Linear(6, 3)
        self.along = nn.Conv1d(6, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.score(x).softmax(0)
        first = fire(2 * self.inp(x) + 3 * weights)
        return self.out(fire(2 * self.along(first.permute(1, 2, 0)).permute(2, 0, 1))).mean(0)


class Halves(nn.Module):
    """Currents of two layers are made at once; the one half waits for the spikes of the other, and their norm."""

    def __init__(self) -> None:
        super().__init__()
        self.both = SeqToANN(nn.Linear(5, 12), nn.BatchNorm1d(12))
        self.norm, self.out = SeqToANN(nn.BatchNorm1d(6)), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.both(x).chunk(2, dim=-1)
        return self.out(fire(2 * self.norm(fire(2 * first)) + second)).mean(0)


def images(steps: int, batch: int) -> Tensor:
    return 2 * torch.rand(steps, batch, 2, SIDE, SIDE, dtype=torch.double)


def vectors(steps: int, batch: int) -> Tensor:
    return 2 * torch.rand(steps, batch, 5, dtype=torch.double)


def batch_first(steps: int, batch: int) -> Tensor:
    return vectors(steps, batch).transpose(0, 1).contiguous()


Make = Callable[[], nn.Module]
Draw = Callable[[int, int], Tensor]
CASES: dict[str, tuple[Make, Draw]] = {
    "flattened": (Flattened, images),
    "batch first": (BatchFirst, batch_first),
    "scaled": (Scaled, images),
    "mixed": (Mixed, vectors),
    "halves": (Halves, vectors),
}
every_case = pytest.mark.parametrize(("make", "draw"), CASES.values(), ids=CASES.keys())


def gradients(model: nn.Module, run: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns what a run gives, and the gradients of the model's parameters and of the input."""
    x = x.clone().requires_grad_()
    result = run(x)
    weights = torch.arange(result.numel(), dtype=result.dtype).cos().view_as(result)
    names, values = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad((result * weights).sum(), [*values, x])
    return result.detach(), dict(zip((*names, "x"), found, strict=True))


def require_same(model: nn.Module, net: nn.Module, reference: nn.Module, x: Tensor, tolerance: float) -> None:
    """Requires values and statistics bit for bit, and every gradient to a relative tolerance."""
    expected, wanted = gradients(reference, reference, x)
    actual, found = gradients(model, net, x)
    assert torch.equal(actual, expected)
    pairs = zip(model.state_dict().items(), reference.state_dict().values(), strict=True)
    assert [name for (name, one), other in pairs if not torch.equal(one, other)] == []
    largest = max(float(each.norm()) for each in wanted.values())
    assert largest > 1e-3
    for name, gradient in wanted.items():
        # That of a bias before a norm is nothing but rounding.
        bound = tolerance * max(float(gradient.norm()), 1e-3 * largest)
        assert float((found[name] - gradient).norm()) <= bound, name


@every_case
@pytest.mark.parametrize(("rule", "bins"), [("exact", None), ("measured", 18), ("bptt", None)])
def test_the_net_is_the_model(make: Make, draw: Draw, rule: Any, bins: int | None) -> None:
    model = make().double()
    reference = copy.deepcopy(model)
    net = tracecompile.convert(model, draw(5, 2), rule=rule, **({} if bins is None else {"bins": bins}))
    for training in (True, False):
        for steps, batch in SIZES:
            net.train(training)
            reference.train(training)
            if training or steps < 18:  # in eval mode a norm is a step's own, up to rounding
                tolerance = 1e-9 if rule == "measured" else 1e-10
                require_same(model, net, reference, draw(steps, batch), tolerance)


def kept_for_backward(net: nn.Module, x: Tensor) -> int:
    """Returns the bytes that autograd and the net hold between forward and backward, the input and parameters aside."""
    gc.collect()
    before = {id(each) for each in gc.get_objects() if type(each) in (Tensor, Packed)}
    result = net(x)
    gc.collect()
    new = [each for each in gc.get_objects() if type(each) in (Tensor, Packed) and id(each) not in before]
    held = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for each in new
        if isinstance(tensor := each.data if isinstance(each, Packed) else each, Tensor)
    }
    del result, before, new
    held.pop(x.untyped_storage().data_ptr(), None)
    return sum(held.values())


def test_only_bits_are_kept_for_every_step() -> None:
    model = Flattened()
    net = tracecompile.convert(model, images(5, 2).float(), rule="exact", snapshots=1)
    few, many = (kept_for_backward(net, images(steps, 8).float()) for steps in (32, 96))
    neurons = 8 * CHANNELS * SIDE * SIDE  # of the first layer, which the second norm and the residual way read
    assert many - few == neurons * 64 / 8


def test_the_report_says_what_is_alive() -> None:
    net = tracecompile.convert(Flattened().double(), images(5, 2), rule="exact")
    said = " ".join(net.report.notes)
    assert "conv1, norm1, conv2, norm2" in said
    assert "grows with the sequence" in said
    assert [layer.kind for layer in net.report.layers].count("spiking") == 2
    assert {each.status for each in net.report.parameters.values()} == {"exact"}


@pytest.mark.parametrize(("large", "again"), [(2.0, 1), (0.0, 3)])
def test_how_often_what_is_before_a_loop_runs(large: float, again: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once more for the loop's inputs and its own derivative alike; row by row for each of the two, and the inputs."""
    monkeypatch.setattr(ends, "LARGE", large)
    net = tracecompile.convert(Flattened().double(), images(5, 2), rule="exact")
    rows = dict.fromkeys(("conv1", "conv2"), 0)

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten.convolution.default:
                rows["conv1" if args[0].shape[1] == 2 else "conv2"] += len(args[0])
            return func(*args, **(kwargs or {}))

    net(images(6, 3))
    with Counting():
        result = net(images(6, 3))
        assert rows == {"conv1": 18, "conv2": 18}
    with Counting():
        result.sum().backward()
    assert rows == dict.fromkeys(rows, 18 * (1 + again))


def test_hooks_of_parameters_see_one_gradient() -> None:
    model = Flattened().double()
    net = tracecompile.convert(model, images(5, 2), rule="exact")
    seen: list[Tensor] = []
    model.conv2.weight.register_hook(seen.append)
    net(images(6, 3)).sum().backward()
    assert len(seen) == 1
    assert torch.equal(seen[0], model.conv2.weight.grad)


def test_what_is_written_into_before_backward_is_refused() -> None:
    net = tracecompile.convert(Flattened().double(), images(5, 2), rule="exact")
    x = images(6, 3)
    result = net(x)
    x.zero_()
    with pytest.raises(RuntimeError, match="modified in place"):
        result.sum().backward()


def test_a_saved_net_trains_on(tmp_path: Path) -> None:
    model = Flattened().double()
    net = tracecompile.convert(model, images(5, 2), rule="exact")
    tracecompile.save(net, tmp_path / "net")
    loaded = tracecompile.load(tmp_path / "net", weights_only=True)
    require_same(loaded, loaded, model, images(6, 3), 1e-10)


def test_a_saved_net_remembers_what_was_asked_for(tmp_path: Path) -> None:
    """And not what a model whose layers take all steps at once gives way to: another call may be of another kind."""
    net = tracecompile.convert(Flattened().double(), images(5, 2), bins=3)
    tracecompile.save(net, tmp_path / "net")
    for each in (net, tracecompile.load(tmp_path / "net", weights_only=True)):
        asked = session_of(each).settings
        assert (asked.rule, asked.bins) == ("measured", 3)


def test_a_copy_is_a_net_of_its_own() -> None:
    net = tracecompile.convert(Flattened().double(), images(5, 2), rule="exact")
    other = copy.deepcopy(net)
    reference = copy.deepcopy(net.source)
    require_same(other, other, reference, images(6, 3), 1e-10)
    assert int(net.source.norm1.num_batches_tracked) == 0


@pytest.mark.libraries
def test_no_time_step_alone_can_be_exported() -> None:
    library("onnxruntime")
    net = tracecompile.convert(Mixed(), vectors(5, 2).float())
    with pytest.raises(UnsupportedOperation, match="all time steps together"):
        tracecompile.export(net, "onnx")


def test_no_time_step_alone_can_be_streamed() -> None:
    net = tracecompile.convert(Mixed(), vectors(5, 2).float())
    with pytest.raises(ConversionError):
        next(net.stream([torch.rand(2, 5)]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int64, torch.bool])
@pytest.mark.parametrize("most", [2, 200, 3000])
def test_packed_values_come_back(dtype: torch.dtype, most: int) -> None:
    value = torch.randint(0, most, (3, 4, 5, 7)).to(dtype)
    for each in (value, value.permute(2, 0, 1, 3), value[1:, :, ::2], value[:0]):
        again = Packed(each).unpack()
        assert torch.equal(again, each)
        assert again.dtype == each.dtype
        assert [again.stride(axis) for axis in range(4)] == list(torch.empty_like(each).stride())
    assert Packed(value.bool().to(dtype)).nbytes == -(-value.numel() // 8)


def test_a_negative_zero_is_no_spike() -> None:
    value = torch.tensor([0.0, -0.0, 1.0])
    assert Packed(value).unpack().signbit().tolist() == [False, True, False]


def test_dropout_on_all_steps_is_drawn_once() -> None:
    class Dropped(Flattened):
        def forward(self, x: Tensor) -> Tensor:
            steps, batch = x.shape[:2]
            first = fire(self.norm1(self.conv1(x.flatten(0, 1))).view(steps, batch, CHANNELS, SIDE, SIDE))
            dropped = F.dropout(self.norm2(self.conv2(first.flatten(0, 1))), 0.3, self.training)
            return self.out(fire(dropped.view(steps, batch, CHANNELS, SIDE, SIDE)).flatten(2)).mean(0)

    model = Dropped().double()
    reference, x = copy.deepcopy(model), images(6, 3)
    net = tracecompile.convert(model, images(5, 2), rule="exact")
    torch.manual_seed(3)
    expected, wanted = gradients(reference, reference, x)
    torch.manual_seed(3)
    actual, found = gradients(model, net, x)
    assert torch.equal(actual, expected)
    assert float((found["conv1.weight"] - wanted["conv1.weight"]).norm()) < 1e-10 * float(wanted["conv1.weight"].norm())
