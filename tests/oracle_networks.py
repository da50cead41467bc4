"""Generated networks with every connection that the measured rule claims to be exact for with a bin per step.

As in ``strategies``: a frozen specification, rendered to source, executed; what fails prints as a model that can be
run. A network has one or two spiking layers, and a leaky readout if it is asked for one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import models
import torch
from hypothesis import strategies as st
from strategies import FEATURES, NEURONS, RESETS, SURROGATES, execute
from torch import Tensor, nn

LATERALS = ("none", "linear", "two", "conv")
"""What a layer's own spikes return through: nothing, one matrix, two of them, a convolution over the neurons."""
DELAYS = ("none", "locals", "list", "deque")
"""What holds the spikes of the last ``delay`` steps."""
CHANCES = ("current", "spikes", "noise")
LOSSES = ("every step", "last step", "window", "mean", "maximum")


@dataclass(frozen=True)
class OracleLayer:
    """One spiking layer."""

    neuron: str = "lif"
    reset: str = "none"
    surrogate: str = "function"
    lateral: str = "none"
    learnable_leak: bool = False
    learnable_threshold: bool = False


@dataclass(frozen=True)
class OracleSpec:
    """One network, the sequence that it is run on, and the loss."""

    layers: tuple[OracleLayer, ...] = (OracleLayer(),)
    width: int = 2
    top_down: bool = False
    held: str = "none"
    delay: int = 2
    delayed: str = "lateral"
    """What the delayed spikes of the first layer feed: "lateral", itself; "forward", the layer above."""
    shared: str = "none"
    """ "layers": both layers have the same lateral weights; "twice": one synapse reads two sources in a step."""
    merge: str = "none"
    """ "residual": the output is the sum of both layers; "concatenation": the second layer also sees the input."""
    two_inputs: bool = False
    pool: str = "none"
    norm: str = "none"
    mask: bool = False
    chance: str = "none"
    """What the first layer draws at every step: a mask on its "current" or its "spikes", "noise" on its current."""
    readout: bool = False
    frozen: bool = False
    loss: str = "every step"
    steps: int = 3
    seed: int = 0
    everything: bool = False

    @property
    def training(self) -> bool:
        """The mode that the network is run in."""
        return self.norm != "eval"


def layer_specs(**fixed: Any) -> st.SearchStrategy[OracleLayer]:
    """Draws a layer."""
    drawn: dict[str, st.SearchStrategy[Any]] = {
        "neuron": st.sampled_from(NEURONS),
        "reset": st.sampled_from(RESETS),
        "surrogate": st.sampled_from(SURROGATES),
        "lateral": st.sampled_from(LATERALS),
        "learnable_leak": st.booleans(),
        "learnable_threshold": st.booleans(),
    }
    return st.builds(OracleLayer, **{**drawn, **{name: st.just(value) for name, value in fixed.items()}})


def oracle_specs(
    first: dict[str, Any] | None = None, other: dict[str, Any] | None = None, fewest: int = 1, **drawn: Any
) -> st.SearchStrategy[OracleSpec]:
    """Draws a network; ``first`` and ``other`` fix fields of its layers, ``drawn`` its other fields or their values."""
    two = st.tuples(layer_specs(**(first or {})), layer_specs(**(other or {})))
    fields = {name: value if isinstance(value, st.SearchStrategy) else st.just(value) for name, value in drawn.items()}
    return st.builds(
        OracleSpec,
        layers=two if fewest == 2 else st.one_of(layer_specs(**(first or {})).map(lambda layer: (layer,)), two),
        **{
            "width": st.integers(2, 4),
            "loss": st.sampled_from(LOSSES),
            "readout": st.booleans(),
            "frozen": st.booleans(),
            "steps": st.integers(3, 7),
            "seed": st.integers(0, 999),
            **fields,
        },
    )


