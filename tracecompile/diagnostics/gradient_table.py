"""The table of a gradient comparison: one row per parameter, and which of them is worst."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from tracecompile.errors import InvalidInput
from tracecompile.tables import text_lines, text_table

NO_GRADIENT = "no gradient"
NOT_FINITE = "not finite"


@dataclass(frozen=True)
class GradientRow:
    """One parameter's gradient against backpropagation through time.

    Attributes:
        parameter: Its name.
        cosine: Cosine of the two gradients; 0 where one is missing or zero, None where there is nothing to compare.
        norm_ratio: Norm of the converted gradient over that of the reference; None where that is zero.
        status: "trace", "exact" or "frozen" as reported by the compiler ("" where it says nothing), "no gradient" where
            neither side has one, "not finite" where one side holds nan or infinity.
        reason: The compiler's reason for the status.
    """

    parameter: str
    cosine: float | None
    norm_ratio: float | None
    status: str
    reason: str = ""

    @property
    def rank(self) -> float:
        """The cosine, with minus infinity for a parameter whose gradient could not be judged."""
        return -math.inf if self.cosine is None else self.cosine


@dataclass(frozen=True)
class GradientComparison:
    """All parameters' gradients against backpropagation through time; printing it gives a table.

    Attributes:
        rows: One row per trainable parameter, in the model's order.
        reference: "bptt", or "exact" where a graph over time would not have fitted: the same gradients, recomputed.
    """

    rows: tuple[GradientRow, ...]
    reference: str = "bptt"

    @property
    def worst(self) -> GradientRow:
        """The row with the lowest cosine; one that could not be judged at all (cosine None) is worse than any other.

        Raises:
            InvalidInput: If the model has no trainable parameter.
        """
        if not self.rows:
            raise InvalidInput("No parameter of the model requires a gradient, so there is nothing to compare.")
        return min(self.rows, key=lambda row: row.rank)

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences about the parameters whose gradients could not be compared."""
        found = []
        without = [row.parameter for row in self.rows if row.status == NO_GRADIENT]
        if without:
            found.append(
                f"Nothing to compare for {', '.join(without)}: neither side has a gradient. The loss does not depend "
                "on them here, or the neurons between are silent: tracecompile.probe shows the rates."
            )
        broken = [row.parameter for row in self.rows if row.status == NOT_FINITE]
        if broken:
            found.append(f"Nothing to compare for {', '.join(broken)}: a gradient holds nan or infinity.")
        if self.reference == "exact":
            found.append("Compared with the exact rule: the graph of backpropagation through time would not fit.")
        return tuple(found)

    def __str__(self) -> str:
        if not self.rows:
            return "no trainable parameter"
        header = ("parameter", "cosine", "norm ratio", "gradient", "reason")
        texts = [(_text(row.cosine, ".6f"), _text(row.norm_ratio, ".4g")) for row in self.rows]
        cells = [(row.parameter, *text, row.status, row.reason) for row, text in zip(self.rows, texts, strict=True)]
        worst = self.worst
        judged = worst.status if worst.cosine is None else f"cosine {worst.cosine:.6f}"
        remarks = (text_lines([remark]) for remark in self.remarks)
        return "\n".join([text_table(header, cells), *remarks, f"worst: {worst.parameter}, {judged}"])

    def to_dict(self) -> dict[str, Any]:
        """Returns the table ready for ``json.dumps``."""
        rows = [asdict(row) for row in self.rows]
        return {
            "rows": rows,
            "worst": self.worst.parameter if self.rows else None,
            "reference": self.reference,
            "remarks": list(self.remarks),
        }


def compare_tensors(
    name: str, measured: Tensor | None, expected: Tensor | None, status: str = "", reason: str = ""
) -> GradientRow:
    """Compares one gradient with its reference, in float64; None stands for a gradient of zero."""
    if measured is None and expected is None:
        return GradientRow(name, None, None, NO_GRADIENT, reason)
    left, right = (None if g is None else g.detach().to("cpu", torch.float64).flatten() for g in (measured, expected))
    left_norm, right_norm = (0.0 if g is None else float(g.norm()) for g in (left, right))
    if not (math.isfinite(left_norm) and math.isfinite(right_norm)):
        return GradientRow(name, None, None, NOT_FINITE, reason)
    if left_norm == 0 and right_norm == 0:
        return GradientRow(name, None, None, NO_GRADIENT, reason)
    ratio = left_norm / right_norm if right_norm else None
    if left is None or right is None or not left_norm or not right_norm:
        return GradientRow(name, 0.0, ratio, status, reason)
    return GradientRow(name, float((left / left_norm) @ (right / right_norm)), ratio, status, reason)


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
