"""One time step of a whole network: layers one after the other, and a readout."""

from __future__ import annotations

from dataclasses import dataclass, field

from fuzz.choices import Choices
from fuzz.draft import HIDDEN, INPUTS, OUTPUTS, Draft, Module, inner
from fuzz.libraries import STYLES, library_neuron
from fuzz.neurons import Neuron, neuron
from fuzz.odd import odd
from fuzz.states import States
from fuzz.synapses import recurrent, synapse

READOUTS = ("linear", "leaky", "spikes", "softmax", "two heads", "leaky, learned")


@dataclass
class Step:
    """The code of one time step.

    Attributes:
        before: Lines that stand before the loop, beside the states'.
        lines: Of the step.
        last: Number of the last layer.
        membrane: Expression of its membrane after the step, if the step can see it.
    """

    before: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    last: str = "1"
    membrane: str | None = None


def network(choose: Choices, draft: Draft, states: States, below: str, layers: int, inputs: bool, loose: bool) -> Step:
    """Draws one step.

    Args:
        choose: Makes the choices.
        draft: The program.
        states: Keeps the states of what is written out.
        below: Expression of the input of the step.
        layers: Number of layers with neurons.
        inputs: The initial states may use the whole input.
        loose: Lists that are carried from step to step may stand beside the states.
    """
    net, step, size = draft.net, Step(), INPUTS
    feedback = layers == 2 and choose("feedback", (False, True))
    for number in range(1, layers + 1):
        n = str(number)
        step.lines += layer(choose, draft, states, step, n, (below, size), inputs, loose, feedback)
        below, size, step.last = f"z{n}", HIDDEN, n
    step.lines += readout(choose, draft, net, states, step.last)
    return step


def layer(
    choose: Choices, draft: Draft, states: States, step: Step, n: str, below: tuple[str, int], inputs: bool,
    loose: bool, feedback: bool,
) -> list[str]:  # fmt: skip
    """Draws one layer: what comes in, what its neurons do, and what is done with the spikes."""
    net = draft.net
    lines = synapse(choose, draft, net, n, below[0], (below[1], HIDDEN))
    lines += odd(choose, draft, net, f"current {n}", f"cur{n}", HIDDEN)
    kind, lateral = recurrent(choose, draft, net, n, HIDDEN)
    styles = [each for each in STYLES if states.kind not in ("history", "buffer") or not each.startswith("norse")]
    style = choose(f"style {n}", ("written", "module", *styles), 0.8)
    returns = feedback and n == "2"
    if kind == "delayed" and not loose:
        kind, lateral = "none", []
    if (kind not in ("none", "delayed") or returns) and (style != "written"):
        states.declare(f"z{n}", f"x.new_zeros(B, {HIDDEN})", HIDDEN)
    recalls = kind not in ("none", "delayed") or returns
    if recalls:
        states.declare(f"z{n}", f"x.new_zeros(B, {HIDDEN})", HIDDEN)
    lines += [line.format(z=states.get(f"z{n}")) if "{z}" in line else line for line in lateral]
    if feedback and n == "1":
        states.declare("z2", f"x.new_zeros(B, {HIDDEN})", HIDDEN)
        net.add(f"self.down = nn.Linear({HIDDEN}, {HIDDEN}, bias=False)")
        lines.append(f"cur1 = cur1 + 0.3 * self.down({states.get('z2')})")
    if style == "written":
        lines += neuron(choose, draft, net, states, Neuron(n, HIDDEN, recalls), inputs)
        step.membrane = states.get(f"v{n}")
    else:
        step.membrane = None
        if style == "module":
            lines += neuron_module(choose, draft, n)
        else:
            lines += library_neuron(choose, draft, net, states, n, style, HIDDEN)
        if recalls and states.get(f"z{n}") != f"z{n}":
            lines.append(states.put(f"z{n}", f"z{n}"))
    if kind == "delayed":
        step.before.append(f"late{n} = [x.new_zeros(B, {HIDDEN}) for _ in range(2)]")
        lines += choose(
            f"delay line {n}",
            ([f"late{n} = late{n}[1:] + [z{n}]"], [f"late{n}.append(z{n})", f"late{n}.pop(0)"]),
        )
    return lines + odd(choose, draft, net, f"spikes {n}", f"z{n}", HIDDEN)


def neuron_module(choose: Choices, draft: Draft, n: str) -> list[str]:
    """Draws a neuron as a module with its states inside, the same class for all layers; returns the call."""
    if "Neuron" not in draft.definitions:
        owner = Module("Neuron", "A layer of neurons that keep their own state.")
        states = States("attribute", draft, owner)
        body = neuron(choose, draft, owner, states, Neuron("", HIDDEN), inputs=False)
        begins = choose("module begins", ("None", "0.0"))
        names = list(states.starts)
        if begins == "None":
            owner.init += [f"self.{name} = None" for name in names]
            reset = [f"self.{name} = None" for name in names]
            first = ["if self.v is None:", *inner([f"self.{name} = {value}" for name, value in states.starts.items()])]
        else:
            owner.init += [f"self.{name} = 0.0" for name in names]
            reset, first = [f"self.{name} = 0.0" for name in names], []
        owner.method("reset(self)", reset)
        owner.method("forward(self, x)", ["B = x.shape[0]", "cur = x", *first, *body, "return z"])
        draft.define("Neuron", owner.render())
    draft.net.add(f"self.neuron{n} = Neuron()")
    draft.notes.setdefault("resets", []).append(  # type: ignore[attr-defined]
        choose(
            "module reset",
            (f"self.neuron{n}.reset()", "for m in self.modules():\n    if isinstance(m, Neuron):\n        m.reset()"),
        )
    )
    return [f"z{n} = self.neuron{n}(cur{n})"]


def readout(choose: Choices, draft: Draft, net: Module, states: States, n: str) -> list[str]:
    """Draws what is computed of the last spikes: ``y``."""
    kind = choose("readout", READOUTS)
    if kind == "spikes":
        return [f"y = z{n}"]
    net.add(f"self.out = nn.Linear({HIDDEN}, {OUTPUTS})")
    if kind == "softmax":
        return [f"y = F.softmax(self.out(z{n}), dim=1)"]
    if kind == "two heads":
        net.add(f"self.value = nn.Linear({HIDDEN}, 1)")
        return [f"y = torch.cat([self.out(z{n}), self.value(z{n})], dim=1)"]
    if kind == "linear":
        return [f"y = self.out(z{n})", *odd(choose, draft, net, "readout", "y", OUTPUTS)]
    states.declare("y", f"x.new_zeros(B, {OUTPUTS})", OUTPUTS)
    rate = "0.8"
    if kind == "leaky, learned":
        net.add("self.leak = nn.Parameter(torch.tensor(1.0))")
        rate = "torch.sigmoid(self.leak)"
    lines = [states.put("y", f"{rate} * {states.get('y')} + self.out(z{n})")]
    return lines if states.get("y") == "y" else [*lines, f"y = {states.get('y')}"]
