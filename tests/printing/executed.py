"""Runs printed text beside what it is the text of."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

import tracecompile
from tracecompile.printing import Printed, print_graph
from tracecompile.printing.stages import UNCHANGED
from tracecompile.program import StepProgram
from tracecompile.rules.norm import batch_statistics
from tracecompile.runtime.module import session_of

TAKEN = ("prologue", "arguments", "plain", "epilogue")


def stages_of(net: tracecompile.TracedModule) -> list[tuple[str, Printed]]:
    """Returns the whole text of every stage."""
    found = session_of(net).ready.stages
    return [(name, printed) for (name, _), printed in zip(found.programs, found.printed, strict=True)]


def require_same(found: Any, expected: Any, what: str) -> None:
    """Fails where two results are not the same, bit for bit."""
    ours, theirs = pytree.tree_leaves(found), pytree.tree_leaves(expected)
    assert len(ours) == len(theirs), what
    for one, other in zip(ours, theirs, strict=True):
        if isinstance(other, torch.Tensor):
            assert one.dtype == other.dtype, what
            assert torch.equal(one, other), f"{what}: largest difference {float((one - other).abs().max())}"
        else:
            assert type(one) is type(other), what
            assert one == other, what


def require_stages_run(model: nn.Module, args: tuple[Any, ...], check_statistics: bool = True, **options: Any) -> None:
    """Executes every stage in a namespace of its own, and compares its ``run`` with the model."""
    net = tracecompile.convert(copy.deepcopy(model), args, **options)
    stages = stages_of(net)
    reference = copy.deepcopy(model)
    torch.manual_seed(3)
    expected = reference(*_own(args))
    for (name, printed), (_, shown) in zip(stages, net.stages, strict=True):
        assert shown == printed.text or shown.splitlines()[1:] == [UNCHANGED]
        ours = copy.deepcopy(net.source)
        torch.manual_seed(3)
        require_same(printed.run()["run"](ours, *_own(args)), expected, name)
    if check_statistics:
        theirs = dict(reference.named_buffers())
        for name, value in ours.named_buffers():
            if "running_" in name or "num_batches" in name:
                assert torch.equal(value, theirs[name]), name


def require_graphs_exact(model: nn.Module, args: tuple[Any, ...], **options: Any) -> int:
    """Compares every graph of a program with its text; returns how many there were."""
    net = tracecompile.convert(model, args, **options)
    program = net.program
    count = 0
    with torch.no_grad():
        for name, module, given in graphs_of(net, args):
            printed = print_graph(program, module, "graph").run()["graph"]
            taken = [program.root] if "model" in printed.__code__.co_varnames[:1] else []
            torch.manual_seed(5)
            expected = _InProgram(program, module).run(*_own(given))
            torch.manual_seed(5)
            require_same(printed(*taken, *_own(given)), expected, name)
            count += 1
    return count


class _InProgram(fx.Interpreter):
    """Runs a graph on what its targets name in the program: a captured graph itself holds copies."""

    def __init__(self, program: StepProgram, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.program = program

    def fetch_attr(self, target: str) -> Any:
        try:
            return self.program.resolve(target)
        except AttributeError:  # what a pass has made
            return super().fetch_attr(target)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.fetch_attr(str(target))(*args, **kwargs)


def graphs_of(net: tracecompile.TracedModule, args: tuple[Any, ...]) -> Iterator[tuple[str, fx.GraphModule, Any]]:
    """Yields every graph of a program with arguments that it meets when the network runs."""
    program = net.program
    met = _recorded(net, args)
    met.setdefault("prologue", met.get("arguments", []))  # all that runs where the states are handed in
    lifted = len(program.emitted.prologue_attributes), len(program.emitted.epilogue_attributes)
    for name, count in (("prologue", lifted[0]), ("epilogue", lifted[1])):
        yield name, getattr(program, name), met[name][count:]
        yield f"emitted {name}", getattr(program.emitted, name), met[name]
    yield "arguments", program.emitted.arguments, met["prologue"]
    yield "plain", program.emitted.plain, met["plain"]
    nothing = [torch.zeros(()) for _ in program.emitted.accruals]
    yield "traced", program.emitted.traced, [*met["plain"], *nothing]
    values = _values(program, met["plain"])
    yield "step", program.step, [values[n.name] for n in program.step.graph.nodes if n.op == "placeholder"]
    attributes = [program.resolve(path) for path in program.statics.attributes]
    yield "statics", program.statics.graph, [*attributes, *(values[name] for name in program.invariants)]
    for name, module in _local(program):
        taken = [str(n.target) for n in module.graph.nodes if n.op == "placeholder"]
        yield name, module, [values.get(each, torch.zeros(())) for each in taken]


def _local(program: StepProgram) -> Iterator[tuple[str, fx.GraphModule]]:
    for layer in program.layers:
        rule = layer.response
        of_rule = () if rule is None else (rule.graph, *rule.parts.values())
        parts = (layer.synapse, layer.core, layer.local, *of_rule)
        yield from ((f"{layer.name} {i}", module) for i, module in enumerate(parts) if module is not None)
    for unit in program.units:
        yield from ((f"unit {unit.layers}", module) for module in (unit.below, unit.step) if module is not None)
        if unit.moves is not None:
            yield f"moves of {unit.layers}", unit.moves.graph


def _recorded(net: tracecompile.TracedModule, args: tuple[Any, ...]) -> dict[str, list[Any]]:
    """Runs the network; returns what the graphs that run it were given last."""
    found: dict[str, list[Any]] = {}

    def keeping(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any) -> Any:
            found[name] = _own(list(given))
            return function(*given)

        return run

    emitted = net.program.emitted
    graphs = {name: getattr(emitted, name) for name in TAKEN}
    functions = {name: vars(graph)["forward"] for name, graph in graphs.items()}
    for name, graph in graphs.items():
        vars(graph)["forward"] = keeping(name, functions[name])
    net.reset()
    with torch.no_grad():
        net(*_own(args))
    for name, graph in graphs.items():
        vars(graph)["forward"] = functions[name]
    return found


def _values(program: StepProgram, given: list[Any]) -> dict[str, Any]:
    """Returns the values of all nodes of a step, and the statistics that its normalisations leave."""
    placeholders = sum(node.op == "placeholder" for node in program.step.graph.nodes)
    found: dict[str, Any] = {}

    class Keeping(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            found[n.name] = super().run_node(n)
            return found[n.name]

    Keeping(program.step).run(*given[:placeholders])
    for layer in program.layers:
        for norm in layer.norms:
            source = next(node for node in program.step.graph.nodes if node.name == norm).all_input_nodes[0]
            found[f"{norm}_mean"], found[f"{norm}_variance"] = batch_statistics(found[source.name])
    return found


def _own(values: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, values)
