"""StepProgram: the one thing that capture makes and that the passes exchange.

A program is one time step as a pure function, with what runs before the loop over time (``prologue``) and after it
(``epilogue``). All three are ``torch.fx`` graph modules over values, never over the user's Python state:

    prologue(*leaves of the user's arguments) -> (sequence inputs, invariants, initial states)
    step(*inputs_t, *invariants, *states)     -> (outputs_t, states')
    epilogue(*collected, *final states, *invariants) -> leaves of the user's return value

Every group is a tuple. Every node carries ``meta["where"]`` (a SourceLine or None) and every node of the step
``meta["val"]``, its value while the model was captured. A step may take random numbers behind its inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import fx, nn

from tracecompile.layers import NO_DRAWS, Draws

if TYPE_CHECKING:
    from torch.utils._pytree import TreeSpec

    from tracecompile.analysis.ports import Port
    from tracecompile.emitted import Emitted
    from tracecompile.errors import SourceLine
    from tracecompile.layers import Accrual, Block, Core, Layer, Statics, Trace
    from tracecompile.units import Unit

AHEAD = "ahead"
"""Key of the ``meta`` of those nodes of a prologue that the first step computes, and is asked for before it runs."""
TWIN_OF = "_twin_of"
"""Attribute of a leaf that stands for a layer of the model, and has its tables of Parameters: that layer."""
Collect = Literal["stack", "last", "sum", "step"]
"""How per-step values reach the epilogue: all along a new axis 0, the last, their sum, or (step models) this step's."""


@dataclass(frozen=True)
class SequenceInput:
    """An input that the loop consumes one slice at a time.

    Attributes:
        name: Name of its placeholder in the step.
        dim: Its time axis in the value that the prologue hands over; -1 for a step model, which is handed one slice.
    """

    name: str
    dim: int


@dataclass(frozen=True)
class Carry:
    """A value handed from one step to the next.

    Attributes:
        name: The user's name for it ("lif1.mem", "state[0]", "mem").
        placeholder: Name of the step's placeholder that receives it.
        explicit: True where the caller of a step model passes it in and gets it back.
        kept: True where a sequence starts with what the last one left, until the module is reset.
        statistic: Attribute of the model that it is, from the first step of a sequence to the last, with no gradient;
            empty for a state.
        place: Attribute of the model that holds it between calls, as ``tensor_attributes`` names it, if one does.
    """

    name: str
    placeholder: str
    explicit: bool = False
    kept: bool = False
    statistic: str = ""
    place: str = ""


Bounds = tuple[int | None, int | None, int]
"""(start, stop, step) of a slice of all time steps."""


@dataclass(frozen=True)
class ChosenSteps:
    """Some of the time steps of a sequence.

    Attributes:
        bounds: Where they are a slice of all steps, whatever the number of these.
        numbers: Their numbers, where they are not.
    """

    bounds: Bounds | None
    numbers: tuple[int, ...] = ()

    def of(self, steps: int) -> Sequence[int]:
        """Returns their numbers in a sequence of so many steps."""
        return self.numbers if self.bounds is None else range(steps)[slice(*self.bounds)]


@dataclass(frozen=True)
class StepOutput:
    """A per-step value that the epilogue reads.

    Attributes:
        name: The user's name for it, else that of its node.
        collect: How it is handed to the epilogue.
        chosen: The steps that a sum takes, None for all; a sum of no step is zero.
    """

    name: str
    collect: Collect
    chosen: ChosenSteps | None = None


@dataclass(frozen=True)
class Settings:
    """What the user asked of ``convert``; see there."""

    rule: Literal["measured", "analytic", "exact", "bptt"] = "measured"
    bins: int = 1
    decay: float | Mapping[str, float] | None = None
    backend: Literal["auto", "eager", "inductor"] = "auto"
    chunk: int | None = None
    snapshots: int | None = 32


