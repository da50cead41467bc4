"""What a scan carries along for the core of a layer: which derivatives, from where, and in which order.

Everything about a bin is left out, so that one function serves every bin and every number of bins. With one bin the
tangents themselves are carried. With several, what is carried is what the time since the last fold into the record does
to any tangents: with P_t the product of the Jacobians J_ss since then,

    e[c] at the end  =  P e[c]  +  E [c is now],      sum of the responses to c  =  Q e[c]  +  R [c is now],

where E and R start from zero and Q is the sum of J_ys P_(t-1). So the cost of a step does not depend on the number of
bins, and the bins themselves are touched once each.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

Slope = Tensor | float
"""A derivative: per neuron, shared by all of them, or a number."""

Pair = tuple[str, str]
"""(result, variable), or (variable, state) of a tangent."""

FROM = "from:"
"""Prefix of the variables that stand for a state where the carrying began."""

GAIN = "gain of "
"""Prefix of the profiles of the answer within a step."""


@dataclass(frozen=True)
class CoreScan:
    """What is carried along for one core.

    Attributes:
        name: Of the layer.
        outputs: Its outputs, and ``first_output``, where they begin among those of the unit.
        states: Positions of its states among the carries of the unit, by name.
        rows: As in its Jacobian.
        variables: Currents, parameters and initial states.
        through: Whether P and Q are wanted, and everything else starts from zero.
        decay: Of the sums of the responses.
        profiles: Whether the responses of every step are wanted.
    """

    name: str
    outputs: tuple[str, ...]
    first_output: int
    states: dict[str, int]
    rows: dict[Pair, int | float]
    variables: tuple[str, ...]
    through: bool
    decay: float | None
    profiles: bool

    @cached_property
    def carried(self) -> tuple[str, ...]:
        """The variables, and the states where the carrying began if P and Q are wanted."""
        return self.variables + (tuple(f"{FROM}{state}" for state in self.states) if self.through else ())

    @cached_property
    def reached(self) -> tuple[Pair, ...]:
        """The pairs (variable, state) whose tangent may be other than zero."""
        starts = {f"{prefix}{state}": state for state in self.states for prefix in ("init:", FROM)}
        found = {(variable, starts[variable]) for variable in self.carried if variable in starts}
        pairs = [(variable, state) for variable in self.carried for state in self.states]
        positions = {state: f"next:{place}" for place, state in enumerate(self.states)}
        while True:
            more = {pair for pair in pairs if self._answers(positions[pair[1]], pair[0], found)}
            if more <= found:
                return tuple(pair for pair in pairs if pair in found)
            found |= more

    @cached_property
    def answered(self) -> tuple[Pair, ...]:
        """The pairs (output, variable) whose response may be other than zero."""
        found = set(self.reached)
        pairs = ((output, variable) for output in self.outputs for variable in self.carried)
        return tuple(pair for pair in pairs if self._answers(*pair, found))

    def _answers(self, result: str, variable: str, tangents: set[Pair]) -> bool:
        through_state = any((result, s) in self.rows and (variable, s) in tangents for s in self.states)
        return (result, variable) in self.rows or through_state

    @cached_property
    def profiled(self) -> tuple[Pair, ...]:
        """The pairs of which every step is wanted: (output, variable), and (``gain of <output>``, variable)."""
        if not self.profiles:
            return ()
        pairs = [(output, variable) for output in self.outputs for variable in self.variables]
        responses = [pair for pair in pairs if pair in self.answered]
        gains = [(f"{GAIN}{output}", variable) for output, variable in pairs if (output, variable) in self.rows]
        return (*responses, *gains)

    def structure(self) -> tuple[Any, ...]:
        """Returns everything that the code of a scan depends on but the names, for which their positions stand."""
        places = {name: place for place, name in enumerate((*self.outputs, *self.carried, *self.states))}
        rows = ((places.get(result, result), places[variable], row) for (result, variable), row in self.rows.items())
        reached = ((places[variable], places[state]) for variable, state in self.reached)
        sizes = (len(self.outputs), len(self.carried), self.first_output, tuple(self.states.values()))
        return (tuple(rows), tuple(reached), sizes, self.decay, self.profiles)


@dataclass
class Carried:
    """Derivatives of one core on their way: tangents as in ``reached``, sums of responses as in ``answered``."""

    tangents: list[Tensor]
    sums: list[Tensor]


@dataclass
class CoreResult:
    """What the scan found out about one core.

    Attributes:
        carried: To go on with.
        last: Responses of the last step, as in ``answered``.
        derivatives: Of the last step, as the step returned them.
        profiles: As in ``profiled``, of every step: (steps,) means, or (steps, *shape) of what is to be averaged.
    """

    carried: Carried
    last: list[Tensor]
    derivatives: list[Tensor]
    profiles: list[Tensor]


@dataclass
class ScanResult:
    """What a scan leaves behind.

    Attributes:
        outputs: Of the unit, (steps, *shape) each.
        carries: Next carries of the unit.
        norms: (means, variances) of its normalisations, (steps, channels) each.
        cores: One per CoreScan.
    """

    outputs: list[Tensor]
    carries: list[Tensor]
    norms: list[tuple[Tensor, Tensor]]
    cores: list[CoreResult]
