"""The rules side by side on one model: fidelity, time and memory of each, and which of them to take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from tracecompile.diagnostics.cost import REPETITIONS, Cost, format_bytes, measure_step
from tracecompile.diagnostics.fidelity import call_or_loop, compared
from tracecompile.diagnostics.reference import LossFunction, Reference, copy_of
from tracecompile.errors import ConversionError
from tracecompile.runtime.module import TracedModule, session_of
from tracecompile.settings import settings_of
from tracecompile.tables import text_table

BINS = (1, 4, 10, 32)
CLOSE = 0.99
"""The lowest cosine that is taken for close to backpropagation through time."""


@dataclass(frozen=True)
class Variant:
    """One way to train the model.

    Attributes:
        name: "bins=4", or "exact".
        cosine: The lowest cosine of a parameter's gradient to the reference; None where none could be compared.
        norm_ratios: The smallest and the largest norm ratio; None likewise.
        cost: Of a training step.
    """

    name: str
    cosine: float | None
    norm_ratios: tuple[float, float] | None
    cost: Cost


@dataclass(frozen=True)
class Variants:
    """All of them; printing it gives a table and what it would choose.

    Attributes:
        rows: In the order of their bins, "exact" last.
        refused: Those that do not convert, with the reason.
    """

    rows: tuple[Variant, ...]
    refused: tuple[tuple[str, str], ...] = ()

    @property
    def chosen(self) -> Variant | None:
        """The fastest of those that are close enough; of as good as equal ones the one with fewer bins."""
        close = [row for row in self.rows if row.cosine is not None and row.cosine >= CLOSE]
        fastest = min((row.cost.seconds for row in close), default=0.0)
        return next((row for row in close if row.cost.seconds <= 1.1 * fastest), None)

    @property
    def choice(self) -> str:
        """In words: what to take, and why."""
        row = self.chosen
        if row is None or row.cosine is None:
            return "No choice: no parameter's gradient could be compared."
        option = "rule='exact'" if row.name == "exact" else row.name
        others = [each for each in self.rows if each.cosine is not None and each.cosine < CLOSE]
        reason = f"its lowest cosine is {row.cosine:.4f}, and no faster one reaches {CLOSE}"
        if row.name == "exact" and len(others) == len(self.rows) - 1:
            reason = f"no number of bins reaches a cosine of {CLOSE} here"
        held = format_bytes(row.cost.bytes)
        return f"Take {option}: {reason}. A step takes {row.cost.seconds * 1e3:.1f} ms and holds {held}."

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        rows = [
            {
                "name": row.name,
                "cosine": row.cosine,
                "norm_ratios": None if row.norm_ratios is None else list(row.norm_ratios),
                "bytes": row.cost.bytes,
                "seconds": row.cost.seconds,
            }
            for row in self.rows
        ]
        return {"rows": rows, "refused": dict(self.refused), "choice": self.choice}

    def __str__(self) -> str:
        cells = []
        for row in self.rows:
            cosine = "-" if row.cosine is None else f"{row.cosine:.4f}"
            ratios = "-" if row.norm_ratios is None else "{:.3g} to {:.3g}".format(*row.norm_ratios)
            cells.append((row.name, cosine, ratios, f"{row.cost.seconds * 1e3:.1f} ms", format_bytes(row.cost.bytes)))
        lines = [text_table(("rule", "lowest cosine", "norm ratios", "time", "held for backward"), cells)]
        lines += [f"{name}: refused, {reason}" for name, reason in self.refused]
        return "\n".join([*lines, self.choice])


def compare_variants(
    model: nn.Module,
    net: TracedModule,
    inputs: Any,
    loss_fn: LossFunction,
    reference: Reference,
    say: Callable[[str], Any],
) -> Variants:
    """Converts copies of a model in several ways, and compares them.

    Args:
        model: The model.
        net: Its converted form, whose compiler and compiled code serve the others.
        inputs: As ``compare_gradients`` takes them.
        loss_fn: Likewise.
        reference: What all are compared with.
        say: Is told what is being done.
    """
    rows: list[Variant] = []
    refused: list[tuple[str, str]] = []
    steps = _steps(net, inputs)
    for name, options in _options(steps):
        say(f"training a step with {name}")
        try:
            rows.append(_variant(name, options, model, net, inputs, loss_fn, reference))
        except ConversionError as refusal:
            refused.append((name, str(refusal).splitlines()[0]))
    return Variants(tuple(rows), tuple(refused))


def _options(steps: int | None) -> list[tuple[str, dict[str, Any]]]:
    bins = [count for count in BINS if steps is None or count <= steps]
    return [*((f"bins={count}", {"bins": count}) for count in bins), ("exact", {"rule": "exact"})]


def _variant(
    name: str,
    options: dict[str, Any],
    model: nn.Module,
    net: TracedModule,
    inputs: Any,
    loss_fn: LossFunction,
    reference: Reference,
) -> Variant:
    session, copied = session_of(net), copy_of(model)
    settings = settings_of(**options, backend=session.settings.backend, chunk=session.settings.chunk)
    other = TracedModule(copied, settings, session.compiler)
    session_of(other).kernels = session.kernels
    comparison = compared(reference, copied, other, inputs, loss_fn, call_or_loop)
    costs = []
    for _ in range(REPETITIONS):
        other.reset()
        costs.append(measure_step(other, inputs, loss_fn))
    judged = [row for row in comparison.rows if row.cosine is not None]
    ratios = [row.norm_ratio for row in judged if row.norm_ratio is not None]
    return Variant(
        name,
        min((row.cosine for row in judged if row.cosine is not None), default=None),
        (min(ratios), max(ratios)) if ratios else None,
        min(costs, key=lambda cost: cost.seconds),
    )


def _steps(net: TracedModule, inputs: Any) -> int | None:
    """Returns how many time steps the inputs have, where that is known."""
    if isinstance(inputs, list):
        return len(inputs)
    axis, _ = net.program.time
    first = next((leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor)), None)
    return None if axis is None or first is None else int(first.shape[axis])
