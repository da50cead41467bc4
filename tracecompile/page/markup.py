"""HTML and SVG as text: whatever is not made here is escaped."""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from typing import Any, TypeAlias

VOID = ("meta", "link", "br", "input")


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Child: TypeAlias = "str | Iterable[Child] | None"


def element(name: str, /, *children: Child, **attributes: Any) -> Markup:
    """Returns an element.

    Args:
        name: Of its tag.
        *children: Text, which is escaped unless it is ``Markup``, or several; None is left out.
        **attributes: Underscores stand for hyphens, and ``class_`` for ``class``; None and False are left out.
    """
    given = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    words = [
        key if value is True else f'{key}="{escape(str(value))}"'
        for key, value in given
        if value is not None and value is not False
    ]
    start = f"<{' '.join([name, *words])}>"
    return Markup(start if name in VOID else f"{start}{join(children)}</{name}>")


def join(children: Iterable[Child]) -> Markup:
    """Returns some children, one after the other."""
    parts = []
    for child in children:
        if isinstance(child, Markup):
            parts.append(str(child))
        elif isinstance(child, str):
            parts.append(escape(child))
        elif child is not None:
            parts.append(str(join(child)))
    return Markup("".join(parts))


def data_block(name: str, data: Any) -> Markup:
    """Returns data for scripts and other programs: no text within it can end the block."""
    text = json.dumps(data, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(f'<script type="application/json" id="{escape(name)}">{text}</script>')
