"""fully_shard (FSDP2) around a net, and checkpoints of torch.distributed: as one process, and bit for bit as before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.processes import in_two_processes
from torch import Tensor, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import tracecompile
from around.nets import INPUTS, OUTPUTS, SPIKE, WIDTH
from around.test_data_parallel import RULES, STEPS, TOLERANCE, HandsOut, Net, inputs, naming
from tracecompile.errors import UnsupportedOperation
from tracecompile.runtime.module import session_of


class Step(nn.Module):
    """One step; it keeps its state, and learns its leak, a value that all steps share."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.enter, self.leave = nn.Linear(INPUTS, WIDTH).double(), nn.Linear(WIDTH, OUTPUTS).double()
        self.leak, self.v = nn.Parameter(torch.ones(WIDTH, dtype=torch.float64)), None

    def forward(self, x: Tensor) -> Tensor:
        v = x.new_zeros(x.shape[0], WIDTH) if self.v is None else self.v
        v = torch.sigmoid(self.leak) * v + 2 * self.enter(x)
        z = SPIKE(v - 0.5)
        self.v = v - 0.5 * z
        output: Tensor = self.leave(z)
        return output


class Around(nn.Module):
    """An encoder before a net and a layer behind it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.before, self.net = nn.Linear(INPUTS, INPUTS).double(), net
        self.behind = nn.Linear(OUTPUTS, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.behind(self.net(3 * self.before(x)))
        return output


def whole(value: Tensor | None) -> Tensor:
    assert isinstance(value, DTensor), "not sharded"
    return value.full_tensor()


def trained(net: nn.Module, run: Callable[[nn.Module], Tensor]) -> Iterator[None]:
    """Takes three steps of Adam, yields before each."""
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(3):
        optimizer.zero_grad()
        run(net).square().mean().backward()
        yield
        optimizer.step()


def require_alike(
    rank: int, make: Callable[[], nn.Module], run: Callable[[nn.Module, Tensor], Tensor], reshard: bool
) -> None:
    """Compares two processes with one: gradients before every step, weights after them, and outputs."""
    x = inputs(8)
    net, alone = make(), make()
    for part in [part for part in net.modules() if isinstance(part, tracecompile.TracedModule) and part is not net]:
        fully_shard(part, reshard_after_forward=reshard)
    fully_shard(net, reshard_after_forward=reshard)
    mine = x[:, 4 * rank : 4 * rank + 4]
    together = zip(trained(net, lambda each: run(each, mine)), trained(alone, lambda each: run(each, x)), strict=True)
    for _ in together:
        for (name, one), other in zip(net.named_parameters(), alone.parameters(), strict=True):
            assert other.grad is not None
            assert other.grad.norm() > 0
            assert (whole(one.grad) - other.grad).norm() <= TOLERANCE * other.grad.norm(), name
    for one, other in zip(net.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(whole(one.data), other.data, rtol=TOLERANCE, atol=1e-13)
    torch.testing.assert_close(run(net, mine), run(alone, x)[4 * rank : 4 * rank + 4], rtol=TOLERANCE, atol=1e-13)


def converted(model: nn.Module, *example: Tensor, **options: Any) -> Any:
    return tracecompile.convert(model, *example, backend="eager", **options)


def sequence(rank: int, **options: Any) -> None:
    for reshard in (True, False):
        require_alike(rank, lambda: converted(Net(), inputs(2), **options), lambda net, x: net(x), reshard)


def from_the_first_call(rank: int, **options: Any) -> None:
    """Captured within the hooks; beside other modules, through an encoder that learns."""
    require_alike(rank, lambda: Around(converted(Net(), **options)), lambda net, x: net(x), True)


def accumulates(rank: int) -> None:
    """Gradients of two batches are exchanged after the second alone."""
    x = inputs(8)
    net, alone = (converted(Net(), x, bins=3) for _ in range(2))
    fully_shard(net)
    for last, begin in enumerate((4 * rank, 4 * rank + 2)):
        net.set_requires_gradient_sync(bool(last))
        net(x[:, begin : begin + 2]).square().sum().backward()
    (alone(x).square().sum() / 2).backward()  # the mean over two processes
    for one, other in zip(net.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(whole(one.grad), other.grad, rtol=TOLERANCE, atol=1e-13)


def steps(rank: int, **options: Any) -> None:
    """A shared value is read at every step, from memory that is another each time."""

    def run(net: Any, x: Tensor) -> Tensor:
        net.reset()
        return sum(net(x_t) for x_t in x)

    require_alike(rank, lambda: converted(Step(), inputs(2)[0], **options), run, True)


def hands_in(rank: int) -> None:
    """States that are handed in pass through a function of the wrapper: they are still the net's."""

    def run(net: Any, x: Tensor) -> Tensor:
        v, total = None, torch.zeros(x.shape[1], OUTPUTS, dtype=torch.float64)
        for x_t in x:
            output, v = net(x_t, v)
            total = total + output
        window = session_of(net).window if torch.is_grad_enabled() else None
        assert window is None or window.record.clock.steps == STEPS, "each step began a window of its own"
        return total

    require_alike(rank, lambda: converted(HandsOut(), inputs(2)[0], bins=STEPS), run, True)


