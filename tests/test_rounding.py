"""Products of many rows may round otherwise than those of few: what that excuses, and what it does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.oracle import HIDDEN, INPUTS, OUTPUTS, Program, require_right, spike
from support.uneven import Uneven
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import tracecompile
from tracecompile import compiler
from tracecompile.errors import SelfCheckFailed
from tracecompile.printing import Stages
from tracecompile.runtime.session import Session
from tracecompile.self_check import in_order
from tracecompile.self_check.in_order import AddedInOrder, OfOwnMemory

ALONE = "by rounding alone"
BATCH, STEPS = 3, 5


def leaky(currents: Tensor, threshold: float = 0.6) -> tuple[Tensor, Tensor]:
    """Spikes and membranes of leaky neurons over a sequence of currents."""
    v, record, spikes = torch.zeros_like(currents[0]), [], []
    for current in currents:
        v = 0.8 * v + current
        z = spike(v - threshold)
        v = v - threshold * z
        record.append(v)
        spikes.append(z)
    return torch.stack(spikes), torch.stack(record)


class Dense(nn.Module):
    """A product of all steps between two loops over time."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.hidden = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, _ = leaky(2 * self.inp(x))
        return leaky(self.between(2 * z))

    def between(self, z: Tensor) -> Tensor:
        return self.hidden(z)


