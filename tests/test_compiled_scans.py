"""Compiled scans against the reference, and when something is compiled at all."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import models
import pytest
import torch
from models import MODELS
from test_chunks import assert_same_records, recorded
from torch import Tensor, nn
from torch.utils import _pytree as torch_pytree

import tracecompile
import tracecompile.nn as snn
from tracecompile.bench.case import Job, open_case
from tracecompile.runtime.engine import compiled

SEQUENCES = [name for name, case in MODELS.items() if case.kind == "sequence"]
REFERENCE: Any = {"backend": "eager", "chunk": 1}


@pytest.fixture
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the unrolled scans short, which is all that compiling takes time for."""
    monkeypatch.setattr(compiled, "PIECE", 3)
    monkeypatch.setattr(compiled, "RECURRENT_PIECE", 2)


def told(report: tracecompile.ConversionReport) -> str:
    """Returns a report as one line."""
    return " ".join(str(report).split())


def gradients(module: nn.Module, outputs: Any) -> dict[str, Tensor]:
    """Gradients by parameter, zeros where there is none, of a loss that reads no single step: no step is run again."""
    leaves = [leaf for leaf in torch_pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
    loss = sum(leaf.sum().square() for leaf in leaves)
    assert isinstance(loss, Tensor)
    named = dict(module.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named.items(), found, strict=True)}


def assert_equal_to_reference(
    model: nn.Module, inputs: tuple[Tensor, ...], *, bins: int, rtol: float = 1e-9, **settings: Any
) -> tracecompile.TracedModule:
    """Asserts that a compiled network records what the reference records, with the same gradients; returns it."""
    reference = tracecompile.convert(model, inputs, bins=bins, **REFERENCE)
    net = tracecompile.convert(model, inputs, bins=bins, backend="inductor", **settings)
    expected, wanted = recorded(reference, inputs, 0)
    found, window = recorded(net, inputs, 0)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    assert_same_records(window, wanted)
    theirs, ours = gradients(reference, expected), gradients(net, found)
    assert any(gradient.norm() > 0 for gradient in theirs.values())
    for name, gradient in theirs.items():
        error = float((ours[name] - gradient).norm())
        assert error <= max(rtol * float(gradient.norm()), 1e-12), f"{name}: {error}"
    execution = net.report.execution
    assert execution is not None
    assert execution.backend == "inductor"
    assert net.report.execution is not None
    assert reference.report.execution is not None
    assert reference.report.execution.backend == "eager"
    return net


@pytest.mark.parametrize(
    ("name", "bins"), [*((name, 2) for name in SEQUENCES), ("two_recurrent_layers", 1), ("learnable_neuron", 1)]
)
def test_compiled_scans_leave_what_single_steps_leave(name: str, bins: int, short_pieces: None) -> None:
    case = MODELS[name]
    inputs = (case.example_inputs(12, 3),)
    net = assert_equal_to_reference(case.factory().double(), inputs, bins=bins)
    execution = net.report.execution
    assert execution is not None
    assert execution.obstacles == ()
    assert execution.compiled > 0
    assert execution.compile_seconds > 0


@pytest.mark.parametrize("network", ["dense", "recurrent", "convolutional"])
def test_whole_pieces(network: str) -> None:
    case = open_case(Job(network=network, steps=70, quick=True))
    net = assert_equal_to_reference(case.model.double(), (case.inputs[0].double(),), bins=4)
    assert "compiled in" in told(net.report)


