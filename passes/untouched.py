"""Proves that a pass leaves the program that it is given as it was: passes share graphs, and the printer reads them.

A program is a tree of frozen dataclasses, tuples and dictionaries. What can change in place at all is in its leaves:
the nodes of its graphs with their example values, the modules that they call, and tensors. All of it is held by
identity, tensors also by the number of times that they have been written to. Held objects stay alive, so that no new
one can take the place of an old one in memory.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

from torch import Tensor, fx, nn

from tracecompile.program import StepProgram


class Untouched:
    """A program as it is before a pass."""

    def __init__(self, program: StepProgram) -> None:
        """Looks at all of it."""
        self._program, self._before = program, _parts(program)

    def changed(self) -> str | None:
        """Returns what part of the program has been changed since, by its name, or None."""
        now = _parts(self._program)
        return next((part for part, contents in self._before.items() if not contents.is_same(now[part])), None)


class _Contents:
    """What a part of a program consists of.

    Attributes:
        objects: Compared by identity.
        versions: Of the tensors among them, and the modes of the modules.
        seen: Identities of what has been met: much is in a program twice.
    """

    def __init__(self, value: Any, seen: set[int]) -> None:
        self.objects: list[Any] = []
        self.versions: list[int] = []
        self.seen = seen
        self._add((value,))

    def is_same(self, other: _Contents) -> bool:
        """Tells whether two times it is the same, and nothing of it has been written to in between."""
        return (
            self.versions == other.versions
            and len(self.objects) == len(other.objects)
            and all(map(operator.is_, self.objects, other.objects))
        )

    def _add(self, values: Iterable[Any]) -> None:
        for value in values:
            self.objects.append(value)
            kind = type(value)
            if kind in _NOTHING_WITHIN or id(value) in self.seen:
                continue
            self.seen.add(id(value))
            if isinstance(value, Tensor):
                self._add_tensor(value)
            elif isinstance(value, fx.GraphModule):
                self._add_graph(value.graph)
            elif isinstance(value, nn.Module):
                self._add_module(value)
            elif isinstance(value, (tuple, list)):
                self._add(value)
            elif isinstance(value, dict):
                self._add((*value.keys(), *value.values()))
            else:
                self._add([getattr(value, name) for name in _fields(kind)])

    def _add_tensor(self, tensor: Tensor) -> None:
        # One that was made in inference mode does not count what is written to it.
        self.versions.append(-1 if tensor.is_inference() else tensor._version)

    def _add_graph(self, graph: fx.Graph) -> None:
        objects = self.objects
        for node in graph.nodes:
            # Arguments are immutable: others are another tuple. Analyses note down in ``meta`` what they find out; what
            # is held here is what the node was captured with.
            meta = node.meta
            value = meta.get("val")
            objects += (node, node.name, node.op, node.target, node.args, node.kwargs, meta.get("where"), value)
            objects.append(meta.get("draws"))
            if isinstance(value, Tensor):
                self._add_tensor(value)
            elif isinstance(value, (tuple, list)):
                self._add(value)

    def _add_module(self, module: nn.Module) -> None:
        for part in module.modules():
            self.objects.append(part)
            self.versions.append(part.training)
            for tensors in (part._parameters, part._buffers):
                self._add(tensors.values())


_NOTHING_WITHIN = frozenset((str, int, float, bool, type(None)))


def _fields(kind: type[Any]) -> Iterable[str]:
    """Returns the names of the fields of a dataclass; none of anything else."""
    names: dict[str, Any] = getattr(kind, "__dataclass_fields__", {})
    return names


def _parts(program: StepProgram) -> dict[str, _Contents]:
    seen: set[int] = set()
    return {part: _Contents(getattr(program, part), seen) for part in _fields(StepProgram)}
