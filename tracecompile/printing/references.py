"""What a graph names: modules and tensors of the model, and what the program owns besides it."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import fx, nn

from tracecompile.capture.tracing.surrogates import SurrogateLeaf
from tracecompile.neuron_step import NeuronStep, OpaqueStep
from tracecompile.program import StepProgram
from tracecompile.rules.slopes import WithSlopes

MODEL = "model"


class References:
    """Finds for every target of a graph the expression that reads it.

    What is found in the model is a path in it, ``model.layers[0].weight``. All else is a constant of the program: an
    opaque surrogate function, a tensor that capture met outside the model, an operation with its slopes.

    Attributes:
        constants: The program's own values, by the names that the text gives them.
    """

    def __init__(self, program: StepProgram | None) -> None:
        self.program = program
        self.constants: dict[str, Any] = {}
        self.keys: dict[int, str] = {}

    def path(self, module: fx.GraphModule, target: str) -> str | None:
        """Returns the path in the model of what a target names, None for a constant."""
        program = self.program
        if program is None or target in program.leaves or target in program.constants:
            return None
        return path_in(program.root, target, _get(module, target))

    def key(self, value: Any) -> str | None:
        """Returns the key of a value that has one already."""
        return self.keys.get(id(value))

    def constant(self, value: Any, wanted: str) -> str:
        """Returns the key of a value that only a name can stand for."""
        if id(value) not in self.keys:
            key, number = wanted, 0
            while key in self.constants:
                number += 1
                key = f"{wanted}_{number}"
            self.constants[key] = value
            self.keys[id(value)] = key
        return self.keys[id(value)]

    def value(self, module: fx.GraphModule, target: str) -> Any:
        """Returns what a constant's target names."""
        own = self.program.constants.get(target) if self.program is not None else None
        return _get(module, target) if own is None else own


def path_in(root: nn.Module, target: str, wanted: Any = None) -> str | None:
    """Returns the expression that reads an attribute of the model by its dotted target, None where there is none.

    Args:
        root: The model.
        target: As ``named_modules`` and ``named_parameters`` write it.
        wanted: A module that capture or a pass has put there; None for anything.
    """
    text, value = MODEL, root
    for part in target.split("."):
        following = getattr(value, part, None)
        if following is None:
            return None
        text += f".{part}" if part.isidentifier() else _item(value, part, following)
        value = following
    # What the program made has a type of its own: its name in the program says nothing about the model.
    return text if wanted is None or type(value) is type(wanted) or not isinstance(wanted, nn.Module) else None


def _item(owner: Any, part: str, wanted: Any) -> str:
    """Returns how a child that is no attribute in Python's grammar is read."""
    try:
        if part.isdecimal() and owner[int(part)] is wanted:
            return f"[{int(part)}]"
    except (TypeError, IndexError, KeyError, NotImplementedError):
        pass
    key = json.dumps(part, ensure_ascii=False)
    return f"._modules[{key}]" if part in owner._modules else f".__getattr__({key})"


def _get(module: Any, target: str) -> Any:
    for part in target.split("."):
        module = getattr(module, part)
    return module


def described(value: Any) -> str:
    """Returns what a constant is, in a few words."""
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, SurrogateLeaf):
        return value.extra_repr()
    if isinstance(value, WithSlopes):
        operation = value.operation
        name = described(operation) if isinstance(operation, nn.Module) else getattr(operation, "__name__", operation)
        return f"value and slope of {name}"
    if isinstance(value, OpaqueStep):
        return f"{type(value.neuron).__name__}, one step"
    if isinstance(value, NeuronStep):
        return f"{type(value.step.neuron).__name__}, {value.extra_repr()}"
    return type(value).__name__ if isinstance(value, nn.Module) else getattr(value, "__name__", type(value).__name__)
