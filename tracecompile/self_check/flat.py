"""Memory at two numbers of time steps, whatever says how many there are."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from tracecompile.capture.loops.lengths import TimeSource
from tracecompile.capture.loops.resizing import resized
from tracecompile.compile import Compiled, compile_model, going_again
from tracecompile.errors import ConversionError, UnsupportedOperation
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
    if program.kind == "step" or program.settings.rule == "bptt":
        return ()
    if program.length is None and not program.length_bound:
        spans = sorted(steps for steps in lengths if steps >= FEWEST)
        if len(spans) > 1:
            longer = next((steps for steps in spans if steps >= 2 * spans[0]), spans[-1])
            calls = ((steps, varied.make(*example, Size(steps=steps))) for steps in (spans[0], longer))
            _compare(pair, [Sequence(steps, call, pair.compiled) for steps, call in calls])
        return ()
    ways = _at_two_lengths(pair, example) if program.length_bound else _for_two_lengths(pair, example, varied.source)
    for sequences in ways:
        try:
            _compare(pair, sequences)
        except UnsupportedOperation:
            raise
        except Exception:  # whatever the user's code says to a number of steps that is not its own
            continue
        return ()
    return (NOT_COMPARED,)


def _at_two_lengths(pair: Pair, example: Arguments) -> Iterator[list[Sequence]]:
    """Yields the programs of two lengths, where each length has its own."""
    source = TimeSource(*pair.program.time)
    made = []
    for steps in LENGTHS:
        call = resized(*example, source, steps)
        try:
            compiled = compile_model(pair.converted.source, *call, pair.program.settings, source)
        except ConversionError:
            return
        made.append(Sequence(steps, call, going_again(compiled, pair.program.epilogue_again)))
    yield made


def _for_two_lengths(pair: Pair, example: Arguments, source: TimeSource) -> Iterator[list[Sequence]]:
    """Yields one program with two numbers of steps: of an input that is cut to them, and of one that is not."""
    compiled = pair.compiled
    programs = [replace(compiled, program=compiled.program.evolve(length=steps)) for steps in LENGTHS]
    for of in (source, TimeSource(None)) if source.axis is not None else (source,):
        calls = [resized(*example, of, steps) for steps in LENGTHS]
        yield [Sequence(*each) for each in zip(LENGTHS, calls, programs, strict=True)]


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
    settings = pair.settings
    bins = FEW_BINS if settings.rule == "measured" and settings.decay is None else 1
    with undisturbed(learning=True), pair.running(sequence.compiled):
        return held_by_line(pair, [sequence.call], bins, collecting)
