"""Random spiking networks for property tests: a frozen specification, rendered to source, executed.

hypothesis shrinks the specification field by field, and what fails prints as a model that can be run. In every choice
the simplest alternative comes first.
"""

from __future__ import annotations

import itertools
import linecache
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import models
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

RESETS = ("none", "subtract", "subtract_detached", "zero", "zero_detached")
SURROGATES = ("function", "closure", "setup_context", "straight_through")
NEURONS = ("lif", "synaptic", "adaptive")
STATES = ("locals", "tuple", "namedtuple", "attribute", "buffer")
LOOPS = ("shape", "iterate", "batch_first", "fixed", "step")
OUTPUTS = ("stack", "list", "sum", "mean", "last")
FEATURES = 3


@dataclass(frozen=True)
class LayerSpec:
    """One spiking layer."""

    width: int = 1
    lateral: bool = False
    reset: str = "none"
    surrogate: str = "function"
    neuron: str = "lif"
    learnable_leak: bool = False

    @property
    def states(self) -> tuple[str, ...]:
        """Names of its states."""
        extra = {"lif": (), "synaptic": ("syn",), "adaptive": ("adp",)}[self.neuron]
        return ("mem", *extra, *(("spk",) if self.lateral else ()))


@dataclass(frozen=True)
class NetSpec:
    """One network, the sequence that it is run on, and how its source is written."""

    layers: tuple[LayerSpec, ...] = (LayerSpec(),)
    state: str = "locals"
    loop: str = "shape"
    output: str = "stack"
    steps: int = 4
    batch: int = 2
    seed: int = 0
    dtype: Literal["float64"] = "float64"

    @property
    def kind(self) -> str:
        """ "step" or "sequence"."""
        return "step" if self.loop == "step" else "sequence"

    @property
    def explicit_state(self) -> bool:
        """Tells whether the caller of a step model holds the state."""
        return self.kind == "step" and self.state in ("locals", "tuple", "namedtuple")


def layer_specs() -> st.SearchStrategy[LayerSpec]:
    """Draws a layer."""
    return st.builds(
        LayerSpec,
        width=st.integers(1, 4),
        lateral=st.booleans(),
        reset=st.sampled_from(RESETS),
        surrogate=st.sampled_from(SURROGATES),
        neuron=st.sampled_from(NEURONS),
        learnable_leak=st.booleans(),
    )


def net_specs(loops: tuple[str, ...] = LOOPS) -> st.SearchStrategy[NetSpec]:
    """Draws a network of one to three layers."""
    return st.builds(
        NetSpec,
        layers=st.lists(layer_specs(), min_size=1, max_size=3).map(tuple),
        state=st.sampled_from(STATES),
        loop=st.sampled_from(loops),
        output=st.sampled_from(OUTPUTS),
        steps=st.integers(4, 7),
        batch=st.integers(2, 4),
        seed=st.integers(0, 999),
    )


# ---------------------------------------------------------------------------------------------------------------------
# From a specification to source
# ---------------------------------------------------------------------------------------------------------------------


def render(spec: NetSpec) -> str:
    """Returns the source of a module ``Net`` with submodules ``cell0``, ``cell1``, ..."""
    lines = [
        "import torch",
        "from typing import NamedTuple",
        "from torch import nn",
        "from models import FastSigmoid, SetupSigmoid, arctan, straight_through",
    ]
    for index, layer in enumerate(spec.layers):
        lines += ["", *_cell(index, layer, spec)]
    lines += ["", "class Net(nn.Module):", "    def __init__(self):", "        super().__init__()"]
    lines += [f"        self.cell{index} = Cell{index}()" for index in range(len(spec.layers))]
    lines += [f"        self.T = {spec.steps}"] if spec.loop == "fixed" else []
    lines += ["", *(_step_forward(spec) if spec.kind == "step" else _sequence_forward(spec))]
    return "\n".join(lines) + "\n"


def _cell(index: int, layer: LayerSpec, spec: NetSpec) -> list[str]:
    below = FEATURES if index == 0 else spec.layers[index - 1].width
    lines = []
    if spec.state == "namedtuple":
        lines = [f"class State{index}(NamedTuple):", *(f"    {name}: torch.Tensor" for name in layer.states), ""]
    lines += [f"class Cell{index}(nn.Module):", "    def __init__(self):", "        super().__init__()"]
    lines += [f"        self.fc = nn.Linear({below}, {layer.width})"]
    lines += [f"        self.rec = nn.Linear({layer.width}, {layer.width}, bias=False)"] if layer.lateral else []
    beta = f"nn.Parameter(torch.linspace(0.7, 0.9, {layer.width}))" if layer.learnable_leak else "0.8"
    lines += [f"        self.beta = {beta}", "        self.threshold = 1.0"]
    spike = {"function": "FastSigmoid.apply", "closure": "arctan(2.0)"}.get(layer.surrogate)
    lines += [f"        self.spike = {spike}"] if spike else []
    if spec.state == "attribute":
        lines += [f"        self.{name} = None" for name in layer.states]
    if spec.state == "buffer":
        lines += [f"        self.register_buffer('{name}', torch.zeros(1, {layer.width}))" for name in layer.states]
    if spec.state == "locals":
        return lines
    names = ", ".join(layer.states)
    if spec.state in ("tuple", "namedtuple"):
        made = f"({names},)" if spec.state == "tuple" else f"State{index}({names})"
        start, end = [f"{names}, = state"], [f"return out, {made}"]
        lines += ["", "    def forward(self, x, state):"]
    elif spec.state == "attribute":
        zeros = [f"    self.{name} = x.new_zeros(x.shape[0], {layer.width})" for name in layer.states]
        start = ["if self.mem is None:", *zeros, *(f"{name} = self.{name}" for name in layer.states)]
        end = [*(f"self.{name} = {name}" for name in layer.states), "return out"]
        lines += ["", "    def forward(self, x):"]
    else:
        start = [f"{name} = self.{name}" for name in layer.states]
        end = [*(f"self.{name} = {name}" for name in layer.states), "return out"]
        lines += ["", "    def forward(self, x):"]
    return lines + [" " * 8 + line for line in (*start, *_update(layer, "self.", "", "x", "out"), *end)]


