"""What runs the time steps of a sequence: the eager reference, chunks of steps, or compiled scans; and why."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from tracecompile import units
from tracecompile.program import StepProgram, example_value, step_results
from tracecompile.rules import rule_of
from tracecompile.runtime.engine.work import (
    A_STEP,
    Work,
    step_worth_compiling,
    updates_of,
    worth_compiling,
)
from tracecompile.segment import with_segments

LOG = logging.getLogger("tracecompile")
COMPILED_CHUNK = 16
"""Steps that are computed together where the user does not say: as many as a compiled scan has."""
LONG_ENOUGH = 16
"""Steps in a row below which "auto" does not compile, and which do not count: a compiled scan has so many. What is left
is run by compiled scans of one step, which take a tenth longer than the same step as it is."""


@dataclass(frozen=True)
class Choice:
    """What runs a sequence.

    Attributes:
        backend: "eager" or "inductor".
        chunk: Steps computed together; 1 is the reference, bit-equal to the model.
        reason: Why, for the report.
    """

    backend: Literal["eager", "inductor"]
    chunk: int
    reason: str


def choose(program: StepProgram, steps: int, inputs: Mapping[str, Tensor], work: Work) -> Choice:
    """Returns what runs a recorded sequence.

    Args:
        program: After all passes.
        steps: Number of time steps.
        inputs: The whole sequences, by the placeholder of their steps.
        work: What was asked for before; it counts this sequence, where there is a choice.
    """
    settings = program.settings
    if one_by_one(program):
        return Choice("eager", 1, "the time steps of this model are taken one by one")
    if settings.backend == "eager":
        return Choice("eager", settings.chunk or 1, "as asked for")
    chunk = settings.chunk or COMPILED_CHUNK
    if settings.backend == "inductor":
        return Choice("inductor", chunk, "as asked for")
    eager, together = settings.chunk or 1, min(steps // _bins(program), chunk)
    if together < LONG_ENOUGH:
        return Choice("eager", eager, f"{together} steps are computed together at most, which are too few to compile")
    if compiler := _no_compiler(inputs):
        return Choice("eager", eager, compiler)
    before = work.since
    elements = round(_elements(program) * _growth(program, steps, inputs))
    if not work.add(steps * updates_of(program, elements)):
        return Choice("eager", eager, _waiting(work) + _rounded(settings.chunk, "will be"))
    if not before:
        LOG.info("compiled from call %d on, after %s state updates", work.since, f"{work.updates:,}")
    return Choice("inductor", chunk, _counted(work) + _rounded(settings.chunk, "are"))


def choose_ahead(
    program: StepProgram, ahead: int, steps: int, inputs: Mapping[str, Tensor], work: Work | None
) -> Choice:
    """Returns what runs steps of a stream together.

    Args:
        program: After all passes; its steps may be computed together.
        ahead: How many steps the caller lets the stream look ahead.
        steps: How many these are.
        inputs: Of these steps, by placeholder.
        work: What was asked for before; it counts these steps, where there is a choice. None where nothing is trained.
    """
    settings = program.settings
    chunk = min(ahead, settings.chunk or ahead)
    told = f"a stream that may look {ahead:,} steps ahead"
    if settings.backend == "auto" and work is not None and chunk >= LONG_ENOUGH:
        if compiler := _no_compiler(inputs):
            return Choice("eager", chunk, f"{told}; {compiler}")
        work.begin()
        enough = work.add(steps * updates_of(program, round(_elements(program) * _growth(program, steps, inputs))))
        return Choice(
            "inductor" if enough else "eager", chunk, f"{told}; {_counted(work) if enough else _waiting(work)}"
        )
    return Choice("inductor" if settings.backend == "inductor" else "eager", chunk, told)


def choose_step(program: StepProgram, inputs: Sequence[Tensor], work: Work | None) -> Choice:
    """Returns what runs a single step.

    Args:
        program: After all passes.
        inputs: Of the step.
        work: What was asked for before; it counts this step, where there is a choice. None where nothing is trained.
    """
    settings, alone = program.settings, "a single step"
    if settings.backend == "eager":
        return Choice("eager", 1, f"{alone}, as asked for")
    if not _compiles_steps(program):
        return Choice("eager", 1, f"{alone}, which draws random numbers, or which autograd goes through")
    if settings.backend == "inductor":
        return Choice("inductor", 1, f"{alone}, as asked for")
    if work is None or settings.chunk == 1:
        return Choice("eager", 1, f"{alone}, {'which is not trained' if work is None else 'with a chunk of 1'}")
    named = dict(zip((x.name for x in program.inputs), inputs, strict=True))
    if compiler := _no_compiler(named):
        return Choice("eager", 1, f"{alone}; {compiler}")
    work.begin()
    if not work.add(updates_of(program, round(_elements(program) * _growth(program, 1, named)))):
        return Choice("eager", 1, f"{alone}; {_waiting(work)}{_rounded(None, 'will be')}")
    return Choice("inductor", 1, f"{alone}; {_counted(work)}{_rounded(None, 'are')}")


def _compiles_steps(program: StepProgram) -> bool:
    """Tells whether a step may be compiled as one call: compiled code draws random numbers of its own."""
    draws = any(node.meta.get("draws") for node in program.step.graph.nodes)
    return not draws and not rule_of(program.settings).through_time


def _no_compiler(inputs: Mapping[str, Tensor]) -> str:
    """Says that there is nothing to compile with, if that is so."""
    cuda = any(value.is_cuda for value in inputs.values())
    return "" if cuda or shutil.which("g++") or shutil.which("clang++") else "there is no C++ compiler"


def _counted(work: Work) -> str:
    """Says that there was enough work to compile for."""
    return f"call {work.since:,} has reached the {work.enough:,} state updates that are worth compiling for"


def _waiting(work: Work) -> str:
    """Says how far it is to the first call that will be compiled."""
    calls = f"{work.calls:,} call{'s' * (work.calls != 1)}"
    return (
        f"{work.updates:,} state updates in {calls} of training, and {work.enough:,} are worth compiling for: call "
        f"{work.first:,} will be compiled if those to come are like this one"
    )


def _rounded(chunk: int | None, are: str) -> str:
    """Says what that does to values, where nobody has asked for a chunk anyway."""
    return "" if chunk else f"; from there on values {are} the model's up to rounding"


def foretell(program: StepProgram) -> list[str]:
    """Returns sentences for the report: how the backend of a sequence will be chosen, and what that means."""
    settings = program.settings
    wanted = settings.backend == "inductor" or (settings.chunk or 1) > 1
    if program.kind == "step":
        chunks = ["Nothing is computed in chunks: a call is one step."] if (settings.chunk or 1) > 1 else []
        return [*chunks, *_foretell_steps(program)]
    if one_by_one(program):
        nothing = "Sequences are neither compiled nor computed in chunks: their steps are taken one by one."
        return [nothing] if wanted else []
    notes, counts = [], settings.backend == "auto" and (settings.chunk or COMPILED_CHUNK) >= LONG_ENOUGH
    if counts:
        a_step = sum(updates_of(each, _elements(each)) for each in with_segments(program))
        notes.append(
            f"Sequences of {LONG_ENOUGH * _bins(program):,} steps or more are run eagerly until training has come to "
            f"{worth_compiling(program):,} updates of states, over all calls, and compiled from that call on: it would "
            f"have paid by then. A step of a batch like the example's counts for {a_step:,}: elements of its states, "
            f"and {A_STEP:,} for each scan. A copy, and a net that is loaded, counts anew."
        )
    if wanted or counts:
        notes.append(
            f"{'Where' if counts else 'As'} up to {settings.chunk or COMPILED_CHUNK} steps are "
            "computed together, values are the model's up to rounding: a spike may differ where its membrane is within "
            "rounding of the threshold."
        )
    return notes


def _foretell_steps(program: StepProgram) -> list[str]:
    """Returns a sentence for the report of a model of one step that will be compiled."""
    backend, rounded = program.settings.backend, "values are then the model's up to rounding"
    if backend == "eager" or (backend == "auto" and program.settings.chunk == 1):
        return []
    if not _compiles_steps(program):
        return ["Nothing is compiled: the steps draw random numbers, or autograd goes through them."]
    if backend == "inductor":
        return [f"The step is compiled as one call: {rounded}."]
    return [
        f"Steps are run eagerly until training has come to {step_worth_compiling(program):,} updates of states, and "
        f"compiled from there on: {rounded}. A step of a batch like the example's counts for "
        f"{updates_of(program, _elements(program)):,}: elements of its states, and {A_STEP:,} for each layer."
    ]


def one_by_one(program: StepProgram) -> bool:
    """Tells whether the steps of a program have to be taken one by one: what they draw may not be drawn ahead."""
    draws = any(node.meta.get("draws") for node in program.step.graph.nodes)
    return draws or units.one_by_one(program.units) or rule_of(program.settings).through_time


def _bins(program: StepProgram) -> int:
    """Returns at how many places a sequence is cut: no scan goes on beyond the end of a time bin."""
    return rule_of(program.settings).bins(program.settings)


def _elements(program: StepProgram) -> int:
    """Returns how many elements the states have after a step of the example."""
    return sum(example_value(node).numel() for node in step_results(program.step)[1])


def _growth(program: StepProgram, steps: int, inputs: Mapping[str, Tensor]) -> float:
    """Returns how many times larger than the example's a batch is."""
    placeholders = {node.name: node for node in program.step.graph.nodes if node.op == "placeholder"}
    for name, value in inputs.items():
        elements: int = example_value(placeholders[name]).numel()
        if elements:
            return value.numel() / steps / elements
    return 1.0