def render(spec: OracleSpec) -> str:
    """Returns the source of a module ``Net``."""
    two, width = len(spec.layers) == 2, spec.width
    below = width // 2 if spec.pool != "none" else width
    inputs = [FEATURES, below + (FEATURES if spec.merge == "concatenation" else 0)]
    made, before, body = [], [], []
    if spec.norm != "none":
        made += [f"self.norm = nn.BatchNorm1d({width})"]
    if spec.two_inputs:
        made += [f"self.second = nn.Linear(2, {width}, bias=False)"]
    if spec.mask:
        before += [f"mask = F.dropout(torch.ones(x.shape[1], {width}, dtype=x.dtype), 0.3, self.training)"]
    zeros = f"x.new_zeros(x.shape[1], {width})"
    for index, layer in enumerate(spec.layers):
        made += _modules(index, layer, inputs[index], width, shared=spec.shared == "layers")
        extra = {"lif": (), "synaptic": ("syn",), "adaptive": ("adp",)}[layer.neuron]
        before += [f"{name}{index} = {zeros}" for name in ("mem", "z", *extra)]
    past = "z0"
    if spec.held == "locals":
        before += [f"z0_{n} = {zeros}" for n in range(2, spec.delay + 1)]
        past = f"z0_{spec.delay}"
    elif spec.held != "none":
        kept = f"[{', '.join([zeros] * spec.delay)}]"
        before += [f"past = {kept if spec.held == 'list' else f'deque({kept}, maxlen={spec.delay})'}"]
        past = "past[0]"
    currents = ["self.fc0(x[t])", "self.fc1(below)"]
    if spec.shared == "twice":
        currents[0] += " + 0.5 * self.fc0(x[t].tanh())"
        currents[1] += " + self.fc1(before)"
    if spec.two_inputs:
        currents[0] += " + self.second(u[t])"
    if spec.norm != "none":
        currents[0] = f"self.norm({currents[0]})"
    if spec.chance == "noise":
        currents[0] += " + 0.3 * torch.randn_like(mem0)"
    elif spec.chance == "current":
        made += ["self.drop = nn.Dropout(0.3)"]
        currents[0] = f"self.drop({currents[0]})"
    if spec.top_down and two:
        made += [f"self.down = nn.Linear({width}, {width}, bias=False)"]
        currents[0] += " + self.down(z1)"
    if spec.held != "none":
        made += [f"self.late = nn.Linear({width}, {width}, bias=False)"]
        currents[int(two and spec.delayed == "forward")] += f" + self.late({past})"
    for index, layer in enumerate(spec.layers):
        if index == 1:
            body += _sources(spec)
        body += _update(index, layer, currents[index], shared=spec.shared == "layers")
        if index == 0 and spec.mask:
            body += ["s0 = s0 * mask"]
        if index == 0 and spec.chance == "spikes":
            body += ["s0 = F.dropout(s0, 0.3, self.training)"]
    body += _shift(spec) + [f"z{index} = s{index}" for index in range(len(spec.layers))]
    top = "s1" if two else "s0"
    if two and spec.merge == "residual":
        body += [f"both = {top} + s0"]
        top = "both"
    if spec.readout:
        made += [f"self.readout = nn.Linear({width}, 2)"]
        before += ["out = x.new_zeros(x.shape[1], 2)"]
        body += [f"out = 0.9 * out + self.readout({top})"]
        top = "out"
    if spec.everything:
        top = f"torch.cat([{', '.join(f's{index}' for index in range(len(spec.layers)))}], 1)"
    body += [f"outs.append({top})"]
    lines = [
        "from collections import deque",
        "import torch",
        "import torch.nn.functional as F",
        "from torch import nn",
        "from models import FastSigmoid, SetupSigmoid, arctan, straight_through",
        "",
        "class Net(nn.Module):",
        "    def __init__(self):",
        *(" " * 8 + line for line in ["super().__init__()", *made]),
        "",
        f"    def forward(self, x{', u' if spec.two_inputs else ''}):",
        *(" " * 8 + line for line in [*before, "outs = []", "for t in range(x.shape[0]):"]),
        *(" " * 12 + line for line in body),
        "        return torch.stack(outs)",
    ]
    return "\n".join(lines) + "\n"


def _modules(index: int, layer: OracleLayer, inputs: int, width: int, shared: bool) -> list[str]:
    lines = [f"self.fc{index} = nn.Linear({inputs}, {width})"]
    square = f"nn.Linear({width}, {width}, bias=False)"
    if layer.lateral in ("linear", "two") and not (shared and index):
        lines += [f"self.lat{index} = {square}"]
    if layer.lateral == "two":
        lines += [f"self.more{index} = {square}"]
    if layer.lateral == "conv":
        lines += [f"self.conv{index} = nn.Conv1d(1, 1, 3, padding=1)"]
    leak, threshold = f"torch.linspace(0.7, 0.9, {width})", f"torch.linspace(0.8, 1.1, {width})"
    lines += [f"self.leak{index} = {f'nn.Parameter({leak})' if layer.learnable_leak else '0.8'}"]
    lines += [f"self.theta{index} = {f'nn.Parameter({threshold})' if layer.learnable_threshold else '1.0'}"]
    spike = {"function": "FastSigmoid.apply", "closure": "arctan(2.0)"}.get(layer.surrogate)
    return lines + ([f"self.spike{index} = {spike}"] if spike else [])


