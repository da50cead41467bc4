"""Models with a loop per layer: the currents of a layer are computed at once, before its loop."""

from __future__ import annotations

from fuzz.choices import Choices
from fuzz.disturbed import resets
from fuzz.draft import HIDDEN, OUTPUTS, Draft
from fuzz.layers import Step
from fuzz.loops import loop, prologue
from fuzz.neurons import Neuron, neuron
from fuzz.states import States

HOISTED = (
    "linear", "einsum", "flattened", "matmul", "layer norm", "flattened norm", "sequential", "conv", "residual",
)  # fmt: skip
BETWEEN = (
    "", "{s} = F.dropout({s}, 0.0)", "{s} = {s} * 0.9", "{s} = {s} + h{n}", "{s} = torch.relu({s})",
    "{s} = {s} + x.mean()", "{s} = {s}.cumsum({d}) / T", "{s} = {s}.clone()",
)  # fmt: skip
RESULTS = (
    "self.out({s})",
    "self.out({s}).mean({d})",
    "self.out({s}.mean({d}))",
    "self.out({s}).sum({d}) / T",
    "self.out({s}).select({d}, -1)",
    "self.out({s}).max({d})[0]",
    "({s}, self.out({s}))",
    "F.log_softmax(self.out({s}).sum({d}), -1)",
    "self.out({s})[-3:]",
)


def chain(choose: Choices, draft: Draft, axis: str, layers: int, helper: bool) -> None:
    """A loop per layer: all currents of a layer are computed at once before its loop."""
    net, below, lines = draft.net, "x", [*prologue(choose, axis)]
    dim = 0 if axis == "first" else 1
    count = layers + 1
    for number in range(1, count + 1):
        n, size = str(number), (6 if number == 1 else HIDDEN)
        lines += _hoisted(choose, draft, n, below, size, axis)
        if helper:
            lines.append(f"s{n} = self.run(h{n})")
        else:
            lines += _layer_loop(choose, draft, n, f"h{n}", axis, f"s{n}")
        between = choose(f"between {n}", BETWEEN, 0.7)
        if between:
            lines.append(between.format(s=f"s{n}", n=n, d=dim))
        below = f"s{n}"
    if helper:
        inside = [
            "T, B, _ = h.shape" if axis == "first" else "B, T, _ = h.shape",
            "x = h",
            *_layer_loop(choose, draft, "1", "h", axis, "out"),
            "return out",
        ]
        net.method("run(self, h)", inside)
    net.add(f"self.out = nn.Linear({HIDDEN}, {OUTPUTS})")
    result = choose("chain result", RESULTS, 0.3)
    lines = resets(draft) + lines
    net.method("forward(self, x)", [*lines, f"return {result.format(s=below, d=dim)}"])


def _hoisted(choose: Choices, draft: Draft, n: str, below: str, size: int, axis: str) -> list[str]:
    """Returns the lines that compute the currents of a layer for all steps."""
    net = draft.net
    way = choose(f"hoisted {n}", HOISTED, 0.4)
    linear = f"self.fc{n} = nn.Linear({size}, {HIDDEN})"
    two = "T * B" if axis == "first" else "B * T"
    back = "T, B, -1" if axis == "first" else "B, T, -1"
    if way in ("einsum", "matmul"):
        net.add(f"self.w{n} = nn.Parameter(0.4 * torch.randn({size}, {HIDDEN}))")
        spelled = "tbi,ij->tbj" if axis == "first" else "bti,ij->btj"
        return [
            f'h{n} = torch.einsum("{spelled}", {below}, self.w{n})'
            if way == "einsum"
            else f"h{n} = {below} @ self.w{n}"
        ]
    net.add(linear)
    if way == "flattened":
        return [f"h{n} = self.fc{n}({below}.reshape({two}, {size})).reshape({back})"]
    if way == "layer norm":
        net.add(f"self.norm{n} = nn.LayerNorm({HIDDEN})")
        return [f"h{n} = self.norm{n}(self.fc{n}({below}))"]
    if way == "flattened norm":
        net.add(f"self.norm{n} = nn.BatchNorm1d({HIDDEN})")
        draft.notes["normalised"] = True
        return [f"h{n} = self.norm{n}(self.fc{n}({below}.flatten(0, 1))).unflatten(0, {below}.shape[:2])"]
    if way == "sequential":
        net.init[-1] = f"self.fc{n} = nn.Sequential(nn.Linear({size}, 7), nn.Tanh(), nn.Linear(7, {HIDDEN}))"
        return [f"h{n} = self.fc{n}({below})"]
    if way == "conv":
        net.add(f"self.conv{n} = nn.Conv1d(1, 1, 3, padding=1)")
        flat = f"self.conv{n}({below}.reshape({two}, 1, {size})).reshape({back})"
        return [f"h{n} = self.fc{n}({flat})"]
    if way == "residual":
        return [f"h{n} = self.fc{n}({below})", f"h{n} = h{n} + 0.1 * torch.tanh(h{n})"]
    return [f"h{n} = self.fc{n}({below})"]


def _layer_loop(choose: Choices, draft: Draft, n: str, source: str, axis: str, result: str) -> list[str]:
    """Returns the loop of one layer, from its currents to its spikes."""
    states, step = States("locals", draft, draft.net), Step()
    name = choose(f"chain record {n}", ("stack", "preallocated", "list of None", "cat"), 0.6)
    turns = loop(choose, draft, n, source, axis, name in ("preallocated", "list of None"), whole=True)
    lines = [f"cur{n} = x_t", *neuron(choose, draft, draft.net, states, Neuron(n, HIDDEN), False)]
    dim = 0 if axis == "first" else 1
    rec = f"{result}_list"
    begin, add, end = {
        "stack": (f"{rec} = []", f"{rec}.append(z{n})", f"{result} = torch.stack({rec}, dim={dim})"),
        "cat": (f"{rec} = []", f"{rec}.append(z{n}.unsqueeze({dim}))", f"{result} = torch.cat({rec}, dim={dim})"),
        "list of None": (f"{rec} = [None] * T", f"{rec}[t] = z{n}", f"{result} = torch.stack({rec}, {dim})"),
        "preallocated": (
            f"{result} = torch.zeros({('T, B' if dim == 0 else 'B, T')}, {HIDDEN})",
            f"{result}[{'t' if dim == 0 else ':, t'}] = z{n}",
            "",
        ),
    }[name]
    return [*step.before, *states.begin(), begin, *turns.around([*lines, add]), *([end] if end else [])]
