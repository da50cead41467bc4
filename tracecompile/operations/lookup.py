"""Finds the entry of what a node calls, under whichever spelling it calls it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import fx, nn
from torch.nn import functional as F

from tracecompile.operations.arrangement import ARRANGEMENT
from tracecompile.operations.elementwise import ELEMENTWISE
from tracecompile.operations.facts import UNKNOWN, Fact, Operation
from tracecompile.operations.layers import LAYERS
from tracecompile.operations.tensors import TENSORS

OPERATIONS: tuple[Operation, ...] = (*ELEMENTWISE, *ARRANGEMENT, *LAYERS, *TENSORS)
"""The table."""

_PLACES: tuple[ModuleType, ...] = (torch, F)
_UNARY = (operator.neg, operator.pos, operator.abs, operator.invert)
_Function = TypeVar("_Function", bound=Callable[..., Any])


class Symbol(NamedTuple):
    """One of Python's operators as it reaches a tensor.

    Attributes:
        function: Of the ``operator`` module.
        operands: How many it takes.
        reflected: Whether they come the other way round.
        in_place: Whether the result is written into the first of them.
    """

    function: Callable[..., Any]
    operands: int
    reflected: bool = False
    in_place: bool = False


class Index:
    """Some entries by their spellings.

    Raises:
        ValueError: Two entries claim one spelling.
    """

    def __init__(self, entries: tuple[Operation, ...]) -> None:
        self.names = _by(entries, names_of)
        self.aten = _by(entries, lambda entry: (entry.name, *entry.also, *entry.aten))
        self.functions = _by(entries, functions_of)
        self.properties = _by(entries, lambda entry: entry.properties)
        self.modules = _by(entries, lambda entry: entry.modules)
        self.symbols = {name: symbol for entry in entries for name, symbol in symbols_of(entry).items()}


def names_of(entry: Operation) -> Iterator[str]:
    """Yields the names of an entry that methods of tensors may have, but not those with an underscore behind."""
    yield from (entry.name, *entry.also, *symbols_of(entry))


def symbols_of(entry: Operation) -> dict[str, Symbol]:
    """Returns the names under which Python's operator reaches a tensor, where an entry is one."""
    if not entry.symbol:
        return {}
    function, name = getattr(operator, entry.symbol), entry.symbol.strip("_")
    operands = 1 if function in _UNARY else 2
    plain = Symbol(function, operands)
    found = {f"__{name}__": plain} | dict.fromkeys((entry.name, *entry.also), plain)
    if operands == 2 and not entry.facts & (Fact.COMPARES | Fact.INDEXES):
        for each in (name, *entry.old_symbols):
            found[f"__{each}__"] = plain
            found[f"__r{each}__"] = Symbol(function, operands, reflected=True)
            found[f"__i{each}__"] = Symbol(function, operands, in_place=True)
    return found


def functions_of(entry: Operation) -> Iterator[Callable[..., Any]]:
    """Yields the functions that are an entry."""
    for name in (entry.name, *entry.also):
        for place in _PLACES:
            for spelling in (name, f"{name}_"):
                found = getattr(place, spelling, None)
                if callable(found) and not isinstance(found, type):
                    yield found
    if entry.symbol:
        yield getattr(operator, entry.symbol)


def _by(entries: tuple[Operation, ...], spellings: Callable[[Operation], Iterable[Any]]) -> dict[Any, Operation]:
    table: dict[Any, Operation] = {}
    for entry in entries:
        for spelling in spellings(entry):
            if table.setdefault(spelling, entry) is not entry:
                raise ValueError(f"{spelling} is both {table[spelling].name} and {entry.name}")
    return table


_index = Index(OPERATIONS)


def operation_of(node: fx.Node, module: nn.Module | None = None) -> Operation:
    """Returns the entry of what a node calls; one that says nothing where the table has none.

    Args:
        node: Of any graph.
        module: What a ``call_module`` node calls.
    """
    if node.op == "call_function":
        if node.target is getattr and len(node.args) > 1:
            return operation_of_property(str(node.args[1]))
        return operation_of_function(node.target)
    if node.op == "call_method":
        symbol = symbol_named(str(node.target))
        # What is true of an operation may depend on the order of its operands, and this is the other one.
        return UNKNOWN if symbol is not None and symbol.reflected else operation_named(str(node.target))
    return operation_of_module(module) if module is not None else UNKNOWN


def has(node: fx.Node, facts: Fact, module: nn.Module | None = None) -> bool:
    """Tells whether one of some facts is true of what a node calls."""
    return bool(operation_of(node, module).facts & facts)


def operation_of_function(function: Any) -> Operation:
    """Returns the entry of a function, of ``torch.ops.aten`` too."""
    if isinstance(function, torch._ops.OpOverload):
        function = function.overloadpacket
    if isinstance(function, torch._ops.OpOverloadPacket):
        space, _, name = function._qualified_op_name.partition("::")
        return _found(name, _index.aten) if space == "aten" else UNKNOWN
    own = getattr(function, "operation", None)
    return own if isinstance(own, Operation) else _index.functions.get(function, UNKNOWN)


def operation_named(name: str) -> Operation:
    """Returns the entry of a method of tensors, or of a function by the name that it has in torch."""
    return _found(name, _index.names)


def operation_of_property(name: str) -> Operation:
    """Returns the entry of a property of tensors."""
    return _index.properties.get(name, UNKNOWN)


def operation_of_module(module: nn.Module) -> Operation:
    """Returns the entry of a module that is kept whole: one of torch's, or a library's that extends one."""
    return next((_index.modules[kind] for kind in type(module).__mro__ if kind in _index.modules), UNKNOWN)


def modules_with(facts: Fact) -> tuple[type[nn.Module], ...]:
    """Returns the classes of torch of which one of some facts is true."""
    return tuple(kind for kind, operation in _index.modules.items() if operation.facts & facts)


def symbol_named(name: str) -> Symbol | None:
    """Returns the operator of Python's that a method, or a function of torch by its name, is another spelling of."""
    return _index.symbols.get(name)


def described(facts: Fact) -> Callable[[_Function], _Function]:
    """Makes the entry of a function of the compiler's own, where it is defined."""

    def describe(function: _Function) -> _Function:
        vars(function)["operation"] = Operation(name=function.__name__, facts=facts)
        return function

    return describe


def _found(name: str, table: dict[str, Operation]) -> Operation:
    """Looks a name up, without the underscore of an in-place form where it has one."""
    if name in table or name.endswith("__") or not name.endswith("_"):
        return table.get(name, UNKNOWN)
    return table.get(name[:-1], UNKNOWN)
