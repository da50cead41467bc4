"""Files that are there whole or not at all, however the work is cut off."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType


def part_of(name: str) -> str:
    """Returns what a file is called until all of it is written."""
    return f".{name}.part"


@contextmanager
def written_whole(*paths: Path) -> Iterator[list[Path]]:
    """Yields where to write the files meanwhile; at the end all are put in their places, in their order.

    Where the work fails or is interrupted, none of them is, and no folder is left that was made for them.
    """
    parts = [path.with_name(part_of(path.name)) for path in paths]
    made = [folder for path in paths for folder in _make_folder(path.parent)]
    try:
        for part in parts:
            part.unlink(missing_ok=True)  # what a killed process left; it may be a link that leads elsewhere
        yield parts
        with _uninterrupted():
            for part, path in zip(parts, paths, strict=True):
                os.replace(part, path)
            made = []
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
        for folder in reversed(made):
            with suppress(OSError):  # somebody else has put something into it
                folder.rmdir()


def _make_folder(folder: Path) -> list[Path]:
    """Makes a folder, and returns what had to be made, outermost first."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Lets Ctrl-C wait until what is done here is done; signals reach the main thread alone."""
    held = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(held):
        yield
        return
    waiting: list[FrameType | None] = []
    signal.signal(signal.SIGINT, lambda number, frame: waiting.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, held)
        if waiting:
            held(signal.SIGINT, waiting[0])
