"""When "auto" compiles single steps."""

from __future__ import annotations

import pytest
import torch

import tracecompile
from runtime.nets import Step, events, ran, twins
from tracecompile.runtime.engine import choice, step, work
from tracecompile.runtime.module import session_of

BATCH = 3


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a few steps be enough, and compiles nothing: that takes its time, and is not what is looked at."""
    monkeypatch.setattr(work, "STEP_PAID_BACK", 10 * BATCH * (7 + 3))
    monkeypatch.setattr(work, "A_STEP", 0)
    monkeypatch.setattr(step.CompiledStep, "__call__", lambda self, given: self._as_it_is(given))


def test_auto_compiles_at_the_same_step_in_every_run(little: None) -> None:
    for _ in range(2):
        net = tracecompile.convert(twins(Step)[0], events(1, 2)[0])
        found = []
        for x_t in events(30, BATCH):
            net(x_t)
            found.append(ran(net)[0])
        enough = session_of(net).executor.single.work.enough  # type: ignore[union-attr]
        count = enough // (BATCH * 10)
        assert found == ["eager"] * (count - 1) + ["inductor"] * (30 - count + 1)
        assert 1 < count < 30
        assert f"call {count} has reached the {enough:,} state updates" in " ".join(str(net.report).split())


def test_what_is_not_trained_does_not_count_for_auto(little: None) -> None:
    net = tracecompile.convert(twins(Step)[0], events(1, 2)[0])
    with torch.no_grad():
        for x_t in events(30, BATCH):
            net(x_t)
    assert ran(net) == ("eager", 1)
    assert session_of(net).executor.single.work.updates == 0  # type: ignore[union-attr]
    assert "not trained" in str(net.report)


def test_auto_without_a_compiler(little: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice.shutil, "which", lambda name: None)
    net = tracecompile.convert(twins(Step)[0], events(1, 2)[0])
    for x_t in events(30, BATCH):
        net(x_t)
    assert ran(net) == ("eager", 1)
    assert "there is no C++ compiler" in str(net.report)


def test_a_chunk_of_one_that_was_asked_for_stays(little: None) -> None:
    net = tracecompile.convert(twins(Step)[0], events(1, 2)[0], chunk=1)
    for x_t in events(30, BATCH):
        net(x_t)
    assert ran(net) == ("eager", 1)
