"""Networks in the style of Sinabs' documentation: batch first, whole sequences, state kept from one to the next."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from table.harness import Entry

INPUTS, HIDDEN, CLASSES = 6, 12, 4


def sequence(steps: int, batch: int) -> tuple[Tensor]:
    """A batch of sequences of events, several of which may fall on one step."""
    return (torch.poisson(torch.full((batch, steps, INPUTS), 0.7)),)


def film(steps: int, batch: int) -> tuple[Tensor]:
    """A batch of films of events."""
    return (torch.poisson(torch.full((batch, steps, 2, 8, 8), 0.5)),)


def reset(model: nn.Module) -> None:
    """The library's own reset, at any depth."""
    import sinabs

    sinabs.reset_states(model)


def states(model: nn.Module) -> list[Tensor]:
    """What the layers hold."""
    return [value for _, value in model.named_buffers()]


def exact_weights(model: nn.Module) -> nn.Module:
    """Makes the weights multiples of 1/64: their sums over spikes are the same in every order."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                for parameter in module.parameters():
                    parameter.copy_(torch.round(64 * parameter) / 64)
    return model


def leaky() -> nn.Module:
    """Linear and LIF twice, synaptic currents in the second, many spikes a step."""
    import sinabs.layers as sl

    net = nn.Sequential(
        nn.Linear(INPUTS, HIDDEN),
        sl.LIF(tau_mem=5.0, norm_input=False),
        nn.Linear(HIDDEN, CLASSES),
        sl.LIF(tau_mem=8.0, tau_syn=3.0, norm_input=False),
    )
    with torch.no_grad():
        net[0].weight.mul_(2)
        net[2].weight.mul_(2)
    return exact_weights(net)


def single_spikes() -> nn.Module:
    """At most one spike a step, reset to a value, time constants as decay factors, leaky readout."""
    import sinabs.activation as sa
    import sinabs.layers as sl

    return exact_weights(
        nn.Sequential(
            nn.Linear(INPUTS, HIDDEN),
            sl.LIF(
                tau_mem=4.0, norm_input=False, spike_fn=sa.SingleSpike, reset_fn=sa.MembraneReset(), train_alphas=True
            ),
            nn.Linear(HIDDEN, CLASSES),
            sl.ExpLeak(tau_mem=6.0),
        )
    )


class Convolutional(nn.Module):
    """The shape of a network converted from a trained one: convolutions on (batch * time), IAF neurons, pooling."""

    def __init__(self) -> None:
        import sinabs.layers as sl

        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.iaf1 = sl.IAF(min_v_mem=-1.0)
        self.pool = nn.AvgPool2d(2)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.iaf2 = sl.IAF(spike_threshold=torch.tensor(0.5))
        self.fc = nn.Linear(4 * 4 * 4, CLASSES, bias=False)
        self.out = sl.ExpLeak(tau_mem=10.0)
        exact_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        batch, time = x.shape[:2]
        y = self.conv1(x.flatten(0, 1)).unflatten(0, (batch, time))
        y = self.pool(self.iaf1(y).flatten(0, 1))
        y = self.iaf2(self.conv2(y).unflatten(0, (batch, time)))
        return self.out(self.fc(y.flatten(2))).mean(1)


def squeezed_film(steps: int, batch: int) -> tuple[Tensor]:
    """A batch of films of events, batch and time in one axis."""
    return (film(steps, batch)[0].flatten(0, 1),)


def squeezed(**sizes: int) -> nn.Module:
    """A network converted from a trained one as the library does it: batch and time are one axis in every layer."""
    import sinabs.layers as sl

    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        sl.IAFSqueeze(min_v_mem=-1.0, **sizes),
        nn.AvgPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1),
        sl.LIFSqueeze(tau_mem=5.0, norm_input=False, **sizes),
        nn.Flatten(),
        nn.Linear(64, CLASSES),
        sl.ExpLeakSqueeze(tau_mem=10.0, **sizes),
    )
    with torch.no_grad():
        net[3].weight.mul_(4)
    return exact_weights(net)


class Recurrent(nn.Module):
    """A recurrent layer."""

    def __init__(self) -> None:
        import sinabs.layers as sl

        super().__init__()
        self.fc = nn.Linear(INPUTS, HIDDEN)
        self.lif = sl.LIFRecurrent(tau_mem=5.0, rec_connect=nn.Linear(HIDDEN, HIDDEN, bias=False), norm_input=False)
        self.out = nn.Linear(HIDDEN, CLASSES)
        exact_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lif(self.fc(x)))


def reset_recurrent(model: nn.Module) -> None:
    """Resets the recurrent layer itself: the library's function passes over layers that have children."""
    model.lif.reset_states()  # type: ignore[operator, union-attr]


def _entry(name: str, build: Any, example: Any = sequence, **options: Any) -> Entry:
    return Entry(
        f"sinabs: {name}",
        build,
        example,
        library="sinabs",
        double=False,
        **{"reset": reset, "states": states, **options},
    )


ENTRIES = [
    _entry("LIF, several spikes a step", leaky),
    _entry("LIF with single spikes, ExpLeak readout", single_spikes),
    _entry("convolutional IAF network", Convolutional, film),
    _entry("recurrent LIF", Recurrent, reset=reset_recurrent),
    _entry("squeezed layers for a batch size", lambda: squeezed(batch_size=2), squeezed_film, batch=2),
    _entry(
        "squeezed layers for a number of steps", squeezed, squeezed_film, build_for=lambda t: squeezed(num_timesteps=t)
    ),
]
