"""Writes the user's surrogate functions out: two graphs, one of the value and one of its gradient.

What was written (see ``tracecompile.saving.tracing``) is compared with the function, bit for bit, at other sizes and in
both precisions: what differs anywhere is not written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from tracecompile.capture.tracing.surrogates import SLOT, SurrogateLeaf
from tracecompile.errors import InvalidInput
from tracecompile.rules.formulas import Formula, Surrogate
from tracecompile.saving.tracing import by_elements, by_name

SIZES = ((3, 5), (7,), (2, 1, 4))
Graphs = tuple[fx.GraphModule, fx.GraphModule]


class _Context:
    """Stands for autograd's context: keeps what the function's forward leaves for its backward."""

    def __init__(self, tensors: int) -> None:
        self.saved_tensors: tuple[Any, ...] = ()
        self.needs_input_grad = (True,) * tensors

    def save_for_backward(self, *tensors: Any) -> None:
        """As autograd's."""
        self.saved_tensors = tensors

    def save_for_forward(self, *tensors: Any) -> None:
        """As autograd's."""

    def mark_dirty(self, *tensors: Any) -> None:
        """As autograd's."""
        raise NotImplementedError("a surrogate that writes into its argument")

    def mark_non_differentiable(self, *tensors: Any) -> None:
        """As autograd's."""

    def set_materialize_grads(self, value: bool) -> None:
        """As autograd's."""


def written_out(leaf: SurrogateLeaf) -> Graphs:
    """Returns the graphs of a surrogate function's value and gradient, see ``Surrogate``.

    Raises:
        InvalidInput: It cannot be written down faithfully.
    """
    if isinstance(leaf, Surrogate) and isinstance(leaf.value, fx.GraphModule):
        assert isinstance(leaf.gradient, fx.GraphModule)
        return leaf.value, leaf.gradient
    value, gradient = _parts(leaf)
    count = sum(kind == SLOT for kind, _ in leaf.template)
    names = ["v"] if count == 1 else [f"v_{place}" for place in range(count)]
    for write in (by_name, by_elements):
        try:
            graphs = write(value, names, SIZES[0]), write(gradient, [*names, "g"], SIZES[0])
            if all(_agree(leaf, graphs, given) for given in _examples(count)):
                return graphs
        except Exception:  # the user's own code is run by a tracer here: anything may come out of it
            continue
    function = leaf.function
    raise InvalidInput(
        f"The surrogate function {function.__qualname__} of {function.__module__} cannot be written out as a formula: "
        "it looks at values or sizes, draws random numbers, or calls what torch cannot trace.",
        "Write its forward and backward in operations on whole tensors.",
    )


def _parts(leaf: SurrogateLeaf) -> tuple[Formula, Formula]:
    """Returns the value and the gradient as functions of tensors alone."""
    function: Any = leaf.function
    count = sum(kind == SLOT for kind, _ in leaf.template)

    def forward(context: _Context, tensors: tuple[Any, ...]) -> Any:
        given = [tensors[value] if kind == SLOT else value for kind, value in leaf.template]
        if function.setup_context is torch.autograd.Function.setup_context:
            return function.forward(context, *given)
        value = function.forward(*given)
        function.setup_context(context, tuple(given), value)
        return value

    def value(*tensors: Any) -> Any:
        return forward(_Context(len(leaf.template)), tensors)

    def gradient(*given: Any) -> Any:
        context = _Context(len(leaf.template))
        forward(context, given[:count])
        found = function.backward(context, *given[count:])
        every = found if isinstance(found, tuple) else (found,)
        return tuple(each for (kind, _), each in zip(leaf.template, every, strict=False) if kind == SLOT)

    return value, gradient


def _examples(count: int) -> Iterator[list[Tensor]]:
    """Yields arguments on both sides of every threshold near zero and one, and on it."""
    generator = torch.Generator().manual_seed(0)
    for size in SIZES:
        for dtype in (torch.float32, torch.float64):
            given = [2 * torch.randn(size, generator=generator, dtype=dtype) for _ in range(count)]
            for value in given:
                value.view(-1)[0], value.view(-1)[1] = 0.0, 1.0
            yield given


def _agree(leaf: SurrogateLeaf, graphs: Graphs, given: list[Tensor]) -> bool:
    """Tells whether values and gradients are the same, bit for bit."""
    surrogate = Surrogate(leaf.function.__name__, len(given), *graphs)
    found = []
    for each in (leaf, surrogate):
        leaves = [value.clone().requires_grad_() for value in given]
        value = each(*leaves)
        weight = torch.linspace(-1, 2, value.numel(), dtype=value.dtype).reshape(value.shape)
        found.append((value, *torch.autograd.grad(value, leaves, weight, allow_unused=True)))
    return all(
        one is other
        if one is None or other is None
        else one.dtype == other.dtype and torch.equal(one.nan_to_num(7), other.nan_to_num(7))
        for one, other in zip(*found, strict=True)
    )