class OneLayer(nn.Module):
    """Spikes and membranes of neurons that are driven directly."""

    def __init__(self, width: int, leak: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.lif = snn.LIF(leak=leak)

    def forward(self, x: Tensor) -> Tensor:
        state, spikes = None, []
        for x_t in x:
            spike, state = self.lif(self.gain * x_t, state)
            spikes.append(spike)
        return torch.stack(spikes)


def spikes_of(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the spikes of the model itself and those of the compiled network."""
    net = tracecompile.convert(model, x, bins=1, backend="inductor")
    with torch.no_grad():
        expected = model(x)
    found = net(x).detach()
    execution = net.report.execution
    assert execution is not None
    assert (execution.compiled, execution.obstacles) == (1, ())
    return expected, found


def test_a_membrane_exactly_at_the_threshold() -> None:
    # Sums of quarters with a leak of one half: every value is exact, and many membranes are exactly 1.
    torch.manual_seed(0)
    x = torch.randint(0, 5, (32, 4, 50)) / 4
    expected, found = spikes_of(OneLayer(50, 0.5), x)
    membrane, at_threshold = torch.zeros(4, 50), 0
    for x_t, spike in zip(x, expected, strict=True):
        membrane = 0.5 * membrane + x_t
        at_threshold += int((membrane == 1.0).sum())
        membrane = membrane - spike
    assert at_threshold > 50
    assert torch.equal(found, expected)
    assert set(found.unique().tolist()) == {0.0, 1.0}


def test_elementwise_neurons_are_compiled_bit_for_bit() -> None:
    torch.manual_seed(0)
    expected, found = spikes_of(OneLayer(1000, 0.9), torch.rand(64, 8, 1000))
    assert torch.equal(found, expected)
    assert 0.05 < found.mean() < 0.95


def test_layers_share_what_is_compiled_and_other_lengths_and_batches_use_it(short_pieces: None) -> None:
    case = open_case(Job(network="dense", steps=6, quick=True))
    net = tracecompile.convert(case.model, case.inputs, bins=1, backend="inductor")
    for steps, batch in [(6, 8), (12, 8), (6, 5), (9, 7)]:
        net(torch.rand(steps, batch, 32)).sum().backward()
        execution = net.report.execution
        assert execution is not None
        assert execution.compiled == 1, "both layers, every length, every batch size"
    copied = copy.deepcopy(net)
    copied(torch.rand(6, 8, 32)).sum().backward()
    assert copied.report.execution is not None
    assert copied.report.execution.compiled == 1


def test_sizes_that_are_equal_by_chance(short_pieces: None) -> None:
    # The batch is as large as the layers are wide: what is compiled then must not serve where it is not.
    torch.manual_seed(0)
    model, x = open_case(Job(network="dense", steps=6, quick=True)).model.double(), torch.rand(6, 64, 32).double()
    net = assert_equal_to_reference(model, (x,), bins=2)
    for batch in (5, 64):
        other = torch.rand(6, batch, 32).double()
        expected = tracecompile.convert(model, other, bins=2, **REFERENCE)(other)
        torch.testing.assert_close(net(other), expected, rtol=1e-9, atol=1e-10)


def test_autocast_rounds_where_the_model_does(short_pieces: None) -> None:
    case = open_case(Job(network="dense", steps=40, quick=True))
    found = []
    for backend in ("eager", "inductor"):
        net = tracecompile.convert(case.model, case.inputs, bins=2, backend=backend, chunk=10)  # type: ignore[arg-type]
        with torch.autocast("cpu", torch.bfloat16):
            outputs = net(*case.inputs)
            found.append((outputs.detach(), gradients(net, outputs)))
        execution = net.report.execution
        assert execution is not None
        assert (execution.chunk, execution.obstacles) == (10, ())
    (expected, theirs), (values, ours) = found
    torch.testing.assert_close(values, expected, rtol=1e-2, atol=1e-3)
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() <= 1e-2 * gradient.norm(), name


class Stubborn(models.FastSigmoid):
    """A surrogate that looks at its values, which no tracer can follow."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors
        return grad / (1 + v.abs()) if float(v.abs().max()) > 0 else grad


class StubbornNet(nn.Module):
    """One layer with that surrogate."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        v, spikes = torch.zeros(()), []
        for x_t in x:
            v = 0.8 * v + self.fc(x_t)
            spike = Stubborn.apply(v - 0.3)
            v = v - spike
            spikes.append(spike)
        return torch.stack(spikes)


def test_what_cannot_be_traced_is_run_as_it_is_and_the_report_says_so(short_pieces: None) -> None:
    torch.manual_seed(0)
    model, x = StubbornNet().double(), torch.rand(9, 3, 4).double()
    with pytest.warns(UserWarning, match="without being compiled"):
        net = assert_equal_to_reference(model, (x,), bins=2)
    execution = net.report.execution
    assert execution is not None
    assert execution.compiled == 0
    assert len(execution.obstacles) == 1
    assert " ".join(execution.obstacles[0].split()) in told(net.report)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net(x)


def test_hooks_within_a_recurrent_block_are_called_at_every_step() -> None:
    case = open_case(Job(network="recurrent", steps=6, quick=True))
    net = tracecompile.convert(case.model, case.inputs, bins=1, backend="inductor", chunk=3)
    lateral = net.get_submodule("lif1.lateral")
    seen: list[int] = []
    lateral.register_forward_hook(lambda module, args, result: seen.append(1))
    with pytest.warns(UserWarning, match="hooks"):
        net(*case.inputs)
    assert len(seen) >= 6
    execution = net.report.execution
    assert execution is not None
    (obstacle,) = execution.obstacles
    assert "lif1" in obstacle
    assert execution.compiled > 0, "the other layer"


# ---------------------------------------------------------------------------------------------------------------------
# What is foretold; what "auto" chooses is in runtime/engine/test_work.py
# ---------------------------------------------------------------------------------------------------------------------


def test_the_report_foretells_what_will_be_compiled() -> None:
    case = open_case(Job(network="dense", steps=4, quick=True))
    text = told(tracecompile.convert(case.model, case.inputs).report)
    assert "counts for 61,024:" in text, "two layers of 64 states, a batch of 8, and 30,000 for each"
    assert "execution of the last sequence" not in text
    assert "up to rounding" not in told(tracecompile.convert(case.model, case.inputs, backend="eager").report)
    assert "up to rounding" in told(tracecompile.convert(case.model, case.inputs, backend="eager", chunk=2).report)
    step_model = MODELS["tuple_state"]
    with models.seeded(0):
        net = tracecompile.convert(step_model.factory(), step_model.example_inputs(1, 2), backend="inductor")
    assert "compiled as one call" in told(net.report)
