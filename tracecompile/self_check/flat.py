"""Memory at two numbers of time steps, whatever says how many there are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from tracecompile.capture.loops.lengths import TimeSource
from tracecompile.capture.loops.resizing import first_tensor, resized
from tracecompile.compiled import Compiled
from tracecompile.errors import ConversionError, UnsupportedOperation
from tracecompile.rules import rule_of
from tracecompile.runtime.anew import read_by_steps
from tracecompile.self_check.generators import generators_kept
from tracecompile.self_check.inputs import Arguments, Size, Varied
from tracecompile.self_check.memory import Held, held_by_line, require_flat
from tracecompile.self_check.pair import Pair, undisturbed

FEW_BINS = 2
"""Bins in which the memory of two lengths is compared."""
FEWEST = 2 * FEW_BINS
"""Shorter sequences do not fill what is kept of a bin."""
LENGTHS = (12, 24)
"""Where the model takes but one number of steps, or each of them is another program."""
NOT_COMPARED = (
    "The program is that of one number of time steps, and does not run with 12 and with 24: what it holds for backward "
    "was not compared with what it would hold for more of them."
)


@dataclass(frozen=True)
class Sequence:
    """A number of steps, a call of as many, and what runs it."""

    steps: int
    call: Arguments
    compiled: Compiled


def require_flat_memory(pair: Pair, example: Arguments, varied: Varied, lengths: Collection[int]) -> tuple[str, ...]:
    """Requires that no more is held for backward after a long sequence than after a short one.

    Args:
        pair: The model and its converted form.
        example: The arguments of a call.
        varied: Makes others of them.
        lengths: The numbers of steps that the model is known to take.

    Returns:
        Sentences for the report: that it could not be compared.

    Raises:
        UnsupportedOperation: Memory grows; names the line.
    """
    program = pair.program
    if program.kind == "step" or rule_of(program.settings).through_time:
        return ()
    if program.length is None and not program.length_bound:
        spans = sorted(steps for steps in lengths if steps >= FEWEST)
        if len(spans) > 1:
            longer = next((steps for steps in spans if steps >= 2 * spans[0]), spans[-1])
            calls = ((steps, varied.make(*example, Size(steps=steps))) for steps in (spans[0], longer))
            _compare(pair, [Sequence(steps, call, pair.compiled) for steps, call in calls])
        return ()
    if program.length_bound:
        return () if _first_that_runs(pair, _at_two_lengths(pair, example)) else (NOT_COMPARED,)
    steps = _first_that_runs(pair, _for_two_lengths(pair, example, varied.source))
    inputs = _first_that_runs(pair, _of_two_inputs(pair, example))
    return () if steps or inputs else (NOT_COMPARED,)


def _first_that_runs(pair: Pair, ways: Iterable[list[Sequence]]) -> bool:
    """Compares the memory in the first of some ways in which the net runs; False where it does in none."""
    for sequences in ways:
        try:
            _compare(pair, sequences)
        except UnsupportedOperation:
            raise
        except Exception:  # whatever the user's code says to a number of steps that is not its own
            continue
        return True
    return False


def _at_two_lengths(pair: Pair, example: Arguments) -> Iterator[list[Sequence]]:
    """Yields the programs of two lengths, where each length has its own."""
    source = TimeSource(*pair.program.time)
    made = []
    for steps in LENGTHS:
        call = resized(*example, source, steps)
        try:
            made.append(Sequence(steps, call, pair.build_again(pair.converted, *call, source)))
        except ConversionError:
            return
    yield made


def _for_two_lengths(pair: Pair, example: Arguments, source: TimeSource) -> Iterator[list[Sequence]]:
    """Yields one program with two numbers of steps: of an input that is cut to them, and of one that is not."""
    compiled = pair.compiled
    programs = [replace(compiled, program=compiled.program.evolve(length=steps)) for steps in LENGTHS]
    for of in (source, TimeSource(None)) if source.axis is not None else (source,):
        calls = [resized(*example, of, steps) for steps in LENGTHS]
        yield [Sequence(*each) for each in zip(LENGTHS, calls, programs, strict=True)]


def _of_two_inputs(pair: Pair, example: Arguments) -> Iterator[list[Sequence]]:
    """Yields one program with inputs of two lengths, of which the loop takes as many steps, and what follows it more.

    A loop that is left early fills no more than the beginning of a record that is as long as the input.
    """
    first = first_tensor(*example)
    if first is None:
        return
    compiled = pair.compiled
    for axis, size in enumerate(first.shape):
        spans = (size, 2 * size + FEWEST)
        calls = [resized(*example, TimeSource(axis), span) for span in spans]
        try:
            short, longer = (_read_by_steps(pair, call) for call in calls)
        except Exception:  # an axis that has to be as long as it is
            continue
        if short == longer:
            yield [Sequence(span, call, compiled) for span, call in zip(spans, calls, strict=True)]


def _read_by_steps(pair: Pair, call: Arguments) -> list[tuple[int, ...] | None]:
    """Returns the sizes of all that the steps of a call start from and read."""
    executor, bound = pair.rewound().executor, pair.compiled.arguments.bind(*call)
    assert executor is not None
    with generators_kept(), undisturbed(learning=False):
        prepared = executor.ends.prepare(bound.leaves)
    read = read_by_steps(pair.program)
    named = zip(pair.program.invariants, prepared.invariants, strict=True)
    values = [*prepared.inputs, *prepared.initial, *(value for name, value in named if name in read)]
    return [tuple(value.shape) if isinstance(value, Tensor) else None for value in values]


def _compare(pair: Pair, sequences: list[Sequence]) -> None:
    try:
        _require_flat(pair, sequences, collecting=False)
    except UnsupportedOperation:
        # An autograd function of the user may leave cycles behind, which wait for the collector and hold nothing.
        _require_flat(pair, sequences, collecting=True)


def _require_flat(pair: Pair, sequences: list[Sequence], collecting: bool) -> None:
    short, longer = (_held(pair, sequence, collecting) for sequence in sequences)
    require_flat(short, longer, sequences[1].steps - sequences[0].steps)


def _held(pair: Pair, sequence: Sequence, collecting: bool) -> Held:
    rule, settings = rule_of(pair.settings), pair.settings
    # The snapshots of a short sequence would be as many as its pieces.
    few = replace(settings, bins=FEW_BINS if rule.resolves_steps(settings) else 1, snapshots=1)
    with undisturbed(learning=True), pair.running(sequence.compiled):
        return held_by_line(pair, [sequence.call], few, 1 if rule.recomputes else None, collecting)
