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
