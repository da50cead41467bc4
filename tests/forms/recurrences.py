"""Recurrent models in which nothing spikes, as people write them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from support.oracle import HIDDEN, INPUTS, OUTPUTS
from torch import Tensor, nn

State = Any


class Loop(nn.Module):
    """Calls ``step`` once per time step and reads what it gives; subclasses write the step."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(HIDDEN, OUTPUTS)

    def start(self, x: Tensor) -> State:
        return x.new_zeros(x.shape[1], HIDDEN)

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        state, outs = self.start(x), []
        for x_t in x:
            h, state = self.step(x_t, state)
            outs.append(self.out(h))
        return torch.stack(outs)


# Matrices within the state update.


class GruByHand(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.x, self.h = nn.Linear(INPUTS, 3 * HIDDEN), nn.Linear(HIDDEN, 3 * HIDDEN)

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        gates = zip(self.x(x_t).chunk(3, -1), self.h(state).chunk(3, -1), strict=True)
        (reset_x, reset_h), (keep_x, keep_h), (new_x, new_h) = gates
        keep = torch.sigmoid(keep_x + keep_h)
        new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
        state = (1 - keep) * new + keep * state
        return state, state


class LstmByHand(Loop):
    """With a layer normalisation of its gates and of its cell."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h = nn.Linear(INPUTS, 4 * HIDDEN), nn.Linear(HIDDEN, 4 * HIDDEN, bias=False)
        self.of_gates, self.of_cell = nn.LayerNorm(4 * HIDDEN), nn.LayerNorm(HIDDEN)

    def start(self, x: Tensor) -> State:
        return x.new_zeros(x.shape[1], HIDDEN), x.new_zeros(x.shape[1], HIDDEN)

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        h, c = state
        i, f, g, o = self.of_gates(self.x(x_t) + self.h(h)).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(self.of_cell(c))
        return h, (h, c)


class GruCell(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(INPUTS, HIDDEN)

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        state = self.cell(x_t, state)
        return state, state


class GruCellFromNothing(GruCell):
    def start(self, x: Tensor) -> State:
        return None


class RnnCell(GruCell):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.RNNCell(INPUTS, HIDDEN, nonlinearity="relu")


class LstmCell(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(INPUTS, HIDDEN)

    def start(self, x: Tensor) -> State:
        return x.new_zeros(x.shape[1], HIDDEN), x.new_zeros(x.shape[1], HIDDEN)

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        h, c = self.cell(x_t, state)
        return h, (h, c)


class LstmCellFromNothing(LstmCell):
    def start(self, x: Tensor) -> State:
        return None


class LayerOverOneStep(Loop):
    """torch's own layer over sequences, handed one step at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(INPUTS, HIDDEN, 2)

    def start(self, x: Tensor) -> State:
        return None

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        y, state = self.layer(x_t.unsqueeze(0), state)
        return y[0], state


class StackedCells(Loop):
    """A list of states, and residual connections."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList([nn.GRUCell(INPUTS, HIDDEN), nn.GRUCell(HIDDEN, HIDDEN), nn.GRUCell(HIDDEN, HIDDEN)])

    def start(self, x: Tensor) -> State:
        return [x.new_zeros(x.shape[1], HIDDEN) for _ in self.cells]

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        following = []
        for cell, h in zip(self.cells, state, strict=True):
            h = cell(x_t, h)
            following.append(h)
            x_t = h + x_t if x_t.shape == h.shape else h
        return x_t, following


class EchoState(Loop):
    """A leaky unit with a matrix between the units."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.between = nn.Linear(INPUTS, HIDDEN), nn.Parameter(0.3 * torch.randn(HIDDEN, HIDDEN))

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        state = 0.7 * state + 0.3 * torch.tanh(self.x(x_t) + state @ self.between)
        return state, state


class DenseStateSpace(EchoState):
    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        state = F.linear(state, self.between) + self.x(x_t)
        return F.gelu(state), state


class MeanField(Loop):
    """No matrix, but a mean over the units."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Linear(INPUTS, HIDDEN)

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        state = 0.9 * state + torch.tanh(self.x(x_t) - state.mean(1, keepdim=True))
        return state, state


class DeltaRule(Loop):
    """A fast weight matrix that is corrected by what it answers."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.value = nn.Linear(INPUTS, 3), nn.Linear(INPUTS, HIDDEN)

    def start(self, x: Tensor) -> State:
        return x.new_zeros(x.shape[1], 3, HIDDEN)

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        key = F.normalize(self.key(x_t), dim=1)
        answer = torch.einsum("bk,bkv->bv", key, state)
        return answer, state + 0.5 * key.unsqueeze(2) * (self.value(x_t) - answer).unsqueeze(1)


class ConvolutionalGru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gates, self.new = nn.Conv2d(2 + 3, 6, 3, padding=1), nn.Conv2d(2 + 3, 3, 3, padding=1)
        self.out = nn.Linear(3, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        images = x.unflatten(2, (2, 3, 1))
        h = x.new_zeros(x.shape[1], 3, 3, 1)
        for image in images:
            keep, reset = torch.sigmoid(self.gates(torch.cat([image, h], 1))).chunk(2, 1)
            h = keep * h + (1 - keep) * torch.tanh(self.new(torch.cat([image, reset * h], 1)))
        return self.out(h.mean((2, 3)))


# One step a call.


class GruStep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.GRUCell(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)
        self.h: Tensor | None = None

    def reset(self) -> None:
        self.h = None

    def forward(self, x_t: Tensor) -> Tensor:
        self.h = self.cell(x_t, self.h)
        return self.out(self.h)


class LstmStep(nn.Module):
    """Keeps both states in a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.LSTMCell(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)
        self.state: tuple[Tensor, Tensor] | None = None

    def reset(self) -> None:
        self.state = None

    def forward(self, x_t: Tensor) -> Tensor:
        self.state = self.cell(x_t, self.state)
        return self.out(self.state[0])


class LstmStepHandedItsState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.LSTMCell(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x_t: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, State]:
        h, c = self.cell(x_t, state)
        return self.out(h), (h, c)


class LeakyStep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x, self.out = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)
        self.leak = nn.Parameter(torch.rand(HIDDEN))
        self.h: Tensor | None = None

    def reset(self) -> None:
        self.h = None

    def forward(self, x_t: Tensor) -> Tensor:
        drive = self.x(x_t)
        self.h = drive if self.h is None else torch.sigmoid(self.leak) * self.h + drive
        return self.out(self.h)


# Unit by unit.


class Leaky(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.x, self.leak = nn.Linear(INPUTS, HIDDEN), nn.Parameter(torch.rand(HIDDEN))

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        state = torch.sigmoid(self.leak) * state + self.x(x_t)
        return state, state


class CapitalV(Leaky):
    """As in the textbooks; ``input`` is a function of Python's, too."""

    def step(self, input: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:  # noqa: A002
        V = torch.sigmoid(self.leak) * V + self.x(input)
        return V, V


class CascadeOfIntegrators(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Linear(INPUTS, HIDDEN)
        self.slow, self.fast = nn.Parameter(1 + torch.rand(HIDDEN)), nn.Parameter(torch.rand(HIDDEN))

    def start(self, x: Tensor) -> State:
        return x.new_zeros(x.shape[1], HIDDEN), x.new_zeros(x.shape[1], HIDDEN)

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        u, v = state
        u = torch.sigmoid(self.fast) * u + self.x(x_t)
        v = torch.sigmoid(self.slow) * v + torch.tanh(u)
        return v, (u, v)


class IndependentUnits(Leaky):
    """A recurrent weight a unit, and a nonlinearity around all."""

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        state = torch.tanh(self.x(x_t) + self.leak * state)
        return state, state


class Gated(Loop):
    """The gate reads the input alone."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.x = nn.Linear(INPUTS, HIDDEN), nn.Linear(INPUTS, HIDDEN)

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        gate = torch.sigmoid(self.gate(x_t))
        state = gate * state + (1 - gate) * torch.tanh(self.x(x_t))
        return state, state


class GatedByLerp(Gated):
    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        state = torch.lerp(state, self.x(x_t), torch.sigmoid(self.gate(x_t)))
        return state, state


class DiagonalStateSpace(Loop):
    """S4D with real modes: every channel has some of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.decay, self.into = nn.Parameter(torch.rand(INPUTS, 4)), nn.Parameter(torch.randn(INPUTS, 4))
        self.read, self.past = nn.Parameter(torch.randn(INPUTS, 4)), nn.Parameter(torch.randn(INPUTS))
        self.time, self.mix = nn.Parameter(torch.rand(INPUTS, 1) - 1), nn.Linear(INPUTS, HIDDEN)

    def start(self, x: Tensor) -> State:
        return x.new_zeros(x.shape[1], INPUTS, 4)

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        step = torch.exp(self.time)
        state = torch.exp(-step * torch.exp(self.decay)) * state + step * self.into * x_t.unsqueeze(-1)
        y = (state * self.read).sum(-1) + self.past * x_t
        return self.mix(F.gelu(y)), state


class ComplexModes(Loop):
    """LRU: complex modes, written as two reals."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.read = nn.Linear(INPUTS, 2 * HIDDEN), nn.Linear(2 * HIDDEN, HIDDEN)
        self.size, self.angle = nn.Parameter(torch.rand(HIDDEN) - 1), nn.Parameter(3 * torch.rand(HIDDEN))

    def start(self, x: Tensor) -> State:
        return x.new_zeros(x.shape[1], HIDDEN), x.new_zeros(x.shape[1], HIDDEN)

    def modes(self) -> tuple[Tensor, Tensor]:
        size = torch.exp(-torch.exp(self.size))
        return size * torch.cos(self.angle), size * torch.sin(self.angle)

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        real, imag = state
        a, b = self.modes()
        to_real, to_imag = self.x(x_t).chunk(2, -1)
        real, imag = a * real - b * imag + to_real, b * real + a * imag + to_imag
        return self.read(torch.cat([real, imag], -1)), (real, imag)


class ComplexModesInOneTensor(ComplexModes):
    """The halves of one state; taking it apart and putting it together mixes no units."""

    def start(self, x: Tensor) -> State:
        return x.new_zeros(x.shape[1], 2 * HIDDEN)

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        real, imag = state.chunk(2, -1)
        a, b = self.modes()
        state = torch.cat([a * real - b * imag, b * real + a * imag], -1) + self.x(x_t)
        return self.read(state), state


class ComplexModesSideBySide(ComplexModes):
    def start(self, x: Tensor) -> State:
        return x.new_zeros(x.shape[1], HIDDEN, 2)

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        a, b = self.modes()
        turned = torch.view_as_real(torch.complex(a, b) * torch.view_as_complex(state))
        state = turned + self.x(x_t).unflatten(-1, (HIDDEN, 2))
        return self.read(state.flatten(-2)), state


class ComplexState(ComplexModes):
    """A complex tensor from step to step."""

    def start(self, x: Tensor) -> State:
        return torch.complex(x.new_zeros(x.shape[1], HIDDEN), x.new_zeros(x.shape[1], HIDDEN))

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        state = torch.complex(*self.modes()) * state + torch.complex(*self.x(x_t).chunk(2, -1))
        return self.read(torch.cat([state.real, state.imag], -1)), state


class SelectiveStateSpace(Loop):
    """As in Mamba: the input says how much of it is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.time = nn.Linear(INPUTS, HIDDEN), nn.Linear(INPUTS, HIDDEN)
        self.into, self.read = nn.Linear(INPUTS, 3), nn.Linear(INPUTS, 3)
        self.decay = nn.Parameter(torch.rand(HIDDEN, 3))

    def start(self, x: Tensor) -> State:
        return x.new_zeros(x.shape[1], HIDDEN, 3)

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        step = F.softplus(self.time(x_t)).unsqueeze(-1)
        drive = step * self.into(x_t).unsqueeze(1) * self.x(x_t).unsqueeze(-1)
        state = torch.exp(-step * torch.exp(self.decay)) * state + drive
        return (state * self.read(x_t).unsqueeze(1)).sum(-1), state


class LinearAttention(Loop):
    """A matrix as a state, to which outer products are added."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(INPUTS, 3), nn.Linear(INPUTS, 3), nn.Linear(INPUTS, HIDDEN)

    def start(self, x: Tensor) -> State:
        return x.new_zeros(x.shape[1], 3, HIDDEN)

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        state = 0.9 * state + self.key(x_t).unsqueeze(2) * self.value(x_t).unsqueeze(1)
        return torch.einsum("bk,bkv->bv", self.query(x_t), state), state


class WeightedAverage(Loop):
    """As in RWKV: numerator, denominator and the exponent that both are scaled by."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.value = nn.Linear(INPUTS, HIDDEN, bias=False), nn.Linear(INPUTS, HIDDEN)
        self.decay, self.now = nn.Parameter(torch.rand(HIDDEN) - 1), nn.Parameter(torch.rand(HIDDEN))

    def start(self, x: Tensor) -> State:
        zero = x.new_zeros(x.shape[1], HIDDEN)
        return zero, zero, zero - 1e3

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        top, bottom, scale = state
        key, value = self.key(x_t), self.value(x_t)
        largest = torch.maximum(scale, self.now + key)
        old, new = torch.exp(scale - largest), torch.exp(self.now + key - largest)
        y = (old * top + new * value) / (old * bottom + new)
        faded = scale - torch.exp(self.decay)
        largest = torch.maximum(faded, key)
        old, new = torch.exp(faded - largest), torch.exp(key - largest)
        return y, (old * top + new * value, old * bottom + new, largest)


class DelayLine(Loop):
    """A filter over the last inputs, and nothing that adds up."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.taps = nn.Linear(INPUTS, HIDDEN), nn.Parameter(torch.randn(4, 1, HIDDEN))

    def start(self, x: Tensor) -> State:
        return x.new_zeros(4, x.shape[1], HIDDEN)

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        state = torch.cat([state[1:], self.x(x_t).unsqueeze(0)])
        return torch.tanh((self.taps * state).sum(0)), state


class DetachedFeedback(EchoState):
    """What comes back through the matrix teaches nobody."""

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        state = 0.7 * state + 0.3 * torch.tanh(self.x(x_t) + state.detach() @ self.between)
        return state, state


MIXED: list[type[nn.Module]] = [
    GruByHand, LstmByHand, GruCell, GruCellFromNothing, RnnCell, LstmCell, LstmCellFromNothing, LayerOverOneStep,
    StackedCells, EchoState, DenseStateSpace, MeanField, DeltaRule, ConvolutionalGru,
]  # fmt: skip
"""Their units hear each other within the state update."""

MIXED_STEPS: list[type[nn.Module]] = [GruStep, LstmStep, LstmStepHandedItsState]

BY_UNIT: list[type[nn.Module]] = [
    Leaky, CapitalV, CascadeOfIntegrators, IndependentUnits, Gated, GatedByLerp, DiagonalStateSpace, ComplexModes,
    ComplexModesInOneTensor, ComplexModesSideBySide, SelectiveStateSpace, LinearAttention, WeightedAverage, DelayLine,
    DetachedFeedback,
]  # fmt: skip
"""Every unit goes on from itself alone."""
