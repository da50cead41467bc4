"""What is told to logging.getLogger("tracecompile"), and that nothing is printed unasked."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn

import tracecompile
import tracecompile.nn as snn


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights, self.neurons = nn.Linear(4, 6), snn.LIF(6)

    def forward(self, x: Tensor) -> Tensor:
        state, total = None, torch.zeros(())
        for x_t in x:
            spikes, state = self.neurons(self.weights(x_t), state)
            total = total + spikes
        return total


def test_a_capture_its_notes_and_the_reason_of_another_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    model, x = Net(), torch.rand(7, 2, 4)
    with caplog.at_level(logging.INFO, logger="tracecompile"):
        net = tracecompile.convert(model, x)
        first = [record.getMessage() for record in caplog.records]
        assert "Net is captured, program 1" in first
        assert {f"Net: {note}" for note in net.report.notes} <= set(first)
        caplog.clear()
        net(x)
        assert not caplog.records, "an ordinary call says nothing"
        model.weights = nn.Linear(4, 6, bias=False)
        net(x)
    again = [record.getMessage() for record in caplog.records]
    assert "Net is captured, program 2" in again
    assert any(message.startswith("Net: Captured again, since") for message in again)
    assert {record.levelno for record in caplog.records} == {logging.INFO}


def test_nothing_is_printed_unasked(capfd: pytest.CaptureFixture[str]) -> None:
    tracecompile.convert(Net(), torch.rand(7, 2, 4))
    assert capfd.readouterr() == ("", "")


class Hard(nn.Module):
    """Spikes without a surrogate; a readout of them may learn."""

    def __init__(self, reads: bool) -> None:
        super().__init__()
        self.weights, self.readout = nn.Linear(4, 6), nn.Linear(6, 2) if reads else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        v, total = torch.zeros(x.shape[1], 6), torch.zeros(())
        for x_t in x:
            v = 0.9 * v + self.weights(x_t)
            spikes = (v > 0.5).float()
            v = v - 0.5 * spikes
            total = total + self.readout(spikes)
        return total


@pytest.mark.parametrize(("reads", "training"), [(False, True), (True, True), (False, False)])
def test_a_model_that_cannot_learn_at_all_is_told_aloud(
    reads: bool, training: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A trained readout of a frozen reservoir is as it should be, and so is a network that is only run."""
    with caplog.at_level(logging.WARNING, logger="tracecompile"):
        net = tracecompile.convert(Hard(reads).train(training), torch.rand(7, 2, 4))
    said = [record.getMessage() for record in caplog.records]
    assert any("hard threshold" in note for note in net.report.notes)
    if reads or not training:
        assert said == []
        return
    (message,) = said
    assert message.startswith("Hard: no parameter can learn: no gradient gets through the hard threshold")
    assert "test_logging.py:" in message
    assert "tracecompile.nn" in message
