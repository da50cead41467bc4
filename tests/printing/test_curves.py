"""The rate curves of the analytic rule as functions of the text."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tracecompile
import tracecompile.nn as snn
from printing.executed import stages_of


class OneLayer(nn.Module):
    """A layer of neurons on a synapse."""

    def __init__(self, neurons: nn.Module) -> None:
        super().__init__()
        self.fc, self.neurons = nn.Linear(5, 8), neurons

    def forward(self, x: Tensor) -> Tensor:
        state, found = None, []
        for x_t in x:
            out, state = self.neurons(self.fc(x_t), state)
            found.append(out)
        return torch.stack(found)


KINDS = {
    "subtract": lambda: snn.LIF(8, detach_reset=False),
    "zero": lambda: snn.LIF(8, reset="zero", detach_reset=False),
    "integrator": lambda: snn.LI(8),
    "replay": lambda: snn.LIF(8),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_printed_curve_is_that_of_the_rule(kind: str) -> None:
    net = tracecompile.convert(OneLayer(KINDS[kind]()), torch.rand(6, 2, 5), rule="analytic")
    (layer,) = net.program.layers
    curve = layer.response
    assert curve.curve == kind
    printed = dict(stages_of(net))["insert_rate_inversion"]
    if kind == "replay":  # its core is the curve
        assert "mean_outputs" not in printed.text
        return
    assert f"# insert_rate_inversion: rate curve of {layer.name}\n" in printed.text
    current = 2 * torch.randn(3, 8)
    statics = dict(zip(net.program.statics.names, _statics(net), strict=True))
    given = [statics[name] for name in layer.core_statics]
    (found,) = printed.run()[f"{layer.name}_mean_outputs"](current, *given)
    (expected,) = curve.mean_outputs({layer.currents[0]: current}, statics).values()
    assert torch.equal(found, expected)
    assert found.shape == current.shape


def _statics(net: tracecompile.TracedModule) -> list[Tensor]:
    program = net.program
    return list(program.statics.graph(*(program.resolve(path) for path in program.statics.attributes)))
