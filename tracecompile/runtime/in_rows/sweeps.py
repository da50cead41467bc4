"""Pulls learning signals through the rows of a prologue, a few at a time.

What ties the rows together is the mean and the variance of each channel, which are known from the first run. So the
rows are gone over once for what comes after the last normalisation, which adds up what the loss answers to its mean and
variance, once more from there to the normalisation before, and so on. What is before a normalisation is computed in
each of the sweeps where whole tensors would be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from tracecompile.runtime.before import Before
from tracecompile.runtime.in_rows.norms import Statistics, by_channel, weighted, weights_of
from tracecompile.runtime.in_rows.plan import Cut, Plan
from tracecompile.runtime.in_rows.run import RowRun
from tracecompile.runtime.packed import unpacked
from tracecompile.runtime.twins import Twins

Span = tuple[int, int]
"""Where some rows begin and end, in parts."""
Signal = Callable[[fx.Node, Tensor, Span], Tensor]
"""Maps a node, some rows of its value, and which they are, to what the loss answers to them."""


class _Sums:
    """What the loss answers to what one normalisation gives.

    Attributes:
        rows: All rows of it.
        plain, weighted: Of each channel, (C,), summed over all rows: the same, and that times the normalised value.
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self.plain: Tensor | None = None
        self.weighted: Tensor | None = None

    def add(self, part: Tensor, signal: Tensor, normalised: Tensor, *, is_first: bool) -> None:
        """Takes some rows.

        Args:
            part: Of ``rows``.
            signal: On what the normalisation gives.
            normalised: That, before its weights.
            is_first: Whether nothing has come to these rows yet.
        """
        axes = [axis for axis in range(signal.ndim) if axis != 1]
        precise = signal.to(normalised.dtype)
        plain, weighted = precise.sum(axes), (precise * normalised).sum(axes)
        self.plain = plain if self.plain is None else self.plain + plain
        self.weighted = weighted if self.weighted is None else self.weighted + weighted
        part.copy_(signal) if is_first else part.add_(signal)


