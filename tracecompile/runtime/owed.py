"""Outputs of steps that a stream has run ahead, and that nobody has yet."""

from __future__ import annotations

from dataclasses import dataclass

from tracecompile.errors import InvalidInput


@dataclass(eq=False)
class Owed:
    """Steps that were run together.

    Attributes:
        steps: How many.
        left: How many of them nobody has the outputs of.
    """

    steps: int
    left: int


def refuse_owed(owed: Owed | None, what: str) -> None:
    """Refuses what would count steps that the caller knows nothing of.

    Args:
        owed: Steps that were run together last, if any were.
        what: Was asked for.

    Raises:
        InvalidInput: There are such steps.
    """
    if owed is not None and owed.left:
        raise InvalidInput(
            f"{what} in the middle of {owed.steps} steps that the stream has run together, as its lookahead lets it: "
            f"{owed.left} of their outputs were not given yet.",
            "Do it where the number of outputs is a multiple of lookahead, or stream without lookahead.",
        )
