"""Draws the random numbers of time steps before they are computed, in the order of the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from tracecompile.graphs.masks import read_by_value
from tracecompile.program import StepProgram
from tracecompile.runtime.replay import buffers_kept, drawn_again, random_states

Like = tuple[torch.Size, tuple[int, ...], torch.dtype, torch.device]
"""What is asked of a tensor whose values nobody reads. Random numbers fill a tensor in the order of its memory."""


class Drawer:
    """Draws for one program.

    What is drawn depends on shapes, types and layouts of what the step computes. They are found out once for each kind
    of input, by computing what they hang on; after that nothing is computed but the draws.
    """

    def __init__(self, program: StepProgram) -> None:
        """Takes a program that has gone through draw_ahead."""
        self.program = program
        nodes = list(program.draws.graph.graph.nodes) if program.draws.graph is not None else []
        self.drawing = read_by_value(nodes[-1:]) - set(nodes[-1:])
        self.given = [node for node in nodes if node.op == "placeholder"]
        self.nodes = [node for node in nodes if node.op not in ("placeholder", "output")]
        self.results: Sequence[fx.Node] = nodes[-1].args[0] if nodes else ()
        self.known: dict[Any, dict[fx.Node, Like]] = {}

    def draw(self, given: Sequence[Any]) -> list[Tensor]:
        """Returns what one step draws.

        Args:
            given: (*inputs, *invariants, *states) of the step; of the states only the shapes count.
        """
        if not self.results:
            return []
        with torch.no_grad():
            key = _kind(given)
            if key not in self.known:
                self.known[key] = self._measured(given)
            values = {
                node: torch.empty_strided(*like[:2], dtype=like[2], device=like[3])
                for node, like in self.known[key].items()
            }
            values.update((node, value) for node, value in zip(self.given, given, strict=True) if node not in values)
            for node in self.nodes:
                if node in self.drawing:
                    values[node] = self._run(node, values)
            return [values[node] for node in self.results]

    def _measured(self, given: Sequence[Any]) -> dict[fx.Node, Like]:
        """Computes everything once, and leaves no trace of it; returns what each tensor is like that is not drawn."""
        values = dict(zip(self.given, given, strict=True))
        with drawn_again(random_states()), buffers_kept(self.program.root):
            for node in self.nodes:
                values[node] = self._run(node, values)
        found = ((node, value) for node, value in values.items() if node not in self.drawing)
        return {node: (v.shape, v.stride(), v.dtype, v.device) for node, v in found if isinstance(v, Tensor)}

    def _run(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op == "call_function":
            return node.target(*args, **kwargs)  # type: ignore[operator]
        found = self.program.resolve(str(node.target))
        return found if node.op == "get_attr" else found.forward(*args, **kwargs)


def _kind(given: Sequence[Any]) -> tuple[Any, ...]:
    """Returns all of some values that shapes, types and layouts can depend on."""
    tensors = [value for value in given if isinstance(value, Tensor)]
    numbers = tuple(value for value in given if not isinstance(value, Tensor))
    devices = sorted({value.device.type for value in tensors})
    precision = tuple((torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in devices)
    return tuple((v.shape, v.stride(), v.dtype, v.device) for v in tensors), repr(numbers), precision
