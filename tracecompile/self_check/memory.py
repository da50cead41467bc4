"""Whether what a forward pass leaves behind for backward grows with the number of time steps, and at which line."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from tracecompile.errors import SourceLine, UnsupportedOperation
from tracecompile.program import Settings
from tracecompile.runtime.executor import Executor
from tracecompile.self_check.generators import generators_kept
from tracecompile.self_check.inputs import Arguments
from tracecompile.self_check.pair import Pair

PER_STEP = 8
"""Bytes that may be held for every step: one number."""
Held = dict[SourceLine | None, int]
"""Bytes held for backward by the user's line that made or saved them; None for those of the steps."""


@dataclass(frozen=True)
class Piece:
    """A piece of memory that came into being during a run.

    Attributes:
        storage: Weak, so that it shows whether somebody still holds it.
        size: In bytes.
        node: What was running: a node of the prologue or epilogue, None in the steps.
    """

    storage: StorageWeakRef
    size: int
    node: fx.Node | None


class Watch(TorchDispatchMode):
    """Notes every piece of memory that an operation makes, and what was running when autograd saved it."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[Piece] = []
        self.saved_by: dict[int, fx.Node] = {}
        self.node: fx.Node | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Is torch's own way to have no import of ``torch._dynamo``, which takes a second, at the first operation."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {_address(leaf) for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.layout == torch.strided and _address(leaf) not in given:
                storage = leaf.untyped_storage()
                self.pieces.append(Piece(StorageWeakRef(storage), storage.nbytes(), self.node))
        return result

    def save(self, tensor: Tensor) -> Tensor:
        """Notes who saves a tensor for backward."""
        if self.node is not None and tensor.layout == torch.strided:
            self.saved_by.setdefault(_address(tensor), self.node)
        # Detached: an operation that saves its own result would be held by it, and hold it, for ever.
        return tensor.detach()

    def held(self, aside: Sequence[Any]) -> Held:
        """Returns the bytes that are still held, what was returned aside, by the line that saved or made them."""
        known = {_address(leaf) for leaf in aside if isinstance(leaf, Tensor) and leaf.layout == torch.strided}
        found: Held = {}
        for piece in {piece.storage.cdata: piece for piece in self.pieces if not piece.storage.expired()}.values():
            if piece.storage.cdata not in known:
                node = self.saved_by.get(piece.storage.cdata, piece.node)
                where = None if node is None else node.meta.get("where")
                found[where] = found.get(where, 0) + piece.size
        return found


class Labelled(nn.Module):
    """Runs a prologue or an epilogue node by node, and tells the watch which."""

    def __init__(self, module: fx.GraphModule, watch: Watch) -> None:
        super().__init__()
        self.module, self.watch = module, watch

    def forward(self, *args: Any) -> Any:
        """Runs it."""
        watch = self.watch

        class Told(fx.Interpreter):
            def run_node(self, n: fx.Node) -> Any:
                watch.node = n
                try:
                    return super().run_node(n)
                finally:
                    watch.node = None

        return Told(self.module).run(*args)


@contextmanager
def labelled(executor: Executor, watch: Watch) -> Iterator[None]:
    """Lets the watch know what runs before and after the steps."""
    emitted = executor.ends.emitted
    parts = {name: Labelled(getattr(emitted, name), watch) for name in ("prologue", "arguments", "epilogue")}
    executor.ends.emitted = replace(emitted, **cast(Any, parts))
    try:
        yield
    finally:
        executor.ends.emitted = emitted


def held_by_line(
    pair: Pair, calls: Sequence[Arguments], settings: Settings, chunk: int | None, collecting: bool
) -> Held:
    """Runs the converted module and returns the bytes that it holds for backward, by what made or saved them.

    Args:
        pair: What runs.
        calls: The arguments.
        settings: Instead of the module's own.
        chunk: How many steps it takes together; None to take one after the other.
        collecting: Whether what waits for the garbage collector is collected first, which takes a while.
    """
    watch = Watch()
    converted = pair.rewound(chunk, settings)
    assert converted.executor is not None
    with (
        generators_kept(),
        labelled(converted.executor, watch),
        torch.autograd.graph.saved_tensors_hooks(watch.save, lambda tensor: tensor),
        watch,
    ):
        found = pair.call(converted, calls)
    if collecting:
        gc.collect()
    ahead = converted.executor.ahead
    said = [] if ahead is None else [packed.data for packed in ahead.kept]  # the report says that it grows
    return watch.held([*found, *pytree.tree_leaves(list(calls)), *said])


def require_flat(short: Held, longer: Held, more_steps: int) -> None:
    """Refuses a module that holds more for more steps.

    Args:
        short, longer: Bytes held, by what made or saved them, at two numbers of steps.
        more_steps: How many more the second is.

    Raises:
        UnsupportedOperation: With the line whose values are held.
    """
    growth = {where: size - short.get(where, 0) for where, size in longer.items()}
    if sum(growth.values()) <= PER_STEP * more_steps:
        return
    where = max(growth, key=lambda each: (each is not None and growth[each] > 0, growth[each]))
    raise UnsupportedOperation(
        "What is computed at this line is kept for every time step, so that memory grows with the sequence.",
        "Compute it within the loop, step by step, and add up or collect what comes of it.",
        where,
    )


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
