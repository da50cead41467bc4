"""Sums that are added up in one order, whatever the number of rows: what tells rounding from a fault.

Torch chooses the order of the additions in a product by its size and by the processor. A model that multiplies a whole
sequence at once and a module that does so step by step then differ in the last places, and a spike whose membrane is
there may be another one, with all that follows from it. No tolerance tells that from a fault. Here every element of a
product is made by the same additions, one after the other, however many rows there are: two runs in which the same is
computed are the same bit for bit, and two that differ compute something else.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import IntEnum
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tracecompile.capture.layerwise.running import rounds_alike

aten = torch.ops.aten
LARGE = 2**20
"""A row of more multiplications is left to torch, on its own: a call of one size adds up in one order."""
_WIDE = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


class AddedInOrder(TorchDispatchMode):
    """Computes the products and sums of floating-point numbers in one order while it is entered.

    What is no sum of many numbers is computed as ever, and so are derivatives other than products, and operations that
    normalise, whose sums are those of one sample.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation."""
        in_order = IN_ORDER.get(func)
        if in_order is None or not args[0].is_floating_point():
            return func(*args, **(kwargs or {}))
        return in_order(*args, **(kwargs or {}))


class OfOwnMemory(TorchDispatchMode):
    """Computes products and sums of copies while it is entered, each of which begins where memory does.

    Some processors add up in another order where an operand lies elsewhere: the third step of a stacked sequence, say,
    where the module has that step as a tensor of its own.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation."""
        if func in IN_ORDER and args[0].is_floating_point():
            args = [value.clone() if isinstance(value, Tensor) else value for value in args]
        return func(*args, **(kwargs or {}))


class Adding(IntEnum):
    """How products and sums are added up: as ever, in one order, or as ever of operands in memory of their own."""

    AS_EVER = 0
    IN_ORDER = 1
    OF_OWN_MEMORY = 2


def adding(how: int) -> AbstractContextManager[object]:
    """Returns a context in which sums are added up as one of ``Adding`` says."""
    if how == Adding.OF_OWN_MEMORY:
        return OfOwnMemory()
    return AddedInOrder() if how else nullcontext()


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Returns ``left @ right``, of matrices or of batches of them."""
    if left.shape[-1] * right.shape[-1] > LARGE:
        return _row_by_row(left, right)
    total = _nothing(left, (*left.shape[:-1], right.shape[-1]))
    for k in range(left.shape[-1]):
        total += left[..., k, None].to(total.dtype) * right[..., k, None, :].to(total.dtype)
    return total.to(left.dtype)


def _row_by_row(left: Tensor, right: Tensor) -> Tensor:
    if left.dim() == 3:
        return torch.stack([_row_by_row(*each) for each in zip(left, right.contiguous(), strict=True)])
    return torch.cat([_own(row) @ right for row in left.split(1)])


