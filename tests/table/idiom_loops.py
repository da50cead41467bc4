"""Hand-written idioms: loops over time, inputs, and what a user collects."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from models import FastSigmoid, arctan
from torch import Tensor, nn
from torch.nn import functional as F

from table.harness import Entry

INPUTS, HIDDEN, OUTPUTS = 6, 7, 4
spike = FastSigmoid.apply


def linear(below: int, above: int, gain: float = 3.0) -> nn.Linear:
    made = nn.Linear(below, above)
    with torch.no_grad():
        made.weight.mul_(gain)
    return made


def sequence(steps: int, batch: int) -> tuple[Any, ...]:
    return (torch.randn(steps, batch, INPUTS),)


def batch_first(steps: int, batch: int) -> tuple[Any, ...]:
    return (torch.randn(batch, steps, INPUTS),)


def one_image(steps: int, batch: int) -> tuple[Any, ...]:
    return (torch.randn(batch, INPUTS),)


class FixedLength(nn.Module):
    """Presents a static input for self.num_steps steps and records membranes and spikes together."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.num_steps = steps
        self.fc1, self.fc2 = linear(INPUTS, HIDDEN), linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2 = x.new_zeros(x.shape[0], HIDDEN), x.new_zeros(x.shape[0], OUTPUTS)
        spk_rec, mem_rec = [], []
        for _ in range(self.num_steps):
            mem1 = 0.9 * mem1 + self.fc1(x)
            spk1 = spike(mem1 - 1.0)
            mem1 = mem1 - spk1
            mem2 = 0.9 * mem2 + self.fc2(spk1)
            spk2 = spike(mem2 - 1.0)
            mem2 = mem2 - spk2
            spk_rec.append(spk2)
            mem_rec.append(mem2)
        return torch.stack(spk_rec, dim=0), torch.stack(mem_rec, dim=0)


