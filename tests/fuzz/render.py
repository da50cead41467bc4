"""From choices to the source of a whole model, and what its user does with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fuzz.chain import chain
from fuzz.choices import Choices
from fuzz.draft import Draft, Module
from fuzz.loops import AXES
from fuzz.one_loop import one_loop
from fuzz.one_step import one_step
from fuzz.surrogates import surrogate

FORMS = ("loop", "method", "static image", "fixed steps", "chain", "step", "step with states", "sequence helper")


@dataclass
class Rendered:
    """A program as text.

    Attributes:
        source: Of the file.
        form: How the model is called.
        axis: Where time is, in the input.
        single: It does not run in float64.
        coarse: The relative error of the coarsest type that it rounds to on the way.
        normalised: It needs more than one sample.
        refused: It must be refused.
        ran: It is run before it is converted.
        taken: The choices that differ from the first options.
    """

    source: str
    form: str
    axis: str = "first"
    single: bool = False
    coarse: float = 0.0
    normalised: bool = False
    refused: bool = False
    ran: bool = False
    taken: dict[str, int] = field(default_factory=dict)


def render(choose: Choices) -> Rendered:
    """Draws a program."""
    draft = Draft(Module("Net", "A spiking network."))
    form = choose("form", FORMS, 0.4)
    surrogate(choose, draft)
    made = Rendered("", form)
    layers = choose("layers", (1, 2), 0.5)
    if form in ("step", "step with states"):
        one_step(choose, draft, form, layers)
    elif form in ("chain", "sequence helper"):
        made.axis = choose("axis", AXES[:2], 0.6)
        chain(choose, draft, made.axis, layers, helper=form == "sequence helper")
    else:
        made.axis = choose("axis", AXES, 0.6) if form != "static image" else "none"
        one_loop(choose, draft, form, made.axis, layers)
    made.ran = choose("ran before", (False, True), 0.85)
    notes: dict[str, Any] = draft.notes
    made.single, made.coarse = bool(notes.get("single")), notes.get("coarse", 0.0)
    made.normalised = bool(notes.get("normalised"))
    made.refused = made.refused or bool(notes.get("refused"))
    made.source, made.taken = draft.render(), dict(choose.taken)
    return made
