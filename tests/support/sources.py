"""Models that are text: a file that can be named, and the module that it defines."""

from __future__ import annotations

import importlib.util
import linecache
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType


@contextmanager
def module_from(source: str, file: Path) -> Iterator[ModuleType]:
    """Writes a source file and imports it for the length of a block; the file stays."""
    file.write_text(source, encoding="utf-8")
    name = file.stem
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up
    linecache.checkcache(str(file))
    try:
        exec(compile(source, str(file), "exec"), module.__dict__)
        yield module
    finally:
        sys.modules.pop(name, None)
