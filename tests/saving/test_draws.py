"""A network that draws at every step comes back from a folder, and draws as before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from forms.test_draws import DrawsInAnotherOrder, DropsSpikes, Lateral, NoiseThroughWeights, SaturatesWhatItDrops
from support.oracle import INPUTS
from torch import Tensor, nn

import tracecompile


def drawn_by(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    torch.manual_seed(4)
    return net(x), torch.get_rng_state()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "model", [DrawsInAnotherOrder, DropsSpikes, Lateral, NoiseThroughWeights, SaturatesWhatItDrops]
)
def test_a_network_that_was_loaded_draws_on(model: type[nn.Module], training: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    own, x = model(), 2 * torch.randn(9, 3, INPUTS)
    net = tracecompile.convert(own.train(training), torch.randn(6, 2, INPUTS), backend="eager")
    tracecompile.save(net, tmp_path / "saved")
    for trusting in (False, True):
        again = tracecompile.load(tmp_path / "saved", weights_only=not trusting)
        for mode in (training, not training, training):
            found, wanted = drawn_by(again.train(mode), x), drawn_by(own.train(mode), x)
            assert all(map(torch.equal, found, wanted))
        drawn_by(again.train(), x)[0].sin().sum().backward()
        own.zero_grad()
        drawn_by(net.train(), x)[0].sin().sum().backward()
        gradients = zip(again.parameters(), own.parameters(), strict=True)
        assert all(torch.equal(one.grad, other.grad) for one, other in gradients if other.grad is not None)
