"""Adds a chunk of steps to a record at once; what it leaves there is what the steps one by one leave, up to rounding.

A chunk lies within one bin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tracecompile.layers import Jacobian, Layer
from tracecompile.runtime.horizon import CELLS
from tracecompile.runtime.record import Moment, Record
from tracecompile.runtime.responses import Responses, Row
from tracecompile.runtime.scan import FROM, CoreResult, CoreScan
from tracecompile.runtime.statistics import padded
from tracecompile.runtime.tangents import Changes, Derivatives


@dataclass
class ChunkRecord:
    """One chunk on its way into a record.

    Attributes:
        record: Takes it.
        index: Its bin.
        cells: The cell of every step, or None where no profiles are kept.
    """

    record: Record
    steps: int
    index: int = 0
    cells: list[int] | None = None
    changes: dict[str, Changes] = field(default_factory=dict)
    derivatives: dict[str, Derivatives] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Lets the clocks of the record tick."""
        record = self.record
        bins = {record.clock.tick() for _ in range(self.steps)}
        assert len(bins) == 1, "a chunk crosses the edge of a bin"
        self.index = bins.pop()
        if record.cells is not None:
            self.cells = [record.cells.tick() for _ in range(self.steps)]

    def core_scan(self, layer: Layer, first_output: int, carries: Sequence[str]) -> CoreScan:
        """Says what the scan of one core has to carry along."""
        responses = self.record.responses[layer.name]
        assert isinstance(layer.response, Jacobian)
        return CoreScan(
            layer.name,
            layer.outputs,
            first_output,
            {state: carries.index(state) for state in layer.states},
            layer.response.rows,
            tuple(responses.tangents.slots),
            self.record.clock.capacity > 1,
            responses.decay,
            self.cells is not None,
        )

    def tangents(self, core: CoreScan, carries: Sequence[Tensor]) -> dict[tuple[str, str], Tensor]:
        """Returns the tangents from which the scan of a core goes on; nothing where it starts from zero."""
        if core.through:
            return {}
        held = self.record.responses[core.name].tangents.by_state
        found = {}
        for variable, state in core.reached():
            value = carries[core.states[state]]
            tangent = held.get((variable, state))
            like = torch.promote_types(value.dtype, torch.float32)
            found[variable, state] = value.new_zeros(value.shape, dtype=like) if tangent is None else tangent[0]
        return found

    def add_core(self, core: CoreScan, found: CoreResult, first: int, steps: int) -> None:
        """Adds what the scan of a core over ``steps`` of the steps, from ``first`` on, has found."""
        responses = self.record.responses[core.name]
        tangents = responses.tangents
        tangents.enter(self.index)
        if core.through:
            sums, last = _of_bins(responses, core, found.sums), _of_bins(responses, core, found.last)
            tangents.by_state = _carried(responses, core, found)
        else:
            sums = {key: value.unsqueeze(0) for key, value in found.sums.items()}
            last = {key: value.unsqueeze(0) for key, value in found.last.items()}
            tangents.by_state = {key: value.unsqueeze(0) for key, value in found.tangents.items()}
        _add_sums(responses, sums, self.index, steps)
        if self.cells is not None:
            for key, means in found.profiles.items():
                responses.note_means(key, means, self.cells[first : first + steps], CELLS)
        entries = found.derivatives
        self.changes[core.name] = last
        self.derivatives[core.name] = {k: entries[v] if isinstance(v, int) else v for k, v in core.rows.items()}

    def finish(self, values: Mapping[str, Tensor], norms: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Adds the traces and remembers the last step.

        Args:
            values: What is traced, by node, (steps, *shape) each.
            norms: (means, variances) of the batch normalisations, by node, (steps, channels) each.
        """
        record = self.record
        given = dict(values)
        for name, (mean, variance) in norms.items():
            given[f"{name}.mean"], given[f"{name}.variance"] = mean, variance
        for (name, _), buffer in record.traces.items():
            buffer.add_steps(given[name], self.index)
        first = {name: responses.tangents.first for name, responses in record.responses.items()}
        last = {name: given[name][-1] for name, _ in record.traces}
        record.moment = Moment(record.clock.steps - 1, self.index, last, self.changes, first, self.derivatives)


def _of_bins(responses: Responses, core: CoreScan, given: Mapping[tuple[str, str], Tensor]) -> Changes:
    """Returns the responses of some steps by slot, from those to the states at the beginning of the piece."""
    made: Changes = {}
    for output in core.outputs:
        for variable in core.variables:
            pairs = ((state, given.get((output, f"{FROM}{state}"))) for state in core.states)
            through = {state: value for state, value in pairs if value is not None}
            change = _combined(responses, variable, through, given.get((output, variable)))
            if change is not None:
                made[output, variable] = change
    return made


def _carried(responses: Responses, core: CoreScan, found: CoreResult) -> dict[tuple[str, str], Tensor]:
    """Returns the tangents at the end of a piece."""
    made: dict[tuple[str, str], Tensor] = {}
    for state in core.states:
        pairs = ((before, found.tangents.get((f"{FROM}{before}", state))) for before in core.states)
        through = {before: value for before, value in pairs if value is not None}
        for variable in core.variables:
            change = _combined(responses, variable, through, found.tangents.get((variable, state)))
            if change is not None:
                made[variable, state] = change
    return made


def _combined(
    responses: Responses, variable: str, through: Mapping[str, Tensor], fresh: Tensor | None
) -> Tensor | None:
    """Applies what a piece does to the tangents of its beginning, and adds what began within it to the latest slot."""
    tangents = responses.tangents
    slots = tangents.latest_bin + 1 - tangents.first if tangents.is_binned(variable) else 1
    total: Tensor | None = None
    for state, factor in through.items():
        tangent = tangents.by_state.get((variable, state))
        if tangent is not None:
            tangent = padded(tangent, 0, slots)
            total = factor * tangent if total is None else total.addcmul_(factor, tangent)
    if fresh is None:
        return total
    if total is None:
        if slots == 1:
            return fresh.unsqueeze(0)
        total = fresh.new_zeros((slots, *fresh.shape))
    total[-1] += fresh
    return total


def _add_sums(responses: Responses, sums: Changes, index: int, steps: int) -> None:
    decay = responses.decay
    if decay is None:
        responses.weights[index] += steps
    else:
        for _ in range(steps):
            responses.weights[index] = responses.weights[index] * decay + 1.0
    for key, total in sums.items():
        rows = responses.rows.setdefault(key, {})
        if index not in rows:
            first = responses.tangents.first if responses.tangents.is_binned(key[1]) else 0
            rows[index] = Row(first, torch.zeros_like(total, memory_format=torch.contiguous_format))
        rows[index].add(total, None if decay is None else decay**steps)


def traced_names(record: Record) -> tuple[str, ...]:
    """Returns the nodes whose values a record wants."""
    return tuple(dict.fromkeys(trace.value for trace in record.program.traces))
