"""What a step does besides: by its number, by chance, or by the values; and what is reset before a sequence."""

from __future__ import annotations

from fuzz.choices import Choices
from fuzz.draft import Draft
from fuzz.layers import Step

TIMED = (
    [], ["if t < 2:", "    {c} = {c} * 0.5"], ["{c} = {c} * (1.0 if t % 2 == 0 else 0.5)"], ["{c} = {c} + 0.01 * t"],
    ["{c} = {c} * self.schedule[t]"], ["if t == 0:", "    {c} = {c} * 0.0"], ["{c} = {c} * (0.5 + 0.5 * t / T)"],
)  # fmt: skip
DECIDED = (
    [], ["if {z}.sum() > 3:", "    {z} = {z} * 1.0"], ["if {z}.mean().item() > 0.5:", "    {z} = 0.9 * {z}"],
    ["if not {z}.any():", "    {z} = {z} + 0.0"],
)  # fmt: skip
NOISE = (
    "",
    "{c} = {c} + 0.05 * torch.randn_like({c})",
    "{c} = F.dropout({c}, 0.2, self.training)",
    "unused = torch.rand(1)",
    "{c} = {c} * torch.bernoulli(torch.full_like({c}, 0.8))",
    "{c} = {c} * (torch.rand({c}.shape) < 0.9)",
)


def resets(draft: Draft) -> list[str]:
    """Returns the lines that bring modules with a state of their own back to the beginning."""
    return list(dict.fromkeys(draft.notes.get("resets", [])))  # type: ignore[call-overload]


def resets_of_children(draft: Draft) -> list[str]:
    """The same within a method ``reset`` of the net, which a library's function would call again."""
    each = "for child in self.children():\n    functional.reset_net(child)"
    return [each if "functional" in line else line for line in resets(draft)]


def oddities(choose: Choices, draft: Draft, step: Step, knows: bool) -> list[str]:
    """Adds to a step what depends on the step number, on chance, or on the values."""
    lines = list(step.lines)
    at = next(i for i, line in enumerate(lines) if line.startswith("cur1 = ")) + 1
    timed = choose("timed", TIMED, 0.95) if knows else []
    if any("schedule" in line for line in timed):
        draft.net.add('self.register_buffer("schedule", torch.linspace(0.5, 1.5, 100))')
    noise = choose("noise", NOISE, 0.95)
    lines[at:at] = [line.format(c="cur1") for line in [*timed, *([noise] if noise else [])]]
    if decided := choose("decided", DECIDED, 0.98):
        draft.notes["refused"] = True
        lines += [line.format(z=f"z{step.last}") for line in decided]
        lines += [line for line in step.lines if line.startswith("y = self.out(")]
    return lines
