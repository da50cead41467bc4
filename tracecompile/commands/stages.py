"""The folder of ``inspect --dump``: the program after every pass, a file each."""

from __future__ import annotations

import re
from pathlib import Path

import tracecompile
from tracecompile.files import part_of, written_whole
from tracecompile.saving.place import BusyFolder

STAGE = re.compile(r"\d\d_[a-z_]+\.py")
FIRST_LINE = re.compile(r"# \S+ after [a-z_]+")
"""What the text of every stage begins with."""


def require_stages_room(folder: Path, force: bool) -> None:
    """Refuses a folder with anything in it that no earlier dump has written, before anything is computed.

    Raises:
        BusyFolder: There is such a thing (with ``force``: under a name that a dump needs), or no folder.
    """
    if folder.exists() and not folder.is_dir():
        raise BusyFolder(f"{folder} exists and is not a folder.", "Choose another place.")
    for name in sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else ():
        if _is_stage(folder / name) or name in map(part_of, _stages(folder)):
            continue
        if not force or STAGE.fullmatch(name):
            raise BusyFolder(
                f"{folder} holds {name}, which --dump has not written.",
                "Choose another folder, or have the stages written beside it (--force).",
            )


def write_stages(net: tracecompile.TracedModule, folder: Path) -> None:
    """Writes the program after every pass; what an earlier dump had more of goes."""
    texts = {f"{number:02d}_{name}.py": text for number, (name, text) in enumerate(net.stages)}
    earlier = _stages(folder) - texts.keys()
    with written_whole(*(folder / name for name in texts)) as parts:
        for part, text in zip(parts, texts.values(), strict=True):
            part.write_text(text, encoding="utf-8")
    for name in earlier:
        (folder / name).unlink()


def _stages(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir() if _is_stage(entry)} if folder.is_dir() else set()


def _is_stage(path: Path) -> bool:
    if not STAGE.fullmatch(path.name) or not path.is_file() or path.is_symlink():
        return False
    return FIRST_LINE.match(path.read_text(encoding="utf-8", errors="replace")) is not None
