"""Networks in the style of SpikingJelly's documentation: single steps and whole sequences, its layers and containers.

The library computes float32 with registered operators and float64 with plain torch: gradients are compared in both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from table.harness import Entry

INPUTS, HIDDEN, CLASSES = 6, 12, 4


def sequence(steps: int, batch: int) -> tuple[Tensor]:
    """A sequence of input spikes, time first."""
    return ((torch.rand(steps, batch, INPUTS) < 0.4).float(),)


def one_step(steps: int, batch: int) -> tuple[Tensor]:
    """The input of one step."""
    return (2 * torch.rand(batch, INPUTS),)


def picture(steps: int, batch: int) -> tuple[Tensor]:
    """One picture, shown at every step."""
    return (torch.rand(batch, 1, 8, 8),)


def film(steps: int, batch: int) -> tuple[Tensor]:
    """A sequence of frames of events, time first."""
    return ((torch.rand(steps, batch, 2, 8, 8) < 0.4).float(),)


def reset(model: nn.Module) -> None:
    """The library's own reset."""
    from spikingjelly.activation_based import functional

    functional.reset_net(model)


def memories(model: nn.Module) -> list[Tensor]:
    """The states, as the library gives them out."""
    from spikingjelly.activation_based import base

    return [value for value in base.extract_memories(model) if isinstance(value, Tensor)]


