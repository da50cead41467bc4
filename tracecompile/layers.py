"""What the passes find out about a step: cores, layers, traces and the order of the backward pass."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from torch import fx

if TYPE_CHECKING:
    from tracecompile.rules.rule import CoreRule

LayerKind = Literal["spiking", "readout", "stateless", "junction"]
"""spiking: has a state and emits spikes. readout: has a state and none. stateless: spikes, or meets random numbers,
without a state. junction: a value without a core that several layers, a delay line or the user reads."""

StateKind = Literal[
    "membrane", "synaptic current", "adaptation", "adaptive threshold", "refractory counter", "spikes", "state"
]
"""See ``tracecompile.analysis.roles``; "state" where no part can be told."""


@dataclass(frozen=True)
class Draws:
    """The random numbers of one step, which are drawn before it is computed.

    Attributes:
        names: Of the arguments of the step that take them, in the order in which the model draws.
        graph: (*inputs, *invariants, *states) -> what is drawn; None where nothing is.
    """

    names: tuple[str, ...] = ()
    graph: fx.GraphModule | None = None


NO_DRAWS = Draws()


@dataclass(frozen=True)
class Core:
    """The per-neuron, elementwise part of a layer, as node names of the step in the order of the step.

    Attributes:
        nodes: Its nodes, without the placeholders of its states.
        states: Placeholders of the states that it updates.
        spikes: Those of its nodes that emit spikes.
    """

    nodes: tuple[str, ...]
    states: tuple[str, ...]
    spikes: tuple[str, ...]


@dataclass(frozen=True)
class Statics:
    """What does not change over time, computed once per sequence.

    Attributes:
        graph: (*attributes, *invariants) -> values.
        attributes: Paths in the model of the parameters and buffers that it takes.
        names: Node names of the values.
    """

    graph: fx.GraphModule
    attributes: tuple[str, ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """A value that a synapse reads, from the input or from a layer.

    Attributes:
        value: The node of the step that is read (for a delayed value the placeholder that carries it).
        origin: The node that made it: an output of a layer, or an input of the step.
        delay: Steps between the making and the reading.
    """

    value: str
    origin: str
    delay: int = 0


Pair = tuple[str, str]
"""(result, variable) of a derivative, (variable, state) of a tangent, (output, variable) of a response."""

Role = Literal["trace", "tangent", "response"]

STATISTICS = ("mean", "variance")
"""What is traced of the input of a batch normalisation, in this order."""


@dataclass(frozen=True)
class Accrual:
    """A number that a rule carries from step to step beside the states, since it was last folded into the record.

    Attributes:
        name: Of its placeholder in the step, and what the line that moves it on is called.
        role: What it is.
        layer: Whose, empty for a trace, which several layers may read.
        pair: Of a trace (value, ""), or (normalisation, one of STATISTICS); of the others see Pair.
        like: The node of the step of whose shape it is; empty for statistics.
        decay: Factor per step, None for a plain sum.
    """

    name: str
    role: Role
    layer: str
    pair: Pair
    like: str
    decay: float | None = None


@dataclass(frozen=True)
class Scale:
    """A parameter that multiplies a current, neuron by neuron.

    Attributes:
        current: Name of it. But for a constant it is proportional to the parameter.
        static: The static value; empty where a module holds it.
        module: Path in the synapse of the module whose ``weight`` it is; empty for a static value.
        channels: Whether it goes along the second axis, with all that follow it; else along the last ones.
        divides: Whether the current is divided by it.
    """

    current: str
    static: str = ""
    module: str = ""
    channels: bool = False
    divides: bool = False


@dataclass(frozen=True)
class Jacobian:
    """Per-neuron derivatives of a core, each a node of ``graph`` or a constant.

    ``rows`` maps (result, variable) to the index of the derivative in the graph's second result, or to a number where
    it is the same for every neuron and step. A pair that is missing is zero. Results are the core's outputs and next
    states (``next:<position>``), variables its currents, states and static values.
    """

    graph: fx.GraphModule
    rows: dict[Pair, int | float]


@dataclass(frozen=True)
class Fold:
    """How a graph is computed for many steps at once.

    Attributes:
        per_sample: Static values that have a batch axis of their own and are repeated for every step.
        modules: What the graph calls, by target: none of them may be in training mode or have hooks.
    """

    per_sample: tuple[str, ...]
    modules: tuple[str, ...]


@dataclass(frozen=True)
class Layer:
    """A local subgraph: synapse, then core.

    Attributes:
        name: From the user's module or variable.
        kind: See LayerKind.
        sources: What the synapse reads, each once.
        synapse: (*sources, *statics) -> currents.
        synapse_statics: Names of the static values that the synapse takes.
        currents: Nodes through which the synapse enters the core.
        core: (*currents, *states, *statics) -> (outputs, next states); None for a junction, whose output is its
            current.
        core_statics: Names of the static values that the core takes, and of what is drawn for it at every step.
        states: Placeholders of the states.
        state_kinds: What each state is.
        outputs: Nodes of this layer that another layer or the user reads.
        spikes: Those nodes of the core that emit spikes.
        nodes: All nodes of the step that belong to this layer.
        reset: How the reset meets the gradient, for the report: "none", "in graph" or "detached".
        local: The synapse as the local graph evaluates it: it takes the recorded statistics of
            ``norms``.
        norms: Batch normalisations of the synapse.
        sampled: Whether the local graph, which does not commute with the mean, is evaluated at steps as they were.
        fold: How the local graph is computed for many bins at once; None where it must be computed bin by bin.
        linear: Whether its derivative by its sources is the same at all values of these.
        scales: Parameters between the last operation of the synapse that mixes neurons and the core.
        decay: Of the traces that it reads, per step; None for means over whole time bins.
        response: What the rule makes of its core, see ``tracecompile.rules.rule``; None without one.
    """

    name: str
    kind: LayerKind
    sources: tuple[Source, ...]
    synapse: fx.GraphModule
    synapse_statics: tuple[str, ...]
    currents: tuple[str, ...]
    core: fx.GraphModule | None
    core_statics: tuple[str, ...]
    states: tuple[str, ...]
    state_kinds: tuple[StateKind, ...]
    outputs: tuple[str, ...]
    spikes: tuple[str, ...]
    nodes: tuple[str, ...]
    reset: str = "none"
    local: fx.GraphModule | None = None
    norms: tuple[str, ...] = ()
    sampled: bool = False
    fold: Fold | None = None
    linear: bool = False
    scales: tuple[Scale, ...] = ()
    decay: float | None = None
    response: CoreRule | None = None

    @cached_property
    def read_by(self) -> dict[str, frozenset[str]]:
        """Which sources each current depends on in the local graph."""
        assert self.local is not None
        reads: dict[fx.Node, frozenset[str]] = {}
        sources = iter(self.sources)
        for node in self.local.graph.nodes:
            reads[node] = frozenset[str]().union(*(reads[each] for each in node.all_input_nodes))
            if node.op == "placeholder" and (source := next(sources, None)) is not None:
                reads[node] = frozenset([source.value])
        results = next(node for node in reversed(self.local.graph.nodes) if node.op == "output").args[0]
        return {current: reads[node] for current, node in zip(self.currents, results, strict=True)}


@dataclass(frozen=True)
class Trace:
    """One trace buffer: the decaying sum of a source's values, kept once whoever reads it.

    Attributes:
        value: The node of the step whose values are summed.
        decay: Factor per step in (0, 1), or None for the running mean of the whole sequence.
        readers: Names of the layers that read it.
    """

    value: str
    decay: float | None
    readers: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """Layers that feed each other through delays (or a single layer), solved together in the backward pass.

    Attributes:
        layers: Indices into the program's layers, in the order of the step.
        recurrent: True where a delayed output of the block is read within it.
    """

    layers: tuple[int, ...]
    recurrent: bool
