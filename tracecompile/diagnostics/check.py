"""``tracecompile check``: one training step of a model against the same step of its converted form."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from tracecompile.diagnostics.cost import Cost, cheapest, measure_step
from tracecompile.diagnostics.fidelity import GradientComparison, call_or_loop, compared
from tracecompile.diagnostics.gradient_table import NO_GRADIENT
from tracecompile.diagnostics.probe import MORE_BINS, probe
from tracecompile.diagnostics.reference import reference_of
from tracecompile.diagnostics.variants import Measured, Variant, Variants, compare_variants
from tracecompile.errors import InvalidInput
from tracecompile.rules import rule_of
from tracecompile.runtime.module import TracedModule
from tracecompile.tables import text_lines

STEPS = 100
"""Calls of a model that takes one step a call, where nobody says how many."""


@dataclass(frozen=True)
class CheckResult:
    """Gradient fidelity, cost, and what to choose; printing it gives all as text.

    Attributes:
        gradients: Of the converted module, parameter by parameter.
        bptt: What a step of the model costs; None where its graph over time would not fit.
        converted: What one of the converted module does.
        advice: What a probe of the network advises.
        variants: Other numbers of bins, and the exact rule.
    """

    gradients: GradientComparison
    bptt: Cost | None
    converted: Cost
    advice: tuple[str, ...] = ()
    variants: Variants = field(default_factory=lambda: Variants(()))

    def to_dict(self) -> dict[str, Any]:
        """Returns the result as plain JSON values."""
        gradients = self.gradients.to_dict()
        return {
            "parameters": gradients["rows"],
            "worst": gradients["worst"],
            "remarks": gradients["remarks"],
            "reference": gradients["reference"],
            "bptt": None if self.bptt is None else asdict(self.bptt),
            "converted": asdict(self.converted),
            "advice": list(self.advice),
            "variants": self.variants.to_dict(),
        }

    def below(self, bound: float) -> list[str]:
        """Returns the parameters whose gradients are not as close as that to the reference, or cannot be judged.

        A parameter that has no gradient on either side has the same one; where no other is left, nothing was shown.
        """
        rows = [row for row in self.gradients.rows if row.status != NO_GRADIENT]
        return [row.parameter for row in rows or self.gradients.rows if not row.rank >= bound]

    def __str__(self) -> str:
        verdict = [str(self.variants), text_lines(self.advice, ["- "] * len(self.advice))]
        return "\n\n".join(part for part in (*verdict, f"parameter by parameter\n{self.gradients}") if part)


def check_model(
    model: nn.Module,
    net: TracedModule,
    inputs: tuple[torch.Tensor, ...],
    steps: int = STEPS,
    say: Callable[[str], Any] = lambda text: None,
) -> CheckResult:
    """Compares gradients, bytes held for backward and time; ``model`` and the gradients of ``net`` stay as they were.

    The loss is a fixed random projection of everything that the model returns, averaged over time and batch.

    Args:
        model: The model that was converted.
        net: Its converted form.
        inputs: The arguments of one call.
        steps: For a model that takes one step a call and keeps its state: how often the inputs are repeated.
        say: Is told what is being done.
    """
    program = net.program
    if program.explicit_states:
        raise InvalidInput(
            "check cannot tell which state comes first.", "Wrap the step in a module that loops over time."
        )
    sequence: Any = inputs if program.kind == "sequence" else [inputs] * steps
    reference = reference_of(model, net, sequence, projection_loss, call_or_loop)
    gradients = compared(reference, model, net, sequence, projection_loss, call_or_loop)
    bptt = None
    if reference.by == "bptt":
        bptt = cheapest(lambda: measure_step(copy.deepcopy(model), sequence, projection_loss))
    held = [parameter.grad for parameter in net.parameters()]
    converted = cheapest(lambda: measure_step(_from_the_start(net), sequence, projection_loss))
    for parameter, gradient in zip(net.parameters(), held, strict=True):
        parameter.grad = gradient
    advice = probe(net, sequence).advice if rule_of(net.program.settings).reruns else ()
    asked = Measured(gradients, converted)
    variants = compare_variants(model, net, sequence, projection_loss, reference, say, asked, bptt)
    return CheckResult(gradients, bptt, converted, agreeing(advice, variants), variants)


def agreeing(advice: tuple[str, ...], variants: Variants) -> tuple[str, ...]:
    """Returns the advice of a probe without the call for more bins, where what was chosen has no more of them.

    A probe sees what may need more bins; here the gradients themselves were compared.
    """
    chosen = variants.chosen
    asked = next((row for row in variants.rows if row.asked), None)
    if chosen is None or (asked is not None and _bins(chosen) > _bins(asked) > 0):
        return advice
    close = f"; {chosen.name} is close all the same."
    parts = (sentence.partition(MORE_BINS) for sentence in advice)
    return tuple(fact + close if call else fact for fact, call, _ in parts)


def _bins(row: Variant) -> int:
    """Returns how many time bins a way to train has by its name; 0 where it has none."""
    count = row.name.removeprefix("bins=")
    return int(count) if count.isdecimal() else 0


def projection_loss(outputs: Any) -> torch.Tensor:
    """Returns the mean of every floating-point output, each feature (last axis) weighted by a fixed random number."""
    total = torch.zeros(())
    for leaf in tree_leaves(outputs):
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and leaf.ndim > 0:
            generator = torch.Generator().manual_seed(leaf.shape[-1])
            weights = torch.randn(leaf.shape[-1], generator=generator).to(leaf)
            total = total.to(leaf) + (leaf * weights).mean()
    return total


def _from_the_start(net: TracedModule) -> TracedModule:
    net.reset()
    return net
