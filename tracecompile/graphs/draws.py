"""Takes what a step draws out of it: draws become a graph of their own, and what they give arguments of the step."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, fx

from tracecompile.analysis.linearity import operation_name
from tracecompile.analysis.pointwise import is_pointwise
from tracecompile.drawn import drawn
from tracecompile.errors import UnsupportedOperation
from tracecompile.graphs.masks import LINEAR, Masks, of_the_step, read_by_value
from tracecompile.layers import Draws
from tracecompile.operations import NORMALISES, Fact, has, operation_of
from tracecompile.program import StepProgram, example_value

PLAIN = frozenset("rand randn randint normal bernoulli poisson rand_like randn_like randint_like".split())
"""Operations whose value has no derivative by what they are drawn from."""


def with_draws_ahead(program: StepProgram) -> StepProgram:
    """Returns a program whose step takes what it draws; the program itself where it draws nothing.

    Raises:
        UnsupportedOperation: What is drawn depends on what the step computes.
    """
    masks = Masks(program)
    if not masks.draws:
        return program
    for node in masks.draws:
        _check(program, node)
    by_value = _read_by_value(program, masks)
    names = tuple(node.name for node in masks.draws)
    graph = program.graph_module(_drawing(program, masks, by_value), "Draws")
    step = program.graph_module(_without(program, masks), "Step")
    # Each mode is a program of its own, which is compared with the model in that mode.
    modes = program.reads_mode or any(node.op == "call_module" for node in masks.draws)
    return program.evolve(step=step, draws=Draws(names, graph), reads_mode=modes)


def _check(program: StepProgram, node: fx.Node) -> None:
    """Refuses a draw that is more than one: its value has a derivative, or a generator of its own."""
    module = program.resolve(str(node.target)) if node.op == "call_module" else None
    name = operation_of(node, module).name
    plain = name in PLAIN or name in LINEAR or node.target is drawn
    if not plain or not isinstance(example_value(node), Tensor):
        raise UnsupportedOperation(
            f"The step draws random numbers and computes with them in one operation ({operation_name(program, node)}).",
            "Draw them by themselves (torch.rand_like, torch.randn_like, F.dropout), and compute with what was drawn.",
            node.meta.get("where"),
        )


def _read_by_value(program: StepProgram, masks: Masks) -> set[fx.Node]:
    """Returns the nodes whose values the draws depend on, these included.

    Raises:
        UnsupportedOperation: Among them is what the step computes with its layers, or a state.
    """
    found: set[fx.Node] = set()
    for draw in masks.draws:
        read = read_by_value([draw])
        if (computed := of_the_step(program, read - set(masks.draws))) is not None:
            raise UnsupportedOperation(
                f"What is drawn ({operation_name(program, draw)}) depends on values that the step computes "
                f"({computed.name}), and random numbers are drawn before them.",
                "Draw standard numbers (torch.rand_like, torch.randn_like), and shift, scale or compare these.",
                draw.meta.get("where"),
            )
        found |= read
    return found


def _drawing(program: StepProgram, masks: Masks, by_value: set[fx.Node]) -> fx.Graph:
    """Returns (*inputs, *invariants, *states) -> what is drawn, with no more of the step than tells the shapes."""
    graph, values = fx.Graph(), dict[fx.Node, fx.Node]()
    wanted: set[fx.Node] = set()
    waiting = list(masks.draws)
    while waiting:
        node = waiting.pop()
        if node not in wanted:
            wanted.add(node)
            waiting += [_alike(program, source, by_value) for source in node.all_input_nodes]
    for node in masks.graph.nodes:
        if node.op == "placeholder" or node in wanted:
            values[node] = graph.node_copy(node, lambda source: values[_alike(program, source, by_value)])
    graph.output(tuple(values[node] for node in masks.draws))
    return graph


def _alike(program: StepProgram, node: fx.Node, by_value: set[fx.Node]) -> fx.Node:
    """Returns what has the shape of a node of which only that is read, and is computed before it."""
    while node not in by_value and (before := _before(program, node)) is not None:
        node = before
    return node


def _before(program: StepProgram, node: fx.Node) -> fx.Node | None:
    """Returns the only tensor that a node changes number by number, or normalises."""
    sources = [source for source in node.all_input_nodes if isinstance(example_value(source), Tensor)]
    if len(sources) != 1 or node.op not in ("call_module", "call_function", "call_method"):
        return None
    module = program.resolve(str(node.target)) if node.op == "call_module" else None
    one, other = example_value(node), example_value(sources[0])
    alike = isinstance(one, Tensor) and (one.shape, one.dtype, one.stride()) == (
        other.shape,
        other.dtype,
        other.stride(),
    )
    keeps = has(node, NORMALISES | Fact.DROPS, module) or is_pointwise(program, node)
    return sources[0] if alike and keeps else None


def _without(program: StepProgram, masks: Masks) -> fx.Graph:
    """Returns the step with what is drawn among its arguments, behind its inputs."""
    graph, values = fx.Graph(), dict[fx.Node, fx.Node]()
    given = [node for node in masks.graph.nodes if node.op == "placeholder"]
    count = len(program.inputs)
    for node in (*given[:count], *masks.draws, *given[count:]):
        values[node] = graph.placeholder(node.name)
        values[node].meta = {key: value for key, value in node.meta.items() if key != "draws"}
    for node in masks.graph.nodes:
        if node not in values:
            values[node] = graph.node_copy(node, values.__getitem__)
    _forget(program, [values[node] for node in reversed(list(masks.graph.nodes)) if node not in masks.draws])
    return graph


def _forget(program: StepProgram, nodes: Iterable[fx.Node]) -> None:
    """Erases what only the draws have read, from the last to the first."""
    for node in nodes:
        if node.users or node.op in ("placeholder", "output"):
            continue
        module = program.resolve(str(node.target)) if node.op == "call_module" else None
        if has(node, NORMALISES, module):
            raise UnsupportedOperation(
                f"Of the normalisation {operation_name(program, node)} only the shape is read, by what draws random "
                "numbers, and its statistics move.",
                "Draw numbers like what it takes.",
                node.meta.get("where"),
            )
        node.graph.erase_node(node)