class Residual(nn.Module):
    """Convolutions over time and batch at once, neurons over time, and a connection past the second layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(1, 4, 3, padding=1), nn.Conv1d(4, 4, 3, padding=1)
        self.out = nn.Linear(4 * INPUTS, OUTPUTS)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, _ = leaky(2 * self.conv1(x.reshape(-1, 1, INPUTS)).unflatten(0, x.shape[:2]))
        z, _ = leaky(2 * self.conv2(y.flatten(0, 1)).unflatten(0, x.shape[:2]) + y)
        return leaky(self.out((z + y).flatten(2)))


class Matrices(Dense):
    """One product that names its axes, one that has the neurons in front."""

    def between(self, z: Tensor) -> Tensor:
        both = torch.einsum("tbi,oi->tbo", z, self.hidden.weight) + self.hidden.bias
        return both + (self.hidden.weight @ z.transpose(1, 2)).transpose(1, 2)


class Upward(Dense):
    """A transposed convolution, of which a sum by hand is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.scale = nn.ConvTranspose1d(2, OUTPUTS, 3, stride=2), nn.Parameter(torch.rand(HIDDEN + 1))

    def between(self, z: Tensor) -> Tensor:
        wide = self.up(z.unflatten(2, (2, -1)).flatten(0, 1)).unflatten(0, z.shape[:2])
        return self.hidden(z) + (wide * self.scale).sum(-1)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "dense": Dense,
    "residual": Residual,
    "matrices": Matrices,
    "upward": Upward,
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_the_net_is_the_model_where_many_rows_round_otherwise(make: Callable[[], nn.Module]) -> None:
    with Uneven() as uneven:
        require_right(Program(make))
    assert uneven.turned


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_the_report_says_that_rounding_is_all(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = make(), 2 * torch.randn(STEPS, BATCH, INPUTS)
    with Uneven():
        net = tracecompile.convert(model, (x,), backend="eager")
        expected, found = model(x), net(x)
        assert not torch.equal(expected[1], found[1]), "the example shows no rounding"
    assert any(ALONE in note and "the example" in note for note in net.report.notes)
    assert any("for all steps at once" in note for note in net.report.notes)
    with AddedInOrder():
        assert all(torch.equal(one, other) for one, other in zip(model(x), net(x), strict=True))


@pytest.mark.parametrize("rule", ["analytic", "exact", "bptt"])
def test_so_it_is_under_every_rule(rule: str) -> None:
    torch.manual_seed(0)
    model, x = Dense(), 2 * torch.randn(STEPS, BATCH, INPUTS)
    with Uneven():
        net = tracecompile.convert(model, (x,), rule=rule, backend="eager")
    assert any(ALONE in note for note in net.report.notes)


class AtTheThreshold(nn.Module):
    """A sum that is the threshold in one order of its terms and above it in the other, at every step."""

    def __init__(self, at_once: bool) -> None:
        super().__init__()
        self.inp, self.hidden = nn.Linear(INPUTS, 3), nn.Linear(3, 2, bias=False)
        self.at_once = at_once
        with torch.no_grad():
            self.inp.bias.fill_(100.0)
            self.hidden.weight.copy_(torch.tensor([1.0, 2.0**-24, 2.0**-24]))

    def forward(self, x: Tensor) -> Tensor:
        z = torch.stack([spike(0.1 * v - 1.0) for v in leaky(self.inp(x), threshold=5.0)[1]])
        v, record = x.new_zeros(x.shape[1], 2), []
        for current in self.hidden(z) if self.at_once else map(self.hidden, z):
            v = 0.0 * v + current
            record.append(spike(v - 1.0))
        return torch.stack(record)


def test_a_spike_within_rounding_of_its_threshold_is_no_fault() -> None:
    model, x = AtTheThreshold(at_once=True), torch.rand(STEPS, BATCH, INPUTS)
    with Uneven():
        net = tracecompile.convert(model, (x,), backend="eager")
        assert not torch.equal(model(x), net(x)), "the example shows no rounding"
    assert any(ALONE in note for note in net.report.notes)


def test_nor_is_it_one_where_steps_are_computed_together() -> None:
    model, x = AtTheThreshold(at_once=False), torch.rand(8, 2, INPUTS)
    with Uneven(many=7):
        net = tracecompile.convert(model, (x,), chunk=4, bins=1, backend="eager")
        assert not torch.equal(model(x), net(x)), "the example shows no rounding"


def wrong_by(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the compiler change the leaks of a program by a share of them."""
    build = compiler.build

    def compile_wrongly(*args: Any) -> Any:
        compiled = build(*args)
        emitted = compiled.program.emitted
        assert emitted is not None
        for step in (emitted.plain, emitted.traced):
            for node in step.graph.nodes:
                node.args = tuple(a * (1 + share) if a == 0.8 else a for a in node.args)
            step.recompile()
        stages = Stages(compiled.stages.programs)
        stages.run_as_printed()
        return replace(compiled, stages=stages)

    monkeypatch.setattr(compiler, "build", compile_wrongly)


@pytest.mark.parametrize("share", [0.1, 2.0**-20])
@pytest.mark.parametrize("make", [Dense, Residual])
def test_a_fault_is_not_excused_as_rounding(
    make: Callable[[], nn.Module], share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, x = make(), 2 * torch.randn(STEPS, BATCH, INPUTS)
    wrong_by(share, monkeypatch)
    with Uneven(), pytest.raises(SelfCheckFailed, match="returns something else than the model"):
        tracecompile.convert(model, (x,), backend="eager")


class StepByStep(Dense):
    """Multiplies steps that it takes out of a sequence: they lie where they do."""

    def between(self, z: Tensor) -> Tensor:
        return torch.stack([self.hidden(z_t) for z_t in z])


class Unaligned(TorchDispatchMode):
    """Moves products by a last place where their operand does not begin at a multiple of 16 bytes."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation."""
        result = func(*args, **(kwargs or {}))
        return result * (1 + 2**-22) if func is torch.ops.aten.addmm.default and args[1].data_ptr() % 16 else result


def test_a_step_that_is_a_tensor_of_its_own_may_round_otherwise() -> None:
    """Some processors add up in another order where an operand lies elsewhere."""
    torch.manual_seed(0)
    model, x = StepByStep(), 2 * torch.randn(STEPS, BATCH, INPUTS)
    with Unaligned():
        net = tracecompile.convert(model, (x,), backend="eager")
        assert not torch.equal(model(x)[1], net(x)[1]), "the example shows no rounding"
        assert not net.program.stepwise
        with OfOwnMemory():
            assert all(torch.equal(one, other) for one, other in zip(model(x), net(x), strict=True))
    assert any(ALONE in note and "memory of its own" in note for note in net.report.notes)


def test_nothing_is_excused_where_the_model_multiplies_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A net that rounds otherwise than such a model is no longer that model bit for bit."""
    torch.manual_seed(0)
    model, x = StepByStep(), 2 * torch.randn(STEPS, BATCH, INPUTS)
    assert not tracecompile.convert(model, (x,), backend="eager").program.stepwise
    uneven, call = Uneven(many=10**9), Session.__call__

    def of_net_alone(self: Any, *args: Any, **kwargs: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(uneven, "many", 1)
            return call(self, *args, **kwargs)

    monkeypatch.setattr(Session, "__call__", of_net_alone)
    with uneven, pytest.raises(SelfCheckFailed, match="returns something else than the model"):
        tracecompile.convert(model, (x,), backend="eager")


@pytest.mark.libraries
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", [0, 3])
def test_states_that_go_on_do_so_where_many_rows_round_otherwise(seed: int) -> None:
    layers = pytest.importorskip("sinabs.layers")
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(INPUTS, HIDDEN),
        layers.LIF(tau_mem=10.0, spike_threshold=0.1),
        nn.Linear(HIDDEN, OUTPUTS),
        layers.ExpLeak(tau_mem=10.0),
    )
    x = 2 * torch.randn(BATCH, 6, INPUTS)
    with Uneven():
        net = tracecompile.convert(model, (x,), backend="eager")
    with AddedInOrder():
        for module in model.modules():
            if hasattr(module, "reset_states"):
                module.reset_states()
        expected = [model(x) for _ in range(2)]
        net.reset()
        found = [net(x) for _ in range(2)]
    assert not torch.equal(*expected), "nothing went on"
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


# The sums themselves.

WEIGHT, KERNEL = torch.randn(7, 12, generator=torch.Generator().manual_seed(1)), torch.randn(6, 2, 3)
OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: F.linear(x, WEIGHT.to(x), WEIGHT[:, 0].to(x)),
    "without bias": lambda x: F.linear(x, WEIGHT.to(x)),
    "einsum": lambda x: torch.einsum("...i,oi->...o", x, WEIGHT.to(x)),
    "from the left": lambda x: (WEIGHT.to(x) @ x.mT).mT,
    "bilinear": lambda x: F.bilinear(x, x, WEIGHT.to(x)[:, :, None] * WEIGHT.to(x)[0]),
    "onto a batch": lambda x: torch.baddbmm(x[..., :1], x, x.mT, beta=0.5, alpha=2) if x.dim() == 3 else x,
    "sum": lambda x: x.sum(-1),
    "mean": lambda x: x.mean((-1,), keepdim=True),
}


def convolved(function: Callable[..., Tensor], **options: Any) -> Callable[[Tensor], Tensor]:
    """Returns a convolution of the last axis, four channels of three, over all other axes at once."""
    groups = options.get("groups", 1)
    shape = (6, 4 // groups, 2) if function is F.conv1d else (4, 6 // groups, 2)

    def run(x: Tensor) -> Tensor:
        kernel = torch.arange(torch.Size(shape).numel()).mul(0.7).cos().reshape(shape).to(x)
        images = x.reshape(-1, 4, 3)
        return function(images, kernel, kernel.new_ones(6).cumsum(0), **options).unflatten(0, x.shape[:-1])

    return run


for conv in (F.conv1d, F.conv_transpose1d):
    for one in ({}, {"stride": 2}, {"padding": 1}, {"dilation": 2}, {"groups": 2}, {"groups": 2, "padding": 1}):
        OPERATIONS[f"{conv.__name__} {one}"] = convolved(conv, **one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())
def test_added_in_order_rows_do_not_matter(operation: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(9, 5, 12, dtype=dtype)
    plain = operation(x)
    with AddedInOrder():
        whole, steps = operation(x), torch.stack([operation(x_t) for x_t in x])
        alone = operation(x[3:4])[0]
    assert whole.dtype == dtype
    assert whole.shape == plain.shape
    torch.testing.assert_close(whole, plain)
    assert torch.equal(alone, whole[3])
    if whole.shape[:2] == x.shape[:2] and not (x.dim() == 3 and whole.shape[-1] == 5):
        assert torch.equal(steps, whole)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_convolutions_added_in_order_are_convolutions(dims: int, transposed: bool) -> None:
    torch.manual_seed(0)
    name = f"Conv{'Transpose' * transposed}{dims}d"
    more: dict[str, Any] = {"output_padding": 1} if transposed else {}
    layer = getattr(nn, name)(4, 6, 3, stride=2, padding=1, dilation=2, groups=2, **more).double()
    x = torch.randn(3, 4, *range(7, 7 + dims)).double()
    with AddedInOrder():
        found = layer(x)
    torch.testing.assert_close(found, layer(x))


@pytest.mark.parametrize(
    "name", ["linear", "without bias", "conv1d {}", "conv_transpose1d {'groups': 2, 'padding': 1}"]
)
def test_large_rows_are_each_a_call_of_their_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_order, "LARGE", 0)
    torch.manual_seed(0)
    x = torch.randn(9, 5, 12)
    with Uneven(many=2) as uneven, AddedInOrder():
        whole, steps = OPERATIONS[name](x), torch.stack([OPERATIONS[name](x_t) for x_t in x])
    assert not uneven.turned
    assert torch.equal(whole, steps)
    torch.testing.assert_close(whole, OPERATIONS[name](x))


def test_half_precision_is_added_up_in_single() -> None:
    x, layer = torch.randn(4, 3000).bfloat16(), nn.Linear(3000, 2).bfloat16()
    with AddedInOrder():
        found = layer(x)
    torch.testing.assert_close(found, layer(x))