def _onto(start: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    product = _product(left, right)
    product = product if alpha == 1 else product * alpha
    return product if beta == 0 else product + (start if beta == 1 else start * beta)


def _vector_product(left: Tensor, right: Tensor) -> Tensor:
    return _product(left, right[:, None])[:, 0]


def _onto_vector(start: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return _onto(start.reshape(-1, 1), left, right[:, None], beta=beta, alpha=alpha)[:, 0]


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return _product(left[None], right[:, None])[0, 0]


def _three(one: Tensor, two: Tensor, three: Tensor, *rest: Any) -> Tensor:
    """Returns the sum of products of three, each with axes that it lacks: what a bilinear layer is made of."""
    *added, summed = rest[:4]
    for axes, place in zip(added, range(3), strict=True):
        for axis in axes:
            one, two, three = (x.unsqueeze(axis) if k == place else x for k, x in enumerate((one, two, three)))
    return _sum(one * two * three, summed) if summed else one * two * three


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor:
    # As many places as the input has, about: whether it is large does not depend on the batch.
    if weight.numel() * x.shape[2:].numel() > LARGE:
        others = (weight, bias, stride, padding, dilation, transposed, output_padding, groups)
        return torch.cat([aten.convolution.default(_own(sample), *others) for sample in x.split(1)])
    reach = [apart * (size - 1) + 1 for apart, size in zip(dilation, weight.shape[2:], strict=True)]
    x, kernel = x.unflatten(1, (groups, -1)), weight.unflatten(0, (groups, -1))
    if transposed:
        far = map(sum, zip(reach, output_padding, strict=True))
        made = [(size - 1) * step + more for size, step, more in zip(x.shape[3:], stride, far, strict=True)]
        whole = _spread(x, kernel, made, stride, dilation).flatten(1, 2)
        inner = [slice(pad, size - pad) for pad, size in zip(padding, made, strict=True)]
        result = whole[_at(..., *inner)].contiguous()
    else:
        x = F.pad(x, [each for pad in reversed(list(padding)) for each in (pad, pad)])
        made = [(size - far) // step + 1 for size, step, far in zip(x.shape[3:], stride, reach, strict=True)]
        result = _gathered(x, kernel, made, stride, dilation).flatten(1, 2)
    return result if bias is None else result + bias[_at(slice(None), *(None for _ in made))]


def _gathered(x: Tensor, kernel: Tensor, made: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """Adds up what every place of a kernel sees of every channel, one after the other; groups are on axis 1 and 0."""
    total = _nothing(x, (len(x), *kernel.shape[:2], *made))
    for channel, (place, window) in itertools.product(range(x.shape[2]), _windows(kernel, made, stride, dilation)):
        one = kernel[_at(slice(None), slice(None), channel, *place, *(None for _ in made))]
        total += x[_at(slice(None), slice(None), channel, None, *window)].to(total.dtype) * one.to(total.dtype)
    return total.to(x.dtype)


def _spread(x: Tensor, kernel: Tensor, made: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """Adds to every place that a kernel reaches what every channel gives there, one after the other."""
    total = _nothing(x, (len(x), x.shape[1], kernel.shape[2], *made))
    for channel, (place, window) in itertools.product(
        range(x.shape[2]), _windows(kernel, x.shape[3:], stride, dilation)
    ):
        one = kernel[_at(slice(None), channel, slice(None), *place, *(None for _ in made))]
        total[_at(..., *window)] += x[:, :, channel, None].to(total.dtype) * one.to(total.dtype)
    return total.to(x.dtype)


def _windows(
    kernel: Tensor, sizes: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
    """Yields every place of a kernel with what it sees, or reaches, of the axes behind batch and channels."""
    for place in itertools.product(*map(range, kernel.shape[3:])):
        moved = zip(place, dilation, sizes, stride, strict=True)
        yield (
            place,
            tuple(slice(at * apart, at * apart + (size - 1) * step + 1, step) for at, apart, size, step in moved),
        )


def _at(*index: Any) -> Any:
    return index


def _sum(x: Tensor, dim: Sequence[int] | None = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """Adds the second half to the first until there is one: the order is that of how many are added, and no other."""
    axes = sorted({axis % max(x.dim(), 1) for axis in dim or range(x.dim())})
    kept = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
    result = dtype or x.dtype
    rest = x.to(_WIDE.get(result, result)).movedim(axes, list(range(len(axes))))
    rest = rest.flatten(0, len(axes) - 1) if axes else rest[None]
    while len(rest) > 1:
        half = len(rest) // 2
        rest = torch.cat([rest[:half] + rest[half : 2 * half], rest[2 * half :]])
    total = rest.sum(0) if len(rest) == 0 else rest[0]
    total = total.to(result)
    return total.reshape(kept) if keepdim else total.clone()


def _mean(x: Tensor, dim: Sequence[int] | None = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    total = _sum(x, dim, keepdim, dtype=dtype)
    return total / (x.numel() / max(total.numel(), 1))


def _running_sum(x: Tensor, dim: int, *, dtype: Any = None) -> Tensor:
    if rounds_alike(x):
        result: Tensor = aten.cumsum.default(x, dim, dtype=dtype)
        return result
    parts = x.to(dtype or x.dtype).unbind(dim)
    return torch.stack(list(itertools.accumulate(parts)), dim) if parts else x.to(dtype or x.dtype)


def _own(part: Tensor) -> Tensor:
    """Returns a copy that begins where memory does: what torch makes of it does not depend on what it was cut from."""
    return part.clone(memory_format=torch.contiguous_format)


def _nothing(like: Tensor, shape: Sequence[int]) -> Tensor:
    return like.new_zeros(shape, dtype=_WIDE.get(like.dtype, like.dtype))


IN_ORDER: dict[Any, Callable[..., Tensor]] = {
    aten.mm.default: _product,
    aten.bmm.default: _product,
    aten.addmm.default: _onto,
    aten.baddbmm.default: _onto,
    aten.mv.default: _vector_product,
    aten.addmv.default: _onto_vector,
    aten.dot.default: _dot,
    aten._trilinear.default: _three,
    aten.convolution.default: _convolution,
    aten.sum.default: _sum,
    aten.sum.dim_IntList: _sum,
    aten.mean.default: _mean,
    aten.mean.dim: _mean,
    aten.cumsum.default: _running_sum,
}
"""What is added up in order, by operator."""
