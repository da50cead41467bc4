"""What backward of an open window goes by, and whether the model is still that.

Backward runs the synapses of the program that a window was opened with, once for every bin, with the Parameters that
the model held then; what the cores do is recorded at every step. So a core may become another one while steps wait for
backward, by another threshold or another mode. What a synapse reads may not, and neither may static values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from tracecompile.compiled import Compiled
from tracecompile.errors import InvalidInput
from tracecompile.program import TWIN_OF, StepProgram


class Basis:
    """The model and its program as a window was opened with them.

    Attributes:
        compiled: What it was opened with.
        doubtful: Whether somebody has changed the model since, and nobody has looked.
    """

    def __init__(self, compiled: Compiled, read: Sequence[Any], again: bool) -> None:
        """Takes them as they are.

        Args:
            compiled: What runs.
            read: What static values are computed of.
            again: Whether backward runs the steps again: then cores may not become others either.
        """
        self._again = again
        self.compiled, self.doubtful = compiled, False
        tables = [(path, module._parameters) for path, module in compiled.program.root.named_modules()]
        self._held = [(f"{path}.{key}", table, key, value) for path, table in tables for key, value in table.items()]
        self._frozen = [(name, p) for name, _, _, p in self._held if p is not None and not p.requires_grad]
        assert compiled.program.statics is not None
        named = zip(compiled.program.statics.attributes, read, strict=True)
        self._read = [
            (name, value, value._version, value.untyped_storage()) for name, value in named if _is_read(value)
        ]

    def change(self, compiled: Compiled, read: Callable[[], Sequence[Any]]) -> str:
        """Returns the names of what has become another thing; nothing where nothing has that backward goes by.

        Args:
            compiled: What runs now.
            read: Returns what static values are computed of now.

        Raises:
            InvalidInput: In its other mode the model is made of other layers.
        """
        found = self._written()
        if not found and (self.doubtful or compiled is not self.compiled):
            found = self._replaced(read()) or ("" if compiled is self.compiled else self._of_the_program(compiled))
            self.doubtful = bool(found)
        return found

    def _written(self) -> str:
        """Returns the name of what was written into, or is to learn only now."""
        learning = (name.removeprefix(".") for name, parameter in self._frozen if parameter.requires_grad)
        return next((name for name, value, version, _ in self._read if value._version != version), next(learning, ""))

    def _replaced(self, read: Sequence[Any]) -> str:
        """Returns the name of a tensor in whose place there is another one."""
        for name, table, key, value in self._held:
            if table.get(key, value) is not value:
                return name.removeprefix(".")
        for (name, value, _, storage), now in zip(self._read, filter(_is_read, read), strict=False):
            if value is not now or _lies_elsewhere(now, storage):
                return name
        return ""

    def _of_the_program(self, compiled: Compiled) -> str:
        changed = [] if compiled.facts is None else self.compiled.changed(compiled.facts)
        first, now = self.compiled.program, compiled.program
        if self._again and changed:
            return ", ".join(changed[:3])
        called = {str(node.target) for node in _nodes(first) if node.op in _NAMED}
        touched = [name for name in changed if any(_touches(name, path) for path in called)]
        if (
            not self._again
            and not touched
            and _described(first) == _described(now)
            and all(_is_same(first, now, path) for path in called)
        ):
            return ""
        if not changed:
            raise InvalidInput(
                "In this mode the model is made of other layers than in the steps before.",
                "Call backward, or reset() of the converted module, before its mode is changed.",
            )
        return ", ".join((touched or changed)[:3])


def refuse_change(names: str) -> None:
    """Refuses to go on in a window after a change.

    Raises:
        InvalidInput: There are names of what has changed.
    """
    if names:
        raise InvalidInput(
            f"{names}: changed while steps wait for backward, which would take what is there now for what those steps "
            "have run with.",
            "Call backward before the change, or reset() of the converted module after it; what is not to be trained "
            "runs under torch.no_grad().",
        )


def goes_through(program: StepProgram, states: Sequence[Any], places: Sequence[int]) -> bool:
    """Tells whether gradients of states that are handed in are known: neurons keep them.

    Args:
        program: What runs.
        states: As handed in.
        places: Their numbers among the carries.
    """
    kept = {name for layer in program.layers for name in layer.states}
    learned = [place for state, place in zip(states, places, strict=True) if state.requires_grad]
    return all(program.carries[place].placeholder in kept for place in learned)


_NAMED = ("call_module", "get_attr")


def _is_read(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_inference()


def _lies_elsewhere(value: Tensor, storage: torch.UntypedStorage) -> bool:
    """Tells whether a tensor has been given another storage: another ``data``.

    Not another address: fully_shard frees the memory of a weight between calls, and fills it again wherever it then
    lies. The storage is kept, so that no other can have its identity.
    """
    return bool(value.untyped_storage()._cdata != storage._cdata)


def _nodes(program: StepProgram) -> Iterator[fx.Node]:
    """Yields the nodes that backward runs."""
    for layer in program.layers:
        if layer.local is not None:
            yield from layer.local.graph.nodes
    assert program.statics is not None
    yield from program.statics.graph.graph.nodes


def _described(program: StepProgram) -> list[Any]:
    """Returns everything that backward asks a program for, modules and tensors aside."""
    assert program.emitted is not None
    nodes = [(node.op, node.name, node.target, str(node.args), str(node.kwargs)) for node in _nodes(program)]
    layers = [
        (each.name, each.sources, each.currents, each.outputs, each.states, each.norms) for each in program.layers
    ]
    accruals = [accrual.name for accrual in program.emitted.accruals]
    return [nodes, layers, accruals, program.ports, program.blocks, program.trainable]


def _touches(name: str, path: str) -> bool:
    """Tells whether a fact by this name is one of the module or tensor at a path."""
    name = name.removeprefix("class of ")
    return name == path or name.startswith((f"{path}.", f"{path} ")) or path.startswith(f"{name}.")


def _is_same(first: StepProgram, now: StepProgram, path: str) -> bool:
    try:
        one, other = first.resolve(path), now.resolve(path)
    except AttributeError:  # a graph's own, such as a normalisation by what was recorded
        return False
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or (one.shape == other.shape and torch.equal(one, other))
    return one is other or (TWIN_OF in vars(one) and vars(one)[TWIN_OF] is vars(other).get(TWIN_OF))
