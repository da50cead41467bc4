"""Manners of converted SpikingJelly, Sinabs and traceTorch networks: resets, what is kept, modes, copies, refusals."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from requirements import library
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import tracecompile
from tracecompile.capture.tracing.opaque import runs_operator
from tracecompile.errors import ConversionError, InvalidInput, UnsupportedState
from tracecompile.neuron_step import NeuronStep, OpaqueStep
from tracecompile.rules.opaque import StepWithSlopes

pytestmark = [pytest.mark.libraries, pytest.mark.filterwarnings("ignore")]
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def sj() -> Any:
    """SpikingJelly's neuron, layer and functional modules, as attributes of their package."""
    for name in ("neuron", "layer", "functional", "surrogate"):
        library(f"spikingjelly.activation_based.{name}")
    return library("spikingjelly.activation_based")


def whole_sequences(sj: Any, *between: nn.Module) -> nn.Sequential:
    """Two layers in step mode 'm' with something between them, weights whose sums are exact."""
    net = nn.Sequential(
        sj.layer.Linear(6, 8), sj.neuron.IFNode(v_reset=None), *between, sj.layer.Linear(8, 4), sj.neuron.LIFNode()
    )
    sj.functional.set_step_mode(net, "m")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.round(64 * torch.randn_like(parameter)) / 64)
    return net


def spikes(*shape: int, seed: int = 0) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.4).float()


# A step that is kept whole.


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("IFNode", {}),
        ("LIFNode", {"v_reset": None}),
        ("LIFNode", {"detach_reset": True, "v_reset": -0.2, "decay_input": False}),
        ("ParametricLIFNode", {"init_tau": 1.7}),
        ("QIFNode", {}),
    ],
)
def test_the_slopes_of_a_step_are_those_of_its_parts(sj: Any, name: str, options: dict[str, Any]) -> None:
    """Each neuron by itself, by ordinary autograd through the library's own step."""
    neuron = getattr(sj.neuron, name)(**options)
    step = OpaqueStep(neuron)
    tensors = [value.detach() for value in neuron.parameters()]
    x, v = torch.randn(2, 5) * 2, torch.rand(2, 5)
    wanted = (0, 1, *range(2, 2 + len(tensors)))
    spike, after, *slopes = StepWithSlopes(step, wanted)(x, v, *tensors)
    assert spike.any()
    assert not spike.all()
    for row in range(2):
        for column in range(5):
            given = [value[row, column].reshape(1, 1).requires_grad_() for value in (x.clone(), v.clone())]
            given += [value.clone().requires_grad_() for value in tensors]
            outputs, states = neuron_step(neuron, given)
            for number, result in enumerate((outputs[0], states[0])):
                expected = torch.autograd.grad(result.sum(), given, retain_graph=True, allow_unused=True)
                for place, slope in enumerate(expected):
                    found = slopes[number * len(wanted) + place][row, column]
                    assert found.item() == pytest.approx(0.0 if slope is None else slope.item(), rel=1e-5, abs=1e-7)
    with torch.no_grad():
        exact = neuron_step(neuron, [x, v, *tensors])
    assert torch.equal(spike, exact[0][0])
    assert torch.equal(after, exact[1][0])


