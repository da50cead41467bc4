"""Networks in the style of snnTorch's documentation: one step a call, time in the user's loop, state where each keeps
it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from table.harness import Entry

INPUTS, HIDDEN, CLASSES = 6, 8, 3


def sequence(steps: int, batch: int) -> tuple[Tensor]:
    """A sequence of input currents, time first."""
    return (2 * torch.randn(steps, batch, INPUTS),)


def one_step(steps: int, batch: int) -> tuple[Tensor]:
    """The input of one step."""
    return (2 * torch.randn(batch, INPUTS),)


def still_image(steps: int, batch: int) -> tuple[Tensor]:
    """An input that the model repeats at every step."""
    return (2 * torch.randn(batch, INPUTS),)


def image(steps: int, batch: int) -> tuple[Tensor]:
    """A small picture."""
    return (2 * torch.randn(batch, 1, 12, 12),)


class Explicit(nn.Module):
    """Tutorial 5: two Leaky layers, states in local variables that start as ``init_leaky`` hands them out."""

    def __init__(self, **options: Any) -> None:
        import snntorch as snn

        super().__init__()
        self.fc1 = nn.Linear(INPUTS, HIDDEN)
        self.lif1 = snn.Leaky(beta=0.9, **options)
        self.fc2 = nn.Linear(HIDDEN, CLASSES)
        self.lif2 = snn.Leaky(beta=0.8, **options)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        spk2_rec, mem2_rec = [], []
        for step in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[step]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk2_rec.append(spk2)
            mem2_rec.append(mem2)
        return torch.stack(spk2_rec, dim=0), torch.stack(mem2_rec, dim=0)


class StaticInput(Explicit):
    """Tutorial 5 as it stands: one picture shown for ``num_steps`` steps."""

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self.num_steps = num_steps

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1 = self.lif1.reset_mem()
        mem2 = self.lif2.reset_mem()
        spk2_rec, mem2_rec = [], []
        for _ in range(self.num_steps):
            cur1 = self.fc1(x)
            spk1, mem1 = self.lif1(cur1, mem1)
            cur2 = self.fc2(spk1)
            spk2, mem2 = self.lif2(cur2, mem2)
            spk2_rec.append(spk2)
            mem2_rec.append(mem2)
        return torch.stack(spk2_rec), torch.stack(mem2_rec)


class RateCoded(nn.Module):
    """A rate-coded input and the spike count as output; the states live in the neurons."""

    def __init__(self) -> None:
        import snntorch as snn
        from snntorch import surrogate

        super().__init__()
        slope = surrogate.fast_sigmoid(slope=25)
        self.fc1 = nn.Linear(INPUTS, HIDDEN)
        self.lif1 = snn.Leaky(beta=0.9, spike_grad=slope, init_hidden=True)
        self.fc2 = nn.Linear(HIDDEN, CLASSES)
        self.lif2 = snn.Leaky(beta=0.9, spike_grad=slope, init_hidden=True, output=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        from snntorch import utils

        utils.reset(self)
        count: Any = 0
        for step in range(x.size(0)):
            spk, mem = self.lif2(self.fc2(self.lif1(self.fc1(x[step]))))
            count = count + spk
        return count, mem


class Unreset(nn.Module):
    """A loop over neurons with ``init_hidden`` that leaves the reset to the training script."""

    def __init__(self) -> None:
        import snntorch as snn

        super().__init__()
        self.fc1 = nn.Linear(INPUTS, HIDDEN)
        self.lif1 = snn.Leaky(beta=0.9, init_hidden=True)
        self.fc2 = nn.Linear(HIDDEN, CLASSES)
        self.lif2 = snn.Leaky(beta=0.9, init_hidden=True)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.lif2(self.fc2(self.lif1(self.fc1(x_t)))) for x_t in x])


class ManyStates(nn.Module):
    """Two layers of one kind of neuron; all that it returns comes back at the next step, in a local variable."""

    def __init__(self, first: Callable[[], nn.Module], second: Callable[[], nn.Module], start: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(INPUTS, HIDDEN)
        self.lif1 = first()
        self.fc2 = nn.Linear(HIDDEN, CLASSES)
        self.lif2 = second()
        self.start = start

    def initial(self, neuron: nn.Module) -> tuple[Tensor, ...]:
        state = getattr(neuron, self.start)()
        return state if isinstance(state, tuple) else (state,)


class FeedForward(ManyStates):
    """Neurons that take their states back: Synaptic, Lapicque, Alpha."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        state1, state2 = self.initial(self.lif1), self.initial(self.lif2)
        spikes, membranes = [], []
        for step in range(x.size(0)):
            spk1, *state1 = self.lif1(self.fc1(x[step]), *state1)
            spk2, *state2 = self.lif2(self.fc2(spk1), *state2)
            spikes.append(spk2)
            membranes.append(state2[-1])
        return torch.stack(spikes), torch.stack(membranes)


