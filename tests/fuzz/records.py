"""What is kept of every step, on what condition, and what is made of it after the loop."""

from __future__ import annotations

from dataclasses import dataclass, field

from fuzz.choices import Choices
from fuzz.draft import Draft, inner

LISTS = ("stack", "stack 1", "stack -1", "cat", "list", "tuple", "dict", "deque", "detached", "cloned")
WRITTEN = ("preallocated", "preallocated 1", "preallocated last", "list of None", "zeros_like")
REDUCED = (
    "sum", "sum from 0.0", "sum from 0", "in place", "mean", "last", "max", "filter", "running mean", "weighted",
    "penalty", "penalty of a tensor", "counted", "generator",
)  # fmt: skip
OTHER = ("before", "begins")
KINDS = (*LISTS, *REDUCED, *WRITTEN, *OTHER)
CONDITIONS = (
    "", "if t >= 2:", "if t % 2 == 0:", "if t >= T - 2:", "if t == T - 1:", "if t > 0:", "if t >= T // 2:",
    "if not t % 3:", "if t in (0, T - 1):", "if t >= max(0, T - 4):", "if t == 0:",
)  # fmt: skip
EPILOGUES = (
    "{r}", "{r}[-1]", "{r}.mean(0)", "{r}.sum(0)", "{r}[2:].mean(0)", "{r}[-max(1, T // 4):].mean(0)",
    "{r}.max(0)[0]", "torch.stack([w.mean(0) for w in {r}.split(4)])", "{r}[[0, 2, -1]]",
    "{r}[5:].mean(0) if T > 10 else {r}.mean(0)", "{r}.sum(0) / max(T - 5, 1)", "F.softmax({r}.mean(0), dim=-1)",
    "F.log_softmax({r}, dim=-1)", "{r}.permute(1, 0, 2)", "{r}.cumsum(0)", "{r}.sum(0) / T", "{r}.var(0)", "{r}[::2]",
    "{r}.flip(0)", "{r}[T // 2]", "torch.stack({l}[-3:]).mean(0)", "{l}[-1]", "torch.stack({l}[::2])",
    "{r}.amax(dim=(0, 2))", "{r}.transpose(0, 1).flatten(1).mean(1)", "{r}.norm(dim=0)",
    "torch.einsum('tbo,t->bo', {r}, torch.linspace(0.5, 1.0, {r}.shape[0]))", "{r}.mean((0, 1))", "{r}.pow(2).mean()",
    "(F.softmax({r}, dim=0) * {r}).sum(0)", "{r}.unsqueeze(2).squeeze(2)", "torch.cat([{r}[:1], {r}[1:] - {r}[:-1]])",
    "F.avg_pool1d({r}.permute(1, 2, 0), 3).mean(-1)", "{r}.reshape(-1, {r}.shape[-1])", "{r}.view(T, B, -1)",
    "{r}[-2:]", "{r}.sort(dim=0)[0][-1]", "{r}.unfold(0, 3, 1).mean(-1)", "{r}.topk(2, dim=0)[0].mean(0)",
    "{r}.median(dim=0)[0]", "{r}.detach()", "({r}, {r}.mean(0))", "{r}.chunk(2)[0].mean(0)", "{r}[1:-1]",
    "{r}.logsumexp(0)", "{r} / {r}.shape[0]", "{r}.mean(0, keepdim=True)", "torch.mean({r}, dim=0)",
    "torch.sum({r}, 0) * (1 / T)", "{r}[0] + {r}[-1]", "{r}.prod(0)",
)  # fmt: skip


@dataclass
class Record:
    """One thing that is kept.

    Attributes:
        before: Lines before the loop.
        early: Lines at the beginning of a step.
        late: Lines at its end.
        after: Lines after the loop.
        result: Expression of what is returned.
        timed: The result has time as its first axis, of all steps or some.
        listed: Name of the list that it is made of.
    """

    before: list[str] = field(default_factory=list)
    early: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    result: str = ""
    timed: bool = False
    listed: str = ""


