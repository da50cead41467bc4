"""What states are kept in between two steps, and how they begin."""

from __future__ import annotations

from fuzz.choices import Choices
from fuzz.draft import Draft, Module

CONTAINERS = (
    "locals", "list", "dict", "attribute", "dataclass", "namedtuple", "tuple", "buffer", "namespace", "lists by kind",
    "nested dict", "history",
)  # fmt: skip
PASSED = ("tuple", "namedtuple", "dict", "dataclass", "list")
"""Containers that can be handed to a function and back."""

STARTS = (
    "new_zeros", "zeros", "zeros, device", "zeros_like", "full", "new_full", "learned", "learned, repeated", "list",
    "variable", "constructor", "random", "none", "0", "0.0", "one row", "from input", "method", "empty filled", "units",
)  # fmt: skip
UNSHAPED = ("none", "0", "0.0", "one row", "units")
"""Starts that get their shape in the first step."""


class States:
    """The states of a model or of one neuron module, and the code that reads and writes them.

    Attributes:
        kind: What they are kept in.
        starts: Initial values, by name, in the order in which they turned up.
    """

    def __init__(self, kind: str, draft: Draft, owner: Module) -> None:
        self.kind = kind
        self.starts: dict[str, str] = {}
        self._draft, self._owner = draft, owner
        self._sizes: dict[str, int] = {}
        self._written: set[str] = set()

    def declare(self, name: str, start: str, size: int) -> None:
        """Adds a state."""
        self.starts.setdefault(name, start)
        self._sizes.setdefault(name, size)

    def get(self, name: str) -> str:
        """Returns the expression that reads a state."""
        number = list(self.starts).index(name)
        letter, layer = name[0], name[1:]
        return {
            "list": f"states[{number}]",
            "dict": f'state["{name}"]',
            "attribute": f"self.{name}",
            "buffer": f"self.{name}",
            "dataclass": f"s.{name}",
            "namespace": f"s.{name}",
            "lists by kind": f"{letter}[{int(layer or 1) - 1}]",
            "nested dict": f'state["layer{layer}"]["{letter}"]',
            "history": f"{name}_all[t + 1]" if name in self._written else f"{name}_all[t]",
        }.get(self.kind, name)

    def put(self, name: str, value: str) -> str:
        """Returns the line that writes a state."""
        self._written.add(name)
        return f"{self.get(name)} = {value}"

    def begin(self) -> list[str]:
        """Returns the lines before the loop."""
        starts = self.starts
        if not starts:
            return [f"{self.variable()} = ()"] if self.kind in PASSED else []
        if self.kind == "list":
            return [f"states = [{', '.join(starts.values())}]"]
        if self.kind == "dict":
            return [f"state = {{{', '.join(f'{self._key(k)}: {v}' for k, v in starts.items())}}}"]
        if self.kind in ("dataclass", "namespace", "namedtuple"):
            self._define()
            made = {"dataclass": "s = State", "namespace": "s = SimpleNamespace", "namedtuple": "state = State"}
            return [f"{made[self.kind]}({', '.join(f'{k}={v}' for k, v in starts.items())})"]
        if self.kind == "tuple":
            return [f"state = ({', '.join(starts.values())},)"]
        if self.kind == "buffer":
            for name in starts:
                self._owner.add(f'self.register_buffer("{name}", torch.zeros(1, {self._sizes[name]}))')
            return [self.put(name, start) for name, start in starts.items()]
        if self.kind == "lists by kind":
            letters = dict.fromkeys(name[0] for name in starts)
            return [f"{a} = [{', '.join(self._of(a))}]" for a in letters]
        if self.kind == "nested dict":
            layers = dict.fromkeys(name[1:] for name in starts)
            inside = [f'"layer{n}": {{{self._entries(n)}}}' for n in layers]
            return [f"state = {{{', '.join(inside)}}}"]
        if self.kind == "history":
            return [
                line
                for name, start in starts.items()
                for line in (f"{name}_all = x.new_zeros(T + 1, B, {self._sizes[name]})", f"{name}_all[0] = {start}")
            ]
        return [f"{self.get(name)} = {start}" for name, start in starts.items()]

    def unpack(self) -> list[str]:
        """Returns the lines at the beginning of a step."""
        if self.kind in ("tuple", "namedtuple") and self.starts:
            return [f"{', '.join(self.starts)}{',' if len(self.starts) == 1 else ''} = state"]
        return []

    def pack(self) -> list[str]:
        """Returns the lines at the end of a step."""
        if not self.starts:
            return []
        if self.kind == "tuple":
            return [f"state = ({', '.join(self.starts)},)"]
        if self.kind == "namedtuple":
            return [f"state = State({', '.join(self.starts)})"]
        return []

    def variable(self) -> str:
        """Returns the one name under which all states are handed on."""
        return {"dataclass": "s", "list": "states"}.get(self.kind, "state")

    def shaped(self, name: str) -> bool:
        """Tells whether a state has its shape from the beginning."""
        start = self.starts[name]
        return start not in ("None", "0", "0.0") and not start.startswith(
            ("torch.zeros(1,", f"torch.zeros({self._sizes[name]})")
        )

    def _key(self, name: str) -> str:
        return f'"{name}"'

    def _of(self, letter: str) -> list[str]:
        """Returns one entry per layer, None where a layer has no such state."""
        layers = max(int(name[1:] or 1) for name in self.starts)
        return [self.starts.get(f"{letter}{n}", "None") for n in range(1, layers + 1)]

    def _entries(self, layer: str) -> str:
        return ", ".join(f'"{name[0]}": {start}' for name, start in self.starts.items() if name[1:] == layer)

    def _define(self) -> None:
        names = list(self.starts)
        if self.kind == "dataclass":
            self._draft.use("from dataclasses import dataclass")
            fields = "\n".join(f"    {name}: torch.Tensor" for name in names)
            self._draft.define("State", f"@dataclass\nclass State:\n{fields}")
        elif self.kind == "namedtuple":
            self._draft.use("from typing import NamedTuple")
            fields = "\n".join(f"    {name}: torch.Tensor" for name in names)
            self._draft.define("State", f"class State(NamedTuple):\n{fields}")
        else:
            self._draft.use("from types import SimpleNamespace")


