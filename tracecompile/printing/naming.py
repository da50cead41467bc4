"""Names that shadow nothing: neither what the text calls, nor what Python knows."""

from __future__ import annotations

import builtins
import keyword
import re

from torch import fx

from tracecompile.capture.tracing.names import valid_name
from tracecompile.printing.variables import variable_of

_KNOWN = frozenset([*dir(builtins), *keyword.kwlist, *keyword.softkwlist])
_COUNTED = re.compile(r"_\d+$")
"""The number that a graph gives to a name that came before: it counts the example's steps too."""
_GAP = re.compile(r"__+")
"""What is left of the brackets in ``state[0][1]``."""


class Scope:
    """The names of a module, or of a function in one."""

    def __init__(self, outer: Scope | None = None) -> None:
        """Begins with what is known outside."""
        self.taken: set[str] = set(outer.taken) if outer is not None else set(_KNOWN)

    def take(self, wanted: str) -> str:
        """Returns the name, with a number behind it where it is taken, and takes it."""
        plain = _GAP.sub("_", valid_name(wanted)) or "value"
        candidate, number = plain, 0
        while candidate in self.taken:
            number += 1
            candidate = f"{plain}_{number}"
        self.taken.add(candidate)
        return candidate

    def reserve(self, name: str) -> None:
        """Takes a name that cannot be another."""
        self.taken.add(name)


def wanted_name(node: fx.Node) -> str:
    """Returns what to call a value: the user's variable, else the node without its number."""
    variable = variable_of(node)
    if variable is not None:
        return variable
    # What the user named, a state or an input, keeps its number.
    return node.name if node.op in ("placeholder", "get_attr") else without_number(node.name)


def without_number(name: str) -> str:
    """Returns a name as it was before a graph numbered it."""
    return _COUNTED.sub("", name) or name
