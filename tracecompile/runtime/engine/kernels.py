"""Code that inductor has compiled, by all that it depends on."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from tracecompile.runtime.engine import shelf
from tracecompile.runtime.engine.inductor import Code, Run, Unwritten, compiled_step, through_torch_compile, unwarned
from tracecompile.runtime.engine.native import Begun, Native, begun, stored
from tracecompile.runtime.engine.sums.products import Products

LOG = logging.getLogger("tracecompile")
Key = tuple[Any, ...]


class Kernels:
    """What is compiled for one module, whichever programs it is captured as.

    Attributes:
        seconds: Spent on compiling.
        count: Compiled scans and steps.
        detours: Why scans were compiled by ``torch.compile``, which takes longer; once each.
        products: Of matrices, in what is compiled and beside it.
    """

    def __init__(self) -> None:
        """Compiles nothing yet."""
        self.seconds = 0.0
        self.count = 0
        self.detours: list[str] = []
        self.products = Products()
        self._compiled: dict[Key, list[Native]] = {}
        self._begun: dict[Key, Begun] = {}
        self._steps: dict[Key, Run] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Kernels:
        """Returns one that compiles for itself: what is compiled cannot be copied."""
        return Kernels()

    def get(self, key: Key, code: Code, arguments: Sequence[Tensor]) -> Run:
        """Returns compiled code, compiled now if there is none for the key.

        Args:
            key: All that the compiled code depends on, but for sizes.
            code: Flat tensors to flat tensors.
            arguments: What it will be called with, or the like.
        """
        self.begin(key, code, arguments)
        if key in self._begun:
            with self._timed(key, code, arguments):
                self._compiled[key].insert(0, self._begun.pop(key).finished())
        return next(each.run for each in self._compiled[key] if each.serves(arguments))

    def begin(self, key: Key, code: Code, arguments: Sequence[Tensor]) -> None:
        """Lets the compiler begin, in a process of its own, with what ``get`` will be asked for; see there."""
        made = self._compiled.setdefault(key, [])
        if key in self._begun or any(each.serves(arguments) for each in made):
            return
        with self._timed(key, code, arguments):
            if not all(value.device.type == "cpu" for value in arguments):
                made.append(Native(through_torch_compile(code, arguments), ""))
                return
            digest = shelf.digest_of(key) if shelf.wanted() else None
            if (found := stored(digest, arguments, self.products)) is not None:
                made.insert(0, found)
            else:
                self._begun[key] = begun(code, arguments, digest, self.products)

    def get_step(self, key: Key, module: fx.GraphModule, arguments: Sequence[Tensor]) -> Run:
        """Returns a compiled step for arguments of certain shapes, compiled now if there is none for the key.

        Args:
            key: All that the compiled code depends on.
            module: In elementary operations.
            arguments: What it will be called with, or the like.
        """
        if key not in self._steps:
            start = time.perf_counter()
            with unwarned():
                self._steps[key] = compiled_step(module, arguments)
            self._count("step", time.perf_counter() - start)
        return self._steps[key]

    def settle(self) -> None:
        """Stops compilers that have begun with what nobody has asked for."""
        while self._begun:
            self._begun.popitem()[1].dropped()

    @contextmanager
    def _timed(self, key: Key, code: Code, arguments: Sequence[Tensor]) -> Iterator[None]:
        """Counts the seconds; what is ``Unwritten`` goes through ``torch.compile``, and is said to."""
        start = time.perf_counter()
        with unwarned():
            try:
                yield
            except Unwritten as reason:
                if (said := " ".join(str(reason).split())) not in self.detours:
                    self.detours.append(said)
                    LOG.info("a scan is compiled by torch.compile: %s", said)
                self._compiled[key].append(Native(through_torch_compile(code, arguments), ""))
        if key in self._begun:
            self.seconds += time.perf_counter() - start
        else:
            self._count("scan", time.perf_counter() - start)

    def _count(self, what: str, seconds: float) -> None:
        self.seconds += seconds
        self.count += 1
        LOG.info("a %s is compiled in %.1f s, %d so far", what, seconds, self.count)


@dataclass(frozen=True)
class Source:
    """Code that is compiled once it is wanted.

    Attributes:
        kernels: Where.
        key, code: See ``Kernels.get``.
    """

    kernels: Kernels
    key: Key
    code: Code

    def begin(self, arguments: Sequence[Tensor]) -> None:
        """Lets the compiler begin; see ``Kernels.begin``."""
        self.kernels.begin(self.key, self.code, arguments)

    def compiled(self, arguments: Sequence[Tensor]) -> Run:
        """Returns the compiled code; see ``Kernels.get``."""
        return self.kernels.get(self.key, self.code, arguments)
