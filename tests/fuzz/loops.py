"""How time passes: the header of the loop, and what a step reads."""

from __future__ import annotations

from dataclasses import dataclass, field

from fuzz.choices import Choices
from fuzz.draft import Draft, inner

AXES = ("first", "second", "last")


@dataclass
class Loop:
    """A loop over time.

    Attributes:
        header: The line with the colon.
        before: Lines before it.
        first: Lines that begin its body.
        last: Lines that end its body.
        knows: Whether ``t`` is there.
    """

    header: str
    before: list[str] = field(default_factory=list)
    first: list[str] = field(default_factory=list)
    last: list[str] = field(default_factory=list)
    knows: bool = True

    def around(self, lines: list[str]) -> list[str]:
        """Returns the whole loop."""
        return [*self.before, self.header, *inner([*self.first, *lines, *self.last])]


def loop(choose: Choices, draft: Draft, name: str, source: str, axis: str, needs_t: bool, whole: bool = False) -> Loop:
    """Draws a loop over a tensor whose steps are read as ``x_t``; ``T`` is the number of steps.

    Args:
        choose: Makes the choices.
        draft: The program.
        name: Of the loop.
        source: Name of the tensor.
        axis: Where time is in it.
        needs_t: The body reads ``t``.
        whole: All steps must be taken.
    """
    dim = {"first": 0, "second": 1, "last": 2}[axis]
    at = {"first": f"{source}[t]", "second": f"{source}[:, t]", "last": f"{source}[..., t]"}[axis]
    rows = source if axis == "first" else f"{source}.{('transpose(0, 1)', 'permute(2, 0, 1)')[dim - 1]}"
    read = choose(
        f"read {name}",
        (f"x_t = {at}", f"x_t = {source}.select({dim}, t)", f"x_t = {source}.narrow({dim}, t, 1).squeeze({dim})"),
    )
    ways = {
        "range": Loop("for t in range(T):", first=[read]),
        "range of shape": Loop(f"for t in range({source}.shape[{dim}]):", first=[read]),
        "range of size": Loop(f"for t in range({source}.size({dim})):", first=[read]),
        "iterate": Loop(f"for x_t in {rows}:", knows=False),
        "enumerate": Loop(f"for t, x_t in enumerate({rows}):"),
        "unbind": Loop(f"for x_t in {source}.unbind({dim}):", knows=False),
        "torch unbind": Loop(f"for t, x_t in enumerate(torch.unbind({source}, dim={dim})):"),
        "while": Loop("while t < T:", ["t = 0"], [read], ["t += 1"]),
        "zip": Loop(f"for t, x_t in zip(range(T), {rows}):"),
        "chunks": Loop(f"for piece in {source}.chunk(T, {dim}):", first=[f"x_t = piece.squeeze({dim})"], knows=False),
        "split": Loop(f"for t, piece in enumerate({source}.split(1, {dim})):", first=[f"x_t = piece.squeeze({dim})"]),
        "list": Loop("for x_t in frames:", [f"frames = list({rows})"], knows=False),
        "comprehension": Loop("for x_t in frames:", [f"frames = [{at} for t in range(T)]"], knows=False),
        "iterator": Loop("for t in range(T):", [f"frames = iter({rows})"], ["x_t = next(frames)"]),
        "arange": Loop("for t in torch.arange(T):", first=[read]),
        "reversed": Loop("for t in reversed(range(T)):", first=[read]),
        "from second": Loop("for t in range(1, T):", first=[read]),
        "difference": Loop("for t in range(1, T):", first=[read, f"x_t = x_t - {at.replace('t]', 't - 1]')}"]),
        "two": Loop(f"for x_t, other in zip({rows}, {rows}.flip(0)):", first=["x_t = x_t + 0.1 * other"], knows=False),
        "stack": Loop("while frames:", [f"frames = list({rows})"], ["x_t = frames.pop(0)"], knows=False),
        "while true": Loop("while True:", ["t = 0"], ["if t >= T:\n    break", read], ["t += 1"]),
        "len": Loop(f"for t in range(len({rows})):", first=[read]),
        "strided": Loop("for t in range(0, T, 2):", first=[read]),
    }  # fmt: skip
    parts = ("from second", "difference", "strided")
    names = [each for each, way in ways.items() if (way.knows or not needs_t) and not (whole and each in parts)]
    return ways[choose(f"loop {name}", names, 0.25)]


def prologue(choose: Choices, axis: str) -> list[str]:
    """Returns the lines that name the number of steps and the batch size."""
    steps, batch = {"first": (0, 1), "second": (1, 0), "last": (2, 0)}[axis]
    unpacked = {"first": "T, B, _ = x.shape", "second": "B, T, _ = x.shape", "last": "B, _, T = x.shape"}[axis]
    way = choose("sizes", (unpacked, "shape", "size", "first frame"))
    if way == "shape":
        return [f"T = x.shape[{steps}]", f"B = x.shape[{batch}]"]
    if way == "size":
        return [f"T, B = x.size({steps}), x.size({batch})"]
    if way == "first frame":
        return [f"T = x.size({steps})", f"B = x.select({steps}, 0).shape[0]"]
    return [unpacked]
