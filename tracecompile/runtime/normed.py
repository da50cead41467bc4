"""Synapses with batch norms in training for many steps at once, the statistics those of every step by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tracecompile.analysis.folding import folded, is_hooked, runs_per_step, unfolded
from tracecompile.later import placed
from tracecompile.program import StepProgram
from tracecompile.rules.norm import mean_and_variance
from tracecompile.units import Unit

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def norms_by_step(unit: Unit, program: StepProgram, sources: Mapping[str, Tensor]) -> frozenset[str]:
    """Returns the targets of the batch norms for whose sake alone a unit would be computed step by step.

    None are returned, and steps have to be taken one by one, where anything else asks for that, where a norm is called
    twice a step, so that the order counts in which it moves its statistics, and in other precisions than the norm's.

    Args:
        unit: With a fold.
        program: Owner of the modules.
        sources: What changes over time, (steps, rows, ...) each.
    """
    assert unit.fold is not None
    calls = Counter(id(program.resolve(str(n.target))) for n in unit.below.graph.nodes if n.op == "call_module")
    found: set[str] = set()
    for target in unit.fold.modules:
        module = program.resolve(target)
        if type(module) in PLAIN and module.training and not is_hooked(module) and calls[id(module)] == 1:
            found.add(target)
        elif isinstance(module, nn.Module) and any(map(runs_per_step, module.modules())):
            return frozenset()
    if not found:
        return frozenset()
    own = [
        value
        for target in found
        for value in (*program.resolve(target).parameters(), *program.resolve(target).buffers())
    ]
    kinds = {value.dtype for value in (*sources.values(), *own) if value.is_floating_point()}
    rows = {value.shape[1] if value.ndim > 2 else None for value in sources.values()}
    device = next(iter(sources.values())).device.type
    alike = len(kinds) == 1 and kinds <= {torch.float32, torch.float64} and not torch.is_autocast_enabled(device)
    return frozenset(found) if alike and len(rows) == 1 and None not in rows else frozenset()


class OverSteps(fx.Interpreter):
    """Runs what is below a unit for steps side by side in the batch.

    Attributes:
        statistics: Mean and biased variance of what each norm was given, (steps, channels), by its node.
    """

    def __init__(self, below: nn.Module, graph: fx.Graph, norms: frozenset[str], steps: int) -> None:
        """Runs nothing yet.

        Args:
            below: Holds the modules that the graph calls.
            graph: Of the unit, see ``Unit.below``.
            norms: As ``norms_by_step`` returns them.
            steps: How many.
        """
        super().__init__(below, graph=graph)
        self.norms, self.steps = norms, steps
        self.statistics: dict[str, tuple[Tensor, Tensor]] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Runs a node; a norm by step."""
        if n.op != "call_module" or n.target not in self.norms:
            return super().run_node(n)
        (value,), _ = self.fetch_args_kwargs_from_env(n)
        norm: Any = self.fetch_attr(str(n.target))
        result, self.statistics[n.name] = normed_by_step(norm, value, self.steps)
        return result


def normed_by_step(norm: _BatchNorm, value: Tensor, steps: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Normalises every step by its own batch, and moves the running statistics as they would have been step by step.

    Args:
        norm: In training.
        value: Its input, (steps * rows, channels, ...).
        steps: How many.

    Returns:
        The result, and mean and biased variance of the input, (steps, channels).

    Raises:
        ValueError: As torch does, where there is a single value of each channel in a step.
    """
    rows = unfolded(value, steps)
    count = rows[0].numel() // rows.shape[2]
    if count == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {rows[0].size()}")
    mean, variance = mean_and_variance(rows, tuple(axis for axis in range(1, rows.ndim) if axis != 2))
    _move(norm, mean, variance * (count / (count - 1)))
    scale = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -mean * scale if norm.bias is None else norm.bias - mean * scale
    shape = (steps, 1, -1, *([1] * (rows.ndim - 3)))
    return folded(torch.addcmul(shift.reshape(shape), rows, scale.reshape(shape))), (mean, variance)


def _move(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Moves running statistics by those of some steps, (steps, channels) each, in their order."""
    if norm.running_mean is None or norm.running_var is None:
        return
    share = list(_shares(norm, len(mean)))
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.data.add_(len(mean))
    weights, left = [], 1.0
    for each in reversed(share):
        weights.append(each * left)
        left *= 1.0 - each
    of_steps = placed(weights[::-1], mean.dtype, mean.device)
    for running, values in ((norm.running_mean, mean), (norm.running_var, variance)):
        # Torch's own norm does not count a version either: a graph that has saved them is not spoilt by its move.
        running.data.mul_(left).add_(of_steps @ values)


def _shares(norm: _BatchNorm, steps: int) -> Sequence[float]:
    """Returns the share of each of the coming steps in the running statistics after it."""
    if norm.momentum is not None:
        return [norm.momentum] * steps
    before = 0 if norm.num_batches_tracked is None else int(norm.num_batches_tracked)
    return [1.0 / (before + number + 1) for number in range(steps)]
