"""Which synapses commute with the mean over time, and which operations must not be in a step at all."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx, nn

from tracecompile.analysis.norms import takes_own_statistics
from tracecompile.errors import UnsupportedOperation
from tracecompile.layers import Layer
from tracecompile.operations import NORMALISES, SHAPE_ONLY, Fact, Operation, operation_of, operation_of_module
from tracecompile.program import StepProgram


def operation_name(program: StepProgram, node: fx.Node) -> str:
    """Returns what a node does, in one word, as the user wrote it."""
    if node.op == "call_module":
        return type(program.resolve(str(node.target))).__name__
    return (
        node.target.strip("_") if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    )


def nonlinear_operations(program: StepProgram, layer: Layer) -> tuple[str, ...]:
    """Returns the operations of a synapse that do not commute with the mean over time, each once."""
    return tuple(dict.fromkeys(operation_name(program, node) for node in _nonlinear(program, layer)))


def wants_steps(program: StepProgram, layer: Layer) -> bool:
    """Tells whether a synapse is better seen at single steps than at the mean input of a bin.

    A maximum or a normalisation of every sample by itself is. Products of spikes with spikes, and batch statistics,
    which are recorded, were measured to lose more by the few steps that can be seen than by the mean.
    """
    return any(
        not _operation(program, node).facts & (Fact.PRODUCT | Fact.QUOTIENT | Fact.BATCH_STATISTICS)
        for node in _nonlinear(program, layer)
    )


def _nonlinear(program: StepProgram, layer: Layer) -> Iterator[fx.Node]:
    statics = set(layer.synapse_statics)
    varying: set[fx.Node] = set()
    for node in layer.synapse.graph.nodes:
        if node.op == "placeholder":
            if node.name not in statics:
                varying.add(node)
        elif node.op != "output" and any(source in varying for source in node.all_input_nodes):
            if _operation(program, node).facts & SHAPE_ONLY:
                continue  # a size is the same at every step
            varying.add(node)
            if not _is_linear(program, node, varying):
                yield node


def _operation(program: StepProgram, node: fx.Node) -> Operation:
    return operation_of(node, program.resolve(str(node.target)) if node.op == "call_module" else None)


def _is_linear(program: StepProgram, node: fx.Node, varying: set[fx.Node]) -> bool:
    module = program.resolve(str(node.target)) if node.op == "call_module" else None
    facts = operation_of(node, module).facts
    if facts & NORMALISES:
        return not takes_own_statistics(node, module)
    if facts & (Fact.PRODUCT | Fact.QUOTIENT):
        moving: list[fx.Node] = []  # twice, what is multiplied with itself
        fx.map_arg((node.args, node.kwargs), lambda source: moving.extend({source} & varying))
        divisor = node.args[1] if Fact.QUOTIENT in facts and len(node.args) > 1 else None
        return len(moving) == 1 and divisor not in moving
    return bool(facts & Fact.LINEAR)


def refuse_random(program: StepProgram) -> None:
    """Refuses a step that draws random numbers, for a rule that computes its slopes from mean inputs alone.

    Raises:
        UnsupportedOperation: With the user's line.
    """
    for node in program.step.graph.nodes:
        if node.meta.get("draws") and node.op != "call_module":
            raise UnsupportedOperation(
                f"The step draws random numbers ({operation_name(program, node)}) at every time step.",
                'Use another rule than "analytic", or draw them once per sequence, before the loop.',
                node.meta.get("where"),
            )


def draws_random(program: StepProgram, node: fx.Node) -> bool:
    """Tells whether a node draws random numbers; a module with a dropout may, since its mode may change."""
    drops = node.op == "call_module" and any(map(_may_drop, program.resolve(str(node.target)).modules()))
    return drops or bool(node.meta.get("draws"))


def _may_drop(module: nn.Module) -> bool:
    """Tells whether a module draws random numbers when it is trained."""
    if _is_random(module):
        return getattr(module, "p", 1.0) > 0
    # A recurrent layer or an attention of torch's has a dropout within.
    share = getattr(module, "dropout", 0.0)
    return isinstance(share, (int, float)) and share > 0


def _is_random(module: nn.Module) -> bool:
    return Fact.RANDOM in operation_of_module(module).facts


class Dropouts:
    """The modules in the step of one program that may draw new random numbers."""

    def __init__(self, program: StepProgram) -> None:
        """Looks for them, whatever mode they are in now."""
        calls = [node for node in program.step.graph.nodes if node.op == "call_module"]
        self.parts = [(node, part) for node in calls for part in program.resolve(str(node.target)).modules()]
        self.parts = [(node, part) for node, part in self.parts if _is_random(part) or hasattr(part, "dropout")]

    def refuse_active(self) -> None:
        """Refuses, in training mode, a layer that draws new random numbers at every step, where nothing takes them.

        Raises:
            UnsupportedOperation: With the user's line.
        """
        for node, part in self.parts:
            if part.training and _may_drop(part):
                raise UnsupportedOperation(
                    f"The layer {node.target} draws a new mask in every step, which this rule does not know.",
                    'Drop with a layer of its own (nn.Dropout) and another rule than "analytic"; or draw one mask per '
                    "sequence before the loop (F.dropout of ones), or set p to 0.",
                    node.meta.get("where"),
                )
