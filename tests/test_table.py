"""Every model of the table: values, gradients, memory, liveness, and a model that nothing happened to."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from models import FastSigmoid, LazyAttributes, RecurrentLoop, TupleState
from table import all_entries
from table.harness import (
    CHECKS,
    Entry,
    check_gradients,
    check_live,
    check_memory,
    check_outputs_and_states,
    check_untouched,
    needs,
)
from torch import Tensor, nn


def _cases() -> list[object]:
    return [
        pytest.param(
            entry,
            check,
            id=f"{entry.name}-{name}",
            # Libraries warn about themselves; what the compiler warns about is tested with its own models.
            marks=[pytest.mark.libraries, pytest.mark.filterwarnings("ignore")] if entry.library else [],
        )
        for entry in all_entries()
        for name, check in CHECKS.items()
    ]


@pytest.mark.parametrize(("entry", "check"), _cases())
def test_model(entry: Entry, check: Callable[[Entry], None]) -> None:
    with needs(entry):
        check(entry)


def test_names_are_unique() -> None:
    names = [entry.name for entry in all_entries()]
    assert len(set(names)) == len(names)


def _forget_membranes(model: nn.Module) -> None:
    for module in model.modules():
        if hasattr(module, "mem"):
            module.mem = None


LOOP = Entry("loop", RecurrentLoop, lambda steps, batch: (4 * torch.randn(steps, batch, 4),))
STEP = Entry(
    "attributes",
    LazyAttributes,
    lambda steps, batch: (9 * torch.randn(batch, 4),),
    kind="step",
    reset=_forget_membranes,
    states=lambda model: [m.mem for m in model.modules() if hasattr(m, "mem")],
)
EXPLICIT = Entry(
    "explicit",
    TupleState,
    lambda steps, batch: (4 * torch.randn(batch, 4), TupleState.initial(None, torch.zeros(batch, 4))),
    kind="step",
)


@pytest.mark.parametrize("entry", [LOOP, STEP, EXPLICIT], ids=lambda entry: entry.name)
@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS.keys())
def test_the_harness_accepts_what_is_right(entry: Entry, check: Callable[[Entry], None]) -> None:
    check(entry)


class DeadLoop(RecurrentLoop):
    """Never reaches its threshold."""

    def forward(self, x: Tensor) -> Tensor:
        mem = x.new_zeros(x.shape[1], 5)
        for x_t in x:
            mem = 0.9 * mem + self.fc(x_t) * 1e-3
            mem = mem - FastSigmoid.apply(mem - 1.0)
        return mem


def test_the_harness_notices_dead_neurons() -> None:
    with pytest.raises(AssertionError, match="thresholds were crossed"):
        check_live(Entry("dead", DeadLoop, lambda steps, batch: (torch.rand(steps, batch, 4),)))


def _scale(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)


@pytest.mark.parametrize("check", [check_outputs_and_states, check_gradients, check_untouched])
def test_the_harness_notices_another_network(check: Callable[[Entry], None], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Entry.convert

    def other(self: Entry, model: nn.Module, *args: object, **options: object) -> nn.Module:
        _scale(model)
        return plain(self, model, *args, **options)

    monkeypatch.setattr(Entry, "convert", other)
    with pytest.raises(AssertionError):
        check(LOOP)


def test_the_harness_notices_memory_that_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Entry.convert
    monkeypatch.setattr(Entry, "convert", lambda self, *args, **options: plain(self, *args, rule="bptt", **options))
    with pytest.raises(AssertionError, match="bytes saved for backward"):
        check_memory(LOOP)