class Recurrent(ManyStates):
    """Neurons that take their spikes back as well: RLeaky, RSynaptic."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        state1, state2 = self.initial(self.lif1), self.initial(self.lif2)
        spikes, membranes = [], []
        for step in range(x.size(0)):
            state1 = self.lif1(self.fc1(x[step]), *state1)
            state2 = self.lif2(self.fc2(state1[0]), *state2)
            spikes.append(state2[0])
            membranes.append(state2[-1])
        return torch.stack(spikes), torch.stack(membranes)


class SameDtype(torch.autograd.Function):
    """A surrogate of the user's, which unlike the library's own keeps the dtype: with it a network runs in float64."""

    @staticmethod
    def forward(ctx: Any, membrane: Tensor) -> Tensor:
        ctx.save_for_backward(membrane)
        return (membrane > 0).to(membrane.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (membrane,) = ctx.saved_tensors
        return gradient / (1 + 5 * membrane.abs()).square()


same_dtype = SameDtype.apply


def synaptic() -> nn.Module:
    import snntorch as snn

    def make() -> nn.Module:
        return snn.Synaptic(alpha=0.7, beta=0.8, learn_alpha=True, learn_beta=True, reset_mechanism="zero")

    return FeedForward(make, make, "init_synaptic")


def lapicque() -> nn.Module:
    import snntorch as snn

    return FeedForward(
        lambda: snn.Lapicque(beta=0.7), lambda: snn.Lapicque(R=3.0, C=1.5, reset_mechanism="zero"), "init_lapicque"
    )


def alpha() -> nn.Module:
    import snntorch as snn

    return FeedForward(
        lambda: snn.Alpha(alpha=0.85, beta=0.6, threshold=0.5),
        lambda: snn.Alpha(alpha=0.8, beta=0.5, threshold=0.1, reset_mechanism="zero"),
        "init_alpha",
    )


def rleaky() -> nn.Module:
    import snntorch as snn

    return Recurrent(
        lambda: snn.RLeaky(
            beta=0.8, linear_features=HIDDEN, learn_beta=True, reset_mechanism="zero", spike_grad=same_dtype
        ),
        lambda: snn.RLeaky(beta=0.8, all_to_all=False, V=0.4, spike_grad=same_dtype),
        "init_rleaky",
    )


def rsynaptic() -> nn.Module:
    import snntorch as snn

    return Recurrent(
        lambda: snn.RSynaptic(alpha=0.6, beta=0.8, linear_features=HIDDEN, learn_alpha=True, spike_grad=same_dtype),
        lambda: snn.RSynaptic(
            alpha=0.6, beta=0.8, all_to_all=False, V=0.4, reset_mechanism="zero", spike_grad=same_dtype
        ),
        "init_rsynaptic",
    )


def leaky(**options: Any) -> Callable[[], nn.Module]:
    """Two Leaky layers with some options."""
    return lambda: Explicit(**options)


def learned() -> nn.Module:
    """Everything that Leaky can learn, with a leak of its own for each neuron of the first layer."""
    model = Explicit(learn_beta=True, learn_threshold=True, learn_graded_spikes_factor=True)
    model.lif1.beta = nn.Parameter(torch.rand(HIDDEN))
    return model


def hidden() -> nn.Module:
    """The network of tutorial 6's style, dense: a plain Sequential that is one time step."""
    import snntorch as snn

    return nn.Sequential(
        nn.Linear(INPUTS, HIDDEN),
        snn.Leaky(beta=0.9, init_hidden=True),
        nn.Linear(HIDDEN, CLASSES),
        snn.Leaky(beta=0.9, init_hidden=True, output=True),
    )


