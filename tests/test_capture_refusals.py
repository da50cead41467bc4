"""What cannot be captured is refused at the user's own line; two idioms of one network are one step."""

from __future__ import annotations

import linecache

import pytest
import test_capture_models as models
import torch
from test_capture_helpers import normal_form
from torch import nn

from tracecompile.capture import capture_program
from tracecompile.errors import ConversionError, NoSpikingLayer, UnrollableLoop, UnsupportedControlFlow


@pytest.mark.parametrize(
    ("kind", "error", "shape"),
    [
        (models.BranchOnSpikes, UnsupportedControlFlow, (2, models.INPUTS)),
        (models.BodyDependsOnTime, UnrollableLoop, (6, 2, models.INPUTS)),
        (models.WeightedByTime, UnrollableLoop, (6, 2, models.INPUTS)),
    ],
)
def test_refusal_names_the_line(kind: type[nn.Module], error: type[ConversionError], shape: tuple[int, ...]) -> None:
    with pytest.raises(error) as caught:
        capture_program(kind(), (torch.randn(shape),), {})
    where = caught.value.where
    assert where is not None
    assert where.file == models.__file__
    assert "the refused line" in linecache.getline(where.file, where.line)


def test_no_state() -> None:
    with pytest.raises(NoSpikingLayer):
        capture_program(models.NoState(), (torch.randn(6, 2, models.INPUTS),), {})


def test_two_idioms_of_one_network_give_one_step() -> None:
    loop = capture_program(models.NestedLoop(), (torch.randn(6, 2, models.INPUTS),), {})
    zeros = torch.zeros(2, models.HIDDEN)
    state = ((zeros, zeros), (torch.zeros(2, models.OUTPUTS),))
    step = capture_program(models.NestedState(), (torch.randn(2, models.INPUTS), state), {})
    assert sorted(row[:2] for row in normal_form(loop.step.graph)) == sorted(
        row[:2] for row in normal_form(step.step.graph)
    )