def _update(layer: LayerSpec, prefix: str, suffix: str, source: str, out: str) -> list[str]:
    """One step of one layer: reads and writes the local variables mem, syn, adp and spk, each with a suffix."""
    mem, syn, adp, spk = (name + suffix for name in ("mem", "syn", "adp", "spk"))
    current = f"{prefix}fc({source})" + (f" + {prefix}rec({spk})" if layer.lateral else "")
    lines = []
    if layer.neuron == "synaptic":
        lines += [f"{syn} = 0.5 * {syn} + {current}"]
        current = syn
    lines += [f"{mem} = {prefix}beta * {mem} + {current}"]
    distance = f"{mem} - {prefix}threshold" + (f" - 0.3 * {adp}" if layer.neuron == "adaptive" else "")
    call = {
        "setup_context": f"SetupSigmoid.apply({distance}, 4.0)",
        "straight_through": f"straight_through({distance})",
    }.get(layer.surrogate, f"{prefix}spike({distance})")
    lines += [f"{out} = {call}"]
    if layer.neuron == "adaptive":
        lines += [f"{adp} = 0.8 * {adp} + {out}"]
    lines += {
        "none": [],
        "subtract": [f"{mem} = {mem} - {out}"],
        "subtract_detached": [f"{mem} = {mem} - {out}.detach()"],
        "zero": [f"{mem} = {mem} * (1 - {out})"],
        "zero_detached": [f"{mem} = {mem} * (1 - {out}.detach())"],
    }[layer.reset]
    return lines + ([f"{spk} = {out}"] if layer.lateral else [])


def _initial(spec: NetSpec, batch: str, like: str) -> list[str]:
    """The lines that make the initial states."""
    lines = []
    for index, layer in enumerate(spec.layers):
        zeros = f"{like}.new_zeros({batch}, {layer.width})"
        if spec.state == "locals":
            lines += [f"{name}{index} = {zeros}" for name in layer.states]
        elif spec.state == "tuple":
            lines += [f"state{index} = ({', '.join(zeros for _ in layer.states)},)"]
        elif spec.state == "namedtuple":
            lines += [f"state{index} = State{index}({', '.join(zeros for _ in layer.states)})"]
        elif spec.state == "attribute":
            lines += [f"self.cell{index}.{name} = None" for name in layer.states]
        else:
            lines += [f"self.cell{index}.{name} = {zeros}" for name in layer.states]
    return lines


def _state_names(spec: NetSpec) -> list[str]:
    if spec.state == "locals":
        return [f"{name}{index}" for index, layer in enumerate(spec.layers) for name in layer.states]
    return [f"state{index}" for index in range(len(spec.layers))]


def _all_layers(spec: NetSpec, source: str) -> list[str]:
    """The lines of one time step; the spikes of layer i are in ``out{i}``."""
    lines = []
    for index, layer in enumerate(spec.layers):
        if spec.state == "locals":
            lines += _update(layer, f"self.cell{index}.", str(index), source, f"out{index}")
        elif spec.state in ("tuple", "namedtuple"):
            lines += [f"out{index}, state{index} = self.cell{index}({source}, state{index})"]
        else:
            lines += [f"out{index} = self.cell{index}({source})"]
        source = f"out{index}"
    return lines


def _step_forward(spec: NetSpec) -> list[str]:
    top = f"out{len(spec.layers) - 1}"
    if not spec.explicit_state:
        return ["    def forward(self, x):", *(" " * 8 + line for line in [*_all_layers(spec, "x"), f"return {top}"])]
    names = ", ".join(_state_names(spec))
    initial = [*_initial(spec, "x.shape[0]", "x"), f"return ({names},)"]
    step = [f"{names}, = state", *_all_layers(spec, "x"), f"return {top}, ({names},)"]
    return [
        *["    @staticmethod", "    def initial(x):", *(" " * 8 + line for line in initial), ""],
        *["    def forward(self, x, state):", *(" " * 8 + line for line in step)],
    ]


