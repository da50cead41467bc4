"""DistributedDataParallel, started by torchrun; gloo on CPUs, nccl where there are GPUs.

    torchrun --nproc-per-node 2 examples/with_torchrun.py

Each process converts its own model and takes its part of every batch. At the end all have the same weights.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

import tracecompile
import tracecompile.nn as snn

CHANNELS, CLASSES = 12, 3


class Net(nn.Module):
    """One layer of recurrent spiking neurons and a leaky readout, averaged over time."""

    def __init__(self, hidden: int = 24) -> None:
        super().__init__()
        self.weights, self.neurons = nn.Linear(CHANNELS, hidden), snn.RLIF(hidden)
        self.output, self.readout = nn.Linear(hidden, CLASSES), snn.LI(CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        state, last, total = None, None, 0.0
        for x_t in x:
            spikes, state = self.neurons(self.weights(x_t), state)
            score, last = self.readout(self.output(spikes), last)
            total = total + score
        return total / x.shape[0]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    gpus = torch.cuda.is_available()
    distributed.init_process_group("nccl" if gpus else "gloo")
    rank, count = distributed.get_rank(), distributed.get_world_size()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpus else torch.device("cpu")
    torch.manual_seed(0)  # the same weights and batches everywhere
    example = torch.rand(options.steps, 2, CHANNELS, device=device).round()
    parallel = DistributedDataParallel(tracecompile.convert(Net().to(device), example))
    optimizer = torch.optim.Adam(parallel.parameters(), lr=1e-2)
    for _ in range(options.updates):
        labels = torch.randint(CLASSES, (8 * count,))
        rates = torch.full((len(labels), CLASSES, CHANNELS // CLASSES), 0.1)
        rates[torch.arange(len(labels)), labels] = 0.4
        x = torch.bernoulli(rates.flatten(1).expand(options.steps, len(labels), CHANNELS))
        mine = slice(8 * rank, 8 * rank + 8)  # a part of the batch, axis 1, never of the time
        optimizer.zero_grad()
        loss = functional.cross_entropy(parallel(x[:, mine].to(device)), labels[mine].to(device))
        loss.backward()
        optimizer.step()
    weights = torch.cat([each.detach().flatten() for each in parallel.parameters()])
    everywhere = [torch.empty_like(weights) for _ in range(count)]
    distributed.all_gather(everywhere, weights)
    same = all(torch.equal(each, weights) for each in everywhere)
    if rank == 0:
        print(f"{count} processes, loss {float(loss):.3f}, the same weights everywhere: {same}", flush=True)
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
