"""What is computed before the loop of all time steps together, and computed again for backward.

A normalisation over time and batch needs all steps of a layer's currents at once, and its derivative needs them once
more. Autograd would keep them, for every such layer, as long as the user keeps the loss. Here nothing is kept but what
they are computed of: what the user handed in, and spikes as bits. Backward runs the prologue again, with a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils import _pytree as pytree

from tracecompile.runtime.backward.once import applied, first_order
from tracecompile.runtime.opened import Opened
from tracecompile.runtime.packed import Packed, unpacked
from tracecompile.runtime.replay import autocast_as, autocast_states, buffers_kept, drawn_again, random_states
from tracecompile.runtime.twins import on_twins


class Before:
    """One prologue that is to be run twice.

    Its operands are attributes and the leaves of the call; after them the parameters of its modules, for their
    gradients alone.
    """

    def __init__(
        self, prologue: fx.GraphModule, opened: Callable[[], Opened], kept: Sequence[Any], draws: bool
    ) -> None:
        """Remembers the circumstances.

        Args:
            prologue: Maps its operands to inputs, invariants and initial states.
            opened: Returns the model as it is at this call.
            kept: The operands as they are kept: some are packed, the others are those of the user.
            draws: Whether the prologue draws random numbers.
        """
        self.prologue, self.opened = prologue, opened()
        self.parameters = [value for value in prologue.parameters() if value.requires_grad]
        self.kept = [value.detach() if isinstance(value, Tensor) else value for value in kept]
        self.versions = [(value, value._version) for value in kept if _is_owned(value)]
        self.drawn = random_states() if draws else []
        device = next((value.device for value in self.kept if isinstance(value, (Tensor, Packed))), None)
        self.autocast = autocast_states(device)
        self.spec: pytree.TreeSpec | None = None
        self.wanted: Sequence[bool] = ()
        self.own: Sequence[bool] = ()
        """Of the inputs that were made last, whether nobody else has their memory: it may be written into."""
        self._made: tuple[list[GradientEdge | None], list[GradientEdge]] | None = None

    def run(self, operands: Sequence[Any]) -> Any:
        """Returns what the prologue does, and keeps nothing of all steps for its gradient.

        Args:
            operands: With the graph that they come with.
        """
        _, *leaves = applied(BeforeFunction, None, self, *operands, *self.parameters)
        assert self.spec is not None
        return pytree.tree_unflatten(leaves, self.spec)

    def first(self, given: Sequence[Any]) -> tuple[list[Any], list[bool]]:
        """Runs it, and keeps nothing.

        Args:
            given: The operands.

        Returns:
            The leaves of what it returns, and whether each requires a gradient.
        """
        # The graph says which leaves require a gradient, and need hold nothing for it.
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: None, lambda nothing: nothing):
            leaves, _ = self.leaves(given, self.wanted)
        return leaves, [isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves]

    def inputs(self) -> list[Tensor]:
        """Runs it once more, and returns the inputs of the loop; its own backward, which comes next, finds the graph.

        Raises:
            RuntimeError: An operand was modified in place since.
        """
        saved: set[int] = set()

        def note(tensor: Tensor) -> Tensor:
            saved.add(memory_of(tensor))
            # Detached: an operation that saves its own result would be held by it, and hold it, for ever.
            return tensor.detach()

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            leaves, sources = self.leaves_again(self.wanted)
        # Edges of the graph: what no operation has saved is as good as gone.
        self._made = _edges(leaves), sources
        assert self.spec is not None
        found: list[Tensor] = [value.detach() for value in pytree.tree_unflatten(leaves, self.spec)[0]]
        self.own = self.owned(found, saved)
        return found

    def owned(self, values: Sequence[Tensor], saved: Collection[int]) -> list[bool]:
        """Tells of some values that were made again whether nobody else has their memory.

        Args:
            values: All of them.
            saved: Memory that autograd has saved.
        """
        kept = [value.data if isinstance(value, Packed) else value for value in (*self.kept, *self.parameters)]
        taken = {memory_of(value) for value in kept if isinstance(value, Tensor)}.union(saved)
        memories = [memory_of(value) for value in values]
        return [
            value.is_contiguous() and memories.count(memory) == 1 and memory not in taken
            for value, memory in zip(values, memories, strict=True)
        ]

    def pulled(self, signals: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Pulls learning signals on the leaves of what it returns to its operands."""
        if self._made is None:
            leaves, sources = self.leaves_again(self.wanted)
            self._made = _edges(leaves), sources
            del leaves
        (edges, sources), self._made = self._made, None
        pairs = [
            (edge, signal)
            for edge, signal in zip(edges, signals, strict=True)
            if signal is not None and edge is not None
        ]
        outputs, pulls = [edge for edge, _ in pairs], [signal for _, signal in pairs]
        none: list[Tensor | None] = [None] * len(sources)
        found = iter(torch.autograd.grad(outputs, sources, pulls, allow_unused=True) if outputs else none)
        return [next(found) if need else None for need in self.wanted]

    def leaves(self, given: Sequence[Any], wanted: Sequence[bool]) -> tuple[list[Any], list[GradientEdge]]:
        """Runs it with a graph; returns the leaves of what it returns, and where gradients of operands arrive."""
        count = len(given)
        operands = [value.detach() if isinstance(value, Tensor) else value for value in given]
        stand_ins: dict[Tensor, Tensor] = {value: value.detach().requires_grad_() for value in self.parameters}
        with torch.enable_grad():
            root = torch.zeros(()).requires_grad_()
            for place, need in enumerate(wanted[:count]):
                operands[place] = _Operand.apply(root, operands[place]) if need else operands[place]
            sources = [get_gradient_edge(value) for value, need in zip(operands, wanted, strict=False) if need]
            needs = zip(self.parameters, wanted[count:], strict=True)
            sources += [get_gradient_edge(stand_ins[value]) for value, need in needs if need]
            found, self.spec = pytree.tree_flatten(on_twins(self.prologue, stand_ins)(*operands))
            return found, sources

    def leaves_again(self, wanted: Sequence[bool]) -> tuple[list[Any], list[GradientEdge]]:
        """Runs it once more as it was, and moves no buffer; see ``leaves``.

        Raises:
            RuntimeError: An operand was modified in place since.
        """
        with self.as_it_was():
            return self.leaves([unpacked(value) for value in self.kept], wanted)

    @contextmanager
    def as_it_was(self) -> Iterator[None]:
        """Lets what follows run under the circumstances of the first run, and moves no buffer; for errors see above."""
        if any(value._version != version for value, version in self.versions):
            raise RuntimeError(
                "An input or a parameter was modified in place between the forward and the backward pass, which runs "
                "what is computed of all time steps together once more. Pass a copy, or call backward before."
            )
        root = self.prologue
        with self.opened.put_back(), buffers_kept(root), autocast_as(self.autocast), drawn_again(self.drawn):
            yield


