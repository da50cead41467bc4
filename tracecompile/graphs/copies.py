"""Copies of a program's graphs for a copy of its model."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

from torch import fx

from tracecompile.program import StepProgram
from tracecompile.segment import segments_of


def graphs_of(value: Any) -> Iterator[fx.GraphModule]:
    """Yields every graph of a program, or of a part of one, as often as it is met."""
    if isinstance(value, fx.GraphModule):
        yield value
    elif isinstance(value, StepProgram):
        for field in dataclasses.fields(value):
            yield from graphs_of(getattr(value, field.name))
        for _, segment in segments_of(value.leaves):
            yield from graphs_of(segment.program)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from graphs_of(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from graphs_of(getattr(value, field.name))


def copy_graphs(program: Any, memo: dict[int, Any]) -> None:
    """Notes in the memo of a deep copy a copy of every graph, with copies of the modules that it calls.

    The nodes are shared: no graph of a program changes once the program is compiled, and to write out and compile the
    code of each again takes longer than to copy all the rest.
    """
    for graph in graphs_of(program):
        if id(graph) not in memo:
            memo[id(graph.graph)] = graph.graph
            copied = object.__new__(type(graph))
            memo[id(graph)] = copied
            own = {name: value for name, value in graph.__dict__.items() if name != "forward"}
            copied.__dict__.update(copy.deepcopy(own, memo))
