"""save() and load(): a converted network as a folder.

module.py              the code that runs, printed from the program; where the network was called in ways that are
                       programs of their own, module_1.py and so on beside it
program.json           the programs themselves, as data
weights.safetensors    parameters and buffers by the names of the state_dict, and the programs' constants
report.json            the conversion report; format, versions of this package and of torch
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tracecompile.errors import ConversionError, InvalidInput
from tracecompile.files import written_whole
from tracecompile.parallel import refuse_spread
from tracecompile.runtime.module import TracedModule, session_of
from tracecompile.saving.compiler import WrittenPrograms
from tracecompile.saving.modes import in_both_modes
from tracecompile.saving.place import (
    PROGRAM,
    REPORT,
    WEIGHTS,
    code_names,
    file_names,
    require_room,
    written_earlier,
)
from tracecompile.saving.programs import Contents, read, write
from tracecompile.version import VERSION

FORMAT = 2
"""Of the folder; another number is another layout."""
FAULTS = (KeyError, TypeError, ValueError, IndexError, AttributeError, AssertionError, RecursionError, RuntimeError)
"""What reading data of any kind as a program may end in."""


def save(net: TracedModule, path: str | Path, overwrite: bool = False) -> None:
    """Writes a converted network into a folder, which is made where it does not exist; live states are not saved.

    Args:
        net: A network that is captured.
        path: The folder.
        overwrite: Whether to write into a folder that holds anything but an earlier version; what else is there stays.

    Raises:
        InvalidInput: The network is not captured yet; something in it has no written form (says what, and which import
            it belongs to); or the folder holds something that no earlier version has written (with ``overwrite``:
            under a name that this one needs). Nothing in the folder is touched then.
    """
    session = session_of(net)
    refuse_spread(session.model)
    report = net.report
    compiled = in_both_modes(session)
    content, tensors = write(Contents(session.model, compiled))
    content = {"tensors": _described(tensors), **content}
    # What is printed is what will be read: nothing of it may depend on what only this process knows.
    again = read(content, {name: value.detach().clone() for name, value in tensors.items()})
    folder = Path(path)
    names = file_names(len(compiled))
    require_room(folder, overwrite, names)
    weights = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
    versions = {"format": FORMAT, "tracecompile": VERSION, "torch": torch.__version__}
    texts = {
        PROGRAM: json.dumps(content, separators=(",", ":"), allow_nan=False) + "\n",
        REPORT: json.dumps({**versions, **report.to_dict()}, indent=2) + "\n",
        **{name: each.stages.code for name, each in zip(code_names(len(compiled)), again.compiled, strict=True)},
    }
    _write(folder, weights, texts)


def load(path: str | Path, weights_only: bool = False) -> TracedModule:
    """Reads what ``save`` wrote; the network trains on, bit for bit as the one that was saved.

    The code in the folder is run: load only folders that you trust, or with ``weights_only``.

    Args:
        path: The folder.
        weights_only: Run nothing of the folder: its code must be what this package prints of the program stored beside
            it, which calls nothing but operations on tensors; files, shapes and dtypes must be what they should.

    Raises:
        InvalidInput: It is no such folder, a file is missing or damaged, or (``weights_only``) holds anything else;
            names the file.
    """
    folder = Path(path)
    if not folder.is_dir():
        met = "is a file, not a folder" if folder.exists() else "does not exist"
        raise InvalidInput(f"{folder} {met}.", "Give the folder that tracecompile.save or convert -o wrote.")
    report = _read_json(folder, REPORT)
    if report.get("format") != FORMAT:
        raise InvalidInput(
            f"{folder / REPORT} says format {report.get('format')!r}, and this version reads format {FORMAT}.",
            f"It was written by tracecompile {report.get('tracecompile')}.",
        )
    content = _read_json(folder, PROGRAM)
    tensors = _read_weights(folder, content)
    codes = _read_codes(folder, content, tensors, weights_only)
    compiler = WrittenPrograms(content, tensors, codes)
    net = TracedModule(compiler.contents.model, compiler.contents.settings, compiler)
    for name, each in zip(code_names(len(codes)), compiler.contents.compiled, strict=True):
        try:
            each.stages.run_as_printed(str(folder / name))
        except Exception as fault:
            raise InvalidInput(f"{folder / name} does not run: {type(fault).__name__}: {fault}.") from fault
        session_of(net).use(each)
    return net


def _read_codes(
    folder: Path, content: dict[str, Any], tensors: dict[str, Tensor], weights_only: bool
) -> tuple[str, ...]:
    """Returns the code of every program; what is printed of the program itself where nothing else is to be run."""
    try:
        printed = [each.stages.code for each in read(content, tensors, imports=not weights_only).compiled]
    except ConversionError as fault:
        raise InvalidInput(f"{folder / PROGRAM}: {fault.explanation}", fault.advice) from fault
    except FAULTS as fault:
        raise InvalidInput(f"{folder / PROGRAM} is damaged: {type(fault).__name__}: {fault}.") from fault
    names = code_names(len(printed))
    if weights_only:
        _require_no_other(folder, file_names(len(printed)))
    codes = tuple(_read_text(folder / name) for name in names)
    for name, code, own in zip(names, codes, printed, strict=True):
        if weights_only and code != own:
            raise InvalidInput(
                f"{folder / name} is not the code that this version prints of {PROGRAM}.",
                "It was changed, or written by another version: load it without weights_only if you trust it.",
            )
    return codes


def _described(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {name: [str(value.dtype).removeprefix("torch."), list(value.shape)] for name, value in tensors.items()}


def _read_weights(folder: Path, content: dict[str, Any]) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    _require(path)
    try:
        found = load_file(path)
    except (SafetensorError, OSError, ValueError) as fault:
        raise InvalidInput(f"{path} is damaged: {fault}.") from fault
    wanted = content.get("tensors")
    if not isinstance(wanted, dict):
        raise InvalidInput(f"{folder / PROGRAM} is damaged: it does not say which weights there are.")
    known = _described(found)
    for name in sorted({*wanted, *known}):
        if known.get(name) != wanted.get(name):
            raise InvalidInput(
                f"{path} does not fit {PROGRAM}: {name} is {_kind(known.get(name))}, and should be "
                f"{_kind(wanted.get(name))}."
            )
    return found


def _kind(described: Any) -> str:
    return "missing" if described is None else f"{described[0]} of shape {tuple(described[1])}"


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    text = _read_text(folder / name)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as fault:
        raise InvalidInput(f"{folder / name} is damaged: {fault}.") from fault
    if not isinstance(content, dict):
        raise InvalidInput(f"{folder / name} is damaged: it holds no object.")
    if name == PROGRAM:
        _require_single_lines(content, folder / name)
    return content


def _require_single_lines(content: Any, path: Path) -> None:
    """Refuses texts of several lines: names and source lines stand in comments of the code that is printed."""
    if isinstance(content, str) and (content.splitlines() not in ([], [content]) or "\0" in content):
        raise InvalidInput(f"{path} holds the text {content[:40]!r} of several lines, which save does not write.")
    if isinstance(content, (dict, list)):
        for item in [*content, *content.values()] if isinstance(content, dict) else content:
            _require_single_lines(item, path)


def _read_text(path: Path) -> str:
    _require(path)
    try:
        return path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as fault:
        raise InvalidInput(f"{path} cannot be read: {fault}.") from fault


def _require(path: Path) -> None:
    if not path.is_file():
        raise InvalidInput(f"{path.parent} is not a folder written by tracecompile.save: it has no {path.name}.")


def _require_no_other(folder: Path, names: Collection[str]) -> None:
    for entry in sorted(folder.iterdir()):
        if entry.name not in names:
            raise InvalidInput(f"{folder} holds {entry.name}, which save does not write.", "Choose another folder.")


def _write(folder: Path, weights: dict[str, Tensor], texts: dict[str, str]) -> None:
    """Writes all files or, where one cannot be written, none; what an earlier version had more of goes."""
    names = [WEIGHTS, *texts]
    gone = written_earlier(folder) - {*names}
    with written_whole(*(folder / name for name in names)) as (first, *parts):
        save_file(weights, first)
        for part, text in zip(parts, texts.values(), strict=True):
            part.write_text(text, encoding="utf-8")
    for name in gone:
        (folder / name).unlink(missing_ok=True)