class BeforeFunction(torch.autograd.Function):
    """Runs a prologue and keeps nothing of all time steps."""

    @staticmethod
    def forward(ctx: Any, before: Before, *given: Any) -> Any:
        """Returns a root for ``first_order``, and the leaves of what the prologue returns."""
        ctx.before, before.wanted = before, ctx.needs_input_grad[1:]
        count = len(given) - len(before.parameters)
        leaves, flags = before.first(given[:count])
        found = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        constant = [made for made, flag in zip(found, flags, strict=True) if isinstance(made, Tensor) and not flag]
        ctx.mark_non_differentiable(*constant)
        ctx.set_materialize_grads(False)
        root = torch.zeros(())
        ctx.save_for_backward(root)
        return root, *found

    @staticmethod
    def backward(ctx: Any, from_root: None, *signals: Tensor | None) -> Any:
        """Returns the gradients of the operands."""
        (root,) = ctx.saved_tensors
        with torch.no_grad():
            found = ctx.before.pulled(signals)
        return None, *first_order(root, found)


class _Operand(torch.autograd.Function):
    """Gives an operand a place in a graph, which does not hold its values: those that no operation saves may go."""

    @staticmethod
    def forward(ctx: Any, root: Tensor, value: Tensor) -> Tensor:
        """Returns the value; ``root`` requires a gradient, and gets none."""
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> Any:
        """Ends here."""
        return None, None


def _edges(leaves: Sequence[Any]) -> list[GradientEdge | None]:
    learned = (isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves)
    return [get_gradient_edge(leaf) if learns else None for leaf, learns in zip(leaves, learned, strict=True)]


def memory_of(value: Tensor) -> int:
    """Returns where the memory of a tensor begins, of all of which it is a part."""
    return value.untyped_storage().data_ptr()


def _is_owned(value: Any) -> bool:
    """Tells whether somebody else may write into a tensor until backward."""
    return isinstance(value, Tensor) and not value.is_inference()
