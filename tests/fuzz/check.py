"""What becomes of a rendered program: right, refused, unsound, or a fault."""

from __future__ import annotations

import re
import signal
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from support.comparisons import require_at_once
from support.oracle import PARTS, Program, Unsound, Wrong, describe, require_named_line, require_right
from support.sources import module_from
from torch import nn

from fuzz.render import Rendered
from tracecompile.errors import ConversionError

SECONDS = 10
"""Processor time that a program may take to be converted and compared."""
MISSING = "a library is not installed"
QUICK, FULL = (require_at_once,), PARTS
RUNS = ((3, 3), (11, 5), (23, 2))
ONE_SAMPLE = ((3, 1), (11, 5), (23, 2))


@dataclass
class Verdict:
    """What became of a program.

    Attributes:
        outcome: "right", "refused", "unsound" or "fault".
        reason: A message without what differs from program to program.
        message: The whole message.
        rendered: The program.
    """

    outcome: str
    reason: str
    message: str
    rendered: Rendered = field(repr=False)


class TooSlow(BaseException):
    """A program took longer than it may."""


def check(rendered: Rendered, full: bool = False, folder: Path | None = None) -> Verdict:
    """Converts a program and compares it.

    Args:
        rendered: The program.
        full: All parts of the oracle with a conversion each; otherwise all but chunks with one.
        folder: Where its file is written; None for a temporary one.
    """
    with tempfile.TemporaryDirectory() as temporary:
        file = (folder or Path(temporary)) / f"program_{abs(hash(rendered.source)):x}.py"
        try:
            with warnings.catch_warnings(), limited(SECONDS):
                warnings.simplefilter("ignore")  # libraries warn when they are imported
                with module_from(rendered.source, file) as module:
                    _check(rendered, module, file, full)
        except ModuleNotFoundError as missing:
            return Verdict("unsound", MISSING, str(missing), rendered)
        except Unsound as fault:
            return Verdict("unsound", template(str(fault)), str(fault), rendered)
        except Wrong as fault:
            refusal = fault.__cause__
            if isinstance(refusal, ConversionError) and str(fault) == describe(refusal):
                try:
                    require_named_line(file, refusal)
                except Wrong as unnamed:
                    return Verdict("fault", template(str(unnamed)), str(unnamed), rendered)
                return Verdict("refused", template(refusal.explanation), str(refusal), rendered)
            return Verdict("fault", template(str(fault)), str(fault), rendered)
        except TooSlow:
            return Verdict("fault", "too slow", f"more than {SECONDS} s", rendered)
    if rendered.refused:
        return Verdict("fault", "accepted, but must be refused", "accepted, but must be refused", rendered)
    return Verdict("right", "", "", rendered)


def _check(rendered: Rendered, module: ModuleType, file: Path, full: bool) -> None:
    program = as_program(rendered, module, file)
    try:
        program.drive(program.model(program.example[0]), program.drawn(*program.example))
        for steps, batch in program.runs:
            program.drive(program.model(steps), program.drawn(steps, batch))
    except Exception as fault:
        raise Unsound(f"the model itself fails: {type(fault).__name__}: {fault}") from fault
    require_right(program, parts=FULL if full else QUICK)


def as_program(rendered: Rendered, module: ModuleType, file: Path) -> Program:
    """Returns a rendered program with its user."""

    def make(*steps: int) -> nn.Module:
        net = module.Net(*steps)
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(2.0)  # deep layers fire
        return net

    def inputs(steps: int, batch: int) -> Any:
        if rendered.axis == "none":
            return 2 * torch.randn(batch, 6)
        x = 2 * torch.randn(steps, batch, 6)
        return x.permute(*{"first": (0, 1, 2), "second": (1, 0, 2), "last": (1, 2, 0)}[rendered.axis]).contiguous()

    def run_before(model: nn.Module) -> None:
        if rendered.ran:
            program.drive(model, inputs(getattr(model, "num_steps", 4), 3))

    program = Program(
        make,
        inputs,
        step=rendered.form.startswith("step"),
        returns_state=rendered.form == "step with states",
        fixed_steps=rendered.form in ("static image", "fixed steps"),
        prepare=run_before,
        precise=not rendered.single,
        coarse=rendered.coarse,
        trained=False,
        lengths=(18, 36),  # half as many steps fill the bins as well
        runs=RUNS if rendered.normalised else ONE_SAMPLE,
        file=file,
    )
    return program


def template(message: str) -> str:
    """Returns a message without names, numbers and places, so that equal reasons are counted together."""
    message = message.split("\n  at ")[0]
    message = re.sub(r"program_\w+\.py", "PROGRAM", message)
    message = re.sub(r"/\S+\.py:\d+\S*", "FILE", message)
    message = re.sub(r"\[[^\]]*\]|\([\d, ]*\)", "[..]", message)
    message = re.sub(r"\b[a-z_]+(_\d+)+\b|\b[a-z]+[12]\b|\bself\.\w+", "NAME", message)
    message = re.sub(r"\d+(\.\d+)?(e[-+]\d+)?", "N", message)
    return " ".join(message.split())[:160]


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Interrupts a block that takes more processor time; of the main thread only."""

    def interrupt(number: int, frame: Any) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGVTALRM, interrupt)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
