"""Models of one step per call."""

from __future__ import annotations

from fuzz.choices import Choices
from fuzz.disturbed import oddities, resets_of_children
from fuzz.draft import Draft, inner
from fuzz.layers import network
from fuzz.states import States


def one_step(choose: Choices, draft: Draft, form: str, layers: int) -> None:
    """A model of one step per call, with its states inside or handed in and out."""
    net = draft.net
    inside = form == "step"
    states = States(
        "attribute" if inside else choose("container", ("tuple", "namedtuple", "dict", "list"), 0.5), draft, net
    )
    step = network(choose, draft, states, "x", layers, False, loose=False)
    lines = oddities(choose, draft, step, False)
    shown = choose("shown", ("y", f"z{step.last}", f"y, z{step.last}", f'{{"y": y, "z": z{step.last}}}'), 0.6)
    sizes, begin = ["B = x.shape[0]"], states.begin()
    first = next(iter(states.starts), None)
    if inside:
        names = list(states.starts)
        net.init += [f"self.{name} = None" for name in names]
        start = [f"if self.{first} is None:", *inner(begin)] if first is not None else []
        if first is not None and states.starts[first] == "None":
            start = []
        net.method("reset(self)", resets_of_children(draft) + [f"self.{name} = None" for name in names] or ["pass"])
        net.method("forward(self, x)", [*sizes, *start, *lines, f"return {shown}"])
        return
    state = states.variable()
    if first is None:
        begin = [f"{state} = ()"]
    net.method("reset(self)", resets_of_children(draft) or ["pass"])
    given = [f"if {state} is None:", *inner(begin)]
    net.method(
        f"forward(self, x, {state}=None)",
        [*sizes, *given, *states.unpack(), *lines, *states.pack(), f"return ({shown}), {state}"],
    )
