"""A NIR graph as one module that runs over time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tracecompile.capture.tracing.names import unique, valid_name
from tracecompile.errors import InvalidInput, UnsupportedOperation
from tracecompile.nir.order import Edge, delayed_edges, flattened, ordered
from tracecompile.nir.units import Delayed, Unit, make_unit

TIME_STEP = 1e-4
"""Seconds; what the libraries assume that exchange NIR graphs."""
OWN_NAMES = frozenset(["names", "late", "order", "sources", "delays", "input_shape"])
"""Attributes of a network that no node may take for itself."""


class NIRNetwork(nn.Module):
    """Runs a NIR graph over a sequence: (T, B, *input shape) -> (T, B, *output shape).

    Weights are Parameters, the constants of neurons buffers; both are named after the nodes. NIR says nothing of
    surrogate gradients: spikes have that of ``tracecompile.nn.arctan``. All states start as zeros.
    """

    def __init__(self, nodes: Mapping[str, Any], edges: list[Edge], dt: float) -> None:
        """Takes the nodes and edges of a graph without subgraphs, and the length of a step in seconds."""
        super().__init__()
        self.entry, self.leave = (_only(nodes, kind) for kind in ("Input", "Output"))
        kinds = {name: type(node).__name__ for name, node in nodes.items()}
        taken = set(vars(self)) | set(dir(type(self))) | OWN_NAMES
        self.names: dict[str, str] = {}
        for name, node in nodes.items():
            if kinds[name] not in ("Input", "Output"):
                self.names[name] = unique(valid_name(name) or "node", taken)
                self.add_module(self.names[name], make_unit(name, node, dt))
        units = {name: self.get_submodule(module) for name, module in self.names.items()}
        stateful = {name for name, unit in units.items() if isinstance(unit, Unit)}
        delays = {name for name, unit in units.items() if isinstance(unit, Delayed)}
        self.late = delayed_edges(list(nodes), edges, stateful, delays)
        now = [edge for edge in edges if edge not in self.late]
        self.order = ordered(nodes, [edge for edge in now if edge[1] not in delays])
        self.sources = {name: [edge[0] for edge in edges if edge[1] == name] for name in nodes}
        self.delays = delays
        self.input_shape = _shape(nodes[self.entry])

    def forward(self, x: Tensor) -> Tensor:
        """Runs the graph step by step."""
        states: dict[str, tuple[Tensor, ...]] = {}
        before = {source: self._silence(source, x) for source, _ in self.late}
        outputs = []
        for x_t in x:
            values = self._step(x_t, before, states)
            before = {source: values[source] for source in before}
            outputs.append(values[self.leave])
        return torch.stack(outputs)

    def _step(self, x_t: Tensor, before: dict[str, Tensor], states: dict[str, tuple[Tensor, ...]]) -> dict[str, Tensor]:
        values = {self.entry: x_t}
        for name in self.order:
            if name in self.delays:
                self._hand_on(name, values, states)
            elif name != self.entry:
                values[name] = self._computed(name, self._total(name, values, before), states)
        for name in self.delays:
            value = self._total(name, values, before)
            unit: Any = self.get_submodule(self.names[name])
            states[name] = unit(value, states.get(name) or (torch.zeros_like(value),) * unit.states)[1]
        return values

    def _hand_on(self, name: str, values: dict[str, Tensor], states: dict[str, tuple[Tensor, ...]]) -> None:
        """Gives a delay's oldest value, zeros in the shape of the input at first."""
        if name in states:
            values[name] = states[name][0]
        else:
            values[name] = self._silence(name, values[self.entry].unsqueeze(0))

    def _total(self, name: str, values: dict[str, Tensor], before: dict[str, Tensor]) -> Tensor:
        """Adds up what a node reads."""
        if not self.sources[name]:
            raise UnsupportedOperation(
                f"The node {name} of the NIR graph reads nothing.", "Lead an edge into it, or leave it out."
            )
        read = [before[source] if (source, name) in self.late else values[source] for source in self.sources[name]]
        total = read[0]
        for value in read[1:]:
            total = total + value
        return total

    def _computed(self, name: str, value: Tensor, states: dict[str, tuple[Tensor, ...]]) -> Tensor:
        if name == self.leave or name not in self.names:
            return value
        unit: Any = self.get_submodule(self.names[name])
        if not isinstance(unit, Unit):
            result: Tensor = unit(value)
            return result
        state = states.get(name) or (torch.zeros_like(value),) * unit.states
        result, states[name] = unit(value, state)
        return result

    def _silence(self, name: str, x: Tensor) -> Tensor:
        """Returns what a neuron gave before the first step."""
        unit: Any = self.get_submodule(self.names[name])
        if not unit.shape:
            raise UnsupportedOperation(
                f"The node {name} of the NIR graph is read a step later, and the graph does not say its shape.",
                "Give its arrays the shape of its neurons.",
            )
        return x.new_zeros(x.shape[1], *unit.shape)

    def extra_repr(self) -> str:
        """Returns the order of the nodes."""
        return f"order={' -> '.join(self.order)}"


def load_nir(path: Path | str, dt: float = TIME_STEP) -> NIRNetwork:
    """Reads a NIR graph from a file.

    Args:
        path: A file that ``nir.write`` made.
        dt: Seconds per time step.

    Raises:
        InvalidInput: The package ``nir`` is not installed.
        UnsupportedOperation: The graph has a node, or a cycle, that has no place in a network over time; names it.
    """
    try:
        import nir
    except ImportError as error:
        raise InvalidInput(
            "Reading a NIR graph needs the package nir.", "Install it: pip install 'tracecompile[nir]'."
        ) from error
    return network_of(nir.read(str(path)), dt)


def network_of(graph: Any, dt: float = TIME_STEP) -> NIRNetwork:
    """Builds the network of a NIR graph; see ``load_nir``."""
    nodes, edges = flattened(graph)
    inner = {name for name, node in nodes.items() if type(node).__name__ in ("Input", "Output") and "." in name}
    return NIRNetwork(*without(nodes, edges, inner), dt)


def without(nodes: dict[str, Any], edges: list[Edge], ports: set[str]) -> tuple[dict[str, Any], list[Edge]]:
    """Joins what leads into a subgraph's port with what leads out of it."""
    for port in sorted(ports):
        into = [source for source, target in edges if target == port]
        out = [target for source, target in edges if source == port]
        edges = [edge for edge in edges if port not in edge] + [(source, target) for source in into for target in out]
    return {name: node for name, node in nodes.items() if name not in ports}, edges


def _only(nodes: Mapping[str, Any], kind: str) -> str:
    found = [name for name, node in nodes.items() if type(node).__name__ == kind]
    if len(found) != 1:
        raise UnsupportedOperation(
            f"The NIR graph has {len(found)} nodes of the kind {kind}.", f"Give it exactly one {kind}."
        )
    return found[0]


def _shape(node: Any) -> tuple[int, ...]:
    known = (node.input_type or {}).get("input")
    return () if known is None else tuple(int(size) for size in np.asarray(known).reshape(-1))
