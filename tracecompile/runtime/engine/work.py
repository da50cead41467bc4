"""How much a program has been asked for so far, and whether that would have paid for compiling it."""

from __future__ import annotations

from typing import Any

from torch import fx, nn
from torch.fx.node import map_arg

from tracecompile.program import StepProgram
from tracecompile.segment import with_segments
from tracecompile.units import Unit

PAID_BACK = 3_500_000_000
"""Updates that gain, compiled, what it takes to compile one kind of scan where nothing of it is on disk.

Seconds of compiling over seconds gained an update: 5 to 8 thousand million on one thread of a busy processor (dense and
recurrent, 1 to 32 samples, 32 to 512 neurons), 1 to 2 on two threads that have nothing else to do.
"""
STEP_PAID_BACK = 2_000_000_000
"""The same for a single step, of which each layer with neurons takes its time to compile.

2.9 to 4.7 thousand million for two layers (dense and recurrent, 1 and 16 samples, 128 and 256 neurons), on one thread
of a busy processor.
"""
A_STEP = 30_000
"""Updates that a step of a scan counts for, beside those of its elements.

Most of what is gained is not to call some operations a step: 30 to 45 microseconds a layer, and 1.5 nanoseconds an
element.
"""


class Work:
    """Counts the updates of states that one program has been asked for in training, over calls.

    A number and no clock, so that two runs of the same calls compile at the same one. It belongs to what runs the
    program in this process, and is no state of the net: copies, pickles, saved nets, and a model that is captured again
    since something in it has changed, start counting anew. Snapshots neither hold nor change it. Several threads count
    in the order of their turns.

    Attributes:
        enough: Updates from which on compiling would have paid.
        updates: So far.
        calls: In which there were any.
        since: The call in which there were enough; 0 before.
    """

    def __init__(self, enough: int) -> None:
        """Has counted nothing."""
        self.enough = enough
        self.updates = self.calls = self.since = 0
        self._in_call = 0

    def begin(self) -> None:
        """Says that a call begins, be it one that counts or not."""
        self._in_call = 0

    def add(self, updates: int) -> bool:
        """Counts a sequence that is to be trained.

        Args:
            updates: What it comes to: see ``updates_of``.

        Returns:
            Whether there have been enough, these included.
        """
        if not self._in_call:
            self.calls += 1
        self._in_call += updates
        self.updates += updates
        if not self.since and self.updates >= self.enough:
            self.since = self.calls
        return self.since > 0

    @property
    def first(self) -> int:
        """The first call that will be compiled, if all that come are like this one."""
        missing = max(self.enough - self.updates, 0)
        return self.calls + -(-missing // max(self._in_call, 1))


def updates_of(program: StepProgram, elements: int) -> int:
    """Returns what a step of a program counts for.

    Args:
        program: After all passes.
        elements: Of the states, in this batch.
    """
    return elements + A_STEP * sum(unit.step is not None for unit in program.units)


def step_worth_compiling(program: StepProgram) -> int:
    """Returns after how many updates it would have paid to compile the step of a program as a whole."""
    return STEP_PAID_BACK * max(sum(unit.step is not None for unit in program.units), 1)


def worth_compiling(program: StepProgram) -> int:
    """Returns after how many updates of state elements it would have paid to compile a program.

    Layers whose steps compute the same are compiled once; segments are one call's work, and share what is compiled.
    """
    kinds = {_kind(unit) for each in with_segments(program) for unit in each.units if unit.step is not None}
    return PAID_BACK * max(len(kinds), 1)


def _kind(unit: Unit) -> tuple[Any, ...]:
    """Returns what the step of a unit computes, whatever its values are called."""
    assert unit.step is not None
    return unit.recurrent, _computed(unit.step)


def _computed(module: nn.Module) -> tuple[Any, ...]:
    if not isinstance(module, fx.GraphModule):
        return (type(module),)
    places = {node: place for place, node in enumerate(module.graph.nodes)}
    found: list[Any] = []
    for node in module.graph.nodes:
        arguments = map_arg((node.args, node.kwargs), lambda given: f"%{places[given]}")
        what: Any = str(node.target) if node.op in ("call_function", "call_method") else ""
        if node.op == "call_module":
            what = _computed(module.get_submodule(str(node.target)))
        found.append((node.op, what, str(arguments)))
    return tuple(found)