def kind_of_record(choose: Choices, name: str, written: bool = True) -> tuple[str, str]:
    """Draws how a value is kept, and when; the loop has to know ``t`` for some of them."""
    kinds = [each for each in KINDS if written or each not in (*OTHER, *WRITTEN)]
    kind = choose(f"record {name}", kinds, 0.3)
    condition = choose(f"condition {name}", CONDITIONS, 0.85) if kind in (*LISTS, *REDUCED) else ""
    return kind, condition


def needs_t(kind: str, condition: str) -> bool:
    """Tells whether the step number is read."""
    return bool(condition) or kind in (*WRITTEN, "running mean", "weighted")


def record(name: str, value: str, kind: str, condition: str, start: str | None, size: int) -> Record:
    """Returns the code that keeps a value.

    Args:
        name: Of the record.
        value: What is kept at the end of a step.
        kind: How.
        condition: When.
        start: The same value before the step, for records that begin earlier.
        size: Number of units of the value.
    """
    if kind in LISTS:
        made = _listed(name, value, kind)
    elif kind in WRITTEN:
        made = _written(name, value, kind, size)
    elif kind in OTHER and start is not None:
        made = _earlier(name, value, kind, start)
    else:
        made = _reduced(name, value, kind, size)
    if condition:
        made.late = [condition, *inner(made.late)]
    return made


def _listed(name: str, value: str, kind: str) -> Record:
    begin, add, stacked, listed = f"{name} = []", f"{name}.append({value})", f"torch.stack({name})", name
    if kind == "stack 1":
        stacked = f"torch.stack({name}, dim=1).transpose(0, 1)"
    elif kind == "stack -1":
        stacked = f"torch.stack({name}, dim=-1).movedim(-1, 0)"
    elif kind == "cat":
        add, stacked = f"{name}.append({value}.unsqueeze(0))", f"torch.cat({name}, dim=0)"
    elif kind == "list":
        add = f"{name} += [{value}]"
    elif kind == "tuple":
        begin, add = f"{name} = ()", f"{name} = {name} + ({value},)"
    elif kind == "dict":
        listed = f'kept["{name}"]'
        begin, add, stacked = f'kept = {{"{name}": []}}', f"{listed}.append({value})", f"torch.stack({listed}, 0)"
    elif kind == "deque":
        add, stacked = f"{name}.insert(len({name}), {value})", f"torch.stack(tuple({name}))"
    elif kind == "detached":
        add = f"{name}.append({value}.detach())"
    elif kind == "cloned":
        add = f"{name}.append({value}.clone())"
    return Record([begin], [], [add], [], stacked, True, listed)


def _written(name: str, value: str, kind: str, size: int) -> Record:
    if kind == "preallocated":
        return Record([f"{name} = x.new_zeros(T, B, {size})"], [], [f"{name}[t] = {value}"], [], name, True)
    if kind == "preallocated 1":
        moved = f"{name}.transpose(0, 1)"
        return Record([f"{name} = torch.zeros(B, T, {size})"], [], [f"{name}[:, t] = {value}"], [], moved, True)
    if kind == "preallocated last":
        moved = f"{name}.permute(2, 0, 1)"
        return Record([f"{name} = torch.zeros(B, {size}, T)"], [], [f"{name}[..., t] = {value}"], [], moved, True)
    if kind == "zeros_like":
        begin = f"{name} = torch.zeros((T, B, {size}), dtype=x.dtype)"
        return Record([begin], [], [f"{name}[t, :, :] = {value}"], [], name, True)
    return Record([f"{name} = [None] * T"], [], [f"{name}[t] = {value}"], [], f"torch.stack({name})", True, name)


