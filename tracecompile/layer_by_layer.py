"""Models whose layers take all of their steps one after the other: by what rule they are run, and their segments."""

from __future__ import annotations

from tracecompile.capture.copying.owned import resolved_in
from tracecompile.passes.pipeline import run_pipeline
from tracecompile.program import Settings, StepProgram
from tracecompile.rules import rule_of
from tracecompile.segment import Segment, segments_of

NO_BINS = (
    "Each layer takes all of its steps before the next one begins, and is computed once more for its gradient: that is "
    "exact, and no bins are needed."
)


def by_its_rule(program: StepProgram, settings: Settings) -> StepProgram:
    """Returns a program with what it is run by: the settings that were asked for, or those to which the rule gives way.

    Args:
        program: As it is captured.
        settings: What the user asked for.
    """
    own = rule_of(settings).layer_by_layer(settings) if any(segments_of(program.leaves)) else settings
    notes = program.notes if own == settings else (*program.notes, NO_BINS)
    return program.evolve(settings=own, asked=settings, notes=notes)


def compiled_segments(program: StepProgram) -> StepProgram:
    """Runs the passes over the segments of a program."""
    leaves = dict(program.leaves)
    for name, segment in segments_of(program.leaves):
        own = resolved_in(program.root, segment.program).evolve(settings=program.settings, asked=program.asked)
        compiled, stages = run_pipeline(own)
        stages.run_as_printed()
        leaves[name] = Segment(compiled)
    if leaves == program.leaves:
        return program
    program = program.evolve(leaves=leaves)
    return program.evolve(prologue=program.graph_module(program.prologue.graph, "Prologue"))
