"""What the command line prints and writes, and how it reads what stands behind an option."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console

from tracecompile.files import written_whole
from tracecompile.targets import UsageError


def words(text: str | None) -> list[str] | None:
    """Reads ``one,two``."""
    return None if text is None else [word.strip() for word in text.split(",")]


def lengths(text: str | None) -> list[int] | None:
    """Reads ``100,1000``.

    Raises:
        UsageError: Something else is written.
    """
    found = words(text)
    if found is None:
        return None
    if not all(word.isdecimal() and int(word) > 0 for word in found):
        raise UsageError(f"--steps {text!r} is no list of lengths: write it like 100,1000.")
    return [int(word) for word in found]


def as_bytes(gigabytes: float) -> int:
    """Returns a size in bytes.

    Raises:
        UsageError: It is none.
    """
    if not 0 < gigabytes < math.inf:
        raise UsageError("--memory-limit must be a positive number of GB.")
    return int(gigabytes * 1e9)


def require_device(name: str) -> str:
    """Returns the name of a device.

    Raises:
        UsageError: It is none that is there.
    """
    kind, _, index = name.partition(":")
    known = {"cpu": 1, "cuda": torch.cuda.device_count()}
    if kind not in known or not (index or "0").isdecimal() or int(index or "0") >= known[kind]:
        raise UsageError(f"There is no device {name!r} here: --device is cpu or cuda.")
    return name


def set_threads(threads: int | None) -> None:
    """Lets torch compute with so many threads, where somebody says how many."""
    if threads is not None:
        torch.set_num_threads(threads)


def require_suffix(option: str, path: Path, *suffixes: str) -> None:
    """Refuses a place for a file that is not called like one of its kind: it might be something else.

    Raises:
        UsageError: It is called otherwise.
    """
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"{option} {path} is to be written: give it a name that ends in {suffixes[0]}.")


def write_text(path: Path, text: str) -> None:
    """Writes a file, and makes the folders that it lies in."""
    with written_whole(path) as (part,):
        part.write_text(text, encoding="utf-8")


def show(result: dict[str, Any], text: str, as_json: bool) -> None:
    """Prints a result, as JSON or as text."""
    typer.echo(json.dumps(json_value(result), indent=2, allow_nan=False) if as_json else text)


def json_value(value: Any) -> Any:
    """Returns a value with None for the numbers that JSON does not know: nan and the infinities."""
    if isinstance(value, Mapping):
        return {key: json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def working(message: str) -> Iterator[Any]:
    """Shows what is being done while it is done, on a terminal only; yields the function that changes the message."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda text: None
        return
    with console.status(message) as status:
        yield status.update
