"""Whether the converted module trains what the model trains, and with a bin per step exactly as the model does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from tracecompile.errors import SelfCheckFailed
from tracecompile.program import StepProgram
from tracecompile.rules import rule_of
from tracecompile.self_check.in_order import adding
from tracecompile.self_check.pair import Pair, Run
from tracecompile.self_check.results import layer_of, line_of

TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3, torch.float16: 0.05, torch.bfloat16: 0.2}
"""How far a gradient with a bin per step may be from backpropagation through time, relative to its norm, by type."""
CANCELS = 1e-3
"""Gradients below this share of the largest one may be nothing but rounding: that of a bias before a norm is."""
ROUNDING = 16
"""Gradients of less than so many units in the last place of the largest one are rounding errors."""


def require_same_gradients(pair: Pair, run: Run, exact: bool) -> None:
    """Refuses a module that does not train a parameter that the model trains, or (exact) trains it otherwise.

    Raises:
        SelfCheckFailed: With the line that reads the parameter.
    """
    try:
        with adding(run.adding):
            expected = gradients(run.reference, run.expected)
    except RuntimeError:
        return  # the model overwrites in place what autograd needs: it cannot be trained as it is, and so not compared
    with adding(run.adding):  # what runs again for its gradient has the values that it had
        found = gradients(run.converted, run.found)
    report, rule = pair.report, rule_of(pair.settings)
    largest = max((float(gradient.norm()) for gradient in expected.values() if gradient is not None), default=0.0)
    dtypes = dtypes_of(pair.program)
    for name, gradient in expected.items():
        other = found.get(name)
        if gradient is None or not bool(gradient.any()) or not bool(gradient.isfinite().all()):
            continue
        if float(gradient.norm()) <= ROUNDING * torch.finfo(gradient.dtype).eps * largest:
            continue  # nothing but rounding: a bias before a normalisation that subtracts it again
        explained = report.parameters[name].status == "frozen" and bool(report.parameters[name].reason)
        if other is None or not bool(other.any()):
            if rule.has_flat_parts() and (other is not None or explained):
                continue  # a rate curve has flat parts
            raise failed_parameter(pair.program, name, "gets no gradient, though the model trains it")
        if exact and float((other - gradient).norm()) > tolerated(gradient, dtypes, largest):
            raise failed_parameter(pair.program, name, "gets another gradient than the model gives it")


def dtypes_of(program: StepProgram) -> set[torch.dtype]:
    """Returns the floating-point types that the step computes in."""
    values = (node.meta.get("val") for node in program.step.graph.nodes)
    return {value.dtype for value in values if isinstance(value, Tensor) and value.is_floating_point()}


def tolerated(gradient: Tensor, dtypes: set[torch.dtype], largest: float) -> float:
    """Returns the error that rounding may make in a gradient, one that cancels (a bias before a norm) included.

    It is that of the coarsest type which the step computes in. Under autocast the model's own gradients are those of
    half precision, which say little at this length.
    """
    if torch.is_autocast_enabled(gradient.device.type):
        return float("inf")
    coarsest = max({gradient.dtype, *dtypes}, key=lambda each: torch.finfo(each).eps)
    return TOLERANCE[coarsest] * max(float(gradient.norm()), CANCELS * largest)


def gradients(module: nn.Module, results: list[Any]) -> dict[str, Tensor | None]:
    """Returns the gradients of a fixed weighted sum of all results; empty where nothing can be learnt."""
    learning = [leaf for leaf in results if isinstance(leaf, Tensor) and leaf.requires_grad]
    named = {name: value for name, value in module.named_parameters() if value.requires_grad}
    if not learning or not named:
        return {}
    terms = []
    for leaf in learning:
        weights = torch.arange(leaf.numel(), device=leaf.device).mul(0.7).cos().add(0.3)
        terms.append((leaf * weights.to(leaf.dtype).reshape(leaf.shape)).sum())
    found = torch.autograd.grad(torch.stack(terms).sum(), list(named.values()), allow_unused=True)
    return dict(zip(named, found, strict=True))


def failed_parameter(program: StepProgram, name: str, how: str) -> SelfCheckFailed:
    """Makes the error for a parameter; names the layer that holds it."""
    node = next((each for each in program.step.graph.nodes if reads(program, each, name)), None)
    return SelfCheckFailed(
        f"On the example the parameter {name} {how}; it belongs to {layer_of(program, node)}.",
        "Write what is computed with it in another way, as one expression of the step, or leave it out of training "
        "with requires_grad_(False).",
        line_of(node),
    )


def reads(program: StepProgram, node: fx.Node, name: str) -> bool:
    """Tells whether a node is, or is computed with, a parameter."""
    if node.op == "get_attr":
        return str(node.target) == name
    return node.op == "call_module" and name.rpartition(".")[0] == str(node.target)
