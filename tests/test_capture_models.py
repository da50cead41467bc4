"""Hand-written spiking networks, one for each way in which people write them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

INPUTS, HIDDEN, OUTPUTS, FIXED_STEPS = 4, 5, 3, 6


class Spike(torch.autograd.Function):
    """Heaviside step with a fast-sigmoid surrogate gradient."""

    @staticmethod
    def forward(ctx: Any, voltage: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(voltage)
        return (voltage > 0).float()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (voltage,) = ctx.saved_tensors
        return gradient / (1 + 10 * voltage.abs()) ** 2


class SlopedSpike(torch.autograd.Function):
    """The same in the setup_context style, with a constant argument."""

    @staticmethod
    def forward(voltage: torch.Tensor, slope: float) -> torch.Tensor:
        return (voltage > 0).to(voltage.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.slope = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        (voltage,) = ctx.saved_tensors
        return gradient / (1 + ctx.slope * voltage.abs()) ** 2, None


spike = Spike.apply


class LoopOverShape(nn.Module):
    """A: range(x.shape[0]), states in locals, lateral weights, the outputs stacked."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(INPUTS, HIDDEN)
        self.rec = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.beta = nn.Parameter(torch.tensor(0.9))

    def forward(self, x):
        mem = torch.zeros(x.shape[1], HIDDEN, device=x.device)
        spk = torch.zeros(x.shape[1], HIDDEN, device=x.device)
        outs = []
        for t in range(x.shape[0]):
            mem = self.beta * mem + self.fc(x[t]) + self.rec(spk) - spk.detach()
            spk = spike(mem - 1)
            outs.append(spk)
        return torch.stack(outs), mem


class LoopOfFixedLength(nn.Module):
    """B: range(self.T), the last output returned."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(INPUTS, HIDDEN)
        self.rec = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.T = FIXED_STEPS

    def forward(self, x):
        mem = x.new_zeros(x.shape[1], HIDDEN)
        spk = x.new_zeros(x.shape[1], HIDDEN)
        for t in range(self.T):
            mem = 0.9 * mem + self.fc(x[t]) + self.rec(spk)
            spk = spike(mem - 1)
            mem = mem - spk
        return spk


class StatesFromZero(nn.Module):
    """C: for x_t in x, the states start as Python numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(INPUTS, HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, OUTPUTS)
        self.leak = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        mem1 = mem2 = 0.0
        outs = []
        for x_t in x:
            mem1 = torch.sigmoid(self.leak) * mem1 + self.fc1(x_t)
            spk1 = spike(mem1 - 1)
            mem1 = mem1 - spk1
            mem2 = 0.8 * mem2 + self.fc2(spk1)
            outs.append(mem2)
        return torch.stack(outs, dim=1)


class LazyLif(nn.Module):
    """A neuron that makes its state when it needs one."""

    def __init__(self) -> None:
        super().__init__()
        self.mem = None
        self.beta = 0.9

    def forward(self, current):
        if self.mem is None:
            self.mem = torch.zeros_like(current)
        self.mem = self.beta * self.mem + current
        out = spike(self.mem - 1)
        self.mem = self.mem - out.detach()
        return out


class LazyStep(nn.Module):
    """D: one step, the states in submodules."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(INPUTS, HIDDEN)
        self.lif1 = LazyLif()
        self.fc2 = nn.Linear(HIDDEN, OUTPUTS)
        self.lif2 = LazyLif()

    def forward(self, x_t):
        return self.lif2(self.fc2(self.lif1(self.fc1(x_t))))


class LazyLoop(nn.Module):
    """D2: the same layers in a loop of fixed length; forward resets them itself."""

    def __init__(self) -> None:
        super().__init__()
        self.step = LazyStep()

    def forward(self, x):
        self.step.lif1.mem = None
        self.step.lif2.mem = None
        return sum(self.step(x[t]) for t in range(FIXED_STEPS))


class BufferInPlace(nn.Module):
    """E: one step, a buffer written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(INPUTS, HIDDEN)
        self.register_buffer("mem", torch.zeros(1, HIDDEN))

    def forward(self, x_t):
        if self.mem.shape[0] != x_t.shape[0]:
            self.mem = self.mem.expand(x_t.shape[0], HIDDEN).clone()
        self.mem = self.mem.detach() if not self.mem.requires_grad else self.mem
        self.mem = self.mem.clone()
        self.mem.mul_(0.9)
        self.mem.add_(self.fc(x_t))
        out = spike(self.mem - 1)
        self.mem = self.mem.clone()
        self.mem.sub_(out.detach())
        return out


