"""Lays the arguments of a call over those that the model was captured with."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections import namedtuple
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tracecompile.errors import InvalidInput
from tracecompile.kinds import check_kind, described, first_line, no_fit
from tracecompile.later import Later
from tracecompile.program import StepProgram


@dataclass(frozen=True)
class Doubt:
    """A tensor, by its name in messages, and whether all of it is finite."""

    name: str
    finite: Later

    def settle(self) -> None:
        """Refuses the tensor if it holds what is not finite; waits until that is known.

        Raises:
            InvalidInput: It does.
        """
        if not self.finite.get():
            raise InvalidInput(f"{self.name} holds NaN or infinity.", "Clean the data before it reaches the network.")


@dataclass(frozen=True)
class Call:
    """The leaves of one call.

    Attributes:
        leaves: Tensors and numbers that are no states, in the order of the prologue's placeholders.
        states: States that the caller handed in, in the order of the explicit carries; None where it left them out.
        doubts: Tensors of which a device has still to say whether they are finite.
    """

    leaves: tuple[Any, ...]
    states: tuple[Tensor, ...] | None
    doubts: tuple[Doubt, ...] = ()

    def does_not_run(self, fault: Exception) -> InvalidInput:
        """Returns the error for a call on which torch has raised one."""
        return InvalidInput(
            f"The model cannot run on {described(self.leaves)}: {first_line(fault)}.",
            "Compare with the model's own input.",
        )


@dataclass(frozen=True)
class Arguments:
    """Binds calls of one model to its captured signature.

    Attributes:
        signature: Of the model's forward.
        positions: By argument, its leaves numbered among all leaves, in its own structure.
        order: Numbers of the leaves that are states.
        count: Number of leaves.
        fixed: By argument, its leaves that were neither tensors nor numbers: every call has the same.
        ranks: Numbers of dimensions of the prologue's arguments, None for what is no tensor; ``names`` what they are.
        kinds: Dtypes and devices of the tensors that are no states.
    """

    signature: inspect.Signature
    positions: dict[str, Any]
    order: tuple[int, ...]
    count: int
    fixed: dict[str, list[Any]]
    ranks: tuple[int | None, ...]
    names: tuple[str, ...]
    kinds: list[tuple[torch.dtype, torch.device]]

    @classmethod
    def of(cls, model: nn.Module, program: StepProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """Remembers the call that a model was captured with; whatever was no tensor or number there stays fixed."""
        signature = inspect.signature(model.forward)
        count = program.signature.num_leaves
        positional, keywords = pytree.tree_unflatten(list(range(count)), program.signature)
        placeholders = [node for node in program.prologue.graph.nodes if node.op == "placeholder"]
        values = [node.meta.get("val") for node in placeholders]
        found = cls(
            signature=signature,
            positions=signature.bind(*positional, **keywords).arguments,
            order=program.explicit_states,
            count=count,
            fixed={},
            ranks=tuple(value.ndim if isinstance(value, Tensor) else None for value in values),
            names=tuple(node.name for node in placeholders),
            kinds=[],
        )
        given = signature.bind(*args, **kwargs).arguments
        fixed = {
            name: [leaf for leaf in pytree.tree_leaves(value) if not _varies(leaf)]
            for name, value in given.items()
            if not found._is_state(name)
        }
        return replace(found, fixed=fixed, kinds=found._kinds(given))

    @property
    def states(self) -> frozenset[int]:
        """Numbers of the leaves that are states."""
        return frozenset(self.order)

    def fits(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Tells whether the tensors of a call have the dtypes and devices of the captured one."""
        try:
            return self._kinds(self.signature.bind(*args, **kwargs).arguments) == self.kinds
        except TypeError:
            return True  # bind says what is wrong

    def _kinds(self, given: dict[str, Any]) -> list[tuple[torch.dtype, torch.device]]:
        tensors = [
            leaf for name, value in given.items() if not self._is_state(name) for leaf in pytree.tree_leaves(value)
        ]
        return [(leaf.dtype, leaf.device) for leaf in tensors if isinstance(leaf, Tensor)]

    def numbers(self, pinned: tuple[int, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Returns the numbers at some positions among the leaves of a call."""
        try:
            given = self.signature.bind(*args, **kwargs).arguments
        except TypeError:
            return ()  # bind says what is wrong
        found: dict[int, Any] = {}
        for name, positions in self.positions.items():
            value = given.get(name, self.signature.parameters[name].default)
            found.update(zip(pytree.tree_leaves(positions), pytree.tree_leaves(value), strict=False))
        return tuple(found.get(position) for position in pinned)

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Returns the leaves of a call.

        Raises:
            InvalidInput: The structure, a rank or a fixed argument differs from the call that was captured, an input is
                not finite, or a tensor has no elements.
        """
        try:
            given = self.signature.bind(*args, **kwargs).arguments
        except TypeError as fault:
            raise no_fit(self.signature, fault) from None
        leaves: dict[int, Any] = {}
        for name, positions in self.positions.items():
            value = given.get(name, self.signature.parameters[name].default)
            if self._is_state(name) and (value is None or value is inspect.Parameter.empty):
                continue
            flat, spec = pytree.tree_flatten(value)
            places, expected = pytree.tree_flatten(positions)
            if not same_structure(spec, expected):
                raise InvalidInput(
                    f"The argument {name} has another structure than at conversion.", "Convert again with it."
                )
            if not self._is_state(name) and [leaf for leaf in flat if not _varies(leaf)] != self.fixed.get(name, []):
                raise InvalidInput(
                    f"The argument {name} has another value than at conversion.", "Convert again with that value."
                )
            leaves.update(zip(places, flat, strict=True))
        states = tuple(leaves[place] for place in self.order if place in leaves)
        varying = tuple(
            leaves[place]
            for place in range(self.count)
            if place in leaves and place not in self.states and _varies(leaves[place])
        )
        doubts = self._check(varying)
        return Call(varying, states if len(states) == len(self.order) and states else None, doubts)

    def _is_state(self, name: str) -> bool:
        # A list of states may hold None for the layers that have none.
        return any(place in self.states for place in pytree.tree_leaves(self.positions.get(name)))

    def _check(self, leaves: tuple[Any, ...]) -> tuple[Doubt, ...]:
        doubts = []
        for name, rank, leaf in zip(self.names, self.ranks, leaves, strict=False):
            if isinstance(leaf, Tensor):
                if rank is not None and leaf.ndim != rank:
                    raise InvalidInput(
                        f"The input {name} has {leaf.ndim} dimensions {tuple(leaf.shape)}, but the model takes {rank}.",
                        "Pass an input of the same rank, or convert again with one.",
                    )
                doubts += checked(f"The input {name}", leaf)
        return tuple(doubts)


def check_tensor(name: str, value: Tensor) -> None:
    """Refuses a tensor that no network can learn from.

    Raises:
        InvalidInput: Its kind is refused (see ``check_kind``), it has no elements, or it holds NaN or infinity.
    """
    for doubt in checked(name, value):
        doubt.settle()


def checked(name: str, value: Tensor) -> list[Doubt]:
    """Refuses as ``check_tensor`` does; returns what a device has still to say.

    Raises:
        InvalidInput: As for ``check_tensor``, of what is known without waiting.
    """
    check_kind(name, value)
    if value.numel() == 0:
        raise InvalidInput(
            f"{name} is empty: its shape is {tuple(value.shape)}.", "Pass at least one time step and one sample."
        )
    if not value.is_floating_point():
        return []
    # A sum is not finite if an element is not, and takes no memory; of finite elements it may overflow.
    if not value.is_cuda and math.isfinite(value.sum().item()):
        return []
    least, largest = torch.aminmax(value)
    doubt = Doubt(name, Later(least.isfinite() & largest.isfinite()))
    if value.is_cuda:
        return [doubt]
    doubt.settle()
    return []


def same_structure(one: pytree.TreeSpec, other: pytree.TreeSpec) -> bool:
    """Tells whether two structures are alike; of named tuples and dataclasses names and fields count, not the class: a
    network that was loaded has made them again."""
    if one == other:
        return True
    if one.is_leaf() or other.is_leaf() or _kind(one) != _kind(other):
        return False
    pairs = zip(one.children(), other.children(), strict=False)
    return one.num_children == other.num_children and all(same_structure(*pair) for pair in pairs)


def _kind(spec: pytree.TreeSpec) -> Any:
    if spec.type is namedtuple:
        return spec.context.__name__, spec.context._fields
    if dataclasses.is_dataclass(spec.type):
        return getattr(spec.type, "__name__", ""), tuple(field.name for field in dataclasses.fields(spec.type))
    return spec.type, spec.context


def _varies(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) or (isinstance(leaf, (int, float)) and not isinstance(leaf, bool))