def _earlier(name: str, value: str, kind: str, start: str) -> Record:
    stacked = f"torch.stack({name})"
    if kind == "before":
        return Record([f"{name} = []"], [f"{name}.append({start})"], [], [], stacked, True, name)
    return Record([f"{name} = [{start}]"], [], [f"{name}.append({value})"], [], stacked, True, name)


def _reduced(name: str, value: str, kind: str, size: int) -> Record:
    zeros = f"{name} = x.new_zeros(B, {size})"
    begin, add, result = {
        "sum": (zeros, f"{name} = {name} + {value}", name),
        "sum from 0.0": (f"{name} = 0.0", f"{name} = {name} + {value}", name),
        "sum from 0": (f"{name} = 0", f"{name} += {value}", name),
        "in place": (zeros, f"{name} += {value}", name),
        "mean": (zeros, f"{name} = {name} + {value} / T", name),
        "last": (zeros, f"{name} = {value}", name),
        "max": (f"{name} = torch.full((B, {size}), -10.0)", f"{name} = torch.maximum({name}, {value})", name),
        "filter": (zeros, f"{name} = 0.9 * {name} + {value}", name),
        "running mean": (zeros, f"{name} = {name} + ({value} - {name}) / (t + 1)", name),
        "weighted": (zeros, f"{name} = {name} + {value} * 0.9 ** (T - t)", name),
        "penalty": (f"{name} = 0.0", f"{name} = {name} + 0.1 * {value}.pow(2).mean()", name),
        "penalty of a tensor": (f"{name} = torch.zeros(())", f"{name} = {name} + {value}.abs().mean()", name),
        "counted": (f"{name}, count = 0, 0", f"{name}, count = {name} + {value}, count + 1", f"{name} / count"),
        "generator": (f"{name} = []", f"{name}.append({value})", f"sum({name}) / len({name})"),
        "before": (f"{name} = []", f"{name}.append({value})", f"torch.stack({name}).sum(0)"),
        "begins": (f"{name} = []", f"{name}.append({value})", f"torch.stack({name}).mean(0)"),
    }[kind]
    return Record([begin], [], [add], [], result)


def epilogue(choose: Choices, name: str, made: Record) -> str:
    """Draws what is made of a record after the loop."""
    if not made.timed:
        return made.result
    options = [each for each in EPILOGUES if made.listed or "{l}" not in each]
    chosen = choose(f"epilogue {name}", options, 0.4)
    if chosen == "{r}":
        return made.result
    if "{r}" in chosen:
        made.after.append(f"{name}_all = {made.result}")
    return chosen.format(r=f"{name}_all", l=made.listed)


def returned(choose: Choices, draft: Draft, results: list[str]) -> str:
    """Draws the form in which the results are returned."""
    names = [f"r{i}" for i in range(len(results))]
    if len(results) == 1:
        return choose(
            "returned one", (results[0], f"({results[0]},)", f'{{"out": {results[0]}}}', f"[{results[0]}]"), 0.9
        )
    listed = ", ".join(results)
    way = choose("returned", ("tuple", "list", "dict", "nested", "named", "dataclass", "namespace"))
    if way == "namespace":
        draft.use("from types import SimpleNamespace")
        return f"SimpleNamespace({', '.join(f'{name}={result}' for name, result in zip(names, results, strict=True))})"
    if way in ("named", "dataclass"):
        fields = "\n".join(f"    {name}: object" for name in names)
        if way == "named":
            draft.use("from typing import NamedTuple")
            draft.define("Result", f"class Result(NamedTuple):\n{fields}")
        else:
            draft.use("from dataclasses import dataclass")
            draft.define("Result", f"@dataclass\nclass Result:\n{fields}")
        return f"Result({listed})"
    if way == "dict":
        return "{" + ", ".join(f'"{name}": {result}' for name, result in zip(names, results, strict=True)) + "}"
    if way == "nested":
        return f'({results[0]}, {{"more": [{", ".join(results[1:])}]}})'
    return f"[{listed}]" if way == "list" else listed
