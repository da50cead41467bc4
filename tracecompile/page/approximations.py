"""What of the gradients is approximate, why, and what would mend it."""

from __future__ import annotations

from typing import Any

from tracecompile.analysis.linearity import nonlinear_operations
from tracecompile.diagnostics.aloud import approximates_norms
from tracecompile.program import StepProgram
from tracecompile.rules import rule_of
from tracecompile.runtime.sampled import SAMPLES

EXACT = "rule='exact' has the gradients of backpropagation through time, for a second forward pass."
MENDS = {
    "measured": f"More bins are closer, and as many bins as steps are exact. {EXACT}",
    "analytic": f"rule='measured' takes the slopes of this very run instead of a rate curve. {EXACT}",
}


def approximations(
    program: StepProgram, report: dict[str, Any], fidelity: dict[str, Any] | None
) -> list[dict[str, Any]]:
    """Returns an entry for each approximation: what, why, what mends it, and how close it came where that is known."""
    rows = {row["parameter"]: row["cosine"] for row in fidelity["rows"]} if fidelity is not None else {}
    groups: dict[tuple[str, str], list[str]] = {}
    for name, entry in report["parameters"].items():
        if entry["status"] != "exact":
            groups.setdefault((entry["status"], entry["reason"]), []).append(name)
    found = []
    for (status, reason), names in groups.items():
        frozen = status == "frozen"
        found.append(
            {
                "what": ", ".join(names),
                "kind": "gets no gradient" if frozen else "approximate gradient",
                "why": reason,
                "mend": _frozen(reason) if frozen else MENDS.get(report["rule"], EXACT),
                "lowest": min((rows[name] for name in names if rows.get(name) is not None), default=None),
            }
        )
    return found + (_of_layers(program) if rule_of(program.settings).records else [])


def _frozen(reason: str) -> str:
    if "requires_grad" in reason:
        return "Set requires_grad to True to train it; no new conversion is needed."
    if "hard threshold" in reason:
        return "Pass the membrane through a surrogate function, such as those of tracecompile.nn."
    return "Use it in what the model returns, or leave it out of the optimiser."


def _of_layers(program: StepProgram) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for layer in program.layers:
        if operations := nonlinear_operations(program, layer):
            found.append(
                {
                    "what": f"{layer.name}: {', '.join(operations)}",
                    "kind": f"evaluated at {SAMPLES} steps a bin" if layer.sampled else "evaluated on means",
                    "why": "It does not commute with the mean over time: backward sees it "
                    + (f"at {SAMPLES} steps of each bin." if layer.sampled else "at the mean input."),
                    "mend": f"More bins, whose inputs vary less within each. {EXACT}",
                    "lowest": None,
                }
            )
        if layer.norms and approximates_norms(program):
            found.append(
                {
                    "what": f"{layer.name}: batch normalisation in training",
                    "kind": "statistics averaged over a bin",
                    "why": "Each step has statistics of its own, and backward sees their mean over a bin.",
                    "mend": f"bins=16 or 32, or net.eval() where the statistics are settled. {EXACT}",
                    "lowest": None,
                }
            )
    return found
