"""What a TARGET of the command line stands for: a model, or a folder that was saved."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from tracecompile.errors import ConversionError

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
    found, module = find(target, "target", "factory")
    if not isinstance(found, nn.Module):
        found = call(found, target)
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


def find(text: str, what: str, wanted: str) -> tuple[Any, ModuleType]:
    """Returns what ``package.module:name`` or ``path/file.py:name`` names, and the module that it was found in.

    Args:
        text: What is written.
        what: What it should be, for the error.
        wanted: What stands for the name there.

    Raises:
        UsageError: The file, the module or the name does not exist.
    """
    place, colon, name = text.rpartition(":")
    if not colon or not place or not name:
        raise UsageError(f"{text!r} is no {what}: write package.module:{wanted} or path/to/file.py:{wanted}.")
    module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise UsageError(f"{place} has no {name!r}.{_near(part, found)}")
        found = getattr(found, part)
    return found, module


def _near(name: str, owner: Any) -> str:
    close = get_close_matches(name, [each for each in dir(owner) if not each.startswith("_")], n=1)
    return f" Did you mean {close[0]}?" if close else ""


def call(factory: Any, target: str) -> Any:
    """Returns what a function or class without arguments makes.

    Raises:
        UsageError: It is neither, or it raises.
    """
    if not callable(factory):
        raise UsageError(f"{target} is a {type(factory).__name__}: name a class or a function that makes the model.")
    try:
        return factory()
    except ConversionError:
        raise
    except (Exception, SystemExit) as error:
        more = ""
        if isinstance(error, TypeError) and "required" in str(error):
            more = ". Name a function of your own that makes the model with its arguments, as file.py:function."
        raise UsageError(f"Calling {target} without arguments raised {type(error).__name__}: {error}{more}") from error


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


def random_inputs(shapes: list[tuple[int, ...]], seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Returns spikes (float32, ones with probability ``FIRING_RATE``) of the given shapes, the same for one seed."""
    generator = torch.Generator().manual_seed(seed)
    return tuple((torch.rand(shape, generator=generator) < FIRING_RATE).float() for shape in shapes)
