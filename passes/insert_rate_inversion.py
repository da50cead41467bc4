"""Gives every core the local graph of the chosen rule."""

from __future__ import annotations

import operator
from collections.abc import Collection
from dataclasses import replace
from typing import ClassVar

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from tracecompile.analysis.folding import find_fold
from tracecompile.analysis.linearity import nonlinear_operations, wants_steps
from tracecompile.analysis.scales import scales_of
from tracecompile.layers import STATISTICS, Accrual, Fold, Layer
from tracecompile.operations import operation_of
from tracecompile.passes.base import Pass
from tracecompile.passes.insert_input_traces import unused
from tracecompile.passes.inverted import fault_of_carries, fault_of_layer
from tracecompile.program import StepProgram, example_value
from tracecompile.rules import rule_of
from tracecompile.rules.norm import with_recorded_norms


class InsertRateInversion(Pass):
    """Attaches to every layer what its rule records per step, and how its mean outputs answer to its currents.

    requires: traces.
    ensures: every layer has the local graph that backward evaluates, and every layer with a core what the rule makes of
        it: a step that takes and returns what it carries, in which no derivative of an output is forgotten. The step
        carries the batch statistics of every normalisation. Where the rule records nothing the program stays the same.

        before: core(cur, mem) -> (spk), (mem_2)
        after:  measured: (cur, mem) -> (spk), (mem_2), d spk/d cur, d spk/d mem, d mem_2/d cur, d mem_2/d mem
                analytic: mean cur -> mean spk, from the rate curve of the neuron
    """

    name: ClassVar[str] = "insert_rate_inversion"

    def requires(self, program: StepProgram) -> str | None:
        """See the class."""
        needed = rule_of(program.settings).records and _reads(program)
        return "there are no traces" if needed and not program.traces else None

    def run(self, program: StepProgram) -> StepProgram:
        """See the class."""
        if not rule_of(program.settings).records:
            return program
        trainable = trainable_statics(program)
        layers = tuple(_with_response(program, layer, trainable) for layer in program.layers)
        rule_of(program.settings).refuse(program.evolve(layers=layers))
        taken = {node.name for node in program.step.graph.nodes}
        statistics = [trace for layer in layers for trace in _of_norms(layer, taken)]
        traces = (*program.traces_kept, *statistics)
        return program.evolve(layers=layers, traces_kept=traces, trainable=trainable)

    def ensures(self, before: StepProgram, after: StepProgram) -> str | None:
        """See the class."""
        if not rule_of(after.settings).records:
            return None if after is before else "the rule records nothing, and yet the program is another one"
        faults = (fault_of_layer(after, layer) for layer in after.layers)
        return next(filter(None, faults), None) or fault_of_carries(before, after)


def _reads(program: StepProgram) -> bool:
    return any(layer.sources for layer in program.layers)


def _with_response(program: StepProgram, layer: Layer, trainable: frozenset[str]) -> Layer:
    local, norms = with_recorded_norms(program, with_truths_of_means(program, layer.synapse))
    rule = rule_of(program.settings)
    sampled = rule.resolves_steps(program.settings) and wants_steps(program, layer)
    layer = replace(layer, local=local, norms=norms, sampled=sampled, linear=not nonlinear_operations(program, layer))
    if not norms and not sampled and not _convolves(program, local):
        fold = find_fold(program, local.graph, tuple(source.value for source in layer.sources))
        layer = replace(layer, fold=fold if isinstance(fold, Fold) else None)
    if layer.core is None:
        return layer
    layer = replace(layer, scales=scales_of(program, layer, trainable))
    return replace(layer, response=rule.core(program, layer, trainable))


def _convolves(program: StepProgram, local: fx.GraphModule) -> bool:
    """Tells whether a local graph has a convolution: over all bins at once its weights' gradient rounds worse."""
    return any(
        operation_of(node, program.resolve(str(node.target)) if node.op == "call_module" else None).spatial is not None
        for node in local.graph.nodes
        if node.op not in ("placeholder", "output", "get_attr")
    )


def _of_norms(layer: Layer, taken: Collection[str]) -> list[Accrual]:
    """Returns the traces of the batch statistics of a layer's normalisations: mean, variance, mean, ..."""
    return [
        Accrual(unused(f"trace_{norm}_{what}", taken), "trace", layer.name, (norm, what), "", layer.decay)
        for norm in layer.norms
        for what in STATISTICS
    ]


def with_truths_of_means(program: StepProgram, synapse: fx.GraphModule) -> fx.GraphModule:
    """Rewrites a synapse for the local graph, which is given the share of the steps at which something was true."""
    truths = [node for node in synapse.graph.nodes if node.op == "placeholder" and _is_truth(node)]
    if not truths:
        return synapse
    graph, values = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in synapse.graph.nodes:
        values[node] = graph.node_copy(node, values.__getitem__)
        values[node].meta = dict(node.meta)
        if node in truths:
            values[node] = graph.call_function(operator.gt, (values[node], 0.5))
            values[node].meta = dict(node.meta)
    return program.graph_module(graph, "Local")


def _is_truth(node: fx.Node) -> bool:
    return getattr(example_value(node), "dtype", None) == torch.bool


def trainable_statics(program: StepProgram) -> frozenset[str]:
    """Returns the names of the step's static nodes that depend on a Parameter, or on an argument of the model that does
    not change over time, and are floating tensors."""
    found: set[str] = set()
    reached: set[fx.Node] = set()
    for node in program.step.graph.nodes:
        own = node.op == "get_attr" and isinstance(program.resolve(str(node.target)), nn.Parameter)
        own |= node.op == "placeholder" and node.name in program.invariants
        own |= node.op == "call_module" and any(True for _ in program.resolve(str(node.target)).parameters())
        if not own and not any(source in reached for source in node.all_input_nodes):
            continue
        value = example_value(node)  # of several tensors where a static value is taken apart
        if any(isinstance(leaf, torch.Tensor) and leaf.is_floating_point() for leaf in pytree.tree_leaves(value)):
            reached.add(node)
            if isinstance(value, torch.Tensor):
                found.add(node.name)
    return frozenset(found)
