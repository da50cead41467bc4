"""What some nodes of a graph are computed from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import fx


def cone(nodes: Iterable[Any], stop: Callable[[fx.Node], bool] = lambda node: False) -> set[fx.Node]:
    """Returns the nodes that some nodes need, themselves included.

    Args:
        nodes: What is no node needs none.
        stop: Tells of a node whether what it needs is left out.
    """
    found: set[fx.Node] = set()
    waiting = [node for node in nodes if isinstance(node, fx.Node)]
    while waiting:
        node = waiting.pop()
        if node in found:
            continue
        found.add(node)
        if not stop(node):
            waiting.extend(node.all_input_nodes)
    return found