class Sweeps:
    """One backward pass through one prologue."""

    def __init__(self, before: Before, plan: Plan, statistics: Mapping[fx.Node, Statistics], cut: Cut) -> None:
        """Has received nothing yet.

        Args:
            before: The prologue, with its operands as they are kept.
            plan: How its rows are computed.
            statistics: Of its normalisations.
            cut: Of its rows.
        """
        self.wanted, self.plan, self.statistics, self.cut = before.wanted, plan, statistics, cut
        given = [unpacked(value) for value in before.kept]
        self.operands: list[Any] = [
            value.detach().requires_grad_(need and place not in cut.sizes) if isinstance(value, Tensor) else value
            for place, (value, need) in enumerate(zip(given, before.wanted, strict=False))
        ]
        self.stand_ins: dict[Tensor, Tensor] = {value: value.detach().requires_grad_() for value in before.parameters}
        self.run = RowRun(plan.prologue, Twins(self.stand_ins), plan.rows.norms)
        stand_ins = zip(self.stand_ins.values(), before.wanted[len(given) :], strict=True)
        self.shared = [value for value in self.operands if isinstance(value, Tensor) and value.requires_grad]
        self.shared += [value for value, need in stand_ins if need]
        self.cut_and_wanted = [place for place in cut.sizes if before.wanted[place]]
        self.found: dict[Tensor, Tensor] = {}
        self.of_operands: dict[int, Tensor] = {}
        self.sums: dict[fx.Node, _Sums] = {}

    def pull(self, signals: Mapping[fx.Node, Tensor], spare: Sequence[Tensor]) -> list[Tensor | None]:
        """Returns what the loss answers to the operands, and then to the parameters; None where it is not wanted.

        Args:
            signals: What it answers to results.
            spare: Those of them that may be written into once their rows were read.
        """
        if signals:
            self._sweep(signals, lambda node, value, span: self.cut.part(signals[node], *span), list(spare))
        for norm in reversed(self.plan.rows.norms):
            if norm in self.sums:
                self._pull_norm(norm)
        of_operands = [
            self.of_operands.get(place) if place in self.cut.sizes else self._of(value)
            for place, value in enumerate(self.operands)
        ]
        found = [*of_operands, *map(self._of, self.stand_ins.values())]
        return [gradient if need else None for gradient, need in zip(found, self.wanted, strict=True)]

    def _of(self, value: Any) -> Tensor | None:
        gradient = self.found.get(value) if isinstance(value, Tensor) else None
        return None if gradient is None else gradient.to(value.dtype)

    def _pull_norm(self, norm: fx.Node) -> None:
        """Pulls what has come to a normalisation to what it takes, and to its weights."""
        sums, statistics = self.sums.pop(norm), self.statistics[norm]
        assert sums.plain is not None
        assert sums.weighted is not None
        weight, bias = self._weights(norm)
        for value, gradient in ((weight, sums.weighted), (bias, sums.plain)):
            if value is not None and any(value is each for each in self.shared):
                self._add(value, gradient)
        plain, times_normalised = sums.plain / statistics.count, sums.weighted / statistics.count

        def signal(node: fx.Node, value: Tensor, span: Span) -> Tensor:
            normalised = statistics.normalised(value.detach())
            pulled = self.cut.part(sums.rows, *span).to(normalised.dtype) - by_channel(plain, normalised)
            pulled -= normalised.mul_(by_channel(times_normalised, normalised))
            pulled *= by_channel(statistics.scale, pulled)
            return pulled if weight is None else pulled.mul_(by_channel(weight.detach(), pulled))

        self._sweep([norm.all_input_nodes[0]], signal, [])

    def _sweep(self, ends: Iterable[fx.Node], signal: Signal, spare: list[Tensor]) -> None:
        """Goes over all rows.

        Args:
            ends: Nodes.
            signal: On these.
            spare: Tensors as long as the sequence that may be written into once their rows were read.
        """
        known = set(self.sums)
        for span in self.cut.parts(self.plan.size):
            parts = list(self.operands)
            for place in self.cut.sizes:
                part = self.cut.part(parts[place], *span).detach()
                parts[place] = part.requires_grad_(self.wanted[place])
            given: dict[fx.Node, tuple[Tensor, Tensor]] = {}
            values = self.run.values(parts, ends, self._normalising(given))
            learned = {node: value for node, value in values.items() if value.requires_grad}
            pulls = [signal(node, value, span).to(value.dtype) for node, value in learned.items()]
            sources = [*(parts[place] for place in self.cut_and_wanted), *self.shared]
            sources += [value for value, _ in given.values()]
            if not pulls:
                continue
            found = iter(torch.autograd.grad(list(learned.values()), sources, pulls, allow_unused=True))
            for place in self.cut_and_wanted:
                self._add_rows(place, next(found), span)
            for value in self.shared:
                self._add(value, next(found))
            # Autograd may have given the same memory to two of them.
            room = spare if len(given) == 1 else []
            for node, (_, normalised) in given.items():
                self._add_to_norm(node, next(found), normalised, span, room, is_first=node not in known)

    def _normalising(self, given: dict[fx.Node, tuple[Tensor, Tensor]]) -> Callable[[fx.Node, Tensor], Tensor]:
        """Returns what runs normalisations with known statistics; what they give is a leaf of the graph behind them."""

        def normalise(node: fx.Node, value: Tensor) -> Tensor:
            with torch.no_grad():
                normalised = self.statistics[node].normalised(value)
                made = weighted(normalised, *self._weights(node)).to(value.dtype)
            # A view, since what a norm without weights gives is the normalised value itself.
            given[node] = (made.detach().requires_grad_(), normalised)
            return given[node][0]

        return normalise

    def _weights(self, norm: fx.Node) -> tuple[Tensor | None, Tensor | None]:
        return weights_of(norm, self.plan.prologue, self.stand_ins, self.operands)

    def _add(self, value: Tensor, gradient: Tensor | None) -> None:
        if gradient is not None:
            # What autograd returns may be somebody else's memory.
            self.found[value] = self.found[value] + gradient if value in self.found else gradient.clone()

    def _add_rows(self, place: int, gradient: Tensor | None, span: Span) -> None:
        if gradient is None:
            return
        if place not in self.of_operands:
            self.of_operands[place] = torch.zeros_like(self.operands[place])
        self.cut.part(self.of_operands[place], *span).add_(gradient)

    def _add_to_norm(
        self,
        node: fx.Node,
        signal: Tensor | None,
        normalised: Tensor,
        span: Span,
        spare: list[Tensor],
        *,
        is_first: bool,
    ) -> None:
        """Adds what has come to some rows of what a normalisation gives."""
        if signal is None:
            return
        if node not in self.sums:
            begin, end = span
            shape = (len(signal) // (end - begin) * self.cut.count, *signal.shape[1:])
            self.sums[node] = _Sums(_room(spare, shape, signal))
        sums = self.sums[node]
        sums.add(self.cut.part(sums.rows, *span), signal, normalised, is_first=is_first)


def _room(spare: list[Tensor], shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Returns a tensor of some shape, one that may be written into if there is one of this size and type."""
    size = torch.Size(shape).numel()
    for place, value in enumerate(spare):
        if value.is_contiguous() and (value.numel(), value.dtype) == (size, like.dtype):
            return spare.pop(place).view(shape)
    return like.new_empty(shape)
