"""Backpropagation through time in flat memory: the steps are run again, from snapshots, in backward."""

from __future__ import annotations

from typing import ClassVar, Literal

from tracecompile.program import Settings, StepProgram
from tracecompile.rules.rule import Rule


class Exact(Rule):
    """Records nothing but snapshots of the states; a piece of the sequence at a time has a graph."""

    name: ClassVar[str] = "exact"
    recomputes: ClassVar[bool] = True

    def status(self, settings: Settings) -> tuple[Literal["exact", "trace"], str]:
        """See Rule."""
        return "exact", "backpropagation through time, recomputed from snapshots"

    def title(self, settings: Settings) -> str:
        """See Rule."""
        if settings.snapshots is None:
            return f"{self.name}, a snapshot before every piece"
        return f"{self.name}, {settings.snapshots} snapshot{'s' * (settings.snapshots != 1)}"

    def notes(self, program: StepProgram) -> list[str]:
        """See Rule."""
        if program.kind == "sequence":
            return ["Backward runs the sequence forward again, piece by piece from snapshots, from the same inputs."]
        return [
            "A model of one step cannot read its inputs twice: those of the steps since the last backward, or "
            "detach(), are kept, and their memory grows with the number of these steps."
        ]