def streams(rank: int, **options: Any) -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        net.reset()
        return torch.stack(list(net.stream(iter(x)))).sum(0)

    require_alike(rank, lambda: converted(Net(), inputs(2), **options), run, True)


def precision(rank: int) -> None:
    """Weights in half precision, by the policy of the wrapper: what the model does under the same."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.enter, self.leave = nn.Linear(INPUTS, WIDTH), nn.Linear(WIDTH, OUTPUTS)

        def forward(self, x: Tensor) -> Tensor:
            v, total = x.new_zeros(x.shape[1], WIDTH), x.new_zeros(x.shape[1], OUTPUTS)
            for x_t in x:
                v = 0.9 * v + self.enter(x_t)
                z = SPIKE(v - 0.5)
                v, total = v - 0.5 * z, total + self.leave(z)
            return total

    x, found = inputs(4).float(), []
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for net in (Plain(), converted(Plain(), x, bins=STEPS)):
        fully_shard(net, mp_policy=policy)
        output = net(x)
        output.float().square().mean().backward()
        found.append((output.detach(), {name: whole(p.grad) for name, p in net.named_parameters()}))
    (theirs, wanted), (ours, gradients) = found
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, theirs)
    for name, gradient in wanted.items():
        assert gradient.norm() > 0
        assert (gradients[name] - gradient).norm() <= 0.02 * gradient.norm(), name


def refuses(rank: int, folder: str) -> None:
    """Shards of parts, the older FSDP, calls beside the hooks, and saving what is not there as a whole."""
    x = inputs(2)
    model = Net()
    fully_shard(model.enter)
    with pytest.raises(UnsupportedOperation, match=r"enter is wrapped by fully_shard.*fully_shard\(net\)"):
        tracecompile.convert(model, x)
    net = converted(Net(), x)
    fully_shard(net.enter)
    with pytest.raises(UnsupportedOperation, match=r"enter is wrapped by fully_shard.*fully_shard\(net\)"):
        net(x)
    for originals in (True, False):
        net = FullyShardedDataParallel(converted(Net(), x), use_orig_params=originals, device_id=torch.device("cpu"))
        with pytest.raises(UnsupportedOperation, match=r"flat.*fully_shard\(net\)"):
            net(x)
    net = fully_shard(converted(Net(), x))
    with pytest.raises(UnsupportedOperation, match=r"enter.weight is a DTensor.*call the net itself"):
        net.forward(x)
    with pytest.raises(UnsupportedOperation, match=r"is a DTensor.*take the whole state"):
        tracecompile.save(net, Path(folder) / f"saved{rank}")
    state = get_model_state_dict(net, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        torch.testing.assert_close(state, Net().state_dict())


def resumes(rank: int, folder: str, wrap: str) -> None:
    """A checkpoint after two steps, and on from there: as the training that was not interrupted, bit for bit."""

    def opened(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = Net(norm=wrap == "ddp")
        torch.manual_seed(seed)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.5)
        net = converted(model, inputs(2), bins=3)
        net = DistributedDataParallel(net) if wrap == "ddp" else fully_shard(net)
        return net, torch.optim.Adam(net.parameters(), lr=0.02)

    def train(net: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
        x = inputs(8)[:, 4 * rank : 4 * rank + 4]
        for _ in range(2):
            optimizer.zero_grad()
            loss = net(x).square().mean()
            loss.backward()
            optimizer.step()
        return loss.detach()

    place = Path(folder) / wrap
    net, optimizer = opened(1)
    train(net, optimizer)
    kept, moments = get_state_dict(net, optimizer)
    assert set(kept) == set(Net(norm=wrap == "ddp").state_dict()), "not the model's keys"
    checkpoint.save({"model": kept, "optimizer": moments}, checkpoint_id=place)
    expected = train(net, optimizer)
    other, again = opened(2)
    kept, moments = get_state_dict(other, again)
    state = {"model": kept, "optimizer": moments}
    checkpoint.load(state, checkpoint_id=place)
    set_state_dict(other, again, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    assert torch.equal(train(other, again), expected)
    ours, theirs = (get_model_state_dict(each, options=StateDictOptions(full_state_dict=True)) for each in (other, net))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def work(rank: int, folder: str) -> None:
    for check in (sequence, from_the_first_call, steps):
        for options in RULES:
            with naming(check, options):
                check(rank, **options)
    others: list[tuple[Callable[..., None], dict[str, Any]]] = [
        (accumulates, {}),
        (hands_in, {}),
        (streams, {"bins": 3}),
        (precision, {}),
        (refuses, {"folder": folder}),
        (resumes, {"folder": folder, "wrap": "ddp"}),
        (resumes, {"folder": folder, "wrap": "shards"}),
    ]
    for check, options in others:
        with naming(check, options):
            check(rank, **options)


@pytest.mark.filterwarnings("ignore")  # of processes that torch starts
def test_a_net_whose_weights_two_processes_share(tmp_path: Path) -> None:
    in_two_processes(work, tmp_path, str(tmp_path))
