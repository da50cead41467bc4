"""``tracecompile check``: one training step of a model against the same step of its converted form."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from tracecompile.diagnostics.fidelity import GradientComparison, call_or_loop, compare_gradients
from tracecompile.diagnostics.held import count_held
from tracecompile.diagnostics.probe import probe
from tracecompile.errors import InvalidInput
from tracecompile.rules import rule_of
from tracecompile.runtime.module import TracedModule

REPETITIONS = 3


@dataclass(frozen=True)
class Cost:
    """What one training step (forward and backward) needs.

    Attributes:
        bytes: Bytes that are held between forward and backward, parameters and inputs not counted.
        seconds: Wall time of both.
    """

    bytes: int
    seconds: float


@dataclass(frozen=True)
class CheckResult:
    """Gradient fidelity, cost, and what a probe of the network advises; printing it gives all as text."""

    gradients: GradientComparison
    bptt: Cost
    converted: Cost
    advice: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns the result as plain JSON values."""
        gradients = self.gradients.to_dict()
        return {
            "parameters": gradients["rows"],
            "worst": gradients["worst"],
            "remarks": gradients["remarks"],
            "bptt": {"bytes": self.bptt.bytes, "seconds": self.bptt.seconds},
            "converted": {"bytes": self.converted.bytes, "seconds": self.converted.seconds},
            "advice": list(self.advice),
        }

    def __str__(self) -> str:
        lines = [str(self.gradients), "", f"{'one training step':<34}{'held for backward':>18}{'time':>12}"]
        for name, cost in (("backpropagation through time", self.bptt), ("converted", self.converted)):
            lines.append(f"{name:<34}{format_bytes(cost.bytes):>18}{cost.seconds * 1e3:>9.1f} ms")
        lines += ["", *(f"- {sentence}" for sentence in self.advice)] if self.advice else []
        return "\n".join(lines)


def check_model(model: nn.Module, net: TracedModule, inputs: tuple[torch.Tensor, ...], steps: int = 100) -> CheckResult:
    """Compares gradients, bytes held for backward and time; ``model`` and the gradients of ``net`` stay as they were.

    The loss is a fixed random projection of everything that the model returns, averaged over time and batch.

    Args:
        model: The model that was converted.
        net: Its converted form.
        inputs: The arguments of one call.
        steps: For a model that takes one step a call and keeps its state: how often the inputs are repeated.
    """
    program = net.program
    if program.explicit_states:
        raise InvalidInput(
            "check cannot tell which state comes first.", "Wrap the step in a module that loops over time."
        )
    sequence: Any = inputs if program.kind == "sequence" else [inputs] * steps
    gradients = compare_gradients(model, net, sequence, projection_loss)
    baseline = [measure_step(copy.deepcopy(model), sequence, projection_loss) for _ in range(REPETITIONS)]
    held = [parameter.grad for parameter in net.parameters()]
    converted = []
    for _ in range(REPETITIONS):
        net.reset()
        converted.append(measure_step(net, sequence, projection_loss))
    for parameter, gradient in zip(net.parameters(), held, strict=True):
        parameter.grad = gradient
    advice = probe(net, sequence).advice if rule_of(net.program.settings).reruns else ()
    return CheckResult(gradients, min(baseline, key=_seconds), min(converted, key=_seconds), advice)


def projection_loss(outputs: Any) -> torch.Tensor:
    """Returns the mean of every floating-point output, each feature (last axis) weighted by a fixed random number."""
    total = torch.zeros(())
    for leaf in tree_leaves(outputs):
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and leaf.ndim > 0:
            generator = torch.Generator().manual_seed(leaf.shape[-1])
            weights = torch.randn(leaf.shape[-1], generator=generator).to(leaf)
            total = total.to(leaf) + (leaf * weights).mean()
    return total


def measure_step(model: nn.Module, inputs: Any, loss_fn: Callable[[Any], torch.Tensor]) -> Cost:
    """Runs forward and backward once, without an update, and then forward once more to count what it leaves behind.

    The gradients of the model's parameters are None afterwards.

    Args:
        model: What to run.
        inputs: A tuple of arguments, or a list of them, one call each.
        loss_fn: Maps the result (a list of results) to a scalar.
    """
    model.zero_grad(set_to_none=True)
    start = time.perf_counter()
    loss_fn(call_or_loop(model, inputs)).backward()
    seconds = time.perf_counter() - start
    model.zero_grad(set_to_none=True)
    return Cost(count_held(lambda: loss_fn(call_or_loop(model, inputs))), seconds)


def _seconds(cost: Cost) -> float:
    return cost.seconds


def format_bytes(count: float) -> str:
    """Returns a number of bytes with a unit, like ``1.3 MB`` (powers of 1000)."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
