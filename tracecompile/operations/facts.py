"""What can be said of an operation, and the record that says it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, Flag, auto
from typing import Any

from torch import nn


class Fact(Flag):
    """Facts about operations. Each is true of every call, whatever the example; tests run the operations to see."""

    ELEMENTWISE = auto()
    """Each element of the value depends on the elements of the operands that broadcasting pairs with it, and on no
    other."""

    LINEAR = auto()
    """Commutes with a mean over time: linear in all its tensors together, up to a constant."""

    PRODUCT = auto()
    """Linear in each of its tensors while the others stand still."""

    QUOTIENT = auto()
    """Linear in its first tensor while the second stands still, and not the other way round."""

    COMPARES = auto()
    """A truth about two numbers."""

    THRESHOLD = auto()
    """A step function of few levels: what a spike is made with."""

    ROUNDS = auto()
    """Piecewise constant with levels without end."""

    DETACHES = auto()
    """The same value, which no gradient passes."""

    COPIES = auto()
    """The same numbers in the same type, perhaps in other memory."""

    CASTS = auto()
    """The same numbers, as far as another type has them. What they are made like has no say in their shape."""

    LAYS_OUT = auto()
    """The same numbers, each once, in a tensor of another shape."""

    PERMUTES = auto()
    """Lays numbers out with the axes in an order that it is given."""

    LIKE = auto()
    """Reads nothing of its first tensor but shape, type and device."""

    OF_TYPE = auto()
    """Reads nothing of its first tensor but type and device."""

    SIZE = auto()
    """Tells how many elements or axes there are."""

    ASKS = auto()
    """Is between Python and a tensor alone: answered at once, and no node of a graph."""

    READS = auto()
    """Brings the values of a tensor into Python."""

    FILLS = auto()
    """A tensor of one number, such as states begin as."""

    OF_NUMBERS = auto()
    """A tensor made of numbers that Python holds."""

    TAKES_SIZE = auto()
    """Is called with sizes, or with a list as long as one; the numbers of others are hardly ever a batch size."""

    INDEXES = auto()
    """Takes a part of a tensor, or writes it, by the numbers of its elements along an axis."""

    SELECTS = auto()
    """How much it returns depends on the values."""

    JOINS = auto()
    """Puts a list of tensors side by side."""

    RANDOM = auto()
    """Draws random numbers, some of them in training alone."""

    DROPS = auto()
    """Random in training alone; its value has the shape of what it takes."""

    BATCH_STATISTICS = auto()
    """Normalises by the statistics of its batch in training, and moves running ones."""

    OWN_STATISTICS = auto()
    """Normalises every sample by itself in training, and may move running statistics."""

    CHOOSES = auto()
    """Every number of the value is one of its first tensor's: nothing is rounded, whatever is computed together."""

    WHOLE = auto()
    """Makes whole numbers of whole numbers, without overflow in Python's arithmetic."""


CUTS = Fact.DETACHES | Fact.COMPARES | Fact.LIKE | Fact.OF_TYPE | Fact.SIZE
"""The value requires no gradient: autograd does not lead back from it."""

FLAT = CUTS | Fact.THRESHOLD | Fact.ROUNDS
"""The derivative is zero wherever there is one."""

SHAPE_ONLY = Fact.LIKE | Fact.OF_TYPE | Fact.SIZE
"""The values of its first tensor have no part in it."""

SAME_NUMBERS = Fact.COPIES | Fact.CASTS
"""What it takes and what it gives are equal, gradients as well."""

NORMALISES = Fact.BATCH_STATISTICS | Fact.OWN_STATISTICS
"""May move running statistics."""


class Rows(Enum):
    """How an operation treats the first axis of what it takes, where it is the batch: its rows stay apart."""

    SAMPLES = "each sample by itself"
    LAST_AXIS = "the last axis of the first operand, by what has at most two axes"
    NAMED_AXES = "the axes that it is given, if the first is none of them"
    SIZES = "into the sizes that it is given, if the first stays in front"
    INDEX = "the parts that its index names, if all of the first axis is among them"


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation, with all its spellings.

    A name stands for the function of ``torch`` and of ``torch.nn.functional``, the method of a tensor, their in-place
    forms with an underscore, and the operator of ``torch.ops.aten``: whichever of them there are.

    Attributes:
        name: The canonical name.
        facts: What is true of it.
        also: Other names for the same.
        aten: Names that are overloaded operators of ``torch.ops.aten`` alone.
        symbol: Name in the ``operator`` module; the methods behind it, reflected and in place too, are spellings.
        old_symbols: What tensors still call the methods of that operator.
        properties: Attributes of tensors that are the operation without arguments.
        modules: Classes whose forward is the operation, with the numbers that the module holds as its arguments.
        rows: What is known of the batch; an elementwise operation needs no word on it.
        spatial: Number of axes that follow batch and channels, where it needs them.
        fill: The number that all elements are, where the operation has but one.
    """

    name: str
    facts: Fact
    also: tuple[str, ...] = ()
    aten: tuple[str, ...] = ()
    symbol: str = ""
    old_symbols: tuple[str, ...] = ()
    properties: tuple[str, ...] = ()
    modules: tuple[type[nn.Module], ...] = ()
    rows: Rows | None = None
    spatial: int | None = None
    fill: float | None = None


UNKNOWN = Operation(name="unknown", facts=Fact(0))
"""Stands for whatever the table does not have: nothing is known of it."""


def alike(names: str, facts: Fact, **others: Any) -> tuple[Operation, ...]:
    """Returns an entry for each of some names of which the same is true."""
    return tuple(Operation(name=name, facts=facts, **others) for name in names.split())
