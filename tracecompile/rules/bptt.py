"""Backpropagation through time: the steps as they are, and autograd."""

from __future__ import annotations

from typing import ClassVar

from tracecompile.rules.rule import Rule


class Bptt(Rule):
    """Records nothing: the reference, whose memory grows with the number of steps."""

    name: ClassVar[str] = "bptt"
    through_time: ClassVar[bool] = True
