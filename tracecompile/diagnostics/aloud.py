"""What is said of a network that is converted, since training would fail or suffer in silence."""

from __future__ import annotations

from torch import fx

from tracecompile.analysis.norms import is_norm
from tracecompile.analysis.parts import parts_of
from tracecompile.analysis.pointwise import is_surrogate
from tracecompile.analysis.reach import reached_parameters
from tracecompile.analysis.spikes import adds
from tracecompile.errors import SourceLine
from tracecompile.operations import Fact, has
from tracecompile.program import StepProgram, is_tensor, step_results
from tracecompile.rules import rule_of

NORM = (
    "Batch normalisation in training is the weakest spot of the measured rule: over long sequences the gradients of "
    "the layers below it may fall to a cosine of 0.7 (rate-coded images, 128 steps, bins=4). More bins are closer: try "
    "bins=16 or 32, and look at your own model with `tracecompile check`."
)


def said_aloud(program: StepProgram) -> list[str]:
    """Returns sentences about thresholds without a surrogate, and about normalisation."""
    found = [
        f"The hard threshold at {short(node.meta.get('where'))} has no surrogate gradient: nothing that leads to its "
        "neurons learns through it. Pass the membrane through a surrogate function, such as those of tracecompile.nn."
        for node in hard_thresholds(program)
    ]
    if approximates_norms(program):
        found.append(NORM)
    return found


def why_cut_off(program: StepProgram) -> dict[str, str]:
    """Returns the parameters that no gradient can reach, should they ask for one, and why.

    Raises:
        UnsupportedOperation: Torch itself has no derivative of something on the way.
    """
    reached = reached_parameters(program)
    dead = [name for name, value in program.root.named_parameters() if value not in reached]
    return {name: _why(program, name) for name in dead}


def _why(program: StepProgram, name: str) -> str:
    """Says what a gradient does not get through on its way to a parameter."""
    nodes = _reading(program, name)
    where = next((each for node in nodes for each in _places(node) if each is not None), None)
    place = "" if where is None else f" ({short(where)})"
    if not nodes:
        return "nothing that is returned is computed from it"
    cut = [node for node in hard_thresholds(program) if _leads_to(program, nodes, node)]
    if cut:
        lines = ", ".join(dict.fromkeys(short(node.meta.get("where")) for node in cut))
        return f"no gradient gets through the hard threshold without a surrogate at {lines} to where it is read{place}"
    return f"no differentiable way leads from where it is read{place} to what the model returns"


def approximates_norms(program: StepProgram) -> bool:
    """Tells whether the measured rule meets a batch normalisation in training."""
    return (
        rule_of(program.settings).reruns
        and program.root.training
        and any(is_norm(program, node) and _in_training(program, node) for node in program.step.graph.nodes)
    )


def hard_thresholds(program: StepProgram) -> list[fx.Node]:
    """Returns the nodes that cut the way of every gradient: steps by which parameters' values must pass undetached.

    A threshold that stands beside a surrogate of the same layer, or is part of a straight-through estimator, is none of
    them: it is the reset, or the value of the estimator. Whether the parameters ask for a gradient has no part in it.
    """
    outputs, states = step_results(program.step)
    wanted = _undetached([*outputs, *states])
    learnt = _depends_on_parameters(program)
    found = []
    for layer in program.layers:
        nodes = [node for node in program.step.graph.nodes if node.name in layer.nodes]
        if any(is_surrogate(program, node) or (node.name in layer.spikes and adds(node)) for node in nodes):
            continue
        found += [node for node in nodes if _is_hard(node) and node in wanted and learnt & set(node.all_input_nodes)]
    return found


def _is_hard(node: fx.Node) -> bool:
    return is_tensor(node) and bool(node.all_input_nodes) and has(node, Fact.THRESHOLD | Fact.ROUNDS)


def _undetached(ends: list[fx.Node]) -> set[fx.Node]:
    """Returns the nodes from which a way leads to some ends that does not cross ``detach``."""
    found: set[fx.Node] = set()
    waiting = list(ends)
    while waiting:
        node = waiting.pop()
        if node not in found and not has(node, Fact.DETACHES):
            found.add(node)
            waiting += node.all_input_nodes
    return found


def _depends_on_parameters(program: StepProgram) -> set[fx.Node]:
    """Returns the nodes whose value depends on something that may learn, in this step or in one before it."""
    learning = {name for name, _ in program.root.named_parameters()}
    found: set[fx.Node] = set()
    for node in program.step.graph.nodes:
        target = str(node.target)
        own = node.op == "get_attr" and target in learning
        own |= node.op == "call_module" and any(name.startswith(f"{target}.") for name in learning)
        if own or node.op == "placeholder" or found & set(node.all_input_nodes):
            found.add(node)
    return found


def _in_training(program: StepProgram, node: fx.Node) -> bool:
    return bool(getattr(program.resolve(str(node.target)), "training", True)) if node.op == "call_module" else True


def _reading(program: StepProgram, name: str) -> list[fx.Node]:
    """Returns the nodes that read a parameter."""
    module = name.rpartition(".")[0]
    nodes = (node for part in parts_of(program) for node in part.graph.nodes)
    targets = {"get_attr": name, "call_module": module}
    return [node for node in nodes if node.op in targets and str(node.target) == targets[node.op]]


def _places(node: fx.Node) -> list[SourceLine | None]:
    return [node.meta.get("where"), *(user.meta.get("where") for user in node.users)]


def _leads_to(program: StepProgram, nodes: list[fx.Node], end: fx.Node) -> bool:
    """Tells whether a value of some nodes has a part in one of the step; what is computed before the loop may have."""
    if any(node.graph is program.prologue.graph for node in nodes):
        return True
    following = dict(zip((carry.placeholder for carry in program.carries), step_results(program.step)[1], strict=True))
    found, waiting = set[fx.Node](), [end]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
            waiting += [following[node.name]] if node.op == "placeholder" and node.name in following else []
    return any(node in found for node in nodes)


def short(where: SourceLine | None) -> str:
    """Returns file and line."""
    if where is None:
        return "a line that is not known"
    where = where.caller or where
    return f"{where.file}:{where.line}"
