"""The library of sums: compiled once a machine, in a process of its own while the scans are compiled."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import weakref
from dataclasses import dataclass, field
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


@dataclass(frozen=True, eq=False)
class Building:
    """A library that the compiler is at."""

    digest: str | None
    folder: Path
    process: subprocess.Popen[str] = field(repr=False)

    def finished(self) -> Library:
        """Waits for the compiler.

        Raises:
            Unwritten: Where it fails, or what it has made cannot be loaded.
        """
        _, said = self.process.communicate()
        if self.process.returncode:
            raise Unwritten("the compiler says: " + said.strip().partition("\n")[0])
        folder = self.folder if self.digest is None else shelf.put(self.digest, NOTHING, self.folder)
        try:
            return Library(folder / f"{shelf.LIBRARY}.so")
        except OSError as fault:
            raise Unwritten(f"its library cannot be loaded: {fault}") from fault


def build() -> Library | Building:
    """Returns what an earlier process has compiled, or begins to compile.

    Raises:
        Unwritten: Where there is no compiler.
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
        command = [*compiler_call(str(SOURCE), shelf.LIBRARY, str(folder)), FUSED]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    except (OSError, Unwritten) as fault:
        shutil.rmtree(folder, ignore_errors=True)
        raise Unwritten(str(fault)) from fault
    made = Building(digest, folder, process)
    weakref.finalize(made, _dropped, process, folder)
    return made


def _dropped(process: subprocess.Popen[str], folder: Path) -> None:
    """Stops a compiler that nobody waits for, and removes what has no name; what is loaded stays loaded."""
    if process.poll() is None:
        process.kill()
    if process.stderr is not None and not process.stderr.closed:
        process.communicate()
    shutil.rmtree(folder, ignore_errors=True)
