"""Hand-written idioms: where a user keeps the state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from models import FastSigmoid, SetupSigmoid, arctan, straight_through
from torch import Tensor, nn

from table import idiom_loops
from table.harness import Entry

INPUTS, HIDDEN, OUTPUTS = 6, 7, 4
spike = FastSigmoid.apply
ARCTAN = arctan(2.0)


def linear(below: int, above: int, gain: float = 3.0) -> nn.Linear:
    """Returns a linear layer whose weights make neurons fire."""
    made = nn.Linear(below, above)
    with torch.no_grad():
        made.weight.mul_(gain)
    return made


def sequence(steps: int, batch: int) -> tuple[Any, ...]:
    return (torch.randn(steps, batch, INPUTS),)


def batch_first(steps: int, batch: int) -> tuple[Any, ...]:
    return (torch.randn(batch, steps, INPUTS),)


def one_step(steps: int, batch: int) -> tuple[Any, ...]:
    return (torch.randn(batch, INPUTS),)


class Locals(nn.Module):
    """States in local variables, started with torch.zeros; a lateral weight."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.rec, self.out = linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, HIDDEN, bias=False), linear(HIDDEN, 3)

    def forward(self, x: Tensor) -> Tensor:
        mem = torch.zeros(x.shape[1], HIDDEN, device=x.device, dtype=x.dtype)
        spk = torch.zeros(x.shape[1], HIDDEN, device=x.device, dtype=x.dtype)
        readout = torch.zeros(x.shape[1], 3, device=x.device, dtype=x.dtype)
        record = []
        for t in range(x.shape[0]):
            mem = 0.9 * mem + self.fc(x[t]) + self.rec(spk)
            spk = spike(mem - 1.0)
            mem = mem - spk.detach()
            readout = 0.8 * readout + self.out(spk)
            record.append(readout)
        return torch.stack(record)


def lif(current: Tensor, state: tuple[Tensor, Tensor], leak: float) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """One step of a current-based neuron, as a function."""
    synapse, voltage = state
    synapse = 0.6 * synapse + current
    voltage = leak * voltage + synapse
    fired = spike(voltage - 1.0)
    return fired, (synapse, voltage * (1.0 - fired))


class Tuples(nn.Module):
    """A tuple of states for each layer, handed through a helper function."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = linear(INPUTS, HIDDEN), linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        zeros = x.new_zeros(x.size(1), HIDDEN)
        first, second = (zeros, zeros), (x.new_zeros(x.size(1), OUTPUTS), x.new_zeros(x.size(1), OUTPUTS))
        counts = x.new_zeros(x.size(1), OUTPUTS)
        for t in range(x.size(0)):
            fired, first = lif(self.fc1(x[t]), first, 0.9)
            fired, second = lif(self.fc2(fired), second, 0.8)
            counts = counts + fired
        return counts


class NestedTuples(nn.Module):
    """All states in one nested tuple, handed from call to call by the user."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = linear(INPUTS, HIDDEN), linear(HIDDEN, OUTPUTS)

    def forward(self, x_t: Tensor, state: Any) -> tuple[Tensor, Any]:
        first, (second, last) = state
        fired, first = lif(self.fc1(x_t), first, 0.9)
        fired, second = lif(self.fc2(fired), second, 0.8)
        last = 0.9 * last + fired
        return last, (first, (second, last))


def nested_arguments(steps: int, batch: int) -> tuple[Any, ...]:
    hidden, out = (torch.zeros(batch, HIDDEN) for _ in range(2)), (torch.zeros(batch, OUTPUTS) for _ in range(3))
    return torch.randn(batch, INPUTS), (tuple(hidden), ((next(out), next(out)), next(out)))


class Adaptive(NamedTuple):
    """State of an adaptive neuron."""

    voltage: Tensor
    threshold: Tensor


