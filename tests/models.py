"""Spiking networks as people write them, each in its own style, and what the tests need to know about each.

Nothing here uses tracecompile: these are the modules that a user would bring. The surrogate functions are written in
the four ways that are in use.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

INPUTS, HIDDEN, OUTPUTS = 4, 5, 3


# ---------------------------------------------------------------------------------------------------------------------
# Surrogate functions
# ---------------------------------------------------------------------------------------------------------------------


class FastSigmoid(torch.autograd.Function):
    """Pre-bound style: ``spike = FastSigmoid.apply``."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return (v > 0).to(v.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors
        return grad / (1 + 5 * v.abs()) ** 2


fast_sigmoid = FastSigmoid.apply


class _ArcTan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, alpha: float) -> Tensor:
        ctx.save_for_backward(v)
        ctx.alpha = alpha
        return (v > 0).to(v.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (v,) = ctx.saved_tensors
        return grad * ctx.alpha / 2 / (1 + (torch.pi / 2 * ctx.alpha * v) ** 2), None


def arctan(alpha: float = 2.0) -> Callable[[Tensor], Tensor]:
    """Closure style, as in snnTorch."""

    def inner(v: Tensor) -> Tensor:
        return _ArcTan.apply(v, alpha)

    return inner


class SetupSigmoid(torch.autograd.Function):
    """``setup_context`` style, called with its slope each time."""

    @staticmethod
    def forward(v: Tensor, slope: float) -> Tensor:
        return (v > 0).to(v.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        v, slope = inputs
        ctx.save_for_backward(v)
        ctx.slope = slope

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (v,) = ctx.saved_tensors
        s = torch.sigmoid(ctx.slope * v)
        return grad * ctx.slope * s * (1 - s), None


def straight_through(v: Tensor) -> Tensor:
    """No autograd.Function at all: the value of the step, the gradient of the sigmoid."""
    soft = torch.sigmoid(4 * v)
    hard = (v > 0).to(v.dtype)
    return hard.detach() + soft - soft.detach()


# ---------------------------------------------------------------------------------------------------------------------
# Whole-sequence models
# ---------------------------------------------------------------------------------------------------------------------


class RecurrentLoop(nn.Module):
    """range(x.shape[0]), locals, lateral weights, subtractive reset in the graph, outputs stacked."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(INPUTS, HIDDEN)
        self.rec = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.spike_fn = FastSigmoid.apply

    def forward(self, x: Tensor) -> Tensor:
        mem = torch.zeros(x.shape[1], HIDDEN, device=x.device, dtype=x.dtype)
        spk = torch.zeros(x.shape[1], HIDDEN, device=x.device, dtype=x.dtype)
        outs = []
        for t in range(x.shape[0]):
            mem = 0.9 * mem + self.fc(x[t]) + self.rec(spk)
            spk = self.spike_fn(mem - 1.0)
            mem = mem - spk
            outs.append(spk)
        return torch.stack(outs)


class BatchFirst(nn.Module):
    """range(x.size(1)), batch first, detached reset, two layers, outputs stacked along axis 1."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(INPUTS, HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, OUTPUTS)
        self.spike = arctan(2.0)

    def forward(self, x: Tensor) -> Tensor:
        mem1 = x.new_zeros(x.size(0), HIDDEN)
        mem2 = x.new_zeros(x.size(0), OUTPUTS)
        record = []
        for step in range(x.size(1)):
            mem1 = 0.8 * mem1 + self.fc1(x[:, step])
            spk1 = self.spike(mem1 - 1.0)
            mem1 = mem1 - spk1.detach()
            mem2 = 0.8 * mem2 + self.fc2(spk1)
            spk2 = self.spike(mem2 - 1.0)
            mem2 = mem2 - spk2.detach()
            record.append(spk2)
        return torch.stack(record, dim=1)


class IterateInput(nn.Module):
    """for x_t in x, states start as plain zeros, hard reset, outputs in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(INPUTS, HIDDEN)

    def forward(self, x: Tensor) -> list[Tensor]:
        mem = torch.zeros_like(x[0, :, :1])
        spikes = []
        for x_t in x:
            mem = 0.9 * mem + self.fc(x_t)
            s = SetupSigmoid.apply(mem - 1.0, 5.0)
            mem = mem * (1 - s)
            spikes.append(s)
        return spikes


class FixedLength(nn.Module):
    """range(self.T), no reset, running sum of the spikes, last membrane."""

    def __init__(self, steps: int = 6) -> None:
        super().__init__()
        self.T = steps
        self.fc = nn.Linear(INPUTS, HIDDEN)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem = torch.zeros(x.shape[1], HIDDEN, dtype=x.dtype, device=x.device)
        count = torch.zeros(x.shape[1], HIDDEN, dtype=x.dtype, device=x.device)
        for t in range(self.T):
            mem = 0.7 * mem + self.fc(x[t])
            count = count + straight_through(mem - 1.0)
        return count, mem


class AdaptiveThreshold(nn.Module):
    """Adaptive threshold, lateral weights, mean over the stacked spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.w_in = nn.Linear(INPUTS, HIDDEN, bias=False)
        self.w_rec = nn.Linear(HIDDEN, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[1]
        v = x.new_zeros(batch, HIDDEN)
        a = x.new_zeros(batch, HIDDEN)
        z = x.new_zeros(batch, HIDDEN)
        spikes = []
        for t in range(x.shape[0]):
            v = 0.9 * v + self.w_in(x[t]) + self.w_rec(z) - z
            a = 0.95 * a + z
            z = fast_sigmoid(v - 1.0 - 0.2 * a)
            spikes.append(z)
        return torch.stack(spikes).mean(0)


class SynapticCurrent(nn.Module):
    """Second-order synapse, leaky-integrator readout, only the last readout returned."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(INPUTS, HIDDEN)
        self.readout = nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        syn = torch.zeros(x.shape[1], HIDDEN, dtype=x.dtype)
        mem = torch.zeros(x.shape[1], HIDDEN, dtype=x.dtype)
        out = torch.zeros(x.shape[1], OUTPUTS, dtype=x.dtype)
        for x_t in x.unbind(0):
            syn = 0.6 * syn + self.fc(x_t)
            mem = 0.8 * mem + syn
            spk = fast_sigmoid(mem - 1.0)
            mem = mem - spk
            out = 0.95 * out + self.readout(spk)
        return out


class LearnableNeuron(nn.Module):
    """Leak and threshold per neuron, both learned; the reset subtracts the threshold; readout summed over time."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(INPUTS, HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, OUTPUTS)
        self.beta = nn.Parameter(0.6 + 0.3 * torch.rand(HIDDEN))
        self.threshold = nn.Parameter(0.8 + 0.4 * torch.rand(HIDDEN))

    def forward(self, x: Tensor) -> Tensor:
        mem = torch.zeros(x.shape[1], HIDDEN, dtype=x.dtype)
        total = torch.zeros(x.shape[1], OUTPUTS, dtype=x.dtype)
        for t in range(x.shape[0]):
            mem = self.beta * mem + self.fc1(x[t])
            spk = fast_sigmoid(mem - self.threshold)
            mem = mem - spk * self.threshold
            total = total + self.fc2(spk)
        return total


class ConvolutionSynapse(nn.Module):
    """Convolution and average pooling in front of the neuron, then a fully connected spiking layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
        self.pool = nn.AvgPool2d(2)
        self.fc = nn.Linear(2 * 2 * 2, OUTPUTS)
        self.spike = arctan(3.0)

    def forward(self, x: Tensor) -> Tensor:
        mem1 = torch.zeros(x.shape[1], 2, 2, 2, dtype=x.dtype)
        mem2 = torch.zeros(x.shape[1], OUTPUTS, dtype=x.dtype)
        outs = []
        for t in range(x.shape[0]):
            mem1 = 0.9 * mem1 + self.pool(self.conv(x[t]))
            spk1 = self.spike(mem1 - 0.5)
            mem1 = torch.where(spk1.detach() > 0, torch.zeros_like(mem1), mem1)
            mem2 = 0.9 * mem2 + self.fc(spk1.flatten(1))
            spk2 = self.spike(mem2 - 0.5)
            mem2 = mem2 - 0.5 * spk2
            outs.append(spk2)
        return torch.stack(outs)


class TwoRecurrentLayers(nn.Module):
    """Two layers with lateral weights each, the second feeding back to the first, membranes and spikes returned."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(INPUTS, HIDDEN)
        self.rec1 = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.down = nn.Linear(OUTPUTS, HIDDEN, bias=False)
        self.fc2 = nn.Linear(HIDDEN, OUTPUTS)
        self.rec2 = nn.Linear(OUTPUTS, OUTPUTS, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        m1 = torch.zeros(x.shape[1], HIDDEN, dtype=x.dtype)
        s1 = torch.zeros(x.shape[1], HIDDEN, dtype=x.dtype)
        m2 = torch.zeros(x.shape[1], OUTPUTS, dtype=x.dtype)
        s2 = torch.zeros(x.shape[1], OUTPUTS, dtype=x.dtype)
        spikes, membranes = [], []
        for t in range(x.shape[0]):
            m1 = 0.8 * m1 + self.fc1(x[t]) + self.rec1(s1) + self.down(s2)
            s1 = fast_sigmoid(m1 - 1.0)
            m1 = m1 - s1
            m2 = 0.8 * m2 + self.fc2(s1) + self.rec2(s2)
            s2 = fast_sigmoid(m2 - 1.0)
            m2 = m2 - s2
            spikes.append(s2)
            membranes.append(m2)
        return torch.stack(spikes), torch.stack(membranes)


class FirstStepDiffers(nn.Module):
    """The state is None before the first step; straight-through spikes; torch.where reset; mean of a summed readout."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(INPUTS, HIDDEN)
        self.readout = nn.Linear(HIDDEN, OUTPUTS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        mem = None
        total = torch.zeros(x.shape[1], OUTPUTS, dtype=x.dtype)
        for t in range(x.shape[0]):
            current = self.fc(x[t])
            mem = current if mem is None else 0.9 * mem + current
            spk = straight_through(mem - 1.0)
            mem = torch.where(spk > 0.5, mem - 1.0, mem)
            total = total + self.readout(spk)
        return total / x.shape[0]


# ---------------------------------------------------------------------------------------------------------------------
# One step a call
# ---------------------------------------------------------------------------------------------------------------------


class TupleState(nn.Module):
    """A step function: nested tuples of states go in and come out; lateral weights; learnable leak."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(INPUTS, HIDDEN)
        self.rec = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.fc2 = nn.Linear(HIDDEN, OUTPUTS)
        self.beta = nn.Parameter(torch.full((HIDDEN,), 0.85))

    def initial(self, x_t: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        hidden = x_t.new_zeros(x_t.shape[0], HIDDEN)
        return (hidden, hidden.clone()), x_t.new_zeros(x_t.shape[0], OUTPUTS)

    def forward(self, x_t: Tensor, state: tuple[tuple[Tensor, Tensor], Tensor]) -> tuple[Tensor, Any]:
        (mem, spk), out = state
        mem = self.beta * mem + self.fc1(x_t) + self.rec(spk)
        spk = fast_sigmoid(mem - 1.0)
        mem = mem - spk
        out = 0.9 * out + self.fc2(spk)
        return out, ((mem, spk), out)


class NeuronState(NamedTuple):
    """State of ``NamedTupleState``."""

    v: Tensor
    i: Tensor


class NamedTupleState(nn.Module):
    """A step function with a NamedTuple as its state, as in Norse; reset to zero, detached."""

    def __init__(self) -> None:
        super().__init__()
        self.synapse = nn.Linear(INPUTS, HIDDEN)

    def initial(self, x_t: Tensor) -> NeuronState:
        return NeuronState(x_t.new_zeros(x_t.shape[0], HIDDEN), x_t.new_zeros(x_t.shape[0], HIDDEN))

    def forward(self, x_t: Tensor, state: NeuronState) -> tuple[Tensor, NeuronState]:
        i = 0.5 * state.i + self.synapse(x_t)
        v = 0.9 * state.v + i
        z = fast_sigmoid(v - 1.0)
        v = (1 - z.detach()) * v
        return z, NeuronState(v, i)


class LazyLIF(nn.Module):
    """Keeps its membrane in an attribute that the first call creates."""

    def __init__(self, spike: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.mem: Tensor | None = None
        self.spike = spike

    def forward(self, current: Tensor) -> Tensor:
        if self.mem is None:
            self.mem = torch.zeros_like(current)
        self.mem = 0.9 * self.mem + current
        spk = self.spike(self.mem - 1.0)
        self.mem = self.mem - spk
        return spk


class LazyAttributes(nn.Module):
    """Two layers of neurons with lazily created attribute states, in a Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(INPUTS, HIDDEN), LazyLIF(fast_sigmoid), nn.Linear(HIDDEN, OUTPUTS), LazyLIF(fast_sigmoid)
        )

    def forward(self, x_t: Tensor) -> Tensor:
        return self.body(x_t)


class InPlaceBuffer(nn.Module):
    """A registered buffer for a fixed batch, updated in place."""

    def __init__(self, batch: int = 3) -> None:
        super().__init__()
        self.fc = nn.Linear(INPUTS, HIDDEN)
        self.register_buffer("mem", torch.zeros(batch, HIDDEN))

    def forward(self, x_t: Tensor) -> Tensor:
        self.mem.mul_(0.9)
        self.mem.add_(self.fc(x_t))
        spk = fast_sigmoid(self.mem - 1.0)
        self.mem.sub_(spk.detach())
        return spk


class ReassignedBuffer(nn.Module):
    """Registered buffers assigned anew at every step; they start as zeros that broadcast over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(INPUTS, HIDDEN)
        self.rec = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.register_buffer("mem", torch.zeros(1, HIDDEN))
        self.register_buffer("spk", torch.zeros(1, HIDDEN))

    def forward(self, x_t: Tensor) -> Tensor:
        self.mem = 0.8 * self.mem + self.fc(x_t) + self.rec(self.spk)
        self.spk = SetupSigmoid.apply(self.mem - 1.0, 4.0)
        self.mem = self.mem - self.spk.detach()
        return self.spk


class DictState(nn.Module):
    """A step function whose state is a dictionary; no reset; straight-through spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(INPUTS, HIDDEN)

    def initial(self, x_t: Tensor) -> dict[str, Tensor]:
        return {"mem": x_t.new_zeros(x_t.shape[0], HIDDEN)}

    def forward(self, x_t: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        mem = 0.8 * state["mem"] + self.fc(x_t)
        return straight_through(mem - 1.0), {"mem": mem}


# ---------------------------------------------------------------------------------------------------------------------
# The registry
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelCase:
    """One model and how to use it.

    Attributes:
        name: Its key in ``MODELS``.
        cls: The class.
        kind: "sequence" (forward takes the whole sequence) or "step" (forward takes one step).
        time_axis: Axis of time in a sequence model's input.
        gain: Scale of the weights and inputs that makes neurons both fire and stay silent.
        features: Shape of one sample at one step.
        steps_at_construction: Tells whether the class takes the number of steps, and so runs no other.
        fixed_batch: The only batch size that the model takes, if there is one.
    """

    name: str
    cls: type[nn.Module]
    kind: str = "sequence"
    time_axis: int = 0
    gain: float = 2.0
    features: tuple[int, ...] = (INPUTS,)
    steps_at_construction: bool = False
    fixed_batch: int | None = None

    def factory(self, dtype: torch.dtype = torch.float64, seed: int = 0, steps: int = 6) -> nn.Module:
        """Returns the model in training mode, always with the same weights; ``steps`` matters only to fixed lengths."""
        with seeded(seed):
            model = self.cls(steps) if self.steps_at_construction else self.cls()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(self.gain)
        return model.to(dtype)

    def make_inputs(self, steps: int, batch: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
        """Returns one tensor for a sequence model, a list of one tensor per step for a step model."""
        batch = self.fixed_batch or batch
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(steps, batch, *self.features, generator=generator, dtype=torch.float64).to(dtype)
        return list(x) if self.kind == "step" else x.movedim(0, self.time_axis).contiguous()

    def example_inputs(self, steps: int, batch: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
        """Returns what ``convert`` takes as ``example_inputs``: the arguments of one call."""
        inputs = self.make_inputs(steps, batch, dtype, seed)
        if self.kind == "sequence":
            return inputs
        return (inputs[0], self.cls.initial(None, inputs[0])) if self.explicit_state else inputs[0]

    @property
    def explicit_state(self) -> bool:
        """Tells whether the caller holds the state."""
        return hasattr(self.cls, "initial")

    def run(self, module: Any, inputs: Any) -> list[Tensor]:
        """Runs the model, or a converted one, on a whole sequence and returns its outputs as a flat list of tensors."""
        if self.kind == "sequence":
            result = module(inputs)
            return list(result) if isinstance(result, (list, tuple)) else [result]
        if not self.explicit_state:
            return [module(x_t) for x_t in inputs]
        state, outputs = self.cls.initial(None, inputs[0]), []
        for x_t in inputs:
            output, state = module(x_t, state)
            outputs.append(output)
        return outputs


def _cases(*cases: ModelCase) -> dict[str, ModelCase]:
    return {case.name: case for case in cases}


MODELS: dict[str, ModelCase] = _cases(
    ModelCase("recurrent_loop", RecurrentLoop),
    ModelCase("batch_first", BatchFirst, time_axis=1, gain=4.0),
    ModelCase("iterate_input", IterateInput),
    ModelCase("fixed_length", FixedLength, steps_at_construction=True),
    ModelCase("adaptive_threshold", AdaptiveThreshold),
    ModelCase("synaptic_current", SynapticCurrent),
    ModelCase("learnable_neuron", LearnableNeuron),
    ModelCase("convolution_synapse", ConvolutionSynapse, features=(1, 4, 4), gain=3.0),
    ModelCase("two_recurrent_layers", TwoRecurrentLayers),
    ModelCase("first_step_differs", FirstStepDiffers),
    ModelCase("tuple_state", TupleState, kind="step"),
    ModelCase("named_tuple_state", NamedTupleState, kind="step"),
    ModelCase("lazy_attributes", LazyAttributes, kind="step", gain=4.0),
    ModelCase("in_place_buffer", InPlaceBuffer, kind="step", fixed_batch=3),
    ModelCase("reassigned_buffer", ReassignedBuffer, kind="step"),
    ModelCase("dict_state", DictState, kind="step"),
)


# ---------------------------------------------------------------------------------------------------------------------
# Helpers
# ---------------------------------------------------------------------------------------------------------------------


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Runs a block with a given seed and puts the random state back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def assert_live(outputs: list[Tensor]) -> None:
    """Asserts that neurons both fire and stay silent: a comparison of dead networks proves nothing.

    Outputs that are no spikes must at least differ over the batch and the units.
    """
    values = torch.cat([output.detach().flatten() for output in outputs])
    assert values.isfinite().all()
    assert values.unique().numel() > 1, "every output has the same value: the network is dead or saturated"
    assert values.count_nonzero() > 0.05 * values.numel(), "nearly nothing fires"


def weighted_loss(outputs: list[Tensor], seed: int = 7) -> Tensor:
    """Returns a linear loss with a different weight for every element, so for every step, sample and unit."""
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output) for output in outputs]
    return torch.stack([(output * weight).sum() for output, weight in zip(outputs, weights, strict=True)]).sum()


def mean_loss(outputs: list[Tensor]) -> Tensor:
    """Returns a loss for which autograd has to save nothing of its own."""
    total = outputs[0].mean()
    for output in outputs[1:]:
        total = total + output.mean()
    return total


def gradients(module: nn.Module, loss: Tensor) -> dict[str, Tensor | None]:
    """Returns the gradients of all parameters that learn, by name, and leaves their ``grad`` alone."""
    named = {name: value for name, value in module.named_parameters() if value.requires_grad}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values()), allow_unused=True), strict=True))


def assert_gradients_close(
    measured: dict[str, Tensor | None], expected: dict[str, Tensor | None], rtol: float, may_be_zero: bool = False
) -> bool:
    """Asserts that each gradient is within ``rtol`` of its reference, relative to the norm; None counts as zero.

    Returns whether any gradient differed from zero, and asserts that too unless ``may_be_zero``.
    """
    assert measured.keys() == expected.keys()
    live = False
    for name, reference in expected.items():
        value = measured[name]
        if reference is None or not reference.any():
            assert value is None or not value.any(), f"{name}: a gradient where backpropagation has none"
            continue
        live = True
        assert value is not None, f"{name}: no gradient"
        error = float((value - reference).norm() / reference.norm())
        assert error <= rtol, f"{name}: relative error {error:.3g}"
    assert live or may_be_zero, "no parameter has a gradient: nothing was compared"
    return live


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """Returns everything about a model that a conversion must leave alone, the random state included.

    Two of them are compared with ``assert_same_fingerprint``.
    """
    seen: dict[str, Any] = {"random state": torch.random.get_rng_state()}
    for path, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, dict):
                seen[f"{path}:{key}"] = {name: id(entry) for name, entry in value.items()}
            else:
                seen[f"{path}:{key}"] = value if isinstance(value, (bool, int, float, str)) else id(value)
        tensors = {**module._parameters, **module._buffers}
        tensors.update((key, value) for key, value in vars(module).items() if isinstance(value, Tensor))
        for key, tensor in tensors.items():
            if tensor is not None:
                seen[f"{path}:{key}:value"] = tensor.detach().clone()
                seen[f"{path}:{key}:version"] = tensor._version
                grad = tensor.grad if tensor.is_leaf else None
                seen[f"{path}:{key}:grad"] = None if grad is None else grad.clone()
                seen[f"{path}:{key}:requires_grad"] = tensor.requires_grad
    return seen


def assert_same_fingerprint(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Asserts that nothing changed, and names what did."""
    assert before.keys() == after.keys(), f"changed: {sorted(before.keys() ^ after.keys())}"
    for key, value in before.items():
        same = torch.equal(value, after[key]) if isinstance(value, Tensor) else value == after[key]
        assert same, f"changed: {key}"


def pristine(model: nn.Module) -> nn.Module:
    """Returns an independent copy of a model that has not run yet."""
    return copy.deepcopy(model)