def every_neuron_hidden() -> nn.Module:
    """One of each neuron, all with their state inside."""
    import snntorch as snn

    return nn.Sequential(
        nn.Linear(INPUTS, HIDDEN),
        snn.Synaptic(alpha=0.6, beta=0.8, init_hidden=True),
        nn.Linear(HIDDEN, HIDDEN),
        snn.RLeaky(beta=0.8, linear_features=HIDDEN, init_hidden=True),
        nn.Linear(HIDDEN, HIDDEN),
        snn.Lapicque(beta=0.7, init_hidden=True, threshold=0.2),
        nn.Linear(HIDDEN, CLASSES),
        snn.Alpha(alpha=0.85, beta=0.6, threshold=0.05, init_hidden=True, output=True),
    )


def convolutional(output: bool = True) -> nn.Module:
    """Tutorial 6: two convolutions with pooling, a dense readout, every neuron with ``init_hidden``."""
    import snntorch as snn
    from snntorch import surrogate

    slope = surrogate.fast_sigmoid(slope=25)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.MaxPool2d(2),
        snn.Leaky(beta=0.5, spike_grad=slope, init_hidden=True, threshold=0.5),
        nn.Conv2d(3, 4, 2),
        nn.MaxPool2d(2),
        snn.Leaky(beta=0.5, spike_grad=slope, init_hidden=True, threshold=0.3),
        nn.Flatten(),
        nn.Linear(16, CLASSES),
        snn.Leaky(beta=0.5, spike_grad=slope, init_hidden=True, output=output, threshold=0.2),
    )


class ForwardPass(nn.Module):
    """Tutorial 6's training loop around its network, as one module."""

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.net = convolutional()

    def forward(self, data: Tensor) -> tuple[Tensor, Tensor]:
        from snntorch import utils

        mem_rec, spk_rec = [], []
        utils.reset(self.net)
        for _ in range(self.num_steps):
            spk_out, mem_out = self.net(data)
            spk_rec.append(spk_out)
            mem_rec.append(mem_out)
        return torch.stack(spk_rec), torch.stack(mem_rec)


def reset(model: nn.Module) -> None:
    """What ``snntorch.utils.reset`` does, for neurons at any depth and for this model alone."""
    for module in model.modules():
        if hasattr(module, "reset_mem"):
            module.reset_mem()


def membranes(model: nn.Module) -> list[Tensor]:
    """The membranes that the neurons hold."""
    return [value for name, value in model.named_buffers() if name.rpartition(".")[2] in ("mem", "syn", "syn_exc")]


def entry(name: str, build: Callable[[], nn.Module], example: Callable[..., Any] = sequence, **options: Any) -> Entry:
    # The library's own surrogates give float32 whatever they take, so that no network with them runs in float64.
    return Entry(f"snntorch: {name}", build, example, library="snntorch", **{"double": False, **options})


ENTRIES = [
    entry("two Leaky layers, explicit state, init_leaky in forward", Explicit),
    entry("Leaky, reset to zero", leaky(reset_mechanism="zero")),
    entry("Leaky, no reset", leaky(reset_mechanism="none")),
    entry("Leaky, reset without delay", leaky(reset_delay=False)),
    entry("Leaky, reset to zero without delay", leaky(reset_delay=False, reset_mechanism="zero")),
    entry("Leaky, learned leak, threshold and spike size", learned),
    entry("static input for num_steps, reset_mem in forward", Explicit, still_image, build_for=StaticInput),
    entry("rate-coded input, hidden state, utils.reset in forward", RateCoded),
    entry("hidden state, reset by the training script", Unreset, reset=reset),
    entry("Synaptic, learned decays", synaptic),
    entry("Lapicque", lapicque),
    entry("Alpha", alpha),
    entry("RLeaky, all to all and one to one", rleaky, double=True),
    entry("RSynaptic, all to all and one to one", rsynaptic, double=True),
    entry("Sequential with init_hidden, one step a call", hidden, one_step, kind="step", reset=reset, states=membranes),
    entry("one of each neuron with init_hidden", every_neuron_hidden, one_step, kind="step", reset=reset,
          states=membranes),
    entry("convolutional Sequential of tutorial 6, one step a call", convolutional, image, kind="step", reset=reset,
          states=membranes),
    entry("convolutional net of tutorial 6 with its loop", convolutional, image, build_for=ForwardPass),
]  # fmt: skip
