"""Neurons whose step is an operator of their library: what is written of them is where they are imported from.

Everything else of a program is operations; such a neuron is code that only its library has. A folder that holds one is
loaded where the library can be imported, and says which it is where it cannot.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from torch import nn

from tracecompile.errors import InvalidInput
from tracecompile.neuron_step import NeuronStep, OpaqueStep
from tracecompile.rules.opaque import StepWithSlopes
from tracecompile.saving.models import TABLES
from tracecompile.saving.values import Json, Reader, Writer


def write_step(writer: Writer, step: OpaqueStep) -> Json:
    """Returns the step of a library's neuron."""
    known = {name: writer.write(getattr(step, name)) for name in ("tensors", "states", "reset")}
    return {**known, "neuron": _write(writer, step.neuron)}


def write_value(writer: Writer, value: NeuronStep) -> Json:
    """Returns one of the values that a step makes."""
    return {"step": writer.write(value.step), "position": value.position, "results": value.results}


def write_slopes(writer: Writer, value: StepWithSlopes) -> Json:
    """Returns a step with its derivatives."""
    return {"step": writer.write(value.step), "wanted": writer.write(value.wanted)}


def _write(writer: Writer, module: nn.Module) -> Json:
    kind = type(module)
    found = getattr(sys.modules.get(kind.__module__), kind.__name__, None)
    if found is not kind or kind.__module__ == "__main__":
        raise InvalidInput(
            f"The neuron {kind.__qualname__} of {kind.__module__} computes its step in an operator, and cannot be "
            "imported where the network is loaded.",
            "Define its class at the top level of a module.",
        )
    return {
        "module": kind.__module__,
        "class": kind.__name__,
        "training": module.training,
        "plain": {name: writer.write(value) for name, value in vars(module).items() if name not in TABLES},
        "buffers": {name: writer.write(value) for name, value in module._buffers.items()},
        "modules": {name: None if child is None else _write(writer, child) for name, child in module._modules.items()},
    }


def read_step(reader: Reader, written: Json) -> OpaqueStep:
    """Returns the step."""
    step = OpaqueStep.__new__(OpaqueStep)
    nn.Module.__init__(step)
    step.tensors, step.states, step.reset = (reader.read(written[name]) for name in ("tensors", "states", "reset"))
    step.neuron = _read(reader, written["neuron"])
    return step


def read_value(reader: Reader, written: Json) -> NeuronStep:
    """Returns one of the values that a step makes."""
    return NeuronStep(reader.read(written["step"]), written["position"], written["results"])


def read_slopes(reader: Reader, written: Json) -> StepWithSlopes:
    """Returns a step with its derivatives."""
    return StepWithSlopes(reader.read(written["step"]), reader.read(written["wanted"]))


def _read(reader: Reader, written: Json) -> nn.Module:
    name = f"{written['module']}.{written['class']}"
    if not reader.imports:
        raise InvalidInput(
            f"It needs {name}, whose code is not in the folder, and without trust nothing is imported.",
            "If you trust it, load it in Python without weights_only: net = tracecompile.load(folder); then "
            "print(net.report), or tracecompile.export(net, ...).",
        )
    try:
        kind: Any = getattr(importlib.import_module(written["module"]), written["class"])
    except (ImportError, AttributeError) as fault:
        raise InvalidInput(f"It needs {name}, which cannot be imported: {fault}.", "Install it.") from fault
    module: nn.Module = kind.__new__(kind)
    nn.Module.__init__(module)
    for attribute, value in written["plain"].items():
        vars(module)[attribute] = reader.read(value)
    for attribute, value in written["buffers"].items():
        module.register_buffer(attribute, reader.read(value), persistent=False)
    for attribute, child in written["modules"].items():
        module.add_module(attribute, None if child is None else _read(reader, child))
    module.training = written["training"]
    return module