def exact_weights(model: nn.Module) -> nn.Module:
    """Makes all weights multiples of 1/64.

    Sums of such weights over spikes are exact in every order, and so the same whether a layer multiplies one step or
    all of them at once.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.round(64 * parameter) / 64)
    return model


def two_layers(**options: Any) -> nn.Sequential:
    """Linear and LIF twice, as in the first tutorial."""
    from spikingjelly.activation_based import layer, neuron

    net = nn.Sequential(
        layer.Linear(INPUTS, HIDDEN),
        neuron.LIFNode(**options),
        layer.Linear(HIDDEN, CLASSES),
        neuron.LIFNode(**options),
    )
    with torch.no_grad():
        net[0].weight.mul_(4)
        net[2].weight.mul_(5)
    return net


class RateOverTime(nn.Module):
    """The loop of the tutorials: the network is reset, shown every step of the input, and its spikes are averaged."""

    def __init__(self, node: Callable[..., nn.Module], **options: Any) -> None:
        from spikingjelly.activation_based import layer

        super().__init__()
        self.fc1 = layer.Linear(INPUTS, HIDDEN)
        self.sn1 = node(**options)
        self.fc2 = layer.Linear(HIDDEN, CLASSES)
        self.sn2 = node(**options)
        with torch.no_grad():
            self.fc1.weight.mul_(3)
            self.fc2.weight.mul_(3)

    def forward(self, x: Tensor) -> Tensor:
        from spikingjelly.activation_based import functional

        functional.reset_net(self)
        fr: Any = 0.0
        for t in range(x.shape[0]):
            fr = fr + self.sn2(self.fc2(self.sn1(self.fc1(x[t]))))
        return fr / x.shape[0]


class StaticPicture(nn.Module):
    """Convolutional network with trained time constants: the first layers see one picture and encode it."""

    def __init__(self, steps: int) -> None:
        from spikingjelly.activation_based import layer, neuron, surrogate

        super().__init__()
        self.T = steps
        spiking = {"surrogate_function": surrogate.ATan(), "detach_reset": True}
        self.static_conv = nn.Sequential(layer.Conv2d(1, 4, 3, padding=1, bias=False), layer.BatchNorm2d(4))
        self.conv = nn.Sequential(
            neuron.ParametricLIFNode(**spiking),
            layer.MaxPool2d(2, 2),
            layer.Conv2d(4, 4, 3, padding=1, bias=False),
            layer.BatchNorm2d(4),
            neuron.ParametricLIFNode(init_tau=1.5, decay_input=False, **spiking),
            layer.AvgPool2d(2, 2),
        )
        self.fc = nn.Sequential(
            layer.Flatten(), layer.Linear(4 * 2 * 2, CLASSES), neuron.IFNode(v_threshold=0.2, **spiking)
        )

    def forward(self, x: Tensor) -> Tensor:
        from spikingjelly.activation_based import functional

        functional.reset_net(self)
        x = self.static_conv(x)
        out_spikes_counter = self.fc(self.conv(x))
        for _ in range(1, self.T):
            out_spikes_counter = out_spikes_counter + self.fc(self.conv(x))
        return out_spikes_counter / self.T


class WholeSequences(nn.Module):
    """Layer by layer over the whole sequence, step mode 'm': dense layers, spikes averaged over time."""

    def __init__(self, **options: Any) -> None:
        from spikingjelly.activation_based import functional

        super().__init__()
        self.net = two_layers(**options)
        functional.set_step_mode(self.net, "m")
        exact_weights(self)

    def forward(self, x_seq: Tensor) -> Tensor:
        from spikingjelly.activation_based import functional

        functional.reset_net(self.net)
        return self.net(x_seq).mean(0)


class WholeFilms(nn.Module):
    """Convolutions, pooling and a residual sum in step mode 'm', with the output of every step."""

    def __init__(self) -> None:
        from spikingjelly.activation_based import functional, layer, neuron

        super().__init__()
        self.conv1 = layer.Conv2d(2, 4, 3, padding=1)
        self.sn1 = neuron.IFNode(v_threshold=0.5, v_reset=None)
        self.pool = layer.MaxPool2d(2, 2)
        self.conv2 = layer.Conv2d(4, 4, 3, padding=1)
        self.sn2 = neuron.LIFNode(tau=2.0, v_threshold=0.25)
        self.flat = layer.Flatten()
        self.fc = layer.Linear(4 * 4 * 4, CLASSES)
        self.sn3 = neuron.ParametricLIFNode(v_threshold=0.25)
        functional.set_step_mode(self, "m")
        exact_weights(self)

    def forward(self, x_seq: Tensor) -> Tensor:
        from spikingjelly.activation_based import functional

        functional.reset_net(self)
        x_seq = self.pool(self.sn1(self.conv1(x_seq)))
        x_seq = x_seq + self.sn2(self.conv2(x_seq))
        return self.sn3(self.fc(self.flat(x_seq)))


class Recurrent(nn.Module):
    """A recurrent container around a neuron, and an element-wise one around the next."""

    def __init__(self) -> None:
        from spikingjelly.activation_based import layer, neuron

        super().__init__()
        self.fc1 = layer.Linear(INPUTS, HIDDEN)
        self.rnn = layer.LinearRecurrentContainer(neuron.LIFNode(v_reset=None), HIDDEN, HIDDEN)
        self.fc2 = layer.Linear(HIDDEN, CLASSES)
        self.out = layer.ElementWiseRecurrentContainer(neuron.IFNode(detach_reset=True), torch.add)
        with torch.no_grad():
            self.fc1.weight.mul_(4)
            self.rnn.rc.weight.mul_(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.fc2(self.rnn(self.fc1(x))))


def published() -> nn.Module:
    """The library's network for MNIST with learnable time constants, narrow, for pictures of 8 x 8; without dropout."""
    from spikingjelly.activation_based import layer, neuron
    from spikingjelly.activation_based.model.parametric_lif_net import MNISTNet

    net = MNISTNet(channels=3, spiking_neuron=neuron.ParametricLIFNode, detach_reset=True)
    net.conv_fc[10] = layer.Linear(3 * 2 * 2, 20)
    net.conv_fc[13] = layer.Linear(20, 20)
    for module in net.modules():
        if isinstance(module, layer.Dropout):
            module.p = 0.0
    with torch.no_grad():
        net.conv_fc[10].weight.mul_(6)
        net.conv_fc[13].weight.mul_(6)
    return net


def _nodes() -> dict[str, Callable[[], nn.Module]]:
    """One small network per neuron and way to reset."""

    def with_node(name: str, **options: Any) -> Callable[[], nn.Module]:
        def build() -> nn.Module:
            from spikingjelly.activation_based import neuron

            return RateOverTime(getattr(neuron, name), **options)

        return build

    return {
        "IF, soft reset, detached": with_node("IFNode", v_reset=None, detach_reset=True),
        "LIF, hard reset to -0.1": with_node("LIFNode", v_reset=-0.1, decay_input=False, tau=1.5),
        "ParametricLIF": with_node("ParametricLIFNode", init_tau=1.5),
        "QIF": with_node("QIFNode", tau=1.5),
        "SimpleLIF, traced through": with_node("SimpleLIFNode", tau=1.5, decay_input=False),
    }


