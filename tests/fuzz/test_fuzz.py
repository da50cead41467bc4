"""Random programs of users, always the same ones; ``python -m tests.fuzz`` runs as many as one likes."""

from __future__ import annotations

import os
from collections import Counter

import pytest

import fuzz.check
from fuzz import shrink
from fuzz.check import MISSING, Verdict, check, template
from fuzz.choices import Choices
from fuzz.render import Rendered, render
from fuzz.run import BATCH, drawn_from, summary
from fuzz.shrink import from_choices, shrunk

PROGRAMS = int(os.environ.get("TRACECOMPILE_FUZZ", "300"))
SEEDS = 3
"""Of one test: together they are programs enough for a share."""
FIRSTS = range(1, 1 + -(-PROGRAMS // BATCH), SEEDS)
MOST_REFUSED = 0.5
"""Share of the programs of one test that may be refused; of all 300 it is a fifth, and the goal is 0.15."""
MOST_UNSOUND = 0.2
"""Share of the programs that their own model fails, that never fire, or that cannot be trained."""


@pytest.mark.parametrize("first", FIRSTS)
def test_programs_are_converted_right_or_refused_at_a_line(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz.check, "SECONDS", 120)  # how fast this machine is, is no matter of a test
    found = [check(rendered) for seed in range(first, first + SEEDS) for rendered in drawn_from(seed)]
    faults = [each for each in found if each.outcome == "fault"]
    for fault in {each.reason: each for each in faults}.values():
        smallest = shrunk(fault)
        print(f"{smallest.message}\n{smallest.rendered.taken}\n{smallest.rendered.source}")
    assert not faults, f"{len(faults)} programs are neither right nor refused; the smallest of each kind is printed"
    there = [each for each in found if each.reason != MISSING]
    counted = Counter(each.outcome for each in there)
    assert counted["unsound"] <= MOST_UNSOUND * len(there)
    assert counted["refused"] <= MOST_REFUSED * (len(there) - counted["unsound"])


def test_the_first_options_are_a_plain_model_that_converts() -> None:
    verdict = check(from_choices({}), full=True)
    assert verdict.outcome == "right", verdict.message


def test_a_program_is_rendered_again_from_its_choices() -> None:
    taken = {"form": 1, "surrogate": 3, "reset 1": 5, "recorded": 2}
    assert from_choices(taken).source == from_choices(taken).source != from_choices({}).source
    assert from_choices(taken).taken == taken


def test_options_that_are_not_there_any_more_are_the_first() -> None:
    assert render(Choices(taken={"surrogate": 999, "never asked": 3})).source == from_choices({}).source


def test_a_fault_is_shrunk_to_the_choices_that_make_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def stand_in(rendered: Rendered) -> Verdict:
        guilty = "reset 1" in rendered.taken and "form" in rendered.taken
        return Verdict("fault" if guilty else "right", "wrong" if guilty else "", "", rendered)

    monkeypatch.setattr(shrink, "check", stand_in)
    verdict = stand_in(from_choices({"form": 1, "surrogate": 3, "reset 1": 5, "recorded": 2, "odd readout": 7}))
    assert shrunk(verdict).rendered.taken == {"form": 1, "reset 1": 5}


@pytest.mark.parametrize(
    ("choices", "outcome"),
    [
        ({"decided": 1}, "refused"),  # whether something is done depends on the spikes
        ({"recorded": 1, "record z": 8}, "unsound"),  # everything that is returned is detached
    ],
)
def test_other_outcomes_are_told_apart(choices: dict[str, int], outcome: str) -> None:
    assert check(from_choices(choices)).outcome == outcome


def test_equal_reasons_are_counted_together() -> None:
    one, other = (template(f"The state v{n} is (2, {n}) at /tmp/a/program_{n}f.py:{n}") for n in (3, 4))
    assert one == other
    rows = [{"outcome": "refused", "reason": one, "taken": {"loop main": 3}} for _ in range(2)]
    text = summary([*rows, {"outcome": "right", "reason": "", "taken": {}}])
    assert "2 refused (66.7%)" in text
    assert "loop main=3 (2/2)" in text
