"""Models with one loop over time and all layers inside."""

from __future__ import annotations

from dataclasses import dataclass, field

from fuzz.choices import Choices
from fuzz.disturbed import oddities, resets
from fuzz.draft import HIDDEN, OUTPUTS, Draft
from fuzz.layers import Step, network
from fuzz.loops import Loop, loop, prologue
from fuzz.records import Record, epilogue, kind_of_record, needs_t, record, returned
from fuzz.states import CONTAINERS, PASSED, States

ENCODERS = (
    "", "x = torch.tanh(x)", "x = x * 1.5", "x = F.dropout(x, 0.2, self.training)", "x = x - x.mean()",
    "x = (x > 0.3).to(x.dtype)", "x = x.clone()", "x = self.encode(x)",
)  # fmt: skip
RECORDED = (("y",), ("z",), ("y", "z"), ("v",), ("y", "v"), ("y", "z", "v"))
STOPS = ((), ("if t >= 7:", "    break"))
OF_AN_IMAGE = (
    Loop("for t in range(self.num_steps):", first=["x_t = x"]),
    Loop("for t, x_t in enumerate(x.unsqueeze(0).repeat(self.num_steps, 1, 1)):"),
    Loop("for t in range(T):", first=["x_t = x"]),
    Loop("for t in range(self.num_steps):", first=["x_t = (x > 0.3).to(x.dtype)"]),
    Loop("for t in range(self.num_steps):", ["frames = x.expand(self.num_steps, -1, -1)"], ["x_t = frames[t]"]),
)


@dataclass
class Kept:
    """What is kept of the steps of a loop.

    Attributes:
        plans: How and when each value is kept, by its letter.
        records: The code of each.
    """

    plans: dict[str, tuple[str, str]]
    records: dict[str, Record] = field(default_factory=dict)

    def lines(self, part: str) -> list[str]:
        """Returns one part of the code of all records."""
        return [line for each in self.records.values() for line in getattr(each, part)]


def one_loop(choose: Choices, draft: Draft, form: str, axis: str, layers: int) -> None:
    """Draws ``forward``; perhaps the step is a method of its own."""
    net, method = draft.net, form == "method"
    states = States(choose("container", PASSED if method else CONTAINERS, 0.4), draft, net)
    encoder = choose("before the loop", ENCODERS, 0.85)
    if "encode" in encoder:
        net.method("encode(self, x)", ["return torch.relu(x) - 0.5 * torch.relu(-x)"])
    step = network(choose, draft, states, "x_t", layers, axis == "first", loose=not method)
    kept = _kept(choose, step, method)
    turns = _turns(choose, draft, form, axis, kept, states.kind == "history")
    lines = oddities(choose, draft, step, turns.knows and not method)
    _record(kept, states, step, method)
    if method:
        inside = _method(draft, states, step, lines)
    else:
        inside = [*states.unpack(), *kept.lines("early"), *lines, *states.pack()]
    inside += [*kept.lines("late"), *(choose("stop", STOPS, 0.95) if turns.knows else ())]
    sizes = ["T, B = self.num_steps, x.shape[0]"] if axis == "none" else prologue(choose, axis)
    before = [*resets(draft), *sizes, *([encoder] if encoder else [])]
    if any("enc_" in start for start in states.starts.values()):
        before.append("first = x[0]")
    before += step.before + states.begin() + kept.lines("before")
    results = [epilogue(choose, f"{each}_rec", made) for each, made in kept.records.items()]
    after = [*kept.lines("after"), f"return {returned(choose, draft, results)}"]
    net.method("forward(self, x)", [*before, *turns.around(inside), *after])


def _kept(choose: Choices, step: Step, method: bool) -> Kept:
    """Draws what is kept: readouts, spikes, membranes."""
    wanted = choose("recorded", RECORDED, 0.4)
    if step.membrane is None:
        wanted = tuple(each for each in wanted if each != "v") or ("y",)
    return Kept({each: kind_of_record(choose, each) for each in wanted})


def _record(kept: Kept, states: States, step: Step, method: bool) -> None:
    """Writes the records down, now that it is known what the step looks like."""
    outputs = HIDDEN if "y = z" in step.lines[-1] else OUTPUTS
    if any("self.value(" in line for line in step.lines):
        outputs = OUTPUTS + 1
    values = {"y": ("y", outputs), "z": (f"z{step.last}", HIDDEN), "v": ("mem" if method else step.membrane, HIDDEN)}
    for each, (kind, condition) in kept.plans.items():
        expression, size = values[each]
        earlier = None
        if each == "v" and not method and states.kind == "locals" and states.shaped(f"v{step.last}"):
            earlier = expression
        kept.records[each] = record(f"{each}_rec", str(expression), kind, condition, earlier, size)


def _method(draft: Draft, states: States, step: Step, lines: list[str]) -> list[str]:
    """Makes the step a method; returns the call of it."""
    state, z = states.variable(), f"z{step.last}"
    names = [z, "y"] if step.membrane is None else [z, "y", "mem"]
    given = [z, "y"] if step.membrane is None else [z, "y", step.membrane]
    sizes = ["B = x.shape[0]"] if any("B" in line for line in lines) else []
    body = [line.replace("x_t", "x") for line in lines]
    draft.net.method(
        f"step(self, x, {state})",
        [*sizes, *states.unpack(), *body, *states.pack(), f"return {', '.join(given)}, {state}"],
    )
    return [f"{', '.join(names)}, {state} = self.step(x_t, {state})"]


def _turns(choose: Choices, draft: Draft, form: str, axis: str, kept: Kept, history: bool) -> Loop:
    """Draws the loop of a form."""
    needs = history or any(needs_t(*plan) for plan in kept.plans.values())
    if form in ("static image", "fixed steps"):
        draft.net.arguments = "num_steps"
        draft.net.add("self.num_steps = num_steps")
    if form == "static image":
        return choose("static loop", OF_AN_IMAGE)
    if form == "fixed steps":
        at = {"first": "x[t]", "second": "x[:, t]", "last": "x[..., t]"}[axis]
        return Loop("for t in range(self.num_steps):", first=[f"x_t = {at}"])
    whole = any(kind == "list of None" for kind, _ in kept.plans.values())
    return loop(choose, draft, "main", "x", axis, needs, whole)
