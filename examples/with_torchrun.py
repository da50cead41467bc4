"""Training over several processes, started by torchrun; gloo on CPUs, nccl where there are GPUs.

    torchrun --nproc-per-node 2 examples/with_torchrun.py --checkpoint runs/first
    torchrun --nproc-per-node 2 examples/with_torchrun.py --checkpoint runs/first --epochs 8 --shard

Each process converts its own model and takes its part of the data. With ``--shard`` each keeps a part of the weights as
well. After every epoch a checkpoint is written; a run that finds one goes on from it, by either way.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

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


def examples(count: int, steps: int) -> TensorDataset:
    """Spike trains in which one of three groups of channels fires more often, by sample: [sample, time, channel]."""
    labels = torch.arange(count) % CLASSES
    rates = torch.full((count, CLASSES, CHANNELS // CLASSES), 0.1)
    rates[torch.arange(count), labels] = 0.4
    return TensorDataset(torch.bernoulli(rates.flatten(1)[:, None].expand(count, steps, CHANNELS)), labels)


def weighted(loss: Tensor, count: int) -> Tensor:
    """Weighs a sum over the samples of one process so that the mean over processes is the mean over all samples."""
    total = torch.tensor(float(count), device=loss.device)
    distributed.all_reduce(total)
    return loss * distributed.get_world_size() / total


def state_of(net: nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> dict[str, Any]:
    weights, moments = get_state_dict(net, optimizer)  # by the model's own names, whatever is around it
    return {"weights": weights, "moments": moments, "epoch": epoch}


def resumed(net: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> int:
    """Goes on from the last checkpoint that is whole; returns how many epochs were done."""
    found = sorted(path.parent for path in folder.glob("*/.metadata"))
    if not found:
        return 0
    state = state_of(net, optimizer, 0)
    checkpoint.load(state, checkpoint_id=found[-1])
    set_state_dict(net, optimizer, model_state_dict=state["weights"], optim_state_dict=state["moments"])
    return int(state["epoch"])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--examples", type=int, default=99)  # the last batch is smaller than the others
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--shard", action="store_true", help="fully_shard instead of DistributedDataParallel")
    parser.add_argument("--checkpoint", type=Path, default=None, help="folder of the checkpoints")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    gpus = torch.cuda.is_available()
    distributed.init_process_group("nccl" if gpus else "gloo")
    rank, count = distributed.get_rank(), distributed.get_world_size()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpus else torch.device("cpu")
    torch.manual_seed(0)  # the same weights and examples everywhere
    data = examples(options.examples, options.steps)
    sampler = DistributedSampler(data)
    loader = DataLoader(data, batch_size=8, sampler=sampler)
    net = tracecompile.convert(Net().to(device), data[:2][0].transpose(0, 1).to(device))
    net = fully_shard(net) if options.shard else DistributedDataParallel(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)

    begun = resumed(net, optimizer, options.checkpoint) if options.checkpoint else 0
    for epoch in range(begun, options.epochs):
        sampler.set_epoch(epoch)
        for x, labels in loader:
            scores = net(x.transpose(0, 1).to(device))  # [time, batch, channel]: a part of the batch, never of the time
            loss = functional.cross_entropy(scores, labels.to(device), reduction="sum")
            optimizer.zero_grad()
            weighted(loss, len(labels)).backward()
            optimizer.step()
        if options.checkpoint:
            checkpoint.save(state_of(net, optimizer, epoch + 1), checkpoint_id=options.checkpoint / f"{epoch + 1:04}")
    if rank == 0:
        last = float(loss.detach()) / len(labels)
        print(f"{count} processes, epochs {begun} to {options.epochs}, loss {last:.3f}", flush=True)
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
