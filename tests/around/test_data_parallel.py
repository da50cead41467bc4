"""DistributedDataParallel around a net: unequal batches, norms, states handed in, and what is refused."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.processes import PROCESSES, in_two_processes
from torch import Tensor, nn
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

import tracecompile
import tracecompile.nn as snn
from around.nets import INPUTS, OUTPUTS, SPIKE, WIDTH
from tracecompile.errors import UnsupportedOperation
from tracecompile.runtime.module import session_of

STEPS, TOLERANCE = 12, 1e-10
RULES: list[dict[str, Any]] = [{"bins": 3}, {"rule": "exact"}]


class Net(nn.Module):
    """Two layers of neurons, the first with lateral weights; with a normalisation if asked for."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.enter, self.first = nn.Linear(INPUTS, WIDTH), snn.RLIF(WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH) if norm else nn.Identity()
        self.between, self.second, self.leave = nn.Linear(WIDTH, WIDTH), snn.LIF(WIDTH), nn.Linear(WIDTH, OUTPUTS)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        first = second = None
        total = x.new_zeros(x.shape[1], OUTPUTS)
        for x_t in x:
            z, first = self.first(self.norm(self.enter(x_t)), first)
            z, second = self.second(self.between(z), second)
            total = total + self.leave(z)
        return total


class HandsOut(nn.Module):
    """One step, [B, 5] to [B, 3]; the caller keeps the state."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.enter, self.leave = nn.Linear(INPUTS, WIDTH).double(), nn.Linear(WIDTH, OUTPUTS).double()

    def forward(self, x: Tensor, v: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if v is None:
            v = x.new_zeros(x.shape[0], WIDTH)
        v = 0.9 * v + 2 * self.enter(x)
        z = SPIKE(v - 0.5)
        v = v - 0.5 * z
        return self.leave(z), v


def inputs(batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return 3 * torch.rand(STEPS, batch, INPUTS, dtype=torch.float64, generator=generator)


def require_equal(found: nn.Module, wanted: nn.Module) -> None:
    """Parameters, buffers and gradients."""
    ours, theirs = dict(found.named_parameters()), dict(wanted.named_parameters())
    for name, one in theirs.items():
        torch.testing.assert_close(ours[name], one, rtol=TOLERANCE, atol=1e-13, msg=lambda m, n=name: f"{n}: {m}")
        assert one.grad is not None
        assert one.grad.norm() > 0 or name == "enter.bias"  # before a normalisation
        torch.testing.assert_close(ours[name].grad, one.grad, rtol=TOLERANCE, atol=1e-13)
    for one, other in zip(found.buffers(), wanted.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=TOLERANCE, atol=0)


def train(net: nn.Module, losses: Iterator[Tensor]) -> None:
    """Takes a step for each loss, with momentum."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    for loss in losses:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def ragged(rank: int, **options: Any) -> None:
    """The last batch has four samples for one process and one for the other: each loss weighs what it has."""
    x = inputs(8)
    parts = [(slice(0, 4), slice(4, 8)), (slice(0, 4), slice(4, 8)), (slice(2, 6), slice(7, 8))]
    net, alone = (tracecompile.convert(Net(), x, backend="eager", **options) for _ in range(2))
    parallel = DistributedDataParallel(net)

    def share() -> Iterator[Tensor]:
        for both in parts:
            count = torch.tensor(x[:, both[rank]].shape[1])
            torch.distributed.all_reduce(count)
            # DistributedDataParallel divides by the number of processes.
            yield parallel(x[:, both[rank]]).square().sum() * PROCESSES / count

    train(parallel, share())
    joined = (torch.cat([x[:, part] for part in both], 1) for both in parts)
    train(alone, (alone(each).square().sum() / each.shape[1] for each in joined))
    require_equal(net, alone)


