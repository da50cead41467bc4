"""The rules side by side on one model: fidelity, time and memory of each, and which of them to take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from tracecompile.diagnostics.cost import Cost, cheapest, format_bytes, measure_step
from tracecompile.diagnostics.fidelity import call_or_loop, compared
from tracecompile.diagnostics.gradient_table import GradientComparison
from tracecompile.diagnostics.reference import LossFunction, Reference, copy_of
from tracecompile.errors import ConversionError
from tracecompile.program import Settings
from tracecompile.runtime.module import TracedModule, session_of
from tracecompile.settings import settings_of
from tracecompile.tables import text_lines, text_table

BINS = (1, 4, 10, 32)
NOTHING = "no parameter's gradient could be compared"
CLOSE = 0.99
"""The lowest cosine that is taken for close to backpropagation through time."""


@dataclass(frozen=True)
class Measured:
    """Gradients and cost of the converted module that somebody asked for."""

    gradients: GradientComparison
    cost: Cost


@dataclass(frozen=True)
class Variant:
    """One way to train the model.

    Attributes:
        name: The option that chooses it ("bins=4"), or "exact".
        cosine: The lowest cosine of a parameter's gradient to the reference; None where none could be compared.
        norm_ratios: The smallest and the largest norm ratio; None likewise.
        cost: Of a training step.
        asked: Whether it is the one that was asked for.
    """

    name: str
    cosine: float | None
    norm_ratios: tuple[float, float] | None
    cost: Cost
    asked: bool = False

    def is_worse(self, other: Variant) -> bool:
        """Tells whether another one is better in every respect."""
        assert self.cosine is not None
        assert other.cosine is not None
        cost = other.cost
        return other.cosine > self.cosine and cost.seconds < self.cost.seconds and cost.bytes < self.cost.bytes

    @property
    def cells(self) -> tuple[str, ...]:
        """Its row of the table."""
        cosine = "-" if self.cosine is None else f"{self.cosine:.4f}"
        ratios = "-" if self.norm_ratios is None else " to ".join(dict.fromkeys(f"{r:.3g}" for r in self.norm_ratios))
        return (self.name + " (as asked)" * self.asked, cosine, ratios, *_cost_cells(self.cost))


@dataclass(frozen=True)
class Variants:
    """All of them; printing it gives a table and what it would choose.

    Attributes:
        rows: In the order of their bins, then "exact", then what was asked for, if it is another one.
        refused: Those that do not convert, with the reason.
        bptt: What a step of backpropagation through time costs; None where its graph would not fit.
        steps: Time steps of the training step; None where they are not known.
    """

    rows: tuple[Variant, ...]
    refused: tuple[tuple[str, str], ...] = ()
    bptt: Cost | None = None
    steps: int | None = None

    @property
    def chosen(self) -> Variant | None:
        """The fastest of those that are close enough; of as good as equal ones the one with fewer bins.

        One than which another is closer and faster, and holds less, is never chosen.
        """
        close = [row for row in self.rows if row.cosine is not None and row.cosine >= CLOSE]
        fastest = min((row.cost.seconds for row in close), default=0.0)
        good = [row for row in close if not any(row.is_worse(other) for other in close)]
        return next((row for row in good if row.cost.seconds <= 1.1 * fastest), None)

    @property
    def choice(self) -> str:
        """In words: what to take, and why."""
        row = self.chosen
        if row is None or row.cosine is None:
            compared = any(row.cosine is not None for row in self.rows)
            return f"No choice: {f'none reaches a cosine of {CLOSE}' if compared else NOTHING}."
        option = "rule='exact'" if row.name == "exact" else row.name
        others = [each for each in self.rows if each.cosine is not None and each.cosine < CLOSE]
        faster = [each for each in self.rows if each.cost.seconds < row.cost.seconds]
        why = f"no faster one reaches {CLOSE}" if faster else "none is faster"
        if any(each.cosine is not None and each.cosine >= CLOSE for each in faster):
            why = f"none that reaches {CLOSE} is more than a tenth faster"
        reason = f"its lowest cosine is {row.cosine:.4f}, and {why}"
        if row.name == "exact" and len(others) == len(self.rows) - 1:
            reason = f"no number of bins reaches a cosine of {CLOSE} here"
        through_time = "would not fit into memory"
        if self.bptt is not None:
            through_time = f"takes {_milliseconds(self.bptt)} and holds {format_bytes(self.bptt.bytes)}"
        return (
            f"Take {option}: {reason}. A step takes {_milliseconds(row.cost)} and holds {format_bytes(row.cost.bytes)};"
            f" one of backpropagation through time {through_time}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        rows = [
            {
                "name": row.name,
                "asked": row.asked,
                "cosine": row.cosine,
                "norm_ratios": None if row.norm_ratios is None else list(row.norm_ratios),
                "bytes": row.cost.bytes,
                "seconds": row.cost.seconds,
            }
            for row in self.rows
        ]
        return {"steps": self.steps, "rows": rows, "refused": dict(self.refused), "choice": self.choice}

    def __str__(self) -> str:
        through_time = ("would not fit", "") if self.bptt is None else _cost_cells(self.bptt)
        cells = [("through time", "", "", *through_time), *(row.cells for row in self.rows)]
        length = "" if self.steps is None else f" of {self.steps:,} time steps"
        lines = [f"one training step{length}"]
        lines += [text_table(("", "lowest cosine", "norm ratios", "time", "for backward"), cells)]
        lines += [text_lines([f"{name}: refused, {reason}" for name, reason in self.refused])] if self.refused else []
        lines += ["(for backward: bytes held from forward to backward, beyond parameters, inputs)"]
        return "\n".join([*lines, "", text_lines([self.choice])])


def _cost_cells(cost: Cost) -> tuple[str, str]:
    return _milliseconds(cost), format_bytes(cost.bytes)


def _milliseconds(cost: Cost) -> str:
    return f"{cost.seconds * 1e3:,.1f} ms"


def compare_variants(
    model: nn.Module,
    net: TracedModule,
    inputs: Any,
    loss_fn: LossFunction,
    reference: Reference,
    say: Callable[[str], Any],
    asked: Measured,
    bptt: Cost | None,
) -> Variants:
    """Converts copies of a model in several ways, and compares them.

    Args:
        model: The model.
        net: Its converted form, whose compiler and compiled code serve the others.
        inputs: As ``compare_gradients`` takes them.
        loss_fn: Likewise.
        reference: What all are compared with.
        say: Is told what is being done.
        asked: What was found of ``net`` already.
        bptt: What a step of the model itself costs.
    """
    own = session_of(net).settings
    rows: list[Variant] = []
    refused: list[tuple[str, str]] = []
    steps = _steps(net, inputs)
    for name, options in _options(steps):
        settings = settings_of(**options, backend=own.backend, chunk=own.chunk)
        if settings == own:
            rows.append(_variant(name, asked, asked=True))
            continue
        say(f"training a step with {name}")
        try:
            rows.append(_variant(name, _measured(settings, model, net, inputs, loss_fn, reference)))
        except ConversionError as refusal:
            refused.append((name, f"{refusal.explanation} {refusal.advice}".strip()))
    if not any(row.asked for row in rows):
        rows.append(_variant(_named(own), asked, asked=True))
    return Variants(tuple(rows), tuple(refused), bptt, steps)


def _options(steps: int | None) -> list[tuple[str, dict[str, Any]]]:
    bins = [count for count in BINS if steps is None or count <= steps]
    return [*((f"bins={count}", {"bins": count}) for count in bins), ("exact", {"rule": "exact"})]


def _named(settings: Settings) -> str:
    """Returns the options that choose something else than the usual ones."""
    parts = [] if settings.rule == "measured" else [f"rule={settings.rule!r}"]
    if settings.decay is not None:
        decay = settings.decay
        parts.append(f"decay={decay:.4g}" if isinstance(decay, float) else "decay={...}")
    elif settings.rule == "measured":
        parts.append(f"bins={settings.bins}")
    if settings.rule == "exact":
        parts.append(f"snapshots={settings.snapshots}")
    return ", ".join(parts)


def _measured(
    settings: Settings, model: nn.Module, net: TracedModule, inputs: Any, loss_fn: LossFunction, reference: Reference
) -> Measured:
    session, copied = session_of(net), copy_of(model)
    other = TracedModule(copied, settings, session.compiler)
    session_of(other).kernels = session.kernels
    comparison = compared(reference, copied, other, inputs, loss_fn, call_or_loop)

    def measure() -> Cost:
        other.reset()
        return measure_step(other, inputs, loss_fn)

    return Measured(comparison, cheapest(measure))


def _variant(name: str, found: Measured, asked: bool = False) -> Variant:
    judged = [row for row in found.gradients.rows if row.cosine is not None]
    ratios = [row.norm_ratio for row in judged if row.norm_ratio is not None]
    return Variant(
        name,
        min((row.cosine for row in judged if row.cosine is not None), default=None),
        (min(ratios), max(ratios)) if ratios else None,
        found.cost,
        asked,
    )


def _steps(net: TracedModule, inputs: Any) -> int | None:
    """Returns how many time steps the inputs have, where that is known."""
    if isinstance(inputs, list):
        return len(inputs)
    axis, _ = net.program.time
    first = next((leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor)), None)
    return None if axis is None or first is None else int(first.shape[axis])
