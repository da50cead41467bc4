"""What acts on every element by itself: arithmetic, comparisons, activations, copies and casts."""

from __future__ import annotations

from torch import nn

from tracecompile.operations.facts import Fact, Operation, alike

_EACH = Fact.ELEMENTWISE
_COMPARED = _EACH | Fact.COMPARES | Fact.THRESHOLD
_ROUNDED = _EACH | Fact.ROUNDS
_COPY = _EACH | Fact.COPIES | Fact.LINEAR
_CAST = _EACH | Fact.CASTS | Fact.LINEAR

ARITHMETIC = (
    Operation(name="add", facts=_EACH | Fact.LINEAR | Fact.WHOLE, symbol="add"),
    Operation(name="sub", facts=_EACH | Fact.LINEAR | Fact.WHOLE, symbol="sub", also=("subtract",)),
    Operation(name="rsub", facts=_EACH | Fact.LINEAR),
    Operation(name="mul", facts=_EACH | Fact.PRODUCT | Fact.WHOLE, symbol="mul", also=("multiply",)),
    Operation(
        name="div",
        facts=_EACH | Fact.QUOTIENT | Fact.TAKES_SIZE,
        symbol="truediv",
        old_symbols=("div",),
        also=("true_divide", "divide"),
    ),
    Operation(name="neg", facts=_EACH | Fact.LINEAR, symbol="neg", also=("negative",)),
    Operation(name="positive", facts=_COPY, symbol="pos"),
    Operation(name="floor_divide", facts=_ROUNDED | Fact.WHOLE, symbol="floordiv"),
    Operation(name="remainder", facts=_EACH | Fact.WHOLE, symbol="mod"),
    Operation(name="pow", facts=_EACH, symbol="pow"),
    Operation(name="abs", facts=_EACH, symbol="abs", also=("absolute",)),
    *alike("square sqrt rsqrt reciprocal exp expm1 log log1p sin cos erf erfc logit sinc fmod lerp", _EACH),
    *alike("addcmul addcdiv nan_to_num masked_fill where", _EACH),
    Operation(name="atan", facts=_EACH, also=("arctan",)),
    Operation(name="clamp", facts=_EACH, also=("clip",)),
    *alike("clamp_min clamp_max maximum minimum", _EACH),
)

COMPARISONS = (
    Operation(name="gt", facts=_COMPARED, symbol="gt", also=("greater",)),
    Operation(name="ge", facts=_COMPARED, symbol="ge", also=("greater_equal",)),
    Operation(name="lt", facts=_COMPARED, symbol="lt", also=("less",)),
    Operation(name="le", facts=_COMPARED, symbol="le", also=("less_equal",)),
    Operation(name="eq", facts=_COMPARED, symbol="eq"),
    Operation(name="ne", facts=_COMPARED, symbol="ne", also=("not_equal",)),
    *alike("heaviside sign sgn", _EACH | Fact.THRESHOLD),
    *alike("floor ceil round", _ROUNDED),
    Operation(name="trunc", facts=_ROUNDED, also=("fix",)),
    *alike("logical_and logical_or logical_not logical_xor", _EACH),
    Operation(name="bitwise_and", facts=_EACH, symbol="and_"),
    Operation(name="bitwise_or", facts=_EACH, symbol="or_"),
    Operation(name="bitwise_xor", facts=_EACH, symbol="xor"),
    Operation(name="bitwise_not", facts=_EACH, symbol="invert"),
    Operation(name="bitwise_left_shift", facts=_EACH, symbol="lshift"),
    Operation(name="bitwise_right_shift", facts=_EACH, symbol="rshift"),
)

ACTIVATIONS = (
    Operation(name="relu", facts=_EACH, modules=(nn.ReLU,)),
    Operation(name="sigmoid", facts=_EACH, modules=(nn.Sigmoid,)),
    Operation(name="tanh", facts=_EACH, modules=(nn.Tanh,)),
    Operation(name="leaky_relu", facts=_EACH, modules=(nn.LeakyReLU,)),
    Operation(name="elu", facts=_EACH, modules=(nn.ELU,)),
    Operation(name="celu", facts=_EACH, modules=(nn.CELU,)),
    Operation(name="selu", facts=_EACH, modules=(nn.SELU,)),
    Operation(name="gelu", facts=_EACH, modules=(nn.GELU,)),
    Operation(name="silu", facts=_EACH, modules=(nn.SiLU,)),
    Operation(name="mish", facts=_EACH, modules=(nn.Mish,)),
    Operation(name="softplus", facts=_EACH, modules=(nn.Softplus,)),
    Operation(name="hardtanh", facts=_EACH, modules=(nn.Hardtanh,)),
    Operation(name="hardsigmoid", facts=_EACH, modules=(nn.Hardsigmoid,)),
    Operation(name="hardswish", facts=_EACH, modules=(nn.Hardswish,)),
    Operation(name="logsigmoid", facts=_EACH, modules=(nn.LogSigmoid,), aten=("log_sigmoid",)),
    Operation(name="relu6", facts=_EACH, modules=(nn.ReLU6,)),
    Operation(name="softsign", facts=_EACH, modules=(nn.Softsign,)),
    Operation(name="tanhshrink", facts=_EACH, modules=(nn.Tanhshrink,)),
    Operation(name="threshold", facts=_EACH, modules=(nn.Threshold,)),
)

COPIES = (
    Operation(name="clone", facts=_COPY, aten=("lift_fresh", "lift_fresh_copy")),
    Operation(name="contiguous", facts=_COPY),
    Operation(name="alias", facts=_COPY, modules=(nn.Identity,)),
    Operation(name="detach", facts=_EACH | Fact.DETACHES | Fact.LINEAR),
    Operation(name="copy", facts=_EACH | Fact.LINEAR),
    Operation(name="to", facts=_CAST, aten=("_to_copy",)),
    *alike("type type_as float double half bfloat16", _CAST),
    *alike("bool int long short char byte", _EACH | Fact.CASTS),
    Operation(name="expand", facts=_EACH | Fact.LINEAR | Fact.TAKES_SIZE, also=("broadcast_to",)),
    Operation(name="expand_as", facts=_EACH | Fact.LINEAR),
)

ELEMENTWISE = (*ARITHMETIC, *COMPARISONS, *ACTIVATIONS, *COPIES)
