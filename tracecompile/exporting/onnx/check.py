"""An ONNX model compared with what it was made of, in onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tracecompile.errors import SelfCheckFailed
from tracecompile.exporting.onnx.write import Proto
from tracecompile.exporting.parts import Part
from tracecompile.exporting.trajectory import Run

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-1}
"""What a result may differ by, of the largest of its values or of 1."""
SHAKEN, SHAKES = 2e-6, 8
"""By what part of themselves arguments are changed to see which spikes hang on rounding, and how often."""


def compare(part: Part, model: Proto, runs: Sequence[Run]) -> int:
    """Compares a part with its ONNX model on some arguments.

    They have to be the same up to ``TOLERANCE``, so that every spike is the same. Where torch itself comes to another
    result once its arguments are changed by what rounding changes, such as at a threshold, either will do.

    Returns:
        The number of values that differ so.

    Raises:
        SelfCheckFailed: A value differs otherwise.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in part.takes]
    excused = 0
    for given, expected in runs:
        arrays = session.run(None, {name: value.numpy() for name, value in zip(names, given, strict=True)})
        found = [torch.from_numpy(array) for array in arrays]
        for place, (value, one, other) in enumerate(zip(part.returns, found, expected, strict=True)):
            if one.shape != other.shape or one.dtype != other.dtype:
                raise _differs(
                    part, value.name, f"{tuple(one.shape)} {one.dtype}", f"{tuple(other.shape)} {other.dtype}"
                )
            wrong = _apart(one, other)
            if wrong.any():
                wrong &= ~_hangs_on_rounding(part, given, other, place)
                if wrong.any():
                    raise _differs(part, value.name, one[wrong][0].item(), other[wrong][0].item())
                excused += int(_apart(one, other).sum())
    return excused


def _differs(part: Part, name: str, one: object, other: object) -> SelfCheckFailed:
    return SelfCheckFailed(
        f"In onnxruntime the {part.name} of the network returns {one} for {name} where torch returns {other}.",
        "This is a fault of the exporter: please report it, with the model.",
    )


def _apart(one: Tensor, other: Tensor) -> Tensor:
    """Tells which values differ by more than they may."""
    if not other.is_floating_point():
        return one != other
    same = (one == other) | (one.isnan() & other.isnan())
    scale = float(other.abs().nan_to_num(posinf=0.0).max().clamp(min=1.0))
    return ~same & ~((one - other).abs() <= TOLERANCE[other.dtype] * scale)


def _hangs_on_rounding(part: Part, given: Sequence[Tensor], expected: Tensor, place: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    found = torch.zeros(expected.shape, dtype=torch.bool)
    for _ in range(SHAKES):
        shaken: list[Any] = [
            value * (1 + SHAKEN * torch.randn(value.shape, generator=generator, dtype=value.dtype))
            if value.is_floating_point()
            else value
            for value in given
        ]
        with torch.no_grad():
            found |= _apart(part.module(*shaken)[place], expected)
    return found