def neuron_step(neuron: nn.Module, given: list[Tensor]) -> Any:
    """Runs the library's step with other parameters than its own."""

    class Call(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.neuron = neuron

        def forward(self, x: Tensor, v: Tensor) -> Any:
            return self.neuron.single_step_functional_forward((x,), (v,))  # type: ignore[operator]

    names = [f"neuron.{name}" for name, _ in neuron.named_parameters()]
    return torch.func.functional_call(Call(), dict(zip(names, given[2:], strict=True)), (given[0], given[1]))


def test_only_a_registered_operator_is_kept_whole(sj: Any) -> None:
    assert runs_operator(sj.neuron.LIFNode())
    assert runs_operator(sj.neuron.ParametricLIFNode().double())
    assert not runs_operator(sj.neuron.KLIFNode())
    assert not runs_operator(sj.neuron.LIFNode(surrogate_function=sj.surrogate.Rect()))


def test_a_step_tells_spikes_from_membranes(sj: Any) -> None:
    step = OpaqueStep(sj.neuron.LIFNode(v_threshold=50.0))
    given = [torch.zeros(2, 3), torch.zeros(2, 3)]
    assert NeuronStep(step, 0, 2).emits_spikes(given)
    assert not NeuronStep(step, 1, 2).emits_spikes(given)


@pytest.mark.parametrize(("detach", "style"), [(True, "detached"), (False, "in graph")])
def test_the_report_says_how_the_reset_meets_the_gradient(sj: Any, detach: bool, style: str) -> None:
    net = nn.Sequential(sj.layer.Linear(6, 4), sj.neuron.LIFNode(detach_reset=detach))
    report = tracecompile.convert(net, 3 * torch.rand(2, 6)).report
    (layer,) = report.layers
    assert (layer.reset, layer.kind, layer.states) == (style, "spiking", ("1.v (membrane)",))


class Comparisons(TorchDispatchMode):
    """Counts comparisons with a threshold: a step of a neuron makes one."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.ge.Scalar
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize("learns", [False, True])
def test_the_operator_runs_once_a_step(sj: Any, learns: bool, chunk: int) -> None:
    """As often as in the model."""
    net = nn.Sequential(sj.layer.Linear(6, 8), sj.neuron.LIFNode(), sj.layer.Linear(8, 4))
    sj.functional.set_step_mode(net, "m")
    converted = tracecompile.convert(net, spikes(6, 3, 6), rule="exact", backend="eager", chunk=chunk)
    sj.functional.reset_net(net)
    x, counts = spikes(9, 3, 6), []
    for each in (net, converted):
        with torch.set_grad_enabled(learns), Comparisons() as seen:
            each(x)
        counts.append(seen.count)
    assert counts[0] == counts[1] > 0


def test_an_artifact_of_whole_steps_loads(sj: Any, tmp_path: Path) -> None:
    net = tracecompile.convert(whole_sequences(sj), spikes(6, 3, 6))
    tracecompile.save(net, tmp_path / "net")
    again = tracecompile.load(tmp_path / "net")
    x = spikes(9, 2, 6, seed=1)
    net.reset()
    assert torch.equal(net(x), again(x))


# States that a library keeps until it is told to forget them.


def test_a_sequence_goes_on_until_reset(sj: Any) -> None:
    model = whole_sequences(sj)
    net = tracecompile.convert(whole_sequences(sj), spikes(6, 3, 6))
    first, second = spikes(7, 3, 6, seed=1), spikes(4, 3, 6, seed=2)
    fresh = net(first)
    assert torch.equal(fresh, model(first))
    went_on = net(second)
    assert torch.equal(went_on, model(second))
    net.reset()
    sj.functional.reset_net(model)
    from_rest = net(second)
    assert torch.equal(from_rest, model(second))
    assert not torch.equal(from_rest, went_on)
    assert any("until reset()" in note for note in net.report.notes)


def test_the_reset_of_spikingjelly_reaches_a_converted_module(sj: Any) -> None:
    net = tracecompile.convert(whole_sequences(sj), spikes(6, 3, 6))
    x = spikes(7, 3, 6, seed=1)
    expected = net(x)
    assert not torch.equal(net(x), expected)
    sj.functional.reset_net(net)
    assert torch.equal(net(x), expected)


def test_training_goes_on_from_kept_states(sj: Any) -> None:
    """No gradient flows into the sequence before, as with the library's detach_net between two batches."""
    model = whole_sequences(sj)
    reference = copy.deepcopy(model)
    net = tracecompile.convert(model, spikes(6, 3, 6), bins=6)
    first, second = spikes(6, 3, 6, seed=1), spikes(6, 3, 6, seed=2)
    net(first)
    reference(first)
    sj.functional.detach_net(reference)
    net(second).square().mean().backward()
    reference(second).square().mean().backward()
    for parameter, other in zip(model.parameters(), reference.parameters(), strict=True):
        assert other.grad is not None
        assert other.grad.any()
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_another_batch_size_needs_a_reset(sj: Any) -> None:
    net = tracecompile.convert(whole_sequences(sj), spikes(6, 3, 6))
    net(spikes(6, 3, 6))
    with pytest.raises(InvalidInput, match=r"batch of another size.*reset\(\)"):
        net(spikes(6, 5, 6))
    net.reset()
    net(spikes(6, 5, 6))


def test_a_network_that_ran_before_starts_afresh(sj: Any) -> None:
    used, fresh = whole_sequences(sj), whole_sequences(sj)
    x = spikes(6, 3, 6)
    used(x)
    net = tracecompile.convert(used, x)
    expected = fresh(x)
    assert torch.equal(net(x), expected)
    assert not torch.equal(used(x), expected)
    assert any("held states of an earlier sequence" in note for note in net.report.notes)


def test_states_that_change_between_two_sequences_are_refused(sj: Any) -> None:
    """What the second sequence starts from is not what the first one left."""

    class Fading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = whole_sequences(sj)

        def forward(self, x: Tensor) -> Tensor:
            for module in self.net:
                if isinstance(getattr(module, "v", None), Tensor):
                    module.v = 0.5 * module.v
            return self.net(x)

    with pytest.raises(UnsupportedState, match="left over from one sequence to the next"):
        tracecompile.convert(Fading(), spikes(6, 3, 6))


def test_what_learns_before_the_loop_is_no_frozen_parameter(sj: Any) -> None:
    """A current that is computed once and read at every step."""

    class Static(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.lif = sj.layer.Linear(6, 4), sj.neuron.LIFNode()

        def forward(self, x: Tensor) -> Tensor:
            sj.functional.reset_net(self)
            current, total = self.fc(x), 0.0
            for _ in range(5):
                total = total + self.lif(current)
            return total

    report = tracecompile.convert(Static(), 4 * torch.rand(3, 6)).report
    assert {name: row.status for name, row in report.parameters.items()} == {"fc.weight": "trace", "fc.bias": "trace"}


def test_a_dropout_has_one_mask_until_reset(sj: Any) -> None:
    net = nn.Sequential(sj.layer.Dropout(0.5), sj.layer.Linear(20, 4), sj.neuron.LIFNode())
    converted = tracecompile.convert(copy.deepcopy(net), torch.rand(2, 20))
    inputs = [5 * torch.rand(2, 20) for _ in range(4)]
    for seed in (1, 2):
        sj.functional.reset_net(net)
        converted.reset()
        torch.manual_seed(seed)
        expected = [net(x) for x in inputs]
        torch.manual_seed(seed)
        assert all(torch.equal(converted(x), y) for x, y in zip(inputs, expected, strict=True))
    converted.eval()
    net.eval()
    sj.functional.reset_net(net)
    converted.reset()
    assert all(torch.equal(converted(x), net(x)) for x in inputs)


def test_a_dropout_of_torchs_has_a_mask_for_every_step_beside_one_of_the_librarys(sj: Any) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            neurons = sj.neuron.LIFNode(), sj.neuron.LIFNode()
            self.below = nn.Sequential(nn.Linear(6, 8), neurons[0], sj.layer.Dropout(0.3))
            self.above = nn.Sequential(nn.Dropout(0.3), nn.Linear(8, 4), neurons[1])

        def forward(self, x: Tensor) -> Tensor:
            sj.functional.reset_net(self)
            return torch.stack([self.above(self.below(x_t)) for x_t in x])

    torch.manual_seed(0)
    model = Mixed().double()
    twin, x = copy.deepcopy(model), 5 * torch.rand(9, 3, 6).double()
    net, found = tracecompile.convert(model, 5 * torch.rand(5, 2, 6).double(), bins=9), []
    for module, owner in ((twin, twin), (net, model)):
        torch.manual_seed(1)
        outputs = module(x)
        outputs.sin().sum().backward()
        found.append((outputs, torch.get_rng_state(), *(p.grad for p in owner.parameters())))
    assert all(torch.allclose(one, other, rtol=1e-9, atol=1e-12) for one, other in zip(*found, strict=True))
    assert torch.equal(found[0][0], found[1][0])


def test_membranes_kept_of_a_whole_sequence(sj: Any) -> None:
    class Membrane(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = sj.layer.Linear(6, 4)
            self.lif = sj.neuron.LIFNode(step_mode="m", store_v_seq=True)

        def forward(self, x: Tensor) -> Tensor:
            sj.functional.reset_net(self)
            self.lif(self.fc(x))
            return self.lif.v_seq

    model, x = Membrane(), 4 * torch.rand(6, 3, 6)
    assert torch.equal(tracecompile.convert(model, x)(x), model(x))


# What cannot be taken apart into steps.


def test_normalisation_over_time_is_the_models(sj: Any) -> None:
    net = whole_sequences(sj, sj.layer.BatchNorm1d(8, step_mode="m")).double()
    twin = copy.deepcopy(net)
    converted = tracecompile.convert(net, spikes(6, 3, 6).double(), bins=7)
    for training in (True, False):
        x = spikes(7, 4, 6).double()
        converted.train(training)
        twin.train(training)
        expected, found = twin(x), converted(x)
        assert torch.equal(found, expected)
        assert 0 < expected.mean() < 1
        net.zero_grad()
        wanted = torch.autograd.grad(expected.square().mean(0).sum(), list(twin.parameters()))
        found.square().mean(0).sum().backward()
        for gradient, parameter in zip(wanted, net.parameters(), strict=True):
            assert (parameter.grad - gradient).norm() <= 1e-9 * gradient.norm() + 1e-12
        converted.reset()
        sj.functional.reset_net(twin)
    assert torch.equal(net[2].running_mean, twin[2].running_mean)


def test_a_bias_before_a_normalisation_is_no_fault(sj: Any) -> None:
    """Its gradient is nothing but rounding, in the model and in the converted module, and each rounds in its way."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs in (2, 6, 6):
        layers += [sj.layer.Conv2d(inputs, 6, 3, padding=1), sj.layer.BatchNorm2d(6), sj.neuron.LIFNode()]
    net = tracecompile.convert(nn.Sequential(*layers), 3 * torch.rand(3, 2, 8, 8))
    assert net.report.parameters["0.bias"].status == "trace"


# Sinabs and traceTorch.


def test_sinabs_goes_on_until_reset() -> None:
    sinabs, sl = library("sinabs"), library("sinabs.layers")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), sl.LIF(tau_mem=5.0, norm_input=False))
    net = tracecompile.convert(copy.deepcopy(model), torch.rand(3, 6, 6))
    first, second = 3 * torch.rand(3, 5, 6), 3 * torch.rand(3, 7, 6)
    for x in (first, second):
        assert torch.equal(net(x), model(x))
    net.reset()
    sinabs.reset_states(model)
    assert torch.equal(net(second), model(second))


def test_parameters_of_sinabs_are_those_of_the_model() -> None:
    sl = library("sinabs.layers")
    model = nn.Sequential(nn.Linear(6, 4), sl.LIF(tau_mem=5.0, norm_input=False))
    net = tracecompile.convert(model, 3 * torch.rand(3, 6, 6))
    assert {id(value) for value in net.parameters()} == {id(value) for value in model.parameters()}
    assert not dict(net.named_parameters())["1.spike_threshold"].requires_grad
    other = copy.deepcopy(net)
    other(3 * torch.rand(3, 6, 6)).sum().backward()
    assert all(value.grad is not None for value in other.parameters() if value.requires_grad)
    assert all(value.grad is None for value in model.parameters())


def test_samna_is_never_imported() -> None:
    """Its import runs a pip that replaces it, over the network."""
    library("sinabs")
    code = """
import sys
import torch, sinabs.layers as sl
from torch import nn
import tracecompile
model = nn.Sequential(nn.Linear(6, 4), sl.LIF(tau_mem=5.0), sl.ExpLeak(tau_mem=3.0))
tracecompile.convert(model, torch.rand(3, 6, 6))(torch.rand(2, 5, 6)).sum().backward()
print([name for name in ("samna", "torchvision") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.stdout.strip() == "[]", result.stderr


def test_states_of_tracetorch_are_neurons_on_their_own() -> None:
    """The axis of the neurons goes to the end and back: the recurrence is elementwise all the same."""
    tt = library("tracetorch")
    net = nn.Sequential(nn.Conv2d(1, 4, 3), tt.snn.LIB(4, dim=-3, quant_fn=tt.functional.round_ste()))
    report = tracecompile.convert(net, 3 * torch.rand(2, 1, 8, 8)).report
    assert [(layer.kind, layer.recurrence) for layer in report.layers] == [("spiking", "")]


def test_an_unknown_state_of_a_step_is_no_silent_copy(sj: Any) -> None:
    """A network whose hidden state only some calls update is refused, in whatever library it is written."""

    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lif = sj.neuron.LIFNode()
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.lif(x) if self.calls % 2 else self.lif(2 * x)

    with pytest.raises(ConversionError):
        tracecompile.convert(Sometimes(), torch.rand(2, 6))
