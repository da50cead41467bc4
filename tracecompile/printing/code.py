"""Lets the graphs of a program run as they are printed."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from tracecompile.errors import InvalidInput
from tracecompile.printing.page import Printed


def bind(printed: Printed, root: nn.Module, namespace: dict[str, Any]) -> None:
    """Calls the functions of a text wherever a graph that it is printed from is called.

    Args:
        printed: The text of the program.
        root: The model.
        namespace: What executing the text has left: that of ``printed``, or of a text that somebody has changed.

    Raises:
        InvalidInput: The text lacks a function.
    """
    for graph, (name, takes_model) in printed.functions.items():
        function = namespace.get(name)
        if not callable(function):
            raise InvalidInput(f"The code has no function {name}.", "Save the network again.")
        object.__setattr__(graph, "forward", partial(function, root) if takes_model else function)
    # What a program owns is told of its sequences (see ``Slopes``): the text is to call that very object.
    namespace.update((printed.names[key], value) for key, value in printed.constants.items())
