"""What a gradient rule is: one object that the passes, the runtime and the report ask, and never its name.

A rule says what becomes of every core in the step (``CoreRule``), and how the mean outputs of a core answer in the
backward pass (``Response``). One that records nothing leaves everything to autograd.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from torch import Tensor, fx

from tracecompile.layers import Accrual, Layer, Pair
from tracecompile.program import Settings, StepProgram

if TYPE_CHECKING:
    from tracecompile.rules.measured.responses import Responses

Signals = Mapping[str, list[Tensor | None]]
"""Learning signals by the node that made a value: one per time bin, of the value's shape, None where there is none."""


class Response(Protocol):
    """How a core's mean outputs answer to its currents and parameters, as its rule knows it."""

    factors: dict[Pair, Tensor]
    """Finite-horizon factors by (output, variable); the solver fills them in."""

    @property
    def responses(self) -> Responses | None:
        """What was measured over time, to which these factors apply; None for a formula."""

    def on_currents(self, layer: Layer, signals: Signals, index: int) -> dict[str, Tensor]:
        """Returns the learning signals on the currents in one bin."""

    def parameter_signals(self, layer: Layer, signals: Signals) -> dict[str, Tensor]:
        """Returns the learning signal on every parameter and initial state (``init:<state>``) of the core.

        Of a current that has scales also what the local graph lacks of the sum of signal times current, as
        ``scaled:<current>``.
        """


class CoreRule(Protocol):
    """What a rule makes of one core."""

    @property
    def graph(self) -> fx.GraphModule | None:
        """The core in trace form, see ``MeasuredLines``; None where it stays as it is."""

    @property
    def accruals(self) -> tuple[Accrual, ...]:
        """What it carries from step to step, tangents before responses."""

    @property
    def rows(self) -> dict[Pair, int | float]:
        """Of its derivatives, see ``Jacobian``; empty where it has none."""

    @property
    def invariant(self) -> bool:
        """Whether these are the same at every step."""

    @property
    def kind(self) -> str:
        """For the report, after the kind of the layer; may be empty."""

    @property
    def parts(self) -> Mapping[str, fx.GraphModule]:
        """Graphs that its backward pass evaluates, by a name, for the printed text."""

    def record(self, layer: Layer, trained: Sequence[str], learned: Sequence[str], bins: int) -> Responses | None:
        """Returns what records the answers of the core, None where nothing does.

        Args:
            layer: The layer.
            trained: Static values of the core that need a gradient.
            learned: States whose initial value does.
            bins: K.
        """

    def local(
        self,
        layer: Layer,
        recorded: Responses | None,
        currents: Sequence[Mapping[str, Tensor]],
        statics: Mapping[str, Tensor],
    ) -> Response:
        """Returns how the core answers in a backward pass.

        Args:
            layer: The layer.
            recorded: As ``record`` has returned it.
            currents: Mean currents of every bin.
            statics: Static values.
        """


class Rule:
    """Base of the rules: one that records nothing.

    Attributes:
        name: As ``convert`` takes it.
        records: Whether a sequence that is trained is recorded, and leaves autograd nothing of its steps.
        draws: Whether a step may draw random numbers.
        by_neuron: Whether it takes the slope of every neuron by itself: what recurs without a spike must do so as well.
        reruns: Whether a sequence may be run once more, for learning signals that its bins do not resolve.
        recomputes: Whether the steps of a sequence are run once more in backward, piece by piece from snapshots.
        through_time: Whether autograd follows the steps from the first to the last, and keeps all of them.
    """

    name: ClassVar[str]
    records: ClassVar[bool] = False
    draws: ClassVar[bool] = True
    by_neuron: ClassVar[bool] = False
    reruns: ClassVar[bool] = False
    recomputes: ClassVar[bool] = False
    through_time: ClassVar[bool] = False

    def layer_by_layer(self, settings: Settings) -> Settings:
        """Returns what a model is run by that takes all steps of a layer before the next layer takes its first."""
        return settings

    def core(self, program: StepProgram, layer: Layer, trainable: frozenset[str]) -> CoreRule:
        """Returns a CoreRule for the core of a layer."""
        raise NotImplementedError

    def refuse(self, program: StepProgram) -> None:
        """Refuses a program to whose layers, which have their responses, it does not apply.

        Raises:
            UnsupportedOperation: With the user's line.
        """

    def resolves_steps(self, settings: Settings) -> bool:
        """Tells whether learning signals on single steps are answered by these, and K = T bins are exact."""
        return False

    def is_exact(self, bins: int, steps: int) -> bool:
        """Tells whether its gradients are those of backpropagation through time, up to rounding."""
        return not self.records

    def has_flat_parts(self) -> bool:
        """Tells whether it may leave a parameter without a gradient that the model trains."""
        return False

    def bins(self, settings: Settings) -> int:
        """Returns how many time bins it makes use of."""
        return 1

    def status(self, settings: Settings) -> tuple[Literal["exact", "trace"], str]:
        """Returns the status of a parameter that it trains, and why, for the report."""
        return "exact", "ordinary backpropagation through time"

    def title(self, settings: Settings) -> str:
        """Returns what the report calls it."""
        return self.name

    def notes(self, program: StepProgram) -> list[str]:
        """Returns sentences for the report."""
        return []
