"""Lists of all modules that a library's classes keep, as seen from a copy of one model.

A library may list every neuron ever made in an attribute of its class and walk that list to reset a network. Run on a
copy, such a reset would miss the copy, which no constructor ever put there, and write into the user's network instead.
So while a copy runs, the list holds the copy's modules, each in the place of the one that it was copied from.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

NOTE = "_modules_in_registries"
"""Attribute of a copy: what ``registries_of`` returned, with the copy's modules in it."""

Registry = tuple[type, str, list[nn.Module]]


def registries_of(model: nn.Module) -> list[Registry]:
    """Returns (class, attribute, those of the model's modules that it lists) of every such list of the model's classes.

    A list that holds modules of other networks only is among them: it must not be reached either.
    """
    own = {id(module) for module in model.modules()}
    classes = dict.fromkeys(base for module in model.modules() for base in type(module).__mro__)
    found: list[Registry] = []
    for owner in classes:
        for name, value in vars(owner).items():
            if isinstance(value, list) and value and all(isinstance(item, nn.Module) for item in value):
                found.append((owner, name, [item for item in value if id(item) in own]))
    return found


@contextmanager
def registries_redirected(copied: nn.Module) -> Iterator[None]:
    """Lets the registries list a copy's modules alone while the context is open."""
    redirected: list[Registry] = vars(copied).get(NOTE, [])
    originals: list[tuple[type, str, Any]] = [(owner, name, vars(owner)[name]) for owner, name, _ in redirected]
    try:
        for owner, name, members in redirected:
            setattr(owner, name, list(members))
        yield
    finally:
        for owner, name, value in originals:
            setattr(owner, name, value)
