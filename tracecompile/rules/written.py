"""A function of tensors, autograd and all, written down in elementary operations and run as it is written.

What autograd does for one elementwise operation costs more than the operation. Within a sequence it does the same at
every step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from tracecompile.rules.shortened import shortened

ENOUGH = 16
"""Calls with arguments alike after which a function is written down, which takes some milliseconds."""

PLAIN = (Tensor, nn.Parameter, bool, int, float, str, type(None), torch.dtype)
"""Types of the arguments with which a function is written down; a tracer brings tensors of types of its own."""

Results = tuple[Tensor, ...]


class WrittenDown:
    """Calls a function, from some call on as it is written down.

    The first such call after every ``look_again`` is made both ways. Where the results differ (the slope of a surrogate
    was changed in the meantime), the function is written down anew; what cannot be written down faithfully (it looks at
    values, it draws random numbers) is called as ever.
    """

    def __init__(self, function: Callable[..., Results]) -> None:
        """Keeps the function; what it returns must have no graph."""
        self.function = function
        self._alike: tuple[Any, ...] = ()
        self._calls = 0
        self._code: Callable[..., Results] | None = None
        self._checked = self._refused = False

    def look_again(self) -> None:
        """Says that something may have changed that is not among the arguments."""
        self._checked = False

    def __call__(self, *args: Any) -> Results:
        """Returns what the function returns."""
        if not self._is_worth_it(args):
            return self.function(*args)
        tensors = [value for value in args if isinstance(value, Tensor)]
        if self._checked and self._code is not None:
            return self._code(*tensors)
        return self._both_ways(args, tensors)

    def _is_worth_it(self, args: tuple[Any, ...]) -> bool:
        if not all(type(value) in PLAIN for value in args):
            return False
        alike = tuple((v.shape, v.dtype, v.device, type(v)) if isinstance(v, Tensor) else v for v in args)
        if alike != self._alike:
            self._alike, self._calls, self._code = alike, 0, None
            self._checked = self._refused = False
        self._calls += 1
        return self._calls > ENOUGH and not self._refused and not torch.is_grad_enabled()

    def _both_ways(self, args: tuple[Any, ...], tensors: list[Tensor]) -> Results:
        expected = self.function(*args)
        candidates = _written(self.function, args, tensors)
        for code in candidates if self._code is None else itertools.chain([self._code], candidates):
            if _same(code(*tensors), expected):
                self._code, self._checked = code, True
                return expected
        self._code, self._refused = None, True
        return expected


def _written(
    function: Callable[..., Results], args: tuple[Any, ...], tensors: list[Tensor]
) -> Iterator[Callable[..., Results]]:
    """Yields a function as it is written down: without what can be left out, then as it was traced."""

    def of_tensors(*given: Tensor) -> Results:
        left = iter(given)
        return function(*(next(left) if isinstance(value, Tensor) else value for value in args))

    try:
        with torch.random.fork_rng(devices={value.device for value in tensors if value.is_cuda}):
            module = make_fx(of_tensors)(*tensors)
    except Exception:  # the user's own surrogate is run by a tracer here: anything may come out of it
        return
    if draws_random_numbers(module.graph):
        return
    _without_aliases(module.graph)
    module.recompile()
    yield shortened(module, tensors)
    yield module.forward


def draws_random_numbers(graph: fx.Graph) -> bool:
    """Tells whether a graph of elementary operations depends on a random generator."""
    targets = [node.target for node in graph.nodes if node.op == "call_function"]
    return any(torch.Tag.nondeterministic_seeded in getattr(target, "tags", ()) for target in targets)


def _without_aliases(graph: fx.Graph) -> None:
    """Drops what only gives a tensor another name (without a graph, detached means nothing) and the traced values."""
    for node in list(graph.nodes):
        node.meta.clear()
        if node.target is torch.ops.aten.detach.default:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _same(found: Results, expected: Results) -> bool:
    if [(value.dtype, value.shape) for value in found] != [(value.dtype, value.shape) for value in expected]:
        return False
    pairs = list(zip(found, expected, strict=True))
    if any(one.is_cuda for one, _ in pairs):
        return equal_at_once(pairs)
    return all(torch.equal(one, other) for one, other in pairs)


def equal_at_once(pairs: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """Tells whether tensors of the same shapes are equal, and waits for a device once, not once for each pair."""
    return bool(torch.stack([(one == other).all() for one, other in pairs]).all())


class Slopes(nn.Module):
    """Base of what returns values with their derivatives by autograd; between ``begin`` and ``end`` written down."""

    def __init__(self) -> None:
        """Stands outside of any sequence."""
        super().__init__()
        self._written = WrittenDown(self.by_autograd)
        self._in_sequence = False

    def begin(self, *, again: bool = True) -> None:
        """Says that a sequence begins, in which only the values of the arguments change; or that it goes on."""
        self._in_sequence = True
        if again:
            self._written.look_again()

    def end(self) -> None:
        """Says that it is over."""
        self._in_sequence = False

    def forward(self, *args: Any, **kwargs: Any) -> Results:
        """Returns the values, then their derivatives, without a graph."""
        if self._in_sequence and not kwargs:
            return self._written(*args)
        return self.by_autograd(*args, **kwargs)

    def by_autograd(self, *args: Any, **kwargs: Any) -> Results:
        """See ``forward``."""
        raise NotImplementedError


@contextmanager
def in_sequence(modules: Iterable[nn.Module], *, begins: bool = True) -> Iterator[None]:
    """Says to everything below some modules that its calls are the steps of one sequence.

    Args:
        modules: Where to look.
        begins: Whether that begins here, or goes on.
    """
    found = [part for module in modules for part in module.modules() if isinstance(part, Slopes)]
    for slopes in found:
        slopes.begin(again=begins)
    try:
        yield
    finally:
        for slopes in found:
            slopes.end()