def start(choose: Choices, draft: Draft, owner: Module, name: str, size: int, shaped: bool, inputs: bool) -> str:
    """Returns the initial value of a membrane.

    Args:
        choose: Makes the choice.
        draft: The program.
        owner: The class whose ``__init__`` gets what is needed.
        name: Of the state.
        size: Number of units.
        shaped: Whether it must have its shape from the beginning.
        inputs: Whether the whole input ``x`` and its batch size ``B`` are there; otherwise ``B`` only.
    """
    options = [each for each in STARTS if not (shaped and each in UNSHAPED) and (inputs or each != "from input")]
    kind = choose(f"start of {name}", options, 0.75)
    if kind in ("learned", "learned, repeated"):
        owner.add(f"self.{name}_0 = nn.Parameter(torch.full((1, {size}), 0.1))")
    if kind == "from input":
        owner.add(f"self.enc_{name} = nn.Linear(6, {size})")
    if kind == "method":
        owner.method("init_state(self, batch, size)", ["return torch.zeros(batch, size)"])
    return {
        "new_zeros": f"x.new_zeros(B, {size})",
        "zeros": f"torch.zeros(B, {size})",
        "zeros, device": f"torch.zeros((B, {size}), device=x.device, dtype=x.dtype)",
        "zeros_like": f"torch.zeros_like(x.new_empty(B, {size}))",
        "full": f"torch.full((B, {size}), 0.2)",
        "new_full": f"x.new_full((B, {size}), 0.1)",
        "learned": f"self.{name}_0.expand(B, -1)",
        "learned, repeated": f"self.{name}_0.repeat(B, 1)",
        "list": f"torch.tensor([[0.2] * {size} for _ in range(B)])",
        "variable": f"torch.autograd.Variable(torch.zeros(B, {size}))",
        "constructor": f"torch.Tensor(B, {size}).fill_(0.1)",
        "random": f"0.3 * torch.rand(B, {size})",
        "none": "None",
        "0": "0",
        "0.0": "0.0",
        "one row": f"torch.zeros(1, {size})",
        "from input": f"torch.tanh(self.enc_{name}(first))",
        "method": f"self.init_state(B, {size})",
        "empty filled": f"torch.empty(B, {size}).fill_(0.05)",
        "units": f"torch.zeros({size})",
    }[kind]
