"""What several commands begin with: a model is named, loaded, and converted as the options say."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

import torch
from torch import nn

import tracecompile
from tracecompile.errors import InvalidInput
from tracecompile.example_inputs import choose_inputs
from tracecompile.options import (
    Backend,
    BackendOption,
    Bins,
    Chunk,
    Device,
    HalfLife,
    Input,
    Rule,
    RuleOption,
    Seed,
    Snapshots,
    Target,
    TimeStep,
    Weights,
)
from tracecompile.settings import settings_of
from tracecompile.targets import UsageError, is_artifact, load_target
from tracecompile.terminal import require_device, working
from tracecompile.weights import load_weights


@dataclass(frozen=True)
class Conversion:
    """What is converted, and how: a field is an option of the command line, with its default."""

    target: Target
    input: Input = None
    weights: Weights = None
    rule: RuleOption = Rule.measured
    bins: Bins = None
    half_life: HalfLife = None
    snapshots: Snapshots = None
    backend: BackendOption = Backend.auto
    chunk: Chunk = None
    device: Device = "cpu"
    seed: Seed = 0
    dt: TimeStep = None

    @property
    def changed(self) -> list[str]:
        """The options that say something."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return [name for name, value in given.items() if name != "target" and value != DEFAULTS[name]]

    def settings(self) -> dict[str, Any]:
        """Returns the options of ``tracecompile.convert``.

        Raises:
            UsageError: One of them means nothing, be it beside another one.
        """
        options: dict[str, Any] = {"rule": self.rule.value, "backend": self.backend.value}
        if self.half_life is not None:
            if not self.half_life > 0:
                raise UsageError("--half-life must be a positive number of time steps.")
            options["decay"] = 0.5 ** (1.0 / self.half_life)
        if self.snapshots is not None:
            options["snapshots"] = self.snapshots or None
        options |= {name: value for name in ("bins", "chunk") if (value := getattr(self, name)) is not None}
        try:
            settings_of(**options)
        except InvalidInput as refusal:
            named = {"rule": self.rule.value, "bins": self.bins, "half-life": self.half_life}
            named |= {"snapshots": self.snapshots, "chunk": self.chunk}
            said = " ".join(f"--{name} {value}" for name, value in named.items() if value is not None)
            raise UsageError(f"{said}: {refusal}") from refusal
        return options

    def run(self) -> tuple[tracecompile.TracedModule, nn.Module, tuple[torch.Tensor, ...]]:
        """Returns the converted model, the model itself, and the example inputs.

        Raises:
            UsageError: There is no such model, or an option means nothing.
            ConversionError: The model is refused.
        """
        if is_artifact(self.target):
            raise UsageError(f"{self.target} is converted already: name the model itself, as module:factory.")
        options = self.settings()
        if self.dt is not None and not self.dt > 0:
            raise UsageError("--dt must be a positive number of seconds.")
        device = require_device(self.device)
        torch.manual_seed(self.seed)
        model, module = load_target(self.target, self.dt)
        if self.weights is not None:
            load_weights(model, self.weights)
        model.to(device)
        inputs = tuple(value.to(device) for value in choose_inputs(self.input, module, self.seed))
        with working("converting"):
            return tracecompile.convert(model, inputs, **options), model, inputs


DEFAULTS = {field.name: field.default for field in fields(Conversion)}


def with_conversion(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of a conversion, and hands them to its first parameter as one ``Conversion``."""
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    hints = get_type_hints(Conversion, include_extras=True)
    shared = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.name == "target" else field.default,
            annotation=hints[field.name],
        )
        for field in fields(Conversion)
    ]

    @functools.wraps(command)
    def called(**given: Any) -> None:
        conversion = Conversion(**{parameter.name: given.pop(parameter.name) for parameter in shared})
        command(conversion, **given)

    parameters = [*shared, *(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own)]
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return called
