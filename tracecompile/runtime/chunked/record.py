"""Adds chunks of steps to a record; what they leave there is what the steps one by one leave, up to rounding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tracecompile.layers import Jacobian, Layer
from tracecompile.runtime.chunked.core_scan import FROM, Carried, CoreResult, CoreScan, Pair
from tracecompile.runtime.horizon import CELLS
from tracecompile.runtime.record import Moment, Record
from tracecompile.runtime.responses import Responses, Row
from tracecompile.runtime.statistics import accumulator_dtype, padded
from tracecompile.runtime.tangents import Changes, Derivatives


class ChunkRecord:
    """What lies between the scans of a sequence and its record.

    The derivatives of the cores are carried from scan to scan, and folded into the record at the end of every bin.

    Attributes:
        record: Takes everything.
        index: The bin of the chunk.
    """

    def __init__(self, record: Record) -> None:
        """Stands before the first step."""
        self.record = record
        self.index = 0
        self._cells: list[int] | None = None
        self._steps = 0
        """Since the last fold."""
        self._cores: dict[str, tuple[CoreScan, CoreResult]] = {}
        self._values: dict[str, Tensor] = {}

    def enter(self, steps: int) -> None:
        """Begins a chunk, which must lie within a bin."""
        record = self.record
        bins = {record.clock.tick() for _ in range(steps)}
        assert len(bins) == 1, "a chunk crosses the edge of a bin"
        self.index = bins.pop()
        self._steps += steps
        if record.cells is not None:
            self._cells = [record.cells.tick() for _ in range(steps)]

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
            self.record.cells is not None,
        )

    def carried(self, core: CoreScan, states: Mapping[str, Tensor], like: Sequence[Tensor]) -> Carried:
        """Returns the derivatives from which the scan of a core goes on.

        Args:
            core: Which.
            states: Its states now.
            like: What else says of what shape its outputs are: one step's values of its currents.
        """
        if core.name in self._cores:
            return self._cores[core.name][1].carried
        tangents = [self._first_tangent(core, pair, states[pair[1]]) for pair in core.reached]
        known = [*states.values(), *like]
        shape = torch.broadcast_shapes(*(value.shape for value in known)) if known else ()
        dtype = accumulator_dtype(known[0].dtype) if known else torch.float32
        device = known[0].device if known else None
        return Carried(tangents, [torch.zeros(shape, dtype=dtype, device=device) for _ in core.answered])

    def _first_tangent(self, core: CoreScan, pair: Pair, state: Tensor) -> Tensor:
        variable, name = pair
        dtype = accumulator_dtype(state.dtype)
        if core.through:
            return torch.full_like(state, float(variable == f"{FROM}{name}"), dtype=dtype)
        tangent = self.record.responses[core.name].tangents.by_state.get(pair)
        return torch.zeros_like(state, dtype=dtype) if tangent is None else tangent[0]

    def take(self, core: CoreScan, found: CoreResult, first: int, steps: int) -> None:
        """Takes what the scan of a core over ``steps`` of the chunk's steps, from ``first`` on, has found."""
        self._cores[core.name] = core, found
        if self._cells is not None:
            cells = self._cells[first : first + steps]
            for key, values in zip(core.profiled, found.profiles, strict=True):
                means = values.flatten(1).mean(1) if values.ndim > 1 else values
                self.record.responses[core.name].note_means(key, means, cells, CELLS)

    def finish(self, values: Mapping[str, Tensor], norms: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Ends a chunk: adds the traces.

        Args:
            values: What is traced, by node, (steps, *shape) each.
            norms: (means, variances) of the batch normalisations, by node, (steps, channels) each.
        """
        given = dict(values)
        for name, (mean, variance) in norms.items():
            given[f"{name}.mean"], given[f"{name}.variance"] = mean, variance
        for (name, _), buffer in self.record.traces.items():
            buffer.add_steps(given[name], self.index)
        self._values = {name: given[name][-1] for name, _ in self.record.traces}

    def fold(self) -> None:
        """Folds the derivatives that were carried into the record: at the end of a bin, or within it."""
        record = self.record
        changes: dict[str, Changes] = {}
        derivatives: dict[str, Derivatives] = {}
        for name, (core, found) in self._cores.items():
            changes[name] = _folded(record.responses[name], core, found, self.index, self._steps)
            entries = found.derivatives
            derivatives[name] = {k: entries[v] if isinstance(v, int) else v for k, v in core.rows.items()}
        first = {name: responses.tangents.first for name, responses in record.responses.items()}
        # Copies: as parts of their chunk they would keep all of it.
        values = {name: value.clone() for name, value in self._values.items()}
        record.moment = Moment(record.clock.steps - 1, self.index, values, changes, first, derivatives)
        self._cores, self._steps = {}, 0


def _folded(responses: Responses, core: CoreScan, found: CoreResult, index: int, steps: int) -> Changes:
    """Folds one core in; returns the responses of the last step."""
    tangents = responses.tangents
    tangents.enter(index)
    sums = dict(zip(core.answered, found.carried.sums, strict=True))
    last = dict(zip(core.answered, found.last, strict=True))
    ends = dict(zip(core.reached, found.carried.tangents, strict=True))
    if core.through:
        changes, answers = _of_bins(responses, core, last), _of_bins(responses, core, sums)
        tangents.by_state = _ends_of_bins(responses, core, ends)
    else:
        changes = {key: value.unsqueeze(0) for key, value in last.items()}
        answers = {key: value.unsqueeze(0) for key, value in sums.items()}
        tangents.by_state = {key: value.unsqueeze(0) for key, value in ends.items()}
    _add_sums(responses, answers, index, steps)
    return changes


def _of_bins(responses: Responses, core: CoreScan, given: Mapping[Pair, Tensor]) -> Changes:
    """Returns the responses of some steps by slot, from those to the states where the carrying began."""
    made: Changes = {}
    for output in core.outputs:
        for variable in core.variables:
            pairs = ((state, given.get((output, f"{FROM}{state}"))) for state in core.states)
            through = {state: value for state, value in pairs if value is not None}
            change = _combined(responses, variable, through, given.get((output, variable)))
            if change is not None:
                made[output, variable] = change
    return made


def _ends_of_bins(responses: Responses, core: CoreScan, given: Mapping[Pair, Tensor]) -> dict[Pair, Tensor]:
    """Returns the tangents by slot where the carrying ends."""
    made: dict[Pair, Tensor] = {}
    for state in core.states:
        pairs = ((before, given.get((f"{FROM}{before}", state))) for before in core.states)
        through = {before: value for before, value in pairs if value is not None}
        for variable in core.variables:
            change = _combined(responses, variable, through, given.get((variable, state)))
            if change is not None:
                made[variable, state] = change
    return made


def _combined(
    responses: Responses, variable: str, through: Mapping[str, Tensor], fresh: Tensor | None
) -> Tensor | None:
    """Applies what time does to the tangents where it began, and adds what has begun since then to the latest slot."""
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
