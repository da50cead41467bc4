"""Scans compiled without ``torch.compile``: written by inductor, one call of the compiler each, then loaded."""

from __future__ import annotations

import math
import shutil
import subprocess
import types
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tracecompile.runtime.engine import library, shelf
from tracecompile.runtime.engine.inductor import Code, Run, Unwritten, compiler_call, fits, written
from tracecompile.runtime.engine.sums.products import Products
from tracecompile.runtime.engine.wrapper import EXTERN, taken_apart


@dataclass(frozen=True)
class Native:
    """A compiled scan.

    Attributes:
        run: It.
        condition: Under which it serves some arguments.
    """

    run: Run
    condition: str

    def serves(self, arguments: Sequence[Tensor]) -> bool:
        """Tells whether it serves some arguments."""
        return fits(self.condition, arguments)


@dataclass(frozen=True, eq=False)
class Begun:
    """A scan that the compiler is at, in a process of its own.

    Attributes:
        entry: What its library is called by.
        constants: Tensors that it reads.
        digest: Its name on disk; None where it has none.
        folder: Where the library goes.
        process: The compiler.
        products: Take the places of torch's.
    """

    entry: shelf.Entry
    constants: dict[str, Tensor]
    digest: str | None
    folder: Path
    process: subprocess.Popen[str] = field(repr=False)
    products: Products = field(repr=False)

    def finished(self) -> Native:
        """Waits for the compiler.

        Raises:
            Unwritten: Where it fails, or what it has made cannot be loaded.
        """
        _, said = self.process.communicate()
        if self.process.returncode:
            self.dropped()
            raise Unwritten("the compiler says: " + said.strip().partition("\n")[0])
        folder = self.folder
        if self.digest is not None:
            folder = shelf.put(self.digest, self.entry, folder)
        try:
            return _loaded(self.entry, folder, self.constants, self.products)
        except ImportError as fault:
            raise Unwritten(f"its library cannot be loaded: {fault}") from fault
        finally:
            if self.digest is None:
                self.dropped()

    def dropped(self) -> None:
        """Stops the compiler, and removes what it has written."""
        _dropped(self.process, self.folder)


def stored(digest: str | None, arguments: Sequence[Tensor], products: Products) -> Native | None:
    """Returns what an earlier process has compiled, where that serves some arguments; for all of them see ``begun``."""
    for folder, entry in shelf.found(digest) if digest is not None else ():
        if fits(entry.fits, arguments):
            try:
                return _loaded(entry, folder, {}, products)
            except ImportError:  # cut short, or of another system: compiled anew
                shutil.rmtree(folder, ignore_errors=True)
    return None


def begun(code: Code, arguments: Sequence[Tensor], digest: str | None, products: Products) -> Begun:
    """Begins to compile.

    Args:
        code: Flat tensors to flat tensors.
        arguments: What it will be called with, or the like.
        digest: Its name on disk; None where it has none.
        products: Take the places of torch's.

    Raises:
        Unwritten: Where it has to be compiled otherwise.
    """
    found = written(code, arguments)
    parts = taken_apart(found)
    entry = shelf.Entry(parts.call, tuple(kernel.name for kernel in parts.kernels), parts.products, found.fits)
    text = library.source_of(parts.kernels)
    folder = shelf.workplace()
    source = folder / f"{shelf.LIBRARY}.cpp"
    source.write_text(text, encoding="utf-8")
    try:
        command = compiler_call(str(source), shelf.LIBRARY, str(folder))
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    except (OSError, Unwritten) as fault:
        shutil.rmtree(folder, ignore_errors=True)
        raise Unwritten(str(fault)) from fault
    made = Begun(entry, found.constants, None if found.constants else digest, folder, process, products)
    weakref.finalize(made, _dropped, process, folder)  # where nobody waits for it
    return made


def _loaded(entry: shelf.Entry, folder: Path, constants: dict[str, Tensor], products: Products) -> Native:
    module = library.load(folder / f"{shelf.LIBRARY}.so")
    called = {name: getattr(products, name, None) or getattr(torch, name) for name in entry.products}
    names: dict[str, Any] = {
        "torch": torch,
        "math": math,
        "inf": math.inf,
        "nan": math.nan,
        "device": torch.device,
        EXTERN: types.SimpleNamespace(**called),
        **{name: getattr(module, name) for name in entry.kernels},
        **constants,
    }
    exec(compile(entry.call, str(folder / shelf.ENTRY), "exec"), names)
    call: Callable[[list[Tensor]], Sequence[Tensor]] = names["call"]
    return Native(lambda *arguments: call(list(arguments)), entry.fits)


def _dropped(process: subprocess.Popen[str], folder: Path) -> None:
    if process.poll() is None:
        process.kill()
    if process.stderr is not None and not process.stderr.closed:
        process.communicate()
    shutil.rmtree(folder, ignore_errors=True)
