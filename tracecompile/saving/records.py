"""The data classes that a written program is made of, by name."""

from __future__ import annotations

import dataclasses
import inspect
from types import ModuleType
from typing import Any

from tracecompile import emitted, errors, layers, program, report, units
from tracecompile.analysis import ports
from tracecompile.errors import InvalidInput
from tracecompile.rules import analytic
from tracecompile.rules.measured import lines, rule

MODULES: tuple[ModuleType, ...] = (emitted, errors, layers, units, program, report, ports, analytic, lines, rule)


def record_name(kind: type) -> str:
    """Returns the name of a data class.

    Raises:
        InvalidInput: It belongs to something that was added from outside.
    """
    name = kind.__name__
    if RECORDS.get(name) is not kind:
        raise InvalidInput(
            f"The program holds a {kind.__module__}.{name}, which has no written form.",
            "Only what the rules and passes of this package make can be saved.",
        )
    return name


def _data_classes(module: ModuleType) -> dict[str, type[Any]]:
    found = inspect.getmembers(module, inspect.isclass)
    return {name: kind for name, kind in found if dataclasses.is_dataclass(kind) and kind.__module__ == module.__name__}


RECORDS: dict[str, type[Any]] = {name: kind for module in MODULES for name, kind in _data_classes(module).items()}
