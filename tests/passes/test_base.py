"""What every pass promises: it leaves a program that is one and what it was given as it was, and names itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.hand_built import hand_built

from tracecompile.errors import PassError
from tracecompile.passes.base import Pass
from tracecompile.program import StepProgram


class Same(Pass):
    """Does nothing."""

    name = "same"

    def run(self, program: StepProgram) -> StepProgram:
        return program


class Demanding(Same):
    name = "demanding"

    def requires(self, program: StepProgram) -> str | None:
        return "there is no tea"


class Promising(Same):
    """Promises what it does not keep."""

    name = "promising"

    def ensures(self, before: StepProgram, after: StepProgram) -> str | None:
        return "the program is still the same" if after is before else None


class SwapStates(Pass):
    """Names states that the step does not have."""

    name = "swap_states"

    def run(self, program: StepProgram) -> StepProgram:
        return program.evolve(carries=tuple(replace(each, placeholder="nowhere") for each in program.carries))


class ErasesOutput(Pass):
    """Writes into the step that it was given."""

    name = "erases_output"

    def run(self, program: StepProgram) -> StepProgram:
        graph = program.step.graph
        graph.erase_node(next(node for node in graph.nodes if node.op == "output"))
        return program


def test_a_pass_that_does_nothing_returns_the_program() -> None:
    program = hand_built("one layer")
    assert Same()(program, ["first"]) is program


def test_a_pass_that_cannot_run_is_named() -> None:
    with pytest.raises(PassError, match=r"^Pass demanding cannot run: there is no tea\. It ran first\."):
        Demanding()(hand_built("one layer"))


def test_a_pass_that_breaks_its_promise_is_named_with_those_before_it() -> None:
    with pytest.raises(
        PassError, match=r"^Pass promising broke its promise: .* same\. It ran after one, two\. This is"
    ):
        Promising()(hand_built("one layer"), ["one", "two"])


def test_a_pass_that_leaves_a_malformed_program_is_named() -> None:
    with pytest.raises(PassError, match=r"^Pass swap_states left a malformed program: the step takes"):
        SwapStates()(hand_built("one layer"))


def test_a_pass_that_writes_into_what_it_was_given_is_named() -> None:
    with pytest.raises(PassError, match=r"^Pass erases_output changed the program that it was given: step\."):
        ErasesOutput()(hand_built("one layer"))


def test_a_pass_has_something_to_do() -> None:
    with pytest.raises(NotImplementedError):
        Pass().run(hand_built("one layer"))
