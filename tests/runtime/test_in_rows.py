"""A prologue with normalisations over time and batch: pulled back a few rows at a time, as autograd pulls the whole."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.fired import fire
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import tracecompile
from tracecompile.runtime import ends
from tracecompile.runtime.in_rows.sweeps import Sweeps

CHANNELS, SIDE = 3, 4


class Stem(nn.Module):
    """Spikes of a convolution and a norm over time and batch, pooled by their maximum, and a readout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, CHANNELS, 3, padding=1), nn.BatchNorm2d(CHANNELS)
        self.conv2, self.norm2 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.BatchNorm2d(CHANNELS)
        self.pool, self.out = nn.MaxPool2d(2), nn.Linear(CHANNELS * SIDE * SIDE // 4, 4)

    def currents(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    def forward(self, x: Tensor) -> Tensor:
        steps, batch = x.shape[:2]
        spikes = fire(self.currents(x.flatten(0, 1)).unflatten(0, (steps, batch)))
        pooled = self.pool(spikes.flatten(0, 1))
        second = fire(self.norm2(self.conv2(pooled)).unflatten(0, (steps, batch)))
        return self.out(second.flatten(2)).mean(0)


class TwoNorms(Stem):
    def __init__(self) -> None:
        super().__init__()
        self.between, self.norm0 = nn.Conv2d(CHANNELS, CHANNELS, 1), nn.BatchNorm2d(CHANNELS)

    def currents(self, x: Tensor) -> Tensor:
        return self.norm(self.between(self.norm0(self.conv(x)).relu()))


class Skipped(TwoNorms):
    """What the first norm gives is read by what is before the second one, and once more behind it."""

    def currents(self, x: Tensor) -> Tensor:
        first = self.norm0(self.conv(x))
        return self.norm(self.between(first.relu())) + 0.7 * first


class Around(Stem):
    """What the norm takes goes around it as well, and is added to what it gives."""

    def currents(self, x: Tensor) -> Tensor:
        made = self.conv(x)
        return 2 * self.norm(made) + 0.5 * made


class Twice(Stem):
    """Two norms of one convolution, which is read a second time."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.BatchNorm2d(CHANNELS, affine=False)

    def currents(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) * 2 + self.other(self.conv(x.flip(-1)))


class SharedWeights(Stem):
    """One convolution and one norm before the first layer and the second."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.conv2, self.norm2 = self.conv, self.norm

    def currents(self, x: Tensor) -> Tensor:
        return super().currents(torch.cat([x, x[:, :1]], 1))


class Written(Stem):
    """The norm as a function, with weights of the model's own; nothing before it but a factor that all rows share."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.rand(CHANNELS)), nn.Parameter(torch.rand(CHANNELS))
        self.factor = nn.Parameter(torch.rand(1, CHANNELS, 1, 1) + 0.5)

    def currents(self, x: Tensor) -> Tensor:
        made = self.conv(x) * self.factor
        return nn.functional.batch_norm(made, None, None, self.scale, self.shift, training=True)


class NoNorm(Stem):
    """Nothing ties the steps together before the first layer."""

    def currents(self, x: Tensor) -> Tensor:
        return 2 * self.conv(x)


CASES: list[Callable[[], Stem]] = [Stem, TwoNorms, Skipped, Around, Twice, SharedWeights, Written, NoNorm]
IN_ROWS = [Stem, TwoNorms, Skipped, Around, Written]
"""Those whose first layer is known to keep its rows apart."""


def images(steps: int, batch: int) -> Tensor:
    return 2 * torch.rand(steps, batch, 2, SIDE, SIDE, dtype=torch.double)


def gradients(model: nn.Module, run: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns what a run gives, and the gradients of all parameters and of the input."""
    x = x.clone().requires_grad_()
    result = run(x)
    weights = torch.arange(result.numel(), dtype=result.dtype).cos().view_as(result)
    named = {name: value for name, value in model.named_parameters() if value.requires_grad}
    found = torch.autograd.grad((result * weights).sum(), [*named.values(), x], allow_unused=True)
    return result.detach(), {k: g for k, g in zip((*named, "x"), found, strict=True) if g is not None}


def require_same(model: nn.Module, net: nn.Module, reference: nn.Module, x: Tensor, tolerance: float = 1e-9) -> None:
    expected, wanted = gradients(reference, reference, x)
    actual, found = gradients(model, net, x)
    assert torch.equal(actual, expected)
    pairs = zip(model.state_dict().items(), reference.state_dict().values(), strict=True)
    assert [name for (name, one), other in pairs if not torch.equal(one, other)] == []
    largest = max(float(each.norm()) for each in wanted.values())
    assert largest > 1e-3
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        bound = tolerance * max(float(gradient.norm()), 1e-3 * largest)
        assert float((found[name] - gradient).norm()) <= bound, name


@pytest.fixture
def swept(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Returns a list that gets an entry for every prologue that is pulled back row by row."""
    found: list[int] = []
    pull = Sweeps.pull

    def counted(self: Sweeps, *given: Any) -> Any:
        found.append(self.cut.count)
        return pull(self, *given)

    monkeypatch.setattr(Sweeps, "pull", counted)
    return found


@pytest.mark.parametrize("make", CASES)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_gradients_are_those_of_the_model(
    make: Callable[[], Stem], size: int, monkeypatch: pytest.MonkeyPatch, swept: list[int]
) -> None:
    monkeypatch.setattr(ends, "AT_ONCE", size)
    model = make().double()
    reference = copy.deepcopy(model)
    net = tracecompile.convert(model, images(5, 2), rule="exact", backend="eager")
    swept.clear()
    for steps, batch in ((7, 3), (18, 2), (4, 1)):
        require_same(model, net, reference, images(steps, batch))
    if make in IN_ROWS:
        assert set(swept) == {7, 18, 4}


@pytest.mark.parametrize("frozen", ["conv.weight", "norm.weight", "norm.bias", "conv"])
def test_what_is_not_trained_gets_nothing(frozen: str, swept: list[int]) -> None:
    model = Stem().double()
    for name, value in model.named_parameters():
        value.requires_grad_(not name.startswith(frozen + ".") and name != frozen)
    reference = copy.deepcopy(model)
    net = tracecompile.convert(model, images(5, 2), rule="exact", backend="eager")
    require_same(model, net, reference, images(6, 3))
    assert swept


def test_backward_may_run_twice(swept: list[int]) -> None:
    model = Stem().double()
    net = tracecompile.convert(model, images(5, 2), rule="exact", backend="eager")
    loss = net(images(6, 3)).square().sum()
    first = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(model.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("mixed", [True, False])
def test_half_precision(mixed: bool) -> None:
    model = Stem() if mixed else Stem().bfloat16()
    reference = copy.deepcopy(model)
    x = images(6, 3).float() if mixed else images(6, 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        net = tracecompile.convert(model, x[:5, :2], rule="exact", backend="eager")
        expected, wanted = gradients(reference, reference, x)
        actual, found = gradients(model, net, x)
    assert torch.equal(actual, expected)
    for name in ("conv.weight", "norm.weight", "conv2.weight"):
        one, other = found[name].flatten().float(), wanted[name].flatten().float()
        assert float(nn.functional.cosine_similarity(one, other, 0)) > 0.98, name
        assert abs(float(one.norm() / other.norm()) - 1) < 0.05


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {id(leaf.untyped_storage()) for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in pytree.tree_leaves(made):
            if isinstance(leaf, Tensor) and id(storage := leaf.untyped_storage()) not in given | self.known:
                size, key = storage.nbytes(), id(storage)
                self.known.add(key)
                self.now += size
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self.gone, key, size)
        return made

    def gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def growth(net: nn.Module) -> float:
    """Returns how many bytes more are alive at the peak of a training step, for every step more."""
    found = []
    for steps in (32, 64):
        x = images(steps, 4).float()
        net(x).sum().backward()
        with Alive() as alive:
            net(x).sum().backward()
        found.append(alive.most)
    return (found[1] - found[0]) / 32


class Wide(Stem):
    """Most values are those of the first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.pool, self.conv2 = nn.MaxPool2d(2), nn.Conv2d(16, CHANNELS, 3, padding=1)


def test_one_tensor_of_the_largest_layer_is_as_long_as_the_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its currents, or what the loss answers to them; beside it pooled spikes, a quarter as large, and states."""
    layer = images(1, 4).float().nbytes // 2 * 16
    net = tracecompile.convert(Wide(), images(5, 2).float(), rule="exact", backend="eager")
    assert growth(net) < 1.6 * layer
    monkeypatch.setattr(ends, "LARGE", 2.0)  # no layer is so large
    net = tracecompile.convert(Wide(), images(5, 2).float(), rule="exact", backend="eager")
    assert growth(net) > 2.2 * layer
