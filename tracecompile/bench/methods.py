"""The ways to run a training step that the benchmark puts side by side: one row of the table each."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

import tracecompile
from tracecompile.bench import compiled, libraries
from tracecompile.bench.braintrace import braintrace_pp_prop
from tracecompile.bench.case import Case
from tracecompile.bench.memopt import spikingjelly_memopt
from tracecompile.bench.networks import Looped
from tracecompile.bench.over_time import layer_by_layer, looped_of, step_by_step
from tracecompile.bench.running import Run, Skipped
from tracecompile.diagnostics.check import projection_loss
from tracecompile.diagnostics.fidelity import call_or_loop
from tracecompile.errors import ConversionError
from tracecompile.settings import Backend

WINDOW = 32
"""Steps of a window of truncated backpropagation, and never more than a quarter of the sequence."""


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        key: Name in JSON and for a process of its own.
        title: Name in the table.
        make: Prepares the runs for a case.
        exact: Whether its gradient is backpropagation through time.
        on_request: Returns why it is left out of a case where no rows are named; "" where it is not.
    """

    key: str
    title: str
    make: Callable[[Case], Run]
    exact: bool = False
    on_request: Callable[[Case], str] = lambda case: ""

    def by_default(self, case: Case) -> Method:
        """Returns the row as it is where none is named: left out, if it has a reason."""
        reason = self.on_request(case)

        def left_out(case: Case) -> Run:
            raise Skipped(f"{reason}; --rows {self.key} measures it")

        return replace(self, make=left_out) if reason else self


def inference(case: Case) -> Run:
    """The user's model as it would be used: evaluation mode, without gradients."""

    def body(model: nn.Module) -> None:
        with torch.no_grad():
            call_or_loop(model, case.inputs)

    return Run(lambda: copy.deepcopy(case.model).eval(), body, gradient_of=None)


def through_time(case: Case) -> Run:
    """Ordinary backpropagation through time."""

    def loss(model: nn.Module) -> Tensor:
        return projection_loss(call_or_loop(model, case.inputs))

    return Run(lambda: copy.deepcopy(case.model), lambda model: loss(model).backward(), grows=loss)


def hoisted(case: Case) -> Run:
    """Backpropagation through time, layer by layer: the synapses are taken out of the loop over time."""
    looped, (x,) = looped_of(case), case.inputs

    def loss(model: nn.Module) -> Tensor:
        assert isinstance(model, Looped)
        return projection_loss(layer_by_layer(model, x, model.start())[0] / case.steps)

    return Run(lambda: copy.deepcopy(looped), lambda model: loss(model).backward(), grows=loss)


def checkpointed(case: Case) -> Run:
    """Backpropagation through time that keeps only the states between segments, and runs each segment once more."""
    looped, (x,) = looped_of(case), case.inputs
    length = math.isqrt(case.steps - 1) + 1

    def body(model: nn.Module) -> None:
        assert isinstance(model, Looped)
        states = model.start()
        total = torch.zeros((), device=x.device)
        for part in x.split(length):
            scores, states = checkpoint(step_by_step, model, part, states, use_reentrant=False)
            total = total + scores
        projection_loss(total / case.steps).backward()

    return Run(lambda: copy.deepcopy(looped), body, note=f"segments of {length} steps")


def truncated(case: Case) -> Run:
    """Backpropagation through windows of time: the states are detached between them, backward runs in each."""
    looped, (x,) = looped_of(case), case.inputs
    length = max(1, min(WINDOW, case.steps // 4))

    def body(model: nn.Module) -> None:
        assert isinstance(model, Looped)
        states = model.start()
        for part in x.split(length):
            scores, states = step_by_step(model, part, states)
            # The loss is linear in the scores, so that the sum over the windows is the loss of the sequence.
            projection_loss(scores / case.steps).backward()
            states = pytree.tree_map_only(Tensor, Tensor.detach, states)

    return Run(lambda: copy.deepcopy(looped), body, note=f"windows of {length} steps")


def converted(backend: Backend, bins: int | None, chunk: int | None) -> Callable[[Case], Run]:
    """A converted copy of the model; skipped with the refusal's words where convert does not take the backend.

    Args:
        backend: As ``convert`` takes it.
        bins: Of the measured rule; None for the exact one.
        chunk: As ``convert`` takes it.
    """
    options: dict[str, Any] = {"rule": "exact"} if bins is None else {"bins": bins}

    def make(case: Case) -> Run:
        model = copy.deepcopy(case.model)
        example = case.inputs[0] if isinstance(case.inputs, list) else case.inputs
        try:
            net = tracecompile.convert(model, example, backend=backend, chunk=chunk, **options)
        except ConversionError as refusal:
            if (backend, chunk) == ("eager", 1):
                raise
            raise Skipped(str(refusal).splitlines()[0]) from refusal

        def fresh() -> nn.Module:
            net.reset()
            return net

        def body(module: nn.Module) -> None:
            projection_loss(call_or_loop(module, case.inputs)).backward()

        return Run(fresh, body)

    return make


METHODS: tuple[Method, ...] = (
    Method("inference", "the model's inference", inference),
    Method("inference-compiled", "inference, compiled", compiled.compiled_inference, on_request=compiled.takes_long),
    Method("bptt", "backpropagation through time", through_time, exact=True),
    Method("hoisted", "through time, hoisted", hoisted, exact=True),
    Method("bptt-compiled", "through time, compiled", compiled.compiled_through_time, True, compiled.takes_long),
    Method("checkpoint", "activation checkpointing", checkpointed, exact=True),
    Method("checkpoint-compiled", "checkpointing, compiled", compiled.compiled_checkpoints, exact=True),
    Method("truncated", "truncated backpropagation", truncated),
    Method("spikingjelly-ottt", "SpikingJelly, OTTT nodes", libraries.spikingjelly_ottt),
    Method("spikingjelly-sltt", "SpikingJelly, SLTT nodes", libraries.spikingjelly_sltt),
    Method("spikingjelly-memopt", "SpikingJelly, memopt", spikingjelly_memopt, exact=True),
    Method("braintrace", "BrainTrace, pp_prop", braintrace_pp_prop),
    Method("snntorch", "snnTorch, loop over time", libraries.snntorch_loop),
    Method("eager-1", "converted, eager, K=1", converted("eager", 1, 1)),
    Method("eager-4", "converted, eager, K=4", converted("eager", 4, 1)),
    Method("chunked-1", "converted, eager, chunk 16, K=1", converted("eager", 1, 16)),
    Method("chunked-4", "converted, eager, chunk 16, K=4", converted("eager", 4, 16)),
    Method("inductor-1", "converted, inductor, K=1", converted("inductor", 1, None)),
    Method("inductor-4", "converted, inductor, K=4", converted("inductor", 4, None)),
    Method("exact-eager", "converted, eager, exact", converted("eager", None, None), exact=True),
    Method("exact-inductor", "converted, inductor, exact", converted("inductor", None, None), exact=True),
)
BY_KEY: Mapping[str, Method] = {method.key: method for method in METHODS}
