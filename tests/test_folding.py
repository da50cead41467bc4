"""What is computed for many steps at once: never anything that mixes the samples of a batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tracecompile
import tracecompile.nn as snn
from tracecompile.runtime.module import session_of

BATCH, STEPS, FEATURES = 4, 11, 6

MIXING: dict[str, Callable[[Tensor], Tensor]] = {
    "mean over the batch": lambda z: z - z.mean(0, keepdim=True),
    "mean over everything": lambda z: z - z.mean(),
    "sum over the batch": lambda z: z + z.sum(0),
    "softmax over the batch": lambda z: 3 * z.softmax(0),
    "rolled over the batch": lambda z: z.roll(1, 0),
    "flipped": lambda z: z.flip(0),
    "cumulative sum": lambda z: z.cumsum(0),
    "first sample": lambda z: z + z[0],
    "slice of the batch": lambda z: torch.cat([z[2:], z[:2]]),
    "samples by their numbers": lambda z: z[[3, 2, 1, 0], :],
    "every other sample": lambda z: torch.cat([z[::2, :], z[1::2, :]]),
    "concatenated over the batch": lambda z: torch.cat([z, z], 0)[::2],
    "product with itself": lambda z: z @ z.transpose(0, 1) @ z / FEATURES,
    "reshaped across samples": lambda z: z.reshape(FEATURES, BATCH).transpose(0, 1).contiguous(),
    "flattened": lambda z: z.flatten().roll(1).view(BATCH, FEATURES),
    "largest of the batch": lambda z: z - 0.1 * z.amax(0, keepdim=True),
    "standard deviation of the batch": lambda z: z / (1 + z.std(0)),
}
ALONE: dict[str, Callable[[Tensor], Tensor]] = {
    "mean of a sample": lambda z: z - z.mean(1, keepdim=True),
    "softmax of a sample": lambda z: 3 * z.softmax(-1),
    "reshaped within samples": lambda z: z.view(-1, 2, FEATURES // 2).flatten(1),
    "concatenated within samples": lambda z: torch.cat([z, -z], 1)[:, 3:9],
    "product of a sample": lambda z: F.linear(z, torch.eye(FEATURES, dtype=z.dtype)),
    "groups of a sample": lambda z: F.group_norm(z, 2),
    "smallest of a sample": lambda z: z - 0.1 * z.amin(1, keepdim=True),
    "logarithm of shares": lambda z: F.log_softmax(z, 1) + 2,
    "product by its matrix": lambda z: torch.mm(z, torch.eye(FEATURES, dtype=z.dtype)),
    "unflattened within samples": lambda z: z.unflatten(1, (2, -1)).flatten(1),
    "elementwise": lambda z: z.tanh() * 2 + z.abs().clamp(max=1.0),
}


class Net(nn.Module):
    """An operation between two layers; scores [batch, 3]."""

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.operation = operation
        self.fc1, self.lif1 = nn.Linear(5, FEATURES), snn.LIF(leak=0.8)
        self.fc2, self.lif2 = nn.Linear(FEATURES, FEATURES), snn.LIF(leak=0.9)
        self.out = nn.Linear(FEATURES, 3)

    def forward(self, x: Tensor) -> Tensor:
        state1 = state2 = None
        total = 0.0
        for x_t in x:
            s1, state1 = self.lif1(self.operation(self.fc1(x_t)), state1)
            s2, state2 = self.lif2(self.operation(self.fc2(s1)), state2)
            total = total + self.out(s2)
        return total / x.shape[0]


def trained(net: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    outputs = net(x)
    return outputs.detach(), list(torch.autograd.grad(outputs.square().sum(), list(net.parameters())))


@pytest.mark.parametrize("name", [*MIXING, *ALONE])
def test_chunks_compute_what_single_steps_compute(name: str) -> None:
    torch.manual_seed(0)
    operation = {**MIXING, **ALONE}[name]
    model = Net(operation).double()
    x = 3 * torch.rand(STEPS, BATCH, 5, dtype=torch.float64)
    reference = tracecompile.convert(model, x, backend="eager", chunk=1, bins=2)
    chunked = tracecompile.convert(model, x, backend="eager", chunk=4, bins=2)
    expected, theirs = trained(reference, x)
    found, ours = trained(chunked, x)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert expected.norm() > 0
    assert sum(float(gradient.norm()) for gradient in theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("operations", "folded"), [(MIXING, False), (ALONE, True)], ids=["mixing", "alone"])
def test_what_is_computed_at_once(operations: dict[str, Callable[[Tensor], Tensor]], folded: bool) -> None:
    x = torch.rand(STEPS, BATCH, 5)
    for name, operation in operations.items():
        net = tracecompile.convert(Net(operation), x, backend="eager", chunk=4)
        executor = session_of(net).executor
        assert executor is not None
        folds = [unit.fold is not None for unit in executor.program.units[:2]]
        assert folds == [folded, folded], name
