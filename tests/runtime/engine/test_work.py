"""When "auto" compiles: by what a program was asked for so far, counted, the same in every run."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracecompile
import tracecompile.nn as snn
from runtime.nets import HIDDEN, INPUTS, OUTPUTS, Step, Whole, assert_same, events, gradients, twins
from runtime.test_threads import in_threads
from runtime.test_turns import HeldBackByAll, made
from tracecompile.runtime.engine import choice, compiled, work
from tracecompile.runtime.executor import Executor
from tracecompile.runtime.module import session_of

STATES = HIDDEN + HIDDEN + OUTPUTS  # of Whole, for each sample: membranes, spikes that come back, the readout
STEPS, BATCH = 21, 3
A_CALL = STEPS * BATCH * STATES
Settings = dict[str, Any]


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets three calls be work enough for Whole, which has two kinds of scans."""
    monkeypatch.setattr(work, "PAID_BACK", (5 * A_CALL) // 4)
    monkeypatch.setattr(work, "A_STEP", 0)


@pytest.fixture
def as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiles nothing, whatever is chosen: that takes its time, and is not what is looked at."""
    monkeypatch.setattr(Executor, "engine", lambda self, choice: self.as_they_are)


def ran(net: tracecompile.TracedModule) -> tuple[str, int]:
    execution = net.report.execution
    assert execution is not None
    return execution.backend, execution.chunk


def said(net: tracecompile.TracedModule) -> str:
    return " ".join(str(net.report).split())


def counted(net: tracecompile.TracedModule) -> int:
    executor = session_of(net).executor
    return 0 if executor is None else executor.work.updates


def train(net: tracecompile.TracedModule, calls: int, steps: int = STEPS, batch: int = BATCH) -> list[tuple[str, int]]:
    """Returns what ran each of some calls."""
    found = []
    for _ in range(calls):
        net(events(steps, batch)).square().sum().backward()
        found.append(ran(net))
    return found


def converted(model: nn.Module | None = None, **settings: Any) -> tracecompile.TracedModule:
    model = twins(Whole)[0] if model is None else model
    few = {} if settings.keys() & {"rule", "bins"} else {"bins": 1}
    return tracecompile.convert(model, events(6, 2), **few, **settings)


EAGER, COMPILED = ("eager", 1), ("inductor", 16)


@pytest.mark.parametrize("settings", [{"bins": 1}, {"rule": "exact"}], ids=str)
def test_two_runs_switch_at_the_same_call(settings: Settings, as_they_are: None) -> None:
    for _ in range(2):
        assert train(converted(**settings), 5) == [EAGER, EAGER, COMPILED, COMPILED, COMPILED]


def test_what_counts_is_steps_times_elements_of_this_batch(as_they_are: None) -> None:
    net = converted()
    assert counted(net) == 0, "converting runs the net, which is nobody's training"
    train(net, 1, STEPS, 4)
    assert counted(net) == STEPS * 4 * STATES
    assert train(net, 1, 2 * STEPS, BATCH // 3) == [EAGER]
    assert counted(net) == STEPS * (4 + 2) * STATES, "two calls"
    assert train(net, 1, STEPS, 2 * BATCH) == [COMPILED]


def test_a_step_of_a_scan_counts_beside_its_elements(monkeypatch: pytest.MonkeyPatch, as_they_are: None) -> None:
    monkeypatch.setattr(work, "A_STEP", 1000)
    net = converted()
    train(net, 1)
    assert counted(net) == A_CALL + STEPS * 2 * 1000


def test_a_single_call_may_be_enough(as_they_are: None) -> None:
    assert train(converted(), 1, STEPS, 8) == [COMPILED]


def test_a_chunk_that_was_asked_for_stays(as_they_are: None) -> None:
    net = converted(chunk=20)
    assert train(net, 3) == [("eager", 20), ("eager", 20), ("inductor", 20)]
    assert "values will be the model's up to rounding" not in said(net)


@pytest.mark.parametrize("chunk", [1, 15])
def test_a_chunk_that_is_too_short_is_not_compiled(chunk: int, as_they_are: None) -> None:
    net = converted(chunk=chunk)
    assert train(net, 5) == [("eager", chunk)] * 5
    assert counted(net) == 0
    assert ("up to rounding" in said(net)) == (chunk > 1)
    assert "training has come to" not in said(net)


def test_a_short_sequence_is_not_compiled_and_does_not_count(as_they_are: None) -> None:
    net = converted()
    assert train(net, 40, choice.LONG_ENOUGH - 1) == [EAGER] * 40
    assert counted(net) == 0
    assert train(net, 4) == [EAGER, EAGER, COMPILED, COMPILED]
    assert train(net, 1, choice.LONG_ENOUGH - 1) == [EAGER]
    assert "too few to compile" in said(net)
    assert train(net, 2, choice.LONG_ENOUGH) == [COMPILED] * 2


def test_bins_cut_a_sequence(as_they_are: None) -> None:
    net = converted(bins=3)
    assert f"Sequences of {3 * choice.LONG_ENOUGH} steps or more" in said(net)
    assert train(net, 9, 3 * choice.LONG_ENOUGH - 1) == [EAGER] * 9
    assert counted(net) == 0
    assert train(net, 2, 3 * choice.LONG_ENOUGH) == [EAGER, COMPILED]


@pytest.mark.parametrize("rule", ["measured", "exact"])
def test_what_is_not_trained_does_not_count(rule: Any, as_they_are: None) -> None:
    net = converted(rule="exact") if rule == "exact" else converted()
    for _ in range(5):
        with torch.no_grad():
            net(events(STEPS, BATCH))
        net.eval()
        with torch.inference_mode():
            net(events(STEPS, BATCH))
        net.train()
    assert counted(net) == 0
    assert train(net, 3) == [EAGER, EAGER, COMPILED]
    before = counted(net)
    with torch.no_grad():
        net(events(STEPS, BATCH))
    assert counted(net) == before


def test_what_looks_at_single_steps_does_not_count(as_they_are: None) -> None:
    net = converted()
    executor = session_of(net).executor
    assert executor is not None
    executor.observer = lambda values: None
    assert train(net, 4) == [EAGER] * 4
    executor.observer = None
    assert counted(net) == 0


@pytest.mark.parametrize("settings", [{"backend": "eager"}, {"backend": "inductor"}, {"rule": "bptt"}], ids=str)
def test_where_there_is_no_choice_nothing_is_counted(settings: Settings, as_they_are: None) -> None:
    net = converted(**settings)
    for _ in range(4):
        net(events(STEPS, BATCH)).sum().backward()
        if "rule" not in settings:
            assert ran(net) == (EAGER if settings["backend"] == "eager" else COMPILED)
    assert counted(net) == 0
    assert "worth compiling" not in said(net)
    assert "training has come to" not in said(net)


def test_steps_count_by_themselves(as_they_are: None) -> None:
    net = tracecompile.convert(twins(Step)[0], events(1, BATCH)[0])
    for _ in range(100):
        net(events(1, BATCH)[0]).sum().backward()
    stream = converted()
    for y in stream.stream(events(100, BATCH)):
        y.sum().backward()
    for each in (net, stream):
        assert ran(each) == EAGER
        assert counted(each) == 0, "of sequences"
        executor = session_of(each).executor
        assert executor is not None
        assert executor.single.work.calls == 100


def test_sequences_whose_steps_are_taken_one_by_one_are_never_compiled(as_they_are: None) -> None:
    in_turn = converted(made(HeldBackByAll))
    for _ in range(4):
        in_turn(events(STEPS, 4 * BATCH)).sum().backward()
        assert ran(in_turn) == EAGER
    assert counted(in_turn) == 0
    assert "will be compiled" not in said(in_turn)


def test_without_a_compiler_there_is_nothing_to_wait_for(monkeypatch: pytest.MonkeyPatch, as_they_are: None) -> None:
    monkeypatch.setattr(choice.shutil, "which", lambda name: None)
    net = converted()
    assert train(net, 4) == [EAGER] * 4
    assert "there is no C++ compiler" in said(net)
    assert "will be compiled" not in said(net)


# What is said.


def test_the_report_says_when_and_what_it_means(as_they_are: None, caplog: pytest.LogCaptureFixture) -> None:
    net = converted()
    enough = 2 * work.PAID_BACK
    assert f"has come to {enough:,} updates of states" in said(net)
    assert f"counts for {2 * STATES}:" in said(net), "in a batch like the example's, of two samples"
    train(net, 1)
    assert f"{A_CALL:,} state updates in 1 call of training" in said(net)
    assert "call 3 will be compiled if those to come are like this one" in said(net)
    assert "from there on values will be the model's up to rounding" in said(net)
    train(net, 1, STEPS, 1)
    assert "in 2 calls of training" in said(net)
    assert "call 6 will be compiled" in said(net)
    with caplog.at_level("INFO", logger="tracecompile"):
        assert train(net, 4, STEPS, 1) == [EAGER] * 3 + [COMPILED]
        train(net, 2)
    assert f"call 6 has reached the {enough:,} state updates" in said(net)
    assert "from there on values are the model's up to rounding" in said(net)
    assert [each.getMessage() for each in caplog.records if "compiled from call" in each.getMessage()] == [
        f"compiled from call 6 on, after {A_CALL + 5 * STEPS * STATES:,} state updates"
    ]


# Who counts.


def test_copies_begin_anew_and_snapshots_do_not(as_they_are: None, tmp_path: Path) -> None:
    net = converted()
    train(net, 1)
    snapshot = net.snapshot()
    train(net, 1)
    net.restore(snapshot)
    net.reset()
    tracecompile.save(net, tmp_path / "saved")
    copies = [copy.deepcopy(net), pickle.loads(pickle.dumps(net)), tracecompile.load(tmp_path / "saved")]
    assert train(net, 1) == [COMPILED]
    for each in copies:
        assert train(each, 3) == [EAGER, EAGER, COMPILED]
    net.restore(snapshot)
    assert train(net, 1) == [COMPILED]


def test_each_program_counts_for_itself(as_they_are: None) -> None:
    net = converted()
    assert train(net, 3) == [EAGER, EAGER, COMPILED]
    net.below.register_forward_hook(lambda module, args, result: result.abs())
    assert train(net, 3) == [EAGER, EAGER, COMPILED], "captured again: another program"


def test_threads_count_all_that_they_do(as_they_are: None) -> None:
    net = converted()

    def work_of_one() -> None:
        for _ in range(5):
            net(events(STEPS, BATCH)).sum().backward()

    in_threads([work_of_one] * 4)
    executor = session_of(net).executor
    assert executor is not None
    assert (executor.work.updates, executor.work.calls, executor.work.since) == (20 * A_CALL, 20, 3)


# How much there is to compile.


class Layers(nn.Module):
    """Layers of neurons, one after the other."""

    def __init__(self, *neurons: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.weights = nn.ModuleList(nn.Linear(INPUTS, INPUTS) for _ in neurons)
        self.neurons = nn.ModuleList(make() for make in neurons)

    def forward(self, x: Tensor) -> Tensor:
        states: list[Any] = [None] * len(self.neurons)
        total: Any = 0.0
        for x_t in x:
            for place, (weights, neurons) in enumerate(zip(self.weights, self.neurons, strict=True)):
                x_t, states[place] = neurons(weights(x_t), states[place])
            total = total + x_t
        return total


@pytest.mark.parametrize(
    ("neurons", "kinds"),
    [
        ([snn.LIF], 1),
        ([snn.LIF] * 4, 1),
        ([snn.LIF, lambda: snn.RLIF(INPUTS)] * 2, 2),
        ([snn.LIF, lambda: snn.RLIF(INPUTS), snn.LI], 3),
    ],
)
def test_more_kinds_of_layers_are_more_to_compile(neurons: list[Callable[[], nn.Module]], kinds: int) -> None:
    net = converted(Layers(*neurons).double())
    assert work.worth_compiling(net.program) == kinds * work.PAID_BACK
    assert f"has come to {kinds * work.PAID_BACK:,} updates of states" in said(net)


class ThreeLoops(nn.Module):
    """Normalised over time and batch between one loop and the next: two of them are segments."""

    def __init__(self, last: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.norm, self.lif = nn.BatchNorm1d(HIDDEN), snn.LIF()
        self.last = self.lif if last is None else last

    def over_time(self, neurons: nn.Module, currents: Tensor) -> Tensor:
        state, spikes = None, []
        for current in currents:
            z, state = neurons(current, state)
            spikes.append(z)
        return torch.stack(spikes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for _ in range(2):
            h = self.second(self.over_time(self.lif, self.norm(h.flatten(0, 1)).view_as(h)))
        return self.over_time(self.last, self.norm(h.flatten(0, 1)).view_as(h))


def test_segments_count_together_and_are_one_call(monkeypatch: pytest.MonkeyPatch, as_they_are: None) -> None:
    of_a_call = 3 * STEPS * BATCH * HIDDEN
    monkeypatch.setattr(work, "PAID_BACK", (7 * of_a_call) // 2)
    net = converted(ThreeLoops().double())
    executor = session_of(net).executor
    assert executor is not None
    assert executor.ahead is not None
    assert len(executor.ahead.executors) == 2
    assert train(net, 2) == [EAGER, EAGER]
    assert counted(net) == 2 * of_a_call
    assert "call 4 will be compiled" in said(net)
    assert train(net, 2) == [EAGER, COMPILED]
    assert executor.work.since == 4
    other = converted(ThreeLoops(snn.LI()).double())
    assert work.worth_compiling(other.program) == 2 * work.PAID_BACK, "what its segments have to compile counts as well"


# What comes out.


@pytest.mark.parametrize("settings", [{"bins": 4}, {"rule": "exact"}], ids=str)
def test_gradients_before_and_after(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIECE", "RECURRENT_PIECE"):  # short scans, which is all that compiling takes time for
        monkeypatch.setattr(compiled, name, 1)
    monkeypatch.setattr(choice, "LONG_ENOUGH", 5)
    model, twin = twins(Whole)
    net, reference = converted(model, **settings), converted(twin, backend="eager", **settings)
    for call in range(1, 6):
        x = events(STEPS if call < 5 else STEPS + 4, BATCH)
        (y, wanted) = net(x), reference(x)
        for module, result in ((net, y), (reference, wanted)):
            module.zero_grad()
            result.mean(0).square().sum().backward()
        assert ran(net)[0] == ("eager" if call < 3 else "inductor")
        if call < 3:
            assert torch.equal(y, wanted)
        torch.testing.assert_close(y, wanted)
        assert_same(gradients(model), gradients(twin))
    execution = net.report.execution
    assert execution is not None
    assert execution.obstacles == ()
    assert execution.compiled > 0
