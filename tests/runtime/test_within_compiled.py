"""A net that torch.compile compiles, alone or with layers around it: run by itself, in no graph of the compiler."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

import tracecompile
from runtime.nets import Step, Whole, assert_same, events, gradients, twins


@pytest.fixture(autouse=True)
def _compiler_reset() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Framed(nn.Module):
    """Layers before a net and after it."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.before, self.middle, self.after = nn.Linear(5, 5).double(), middle, nn.Linear(3, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.after(self.middle(self.before(x).tanh()).relu())
        return result


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler's, at any call that it leaves out
@pytest.mark.parametrize("captured", [True, False], ids=["captured", "first call"])
def test_layers_around_a_net_are_compiled_without_it(captured: bool) -> None:
    model, twin = twins(Whole)
    net = tracecompile.convert(model, events(6, 2) if captured else None, bins=12, backend="eager")
    framed, wanted, counter = Framed(net), Framed(twin), CompileCounter()
    whole = torch.compile(framed, backend=counter)
    for steps, batch in ((5, 2), (7, 3), (9, 4), (12, 4)):
        x = events(steps, batch)
        assert torch.equal(whole(x), wanted(x))
    assert 1 <= counter.frame_count <= 6
    assert counter.op_count <= 6 * 5, "the compiler has looked into the net"
    whole(x).square().mean().backward()
    wanted(x).square().mean().backward()
    for one, other in ((framed, wanted), (model, twin)):
        assert_same(gradients(one), gradients(other))


def test_a_net_by_itself_is_no_graph() -> None:
    model, twin = twins(Whole)
    net, counter = tracecompile.convert(model, events(6, 2), bins=9, backend="eager"), CompileCounter()
    whole, x = torch.compile(net, backend=counter), events(9, 4)
    for _ in range(2):
        whole(x).square().mean().backward()
        twin(x).square().mean().backward()
        assert_same(gradients(model), gradients(twin))
    assert counter.op_count == 0


def test_a_loop_over_a_net_of_one_step_is_compiled_without_it() -> None:
    model, twin = twins(Step)
    net = tracecompile.convert(model, events(1, 4)[0], bins=6, backend="eager")

    def total(module: nn.Module, x: Tensor) -> Tensor:
        value = torch.zeros((), dtype=x.dtype)
        for x_t in x:
            value = value + module(x_t).square().sum()
        return value

    x = events(6, 4)
    for _ in range(2):
        net.reset()
        twin.reset()
        found, wanted = torch.compile(total, backend="eager")(net, x), total(twin, x)
        assert torch.equal(found, wanted)
        found.backward()
        wanted.backward()
        assert_same(gradients(model), gradients(twin))
