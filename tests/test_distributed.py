"""Training over several processes, and the rest of torch's training tools, with a converted network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.processes import in_two_processes
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import tracecompile
import tracecompile.nn as snn


class Net(nn.Module):
    def __init__(self, recurrent: bool) -> None:
        super().__init__()
        make = snn.RLIF if recurrent else snn.LIF
        self.fc1, self.layer1 = nn.Linear(5, 12), make(12)
        self.fc2, self.layer2 = nn.Linear(12, 8), snn.LIF(detach_reset=False)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        state1 = state2 = None
        outputs = []
        for x_t in x:
            s1, state1 = self.layer1(self.fc1(x_t), state1)
            s2, state2 = self.layer2(self.fc2(s1), state2)
            outputs.append(self.out(s2))
        return torch.stack(outputs).mean(0)


def make(recurrent: bool) -> tuple[tracecompile.TracedModule, Tensor, Tensor]:
    torch.manual_seed(0)
    model = Net(recurrent).double()
    x = 3 * torch.rand(20, 8, 5, dtype=torch.float64)
    return tracecompile.convert(model, x, bins=4), x, torch.arange(8) % 3


def gradients(net: nn.Module) -> dict[str, Tensor]:
    found = {name.removeprefix("module."): p.grad for name, p in net.named_parameters()}
    assert all(gradient is not None and gradient.norm() > 0 for gradient in found.values())
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def part_of_the_gradient(rank: int) -> list[dict[str, Tensor]]:
    found = []
    for recurrent in (False, True):
        net, x, labels = make(recurrent)
        part = slice(rank * 4, rank * 4 + 4)
        parallel = DistributedDataParallel(net)
        nn.functional.cross_entropy(parallel(x[:, part]), labels[part]).backward()
        found.append(gradients(parallel))
    return found


@pytest.mark.filterwarnings("ignore")  # of processes that torch starts
def test_two_processes_have_the_gradient_of_the_joined_batch(tmp_path: Path) -> None:
    for found in in_two_processes(part_of_the_gradient, tmp_path):
        for recurrent, ours in zip((False, True), found, strict=True):
            net, x, labels = make(recurrent)
            nn.functional.cross_entropy(net(x), labels).backward()
            expected = gradients(net)
            assert ours.keys() == expected.keys()
            for name, gradient in expected.items():
                assert (ours[name] - gradient).norm() <= 1e-9 * gradient.norm(), name


def test_gradients_accumulate_over_backward_passes() -> None:
    net, x, labels = make(recurrent=False)
    nn.functional.cross_entropy(net(x), labels, reduction="sum").backward()
    expected = gradients(net)
    net.zero_grad()
    for part in (slice(0, 3), slice(3, 8)):
        nn.functional.cross_entropy(net(x[:, part]), labels[part], reduction="sum").backward()
    for name, gradient in gradients(net).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12)


def test_fused_optimiser_and_loader_with_workers() -> None:
    net, x, labels = make(recurrent=True)
    loader = DataLoader(TensorDataset(x.transpose(0, 1).contiguous(), labels), batch_size=4, num_workers=1)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2, fused=True)
    losses = []
    for _ in range(15):
        for batch, target in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(batch.transpose(0, 1)), target)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert sum(losses[-4:]) < sum(losses[:4])