def _sequence_forward(spec: NetSpec) -> list[str]:
    top = f"out{len(spec.layers) - 1}"
    batch_axis, header, source = {
        "shape": (1, "for t in range(x.shape[0]):", "x[t]"),
        "iterate": (1, "for x_t in x:", "x_t"),
        "batch_first": (0, "for t in range(x.size(1)):", "x[:, t]"),
        "fixed": (1, "for t in range(self.T):", "x[t]"),
    }[spec.loop]
    lines = _initial(spec, f"x.shape[{batch_axis}]", "x")
    zeros = f"x.new_zeros(x.shape[{batch_axis}], {spec.layers[-1].width})"
    before, inside, result = {
        "stack": ("outs = []", f"outs.append({top})", f"torch.stack(outs, {1 - batch_axis})"),
        "list": ("outs = []", f"outs.append({top})", "outs"),
        "sum": (f"total = {zeros}", f"total = total + {top}", "total"),
        "mean": ("outs = []", f"outs.append({top})", "torch.stack(outs).mean(0)"),
        "last": ("", "", top),
        "everything": ("outs = []", f"outs += [{', '.join(f'out{i}' for i in range(len(spec.layers)))}]", "outs"),
    }[spec.output]
    body = [line for line in [*_all_layers(spec, source), inside] if line]
    lines += [line for line in (before, header) if line] + ["    " + line for line in body] + [f"return {result}"]
    return ["    def forward(self, x):", *(" " * 8 + line for line in lines)]


# ---------------------------------------------------------------------------------------------------------------------
# From source to a module
# ---------------------------------------------------------------------------------------------------------------------

_serial = itertools.count()


class Built(NamedTuple):
    """What ``build`` makes."""

    module: nn.Module
    source: str
    inputs: Any


def execute(source: str) -> dict[str, Any]:
    """Executes generated source; its lines are known to tracebacks and to ``inspect``."""
    filename = f"<generated network {next(_serial)}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    namespace: dict[str, Any] = {"__name__": "generated"}
    exec(compile(source, filename, "exec"), namespace)
    return namespace


def build(spec: NetSpec) -> Built:
    """Executes the source of a specification."""
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
    return Built(module.to(getattr(torch, spec.dtype)), source, make_inputs(spec, spec.steps, spec.batch))


def make_inputs(spec: NetSpec, steps: int, batch: int, seed: int = 0) -> Any:
    """Returns a tensor for a sequence model, a list of tensors for a step model."""
    generator = torch.Generator().manual_seed(1000 * spec.seed + seed)
    x = 2 * torch.randn(steps, batch, FEATURES, generator=generator, dtype=getattr(torch, spec.dtype))
    if spec.kind == "step":
        return list(x)
    return x.transpose(0, 1).contiguous() if spec.loop == "batch_first" else x


def example_inputs(spec: NetSpec, model: nn.Module, steps: int = 5, batch: int = 2) -> Any:
    """Returns what ``convert`` takes: the arguments of one call, of another length and batch than ``spec``."""
    inputs = make_inputs(spec, spec.steps if spec.loop == "fixed" else steps, batch, seed=1)
    if spec.kind == "sequence":
        return inputs
    return (inputs[0], model.initial(inputs[0])) if spec.explicit_state else inputs[0]


def run(spec: NetSpec, model: nn.Module, module: Any, inputs: Any) -> list[Tensor]:
    """Runs ``module``, which is ``model`` or its converted form, on a whole sequence; returns the outputs as a list."""
    if spec.kind == "sequence":
        result = module(inputs)
        return list(result) if isinstance(result, (list, tuple)) else [result]
    if not spec.explicit_state:
        return [module(x_t) for x_t in inputs]
    state, outputs = model.initial(inputs[0]), []
    for x_t in inputs:
        output, state = module(x_t, state)
        outputs.append(output)
    return outputs


class Vacuity:
    """Counts how many examples were worth anything: somewhere a spike, somewhere none, some gradient."""

    def __init__(self) -> None:
        self.seen = 0
        self.live = 0

    def record(
        self, spec: NetSpec, steps: int | None = None, batch: int | None = None, has_gradient: bool = True
    ) -> None:
        """Counts an example as live if some neurons fire, some do not, and (where compared) a gradient was not zero."""
        steps, batch = steps or spec.steps, batch or spec.batch
        twin = replace(spec, state="locals", loop="shape", output="everything")
        with torch.no_grad():
            spikes = torch.cat([out.flatten() for out in build(twin).module(make_inputs(twin, steps, batch))])
        self.count(spikes, has_gradient)

    def count(self, spikes: Tensor, has_gradient: bool = True) -> None:
        """Counts an example by the spikes of all its neurons."""
        self.seen += 1
        self.live += has_gradient and 0 < int(spikes.count_nonzero()) < spikes.numel()

    def check(self, least: float = 0.9) -> None:
        """Asserts that at least this share of the examples was live."""
        assert self.seen > 0, "no example was run"
        assert self.live >= least * self.seen, (
            f"only {self.live} of {self.seen} generated networks fire and stay silent"
        )
