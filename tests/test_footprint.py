"""The memory that the report states before the first step, and the band of the responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import tracecompile
import tracecompile.nn as snn
from tracecompile.diagnostics.held import count_held
from tracecompile.diagnostics.memory import live_state_bytes, saved_bytes
from tracecompile.rules.measured.tangents import Tangents
from tracecompile.runtime.module import session_of
from tracecompile.runtime.recompute.cotangents import Cotangents
from tracecompile.runtime.recompute.pieces import Moment, Pieces
from tracecompile.runtime.sampled import SAMPLES


class Net(nn.Module):
    def __init__(self, leak: float = 0.9, learn: bool = False) -> None:
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(5, 30), snn.RLIF(30, leak=leak, learn_leak=learn)
        self.fc2, self.lif2 = nn.Linear(30, 20), snn.LIF(leak=leak, detach_reset=False)

    def forward(self, x: Tensor) -> Tensor:
        state1 = state2 = None
        outputs = []
        for x_t in x:
            s1, state1 = self.lif1(self.fc1(x_t), state1)
            s2, state2 = self.lif2(self.fc2(s1), state2)
            outputs.append(s2)
        return torch.stack(outputs)


@pytest.mark.parametrize("bins", [1, 4, 10])
@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize("chunk", [1, 16])
def test_the_report_states_the_memory_before_the_first_step(bins: int, learn: bool, chunk: int) -> None:
    batch = 7
    net = tracecompile.convert(Net(learn=learn), torch.rand(12, 3, 5), bins=bins, backend="eager", chunk=chunk)
    memory = net.report.memory
    # A sequence's own states are in the caller's hands.
    stated = batch * (memory.total - memory.states) + memory.profiles
    held = []
    for steps in (40, 80):
        outputs = net(torch.rand(steps, batch, 5))
        held.append(live_state_bytes(net))
        outputs.sum().backward()
    assert held[0] == held[1]
    # What time does to a state within a bin is held until the bin ends; the weights of the sums are a few numbers more.
    assert 0.85 * stated < held[0] < 1.1 * stated, (held[0], str(memory))
    assert "whatever the number of steps" in str(net.report)
    assert net.report.to_dict()["memory"]["total"] == net.report.memory.total


class Normed(nn.Module):
    """What comes in is normalised by itself, and so seen at some steps of each bin as it was."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.lif = nn.Linear(50, 3), nn.LayerNorm(3), snn.LIF()

    def forward(self, x: Tensor) -> Tensor:
        state, total = None, torch.zeros(())
        for x_t in x:
            z, state = self.lif(self.norm(self.fc(x_t)), state)
            total = total + z
        return total


@pytest.mark.parametrize("bins", [1, 4])
def test_the_report_states_the_memory_of_samples(bins: int) -> None:
    batch = 7
    net = tracecompile.convert(Normed(), torch.rand(12, 3, 50), bins=bins, backend="eager", chunk=1)
    result = net(torch.rand(40, batch, 50))
    held, memory = live_state_bytes(net), net.report.memory
    samples = bins * SAMPLES * batch * 50 * 4
    assert held > samples
    assert 0.85 * held < batch * (memory.total - memory.states) + memory.profiles < 1.15 * held
    result.sum().backward()


def band_and_gradients(leak: float, bins: int) -> tuple[int, list[Tensor]]:
    torch.manual_seed(0)
    net = tracecompile.convert(Net(leak), bins=bins)
    x = 3 * torch.rand(200, 4, 5)
    window_outputs = net(x)
    window = session_of(net).window
    assert window is not None
    band = max(responses.band for responses in window.record.responses.values())
    gradients = torch.autograd.grad(window_outputs.square().mean(), list(net.parameters()))
    return band, list(gradients)


def test_responses_that_have_faded_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, _ = band_and_gradients(leak=0.99, bins=20)
    fast, gradients = band_and_gradients(leak=0.5, bins=20)
    assert slow == 20
    assert 2 <= fast <= 4  # 0.5 ** 23 is a rounding of float32, and a bin has 10 steps
    monkeypatch.setattr(Tangents, "_drop_faded", lambda self: None)
    full, expected = band_and_gradients(leak=0.5, bins=20)
    assert full == 20
    for found, target in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, target, rtol=1e-5, atol=1e-9)
        assert target.norm() > 0


def test_probe_reports_the_band() -> None:
    x = 3 * torch.rand(200, 4, 5)
    probe = tracecompile.probe(tracecompile.convert(Net(0.5), x, bins=20), x)
    assert 2 <= max(layer.band for layer in probe.layers) <= 4
    assert "band" in str(probe)


@pytest.mark.parametrize(("snapshots", "chunk"), [(4, 2), (8, 1), (3, 16)])
def test_the_exact_rule_states_what_it_keeps(snapshots: int, chunk: int) -> None:
    batch = 7
    net = tracecompile.convert(
        Net(), torch.rand(12, 3, 5), rule="exact", snapshots=snapshots, chunk=chunk, backend="eager"
    )
    memory = net.report.memory
    held = []
    for steps in (80, 320):
        x = torch.rand(steps, batch, 5)
        held.append(count_held(lambda x=x: net(x).sum()))  # type: ignore[misc]
    assert held[0] == held[1]
    assert held[0] == pytest.approx(batch * memory.snapshots, rel=0.1), str(memory)
    assert "snapshots" in str(net.report)
    assert net.report.to_dict()["memory"]["total"] == memory.total == memory.states + memory.snapshots + memory.piece


@pytest.mark.parametrize(("backend", "chunk"), [("eager", 1), ("eager", 5), ("inductor", 4)])
def test_the_exact_rule_states_what_a_piece_holds(
    monkeypatch: pytest.MonkeyPatch, backend: Literal["eager", "inductor"], chunk: int
) -> None:
    batch, model = 7, Net()
    x = torch.rand(3 * chunk, batch, 5)
    net = tracecompile.convert(model, x[:, :3], rule="exact", chunk=chunk, backend=backend)
    held: list[int] = []
    backward, pull = Pieces.backward, Cotangents.pull

    def counted(pieces: Pieces, moment: Moment, piece: int, inputs: Sequence[Tensor], signals: Cotangents) -> None:
        there = [
            *inputs,
            *moment.states,
            *model.parameters(),
            *(v for v in signals.statics.values() if isinstance(v, Tensor)),
        ]

        def at_the_end(*given: Any) -> bool:
            held.append(graph.bytes)
            return pull(*given)

        with saved_bytes(exclude=there) as graph, monkeypatch.context() as patch:
            patch.setattr(Cotangents, "pull", at_the_end)
            backward(pieces, moment, piece, inputs, signals)

    net(x).sum().backward()  # compiles
    monkeypatch.setattr(Pieces, "backward", counted)
    net(x).sum().backward()
    assert len(held) == 3
    assert max(held) == pytest.approx(batch * net.report.memory.piece, rel=0.1), str(net.report.memory)


def test_what_a_compiler_leaves_behind_holds_nothing() -> None:
    left: list[Tensor] = []

    def forward() -> Tensor:
        with FakeTensorMode():
            left.append(torch.zeros(1000))
        return torch.zeros(10, requires_grad=True) * 2

    assert count_held(forward) == 2 * 10 * 4
    assert left[0].device.type == "cpu"
