"""A graph of NIR on its way: nodes, edges, and what flows along them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

Edge = tuple[str, str]


@dataclass(frozen=True)
class Flow:
    """A value of the step: the sum of what some nodes give, and a constant.

    Attributes:
        names: Of the nodes.
        shape: Of one sample.
        constant: Of the shape; None for zero.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    constant: Tensor | None = None

    def plus(self, constant: Tensor) -> Flow:
        """Returns it with a constant added."""
        total = constant if self.constant is None else self.constant + constant
        return Flow(self.names, self.shape, total.expand(self.shape))


@dataclass
class Building:
    """Nodes by name, and edges."""

    nodes: dict[str, Any] = field(default_factory=dict)
    edges: list[Edge] = field(default_factory=list)

    def name(self, hint: str) -> str:
        """Returns a name that no node has."""
        base = "".join(letter if letter.isalnum() else "_" for letter in hint) or "node"
        found, count = base, 0
        while found in self.nodes:
            count += 1
            found = f"{base}_{count}"
        return found

    def add(self, hint: str, node: Any, read: Flow | None = None) -> str:
        """Adds a node, and what leads into it; returns its name."""
        name = self.name(hint)
        self.nodes[name] = node
        if read is not None:
            self.lead(read, name)
        return name

    def lead(self, read: Flow, target: str) -> None:
        """Adds edges. What is read twice goes through a node of its own, for there is one edge between two nodes."""
        for source in read.names:
            if (source, target) in self.edges:
                factor = scale(torch.ones(()), read.shape)
                source = self.add(f"{target}_again", factor, Flow((source,), read.shape))
            self.edges.append((source, target))

    def scaled(self, hint: str, read: Flow, factor: Tensor) -> Flow:
        """Returns the product with numbers that fit one sample."""
        factor = torch.as_tensor(factor).double()
        if bool((factor == 1).all()):
            return read
        name = self.add(hint, scale(factor, read.shape), read)
        constant = None if read.constant is None else (read.constant * factor).expand(read.shape)
        return Flow((name,), read.shape, constant)

    def with_constant(self, read: Flow) -> Flow:
        """Returns a value whose constant is a node: one that weighs what it reads with zeros, and has a bias."""
        if read.constant is None or not bool((read.constant != 0).any()):
            return Flow(read.names, read.shape)
        import nir

        count = read.shape[0] if read.shape else 0
        numbers, zeros = read.constant.reshape(count, -1), np.zeros((count, count), dtype=np.float32)
        if len(read.shape) == 1:
            node: Any = nir.Affine(weight=zeros, bias=array(numbers[:, 0]))
        elif len(read.shape) == 3 and bool((numbers == numbers[:, :1]).all()):
            node = nir.Conv2d(read.shape[1:], zeros[:, :, None, None], 1, 0, 1, 1, array(numbers[:, 0]))
        else:
            raise ValueError("a constant of several axes that is no number per channel")
        name = self.add("bias", node, Flow(read.names[:1], read.shape))
        return Flow((*read.names, name), read.shape)

    def fold(self, read: Flow, factor: Tensor, constant: Tensor) -> bool:
        """Multiplies and shifts within the weights that alone make a value; returns whether there are such."""
        import nir

        node = self.nodes[read.names[0]] if len(read.names) == 1 else None
        if not isinstance(node, (nir.Linear, nir.Affine, nir.Conv1d, nir.Conv2d)):
            return False
        pairs = [value.expand(read.shape).reshape(read.shape[0], -1) for value in (factor, constant)]
        if not all(bool((value == value[:, :1]).all()) for value in pairs):
            return False
        gain, shift = (value[:, 0] for value in pairs)
        weight = torch.as_tensor(node.weight).double()
        weight = weight * gain.reshape(-1, *(1 for _ in weight.shape[1:]))
        bias = array(torch.as_tensor(getattr(node, "bias", np.zeros(len(gain)))).double() * gain + shift)
        if isinstance(node, nir.Linear):
            self.nodes[read.names[0]] = nir.Affine(weight=array(weight), bias=bias)
        else:
            node.weight, node.bias = array(weight), bias
        return True

    def only(self, wanted: Iterable[str]) -> Building:
        """Returns the nodes that lead to some of them, in the order in which they were added."""
        found, waiting = set(wanted), list(wanted)
        while waiting:
            target = waiting.pop()
            for source, end in self.edges:
                if end == target and source not in found:
                    found.add(source)
                    waiting.append(source)
        nodes = {name: node for name, node in self.nodes.items() if name in found}
        return Building(nodes, [edge for edge in self.edges if edge[0] in found and edge[1] in found])


def array(value: Tensor, shape: tuple[int, ...] | None = None) -> np.ndarray[Any, Any]:
    """Returns numbers for a node, of some shape: in float32 where that holds them as they are."""
    value = value.detach().cpu().double()
    value = value if shape is None else value.expand(shape)
    short = value.float()
    return np.ascontiguousarray((short if torch.equal(short.double(), value) else value).numpy())


def scale(factor: Tensor, shape: tuple[int, ...]) -> Any:
    """Returns a node that multiplies."""
    import nir

    return nir.Scale(array(torch.as_tensor(factor), shape))
