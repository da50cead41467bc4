"""Whose an error is: that of an operation on inputs that do not fit, or somebody else's, which stays what it is."""

from __future__ import annotations

import linecache
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from tracecompile.arguments import Call

OWN = tuple(str(Path(file).parent) + "/" for file in (torch.__file__, Path(__file__).parent))
"""Folders of torch and of this package."""


def is_from_outside(fault: Exception) -> bool:
    """Tells whether an error in the model's own forward is none of the model's: no memory left, or a hook's own."""
    trace, in_hook = fault.__traceback__, False
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        in_hook |= file == nn.modules.module.__file__ and "hook(" in linecache.getline(file, trace.tb_lineno)
        trace = trace.tb_next
    return in_hook or isinstance(fault, torch.OutOfMemoryError)


@contextmanager
def explained(call: Call) -> Iterator[None]:
    """Says of a call on which an operation of the program fails what its inputs were.

    Raises:
        InvalidInput: In place of torch's own error.
    """
    try:
        yield
    except (RuntimeError, IndexError) as fault:
        if not is_of_operations(fault):
            raise
        raise call.does_not_run(fault) from fault


def is_of_operations(fault: Exception) -> bool:
    """Tells whether torch has refused an operation that the program itself has asked for.

    Its refusals are plain errors: no memory left is none, and neither is what passed through code of somebody else's,
    such as a hook or a surrogate.
    """
    if type(fault) not in (RuntimeError, IndexError):
        return False
    trace = fault.__traceback__
    while trace is not None:
        code, names = trace.tb_frame.f_code, trace.tb_frame.f_globals
        if not code.co_filename.startswith(OWN) and names.get("__name__") != "printed":
            return False
        trace = trace.tb_next
    return True
