"""What is said when a network is converted, since training would fail or suffer in silence."""

from __future__ import annotations

from torch import fx

from tracecompile.analysis.norms import is_norm
from tracecompile.analysis.pointwise import is_surrogate
from tracecompile.analysis.reach import reached_parameters
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
    """Returns sentences about thresholds without a surrogate, parameters that cannot learn, and normalisation."""
    found = [
        f"The hard threshold at {_short(node.meta.get('where'))} has no surrogate gradient: nothing that leads to its "
        "neurons learns through it. Pass the membrane through a surrogate function, such as those of tracecompile.nn."
        for node in hard_thresholds(program)
    ]
    dead = unreachable_parameters(program)
    if dead:
        places = ", ".join(name if where is None else f"{name} ({_short(where)})" for name, where in dead.items())
        why = "on their way to what the model returns is a hard threshold without a surrogate or a detach, or no way"
        found.append(f"No gradient can reach {places}: {why}.")
    if approximates_norms(program):
        found.append(NORM)
    return found


def approximates_norms(program: StepProgram) -> bool:
    """Tells whether the measured rule meets a batch normalisation in training."""
    return (
        rule_of(program.settings).reruns
        and program.root.training
        and any(is_norm(program, node) and _in_training(program, node) for node in program.step.graph.nodes)
    )


def hard_thresholds(program: StepProgram) -> list[fx.Node]:
    """Returns the nodes that cut the way of every gradient: steps by which parameters' values must pass undetached.

    A threshold that stands beside a surrogate of the same layer is none of them: it is the reset, or the value of a
    straight-through estimator.
    """
    outputs, states = step_results(program.step)
    wanted = _undetached([*outputs, *states])
    learnt = _depends_on_parameters(program)
    found = []
    for layer in program.layers:
        nodes = [node for node in program.step.graph.nodes if node.name in layer.nodes]
        if any(is_surrogate(program, node) for node in nodes):
            continue
        found += [node for node in nodes if _is_hard(node) and node in wanted and learnt & set(node.all_input_nodes)]
    return found


def unreachable_parameters(program: StepProgram) -> dict[str, SourceLine | None]:
    """Returns the parameters that ask for a gradient and cannot get one, with the line that reads them, if one does."""
    reached = reached_parameters(program)
    dead = [name for name, value in program.root.named_parameters() if value.requires_grad and value not in reached]
    return {name: _read_at(program, name) for name in dead}


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
    """Returns the nodes whose value depends on something that learns, in this step or in one before it."""
    learning = {name for name, value in program.root.named_parameters() if value.requires_grad}
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


def _read_at(program: StepProgram, name: str) -> SourceLine | None:
    module = name.rpartition(".")[0]
    for part in (program.prologue, program.step, program.epilogue):
        for node in part.graph.nodes:
            reads = str(node.target) == name if node.op == "get_attr" else str(node.target) == module
            if node.op in ("get_attr", "call_module") and reads:
                places = [node.meta.get("where"), *(user.meta.get("where") for user in node.users)]
                return next((where for where in places if where is not None), None)
    return None


def _short(where: SourceLine | None) -> str:
    if where is None:
        return "a line that is not known"
    where = where.caller or where
    return f"{where.file}:{where.line}"