class NamedTuples(nn.Module):
    """State in a NamedTuple, replaced at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = linear(INPUTS, HIDDEN)
        self.leak = nn.Parameter(torch.full((HIDDEN,), 0.85))

    def forward(self, x: Tensor) -> tuple[Tensor, Adaptive]:
        state = Adaptive(torch.zeros_like(self.fc(x[0])), torch.zeros_like(self.fc(x[0])))
        fired = []
        for x_t in x.unbind(0):
            voltage = self.leak * state.voltage + self.fc(x_t)
            z = SetupSigmoid.apply(voltage - 1.0 - 0.2 * state.threshold, 5.0)
            state = state._replace(voltage=voltage - z, threshold=0.95 * state.threshold + z)
            fired.append(z)
        return torch.stack(fired), state


class Dictionaries(nn.Module):
    """Layers in a ModuleDict, their membranes in a dictionary with the same keys."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"hidden": linear(INPUTS, HIDDEN), "out": linear(HIDDEN, OUTPUTS)})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        mem = {name: x.new_zeros(x.shape[1], layer.out_features) for name, layer in self.layers.items()}
        record: dict[str, list[Tensor]] = {name: [] for name in self.layers}
        for t in range(len(x)):
            signal = x[t]
            for name, layer in self.layers.items():
                mem[name] = 0.9 * mem[name] + layer(signal)
                signal = spike(mem[name] - 1.0)
                mem[name] = mem[name] - signal
                record[name].append(signal)
        return {name: torch.stack(fired) for name, fired in record.items()}


@dataclass(frozen=True)
class Membrane:
    """State of a neuron, immutable."""

    v: Tensor
    i: Tensor


class Dataclasses(nn.Module):
    """State in a frozen dataclass; a while loop."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = linear(INPUTS, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        steps, batch = x.shape[0], x.shape[1]
        state = Membrane(x.new_zeros(batch, HIDDEN), x.new_zeros(batch, HIDDEN))
        t, total = 0, x.new_zeros(batch, HIDDEN)
        while t < steps:
            state = replace(state, i=0.5 * state.i + self.fc(x[t]))
            v = 0.9 * state.v + state.i
            fired = spike(v - 1.0)
            state = replace(state, v=v - fired)
            total = total + fired
            t += 1
        return total / steps


class AttributeNeuron(nn.Module):
    """Keeps its membrane in an attribute and makes it when it is missing."""

    def __init__(self, surrogate: Callable[[Tensor], Tensor] = ARCTAN) -> None:
        super().__init__()
        self.surrogate = surrogate
        self.leak = nn.Parameter(torch.tensor(0.9))
        self.mem: Tensor | None = None

    def forward(self, current: Tensor) -> Tensor:
        if self.mem is None:
            self.mem = torch.zeros_like(current)
        self.mem = self.leak * self.mem + current
        fired = self.surrogate(self.mem - 1.0)
        self.mem = self.mem - fired.detach()
        return fired


class AttributesReset(nn.Module):
    """Sub-modules with their own state, which forward clears before its loop; batch first."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1 = linear(INPUTS, HIDDEN), AttributeNeuron()
        self.fc2, self.lif2 = linear(HIDDEN, OUTPUTS), AttributeNeuron()

    def forward(self, x: Tensor) -> Tensor:
        self.lif1.mem = self.lif2.mem = None
        fired = []
        for t in range(x.shape[1]):
            fired.append(self.lif2(self.fc2(self.lif1(self.fc1(x[:, t])))))
        return torch.stack(fired, dim=1)


class AttributeSteps(nn.Module):
    """The same neurons in a Sequential of which each call is one step."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(linear(INPUTS, HIDDEN), AttributeNeuron(), linear(HIDDEN, OUTPUTS), AttributeNeuron())

    def forward(self, x_t: Tensor) -> Tensor:
        return self.net(x_t)


def neurons(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if hasattr(module, "mem")]


def forget(model: nn.Module) -> None:
    for module in neurons(model):
        module.mem = None


class BuffersReassigned(nn.Module):
    """A step with its state in buffers that are assigned anew, one row that broadcasts over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = linear(INPUTS, HIDDEN)
        self.register_buffer("mem", torch.zeros(1, HIDDEN))
        self.register_buffer("spk", torch.zeros(1, HIDDEN))

    def forward(self, x_t: Tensor) -> Tensor:
        self.mem = 0.9 * self.mem * (1 - self.spk) + self.fc(x_t)
        self.spk = straight_through(self.mem - 1.0)
        return self.spk