class BufferWrittenPlainly(nn.Module):
    """E: the plain form, whose batch size is that of its buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(INPUTS, HIDDEN)
        self.register_buffer("mem", torch.zeros(2, HIDDEN))

    def forward(self, x_t):
        self.mem.mul_(0.9).add_(self.fc(x_t))
        out = spike(self.mem - 1)
        self.mem.sub_(out.detach())
        return out


class BufferReassigned(nn.Module):
    """E2: one step, a buffer assigned anew."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(INPUTS, HIDDEN)
        self.register_buffer("mem", torch.full((HIDDEN,), 0.25))

    def forward(self, x_t):
        self.mem = 0.9 * self.mem + self.fc(x_t)
        out = spike(self.mem - 1)
        self.mem = self.mem - out
        return out


class FloatState(nn.Module):
    """One step whose state starts as a Python number."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(INPUTS, HIDDEN)
        self.mem = 0.0

    def forward(self, x_t):
        self.mem = 0.9 * self.mem + self.fc(x_t)
        out = spike(self.mem - 1)
        self.mem = self.mem - out
        return out


class NestedState(nn.Module):
    """F: a step function over nested tuples."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(INPUTS, HIDDEN)
        self.rec = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.fc2 = nn.Linear(HIDDEN, OUTPUTS)
        self.beta = nn.Parameter(torch.tensor(0.9))

    def forward(self, x_t, state):
        (mem1, spk1), (mem2,) = state
        mem1 = self.beta * mem1 + self.fc1(x_t) + self.rec(spk1) - spk1.detach()
        spk1 = spike(mem1 - 1)
        mem2 = self.beta * mem2 + self.fc2(spk1)
        return spike(mem2 - 1), ((mem1, spk1), (mem2,))


class NestedLoop(nn.Module):
    """F2: the step function in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.step = NestedState()

    def forward(self, x):
        batch = x.size(1)
        zeros = x.new_zeros(batch, HIDDEN)
        state = ((zeros, zeros), (x.new_zeros(batch, OUTPUTS),))
        outs = []
        for t in range(x.size(0)):
            out, state = self.step(x[t], state)
            outs.append(out)
        return torch.stack(outs).mean(0), state


class LifState(NamedTuple):
    """State of G."""

    v: torch.Tensor
    i: torch.Tensor


class NamedState(nn.Module):
    """G: a step over a NamedTuple."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(INPUTS, HIDDEN)

    def forward(self, x_t, state: LifState):
        i = 0.8 * state.i + self.fc(x_t)
        v = 0.9 * state.v + i
        out = spike(v - 1)
        return out, LifState(v=v - out, i=i)


class OptionalState(nn.Module):
    """H: a step that makes its state when none is given."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(INPUTS, HIDDEN)

    def forward(self, x_t, mem=None):
        if mem is None:
            mem = torch.zeros(x_t.shape[0], HIDDEN)
        mem = 0.9 * mem + self.fc(x_t)
        out = spike(mem - 1)
        return out, mem - out


class StraightThrough(nn.Module):
    """I: no autograd.Function; the gradient passes by detach."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(INPUTS, HIDDEN)

    def forward(self, x):
        mem = x.new_zeros(x.shape[1], HIDDEN)
        outs = []
        for t in range(FIXED_STEPS):
            mem = 0.9 * mem + self.fc(x[t])
            hard = (mem > 1).float()
            soft = torch.sigmoid(4 * (mem - 1))
            out = hard.detach() + soft - soft.detach()
            mem = torch.where(mem > 1, torch.zeros_like(mem), mem)
            outs.append(out)
        return torch.stack(outs)


class TwoStates(nn.Module):
    """J: a step over two plain tensors, the surrogate with a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(INPUTS, HIDDEN)

    def forward(self, x_t, syn, mem):
        syn = 0.8 * syn + self.fc(x_t)
        mem = 0.9 * mem + syn
        out = SlopedSpike.apply(mem - 1, 25.0)
        return out, syn, mem - out


def make_surrogate(slope: float):
    """Returns a surrogate as a closure."""

    def surrogate(voltage):
        return SlopedSpike.apply(voltage, slope)

    return surrogate


class ClosureSurrogate(nn.Module):
    """K: a step whose surrogate is a closure, with the reset gate computed under no_grad."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(INPUTS, HIDDEN)
        self.surrogate = make_surrogate(10.0)
        self.mem = None

    def forward(self, x_t):
        current = self.fc(x_t)
        if self.mem is None:
            self.mem = torch.zeros_like(current)
        with torch.no_grad():
            reset = (self.mem > 1).float()
        self.mem = 0.9 * self.mem + current - reset
        return self.surrogate(self.mem - 1)


