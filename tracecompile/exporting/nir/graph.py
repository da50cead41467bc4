"""The graph of a network: every layer a neuron behind the nodes of its synapse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from tracecompile.errors import InvalidInput, SourceLine, UnsupportedOperation
from tracecompile.exact import exact_value
from tracecompile.exporting.nir.algebra import neuron_of
from tracecompile.exporting.nir.building import Building, Flow
from tracecompile.exporting.nir.cells import cell_of
from tracecompile.exporting.nir.later import OWN, late_name, late_of, with_late_edges
from tracecompile.exporting.nir.neurons import add_cell
from tracecompile.exporting.nir.polynomial import Polynomial, is_zero
from tracecompile.exporting.nir.synapses import Synapse
from tracecompile.exporting.nir.values import Run
from tracecompile.layers import Layer, Source
from tracecompile.program import StepProgram, step_results

OTHERWISE = 'Export it as ONNX, which takes any step: tracecompile.export(net, "onnx").'


@dataclass(frozen=True)
class Made:
    """A graph, and what its nodes are of the network.

    Attributes:
        building: Nodes and edges.
        input: The value of the step that the graph's Input is.
        output: The value of the step that its Output is.
        spiking: Nodes by the spikes of the step that they give.
        at_threshold: Those of them that the network lets spike at their threshold as well.
        left: Names of outputs of the network that the graph does not have, with why.
    """

    building: Building
    input: str
    output: str
    spiking: Mapping[str, str]
    at_threshold: frozenset[str]
    left: tuple[str, ...]


class Assembly:
    """Makes the graph of a program."""

    def __init__(self, program: StepProgram, few: Run, many: Run, dt: float) -> None:
        """Takes the program, its values on two calls of different sizes, and the seconds of a step."""
        self.program, self.few, self.many, self.dt = program, few, many, dt
        self.values = few.steps[0]
        self.building, self.spiking = Building(), dict[str, str]()
        self.flows: dict[str, Flow] = {}
        self.at_threshold = set[str]()
        self.unsayable: dict[str, tuple[str, SourceLine | None]] = {}

    def made(self) -> Made:
        """Returns the graph.

        Raises:
            UnsupportedOperation: Something in the network cannot be said in NIR; names the user's line.
        """
        import nir

        read = [x.name for x in self.program.inputs if self._is_read(x.name)]
        if len(read) != 1:
            raise UnsupportedOperation(
                f"The step reads {len(read)} inputs, and a NIR graph has one here.",
                f"Put them together into one input. {OTHERWISE}",
                self._read_at(read[-1]) if read else None,
            )
        self.flows = {x.name: Flow((), self._shape(x.name)) for x in self.program.inputs if self._is_source(x.name)}
        shape = self._shape(read[0])
        self.flows[read[0]] = Flow((self.building.add("input", nir.Input(np.array(shape))),), shape)
        for layer in self.program.layers:
            self._add(layer)
        output, left = self._chosen_output()
        flow = self._sayable(output)
        end = self.building.add("output", nir.Output(np.array(flow.shape)), self.building.with_constant(flow))
        joined = with_late_edges(self.building, self._late_flows(), end, self.dt)
        spiking = {name: value for name, value in self.spiking.items() if name in joined.nodes}
        return Made(joined, read[0], output, spiking, frozenset(self.at_threshold & set(spiking)), left)

    def _is_source(self, name: str) -> bool:
        return any(source.origin == name for layer in self.program.layers for source in layer.sources)

    def _is_read(self, name: str) -> bool:
        """Tells whether a layer reads an input, other than as what was made of another one before the loop."""
        node = next(node for node in self.program.step.graph.nodes if node.name == name)
        hoisted = [user.target is exact_value and user.args[0] is not node for user in node.users]
        return self._is_source(name) and not all(hoisted)

    def _shape(self, node: str) -> tuple[int, ...]:
        """Returns the shape of one sample of a value."""
        few, many = self.few.steps[-1][node].shape, self.many.steps[-1][node].shape
        if not few or few[0] == many[0] or few[1:] != many[1:]:
            raise InvalidInput(
                f"What the step computes as {node} has the shape {tuple(few)} for one batch and {tuple(many)} for "
                "another: NIR needs one shape for each sample, behind the axis of the samples.",
                "Give the model an input with an axis of samples in front: [time, batch, ...].",
            )
        return tuple(few[1:])

    def _line(self, name: str) -> SourceLine | None:
        """Returns the user's line of a value of the step."""
        return next((x.meta.get("where") for x in self.program.step.graph.nodes if x.name == name), None)

    def _read_at(self, name: str) -> SourceLine | None:
        """Returns the user's line that reads a value of the step first."""
        node = next(x for x in self.program.step.graph.nodes if x.name == name)
        return next((user.meta.get("where") for user in node.users), None)

    def _begun(self, state: str) -> SourceLine | None:
        """Returns the user's line that makes what a state starts with, or else the first that reads it."""
        output = next(node for node in reversed(self.program.prologue.graph.nodes) if node.op == "output")
        places = [carry.placeholder for carry in self.program.carries]
        made = dict(zip(places, output.args[0][2], strict=False)).get(state)
        where: SourceLine | None = made.meta.get("where") if isinstance(made, fx.Node) else None
        return where or self._read_at(state)

    def _sayable(self, name: str) -> Flow:
        if name in self.unsayable:
            what, where = self.unsayable[name]
            raise UnsupportedOperation(
                f"NIR does not know {what}.",
                'Let others read its spikes, or export it as ONNX: tracecompile.export(net, "onnx").',
                where,
            )
        return self.flows[name]

    def _read(self, source: Source) -> Flow:
        if source.delay == 0:
            return self._sayable(source.origin)
        if not is_zero(torch.as_tensor(self.few.initial[source.value]).double()):
            raise UnsupportedOperation(
                f"{source.value} carries something before the first step, and a Delay of NIR is empty.",
                f"Start it at zero. {OTHERWISE}",
                self._begun(source.value),
            )
        return Flow((late_name(source.origin, source.delay),), self._shape(source.value))

    def _late_flows(self) -> dict[str, Flow]:
        """Returns what is read at later steps, by name."""
        found: dict[str, Flow] = {}
        for source, _ in self.building.edges:
            if (late := late_of(source)) is not None:
                found[late[0]] = flow = self._sayable(late[0])
                if flow.constant is not None and bool((flow.constant != 0).any()):
                    raise UnsupportedOperation(
                        f"NIR does not know {late[0]} with its constant one step later.", OTHERWISE, self._line(late[0])
                    )
        return found

    def _add(self, layer: Layer) -> None:
        synapse = Synapse(self.program, self.building, self.values)
        read = {source.value: self._read(source) for source in layer.sources}
        found = synapse.currents(layer.synapse.graph, read, layer.synapse_statics)
        currents = dict(zip(layer.currents, found, strict=True))
        if layer.core is None:
            self.flows |= currents
            return
        statics = {name: self._static(name) for name in layer.core_statics}
        neuron = neuron_of(self.program, layer, statics)
        if not layer.states and not neuron.conditions:
            sums = [(name, self._sum(name, value, currents)) for name, value in neuron.outputs.items()]
            known = {name: flow for name, flow in sums if flow is not None}
            if len(known) == len(sums):
                self.flows |= known
                return
        shape = torch.broadcast_shapes(*(self._shape(name) for name in layer.outputs))
        starts = {state: self._start(state) for state in layer.states}
        cell = cell_of(neuron, starts)
        try:
            name = add_cell(self.building, layer.name, cell, currents, shape, self.dt)
        except ValueError as fault:
            where = neuron.lines.get((*layer.states, *layer.outputs)[0])
            raise UnsupportedOperation(f"NIR has no neuron like {layer.name}: {fault}.", OTHERWISE, where) from fault
        if any(condition.at_zero for condition in neuron.conditions.values()):
            self.at_threshold.add(name)
        self.flows[f"{OWN}{name}"] = Flow((name,), shape)
        for output in layer.outputs:
            if output not in cell.outputs:
                self.unsayable[output] = (f"{output} of {layer.name}, which is no output", neuron.lines[output])
                continue
            factor = cell.outputs[output]
            plain = bool((factor == 1).all())
            if cell.threshold is not None and plain:
                self.spiking[name] = output
            self.flows[output] = self.building.scaled(f"{name}_gain", Flow((name,), shape), factor)

    def _sum(self, name: str, value: Polynomial, currents: Mapping[str, Flow]) -> Flow | None:
        """Returns what no neuron is needed for, such as a dropout in eval mode; None where it is no sum of currents."""
        total = Flow((), self._shape(name))
        if any(currents[symbol].shape != total.shape for symbol in value.symbols) or not value.symbols:
            return None
        for symbol in sorted(value.symbols):
            part = self.building.scaled(f"{name}_gain", currents[symbol], value.at(symbol))
            total = Flow((*total.names, *part.names), total.shape, total.constant)
            total = total if part.constant is None else total.plus(part.constant)
        return total.plus(value.at()) if bool((value.at() != 0).any()) else total

    def _static(self, name: str) -> Any:
        """Returns a value that is the same for all samples and steps, without the axis of the samples."""
        few, many = self.few.steps[0].get(name), self.many.steps[0].get(name)
        if not isinstance(few, Tensor) or not isinstance(many, Tensor):
            return few
        if few.dim() and few.shape[0] != many.shape[0] and few.shape[1:] == many.shape[1:]:
            few, many = few[:1], many[:1].expand(many.shape)
            many = many[:1]
        first, last = self.few.steps[0][name], self.few.steps[-1][name]
        if few.shape != many.shape or not torch.equal(few, many) or not torch.equal(first, last):
            raise UnsupportedOperation(
                f"{name} changes from sample to sample or from step to step, and a NIR neuron has constants.",
                f"Make it a constant. {OTHERWISE}",
                self._line(name),
            )
        return few[0] if few.dim() and few.shape[0] == 1 else few

    def _start(self, state: str) -> Tensor:
        few, many = (torch.as_tensor(run.initial[state]).double() for run in (self.few, self.many))
        one = few[:1] if few.dim() else few
        same = bool((few == one).all()) and bool((many == one).all())
        if not same:
            raise UnsupportedOperation(
                f"The state {state} starts at other values for each sample, and a NIR neuron starts at rest.",
                f"Start it at a constant. {OTHERWISE}",
                self._begun(state),
            )
        return one[0] if one.dim() else one

    def _chosen_output(self) -> tuple[str, tuple[str, ...]]:
        """Returns the value that the graph's Output is, and the names of the outputs that it has not."""
        nodes = step_results(self.program.step)[0]
        names = {node.name: output.name for node, output in zip(nodes, self.program.outputs, strict=True)}
        known = [name for name in names if name in self.flows]
        if not known:
            first = next(iter(names))
            self.unsayable.setdefault(first, (f"{names[first]}, which the model returns", self._line(first)))
            self._sayable(first)
        if len(known) > 1:
            several = ", ".join(names[name] for name in known)
            raise UnsupportedOperation(
                f"The model returns several values of every step ({several}), and a NIR graph has one Output here.",
                f"Return one of them. {OTHERWISE}",
                self._line(known[-1]),
            )
        return known[0], tuple(called for name, called in names.items() if name not in known)