class Whole(nn.Module):
    """A network in step mode 'm' that starts afresh at every call."""

    def __init__(self, net: nn.Module) -> None:
        from spikingjelly.activation_based import functional

        super().__init__()
        functional.set_step_mode(net, "m")
        self.net = net
        for part in net.modules():
            if isinstance(part, nn.BatchNorm1d):
                nn.init.constant_(part.weight, 2.5)
                nn.init.constant_(part.bias, 1.5)  # so that enough of its neurons fire

    def forward(self, x: Tensor) -> Tensor:
        from spikingjelly.activation_based import functional

        functional.reset_net(self.net)
        y: Tensor = self.net(x)
        return y if y.ndim == 2 else y.mean(0)


def sew_resnet() -> nn.Module:
    """A block as in its zoo, which needs torchvision."""
    from spikingjelly.activation_based import layer, neuron

    def part(inputs: int, outputs: int) -> list[nn.Module]:
        conv = layer.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return [conv, layer.BatchNorm2d(outputs), neuron.IFNode(detach_reset=True)]

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Sequential(*part(4, 4)), nn.Sequential(*part(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.second(self.first(x)) + x
            return y

    return Whole(nn.Sequential(*part(2, 4), Block(), layer.MaxPool2d(2, 2), Block()))


def attention(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from spikingjelly.activation_based.layer import attention as attentions

        return Whole(getattr(attentions, name)(8, 2))

    return build


def tokens(steps: int, batch: int) -> tuple[Tensor]:
    """Spikes of five tokens, time first."""
    return ((torch.rand(steps, batch, 8, 5) < 0.4).float(),)


WHOLE: dict[str, tuple[Callable[[], nn.Module], Callable[[int, int], tuple[Tensor]]]] = {
    "SEW residual net": (sew_resnet, film),
    "spiking self-attention": (attention("SpikingSelfAttention"), tokens),
    "token attention": (attention("TokenQKAttention"), tokens),
    "channel attention": (attention("ChannelQKAttention"), tokens),
}


def _both(entry: Entry) -> list[Entry]:
    """Returns an entry for gradients in float32, where the library runs its operators, and one for float64."""
    return [replace(entry, double=False), replace(entry, name=f"{entry.name}, in float64")]


ENTRIES = [
    *_both(
        Entry(
            "spikingjelly: LIF network, one step a call",
            lambda: two_layers(),
            one_step,
            kind="step",
            library="spikingjelly",
            reset=reset,
            states=memories,
        )
    ),
    *(
        entry
        for name, build in _nodes().items()
        for entry in _both(Entry(f"spikingjelly: {name}, loop over time", build, sequence, library="spikingjelly"))
        if entry.double or "Parametric" not in name  # one number that all neurons share: its sum rounds to more
    ),
    Entry(
        "spikingjelly: convolutional network on a static picture",
        lambda: StaticPicture(5),
        picture,
        library="spikingjelly",
        build_for=StaticPicture,
    ),
    *_both(
        Entry(
            "spikingjelly: step mode 'm', dense",
            lambda: WholeSequences(),
            sequence,
            library="spikingjelly",
        )
    ),
    *_both(Entry("spikingjelly: step mode 'm', convolutional", WholeFilms, film, library="spikingjelly")),
    *_both(
        Entry(
            "spikingjelly: recurrent containers",
            Recurrent,
            one_step,
            kind="step",
            library="spikingjelly",
            reset=reset,
            states=memories,
        )
    ),
    Entry(
        "spikingjelly: MNISTNet of its model zoo",
        published,
        picture,
        kind="step",
        library="spikingjelly",
        reset=reset,
        states=memories,
    ),
    *(
        Entry(f"spikingjelly: {name}, over time and batch", build, example, library="spikingjelly", mixes=True)
        for name, (build, example) in WHOLE.items()
    ),
]
