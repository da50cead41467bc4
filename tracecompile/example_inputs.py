"""The tensors that ``--input`` of the command line stands for: shapes, files of arrays, functions that make them."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from tracecompile.kinds import first_line
from tracecompile.targets import UsageError, call, find, random_inputs

ARRAYS = (".npy", ".npz")


def choose_inputs(text: str | None, module: ModuleType, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Returns the example inputs: those of ``--input``, else what ``example_inputs()`` in the target's module returns.

    Args:
        text: ``100x32x40``: spikes of that shape. ``file.npy``, ``file.npz``: its arrays in their order, numbers with a
            fraction as torch's default dtype. ``module:function``, ``file.py:function``: what it returns. Several of
            these, separated by commas: one after the other.
        module: The module that the model comes from.
        seed: Of spikes.

    Raises:
        UsageError: There is nothing of this, or it gives no tensors.
    """
    if text is not None:
        found: list[torch.Tensor] = []
        for number, part in enumerate(text.split(",")):
            found += _inputs(part.strip(), seed + number)
        return tuple(found)
    make = getattr(module, "example_inputs", None)
    if make is None:
        raise UsageError(
            "The shape of the model's input is not known: give it, like --input 100x32x40 (time x batch x features), "
            "or define a function example_inputs() next to the model."
        )
    return _tensors(call(make, f"{module.__name__}:example_inputs"), "example_inputs()")


def _inputs(part: str, seed: int) -> tuple[torch.Tensor, ...]:
    if part.lower().endswith(ARRAYS):
        return _arrays(Path(part))
    if ":" in part:
        made, _ = find(part, "input", "function")
        return _tensors(call(made, part) if callable(made) else made, f"--input {part}")
    shape = parse_shape(part)
    try:
        return random_inputs([shape], seed)
    except (RuntimeError, OverflowError, TypeError) as error:
        raise UsageError(f"There is no tensor for --input {part}: {first_line(error)}.") from error


def parse_shape(text: str) -> tuple[int, ...]:
    """Reads ``100x32x40``.

    Raises:
        UsageError: Something else is written, or a size is not positive.
    """
    sizes = text.lower().split("x")
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise UsageError(
            f"--input {text!r} is no shape: write it like 100x32x40 (several separated by commas), or name a file of "
            "arrays (x.npy, x.npz) or a function (file.py:function)."
        )
    return tuple(int(size) for size in sizes)


def _arrays(path: Path) -> tuple[torch.Tensor, ...]:
    if not path.is_file():
        raise UsageError(f"There is no file {path}.")
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)  # a file of objects would run the code that it names
            arrays = [found] if isinstance(found, np.ndarray) else [found[name] for name in found.files]
        tensors = [torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape)) for array in arrays]
    except Exception as error:  # zipfile, zlib and numpy each raise their own
        raise UsageError(f"{path} cannot be read as arrays of numbers: {first_line(error)}") from error
    if not tensors:
        raise UsageError(f"{path} holds no array.")
    default = torch.get_default_dtype()
    return tuple(value.to(default) if value.is_floating_point() else value for value in tensors)


def _tensors(made: Any, name: str) -> tuple[torch.Tensor, ...]:
    tensors = (made,) if isinstance(made, torch.Tensor) else made
    if not isinstance(tensors, (tuple, list)) or not all(isinstance(value, torch.Tensor) for value in tensors):
        raise UsageError(f"{name} must return a tensor or a tuple of tensors.")
    return tuple(tensors)