def zero_buffers(model: nn.Module) -> None:
    for name, buffer in model.named_buffers():
        setattr(model, name, torch.zeros_like(buffer[:1] if model.fc.out_features == buffer.shape[-1] else buffer))


class BuffersInPlace(nn.Module):
    """A loop that clears a buffer in place and updates it in place; detached between steps where autograd needs it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = linear(INPUTS, HIDDEN)
        self.register_buffer("trace", torch.zeros(3, INPUTS))

    def forward(self, x: Tensor) -> Tensor:
        self.trace.zero_()
        mem = torch.zeros(x.shape[1], HIDDEN, dtype=x.dtype)
        fired = []
        for x_t in x:
            self.trace.mul_(0.7).add_(x_t)
            mem = 0.9 * mem + self.fc(self.trace.clone())
            z = spike(mem - 1.0)
            mem = mem - z
            fired.append(z)
        return torch.stack(fired)


class ListsPerLayer(nn.Module):
    """Layers in a ModuleList, membranes and spikes in lists that are written by index."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [INPUTS, HIDDEN, HIDDEN, OUTPUTS]
        self.layers = nn.ModuleList(linear(below, above) for below, above in pairwise(sizes))
        self.leaks = nn.ParameterList(nn.Parameter(torch.tensor(leak)) for leak in (0.9, 0.8, 0.7))

    def forward(self, x: Tensor) -> list[Tensor]:
        mems = [torch.zeros(x.shape[1], layer.out_features, dtype=x.dtype) for layer in self.layers]
        record: list[list[Tensor]] = [[] for _ in self.layers]
        for step in range(x.shape[0]):
            signal = x[step]
            for k, layer in enumerate(self.layers):
                mems[k] = self.leaks[k] * mems[k] + layer(signal)
                signal = spike(mems[k] - 1.0)
                mems[k] = mems[k] - signal
                record[k].append(signal)
        return [torch.stack(fired) for fired in record]


class LazilyCreated(nn.Module):
    """The first step starts the state from its own current."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = linear(INPUTS, HIDDEN), linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem = out_mem = None
        fired = []
        for t in range(x.shape[0]):
            current = self.fc(x[t])
            mem = current if mem is None else 0.9 * mem + current
            z = spike(mem - 1.0)
            mem = mem - z
            current = self.out(z)
            out_mem = current if out_mem is None else 0.95 * out_mem + current
            fired.append(z)
        return torch.stack(fired), out_mem


class PythonZero(nn.Module):
    """States that start as the Python number 0, of layers as wide as a batch may be."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = linear(INPUTS, INPUTS), linear(INPUTS, INPUTS)

    def forward(self, x: Tensor) -> Tensor:
        mem1 = mem2 = 0.0
        total = 0
        for x_t in x:
            mem1 = 0.9 * mem1 + self.fc1(x_t)
            z = spike(mem1 - 1.0)
            mem1 = mem1 - z
            mem2 = 0.9 * mem2 + self.fc2(z)
            z = spike(mem2 - 1.0)
            mem2 = mem2 - z
            total = total + z
        return total