@dataclass(frozen=True)
class StepProgram:
    """One model, as the compiler sees it.

    Attributes:
        kind: "sequence" (the model loops over time itself) or "step" (each call is one time step).
        root: The user's model, or a copy that shares its Parameters: where targets of nodes are looked up.
        leaves: Modules added by capture (surrogate functions, twins of layers), by target name; not part of ``root``.
        constants: Tensors that are the program's own, by target name; they come before those of ``root``.
        prologue, step, epilogue: See the module docstring.
        inputs: The sequence inputs, in the order of the step's placeholders.
        invariants: Names of the step's placeholders for values that do not change over time.
        carries: The states, in the order of the step's last placeholders and of its second result.
        outputs: The per-step outputs, in the order of the step's first result.
        length: Number of steps where the model fixes it, else None (read off the first sequence input).
        signature, result: Pytrees of the user's (args, kwargs), and of the return value: what the epilogue makes.
        explicit_states: Where the caller of a step model holds them: their places among the leaves of the arguments.
        explicit_results: Places of their successors among the leaves of the result, in the same order.
        settings, asked: By what it is run, and what the user asked for: a rule may give way to another one.
        notes: Sentences for the report.
        stepwise: Names of what the model computes for all steps at once, the program at each: it may round otherwise.
        left_over: States that start from the rows of an earlier call, with the user's line that reads each.
        time: Axis of the first tensor, and place of a number among the leaves, that say how many steps there are.
        reads_mode: Whether the user's code branches on ``training``, so that the other mode is another program.
        length_bound: Whether the program is that of one number of time steps.
        epilogue_again: The line of the epilogue whose derivative needs all steps, if one does: backward runs it again.
        prologue_again: Whether the prologue mixes time steps: it keeps nothing for backward, which runs it again.
        pinned: Positions, among the leaves of the arguments, of numbers that the program has built in.
        written: Names of the attributes that the model writes: states of the converted module, and not of the model.
        statistics: Names of the attributes that a sequence moves for the model itself: the last results of the
            epilogue. Those that the steps of a step model move are among the carries alone.
        cores, statics, layers, traces, blocks, units: Annotations of the passes, in this order; a unit per block.
        traces_kept: The traces as they are carried, those of batch statistics included.
        trainable: Names of the static values that depend on a Parameter or an argument.
        first_apart: Whether a state begins in another shape or precision than it goes on with.
        ports: What the user can read of the outputs, then of the final states, see ``tracecompile.analysis.ports``.
        emitted: What emit_module makes.
        draws: What makes the random numbers that the step takes.
    """

    kind: Literal["sequence", "step"]
    root: nn.Module
    leaves: dict[str, nn.Module]
    prologue: fx.GraphModule
    step: fx.GraphModule
    epilogue: fx.GraphModule
    inputs: tuple[SequenceInput, ...]
    invariants: tuple[str, ...]
    carries: tuple[Carry, ...]
    outputs: tuple[StepOutput, ...]
    length: int | None
    signature: TreeSpec
    result: TreeSpec
    explicit_states: tuple[int, ...] = ()
    explicit_results: tuple[int, ...] = ()
    settings: Settings = field(default_factory=Settings)
    asked: Settings = field(default_factory=Settings)
    notes: tuple[str, ...] = ()
    stepwise: tuple[str, ...] = ()
    left_over: tuple[tuple[str, SourceLine | None], ...] = ()
    time: tuple[int | None, int | None] = (None, None)
    reads_mode: bool = False
    pinned: tuple[int, ...] = ()
    written: tuple[str, ...] = ()
    statistics: tuple[str, ...] = ()
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    length_bound: bool = False
    epilogue_again: SourceLine | None = None
    prologue_again: bool = False
    cores: tuple[Core, ...] = ()
    statics: Statics | None = None
    layers: tuple[Layer, ...] = ()
    traces: tuple[Trace, ...] = ()
    traces_kept: tuple[Accrual, ...] = ()
    trainable: frozenset[str] = frozenset()
    blocks: tuple[Block, ...] = ()
    units: tuple[Unit, ...] = ()
    first_apart: bool = False
    ports: tuple[Port | None, ...] = ()
    emitted: Emitted | None = None
    draws: Draws = NO_DRAWS

    def evolve(self, **changes: Any) -> StepProgram:
        """Returns a copy with some attributes replaced."""
        return replace(self, **changes)

    def resolve(self, target: str) -> Any:
        """Returns the module, parameter or buffer that a node's target names."""
        value: Any = self.leaves.get(target, self.constants.get(target))
        if value is None:
            value = self.root
            for part in target.split("."):
                value = getattr(value, part)
        return value

    def graph_module(self, graph: fx.Graph, name: str) -> fx.GraphModule:
        """Wraps a graph whose ``call_module`` nodes name modules of this program."""
        graph.lint()
        owned = {
            str(node.target): self.resolve(str(node.target))
            for node in graph.nodes
            if node.op in ("call_module", "get_attr")
        }
        return fx.GraphModule(owned, graph, name)


def step_results(step: fx.GraphModule) -> tuple[tuple[fx.Node, ...], tuple[fx.Node, ...]]:
    """Returns the nodes of a step's (outputs, next states)."""
    output = next(node for node in reversed(step.graph.nodes) if node.op == "output")
    outputs, states = output.args[0]
    return tuple(outputs), tuple(states)


def example_value(node: fx.Node) -> Any:
    """Returns the value that a node had while the model was captured."""
    return node.meta.get("val")


def is_tensor(node: fx.Node) -> bool:
    """Tells whether a node holds a tensor."""
    return isinstance(example_value(node), torch.Tensor)


def final_states_read(program: StepProgram) -> tuple[bool, ...]:
    """Tells for each carry whether the epilogue reads its last value; statistics, where no signal falls, aside."""
    placeholders = [node for node in program.epilogue.graph.nodes if node.op == "placeholder"]
    last = placeholders[len(program.outputs) :]
    return tuple(bool(node.users) and not carry.statistic for node, carry in zip(last, program.carries, strict=False))
