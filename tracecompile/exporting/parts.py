"""The three parts of an exported network: what begins a sequence, the step, and what ends a sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx

from tracecompile.errors import UnsupportedOperation
from tracecompile.exporting.inlined import Inlined, arguments_of
from tracecompile.exporting.program import STEPS, Calls
from tracecompile.program import StepProgram


@dataclass(frozen=True)
class Value:
    """What a part takes or returns.

    Attributes:
        kind: "input" (anew at every step), "random" (anew at every step, drawn by whoever runs it), "invariant" (the
            same at every step) or "state"; of results "output" or "state".
        node: Name of its node in the graphs; ``name`` what the user calls it.
    """

    kind: Literal["input", "random", "invariant", "state", "output"]
    node: str
    name: str


@dataclass(frozen=True)
class Part:
    """One graph.

    Attributes:
        name: "begin", "step" or "end".
        module: Takes and returns tensors.
        takes, returns: What these are.
    """

    name: str
    module: fx.GraphModule
    takes: tuple[Value, ...]
    returns: tuple[Value, ...]


def step_part(program: StepProgram, calls: Calls) -> Part:
    """Returns the step: (inputs, random numbers, invariants, states) -> (outputs, next states).

    That of a step model takes the arguments of the model and returns its results, with what precedes and follows the
    step in it.
    """
    if program.kind == "step":
        return _whole_step(program, calls)
    made = Inlined(program)
    numbers = _numbers(program, calls)
    inputs = [Value("input", x.name, x.name) for x in program.inputs]
    drawn = [Value("random", name, name) for name in program.draws.names]
    fixed = [Value("invariant", name, name.removesuffix("_fixed")) for name in program.invariants]
    states = [Value("state", carry.placeholder, carry.name) for carry in program.carries]
    known = [value for value in (*inputs, *drawn, *fixed, *states) if value.node not in numbers]
    nodes = dict(zip((value.node for value in known), made.take(value.node for value in known), strict=True))
    built_in = _built_in(program, calls, made, nodes)
    given = [built_in.get(value.node, nodes.get(value.node)) for value in (*inputs, *drawn, *fixed, *states)]
    outputs, following = made.put(program.step, given)
    returned = [Value("output", output.name, output.name) for output in program.outputs]
    returned += [Value("state", state.node, f"{state.name}.next") for state in states]
    return _part("step", made, known, returned, [*outputs, *following])


def _whole_step(program: StepProgram, calls: Calls) -> Part:
    made = Inlined(program)
    leaves = _arguments(program, calls, "input")
    drawn = [Value("random", name, name) for name in program.draws.names]
    states = [Value("state", carry.placeholder, carry.name) for carry in program.carries]
    known = [value for value in (*leaves, *drawn, *states) if isinstance(value, Value)]
    nodes = iter(made.take(value.node for value in known))
    arguments = [next(nodes) if isinstance(leaf, Value) else leaf for leaf in leaves]
    random, before = [next(nodes) for _ in drawn], list(nodes)
    inputs, invariants, _ = made.put(program.prologue, arguments)
    outputs, following = made.put(program.step, [*inputs, *random, *invariants, *before])
    results = list(made.put(program.epilogue, [*outputs, *following, *invariants]))
    results = results[: len(results) - len(program.statistics)]
    wanted = [
        (place, node)
        for place, node in enumerate(results)
        if isinstance(node, fx.Node) and place not in program.explicit_results
    ]
    returned = [Value("output", "", _output_name(program, place, len(wanted))) for place, _ in wanted]
    returned += [Value("state", state.node, f"{state.name}.next") for state in states]
    return _part("step", made, known, returned, [*(node for _, node in wanted), *following])


def _output_name(program: StepProgram, place: int, count: int) -> str:
    return "output" if count == 1 else f"output_{place}"


def begin_part(program: StepProgram, calls: Calls, step: Part) -> Part:
    """Returns what begins a sequence: (arguments of the model) -> (sequences, invariants and states of the step).

    A state that the step takes up in another shape than it starts with has the shape of the others from the start.
    """
    made = Inlined(program)
    leaves = _arguments(program, calls, "input")
    known = [leaf for leaf in leaves if isinstance(leaf, Value)]
    nodes = iter(made.take(value.node for value in known))
    given = [next(nodes) if isinstance(leaf, Value) else leaf for leaf in leaves]
    inputs, invariants, initial = made.put(program.prologue, given)
    names = [x.name for x in program.inputs]
    values = dict(zip(names, inputs, strict=True)) if program.kind == "sequence" else {}
    values |= dict(zip(program.invariants, invariants, strict=True)) if program.kind == "sequence" else {}
    if program.first_apart:
        initial = _widened(program, made, inputs, invariants, initial)
    values |= dict(zip((carry.placeholder for carry in program.carries), initial, strict=False))
    found = [(value, values[value.node]) for value in step.takes if isinstance(values.get(value.node), fx.Node)]
    found = [(value, node) for value, node in found if node.op != "placeholder"]
    return _part("begin", made, known, [value for value, _ in found], [node for _, node in found])


def _widened(program: StepProgram, made: Inlined, inputs: Any, invariants: Any, initial: Any) -> list[Any]:
    if program.draws.names:
        raise UnsupportedOperation(
            "A state of the model begins in another shape than it goes on with, and the step draws random numbers.",
            "Give the state its shape where it is made, such as with x.new_zeros(batch, size).",
        )
    slices = [
        made.graph.call_method("select", (value, x.dim, 0)) if x.dim >= 0 else value
        for x, value in zip(program.inputs, inputs, strict=True)
    ]
    _, following = made.put(program.step, [*slices, *invariants, *initial])
    return [made.graph.call_function(_like, pair) for pair in zip(initial, following, strict=True)]


def _like(value: Tensor, other: Tensor) -> Tensor:
    return torch.zeros_like(other) + value


def end_part(program: StepProgram, calls: Calls) -> Part:
    """Returns what ends a sequence: (outputs of all steps, last states, invariants) -> results of the model.

    A number that depends on the sizes of the call, such as that of the time steps, is handed over as a tensor.
    """
    made = Inlined(program)
    numbers = _numbers(program, calls)
    constants = {name: few for name, (few, many) in numbers.items() if few == many}
    known = [Value("output", output.name, output.name) for output in program.outputs]
    known += [Value("state", carry.placeholder, f"{carry.name}.next") for carry in program.carries]
    steps = [name for name in program.invariants if numbers.get(name) == (STEPS, STEPS + 2)]
    known += [
        Value("invariant", name, "steps" if steps[:1] == [name] else name.removesuffix("_fixed"))
        for name in program.invariants
    ]
    nodes = made.take(f"{value.node}_{value.kind}" for value in known)
    given = [constants.get(value.node, node) for value, node in zip(known, nodes, strict=True)]
    results = list(made.put(program.epilogue, given))
    results = results[: len(results) - len(program.statistics)]
    wanted = [node for node in results if isinstance(node, fx.Node)]
    returned = [Value("output", "", "output" if len(wanted) == 1 else f"output_{n}") for n, _ in enumerate(wanted)]
    return _part("end", made, known, returned, wanted, [node.name for node in nodes])


def _numbers(program: StepProgram, calls: Calls) -> dict[str, tuple[Any, Any]]:
    """Returns what the invariants that are no tensors are in both calls, by the names of their nodes."""
    if program.kind == "step":
        return {}
    few, many = (run_prologue(program, leaves[0])[1] for leaves in (calls.few, calls.many))
    pairs = zip(program.invariants, zip(few, many, strict=True), strict=True)
    return {name: pair for name, pair in pairs if not isinstance(pair[0], Tensor)}


def _built_in(program: StepProgram, calls: Calls, made: Inlined, nodes: Mapping[str, fx.Node]) -> dict[str, Any]:
    """Returns what stands in the step for the numbers among the invariants: these, or the size that each is.

    Raises:
        UnsupportedOperation: One depends on the sizes of the call in another way.
    """
    found: dict[str, Any] = {}
    for name, (few, many) in _numbers(program, calls).items():
        readers = [user for node in program.step.graph.nodes if node.name == name for user in node.users]
        found[name] = few
        if few == many or not readers:
            continue
        place = _size_that_is(program, calls, (few, many))
        if place is None:
            raise UnsupportedOperation(
                f"The step reads {name}, which is {few} for one size of the input and {many} for another.",
                "Read sizes inside the step, from the tensors that have them.",
                readers[0].meta.get("where"),
            )
        found[name] = made.graph.call_method("size", (nodes[place[0]], place[1]))
    return found


def _size_that_is(program: StepProgram, calls: Calls, wanted: tuple[Any, Any]) -> tuple[str, int] | None:
    """Returns the state, and its axis, whose size a number is in both calls."""
    pairs = zip(*(run_prologue(program, leaves[0])[2] for leaves in (calls.few, calls.many)), strict=True)
    for carry, (few, many) in zip(program.carries, pairs, strict=False):
        for axis, sizes in enumerate(zip(few.shape, many.shape, strict=True)):
            if sizes == wanted:
                return carry.placeholder, axis
    return None


def run_prologue(program: StepProgram, leaves: Sequence[Any]) -> tuple[Any, Any, Any]:
    """Returns what the prologue makes of some leaves: (inputs, invariants, initial states)."""
    made = Inlined(program)
    given = made.take(node.name for node in program.prologue.graph.nodes if node.op == "placeholder")
    made.graph.output(tuple(made.put(program.prologue, given)))
    with torch.no_grad():
        found: tuple[Any, Any, Any] = made.as_it_is()(*leaves)
    return found


def _arguments(program: StepProgram, calls: Calls, kind: Literal["input"]) -> list[Any]:
    """Returns the arguments of the prologue: a Value where it is a tensor, else the number that is built in."""
    placeholders = [node for node in program.prologue.graph.nodes if node.op == "placeholder"]
    return [
        Value(kind, node.name, node.name) if isinstance(leaf, Tensor) else leaf
        for node, leaf in zip(placeholders, calls.few[0], strict=True)
    ]


def _part(
    name: str,
    made: Inlined,
    known: Sequence[Value],
    returned: Sequence[Value],
    results: Sequence[Any],
    nodes: Sequence[str] | None = None,
) -> Part:
    module = made.module(results, name.capitalize())
    left = set(arguments_of(module))
    called = nodes or [value.node for value in known]
    takes = tuple(value for value, node in zip(known, called, strict=True) if node in left)
    return Part(name, module, takes, tuple(returned))