class Preallocated(nn.Module):
    """M: the outputs are written into a tensor made before the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(INPUTS, HIDDEN)

    def forward(self, x):
        T, B, _ = x.shape
        out = torch.zeros(T, B, HIDDEN)
        mem = torch.zeros(B, HIDDEN)
        for t in range(T):
            mem = 0.9 * mem + self.fc(x[t])
            spk = spike(mem - 1)
            mem = mem - spk
            out[t] = spk
        return out


class BatchFirst(nn.Module):
    """N: batch first, the input product hoisted out of the loop, hard reset."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(INPUTS, HIDDEN)

    def forward(self, x):
        currents = self.fc(x)
        mem = torch.zeros(x.shape[0], HIDDEN)
        outs = []
        for t in range(x.shape[1]):
            mem = 0.9 * mem + currents[:, t]
            spk = spike(mem - 1)
            mem = mem * (1 - spk.detach())
            outs.append(spk.unsqueeze(1))
        return torch.cat(outs, dim=1)


class FirstStepApart(nn.Module):
    """O: unbind, and a first step that is written differently."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(INPUTS, HIDDEN)

    def forward(self, x):
        mem = None
        outs = []
        for x_t in x.unbind(0):
            current = self.fc(x_t)
            mem = current if mem is None else 0.9 * mem + current
            spk = spike(mem - 1)
            mem = mem - spk
            outs.append(spk)
        return outs


class WhileLoop(nn.Module):
    """P: while, an accumulator, and the counter used after the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(INPUTS, HIDDEN)

    def forward(self, x):
        t = 0
        mem = torch.zeros(x.shape[1], HIDDEN)
        acc = torch.zeros(x.shape[1], HIDDEN)
        while t < x.shape[0]:
            mem = 0.9 * mem + self.fc(x[t])
            spk = spike(mem - 1)
            mem = mem - spk
            acc += spk
            t += 1
        return acc / t


class DictState(nn.Module):
    """Q: a step over a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(INPUTS, HIDDEN)

    def forward(self, x_t, state):
        mem = 0.9 * state["mem"] + self.fc(x_t) - state["spk"]
        out = spike(mem - 1)
        return out, {"mem": mem, "spk": out}


class DelayLine(nn.Module):
    """S: a list of past spikes, the one before the last is read."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(INPUTS, HIDDEN)
        self.rec = nn.Linear(HIDDEN, HIDDEN, bias=False)

    def forward(self, x):
        history = [torch.zeros(x.shape[1], HIDDEN), torch.zeros(x.shape[1], HIDDEN)]
        mem = torch.zeros(x.shape[1], HIDDEN)
        for t in range(x.shape[0]):
            mem = 0.9 * mem + self.fc(x[t]) + self.rec(history[-2])
            out = spike(mem - 1)
            history.append(out)
        return history[-1], torch.stack(history[2:])


class BranchOnSpikes(nn.Module):
    """L: control flow that depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(INPUTS, HIDDEN)
        self.mem = None

    def forward(self, x_t):
        current = self.fc(x_t)
        self.mem = current if self.mem is None else 0.9 * self.mem + current
        out = spike(self.mem - 1)
        if out.sum() > 0:  # the refused line
            self.mem = self.mem - out
        return out


class BodyDependsOnTime(nn.Module):
    """U: every other step is another one."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(INPUTS, HIDDEN)

    def forward(self, x):
        mem = torch.zeros(x.shape[1], HIDDEN)
        for t in range(x.shape[0]):
            mem = 0.9 * mem + self.fc(x[t])
            if t % 2 == 0:
                mem = mem - spike(mem - 1)  # the refused line
        return mem


class WeightedByTime(nn.Module):
    """The step number enters the arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(INPUTS, HIDDEN)

    def forward(self, x):
        mem = torch.zeros(x.shape[1], HIDDEN)
        acc = torch.zeros(x.shape[1], HIDDEN)
        for t in range(x.shape[0]):
            mem = 0.9 * mem + self.fc(x[t])
            acc = acc + spike(mem - 1) * t  # the refused line
        return acc


class NoState(nn.Module):
    """Nothing lives from one step to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(INPUTS, HIDDEN)

    def forward(self, x):
        return torch.stack([spike(self.fc(x[t])) for t in range(x.shape[0])])


def test_neurons_fire_and_stay_silent() -> None:
    """Inputs of the size that the tests use reach both branches of the threshold."""
    torch.manual_seed(3)
    out, _ = LoopOverShape()(6 * torch.randn(11, 3, INPUTS))
    assert 0.1 < out.detach().mean() < 0.9
