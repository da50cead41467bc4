"""Functions that the user has compiled: they are traced through the Python that they were made from.

Compiled code runs past every tracer, and what it returns would look like a constant.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch

from tracecompile.capture.tracing.alone import other_threads
from tracecompile.errors import ConversionError, UnsupportedOperation


class Recorder(Protocol):
    """What is needed of the running trace."""

    paused: int

    def refusal(self, kind: type[ConversionError], explanation: str, advice: str) -> ConversionError:
        """Makes an error that names the user's line."""


@contextmanager
def compiled_code_recorded(recorder: Recorder) -> Iterator[None]:
    """Lets functions of ``torch.jit`` and ``torch.compile`` run as Python while the context is open.

    What is left of a compiled module is compiled code alone, which is refused.
    """
    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for kind in (torch._C.ScriptFunction, torch._C.ScriptMethod):
            stack.enter_context(_called_as_python(kind, recorder))
        yield


@contextmanager
def _called_as_python(kind: Any, recorder: Recorder) -> Iterator[None]:
    compiled, elsewhere = kind.__call__, other_threads()

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        if recorder.paused or elsewhere():
            return compiled(function, *args, **kwargs)
        original = getattr(function, "_torchdynamo_inline", None)
        if original is None:
            raise recorder.refusal(
                UnsupportedOperation,
                f"The compiled code of {function.name} cannot be looked into.",
                "Use the module or the function that was handed to torch.jit.",
            )
        return original(*args, **kwargs)

    kind.__call__ = call
    try:
        yield
    finally:
        kind.__call__ = compiled
