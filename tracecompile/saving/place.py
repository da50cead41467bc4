"""The folder that a network is saved into: what of it an earlier save has written, and what is somebody else's."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tracecompile.errors import InvalidInput
from tracecompile.files import part_of

CODE, PROGRAM, WEIGHTS, REPORT = "module.py", "program.json", "weights.safetensors", "report.json"


class BusyFolder(InvalidInput):
    """There is something at the place that save did not write."""


def code_names(count: int) -> list[str]:
    """Returns the names of the files of code; the last is that of the last call, and has no number."""
    return [*(f"module_{number}.py" for number in range(1, count)), CODE]


def file_names(count: int) -> list[str]:
    """Returns the names of everything in the folder of a network of so many programs."""
    return [WEIGHTS, PROGRAM, REPORT, *code_names(count)]


def written_earlier(folder: Path) -> set[str]:
    """Returns the names of what an earlier save has written into a folder.

    Names alone say little: anybody may have a ``module.py``. The folder is a network's if its report and program are.
    """
    names = []
    if {"format", "tracecompile"} <= _object(folder / REPORT).keys():
        programs = _object(folder / PROGRAM).get("programs")
        names = file_names(len(programs)) if isinstance(programs, list) else []
    parts = map(part_of, names or file_names(1))  # of a save that was cut off
    return _found(folder) & {*names, *parts}


def require_room(folder: Path, overwrite: bool, names: Collection[str] = (WEIGHTS, PROGRAM, REPORT, CODE)) -> None:
    """Refuses a folder with anything in it that no earlier save has written.

    Args:
        folder: The folder, which need not exist.
        overwrite: Refuse it only if that has one of the names that are to be written.
        names: These.

    Raises:
        BusyFolder: There is such a thing, or the place is taken by a file.
    """
    if folder.exists() and not folder.is_dir():
        raise BusyFolder(f"{folder} exists and is not a folder.", "Choose another place.")
    for name in sorted(_found(folder) - written_earlier(folder)):
        if name in names:
            raise BusyFolder(f"{folder} holds a {name} that save has not written.", "Choose another folder.")
        if not overwrite:
            raise BusyFolder(
                f"{folder} holds {name}, which save has not written.",
                "Choose another folder, or have the network written beside it (overwrite=True, --force).",
            )


def _found(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()


def _object(path: Path) -> dict[str, Any]:
    """Returns the object that a JSON file holds, an empty one for any other file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
