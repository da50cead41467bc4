"""What lays numbers out, takes some of them, sums them, or asks for their sizes."""

from __future__ import annotations

from torch import nn

from tracecompile.operations.facts import Fact, Operation, Rows, alike

_LAID_OUT = Fact.LAYS_OUT | Fact.LINEAR
_PERMUTED = _LAID_OUT | Fact.PERMUTES
_JOINED = Fact.JOINS | Fact.LINEAR | Fact.TAKES_SIZE

LAYOUTS = (
    Operation(name="view", facts=_LAID_OUT | Fact.TAKES_SIZE, rows=Rows.SIZES),
    Operation(name="reshape", facts=_LAID_OUT | Fact.TAKES_SIZE, rows=Rows.SIZES),
    Operation(name="flatten", facts=_LAID_OUT, rows=Rows.NAMED_AXES, modules=(nn.Flatten,)),
    Operation(name="unflatten", facts=_LAID_OUT | Fact.TAKES_SIZE, rows=Rows.NAMED_AXES, modules=(nn.Unflatten,)),
    *alike("squeeze unsqueeze", _LAID_OUT, rows=Rows.NAMED_AXES),
    *alike("ravel view_as reshape_as", _LAID_OUT),
    Operation(name="permute", facts=_PERMUTED),
    Operation(name="transpose", facts=_PERMUTED, also=("swapaxes", "swapdims")),
    Operation(name="movedim", facts=_PERMUTED, also=("moveaxis",)),
    Operation(name="t", facts=_LAID_OUT, properties=("T",)),
    Operation(name="adjoint", facts=_LAID_OUT, properties=("mT", "mH", "H")),
)

PARTS = (
    Operation(name="getitem", facts=Fact.LINEAR | Fact.INDEXES, symbol="getitem", rows=Rows.INDEX),
    Operation(name="__setitem__", facts=Fact.INDEXES),
    Operation(name="select", facts=Fact.LINEAR | Fact.INDEXES | Fact.TAKES_SIZE, rows=Rows.NAMED_AXES),
    Operation(name="narrow", facts=Fact.LINEAR | Fact.INDEXES | Fact.TAKES_SIZE, rows=Rows.NAMED_AXES),
    *alike("chunk split", Fact.LINEAR | Fact.TAKES_SIZE),
    *alike("unbind index_select roll flip", Fact.LINEAR),
    *alike("repeat tile", Fact.LINEAR | Fact.TAKES_SIZE),
    Operation(name="real", facts=Fact.LINEAR, properties=("real",)),
    Operation(name="imag", facts=Fact.LINEAR, properties=("imag",)),
    Operation(name="cat", facts=_JOINED, also=("concat", "concatenate"), rows=Rows.NAMED_AXES),
    Operation(name="stack", facts=_JOINED, rows=Rows.NAMED_AXES),
    *alike("nonzero argwhere masked_select unique", Fact.SELECTS),
)

REDUCTIONS = (
    *alike("sum mean", Fact.LINEAR, rows=Rows.NAMED_AXES),
    *alike("amax amin", Fact.CHOOSES, rows=Rows.NAMED_AXES),
    Operation(name="softmax", facts=Fact(0), rows=Rows.NAMED_AXES, aten=("_softmax",), modules=(nn.Softmax,)),
    Operation(
        name="log_softmax", facts=Fact(0), rows=Rows.NAMED_AXES, aten=("_log_softmax",), modules=(nn.LogSoftmax,)
    ),
)

QUESTIONS = (
    Operation(name="size", facts=Fact.SIZE, properties=("shape",)),
    Operation(name="numel", facts=Fact.SIZE, also=("nelement",)),
    Operation(name="dim", facts=Fact.ASKS | Fact.SIZE, also=("ndimension",), properties=("ndim",)),
    *alike("stride storage_offset __repr__ __format__ __hash__ __deepcopy__", Fact.ASKS),
    Operation(
        name="item",
        facts=Fact.READS | Fact.ELEMENTWISE,
        also=("__float__", "__int__", "__index__", "__complex__"),
        aten=("_local_scalar_dense",),
    ),
    Operation(name="is_nonzero", facts=Fact.READS, also=("__bool__",)),
    Operation(name="numpy", facts=Fact.READS, also=("__array__",)),
    *alike("tolist equal allclose __contains__", Fact.READS),
)

ARRANGEMENT = (*LAYOUTS, *PARTS, *REDUCTIONS, *QUESTIONS)
