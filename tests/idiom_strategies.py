"""Random networks in random idioms: one specification of the network, and how a user writes it down.

It extends ``strategies``: layers are specified and updated as there; here the state may be kept in more ways, time may
run in more ways, and more may be collected.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import models
import torch
from hypothesis import strategies as st
from strategies import FEATURES, LayerSpec, Vacuity, _update, execute, layer_specs
from torch import Tensor, nn

STATES = (
    "locals", "tuple", "nested", "namedtuple", "dict", "dataclass", "attribute", "buffer", "list", "zero", "none",
    "in_place",
)  # fmt: skip
LOOPS = (
    "shape", "size", "len", "iterate", "unbind", "enumerate", "while", "batch_first", "time_last", "fixed", "static",
    "argument",
)  # fmt: skip
COLLECTS = ("stack", "list", "cat", "preallocated", "sum", "mean", "last", "max", "running_max", "both")
READOUTS = ("none", "inside", "after")


@dataclass(frozen=True)
class IdiomSpec:
    """One network and the way in which it is written."""

    layers: tuple[LayerSpec, ...] = (LayerSpec(),)
    state: str = "locals"
    loop: str = "shape"
    collect: str = "stack"
    readout: str = "none"
    hoisted: bool = False
    steps: int = 4
    batch: int = 2
    seed: int = 0

    @property
    def static(self) -> bool:
        """Tells whether the input has no time axis."""
        return self.loop in ("static", "argument")

    @property
    def possible(self) -> bool:
        """Tells whether a user could write it at all."""
        plain = all(not layer.lateral and layer.neuron == "lif" for layer in self.layers)
        if self.state in ("zero", "none") and not plain:
            return False
        if self.state == "in_place" and any(layer.learnable_leak or layer.lateral for layer in self.layers):
            return False  # autograd itself refuses: a product needs the state that is overwritten
        if self.collect == "preallocated" and self.loop in ("iterate", "unbind", "static"):
            return False
        if self.readout == "after" and self.collect not in ("stack", "mean", "max"):
            return False
        return not (self.hoisted and (self.static or self.loop == "time_last"))


def idiom_specs() -> st.SearchStrategy[IdiomSpec]:
    """Draws a network of one or two layers in an idiom."""
    return st.builds(
        IdiomSpec,
        layers=st.lists(layer_specs(), min_size=1, max_size=2).map(tuple),
        state=st.sampled_from(STATES),
        loop=st.sampled_from(LOOPS),
        collect=st.sampled_from(COLLECTS),
        readout=st.sampled_from(READOUTS),
        hoisted=st.booleans(),
        steps=st.integers(4, 6),
        batch=st.integers(2, 4),
        seed=st.integers(0, 999),
    ).filter(lambda spec: spec.possible)


def render(spec: IdiomSpec) -> str:
    """Returns the source of a module ``Net``."""
    lines = [
        "import torch",
        "from dataclasses import dataclass, replace",
        "from typing import NamedTuple",
        "from torch import nn",
        "from models import FastSigmoid, SetupSigmoid, arctan, straight_through",
    ]
    for index, layer in enumerate(spec.layers):
        fields = [f"    {name}: torch.Tensor" for name in layer.states]
        if spec.state == "namedtuple":
            lines += ["", f"class State{index}(NamedTuple):", *fields]
        if spec.state == "dataclass":
            lines += ["", "@dataclass(frozen=True)", f"class State{index}:", *fields]
        lines += ["", *_cell(index, layer, spec)]
    lines += ["", "class Net(nn.Module):", "    def __init__(self):", "        super().__init__()"]
    lines += [f"        self.cell{index} = Cell{index}()" for index in range(len(spec.layers))]
    lines += [f"        self.readout = nn.Linear({spec.layers[-1].width}, 2)"] if spec.readout != "none" else []
    lines += [f"        self.T = {spec.steps}"]
    if spec.state in ("buffer", "in_place"):
        lines += [
            f"        self.register_buffer('{name}{index}', torch.zeros(1, {layer.width}), persistent=False)"
            for index, layer in enumerate(spec.layers)
            for name in layer.states
        ]
    arguments = "self, x, steps" if spec.loop == "argument" else "self, x"
    lines += ["", f"    def forward({arguments}):", *(" " * 8 + line for line in _forward(spec))]
    return "\n".join(lines) + "\n"


def _cell(index: int, layer: LayerSpec, spec: IdiomSpec) -> list[str]:
    below = FEATURES if index == 0 else spec.layers[index - 1].width
    lines = [f"class Cell{index}(nn.Module):", "    def __init__(self):", "        super().__init__()"]
    lines += [f"        self.fc = nn.Linear({below}, {layer.width})"]
    lines += [f"        self.rec = nn.Linear({layer.width}, {layer.width}, bias=False)"] if layer.lateral else []
    beta = f"nn.Parameter(torch.linspace(0.7, 0.9, {layer.width}))" if layer.learnable_leak else "0.8"
    spike = {"function": "FastSigmoid.apply", "closure": "arctan(2.0)"}.get(layer.surrogate)
    return (
        lines
        + [f"        self.beta = {beta}", "        self.threshold = 1.0"]
        + ([f"        self.spike = {spike}"] if spike else [])
    )


def _names(spec: IdiomSpec, index: int) -> list[str]:
    return [f"{name}{index}" for name in spec.layers[index].states]


def _initial(spec: IdiomSpec, batch: str) -> list[str]:
    lines: list[str] = []
    every: list[str] = []
    for index, layer in enumerate(spec.layers):
        zeros = f"x.new_zeros({batch}, {layer.width})"
        names = _names(spec, index)
        packed = f"({', '.join(zeros for _ in names)},)"
        every.append(packed)
        lines += {
            "locals": [f"{name} = {zeros}" for name in names],
            "tuple": [f"state{index} = {packed}"],
            "nested": [],
            "namedtuple": [f"state{index} = State{index}{packed}"],
            "dataclass": [f"state{index} = State{index}{packed}"],
            "dict": [*(["state = {}"] if index == 0 else []), *(f"state['{name}'] = {zeros}" for name in names)],
            "list": [*(["state = []"] if index == 0 else []), *(f"state.append({zeros})" for _ in names)],
            "zero": [f"{name} = 0.0" for name in names],
            "none": [f"{name} = None" for name in names],
        }.get(spec.state, [f"self.{name} = {zeros}" for name in names])
    return lines + ([f"state = ({', '.join(every)},)"] if spec.state == "nested" else [])


def _load(spec: IdiomSpec, index: int, first: int) -> list[str]:
    names, short = _names(spec, index), spec.layers[index].states
    return {
        "tuple": [f"{', '.join(names)}, = state{index}"],
        "nested": [f"{', '.join(names)}, = state[{index}]"],
        "namedtuple": [f"{long} = state{index}.{name}" for long, name in zip(names, short, strict=True)],
        "dataclass": [f"{long} = state{index}.{name}" for long, name in zip(names, short, strict=True)],
        "dict": [f"{name} = state['{name}']" for name in names],
        "list": [f"{name} = state[{first + k}]" for k, name in enumerate(names)],
        "locals": [],
        "zero": [],
        "none": [],
    }.get(spec.state, [f"{name} = self.{name}" for name in names])


def _store(spec: IdiomSpec, index: int, first: int) -> list[str]:
    names, short = _names(spec, index), spec.layers[index].states
    changes = ", ".join(f"{name}={long}" for long, name in zip(names, short, strict=True))
    return {
        "tuple": [f"state{index} = ({', '.join(names)},)"],
        "nested": [f"new{index} = ({', '.join(names)},)"],
        "namedtuple": [f"state{index} = state{index}._replace({changes})"],
        "dataclass": [f"state{index} = replace(state{index}, {changes})"],
        "dict": [f"state['{name}'] = {name}" for name in names],
        "list": [f"state[{first + k}] = {name}" for k, name in enumerate(names)],
        "in_place": [f"self.{name}.copy_({name})" for name in names],
        "locals": [],
        "zero": [],
        "none": [],
    }.get(spec.state, [f"self.{name} = {name}" for name in names])


def _step(spec: IdiomSpec, source: str) -> list[str]:
    lines: list[str] = []
    first = 0
    for index, layer in enumerate(spec.layers):
        update = _update(layer, f"self.cell{index}.", str(index), source, f"out{index}")
        if index == 0 and spec.hoisted:
            update = [line.replace(f"self.cell0.fc({source})", source) for line in update]
        if spec.state == "none":
            mem, _, rest = update[0].partition(" = ")
            current = rest.partition(" + ")[2]
            update = [
                f"cur = {current}",
                f"{mem} = cur if {mem} is None else self.cell{index}.beta * {mem} + cur",
                *update[1:],
            ]
        lines += [*_load(spec, index, first), *update, *_store(spec, index, first)]
        first += len(layer.states)
        source = f"out{index}"
    if spec.state == "nested":
        lines += [f"state = ({', '.join(f'new{index}' for index in range(len(spec.layers)))},)"]
    return lines


def _forward(spec: IdiomSpec) -> list[str]:
    axis = {"batch_first": 1, "time_last": -1}.get(spec.loop, 0)
    batch = "x.shape[0]" if spec.static or axis != 0 else "x.shape[1]"
    sequence = "currents" if spec.hoisted else "x"
    header, source, length = {
        "shape": ("for t in range(x.shape[0]):", f"{sequence}[t]", "x.shape[0]"),
        "size": ("for t in range(x.size(0)):", f"{sequence}[t]", "x.size(0)"),
        "len": ("for t in range(len(x)):", f"{sequence}[t]", "len(x)"),
        "iterate": (f"for x_t in {sequence}:", "x_t", ""),
        "unbind": (f"for x_t in {sequence}.unbind(0):", "x_t", ""),
        "enumerate": (f"for t, x_t in enumerate({sequence}):", "x_t", "len(x)"),
        "while": ("while t < x.shape[0]:", f"{sequence}[t]", "x.shape[0]"),
        "batch_first": ("for t in range(x.shape[1]):", f"{sequence}[:, t]", "x.shape[1]"),
        "time_last": ("for t in range(x.shape[-1]):", "x[..., t]", "x.shape[-1]"),
        "fixed": ("for t in range(self.T):", f"{sequence}[t]", "self.T"),
        "static": ("for t in range(self.T):", "x", "self.T"),
        "argument": ("for t in range(steps):", "x", "steps"),
    }[spec.loop]
    top, width = f"out{len(spec.layers) - 1}", spec.layers[-1].width
    inside: list[str] = []
    if spec.readout == "inside":
        inside, top, width = [f"y = self.readout({top})"], "y", 2
    stack = "torch.stack(outs)" if spec.readout != "after" else "self.readout(torch.stack(outs))"
    before, collect, result = {
        "stack": ("outs = []", f"outs.append({top})", stack),
        "list": ("outs = []", f"outs.append({top})", "outs"),
        "cat": ("outs = []", f"outs.append({top}.unsqueeze(0))", "torch.cat(outs)"),
        "preallocated": (f"outs = x.new_zeros({length}, {batch}, {width})", f"outs[t] = {top}", "outs"),
        "sum": (f"total = x.new_zeros({batch}, {width})", f"total = total + {top}", "total"),
        "mean": ("outs = []", f"outs.append({top})", f"{stack}.mean(0)"),
        "last": ("", "", top),
        "max": ("outs = []", f"outs.append({top})", f"{stack}.max(0).values"),
        "running_max": (f"best = x.new_full(({batch}, {width}), -9.0)", f"best = torch.maximum(best, {top})", "best"),
        "both": (
            "outs, mems = [], []",
            f"outs.append({top}); mems.append(mem{len(spec.layers) - 1})",
            "(torch.stack(outs), torch.stack(mems))",
        ),
    }[spec.collect]
    body = [*_step(spec, source), *inside, *([collect] if collect else [])]
    lines = _initial(spec, batch) + ([before] if before else [])
    lines += ["currents = self.cell0.fc(x)"] if spec.hoisted else []
    lines += ["t = 0"] if spec.loop == "while" else []
    body += ["t += 1"] if spec.loop == "while" else []
    return [*lines, header, *("    " + line for line in body), f"return {result}"]


def build(spec: IdiomSpec) -> tuple[nn.Module, str]:
    """Executes the source of a specification; weights make neurons fire."""
    source = render(spec)
    namespace = execute(source)
    with models.seeded(spec.seed):
        module = namespace["Net"]()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(2.0 if name.startswith("cell0") else 3.0)
            elif name.endswith("bias"):
                parameter.abs_()
    return module.double(), source


def arguments(spec: IdiomSpec, steps: int, batch: int, seed: int = 0) -> tuple[Any, ...]:
    """Returns the arguments of one call."""
    generator = torch.Generator().manual_seed(1000 * spec.seed + seed)
    x = 2 * torch.randn(steps, batch, FEATURES, generator=generator, dtype=torch.float64)
    if spec.static:
        return (x[0], steps) if spec.loop == "argument" else (x[0],)
    moved = {"batch_first": x.transpose(0, 1), "time_last": x.permute(1, 2, 0)}.get(spec.loop, x)
    return (moved.contiguous(),)


def record(vacuity: Vacuity, spec: IdiomSpec, has_gradient: bool) -> None:
    """Counts an example as live where the neurons of all layers both fire and stay silent."""
    twin = replace(spec, collect="stack", readout="none")
    with torch.no_grad():
        spikes: Tensor = build(twin)[0](*arguments(twin, spec.steps, spec.batch))
    vacuity.count(spikes, has_gradient)
