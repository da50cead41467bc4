"""Random numbers that the user's code draws: who draws them, and those that the program could not draw again."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from tracecompile.capture.tracing.build import find, is_dropout, is_random
from tracecompile.capture.tracing.source import INSTALLED, PACKAGE, TORCH, source_line
from tracecompile.capture.tracing.tape import Tape
from tracecompile.errors import SourceLine, UnsupportedOperation
from tracecompile.operations import Fact, has
from tracecompile.operations.cone import cone
from tracecompile.program import StepProgram

LIBRARY = str(Path(os.__file__).parent) + "/"


class TorchDraws:
    """Notices when torch's own generators have moved."""

    def __init__(self) -> None:
        self.states = torch_generators()

    def moved(self) -> bool:
        """Tells whether random numbers were drawn since the last question."""
        before, self.states = self.states, torch_generators()
        return not all(torch.equal(one, other) for one, other in zip(before, self.states, strict=False))


def torch_generators() -> list[torch.Tensor]:
    """Returns the states of torch's own generators, that of the processor first."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *devices]


@contextmanager
def drawing_again(states: list[torch.Tensor]) -> Iterator[None]:
    """Lets torch draw what it drew from these states on; afterwards its generators stand where they stood."""
    before = torch_generators()
    try:
        _put_back(states)
        yield
    finally:
        _put_back(before)


def _put_back(states: list[torch.Tensor]) -> None:
    torch.set_rng_state(states[0])
    for device, state in enumerate(states[1:]):
        torch.cuda.set_rng_state(state, device)


class OtherDraws:
    """Python's and numpy's generators, whose numbers are constants to the trace."""

    def __init__(self) -> None:
        self.before = self._now()

    def moved(self) -> bool:
        """Tells whether they are elsewhere than at the beginning."""
        return self._now() != self.before

    def restore(self) -> None:
        """Puts them back."""
        random.setstate(self.before[0])
        numpy.random.set_state(self.before[1])

    @staticmethod
    def _now() -> tuple[Any, ...]:
        name, key, *rest = numpy.random.get_state()
        return random.getstate(), (name, tuple(key), *rest)

    def refusal(self, run: Callable[[], Any]) -> UnsupportedOperation:
        """Makes the error for a model that has moved them.

        Args:
            run: Runs the model once more.
        """
        self.restore()
        where = self._line(run)
        self.restore()
        return UnsupportedOperation(
            "The model draws a random number with Python's or numpy's generator, which becomes a constant.",
            "Draw it with torch, before the loop over time, or hand it in as an argument.",
            where,
        )

    def _line(self, run: Callable[[], Any]) -> SourceLine | None:
        """Runs the model line by line, until a generator moves."""
        last: list[tuple[str, int]] = []
        found: list[tuple[str, int]] = []

        def look(frame: FrameType, event: str, argument: Any) -> Any:
            file = frame.f_code.co_filename
            if found or file.startswith((TORCH, PACKAGE, LIBRARY)) or INSTALLED.search(file):
                return None
            if last and self.moved():
                found.extend(last)
                return None
            last[:] = [(file, frame.f_lineno)]
            return look

        outer = sys.gettrace()
        sys.settrace(look)
        try:
            run()
        except Exception:  # it has run before: whatever fails now, the search has failed
            return None
        finally:
            sys.settrace(outer)
        line = (found or last)[0] if found or last else None
        return source_line(*line) if line else None


def with_all_draws(program: StepProgram, root: nn.Module, *tapes: Tape) -> StepProgram:
    """Refuses a model that draws random numbers which the program does not: the generator would be elsewhere.

    A dropout whose result nobody uses draws in training alone, so that its program is one for its mode.

    Args:
        program: Captured from the tapes.
        root: The model that they were recorded from.
        tapes: What was recorded.
    """
    for tape in tapes:
        _refuse_one_after_the_other(program, root, tape)
    graphs = (program.prologue.graph, program.step.graph, program.epilogue.graph)
    kept = {_spelt(node) for graph in graphs for node in graph.nodes}
    for tape in tapes:
        live = cone([*pytree.tree_leaves(tape.result), *tape.attributes.values()])
        # What the last step draws for the next one is drawn with every step, and used by none.
        drawn = {_spelt(node) for node in live} & {_spelt(node) for node in program.step.graph.nodes}
        for node in tape.graph.nodes:
            if _spelt(node) in (kept if node in live else drawn):
                continue
            if is_random(node):
                raise UnsupportedOperation(
                    f"Random numbers are drawn here ({_spelt(node)[0]}) whose values are not used.",
                    "Leave the call out, or use what it returns: it moves the generator for all later draws.",
                    node.meta.get("where"),
                )
            if node.op == "call_module" and node.target not in tape.leaves:
                drops = has(node, Fact.DROPS, find(root, str(node.target)))
                program = program.evolve(reads_mode=program.reads_mode or drops)
    return program


def _refuse_one_after_the_other(program: StepProgram, root: nn.Module, tape: Tape) -> None:
    """Refuses a model that draws something for all steps before it draws something else for any: a step draws both."""
    steps = {_spelt(node) for node in program.step.graph.nodes if is_random(node) or is_dropout(node, root)}
    visits: dict[tuple[Any, ...], list[int]] = {}
    lines: dict[tuple[Any, ...], fx.Node] = {}
    for place, node in enumerate(tape.graph.nodes):
        if _spelt(node) in steps:
            visits.setdefault(_spelt(node), []).append(place)
            lines.setdefault(_spelt(node), node)
    for one, before in visits.items():
        for other, after in visits.items():
            if min(len(before), len(after)) > 1 and before[-1] < after[0]:
                first: SourceLine | None = lines[one].meta.get("where")
                raise UnsupportedOperation(
                    "Random numbers are drawn here for all time steps after others were"
                    f"{'' if first is None else f' ({first.file}:{first.line})'}, while a net computes step by step.",
                    "Draw both in one loop over time, or hand one of them in.",
                    lines[other].meta.get("where"),
                )


def _spelt(node: fx.Node) -> tuple[Any, ...]:
    where = node.meta.get("where")
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name, *((where.file, where.line) if where is not None else ())
