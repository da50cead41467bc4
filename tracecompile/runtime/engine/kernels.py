"""Code that inductor has compiled, by all that it depends on."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from tracecompile.runtime.engine.products import APART, lay_out_weights

LOG = logging.getLogger("tracecompile")
Key = tuple[Any, ...]
OPTIONS: dict[str, Any] = {"emulate_precision_casts": True}
"""In 16 bits, values are rounded wherever they are in the model: else membranes near the threshold fall differently."""


class Kernels:
    """What is compiled for one module, whichever programs it is captured as.

    Attributes:
        seconds: Spent on compiling.
        count: Compiled scans and steps.
    """

    def __init__(self) -> None:
        """Compiles nothing yet."""
        self.seconds = 0.0
        self.count = 0
        self._compiled: dict[Key, Callable[..., Sequence[Tensor]]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Kernels:
        """Returns one that compiles for itself: what is compiled cannot be copied."""
        return Kernels()

    def get(self, key: Key, code: Callable[..., Any], arguments: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
        """Returns compiled code, compiled now if there is none for the key.

        Args:
            key: All that the compiled code depends on.
            code: Flat tensors to flat tensors.
            arguments: What it will be called with, or the like.
        """
        if key not in self._compiled:
            with self._counted("a scan"):
                from torch._functorch.compile_utils import fx_graph_cse  # a second, for those who compile alone

                unrolled = make_fx(code, tracing_mode="symbolic")(*arguments)
                unrolled.graph = fx_graph_cse(unrolled.graph)
                options = OPTIONS | APART if lay_out_weights(unrolled.graph) else OPTIONS
                unrolled.recompile()
                run = torch.compile(unrolled, dynamic=True, fullgraph=True, options=options)
                run(*(value.clone() for value in arguments))
            self._compiled[key] = run
        return self._compiled[key]

    def get_step(
        self, key: Key, module: fx.GraphModule, arguments: Sequence[Tensor]
    ) -> Callable[..., Sequence[Tensor]]:
        """Returns a compiled step for arguments of certain shapes, compiled now if there is none for the key.

        Args:
            key: All that the compiled code depends on.
            module: In elementary operations.
            arguments: What it will be called with, or the like, in one list.
        """
        key = ("step", *key)
        if key not in self._compiled:
            with self._counted("a step"):
                from torch._inductor.compile_fx import compile_fx  # as above

                # Not by torch.compile: what that looks at before every call takes half as long as a small step.
                run: Any = compile_fx(module, list(arguments), config_patches=OPTIONS | APART)
            self._compiled[key] = run
        return self._compiled[key]

    @contextmanager
    def _counted(self, what: str) -> Iterator[None]:
        start = time.perf_counter()
        with warnings.catch_warnings():
            # torch warns of its own deprecated calls, which would be errors where a program makes warnings errors.
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
        self.count += 1
        spent = time.perf_counter() - start
        self.seconds += spent
        LOG.info("%s is compiled in %.1f s, %d so far", what, spent, self.count)