class OptionalState(nn.Module):
    """A step whose state is None at first and returned under names of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.rec = linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, HIDDEN)

    def forward(
        self, stimulus: Tensor, potential: Tensor | None = None, activity: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        if potential is None or activity is None:
            potential = activity = stimulus.new_zeros(stimulus.shape[0], HIDDEN)
        potential = 0.9 * potential + self.fc(stimulus) + self.rec(activity)
        activity = spike(potential - 1.0)
        potential = potential - activity
        return activity.clone(), potential, activity


class NamedAnyhow(nn.Module):
    """A step with two tensor states whose names say nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = linear(INPUTS, HIDDEN)

    def forward(self, pixels: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        left = 0.5 * left + self.fc(pixels)
        right = 0.9 * right + left
        z = spike(right - 1.0)
        return z, left, right - z


class HeldDataclass(nn.Module):
    """A step that holds its state in an attribute which is a dataclass."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = linear(INPUTS, HIDDEN)
        self.state: Membrane | None = None

    def forward(self, x_t: Tensor) -> Tensor:
        if self.state is None:
            zeros = x_t.new_zeros(x_t.shape[0], HIDDEN)
            self.state = Membrane(zeros, zeros)
        i = 0.5 * self.state.i + self.fc(x_t)
        v = 0.9 * self.state.v + i
        z = spike(v - 1.0)
        self.state = Membrane(v=v - z, i=i)
        return z


class HeldList(nn.Module):
    """A step that holds the membranes of all layers in one list, and its spikes in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([linear(INPUTS, HIDDEN), linear(HIDDEN, HIDDEN)])
        self.mems: list[Tensor] = []
        self.last: dict[str, Tensor] = {}

    def forward(self, x_t: Tensor) -> Tensor:
        if not self.mems:
            self.mems = [x_t.new_zeros(x_t.shape[0], HIDDEN) for _ in self.layers]
            self.last = {str(k): x_t.new_zeros(x_t.shape[0], HIDDEN) for k in range(len(self.layers))}
        signal = x_t
        for k, layer in enumerate(self.layers):
            self.mems[k] = 0.9 * self.mems[k] * (1 - self.last[str(k)]) + layer(signal)
            signal = self.last[str(k)] = spike(self.mems[k] - 1.0)
        return signal


def clear_state(model: nn.Module) -> None:
    model.state = None


def clear_list(model: nn.Module) -> None:
    model.mems, model.last = [], {}


def two_zeros(steps: int, batch: int) -> tuple[Any, ...]:
    return torch.randn(batch, INPUTS), torch.zeros(batch, HIDDEN), torch.zeros(batch, HIDDEN)


ENTRIES = [
    Entry("locals, range(x.shape[0]), lateral weights", Locals, sequence),
    Entry("tuples through a helper function, spike counts", Tuples, sequence),
    Entry("nested tuples handed in and out of a step", NestedTuples, nested_arguments, kind="step"),
    Entry("NamedTuple, unbind, final state returned", NamedTuples, sequence),
    Entry("dictionary of membranes, ModuleDict, len(x)", Dictionaries, sequence),
    Entry("frozen dataclass, while t < T, mean rate", Dataclasses, sequence),
    Entry("attributes cleared in forward, batch first", AttributesReset, batch_first),
    Entry(
        "attributes made when missing, Sequential of one step",
        AttributeSteps,
        one_step,
        kind="step",
        reset=forget,
        states=lambda model: [module.mem for module in neurons(model)],
    ),
    Entry(
        "buffers re-assigned in a step",
        BuffersReassigned,
        one_step,
        kind="step",
        reset=zero_buffers,
        states=lambda model: [model.mem, model.spk],
    ),
    Entry("buffer updated in place in a loop", BuffersInPlace, sequence, batch=3),
    Entry("lists per layer, ModuleList, ParameterList", ListsPerLayer, sequence),
    Entry("state made from the first current", LazilyCreated, sequence),
    Entry("states that start as the number 0", PythonZero, sequence),
    Entry(
        "step with optional states",
        OptionalState,
        lambda steps, batch: (torch.randn(batch, INPUTS), None, None),
        kind="step",
    ),
    Entry("step with tensor states of any name", NamedAnyhow, two_zeros, kind="step"),
    Entry(
        "dataclass held in an attribute of a step",
        HeldDataclass,
        one_step,
        kind="step",
        reset=clear_state,
        states=lambda model: [model.state.v, model.state.i],
    ),
    Entry(
        "list and dictionary held by a step",
        HeldList,
        one_step,
        kind="step",
        reset=clear_list,
        states=lambda model: [*model.mems, *model.last.values()],
    ),
    *idiom_loops.ENTRIES,
]
