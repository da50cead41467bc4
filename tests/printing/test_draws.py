"""What a step draws is printed, and drawn by the text as by the model."""

from __future__ import annotations

import pytest
import torch
from forms.test_draws import DrawsInAnotherOrder, DropsSpikes, EncodesByRate, Lateral, SpikesByChance
from support.oracle import INPUTS
from torch import nn

import tracecompile
from printing.executed import require_graphs_exact, require_stages_run


@pytest.mark.parametrize("rule", ["measured", "bptt"])
@pytest.mark.parametrize("model", [DrawsInAnotherOrder, DropsSpikes, EncodesByRate, Lateral, SpikesByChance])
def test_every_stage_draws_what_the_model_draws(model: type[nn.Module], rule: str) -> None:
    torch.manual_seed(0)
    x = 2 * torch.randn(6, 3, INPUTS)
    require_stages_run(model(), (x,), rule=rule)
    assert require_graphs_exact(model(), (x,), rule=rule) > 10


def test_the_text_says_what_is_drawn() -> None:
    net = tracecompile.convert(DropsSpikes(), torch.randn(6, 3, INPUTS))
    assert [name for name, _ in net.stages][:2] == ["capture", "draw_ahead"]
    for _, text in net.stages[1:]:
        if "nothing changed" not in text:
            assert "def draws(" in text
            assert "drawn = draws(" in text
            assert "model.drop(torch.ones_like(" in text