def _update(index: int, layer: OracleLayer, current: str, shared: bool) -> list[str]:
    mem, syn, adp, z, s = (f"{name}{index}" for name in ("mem", "syn", "adp", "z", "s"))
    lateral = 0 if shared else index
    current += {
        "none": "",
        "linear": f" + self.lat{lateral}({z})",
        "two": f" + self.lat{lateral}({z}) + self.more{index}({z} * 0.5)",
        "conv": f" + self.conv{index}({z}.unsqueeze(1)).squeeze(1)",
    }[layer.lateral]
    lines = []
    if layer.neuron == "synaptic":
        lines += [f"{syn} = 0.5 * {syn} + {current}"]
        current = syn
    lines += [f"{mem} = self.leak{index} * {mem} + {current}"]
    distance = f"{mem} - self.theta{index}" + (f" - 0.3 * {adp}" if layer.neuron == "adaptive" else "")
    call = {
        "setup_context": f"SetupSigmoid.apply({distance}, 4.0)",
        "straight_through": f"straight_through({distance})",
    }.get(layer.surrogate, f"self.spike{index}({distance})")
    lines += [f"{s} = {call}"]
    if layer.neuron == "adaptive":
        lines += [f"{adp} = 0.8 * {adp} + {s}"]
    return (
        lines
        + {
            "none": [],
            "subtract": [f"{mem} = {mem} - self.theta{index} * {s}"],
            "subtract_detached": [f"{mem} = {mem} - self.theta{index} * {s}.detach()"],
            "zero": [f"{mem} = {mem} * (1 - {s})"],
            "zero_detached": [f"{mem} = {mem} * (1 - {s}.detach())"],
        }[layer.reset]
    )


def _sources(spec: OracleSpec) -> list[str]:
    """The lines that make what the second layer reads."""
    lines = []
    for name, value in (("below", "s0"), ("before", "z0")):
        if name == "before" and spec.shared != "twice":
            continue
        if spec.pool != "none":
            value = f"F.{spec.pool}_pool1d({value}.unsqueeze(1), 2).squeeze(1)"
        if spec.merge == "concatenation":
            value = f"torch.cat([{value}, x[t]], 1)"
        lines += [f"{name} = {value}"]
    return lines


def _shift(spec: OracleSpec) -> list[str]:
    """The lines that move a delay line on by one step, before z0 becomes the new spikes."""
    if spec.held == "none":
        return []
    if spec.held == "locals":
        return [f"z0_{n} = {'z0' if n == 2 else f'z0_{n - 1}'}" for n in range(spec.delay, 1, -1)]
    return ["past = past[1:] + [s0]"] if spec.held == "list" else ["past.append(s0)"]


class Oracle(NamedTuple):
    """What ``build`` makes."""

    module: nn.Module
    source: str
    inputs: tuple[Tensor, ...]


def build(spec: OracleSpec) -> Oracle:
    """Executes the source of a specification and makes its inputs, all in float64."""
    source = render(spec)
    namespace = execute(source)
    with models.seeded(spec.seed):
        module = namespace["Net"]().double()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.startswith(("fc", "late", "down", "readout", "second")) and parameter.ndim > 1:
                parameter.mul_(2.0 if name == "fc0.weight" else 3.0)
            elif name.startswith("fc"):
                parameter.abs_()
    if spec.norm != "none":
        module.norm.running_mean.uniform_(-0.3, 0.3, generator=torch.Generator().manual_seed(spec.seed))
        module.norm.weight.data.add_(0.5)
        module.norm.bias.data.add_(0.3)
    if spec.frozen:
        module.fc0.weight.requires_grad_(False)
    generator = torch.Generator().manual_seed(1000 + spec.seed)
    batch = 4 if spec.norm == "train" else 2
    sizes = (FEATURES, 2) if spec.two_inputs else (FEATURES,)
    inputs = [2 * torch.randn(spec.steps, batch, size, generator=generator, dtype=torch.float64) for size in sizes]
    return Oracle(module.train(spec.training), source, tuple(inputs))


def spikes(spec: OracleSpec) -> Tensor:
    """Returns the spikes of every layer of the network that a specification describes."""
    oracle = build(replace(spec, everything=True, readout=False))
    with torch.no_grad(), models.seeded(spec.seed):
        result: Tensor = oracle.module(*oracle.inputs)
    return result


def loss_of(spec: OracleSpec, outputs: Tensor) -> Tensor:
    """The loss on the outputs [T, B, n], with a different weight for every element."""
    values = {
        "every step": lambda: outputs,
        "last step": lambda: outputs[-1],
        "window": lambda: outputs[1:-1],
        "mean": lambda: outputs.mean(0),
        "maximum": lambda: outputs.amax(0),
    }[spec.loss]()
    return models.weighted_loss([values + 0.1 * values**2])
