"""One level of a tape: a tape of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import fx
from torch.utils import _pytree as pytree

from tracecompile.capture.loops.lengths import TimeSource
from tracecompile.capture.tracing.tape import Tape

Key = fx.Node | tuple[str, Any]
"""What one level hands to another: the value of a node, or the values of a place at all steps."""
STEPS = "steps"


@dataclass
class Segment:
    """One level of a tape.

    Attributes:
        tape: Of its own.
        source: What says how many steps there are.
        takes: What its arguments are.
        gives: What its results are; of the last level nothing, whose result is that of the model.
        is_whole: Whether it is all of the tape, as it was.
    """

    tape: Tape
    source: TimeSource
    takes: list[Key] = field(default_factory=list)
    gives: list[Key] = field(default_factory=list)
    is_whole: bool = False

    @property
    def signature(self) -> pytree.TreeSpec:
        """How it is called."""
        return pytree.tree_structure((tuple(range(len(self.takes))), {}))
