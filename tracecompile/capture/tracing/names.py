"""Names for what the program gives a name to."""

from __future__ import annotations

import keyword


def valid_name(name: str) -> str:
    """Turns a path such as "lif.history[1]" into a Python identifier."""
    plain = "".join(letter if letter.isalnum() else "_" for letter in name).strip("_")
    return f"_{plain}" if plain[:1].isdigit() or keyword.iskeyword(plain) else plain


def unique(name: str, taken: set[str]) -> str:
    """Returns a name that is not taken yet, and takes it."""
    candidate, number = name or "value", 0
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    taken.add(candidate)
    return candidate
