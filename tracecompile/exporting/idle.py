"""Masks that drop nothing: what a dropout is in eval mode."""

from __future__ import annotations

import torch
from torch import fx

from tracecompile.layers import NO_DRAWS, Draws
from tracecompile.operations import Fact, has
from tracecompile.program import StepProgram


def without_idle_draws(program: StepProgram) -> StepProgram:
    """Returns a program of eval mode whose step takes no mask of a dropout layer: there it is one everywhere."""
    drawn = program.draws
    if drawn.graph is None:
        return program
    results: list[fx.Node] = list(drawn.graph.graph.output_node().args[0])  # type: ignore[arg-type]
    idle = {name for name, node in zip(drawn.names, results, strict=True) if _drops(program, node)}
    if not idle:
        return program
    step, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in program.step.graph.nodes:
        if node.op == "placeholder" and node.name in idle:
            continue
        for mask in [source for source in node.all_input_nodes if source not in copies]:
            (given,) = (source for source in node.all_input_nodes if source is not mask)
            copies[mask] = step.create_node("call_function", torch.ones_like, (copies[given],), name=mask.name)
            copies[mask].meta = {**mask.meta, "where": node.meta.get("where")}
        copies[node] = step.node_copy(node, copies.__getitem__)
    left = [(name, node) for name, node in zip(drawn.names, results, strict=True) if name not in idle]
    return program.evolve(step=program.graph_module(step, "Step"), draws=_only(program, left) if left else NO_DRAWS)


def _drops(program: StepProgram, node: fx.Node) -> bool:
    return node.op == "call_module" and has(node, Fact.DROPS, program.resolve(str(node.target)))


def _only(program: StepProgram, left: list[tuple[str, fx.Node]]) -> Draws:
    """Returns what draws these, in their order, and no more."""
    assert program.draws.graph is not None
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in program.draws.graph.graph.nodes:
        if node.op != "output":
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for _, node in left))
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)
    return Draws(tuple(name for name, _ in left), program.graph_module(graph, "Draws"))
