"""What is watched while the user's code runs, and values that it must take for computed ones."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from tracecompile.capture.tracing.alone import other_threads
from tracecompile.capture.tracing.source import CAPTURE

if TYPE_CHECKING:
    from tracecompile.capture.tracing.tracer import Recorder


@contextmanager
def mode_watched(recorder: Recorder) -> Iterator[None]:
    """Notes who reads or writes ``training``: a branch on it is part of what is captured.

    A module of torch that is one node asks for its mode whenever it runs. One that is traced through, because a class
    of the user's extends it or forward switches it, has been asked once and for all.
    """

    elsewhere = other_threads()

    def read(module: nn.Module) -> bool:
        in_capture = sys._getframe(1).f_code.co_filename.startswith(CAPTURE)
        if not recorder.paused and not in_capture and not elsewhere():
            recorder.tape.reads_mode = True
        held = vars(module)
        # Compiled modules keep theirs in the code that they wrap.
        return bool(held["training"] if "training" in held else module.__getattr__("training"))

    def write(module: nn.Module, value: bool) -> None:
        if not recorder.paused and not elsewhere():
            recorder.tape.reads_mode = True
        module.__dict__["training"] = value

    # A property of the class comes before the attribute of the instance.
    setattr(nn.Module, "training", property(read, write))  # noqa: B010
    try:
        yield
    finally:
        delattr(nn.Module, "training")


def as_computed(value: torch.Tensor) -> torch.Tensor:
    """Returns a tensor that autograd takes for the result of an operation, as a state is from the second step on."""
    fresh = value.detach().clone()
    return fresh.requires_grad_().clone() if fresh.is_floating_point() else fresh
