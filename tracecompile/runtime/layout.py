"""What a snapshot says of itself: the net that it was taken of, and the shape and type of every tensor in it.

The layout travels as one more tensor of the snapshot, the bytes of a text: a snapshot is a plain dict of tensors, which
can be kept and read without running code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote

import torch
from torch import Tensor

from tracecompile.errors import InvalidInput
from tracecompile.program import StepProgram
from tracecompile.segment import lasting

LAYOUT = "layout"
"""Key of the layout in a snapshot."""


def joined(*parts: object) -> str:
    """Returns a key made of parts, whatever characters they hold."""
    return "|".join(quote(str(part), safe=" :.[]") for part in parts)


def parted(key: str) -> list[str]:
    """Returns the parts of a key."""
    return [unquote(part) for part in key.split("|")]


def with_layout(program: StepProgram, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns tensors with their layout."""
    text = json.dumps({"net": _described(program), "tensors": _shapes(tensors)})
    return {**tensors, LAYOUT: torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)}


def checked(program: StepProgram, snapshot: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns the tensors of a snapshot, without the layout.

    Raises:
        InvalidInput: It is none, it is incomplete, or it was taken of another net; says what differs.
    """
    found = {name: value for name, value in snapshot.items() if name != LAYOUT and isinstance(value, Tensor)}
    layout = _read(snapshot.get(LAYOUT))
    if layout is None or len(found) != len(snapshot) - 1:
        raise InvalidInput("This is not what snapshot() returns.", "Restore a dict as it was returned, whole.")
    of_net = "The snapshot was taken of another net: its {name} is {was}, not {is_}."
    _compare(layout["net"], _described(program), of_net)
    _compare(layout["tensors"], _shapes(found), "The snapshot was changed: its {name} was {was}, and is {is_}.")
    return found


def _described(program: StepProgram) -> dict[str, Any]:
    parameters = {f"parameter {name}": list(value.shape) for name, value in program.root.named_parameters()}
    states = [carry.name for carry in lasting(program)]
    return {"rule": program.settings.rule, "bins": program.settings.bins, "list of states": states, **parameters}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: [str(value.dtype), list(value.shape)] for name, value in tensors.items()}


def _read(value: Any) -> Any:
    if not isinstance(value, Tensor) or value.dtype != torch.uint8 or value.ndim != 1:
        return None
    try:
        layout = json.loads(bytes(value.cpu().tolist()))
    except ValueError:
        return None
    return layout if isinstance(layout, dict) and {"net", "tensors"} <= set(layout) else None


def _compare(was: dict[str, Any], is_: dict[str, Any], sentence: str) -> None:
    for name in (*was, *is_):
        if was.get(name) != is_.get(name):
            said = [("missing" if value is None else value) for value in (was.get(name), is_.get(name))]
            text = sentence.format(name=name, was=said[0], is_=said[1])
            raise InvalidInput(text, "Restore it into the net that it was taken of.")
