"""What is measured: a model and its inputs, described so that a fresh process can make the same ones."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import tracecompile
from tracecompile.bench.networks import NETWORKS, QUICK, Looped
from tracecompile.example_inputs import choose_inputs
from tracecompile.runtime.streams import time_axes
from tracecompile.targets import UsageError, load_target, random_inputs
from tracecompile.weights import load_weights

DEFAULT_STEPS = 100
"""Time steps of a model that takes one step a call, where none are asked for."""


@dataclass(frozen=True)
class Job:
    """One network at one length.

    Attributes:
        network: Name of a built-in network, or ...
        target: ... a TARGET of the command line.
        steps: Time steps; None for as many as the target's own example has.
        quick: Whether the built-in network is the small one.
        shape: Shape of the target's input, as ``--input`` takes it.
        weights: File of the target's weights.
        dt: Time step of a NIR graph.
        seed: Of weights and inputs.
        device: Where all of it runs.
    """

    network: str = ""
    target: str = ""
    steps: int | None = None
    quick: bool = False
    shape: str | None = None
    weights: str | None = None
    dt: float | None = None
    seed: int = 0
    device: str = "cpu"

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Case:
    """A model and what it runs on.

    Attributes:
        title: Name of the network for the table.
        model: In training mode; copied before it is run.
        inputs: A tuple of arguments for one call, or a list of them, one per step, for a model of one step.
        steps: Time steps.
        batch: Examples in the batch, where known.
        time_axes: Of each argument; None for a model of one step, and where the length is fixed.
    """

    title: str
    model: nn.Module
    inputs: Any
    steps: int
    time_axes: tuple[int, ...] | None

    @property
    def device(self) -> torch.device:
        """Where the inputs are."""
        found: Tensor = next(leaf for leaf in pytree.tree_leaves(self.inputs) if isinstance(leaf, Tensor))
        return found.device

    @property
    def looped(self) -> Looped | None:
        """The model, if it is a built-in one, whose step can be called by itself."""
        return self.model if isinstance(self.model, Looped) else None

    def of_length(self, steps: int) -> Case | None:
        """Returns the same case with another number of steps, for which the inputs are cut or repeated."""
        if isinstance(self.inputs, list):
            return replace(self, inputs=[self.inputs[t % self.steps] for t in range(steps)], steps=steps)
        if self.time_axes is None:
            return None
        chosen = torch.arange(steps, device=self.device) % self.steps
        inputs = tuple(x.index_select(axis, chosen) for x, axis in zip(self.inputs, self.time_axes, strict=True))
        return replace(self, inputs=inputs, steps=steps)


def open_case(job: Job) -> Case:
    """Makes the model and the inputs of a job, the same ones for the same job.

    Raises:
        UsageError: The job cannot be done as it is described.
        ConversionError: The model is refused.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        return _built_in(job) if job.network else _of_target(job)


def _built_in(job: Job) -> Case:
    network = (QUICK if job.quick else NETWORKS)[job.network]
    steps = job.steps or DEFAULT_STEPS
    model = network.make().to(job.device)
    (x,) = random_inputs([(steps, network.batch, *network.features)], job.seed)
    return Case(network.title, model, (x.to(job.device),), steps, (0,))


def _of_target(job: Job) -> Case:
    model, module = load_target(job.target, job.dt)
    if job.weights is not None:
        load_weights(model, Path(job.weights))
    model.to(job.device)
    inputs = tuple(x.to(job.device) for x in choose_inputs(job.shape, module, job.seed))
    program = tracecompile.convert(model, inputs, backend="eager").program
    if program.explicit_states:
        raise UsageError("bench cannot tell which state comes first: wrap the step in a module that loops over time.")
    title = job.target.rpartition(":")[2] or job.target
    if program.kind != "sequence":
        steps = job.steps or DEFAULT_STEPS
        return Case(title, model, [inputs] * steps, steps, None)
    axes = time_axes(program) if program.length is None else None
    own = program.length if axes is None or len(axes) != len(inputs) else inputs[0].shape[axes[0]]
    axes = None if axes is None or len(axes) != len(inputs) else axes
    case = Case(title, model, inputs, own or 0, None if axes is None else tuple(axes))
    if job.steps is None or job.steps == own:
        return case
    longer = case.of_length(job.steps)
    if longer is None:
        raise UsageError(
            "The length of the model's sequence cannot be changed through its inputs: leave --steps out, and give the "
            "length with --input."
        )
    return longer
