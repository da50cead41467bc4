"""What the command line's arguments stand for: a TARGET's model, the tensors of --input, the file of --weights."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from tracecompile.errors import ConversionError
from tracecompile.kinds import first_line

EXAMPLE_STEPS, EXAMPLE_BATCH = 20, 2
"""Length and batch size of the random input of a NIR graph, which says its shape itself."""
FIRING_RATE = 0.3
"""Probability of a one in the random inputs that stand for a shape."""


class UsageError(ValueError):
    """The command line itself is wrong: exit code 2, the text on stderr."""


def is_artifact(target: str) -> bool:
    """Tells whether a TARGET is a folder, that is, something that ``tracecompile.save`` wrote."""
    return Path(target).is_dir()


def load_target(target: str, dt: float | None = None) -> tuple[nn.Module, ModuleType]:
    """Returns the model that ``package.module:name`` or ``path/file.py:name`` names, and the module it comes from.

    Args:
        target: ``name`` is a class or function that needs no arguments, or a model itself. A path that ends in
            ``.nir`` is a NIR graph.
        dt: Seconds per time step of a NIR graph.

    Raises:
        UsageError: The file, the module or the name does not exist, or calling it does not give an ``nn.Module``.
    """
    if target.endswith(".nir"):
        return _load_graph(Path(target), dt)
    if dt is not None:
        raise UsageError("--dt is the time step of a NIR graph: the target has to be a file that ends in .nir.")
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise UsageError(f"{target!r} is no target: write package.module:factory or path/to/file.py:factory.")
    module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise UsageError(f"{place} has no {name!r}.")
        found = getattr(found, part)
    if not isinstance(found, nn.Module):
        found = _call(found, target)
    if not isinstance(found, nn.Module):
        raise UsageError(f"{target} gives a {type(found).__name__}, not a torch.nn.Module.")
    return found, module


def _load_graph(path: Path, dt: float | None) -> tuple[nn.Module, ModuleType]:
    """Reads a NIR graph; its example inputs are sequences of spikes in the shape that the graph's input has."""
    from tracecompile.nir import load_nir
    from tracecompile.nir.network import TIME_STEP

    if not path.is_file():
        raise UsageError(f"There is no file {path}.")
    try:
        model = load_nir(path, TIME_STEP if dt is None else dt)
    except ConversionError:
        raise
    except Exception as error:
        raise UsageError(f"{path} cannot be read as a NIR graph: {type(error).__name__}: {error}") from error
    module = ModuleType("nir")
    if model.input_shape:
        shape = (EXAMPLE_STEPS, EXAMPLE_BATCH, *model.input_shape)
        module.example_inputs = lambda: random_inputs([shape])  # type: ignore[attr-defined]
    return model, module


def _call(factory: Any, target: str) -> Any:
    if not callable(factory):
        raise UsageError(f"{target} is a {type(factory).__name__}: name a class or a function that makes the model.")
    try:
        return factory()
    except ConversionError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"Calling {target} without arguments raised {type(error).__name__}: {error}") from error


def _import_module(name: str) -> ModuleType:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise UsageError(f"{name} cannot be imported: {type(error).__name__}: {error}") from error


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"There is no file {path}.")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    name = _free_name(path)
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None or specification.loader is None:
        raise UsageError(f"{path} is not a Python file.")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # where pickle and dataclasses look for it
    try:
        specification.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a script may end the program at its end
        del sys.modules[name]
        raise UsageError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def _free_name(path: Path) -> str:
    """Returns the name of a file's module: its stem, with underscores where another module has that name already."""
    name = path.stem
    while name in sys.modules and getattr(sys.modules[name], "__file__", None) != str(path):
        name += "_"
    return name


def parse_shapes(text: str) -> list[tuple[int, ...]]:
    """Reads ``100x32x40`` or, for several inputs, ``100x32x40,32x4``.

    Raises:
        UsageError: Something else is written, or a size is not positive.
    """
    shapes = []
    for part in text.split(","):
        sizes = part.strip().lower().split("x")
        if not all(size.isdecimal() and int(size) > 0 for size in sizes):
            raise UsageError(f"--input {text!r} is no shape: write it like 100x32x40, several separated by commas.")
        shapes.append(tuple(int(size) for size in sizes))
    return shapes


def random_inputs(shapes: list[tuple[int, ...]], seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Returns spikes (float32, ones with probability ``FIRING_RATE``) of the given shapes, the same for one seed."""
    generator = torch.Generator().manual_seed(seed)
    return tuple((torch.rand(shape, generator=generator) < FIRING_RATE).float() for shape in shapes)


def choose_inputs(shape: str | None, module: ModuleType, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Returns the example inputs: those of ``--input``, else what ``example_inputs()`` in the target's module returns.

    Raises:
        UsageError: There is neither, or ``example_inputs`` does not return tensors.
    """
    if shape is not None:
        shapes = parse_shapes(shape)
        try:
            return random_inputs(shapes, seed)
        except (RuntimeError, OverflowError, TypeError) as error:
            raise UsageError(f"There is no tensor for --input {shape}: {first_line(error)}.") from error
    make = getattr(module, "example_inputs", None)
    if make is None:
        raise UsageError(
            "The shape of the model's input is not known: give it, like --input 100x32x40 (time x batch x features), "
            "or define a function example_inputs() next to the model."
        )
    made = _call(make, f"{module.__name__}:example_inputs")
    tensors = (made,) if isinstance(made, torch.Tensor) else made
    if not isinstance(tensors, (tuple, list)) or not all(isinstance(value, torch.Tensor) for value in tensors):
        raise UsageError("example_inputs() must return a tensor or a tuple of tensors.")
    return tuple(tensors)


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads a safetensors file (by its suffix) or a state dict written by ``torch.save`` into a model.

    Raises:
        UsageError: The file is missing, unreadable, or does not fit the model.
    """
    if not path.is_file():
        raise UsageError(f"There is no file {path}.")
    try:
        model.load_state_dict(_read_state(path))
    except Exception as error:
        raise UsageError(f"{path} does not fit the model: {type(error).__name__}: {error}") from error


def _read_state(path: Path) -> Mapping[str, Any]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    state: Any = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, Mapping):
        raise UsageError(f"it holds a {type(state).__name__}, not a state dict")
    return state
