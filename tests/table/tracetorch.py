"""Networks in the style of traceTorch's documentation: one step a call, state in each layer until it is zeroed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from table.harness import Entry

INPUTS, HIDDEN, CLASSES = 6, 12, 4


def one_step(steps: int, batch: int) -> tuple[Tensor]:
    """The input of one step."""
    return (3 * torch.randn(batch, INPUTS),)


def sequence(steps: int, batch: int) -> tuple[Tensor]:
    """A sequence of input currents, time first."""
    return (3 * torch.randn(steps, batch, INPUTS),)


def picture(steps: int, batch: int) -> tuple[Tensor]:
    """The input of one step of a convolutional network."""
    return (2 * torch.randn(batch, 1, 8, 8),)


def reset(model: nn.Module) -> None:
    """The library's own reset."""
    model.zero_states()  # type: ignore[operator]


def states(model: nn.Module) -> list[Tensor]:
    """What the layers hold."""
    return list(model.save_states().values())  # type: ignore[operator]


def network(*layers: nn.Module, loop: bool = False) -> nn.Module:
    """A model of the library with some layers, one step a call or a loop over time."""
    import tracetorch as tt

    class Network(tt.Model):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*layers)

        def forward(self, x: Tensor) -> Tensor:
            if not loop:
                return self.layers(x)
            self.zero_states()
            return torch.stack([self.layers(x[t]) for t in range(x.size(0))])

    return Network()


def binary(loop: bool = False) -> nn.Module:
    """Leaky neurons with rounded spikes, then a leaky readout: decays, thresholds and biases per neuron."""
    import tracetorch as tt

    round_ste = tt.functional.round_ste()
    return network(
        nn.Linear(INPUTS, HIDDEN), tt.snn.LIB(HIDDEN, beta=0.8, quant_fn=round_ste), nn.Linear(HIDDEN, CLASSES),
        tt.snn.LI(CLASSES, beta=0.9), loop=loop,
    )  # fmt: skip


def smooth() -> nn.Module:
    """The library's default: outputs between zero and one, no spikes; synaptic and dual states."""
    import tracetorch as tt

    return network(
        nn.Linear(INPUTS, HIDDEN), tt.snn.SLIB(HIDDEN, beta=0.8), nn.Linear(HIDDEN, HIDDEN), tt.snn.DLIB(HIDDEN),
        nn.Linear(HIDDEN, CLASSES), tt.snn.SLI(CLASSES),
    )  # fmt: skip


def ternary() -> nn.Module:
    """Spikes of both signs, and a recurrent layer."""
    import tracetorch as tt

    round_ste = tt.functional.round_ste()
    return network(
        nn.Linear(INPUTS, HIDDEN), tt.snn.LIT(HIDDEN, beta=0.8, quant_fn=round_ste), nn.Linear(HIDDEN, HIDDEN),
        tt.snn.RLIB(HIDDEN, rec_weight=0.5, quant_fn=round_ste), nn.Linear(HIDDEN, CLASSES), tt.snn.LIEMA(CLASSES),
    )  # fmt: skip


def convolutional() -> nn.Module:
    """A convolution whose channels are the neurons (dim -3), spikes of both signs with a scale."""
    import tracetorch as tt

    round_ste = tt.functional.round_ste()
    return network(
        nn.Conv2d(1, 4, 3, padding=1), tt.snn.LITS(4, dim=-3, quant_fn=round_ste), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(4 * 4 * 4, CLASSES), tt.snn.LI(CLASSES),
    )  # fmt: skip


def _step(name: str, build: Callable[[], nn.Module], example: Any = one_step) -> Entry:
    return Entry(f"tracetorch: {name}", build, example, kind="step", library="tracetorch", reset=reset, states=states)


ENTRIES = [
    _step("LIB and LI, one step a call", binary),
    Entry("tracetorch: LIB and LI, loop over time", lambda: binary(loop=True), sequence, library="tracetorch"),
    _step("SLIB, DLIB and SLI without spikes", smooth),
    _step("LIT, recurrent RLIB, LIEMA", ternary),
    _step("convolutional LITS", convolutional, picture),
]
