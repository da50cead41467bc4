"""Libraries that some tests need: skipped without them, or failed where they have to be there."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import pytest

REQUIRED = "TRACECOMPILE_REQUIRE_LIBRARIES"
"""Environment variable; with a value, a missing library is a failure. Continuous integration sets it."""


def library(name: str) -> ModuleType:
    """Returns a library, or skips the test (the module, at import) that asks for it."""
    if os.environ.get(REQUIRED):
        return importlib.import_module(name)
    return pytest.importorskip(name, reason=f"{name} is not installed")  # type: ignore[no-any-return]
