"""The file of ``--weights``: tensors by name, read without running anything that the file names."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tracecompile.saving.place import WEIGHTS
from tracecompile.targets import UsageError

MISFITS = 3
"""How many of the weights that do not fit are named."""


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads a safetensors file (by its suffix) or a state dict written by ``torch.save`` into a model.

    Raises:
        UsageError: The file is missing, damaged, names code, or does not fit the model.
    """
    if path.is_dir():
        raise UsageError(
            f"{path} is a folder: --weights takes a file, as safetensors or a state dict; in a folder that convert -o "
            f"wrote it is {WEIGHTS}."
        )
    if not path.is_file():
        raise UsageError(f"There is no file {path}.")
    if not path.stat().st_size:
        raise UsageError(f"{path} is empty: give a file of weights, as torch.save(model.state_dict(), path) writes.")
    state = _safetensors(path) if path.suffix == ".safetensors" else _state_dict(path)
    try:
        model.load_state_dict(state)
    except Exception as error:
        first, *parts = [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
        text = " ".join(parts[:MISFITS]) or first
        more = f" And {len(parts) - MISFITS} more." if len(parts) > MISFITS else ""
        raise UsageError(f"{path} does not fit the model: {text}{more}") from error


def _safetensors(path: Path) -> Mapping[str, Any]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # its reader has an error of its own
        raise UsageError(f"{path} cannot be read as safetensors: {error}") from error


def _state_dict(path: Path) -> Mapping[str, Any]:
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|global|class|function) `?([\w.]+)`? ", str(error))
        what = f"names {named[1]}" if named else "is no file of tensors alone"
        raise UsageError(
            f"{path} {what}, and reading it might run code: nothing of it was run. Save the model's tensors alone, "
            "with torch.save(model.state_dict(), path) or as safetensors."
        ) from error
    except Exception as error:  # zipfile, pickle and torch each raise their own
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{path} cannot be read as a state dict of torch.save: {text}") from error
    if not isinstance(state, Mapping):
        raise UsageError(f"{path} does not fit the model: it holds a {type(state).__name__}, not a state dict.")
    inner = [key for key, value in state.items() if isinstance(value, Mapping)]
    if inner and not any(isinstance(value, torch.Tensor) for value in state.values()):
        raise UsageError(
            f"{path} does not fit the model: it is a checkpoint of {', '.join(map(str, state))}. Save the state dict "
            f"of the model by itself, such as torch.save(checkpoint[{inner[0]!r}], path)."
        )
    return state
