"""Converted snnTorch and Norse networks behave like the library's own: resets, registries, state objects, refusals."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from requirements import library
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import tracecompile
from tracecompile.errors import UnsupportedControlFlow

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    snn: Any = library("snntorch")
    norse: Any = library("norse.torch")

from snntorch import utils
from snntorch._neurons.neurons import SpikingNeuron
from table import norse as norse_models
from table import snntorch as snntorch_models

pytestmark = [pytest.mark.libraries, pytest.mark.filterwarnings("ignore")]


def inputs(steps: int, batch: int, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return 4 * torch.randn(steps, batch, snntorch_models.INPUTS)


def states(model: nn.Module) -> list[Tensor]:
    return [value.clone() for name, value in model.named_buffers() if name.endswith(("mem", "spk", "syn"))]


def steps_of(module: nn.Module, x: Tensor) -> list[Any]:
    return [module(x_t) for x_t in x]


def same(one: Any, other: Any) -> bool:
    pairs = zip(pytree.tree_leaves(one), pytree.tree_leaves(other), strict=True)
    return all(torch.equal(first, second) for first, second in pairs)


# snnTorch: the network's own start.


@pytest.mark.parametrize("batch", [2, 3])
def test_a_network_that_ran_before_starts_a_new_sequence(batch: int) -> None:
    model, fresh = snntorch_models.hidden(), snntorch_models.hidden()
    fresh.load_state_dict(model.state_dict())
    steps_of(model, inputs(4, 2, seed=1))
    before = states(model)
    assert any(state.any() for state in before)
    net = tracecompile.convert(model, inputs(1, batch)[0])
    assert any("earlier sequence" in note for note in net.report.notes)
    assert same(states(model), before), "conversion has reset the model"
    x = inputs(5, batch)
    expected = steps_of(fresh, x)
    assert same(steps_of(net, x), expected)
    net.reset()
    assert same(states(model), before), "a reset leaves what conversion has found"
    assert same(steps_of(net, x), expected)


def test_a_new_network_has_no_earlier_sequence() -> None:
    net = tracecompile.convert(snntorch_models.hidden(), inputs(1, 2)[0])
    assert not any("earlier sequence" in note for note in net.report.notes)


@pytest.mark.parametrize("build", [snntorch_models.Explicit, snntorch_models.RateCoded])
@pytest.mark.parametrize("before", [2, 4])
def test_a_network_that_resets_itself_may_have_run_before(build: Callable[[], nn.Module], before: int) -> None:
    model = build()
    model(inputs(6, before, seed=1))
    net = tracecompile.convert(model, inputs(5, 2))
    for steps, batch in [(5, 3), (7, 1)]:
        assert same(net(inputs(steps, batch)), model(inputs(steps, batch)))


def test_the_reset_of_forward_reaches_no_other_network() -> None:
    model, other = snntorch_models.RateCoded(), snntorch_models.hidden()
    steps_of(other, inputs(3, 2, seed=1))
    model(inputs(3, 2, seed=1))
    before, registered = states(other), list(SpikingNeuron.instances)
    own = states(model)
    net = tracecompile.convert(model, inputs(5, 2))
    net(inputs(5, 2))
    assert same(states(other), before)
    assert same(states(model), own)
    assert len(SpikingNeuron.instances) == len(registered)
    assert all(one is two for one, two in zip(SpikingNeuron.instances, registered, strict=True))


def goes_on_like(net: nn.Module, model: nn.Module) -> None:
    """Asserts that two modules go on from their last sequence alike, and start again alike."""
    outputs = []
    for seed, (steps, batch) in enumerate([(5, 3), (7, 3), (4, 3)]):
        x = inputs(steps, batch, seed=seed)
        outputs.append(model(x))
        assert same(net(x), outputs[-1])
    again = inputs(7, 3, seed=1)
    net.reset()
    snntorch_models.reset(model)
    fresh = model(again)
    assert same(net(again), fresh)
    assert not same(fresh, outputs[1]), "the first sequence left nothing to the second"


def test_a_copy_that_the_library_does_not_reset_is_not_reset_by_conversion() -> None:
    other = snntorch_models.hidden()
    steps_of(other, inputs(3, 2, seed=1))
    before = states(other)
    torch.manual_seed(0)
    model = copy.deepcopy(snntorch_models.RateCoded())  # utils.reset never reaches it: it is in no list of neurons
    twin = copy.deepcopy(model)
    net = tracecompile.convert(model, inputs(5, 2))
    assert same(states(other), before)
    goes_on_like(net, twin)


def test_a_state_that_the_library_forgets_to_reset_goes_on() -> None:
    class Forgets(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(snntorch_models.INPUTS, 4)
            self.lif = snn.RSynaptic(alpha=0.5, beta=0.9, linear_features=4, init_hidden=True)

        def forward(self, x: Tensor) -> Tensor:
            utils.reset(self)  # resets syn and mem of RSynaptic, and not spk
            return torch.stack([self.lif(self.fc(x_t)) for x_t in x])

    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(Forgets())
        with torch.no_grad():
            models[-1].lif.recurrent.weight.mul_(20)  # so that one left spike shows
    goes_on_like(tracecompile.convert(models[0], inputs(5, 2)), models[1])


def test_states_that_nobody_resets_go_on_until_reset() -> None:
    torch.manual_seed(0)
    model = snntorch_models.Unreset()
    twin = copy.deepcopy(model)
    goes_on_like(tracecompile.convert(model, inputs(5, 2)), twin)


def test_a_refusal_inside_the_library_names_the_users_line_too() -> None:
    from snntorch import spikegen

    class Latency(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lif = snn.Leaky(beta=0.9)

        def forward(self, x: Tensor) -> Tensor:
            mem, spikes = self.lif.reset_mem(), []
            for x_t in spikegen.latency(x, num_steps=6):  # looks at the data
                spk, mem = self.lif(x_t, mem)
                spikes.append(spk)
            return torch.stack(spikes)

    with pytest.raises(UnsupportedControlFlow) as caught:
        tracecompile.convert(Latency(), torch.rand(2, 4))
    assert caught.value.where is not None
    assert caught.value.where.file == __file__
    assert "looks at the data" in caught.value.where.source
    assert caught.value.library is not None
    assert caught.value.library.file.endswith("spikegen.py")


def test_copies_of_the_net_keep_states_of_their_own() -> None:
    model = snntorch_models.hidden()
    twin = copy.deepcopy(model)
    net = tracecompile.convert(model, inputs(1, 2)[0])
    x = inputs(6, 2)
    steps_of(net, x[:3])
    other = copy.deepcopy(net)
    expected = steps_of(twin, x)
    assert same(steps_of(other, x), expected)
    assert same(steps_of(net, x[3:]), expected[3:])


def test_inhibition_converts() -> None:
    class Inhibited(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(snntorch_models.INPUTS, 4)
            self.lif = snn.Leaky(beta=0.9, inhibition=True)

        def forward(self, x: Tensor) -> Tensor:
            mem, spikes = self.lif.reset_mem(), []
            for x_t in x:
                spk, mem = self.lif(self.fc(x_t), mem)
                spikes.append(spk)
            return torch.stack(spikes)

    model = Inhibited()
    net = tracecompile.convert(model, inputs(5, 2))
    found = net(inputs(8, 3))
    assert torch.equal(found, model(inputs(8, 3)))
    assert 0 < found.sum() <= 8 * 3


def test_an_input_that_forward_itself_codes_as_spikes() -> None:
    from snntorch import spikegen

    class RateCoded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(snntorch_models.INPUTS, 4)
            self.lif = snn.Leaky(beta=0.9)

        def forward(self, x: Tensor, num_steps: int) -> Tensor:
            coded, mem, spikes = spikegen.rate(x, num_steps=num_steps), self.lif.reset_mem(), []
            for step in range(num_steps):
                spk, mem = self.lif(2 * self.fc(coded[step]), mem)
                spikes.append(spk)
            return torch.stack(spikes)

    model = RateCoded()
    net = tracecompile.convert(model, (torch.rand(2, snntorch_models.INPUTS), 6))
    x = torch.rand(3, snntorch_models.INPUTS)
    torch.manual_seed(7)
    expected = model(x, 9)
    torch.manual_seed(7)
    found = net(x, 9)
    assert torch.equal(found, expected)
    assert 0 < found.mean() < 1


# Norse.


def test_state_objects_are_those_of_the_library_in_and_out() -> None:
    model = norse_models.Cells()
    net = tracecompile.convert(model, (inputs(1, 2)[0], None))
    x = inputs(5, 3)
    state = expected_state = None
    for x_t in x:
        value, state = net(x_t, state)
        expected, expected_state = model(x_t, expected_state)
        assert torch.equal(value, expected)
        assert [type(item) for item in state] == [type(item) for item in expected_state]
        assert same(state, expected_state)
    assert type(state[0]).__name__ == "LIFFeedForwardState"


def test_the_report_tells_spiking_layers_from_readouts_and_currents_from_membranes() -> None:
    net = tracecompile.convert(norse_models.Cells(), (inputs(1, 2)[0], None))
    layers = net.program.layers
    assert [layer.kind for layer in layers] == ["spiking", "spiking", "readout"]
    kinds = {name: kind for layer in layers for name, kind in zip(layer.states, layer.state_kinds, strict=True)}
    found = {carry.name: kinds[carry.placeholder] for carry in net.program.carries}
    assert found == {
        f"state[{place}].{name}": kind
        for place in range(3)
        for name, kind in (("v", "membrane"), ("i", "synaptic current"))
    }


def test_a_state_of_the_users_own_begins_a_sequence() -> None:
    model = norse_models.Cells()
    x = inputs(6, 2)
    _, given = model(x[0])
    given = pytree.tree_map(lambda leaf: leaf.detach() + 0.1, given)
    for example in ((x[0], None), (x[0], given)):
        net = tracecompile.convert(model, example)
        for _ in range(2):
            state, expected_state = given, given
            for x_t in x[1:]:
                value, state = net(x_t, state)
                expected, expected_state = model(x_t, expected_state)
                assert torch.equal(value, expected)


def test_the_list_of_states_that_is_handed_in_is_left_alone() -> None:
    net = tracecompile.convert(norse_models.sequential(), (inputs(1, 2)[0], None))
    x = inputs(2, 2)
    _, state = net(x[0], None)
    kept = list(state)
    net(x[1], state)
    assert all(one is two for one, two in zip(state, kept, strict=True))


def test_the_hook_against_autapses_acts_on_the_gradient_of_the_net() -> None:
    model = norse_models.recurrent_without_autapses()
    net = tracecompile.convert(model, inputs(5, 2))
    net(inputs(6, 3)).sum().backward()
    gradient = model.lif.recurrent_weights.grad
    assert gradient.any()
    assert not gradient.diagonal().any()


@pytest.mark.parametrize("method", ["super", "tanh", "triangle", "circ", "heavi_erfc"])
def test_every_threshold_method_keeps_its_own_gradient(method: str) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(snntorch_models.INPUTS, 4)
            self.lif = norse.LIFCell(norse.LIFParameters(method=method, alpha=torch.as_tensor(2.0)))

        def forward(self, x: Tensor) -> Tensor:
            state, spikes = None, []
            for x_t in x:
                z, state = self.lif(self.fc(x_t), state)
                spikes.append(z)
            return torch.stack(spikes)

    torch.manual_seed(0)
    model, x = Network(), 3 * inputs(8, 3)
    net = tracecompile.convert(model, x, bins=8)
    (expected,) = torch.autograd.grad(model(x).sum(), [model.fc.weight])
    found = net(x)
    assert 0 < found.mean() < 1
    found.sum().backward()
    assert expected.any()
    assert (model.fc.weight.grad - expected).norm() <= 1e-6 * expected.norm()


def test_a_learned_time_constant_in_the_parameters_tuple_learns() -> None:
    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tau = nn.Parameter(torch.full((4,), 100.0))
            self.fc = nn.Linear(snntorch_models.INPUTS, 4)
            self.lif = norse.LIFCell(norse.LIFParameters(tau_mem_inv=self.tau))

        def forward(self, x: Tensor) -> Tensor:
            state, spikes = None, []
            for x_t in x:
                z, state = self.lif(self.fc(x_t), state)
                spikes.append(z)
            return torch.stack(spikes)

    torch.manual_seed(0)
    model, x = Learned(), 3 * inputs(8, 3)
    net = tracecompile.convert(model, x, bins=8)
    (expected,) = torch.autograd.grad(model(x).sum(), [model.tau])
    net(x).sum().backward()
    assert expected.any()
    assert (model.tau.grad - expected).norm() <= 1e-6 * expected.norm()


class Normalised(nn.Module):
    """Batch normalisation over time and batch at once, between two layers that run over time."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(snntorch_models.INPUTS, 4)
        self.lif1 = norse.LIF()
        self.norm = nn.BatchNorm1d(4)
        self.lif2 = norse.LIF()

    def forward(self, x: Tensor) -> Tensor:
        steps, batch, _ = x.shape
        z, _ = self.lif1(self.fc(x))
        z = self.norm(z.flatten(0, 1)).view(steps, batch, 4)
        return self.lif2(5 * z)[0]


def test_normalisation_over_all_steps_is_the_models() -> None:
    torch.manual_seed(0)
    model = Normalised()
    twin = copy.deepcopy(model)
    net = tracecompile.convert(model, 2 * inputs(5, 2), bins=7)
    for training in (True, False):
        net.train(training)
        twin.train(training)
        x = 2 * inputs(7, 3)
        expected, found = twin(x), net(x)
        assert torch.equal(found, expected)
        assert 0 < found.mean() < 1
        wanted = torch.autograd.grad(expected.square().mean(0).sum(), list(twin.parameters()))
        model.zero_grad()
        found.square().mean(0).sum().backward()
        largest = max(gradient.norm() for gradient in wanted)
        for gradient, parameter in zip(wanted, model.parameters(), strict=True):
            assert parameter.grad is not None
            assert (parameter.grad - gradient).norm() <= 1e-5 * largest
    assert torch.equal(model.norm.running_mean, twin.norm.running_mean)
