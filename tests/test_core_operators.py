"""torch's core operators in the step of a small spiking model: each is converted right, or refused at its line."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.oracle import HIDDEN, spike
from torch import Tensor, nn

import tracecompile

aten = torch.ops.aten
Call = Callable[[Any, Tensor, Tensor], Any]
"""(operator, membrane, current) -> what it returns for them."""


def unary(op: Any, v: Tensor, i: Tensor) -> Any:
    return op(v)


def of_share(op: Any, v: Tensor, i: Tensor) -> Any:
    return op(0.1 + 0.8 * torch.sigmoid(v))


def binary(op: Any, v: Tensor, i: Tensor) -> Any:
    return op(v, i)


def by_number(op: Any, v: Tensor, i: Tensor) -> Any:
    return op(v, 0.5)


def of_truths(op: Any, v: Tensor, i: Tensor) -> Any:
    return op(v > 0.3, i > 0.1)


def of_truth(op: Any, v: Tensor, i: Tensor) -> Any:
    return op(v > 0.3, True)


def along(*args: Any) -> Call:
    return lambda op, v, i: op(v, *args)


def image(*args: Any) -> Call:
    return lambda op, v, i: op(v.view(-1, 1, 2, 5), *args)


def volume(*args: Any) -> Call:
    return lambda op, v, i: op(v.view(-1, 1, 1, 2, 5), *args)


def columns(v: Tensor) -> Tensor:
    return torch.arange(HIDDEN - 1, -1, -1).expand(v.shape[0], HIDDEN)


SAME: dict[Call, str] = {
    unary: """abs alias asinh atan clone ceil cos cosh elu erf exp expm1 floor gelu hardtanh isinf isnan leaky_relu
        logical_not neg relu round sigmoid sign sin sinh tanh trunc _to_copy any argmax argmin mean prod amax
        amin nonzero""",
    of_share: "acos asin atanh log log10 log1p log2 reciprocal rsqrt sqrt tan",
    lambda op, v, i: op(torch.sigmoid(v), 0.5): "pow.Tensor_Scalar",
    binary: """add.Tensor atan2 div.Tensor eq.Tensor fmod.Tensor ge.Tensor gt.Tensor le.Tensor logical_and
        logical_or logical_xor lt.Tensor maximum minimum mul.Tensor ne.Tensor remainder.Tensor sub.Tensor""",
    by_number: """add.Scalar div.Scalar eq.Scalar fmod.Scalar ge.Scalar gt.Scalar le.Scalar lt.Scalar mul.Scalar
        ne.Scalar remainder.Scalar sub.Scalar fill.Scalar full_like clamp""",
    of_truths: "bitwise_and.Tensor bitwise_or.Tensor bitwise_xor.Tensor",
    of_truth: "bitwise_and.Scalar bitwise_or.Scalar bitwise_xor.Scalar",
    along(1): "cumsum max.dim min.dim any.dim argmax prod.dim_int sort unsqueeze",
    along(1, False): "_softmax _log_softmax",
    along([1]): "flip sum.dim_IntList mean.dim amax amin any.dims var.correction var.dim",
    along([1, 0]): "permute",
    along([1, 2]): "repeat constant_pad_nd",
    along(1, 3): "select.int",
    along(1, 0, 5): "slice.Tensor",
    along([5, 5], 1): "split_with_sizes",
    along(3): "topk",
    along(): "diagonal",
    along([-1, 2, 5]): "view",
    image([2, 2]): "avg_pool2d max_pool2d_with_indices _adaptive_avg_pool2d",
    image([1, 1, 1, 1]): "replication_pad2d reflection_pad2d",
    image([4, 10], None): "upsample_nearest2d.vec",
    image([4, 10], False, None): "upsample_bilinear2d.vec",
    volume([1, 2, 2]): "avg_pool3d max_pool3d_with_indices _adaptive_avg_pool3d",
    volume([1, 1, 1, 1, 1, 1]): "replication_pad3d",
}
OTHERS: dict[str, Call] = {
    "acosh": lambda op, v, i: op(1.5 + torch.sigmoid(v)),
    "bitwise_not": lambda op, v, i: op(v > 0.3),
    "addmm": lambda op, v, i: op(v, i, torch.ones(HIDDEN, HIDDEN).to(v)),
    "mm": lambda op, v, i: op(v, torch.ones(HIDDEN, HIDDEN).to(v)),
    "bmm": lambda op, v, i: op(v.unsqueeze(1), i.unsqueeze(2)),
    "cat": lambda op, v, i: op([v, i], 1),
    "clamp.Tensor": lambda op, v, i: op(v, i - 1, i + 1),
    "div.Tensor_mode": lambda op, v, i: op(v, i, rounding_mode="floor"),
    "div.Scalar_mode": lambda op, v, i: op(v, 0.5, rounding_mode="trunc"),
    "pow.Scalar": lambda op, v, i: op(0.5, torch.sigmoid(v)),
    "pow.Tensor_Tensor": lambda op, v, i: op(0.5 + torch.sigmoid(v), torch.sigmoid(i)),
    "expand": lambda op, v, i: op(v[:, :1], [-1, HIDDEN]),
    "squeeze.dim": lambda op, v, i: op(v.unsqueeze(1), 1),
    "squeeze.dims": lambda op, v, i: op(v.unsqueeze(1), [1]),
    "where.self": lambda op, v, i: op(v > 0.5, 0.5 * v, i),
    "gather": lambda op, v, i: op(v, 1, columns(v)),
    "scatter.src": lambda op, v, i: op(v, 1, columns(v), i),
    "scatter.value": lambda op, v, i: op(v, 1, columns(v)[:, :3], 0.5),
    "scatter_add": lambda op, v, i: op(v, 1, columns(v), i),
    "scatter_reduce.two": lambda op, v, i: op(v, 1, columns(v), i, "amax"),
    "index_select": lambda op, v, i: op(v, 1, torch.tensor([3, 1])),
    "index.Tensor": lambda op, v, i: op(v, [None, torch.tensor([3, 1])]),
    "index_put": lambda op, v, i: op(v, [v > 0.8], torch.tensor(0.5).to(v)),
    "masked_scatter": lambda op, v, i: op(v, v > 0.8, i),
    "select_scatter": lambda op, v, i: op(v, i[:, 0], 1, 2),
    "slice_scatter": lambda op, v, i: op(v, i[:, :5], 1, 0, 5),
    "embedding": lambda op, v, i: op(torch.ones(HIDDEN, 4).to(v), v.argmax(1)),
    "convolution": lambda op, v, i: op(v.unsqueeze(1), torch.ones(2, 1, 3).to(v), None, [1], [1], [1], False, [0], 1),
    "native_layer_norm": lambda op, v, i: op(v, [HIDDEN], None, None, 1e-5),
    "native_group_norm": lambda op, v, i: op(v.unsqueeze(2), None, None, v.shape[0], HIDDEN, 1, 2, 1e-5),
    "reflection_pad1d": lambda op, v, i: op(v.unsqueeze(1), [2, 2]),
    "as_strided": lambda op, v, i: op(v, [HIDDEN], [1]),
    "full": lambda op, v, i: op([v.shape[0], HIDDEN], 0.5),
    "arange.start_step": lambda op, v, i: op(0, HIDDEN, 1),
    "scalar_tensor": lambda op, v, i: op(0.5),
    "rand": lambda op, v, i: op([HIDDEN]),
    "randn": lambda op, v, i: op([HIDDEN]),
    "randperm": lambda op, v, i: op(HIDDEN),
    "native_dropout": lambda op, v, i: op(v, 0.5, True),
    "_local_scalar_dense": lambda op, v, i: op(v.sum()),
}


def found(name: str) -> Any:
    """Returns a core operator by name; the first overload that is one, where the name leaves a choice."""
    packet, _, overload = name.partition(".")
    known = getattr(aten, packet, None)
    choices = (
        [] if known is None else [getattr(known, each) for each in ([overload] if overload else known.overloads())]
    )
    return next((each for each in choices if torch.Tag.core in each.tags), None)


CALLS: dict[str, tuple[Any, Call]] = {}
for _call, _names in SAME.items():
    CALLS.update({name: (found(name), _call) for name in _names.split() if found(name) is not None})
CALLS.update({name: (found(name), call) for name, call in OTHERS.items() if found(name) is not None})


_names_of_all = tuple(CALLS)
GROUPS = [_names_of_all[first : first + 6] for first in range(0, len(_names_of_all), 6)]


def as_share(result: Any, v: Tensor) -> Tensor:
    """Returns a bounded number per neuron, or one for several, of whatever an operator returns."""
    value = result[0] if isinstance(result, (tuple, list)) else result
    value = torch.as_tensor(value).to(v)
    if value.shape != v.shape:
        value = value.reshape(v.shape[0], -1).mean(1, keepdim=True) if value.shape[:1] == v.shape[:1] else value.mean()
    return torch.tanh(value)


class Operators(nn.Module):
    """A leaky layer whose membrane some operators move."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names
        self.inp = nn.Linear(6, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        v, outs = x.new_zeros(x.shape[1], HIDDEN), []
        for x_t in x:
            current = self.inp(x_t)
            v = 0.9 * v + current
            for name in self.names:
                op, call = CALLS[name]
                v = v + 0.1 * as_share(call(op, v, current), v)
            z = spike(v - 0.8)
            v = v - 0.8 * z
            outs.append(z + 0.1 * v)
        return torch.stack(outs)


def verdict(names: tuple[str, ...]) -> str | None:
    """Returns what is wrong with the net of a model, None where nothing is, or it is refused at its line."""
    torch.manual_seed(0)
    model = Operators(names).double()
    x = 2 * torch.randn(7, 3, 6, dtype=torch.float64)
    try:
        net = tracecompile.convert(model, (x[:5, :2],), backend="eager", bins=7)
        torch.manual_seed(1)  # some of them draw
        results = net(x)
    except tracecompile.ConversionError as refusal:
        at_line = "test_core_operators.py:" in str(refusal) and "fault of tracecompile" not in str(refusal)
        return None if at_line and len(names) == 1 else f"refused: {refusal}"
    torch.manual_seed(1)
    wanted = model(x)
    if not torch.equal(results, wanted):
        return "other values"
    weights = torch.linspace(-1, 1, wanted.numel(), dtype=torch.float64).reshape(wanted.shape)
    slopes = [torch.autograd.grad((weights * y * y).sum(), model.inp.weight)[0] for y in (wanted, results)]
    return (
        None if torch.allclose(*slopes, rtol=1e-9, atol=1e-10) else f"gradient off by {(slopes[0] - slopes[1]).norm()}"
    )


@pytest.mark.parametrize("names", GROUPS, ids=",".join)
def test_an_operator_in_the_step_is_right_or_refused(names: tuple[str, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            wrong = verdict(names)
        except Exception as fault:  # which of them, is said below
            wrong = repr(fault)
        if wrong is not None:
            faults = {name: verdict((name,)) for name in names}
            assert not any(faults.values()), faults


def test_most_core_operators_are_walked() -> None:
    core = {op for op, _ in CALLS.values()}
    assert len(core) > 130
