"""The library of sums, compiled once a machine, while the compilers of scans are at work."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

from tracecompile.runtime.engine import shelf
from tracecompile.runtime.engine.inductor import Unwritten, compiler_call

SOURCE = Path(__file__).with_name("sums.cpp")
FUSED = "-ffp-contract=fast"
"""Products of matrices round once where they multiply and add, as these sums have to."""
NOTHING = shelf.Entry("", (), (), "")


class Library:
    """The functions of ``sums.cpp``."""

    def __init__(self, path: Path) -> None:
        """Loads them.

        Raises:
            OSError: Where the file is none that can be loaded.
        """
        address, number = ctypes.c_void_p, ctypes.c_int64
        functions = ctypes.CDLL(str(path))
        self.gather, self.gather_turned = functions.gather, functions.gather_turned
        self.add, self.lay_out = functions.add, functions.lay_out
        for gather in (self.gather, self.gather_turned):
            gather.argtypes, gather.restype = [address, *[number] * 6], number
        self.add.argtypes, self.add.restype = [address, number, address, address, *[number] * 5], None
        self.lay_out.argtypes, self.lay_out.restype = [address, number, number, address, *[number] * 4], number


def library() -> Library:
    """Returns what an earlier process has compiled, or compiles it.

    Raises:
        Unwritten: Where there is no compiler, or what it has made cannot be loaded.
    """
    text = SOURCE.read_text(encoding="utf-8")
    digest = shelf.digest_of(("sums", text)) if shelf.wanted() else None
    for folder, _ in shelf.found(digest) if digest is not None else ():
        try:
            return Library(folder / f"{shelf.LIBRARY}.so")
        except OSError:  # cut short, or of another system: compiled anew
            shutil.rmtree(folder, ignore_errors=True)
    folder = shelf.workplace()
    try:
        _compile(folder)
        if digest is not None:
            folder = shelf.put(digest, NOTHING, folder)
        return Library(folder / f"{shelf.LIBRARY}.so")
    except OSError as fault:
        raise Unwritten(str(fault)) from fault
    finally:
        if digest is None or folder.name.startswith(shelf.BEGUN):
            shutil.rmtree(folder, ignore_errors=True)  # what is loaded stays loaded


def _compile(folder: Path) -> None:
    command = [*compiler_call(str(SOURCE), shelf.LIBRARY, str(folder)), FUSED]
    found = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if found.returncode:
        raise Unwritten("the compiler says: " + found.stderr.strip().partition("\n")[0])
