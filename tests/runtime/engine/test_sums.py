"""Products with spikes as sums over those that fired: bit by bit those of torch, or not taken."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import tracecompile
import tracecompile.nn as snn
from tracecompile.runtime.engine import compiled
from tracecompile.runtime.engine.inductor import Unwritten
from tracecompile.runtime.engine.sums import build, products
from tracecompile.runtime.engine.sums.instead import Instead
from tracecompile.runtime.engine.sums.order import block_of
from tracecompile.runtime.engine.sums.products import Products


@pytest.fixture
def every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the smallest product be a sum."""
    monkeypatch.setattr(products, "LEAST", 1)


@pytest.fixture(scope="module")
def shared() -> Products:
    return Products()


def spikes(rows: int, depth: int, rate: float = 0.1) -> Tensor:
    return (torch.rand(rows, depth) < rate).float()


@pytest.mark.usefixtures("every_size")
@settings(deadline=None, max_examples=60)
@given(
    rows=st.sampled_from([1, 8, 16, 33, 100]),
    depth=st.sampled_from([1, 15, 16, 64, 100, 193, 256, 300, 385, 512, 700]),
    width=st.sampled_from([1, 10, 16, 20, 33, 64, 200, 256, 300, 523]),
    rate=st.sampled_from([0.0, 0.02, 0.2, 0.3]),
    graded=st.booleans(),
    turned=st.booleans(),
    biased=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_a_sum_over_spikes_is_the_product(
    rows: int, depth: int, width: int, rate: float, graded: bool, turned: bool, biased: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    left = spikes(rows, depth, rate) * (torch.randn(rows, depth) if graded else 1.0)
    right = torch.randn(width, depth).t() if turned else torch.randn(depth, width)
    made = Products()
    made.stand([right])
    if biased:
        first = torch.randn(width)
        assert torch.equal(made.addmm(first, left, right), torch.addmm(first, left, right))
        out = torch.empty(rows, width)
        made.addmm(first, left, right, alpha=1, beta=1, out=out)
        assert torch.equal(out, torch.addmm(first, left, right))
    else:
        assert torch.equal(made.mm(left, right), left @ right)


@pytest.mark.usefixtures("every_size")
@settings(deadline=None, max_examples=60)
@given(
    rows=st.sampled_from([1, 3, 16, 33, 64, 200, 523]),
    depth=st.sampled_from([1, 7, 64, 193, 256, 300, 512]),
    width=st.sampled_from([1, 10, 16, 63, 64, 65, 200]),
    rate=st.sampled_from([0.0, 0.02, 0.2, 0.3]),
    seed=st.integers(0, 1000),
)
def test_a_sum_over_spikes_is_the_gradient_of_the_weights(
    rows: int, depth: int, width: int, rate: float, seed: int
) -> None:
    torch.manual_seed(seed)
    made = Products()
    for _ in range(2):  # the second time in the same rooms
        signals, right = torch.randn(depth, rows), spikes(depth, width, rate) * torch.randn(width)
        assert torch.equal(made.mm(signals.t(), right), signals.t() @ right)
        out = torch.empty(rows, width)
        made.mm(signals.t(), right, out=out)
        assert torch.equal(out, signals.t() @ right)


@pytest.mark.usefixtures("every_size")
def test_signals_that_are_not_finite_spoil_what_they_do_in_a_product(shared: Products) -> None:
    signals, right = torch.randn(64, 48), spikes(64, 40)
    signals[3, 5], right[3] = float("inf"), 0.0
    before = shared.count
    assert torch.isnan(shared.mm(signals.t(), right)[5]).all()
    signals[3, 5] = 0.0
    assert torch.equal(shared.mm(signals.t(), right), signals.t() @ right)
    assert shared.count == before + 1


@pytest.mark.usefixtures("every_size")
@pytest.mark.parametrize("depth", [64, 128])
def test_it_is_a_sum(shared: Products, depth: int) -> None:
    right = torch.randn(64, depth).t()
    shared.stand([right])
    before = shared.count
    shared.mm(spikes(32, depth), right)
    assert shared.count == before + 1
    assert shared.refused is None


@pytest.mark.usefixtures("every_size")
def test_what_is_not_sparse_is_a_product(shared: Products) -> None:
    right = torch.randn(64, 64)
    shared.stand([right])
    before = shared.count
    left = spikes(32, 64, 0.6)
    assert torch.equal(shared.mm(left, right), left @ right)
    assert shared.count == before


@pytest.mark.usefixtures("every_size")
@pytest.mark.parametrize("broken", [float("inf"), float("nan")])
def test_weights_that_are_not_finite_spoil_what_they_do_in_a_product(shared: Products, broken: float) -> None:
    right = torch.randn(64, 64)
    right[3, 5] = broken
    shared.stand([right])
    left = spikes(32, 64)
    left[:, 3] = 0.0
    assert torch.isnan(shared.mm(left, right)[:, 5]).all()


@pytest.mark.usefixtures("every_size")
def test_weights_that_change_are_read_anew(shared: Products) -> None:
    right, left = torch.randn(64, 64), spikes(32, 64)
    shared.stand([right])
    shared.mm(left, right)
    with torch.no_grad():
        right.mul_(2.0)
    before = shared.count
    assert torch.equal(shared.mm(left, right), left @ right)
    assert shared.count == before
    shared.stand([right])  # the same place, other values
    assert torch.equal(shared.mm(left, right), left @ right)
    assert shared.count == before + 1
    with torch.no_grad():
        right.mul_(2.0)
    shared.stand([right])
    seen = torch._C._dynamo.guards._reinterpret_tensor(right, right.shape, right.stride(), 0)  # as compiled code does
    assert torch.equal(shared.mm(left, seen), left @ right)
    assert shared.count == before + 2
    with torch.no_grad():
        right.mul_(2.0)
    shared.stand([right])
    seen = torch._C._dynamo.guards._reinterpret_tensor(right, right.shape, right.stride(), 0)
    assert torch.equal(shared.mm(left, seen), left @ right)
    before += 2
    right.data.mul_(3.0)  # of which no version tells
    shared.forget()
    assert torch.equal(shared.mm(left, right), left @ right)
    assert shared.count == before + 1
    shared.stand([right])
    assert torch.equal(shared.mm(left, right), left @ right)
    assert shared.count == before + 2


@pytest.mark.usefixtures("every_size")
def test_sums_begin_with_one_value_a_column_and_take_no_factors(shared: Products) -> None:
    left, right, first = spikes(32, 64), torch.randn(64, 48), torch.randn(32, 48)
    shared.stand([right])
    assert torch.equal(shared.addmm(first, left, right), torch.addmm(first, left, right))
    for factors in ({"beta": 0.5}, {"alpha": 2.0}):
        found = shared.addmm(first[0], left, right, **factors)
        assert torch.equal(found, torch.addmm(first[0], left, right, **factors))


@pytest.mark.usefixtures("every_size")
def test_what_does_not_stand_still_is_a_product(shared: Products) -> None:
    """The memory of what is made in a step may hold other values in the next one, under the same address."""
    left, right = spikes(32, 64), torch.randn(64, 64)
    before = shared.count
    assert torch.equal(shared.mm(left, right), left @ right)
    assert shared.count == before


@pytest.mark.usefixtures("every_size")
def test_trying_out_draws_nothing(shared: Products) -> None:
    right, left = torch.randn(48, 80), spikes(32, 48)
    shared.stand([right])
    before = torch.random.get_rng_state()
    shared.mm(left, right)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_another_order_is_noticed(shared: Products) -> None:
    """Nothing but the very order of torch passes: a row of 512 that is added up otherwise comes out otherwise."""
    right = torch.randn(512, 64)

    def in_another_order(left: Tensor, given: Tensor, first: Tensor | None, block: int) -> Tensor:
        halves = [left[:, at::2] @ given[at::2] for at in (0, 1)]
        return halves[0] + halves[1] if first is None else first + halves[0] + halves[1]

    left = torch.randn(32, 512)
    assert block_of(in_another_order, left, right, False) is None
    assert block_of(in_another_order, left, right, True) is None


class Net(nn.Module):
    """Weights read in all places: below, within the recurrence, and by a readout."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.out = nn.Linear(40, 64), nn.Linear(64, 32, bias=False)
        self.neurons = snn.RLIF(64, leak=0.9, surrogate=snn.fast_sigmoid(10.0))

    def forward(self, x: Tensor) -> Tensor:
        state, total = None, 0.0
        for x_t in x:
            spikes, state = self.neurons(self.below(x_t), state)
            total = total + self.out(spikes)
        return total


WAYS: dict[str, Any] = {
    "linear": lambda x, weight, bias: functional.linear(x, weight, bias),
    "linear by name": lambda x, weight, bias: functional.linear(x, weight, bias=bias),
    "linear alone": lambda x, weight, _: functional.linear(x, weight),
    "@": lambda x, weight, _: x @ weight.t(),
    "matmul": lambda x, weight, _: torch.matmul(x, weight.t()),
    "mm": lambda x, weight, _: torch.mm(x, weight.t()),
    "method": lambda x, weight, _: x.matmul(weight.t()),
    "addmm": lambda x, weight, bias: torch.addmm(bias, x, weight.t()),
}


@pytest.mark.usefixtures("every_size")
@pytest.mark.parametrize("way", WAYS)
def test_products_are_sums_however_they_are_written(way: str, shared: Products) -> None:
    x, weight, bias = spikes(40, 64).requires_grad_(), nn.Parameter(torch.randn(48, 64)), nn.Parameter(torch.randn(48))
    leaves = [x, weight] if WAYS[way](x, weight, bias).grad_fn.name().startswith("Mm") else [x, weight, bias]
    wanted = WAYS[way](x, weight, bias)
    gradients = torch.autograd.grad(wanted.sin().sum(), leaves)
    shared.stand([weight])
    before = shared.count
    with Instead(shared):
        found = WAYS[way](x, weight, bias)
    assert shared.count == before + 1
    assert torch.equal(found, wanted)
    for one, other in zip(torch.autograd.grad(found.sin().sum(), leaves), gradients, strict=True):
        assert torch.equal(one, other)
    assert shared.count == before + 2  # the gradient of the weights
    with Instead(shared), torch.no_grad():
        assert torch.equal(WAYS[way](x, weight, bias), wanted)


@pytest.mark.usefixtures("every_size")
def test_what_else_a_model_writes_is_computed_as_it_is(shared: Products) -> None:
    weight = nn.Parameter(torch.randn(48, 64))
    shared.stand([weight])
    before = shared.count
    with Instead(shared):
        assert functional.linear(torch.ones(2, 3, 64), weight).shape == (2, 3, 48)
        assert (torch.ones(64) @ weight.t()).shape == (48,)
        assert torch.addmm(torch.ones(40, 48), torch.ones(40, 64), weight.t()).shape == (40, 48)
        assert torch.addmm(torch.ones(48), torch.ones(40, 64), weight.t(), beta=0.5)[0, 0] != 0
        assert functional.linear(torch.ones(2, 64).double(), weight.double()).dtype == torch.float64
        with torch.autocast("cpu", torch.bfloat16):
            assert functional.linear(spikes(40, 64), weight).dtype == torch.bfloat16
    assert shared.count == before


def trained(net: Any, x: Tensor) -> list[Tensor]:
    net.zero_grad(set_to_none=True)
    result = net(x)
    (result * torch.linspace(-1, 1, 32)).sum().backward()
    return [result.detach().clone(), *(parameter.grad.clone() for parameter in net.parameters())]


@pytest.mark.parametrize("rule", ["measured", "exact"])
def test_a_compiled_net_computes_the_same_with_and_without(rule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "PIECE", 4)
    monkeypatch.setattr(compiled, "RECURRENT_PIECE", 2)
    torch.manual_seed(0)
    model, x = Net(), (torch.rand(9, 16, 40) < 0.15).float()
    net = tracecompile.convert(model, x, rule=rule, backend="inductor")
    made = net._session.kernels.products
    monkeypatch.setattr(products, "LEAST", 1)
    found = [trained(net, x)]
    taken = made.count
    assert taken > 9  # in every step of the recurrence, and below
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    found.append(trained(net, x))
    monkeypatch.setattr(products, "LEAST", 10**12)
    taken = made.count
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.div_(2.0)
    wanted = [trained(net, x)]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    wanted.append(trained(net, x))
    assert made.count == taken
    assert wanted[0][0].abs().sum() > 0
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one[0], other[0])
        for first, second in zip(one[1:], other[1:], strict=True):
            torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


def test_copies_have_products_of_their_own() -> None:
    x = (torch.rand(4, 2, 40) < 0.15).float()
    net = tracecompile.convert(Net(), x, backend="inductor")
    assert copy.deepcopy(net)._session.kernels.products is not net._session.kernels.products


def test_without_a_compiler_products_are_those_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(products, "LEAST", 1)
    for refusing in (_raising, lambda *_: ["false"], lambda *_: ["true"]):
        monkeypatch.setattr(build, "compiler_call", refusing)
        made, left, right = Products(), spikes(32, 64), torch.randn(64, 64)
        made.stand([right])
        assert torch.equal(made.mm(left, right), left @ right)
        assert made.refused
    assert not any(tmp_path.rglob(f"{build.shelf.BEGUN}*"))


def _raising(*_: Any) -> list[str]:
    raise Unwritten("no compiler")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, where nothing else has imported this
def test_a_library_that_is_cut_short_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    compiler_call = build.compiler_call
    monkeypatch.setattr(build, "compiler_call", lambda *given: calls.append(1) or compiler_call(*given))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    build.library()
    build.library()
    assert len(calls) == 1
    other = tmp_path / "other"  # what is mapped into this process stays as it is
    shutil.copytree(tmp_path / "tracecompile", other / "tracecompile")
    (path,) = other.rglob("*.so")
    path.write_bytes(path.read_bytes()[:100])
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(other))
    build.library()
    assert len(calls) == 2
    assert len(list(other.rglob("*.so"))) == 1
