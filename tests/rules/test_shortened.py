"""What is left of traced operations computes what they do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from tracecompile.rules.shortened import shortened


def of_a_surrogate(x: Tensor) -> tuple[Tensor, ...]:
    return (x > 0.25).to(x.dtype), x.new_ones(()).expand_as(x) / x.abs().mul_(25.0).add_(1).square_()


def written_to(x: Tensor) -> tuple[Tensor, ...]:
    made = torch.zeros_like(x)
    made.view(-1)[0] = x.sum()
    return (made + x,)


def handed_out(x: Tensor) -> tuple[Tensor, ...]:
    return torch.ones_like(x), torch.zeros_like(x).unsqueeze(0)


def chosen(x: Tensor) -> tuple[Tensor, ...]:
    return (torch.where(x > 0, 2 * x, torch.full_like(x, 0.5)), x.expand(2, 3, 4))


FUNCTIONS = [of_a_surrogate, written_to, handed_out, chosen]


def operations(code: Callable[..., object]) -> list[fx.Node]:
    graph = code.func.__self__.graph  # type: ignore[attr-defined]
    return [node for node in graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_the_same_bit_for_bit(function: Callable[[Tensor], tuple[Tensor, ...]], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4, dtype=dtype)
    code = shortened(make_fx(function)(x), [x])
    for _ in range(3):
        again = torch.randn(3, 4, dtype=dtype)
        for found, expected in zip(code(again), function(again), strict=True):
            assert found.dtype == expected.dtype
            assert torch.equal(found, expected)
            found.fill_(7.0)  # and what is handed out is nobody else's


def test_what_reads_no_values_and_expansions_to_the_same_shape_are_left_out() -> None:
    x = torch.randn(3, 4)
    assert len(operations(shortened(make_fx(of_a_surrogate)(x), [x]))) == 7
    assert len(operations(shortened(make_fx(lambda x: (x.expand(3, 4) + 1,))(x), [x]))) == 1


def test_what_is_written_to_stays() -> None:
    x = torch.randn(3, 4)
    before = [node for node in make_fx(written_to)(x).graph.nodes if node.op == "call_function"]
    assert len(operations(shortened(make_fx(written_to)(x), [x]))) == len(before)
