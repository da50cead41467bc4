"""Names and positions of the leaves of the user's arguments."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Parameter:
    """One parameter of the user's forward in one call.

    Attributes:
        name: Its name.
        value: What the call passes, or the default where it passes nothing.
        key: Its position among the positional arguments, or its name among the keyword ones.
        given: Whether the call passes it.
        default: Its default value, ``inspect.Parameter.empty`` where it has none.
        leaves: Positions of its leaves among those of (args, kwargs).
    """

    name: str
    value: Any
    key: int | str
    given: bool
    default: Any
    leaves: tuple[int, ...]


def parameters_of(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Parameter]:
    """Returns the parameters of a call, in the order of the leaves, then those that the call leaves out."""
    declared = list(inspect.signature(model.forward).parameters.values())
    plain = [item for item in declared if item.kind not in (item.VAR_POSITIONAL, item.VAR_KEYWORD)]
    by_name = {item.name: item for item in plain}
    passed: list[tuple[str, int | str, Any]] = []
    for position, value in enumerate(args):
        positional = plain[position].name if position < len(plain) else f"args_{position}"
        passed.append((positional, position, value))
    # Pytrees sort nothing: a dictionary's leaves come in the order of its insertion.
    passed += [(name, name, value) for name, value in kwargs.items()]
    result, start = [], 0
    for name, key, value in passed:
        count = len(pytree.tree_leaves(value))
        default = by_name[name].default if name in by_name else inspect.Parameter.empty
        result.append(Parameter(name, value, key, True, default, tuple(range(start, start + count))))
        start += count
    given = {parameter.name for parameter in result}
    for position, item in enumerate(plain):
        if item.name not in given:
            key = position if position == len(args) and item.kind is not item.KEYWORD_ONLY else item.name
            result.append(Parameter(item.name, item.default, key, False, item.default, ()))
    return result


def leaf_names(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """Returns a readable name for each leaf of the arguments ("x", "state[0]")."""
    names: list[str] = []
    for parameter in parameters_of(model, args, kwargs):
        if parameter.given:
            paths = pytree.tree_flatten_with_path(parameter.value)[0]
            names += [parameter.name + pytree.keystr(path) for path, _ in paths]
    return names


def substitute(
    args: tuple[Any, ...], kwargs: dict[str, Any], changes: dict[int | str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns the arguments with some of them replaced, or added at the end."""
    positional, keywords = list(args), dict(kwargs)
    for key, value in changes.items():
        if isinstance(key, str):
            keywords[key] = value
        elif key < len(positional):
            positional[key] = value
        else:
            positional.append(value)
    return tuple(positional), keywords