def joins(rank: int, **options: Any) -> None:
    """One process has three batches, the other two."""
    x, mine = inputs(8), (slice(0, 4), slice(4, 8))
    net, alone = (tracecompile.convert(Net(), x, backend="eager", **options) for _ in range(2))
    parallel = DistributedDataParallel(net)
    with Join([parallel]):
        train(parallel, (parallel(x[:, mine[rank]]).square().mean() for _ in range((3, 2)[rank])))
    present = ((0, 1), (0, 1), (0,))
    train(alone, (sum(alone(x[:, mine[each]]).square().mean() for each in who) / PROCESSES for who in present))
    for one, other in zip(net.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=TOLERANCE, atol=1e-13)


def normalises(rank: int) -> None:
    """Each process normalises by its own part of the batch, as the model does; statistics are those of the first."""
    x = inputs(8)[:, 4 * rank : 4 * rank + 4]
    model, net = Net(norm=True), tracecompile.convert(Net(norm=True), x, rule="exact", backend="eager")
    both = [DistributedDataParallel(each, gradient_as_bucket_view=True) for each in (model, net)]
    for each in both:
        train(each, (each(x).square().mean() for _ in range(3)))
        each.eval()
    require_equal(net, model)
    torch.testing.assert_close(both[0](x), both[1](x), rtol=TOLERANCE, atol=0)


def hands_in(rank: int) -> None:
    """With ``find_unused_parameters`` results pass through the wrapper: the states are still the net's."""
    x = inputs(6)[:, 3 * rank : 3 * rank + 3]
    model, net = HandsOut(), tracecompile.convert(HandsOut(), x[0], bins=STEPS, backend="eager")
    for each in (model, net):
        parallel = DistributedDataParallel(each, find_unused_parameters=True)
        v, total = None, torch.zeros(3, OUTPUTS, dtype=torch.float64)
        for x_t in x:
            output, v = parallel(x_t, v)
            total = total + output
        if each is net:
            window = session_of(net).window
            assert window is not None
            assert window.record.clock.steps == STEPS, "each step began a window of its own: memory grows"
        total.square().sum().backward()
    require_equal(net, model)


def refuses(rank: int) -> None:
    """What is within a model instead of around a net, and statistics of all processes."""
    x = inputs(2)

    def wrapped_part() -> nn.Module:
        model = Net()
        model.enter = DistributedDataParallel(model.enter)
        return model

    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(Net(norm=True))
    for make, said in (
        (lambda: DistributedDataParallel(Net()), r"The model is wrapped by DistributedDataParallel.*net\)"),
        (wrapped_part, r"enter is wrapped by DistributedDataParallel.*net\)"),
        (lambda: synchronised, "norm is a SyncBatchNorm.*GroupNorm"),
    ):
        with pytest.raises(UnsupportedOperation, match=said):
            tracecompile.convert(make(), x)
    net = tracecompile.convert(synchronised.eval(), x, backend="eager")
    torch.testing.assert_close(net(x), net.source(x), rtol=TOLERANCE, atol=0)
    with pytest.raises(UnsupportedOperation, match="norm is a SyncBatchNorm"):
        net.train()(x)


@contextlib.contextmanager
def naming(check: Callable[..., object], options: dict[str, Any]) -> Iterator[None]:
    try:
        yield
    except BaseException as fault:
        fault.add_note(f"in {check.__name__} {options}")
        raise


def work(rank: int) -> None:
    for check in (ragged, joins):
        for options in RULES:
            with naming(check, options):
                check(rank, **options)
    for check in (normalises, hands_in, refuses):
        with naming(check, {}):
            check(rank)


@pytest.mark.filterwarnings("ignore")  # of processes that torch starts
def test_a_net_in_two_processes(tmp_path: Path) -> None:
    in_two_processes(work, tmp_path)


def test_a_synchronised_norm_in_one_process_is_a_norm() -> None:
    x = inputs(4)
    model = Net(norm=True)
    net = tracecompile.convert(nn.SyncBatchNorm.convert_sync_batchnorm(Net(norm=True)), x, rule="exact")
    for each in (model, net):
        each(x).square().mean().backward()
    require_equal(net, model)
