"""Normalisations by the statistics of all rows: heard while they run, and taken once more row by row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from tracecompile.analysis.norms import norm_arguments
from tracecompile.rules.accumulation import accumulator_dtype


@dataclass(frozen=True)
class Statistics:
    """What a normalisation has found.

    Attributes:
        mean: Of each channel, (C,).
        scale: One over the standard deviation of each channel, (C,).
        count: How many numbers of each channel there were.
    """

    mean: Tensor
    scale: Tensor
    count: int

    def normalised(self, x: Tensor) -> Tensor:
        """Returns (rows, C, ...) in the type that sums are taken in, each channel with mean zero and variance one."""
        precise = x.to(accumulator_dtype(x.dtype))
        return (precise - by_channel(self.mean, precise)) * by_channel(self.scale, precise)


class HeardNorms(TorchFunctionMode):
    """Hears what the normalisations of a prologue find while it runs without a graph; values are as without it.

    Where nobody else has what one of them takes, it writes over it: else two tensors as long as the sequence would be
    alive. Torch's operator on the CPU reads each number before it writes it: the values are the same bit for bit.

    Attributes:
        found: One after the other.
    """

    def __init__(self, may_write: Callable[[int], bool]) -> None:
        """Has heard nothing yet.

        Args:
            may_write: Tells whether a normalisation, by its number, may write over what it takes.
        """
        super().__init__()
        self.may_write = may_write
        self.found: list[Statistics] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls a function of torch; of a batch normalisation the statistics are noted."""
        given = dict(zip(_ORDERS.get(func, ()), args, strict=False)) | (kwargs or {})
        if func not in _ORDERS or not given.get("training", False):
            return func(*args, **(kwargs or {}))
        if func is functional.batch_norm:
            functional._verify_batch_size(given["input"].size())  # type: ignore[attr-defined]
        return self._normalised(**given)

    def _normalised(
        self,
        input: Tensor,  # noqa: A002, as torch calls it
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = True,
        momentum: float = 0.1,
        eps: float = 1e-5,
        cudnn_enabled: bool | None = None,
    ) -> Tensor:
        operands, value = (weight, bias, running_mean, running_var), input
        if input.device.type == "cpu" and self.may_write(len(self.found)):
            kind = next((each.dtype for each in operands if each is not None), input.dtype)
            mean, scale = (torch.empty(input.shape[1], dtype=kind) for _ in range(2))
            torch.native_batch_norm(input, *operands, True, momentum, eps, out=(input, mean, scale))
        else:
            fast = torch.backends.cudnn.enabled if cudnn_enabled is None else cudnn_enabled
            value, mean, scale, *_ = torch._batch_norm_impl_index(input, *operands, True, momentum, eps, fast)
        self.found.append(Statistics(mean.detach(), scale.detach(), input.numel() // input.shape[1]))
        return value


_ORDERS: dict[Any, tuple[str, ...]] = {
    functional.batch_norm: (
        *("input", "running_mean", "running_var", "weight", "bias"),
        *("training", "momentum", "eps"),
    ),
    torch.batch_norm: (
        *("input", "weight", "bias", "running_mean", "running_var"),
        *("training", "momentum", "eps", "cudnn_enabled"),
    ),
}
"""The names of their arguments in order."""


def by_channel(value: Tensor, x: Tensor) -> Tensor:
    """Returns (C,) such that it meets the channels of (rows, C, ...), in the type of those."""
    return value.to(x.dtype).reshape(1, -1, *([1] * (x.ndim - 2)))


def weighted(normalised: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Scales and shifts each channel of (rows, C, ...)."""
    scaled = normalised if weight is None else normalised * by_channel(weight, normalised)
    return scaled if bias is None else scaled + by_channel(bias, scaled)


def weights_of(
    norm: fx.Node, prologue: fx.GraphModule, stand_ins: Mapping[Tensor, Tensor], operands: Sequence[Any]
) -> tuple[Tensor | None, Tensor | None]:
    """Returns scale and shift of a normalisation: stand-ins for Parameters, or operands of the prologue."""
    if norm.op == "call_module":
        module: nn.Module = prologue.get_submodule(str(norm.target))
        own = (getattr(module, name, None) for name in ("weight", "bias"))
        weight, bias = (value if value is None else stand_ins.get(value, value) for value in own)
        return weight, bias
    placeholders = [node for node in prologue.graph.nodes if node.op == "placeholder"]
    given = norm_arguments(norm.target, norm.args, dict(norm.kwargs)) or {}
    nodes = (given.get(name) for name in ("weight", "bias"))
    weight, bias = (None if node is None else operands[placeholders.index(node)] for node in nodes)
    return weight, bias