class StepsAsArgument(nn.Module):
    """Presents a static input for as many steps as the caller says."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = linear(INPUTS, HIDDEN), linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor, num_steps: int) -> Tensor:
        mem, total = torch.zeros_like(self.fc(x)), x.new_zeros(x.shape[0], OUTPUTS)
        for _step in range(num_steps):
            mem = 0.9 * mem + self.fc(x)
            z = spike(mem - 1.0)
            mem = mem - z
            total = total + self.out(z)
        return total / num_steps


class RepeatedInput(nn.Module):
    """Repeats a static input along a new time axis before the loop."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.T = steps
        self.fc = linear(INPUTS, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        mem = x.new_zeros(x.shape[0], HIDDEN)
        fired = []
        for x_t in x.unsqueeze(0).repeat(self.T, 1, 1):
            mem = 0.9 * mem + self.fc(x_t)
            z = spike(mem - 1.0)
            mem = mem - z
            fired.append(z)
        return torch.stack(fired).mean(0)


class Hoisted(nn.Module):
    """One big linear over the whole sequence before the loop; batch first; a preallocated result."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.rec = linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        currents = self.fc(x)
        batch, steps, _ = x.shape
        mem = spk = x.new_zeros(batch, HIDDEN)
        out = x.new_zeros(batch, steps, HIDDEN)
        for t in range(steps):
            mem = 0.9 * mem * (1 - spk.detach()) + currents[:, t] + self.rec(spk)
            spk = spike(mem - 1.0)
            out[:, t] = spk
        return out


class HoistedConvolution(nn.Module):
    """A convolution over time and batch flattened together, before the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 3, 3, padding=1), linear(3 * 4 * 4, OUTPUTS, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        steps, batch = x.shape[:2]
        features = F.avg_pool2d(self.conv(x.flatten(0, 1)), 2).view(steps, batch, 3, 4, 4)
        mem1 = mem2 = 0.0
        out = []
        for t in range(steps):
            mem1 = 0.9 * mem1 + 3 * features[t]
            z = spike(mem1 - 1.0)
            mem1 = mem1 - z
            mem2 = 0.9 * mem2 + self.fc(z.flatten(1))
            out.append(mem2)
        return torch.stack(out)


class ReadoutAfter(nn.Module):
    """Spikes are collected; the readout runs over all of them after the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = linear(INPUTS, HIDDEN), linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        mem = x.new_zeros(x.shape[1], HIDDEN)
        fired = []
        for x_t in x:
            mem = 0.9 * mem + self.fc(x_t)
            z = spike(mem - 1.0)
            mem = mem - z
            fired.append(z)
        return self.out(torch.stack(fired)).mean(0)


class ReadoutOfMean(nn.Module):
    """The readout runs once, on the mean rate."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = linear(INPUTS, HIDDEN), linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        mem = x.new_zeros(x.shape[1], HIDDEN)
        total = 0
        for x_t in x:
            mem = 0.9 * mem + self.fc(x_t)
            z = spike(mem - 1.0)
            mem = mem - z
            total = total + z
        return self.out(total / x.shape[0])


class LastOutput(nn.Module):
    """Only the last membrane of a leaky readout is returned; the time axis is the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = linear(INPUTS, HIDDEN), linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        mem, out = x.new_zeros(x.shape[0], HIDDEN), x.new_zeros(x.shape[0], OUTPUTS)
        for t in range(x.shape[-1]):
            mem = 0.9 * mem + self.fc(x[..., t])
            z = spike(mem - 1.0)
            mem = mem - z
            out = 0.9 * out + self.out(z)
        return out


class MaximumOfStack(nn.Module):
    """The largest membrane over time, of all that were stacked."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = linear(INPUTS, HIDDEN), linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        mem, out = x.new_zeros(x.shape[1], HIDDEN), x.new_zeros(x.shape[1], OUTPUTS)
        record = []
        for x_t in x:
            mem = 0.9 * mem + self.fc(x_t)
            z = spike(mem - 1.0)
            mem = mem - z
            out = 0.9 * out + self.out(z)
            record.append(out)
        return torch.stack(record).max(dim=0).values


class RunningMaximum(nn.Module):
    """The largest membrane over time, kept as the loop runs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = linear(INPUTS, HIDDEN), linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        mem, out = x.new_zeros(x.shape[1], HIDDEN), x.new_zeros(x.shape[1], OUTPUTS)
        best = torch.full_like(out, -1e9)
        for x_t in x:
            mem = 0.9 * mem + self.fc(x_t)
            z = spike(mem - 1.0)
            mem = mem - z
            out = 0.9 * out + self.out(z)
            best = torch.maximum(best, out)
        return best


class DelayList(nn.Module):
    """Spikes arrive two steps later: a list that is appended to and popped from."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.rec = linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        mem = x.new_zeros(x.shape[1], HIDDEN)
        line = [x.new_zeros(x.shape[1], HIDDEN) for _ in range(2)]
        total = x.new_zeros(x.shape[1], HIDDEN)
        for x_t in x:
            mem = 0.9 * mem + self.fc(x_t) + self.rec(line.pop(0))
            z = spike(mem - 1.0)
            mem = mem - z
            line.append(z)
            total = total + z
        return total


class DelayQueue(nn.Module):
    """The same with a deque of three steps, and inputs that are delayed too."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.rec = linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        mem = x.new_zeros(x.shape[1], HIDDEN)
        line = deque([x.new_zeros(x.shape[1], HIDDEN)] * 3, maxlen=3)
        before = torch.zeros_like(x[0])
        fired = []
        for x_t in x:
            mem = 0.9 * mem + self.fc(x_t + 0.5 * before) + self.rec(line[0])
            z = spike(mem - 1.0)
            mem = mem - z
            line.append(z)
            before = x_t
            fired.append(z)
        return torch.stack(fired)


class Ternary(nn.Module):
    """Spikes of -1, 0 and 1."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = linear(INPUTS, HIDDEN), linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        mem = x.new_zeros(x.shape[1], HIDDEN)
        record = []
        for x_t in x:
            mem = 0.9 * mem + self.fc(x_t)
            z = spike(mem - 1.0) - spike(-mem - 1.0)
            mem = mem - z
            record.append(self.out(z))
        return torch.stack(record)


class Graded(nn.Module):
    """Spikes that carry the height of the membrane."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = linear(INPUTS, HIDDEN), linear(HIDDEN, OUTPUTS)
        self.surrogate = arctan(2.0)

    def forward(self, x: Tensor) -> Tensor:
        mem, out = x.new_zeros(x.shape[1], HIDDEN), x.new_zeros(x.shape[1], OUTPUTS)
        record = []
        for x_t in x:
            mem = 0.9 * mem + self.fc(x_t)
            z = self.surrogate(mem - 1.0)
            graded = z * mem
            mem = mem * (1.0 - z)
            out = 0.9 * out + self.out(graded)
            record.append(out)
        return torch.stack(record)


class LoopingNeuron(nn.Module):
    """A layer that runs over the whole sequence by itself."""

    def __init__(self, leak: float) -> None:
        super().__init__()
        self.leak = nn.Parameter(torch.tensor(leak))

    def forward(self, currents: Tensor) -> Tensor:
        mem = torch.zeros_like(currents[0])
        fired = []
        for current in currents:
            mem = self.leak * mem + current
            z = spike(mem - 1.0)
            mem = mem - z
            fired.append(z)
        return torch.stack(fired)


class LayerByLayer(nn.Module):
    """Each layer runs over the whole sequence before the next one starts."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            linear(INPUTS, HIDDEN), LoopingNeuron(0.9), linear(HIDDEN, OUTPUTS), LoopingNeuron(0.8)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class CollectedByCat(nn.Module):
    """Outputs get a time axis each and are concatenated; the input is permuted first."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = linear(INPUTS, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(1, 0, 2)
        mem = torch.zeros(x.size(1), HIDDEN).to(x)
        fired = []
        for i in range(x.size(0)):
            mem = 0.9 * mem + self.fc(x[i, :, :])
            z = spike(mem - 1.0)
            mem = mem - z
            fired.append(z.unsqueeze(1))
        return torch.cat(fired, dim=1)


class Comprehension(nn.Module):
    """The loop is a list comprehension over a method that keeps the state."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = linear(INPUTS, HIDDEN)
        self.mem: Any = None

    def step(self, x_t: Tensor) -> Tensor:
        self.mem = 0.9 * self.mem + self.fc(x_t)
        z = spike(self.mem - 1.0)
        self.mem = self.mem - z
        return z

    def forward(self, x: Tensor) -> Tensor:
        self.mem = x.new_zeros(x.shape[1], HIDDEN)
        return torch.stack([self.step(x_t) for x_t in x])


class TwoSequences(nn.Module):
    """Two inputs in step, zipped and numbered; weights used through torch.nn.functional."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(HIDDEN, INPUTS))
        self.cue = nn.Parameter(torch.randn(3, HIDDEN))
        self.bias = nn.Parameter(torch.zeros(HIDDEN))

    def forward(self, x: Tensor, cue: Tensor) -> tuple[Tensor, Tensor]:
        mem = x.new_zeros(x.shape[1], HIDDEN)
        fired, potentials = [], []
        for _t, (x_t, cue_t) in enumerate(zip(x, cue, strict=True)):
            mem = 0.9 * mem + F.linear(x_t, self.weight, self.bias) + torch.matmul(cue_t, self.cue)
            z = spike(mem - 1.0)
            mem = mem - z
            fired.append(z)
            potentials.append(mem)
        return torch.stack(fired), torch.stack(potentials)


class ConvolutionBlocks(nn.Module):
    """Convolutions with batch normalisation, an in-place rectifier, pooling and a skip connection in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.conv2, self.bn2 = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.fc = linear(3 * 4 * 4, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        mem1 = mem2 = mem3 = 0.0
        record = []
        for x_t in x:
            mem1 = 0.8 * mem1 + F.relu(self.bn1(self.conv1(x_t)), inplace=True)
            z1 = spike(mem1 - 1.0)
            mem1 = mem1 - z1
            mem2 = 0.8 * mem2 + self.bn2(self.conv2(z1)) + z1
            z2 = spike(mem2 - 1.0)
            mem2 = mem2 - z2
            mem3 = 0.8 * mem3 + self.fc(F.max_pool2d(z2, 2).flatten(1))
            record.append(mem3)
        return torch.stack(record)


class OptionalInitialState(nn.Module):
    """A loop that takes the states of an earlier sequence, or None, and returns its own."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = linear(INPUTS, HIDDEN)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        mem, syn = state if state is not None else (x.new_zeros(x.shape[1], HIDDEN),) * 2
        fired = []
        for x_t in x:
            syn = 0.5 * syn + self.fc(x_t)
            mem = 0.9 * mem + syn
            z = spike(mem - 1.0)
            mem = mem - z
            fired.append(z)
        return torch.stack(fired), (mem, syn)


class DropoutOfMode(nn.Module):
    """One dropout mask for the whole sequence, in training only: forward asks self.training."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = linear(INPUTS, HIDDEN), linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        mem = x.new_zeros(x.shape[1], HIDDEN)
        gain = 1.25 if self.training else 1.0
        record = []
        for x_t in x:
            mem = 0.9 * mem + self.fc(x_t)
            z = spike(mem - 1.0)
            mem = mem - z
            record.append(self.out(gain * z))
        return torch.stack(record)


ENTRIES = [
    Entry("static input, fixed self.num_steps, spikes and membranes", FixedLength, one_image, build_for=FixedLength),
    Entry(
        "static input, number of steps as an argument",
        StepsAsArgument,
        lambda steps, batch: (torch.randn(batch, INPUTS), steps),
    ),
    Entry("static input repeated along time, mean rate", RepeatedInput, one_image, build_for=RepeatedInput),
    Entry("hoisted linear, batch first, preallocated result", Hoisted, batch_first),
    Entry(
        "hoisted convolution over time and batch",
        HoistedConvolution,
        lambda steps, batch: (torch.randn(steps, batch, 1, 8, 8),),
    ),
    Entry("readout over all collected spikes after the loop", ReadoutAfter, sequence),
    Entry("readout of the mean rate", ReadoutOfMean, sequence),
    Entry("last membrane, time axis last", LastOutput, lambda steps, batch: (torch.randn(batch, INPUTS, steps),)),
    Entry("maximum over stacked membranes", MaximumOfStack, sequence),
    Entry("running maximum", RunningMaximum, sequence),
    Entry("delay line in a list", DelayList, sequence),
    Entry("delay line in a deque, delayed input", DelayQueue, sequence),
    Entry("ternary spikes", Ternary, sequence),
    Entry("graded spikes", Graded, sequence),
    Entry("layer by layer over the whole sequence", LayerByLayer, sequence),
    Entry("outputs concatenated along time, permuted input", CollectedByCat, batch_first),
    Entry("list comprehension over a method with state", Comprehension, sequence),
    Entry(
        "two sequences zipped, functional weights",
        TwoSequences,
        lambda steps, batch: (torch.randn(steps, batch, INPUTS), torch.randn(steps, batch, 3)),
    ),
    Entry(
        "convolution, batch norm, in-place rectifier, pooling, skip",
        ConvolutionBlocks,
        lambda steps, batch: (2 * torch.randn(steps, batch, 1, 8, 8),),
    ),
    Entry("loop with optional initial states, returned", OptionalInitialState, sequence),
    Entry("self.training read in forward", DropoutOfMode, sequence),
]
