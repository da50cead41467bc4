"""The slow reference against backpropagation through time, and where it must not agree with it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import reference
import torch
from reference import (
    Layer,
    Network,
    adaptive_threshold,
    autograd_gradients,
    bin_edges,
    delay_shares,
    leaky_integrate_and_fire,
    leaky_integrator,
    record,
    reference_gradients,
    second_order_synapse,
    simulate,
)
from torch import Tensor

INPUTS, HIDDEN, CLASSES, BATCH = 5, 6, 3, 4

CORES = {
    f"{name}-{reset}-{'detached' if detach else 'in-graph'}": (name, reset, detach)
    for name, resets in (
        ("lif", ("subtract", "zero", "none")),
        ("adaptive", ("subtract", "zero")),
        ("second-order", ("subtract", "zero")),
    )
    for reset in resets
    for detach in (True, False)
}
WIRINGS = ("feed-forward", "lateral", "top-down", "everything")
LOSSES = ("last step", "all steps", "window")


# ---------------------------------------------------------------------------------------------------------------------
# Building and judging
# ---------------------------------------------------------------------------------------------------------------------


def random(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def spiking_layer(core_name: str, inputs: int, generator: torch.Generator) -> Layer:
    """A layer whose thresholds are spread so that some neurons fire often and the last one never does."""
    name, reset, detach = CORES[core_name]
    thresholds = torch.linspace(0.3, 1.5, HIDDEN, dtype=torch.float64)
    thresholds[-1] = 100.0
    params = {"leak": torch.linspace(0.6, 0.9, HIDDEN, dtype=torch.float64), "threshold": thresholds}
    if name == "lif":
        core, states = leaky_integrate_and_fire(reset, detach), 1
    elif name == "adaptive":
        core, states = adaptive_threshold(reset, detach), 2
        params |= {"adaptation": scalar(0.4), "adaptation_leak": scalar(0.8)}
    else:
        core, states = second_order_synapse(reset, detach), 2
        params |= {"synapse_leak": scalar(0.5)}
    weight = (0.5 + random(generator, HIDDEN, inputs)) / inputs**0.5
    return Layer(core, states, weight, bias=0.2 * random(generator, HIDDEN) + 0.2, params=params)


def readout(generator: torch.Generator, leak: float = 0.8, inputs: int = HIDDEN) -> Layer:
    weight = random(generator, CLASSES, inputs) / inputs**0.5
    return Layer(leaky_integrator, 1, weight, bias=0.1 * random(generator, CLASSES), params={"leak": scalar(leak)})


def three_layers(core_name: str, wiring: str, seed: int = 1, recurrent_scale: float = 0.6) -> Network:
    """Two spiking layers and a leaky readout."""
    generator = torch.Generator().manual_seed(seed)
    lower = spiking_layer(core_name, INPUTS, generator)
    upper = spiking_layer(core_name, HIDDEN, generator)
    top = readout(generator)

    def recurrent(neurons: int, sources: int) -> Tensor:
        return recurrent_scale * random(generator, neurons, sources) / sources**0.5

    if wiring in ("lateral", "everything"):
        lower.lateral, upper.lateral = recurrent(HIDDEN, HIDDEN), recurrent(HIDDEN, HIDDEN)
    if wiring in ("top-down", "everything"):
        lower.topdown = recurrent(HIDDEN, HIDDEN)
    if wiring == "everything":
        upper.topdown, top.lateral = recurrent(HIDDEN, CLASSES), 0.5 * recurrent(CLASSES, CLASSES)
    return Network([lower, upper, top])


def spike_input(steps: int, seed: int = 1, rate: float = 0.5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(steps, BATCH, INPUTS, generator=generator, dtype=torch.float64) < rate).double()


def loss_signal(loss: str, steps: int, neurons: int = CLASSES, seed: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    every_step = random(generator, steps, BATCH, neurons)
    if loss == "all steps":
        return every_step
    if loss == "mean":
        return every_step[:1].expand(steps, -1, -1) / steps
    chosen = torch.zeros(steps, 1, 1, dtype=torch.float64)
    if loss == "last step":
        chosen[-1] = 1
    else:
        chosen[steps // 3 : steps // 3 + max(steps // 3, 1)] = 1
    return every_step * chosen


def relative_error(measured: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """The largest |difference| / |exact| over parameters (Euclidean norms)."""
    assert measured.keys() == exact.keys()
    return max(float((measured[name] - exact[name]).norm() / exact[name].norm()) for name in exact)


def cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()))


def lowest_cosine(measured: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    return min(cosine(measured[name], exact[name]) for name in exact)


def assert_alive(network: Network, x: Tensor, exact: dict[str, Tensor]) -> None:
    """Neurons both fire and stay silent in every spiking layer, and no gradient in `exact` is zero."""
    spiking = 0
    for layer, history in zip(network.layers, simulate(network, x), strict=True):
        if layer.core is leaky_integrator:
            continue
        spiking += 1
        counts = torch.stack([step.output for step in history]).sum(0)
        assert (counts > 0).any(), "no neuron fires"
        assert (counts == 0).any(), "no neuron is silent"
    assert spiking > 0
    for name, gradient in exact.items():
        assert gradient.norm() > 1e-6, f"the gradient of {name} vanishes: {gradient.norm():.1e}"


# ---------------------------------------------------------------------------------------------------------------------
# Exact cases
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("core_name", CORES)
def test_as_many_bins_as_steps_is_backpropagation_through_time(core_name: str, wiring: str) -> None:
    steps = 7
    network, x = three_layers(core_name, wiring), spike_input(steps)
    for loss in LOSSES:
        signal = loss_signal(loss, steps)
        exact = autograd_gradients(network, x, signal)
        assert_alive(network, x, exact)
        assert relative_error(reference_gradients(network, x, signal, bins=steps, terms=0), exact) < 1e-10


@pytest.mark.parametrize("wiring", ["feed-forward", "everything"])
@pytest.mark.parametrize("core_name", CORES)
def test_one_step_is_backpropagation(core_name: str, wiring: str) -> None:
    network, x, signal = three_layers(core_name, wiring), spike_input(1, rate=0.7), loss_signal("all steps", 1)
    measured, exact = reference_gradients(network, x, signal, bins=1, terms=3), autograd_gradients(network, x, signal)
    # Leaks, adaptation and delayed connections act on values that are zero in the first step: no gradient there.
    for name in list(exact):
        if any(part in name for part in ("leak", "adaptation", "lateral", "topdown")):
            assert measured.pop(name).norm() == exact.pop(name).norm() == 0
    assert_alive(network, x, exact)
    assert relative_error(measured, exact) < 1e-10


@pytest.mark.parametrize("core_name", CORES)
def test_input_and_signal_constant_within_bins_are_exact_for_one_layer(core_name: str) -> None:
    """Then a weight change is a constant current per bin, which is what M measures; bins of unequal length included."""
    steps, bins = 11, 3
    edges = bin_edges(steps, bins)
    widths = [stop - start for start, stop in pairwise(edges)]
    assert len(set(widths)) > 1
    generator = torch.Generator().manual_seed(5)
    network = Network([spiking_layer(core_name, INPUTS, generator)])
    x = random(generator, bins, BATCH, INPUTS).repeat_interleave(torch.tensor(widths), 0)
    signal = random(generator, bins, BATCH, HIDDEN).repeat_interleave(torch.tensor(widths), 0)
    exact = autograd_gradients(network, x, signal)
    assert_alive(network, x, exact)
    assert relative_error(reference_gradients(network, x, signal, bins, terms=0), exact) < 1e-10
    assert relative_error(reference_gradients(network, x, signal, bins=1, terms=0), exact) > 1e-2


@pytest.mark.parametrize("below", ["linear", "spiking"])
def test_mean_loss_and_one_bin_are_exact_at_a_linear_last_layer(below: str) -> None:
    """A linear readout without memory: everything exact. With a leak: bias and leak are, weights only to O(1 / T).

    dL/dW of a leaky readout weighs x_t by 1 - b^(T-t), the one-bin rule weighs all steps alike.
    """
    errors = []
    for steps in (50, 400):
        x, signal = spike_input(steps), loss_signal("mean", steps)
        for leak in (0.0, 0.8):
            generator = torch.Generator().manual_seed(3)
            if below == "linear":
                network = Network([readout(generator, 0.7, INPUTS), readout(generator, leak, CLASSES)])
            else:
                network = Network([spiking_layer("lif-subtract-detached", INPUTS, generator), readout(generator, leak)])
            exact = autograd_gradients(network, x, signal)
            if below == "spiking":
                assert_alive(network, x, exact)
            assert all(gradient.norm() > 1e-3 for gradient in exact.values())
            measured = reference_gradients(network, x, signal, bins=1, terms=0)
            others = {name: gradient for name, gradient in exact.items() if name in ("layer1.bias", "layer1.leak")}
            assert relative_error({name: measured[name] for name in others}, others) < 1e-10
            weight = relative_error({"W": measured["layer1.weight"]}, {"W": exact["layer1.weight"]})
            if leak == 0.0:
                assert weight < 1e-10
            else:
                assert weight > 1e-4
                errors.append(weight)
    assert errors[1] < errors[0] / 4


def test_linear_network_with_as_many_bins_as_steps_is_exact_everywhere() -> None:
    steps = 20
    generator = torch.Generator().manual_seed(3)
    network = Network([readout(generator, 0.7, INPUTS), readout(generator, 0.8, CLASSES)])
    x, signal = spike_input(steps), loss_signal("mean", steps)
    exact = autograd_gradients(network, x, signal)
    assert all(gradient.norm() > 1e-3 for gradient in exact.values())
    assert relative_error(reference_gradients(network, x, signal, bins=steps, terms=0), exact) < 1e-10
    assert relative_error(reference_gradients(network, x, signal, bins=1, terms=0), exact) > 1e-3


# ---------------------------------------------------------------------------------------------------------------------
# Bins and delays
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "bins"), [(1, 1), (7, 7), (7, 3), (100, 8), (10, 4)])
def test_bin_edges_follow_the_floor_rule(steps: int, bins: int) -> None:
    edges = bin_edges(steps, bins)
    for step in range(steps):
        c = step * bins // steps
        assert edges[c] <= step < edges[c + 1]


@pytest.mark.parametrize("bins", [0, 8])
def test_more_bins_than_steps_are_refused(bins: int) -> None:
    with pytest.raises(ValueError, match="every bin needs a step"):
        bin_edges(7, bins)


def test_delay_shares_are_the_overlaps_of_the_shifted_bins() -> None:
    assert delay_shares([0, 4, 6, 7]) == [[3 / 4, 0, 0], [1 / 2, 1 / 2, 0], [0, 1, 0]]
    # A delay longer than a bin reaches over more than one of them.
    assert delay_shares([0, 2, 3, 6], delay=2) == [[0, 0, 0], [1, 0, 0], [1 / 3, 1 / 3, 1 / 3]]


def test_neumann_iterations_converge_to_the_dense_solution() -> None:
    """The dense solution per sample, with S the delay shares and R[(c', i), (c, i)] = M[c', c]_i:

    Y = R (I + V S Y), so that q = R^T (1 - R V S)^-T G.
    """
    steps, bins = 12, 4
    generator = torch.Generator().manual_seed(7)
    layer = spiking_layer("lif-subtract-detached", INPUTS, generator)
    layer.lateral = 0.5 * random(generator, HIDDEN, HIDDEN) / HIDDEN**0.5
    network, x, signal = Network([layer]), spike_input(steps), loss_signal("all steps", steps, HIDDEN)
    assert_alive(network, x, autograd_gradients(network, x, signal))
    edges = bin_edges(steps, bins)
    recording = record(layer, simulate(network, x)[0], edges)
    shares = torch.tensor(delay_shares(edges), dtype=torch.float64)

    weight = torch.zeros_like(layer.weight)
    lateral = torch.zeros_like(layer.lateral)
    for sample in range(BATCH):
        rows = [torch.cat([torch.diag(m[sample]) for m in row], dim=1) for row in recording.response]
        responses = torch.cat(rows, dim=0)
        loop = responses @ torch.kron(shares, layer.lateral)
        on_means = torch.stack([signal[a:b, sample].sum(0) for a, b in pairwise(edges)])
        through_loop = torch.linalg.solve((torch.eye(len(loop), dtype=torch.float64) - loop).T, on_means.flatten())
        q = (responses.T @ through_loop).reshape(bins, HIDDEN)
        weight += q.T @ torch.stack([mean[sample] for mean in recording.mean_input])
        lateral += q.T @ torch.stack([mean[sample] for mean in recording.mean_delayed])

    dense = {"layer0.weight": weight, "layer0.lateral": lateral}
    errors = []
    for terms in (0, 2, 8, 60):
        measured = reference_gradients(network, x, signal, bins, terms)
        errors.append(relative_error({name: measured[name] for name in dense}, dense))
    assert errors[0] > 0.05
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[3] < 1e-10


@pytest.mark.parametrize("wiring", ["lateral", "everything"])
def test_solving_layers_one_by_one_or_jointly_has_the_same_limit(wiring: str) -> None:
    steps, bins = 12, 4
    network = three_layers("lif-subtract-detached", wiring, recurrent_scale=0.3)
    x, signal = spike_input(steps), loss_signal("all steps", steps)
    assert_alive(network, x, autograd_gradients(network, x, signal))
    one_by_one = reference_gradients(network, x, signal, bins, terms=100)
    jointly = reference_gradients(network, x, signal, bins, terms=100, jointly=True)
    assert relative_error(jointly, one_by_one) < 1e-10
    if wiring == "lateral":
        few = reference_gradients(network, x, signal, bins, terms=1)
        assert relative_error(reference_gradients(network, x, signal, bins, terms=1, jointly=True), few) > 1e-6


# ---------------------------------------------------------------------------------------------------------------------
# Approximate cases
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("core_name", "spiking_layers"),
    [*((name, 1) for name in CORES), ("lif-subtract-detached", 2)],
)
def test_constant_input_and_many_steps_need_one_bin(core_name: str, spiking_layers: int) -> None:
    """The first layer's input is constant, and so is the signal of a mean loss through a readout, but for its end.

    With a second spiking layer neither holds for that layer, whose input is spike trains that its slope may follow:
    there the agreement depends on the core and does not improve with T, so only the most benign core is asked for it.
    The network is one whose exact gradient stays bounded in T: resets in the graph can make it explode (1e16 at other
    seeds), and the end of the sequence then never becomes negligible.
    """
    steps = 400
    network, signal = three_layers(core_name, "feed-forward", seed=2), loss_signal("mean", steps)
    network = Network([*network.layers[:spiking_layers], network.layers[-1]])
    generator = torch.Generator().manual_seed(4)
    x = torch.rand(1, BATCH, INPUTS, generator=generator, dtype=torch.float64).expand(steps, -1, -1)
    exact, measured = autograd_gradients(network, x, signal), reference_gradients(network, x, signal, bins=1, terms=0)
    assert_alive(network, x, exact)
    assert all(gradient.norm() < 1e4 for gradient in exact.values())
    for name in exact:
        assert cosine(measured[name], exact[name]) >= 0.999, name
        assert 0.97 < float(measured[name].norm() / exact[name].norm()) < 1.03, name


@pytest.mark.parametrize("wiring", ["feed-forward", "lateral", "top-down"])
def test_more_bins_are_never_much_worse(wiring: str) -> None:
    """Medians over five networks of the lowest cosine: in a single network two bins can lose to one."""
    steps, choices = 24, (1, 2, 4, 8, 24)
    cosines = []
    for seed in range(5):
        network = three_layers("lif-subtract-detached", wiring, seed)
        x, signal = spike_input(steps, seed=100 + seed), loss_signal("mean", steps, seed=50 + seed)
        exact = autograd_gradients(network, x, signal)
        assert_alive(network, x, exact)
        measured = [reference_gradients(network, x, signal, bins, terms=8) for bins in choices]
        cosines.append([lowest_cosine(gradients, exact) for gradients in measured])
    medians = torch.tensor(cosines, dtype=torch.float64).median(0).values.tolist()
    for fewer, more in pairwise(medians):
        assert more > fewer - 0.01, medians
    assert medians[0] < 0.98, medians
    assert medians[3] > 0.99, medians
    assert medians[-1] > 1 - 1e-10, medians


# ---------------------------------------------------------------------------------------------------------------------
# The comparison can fail
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lif-subtract", "lif-zero", "adaptive-subtract", "second-order-zero"])
def test_dropping_the_detach_is_noticed(name: str) -> None:
    steps = 7
    detached = three_layers(f"{name}-detached", "lateral")
    in_graph = Network(
        [
            replace(layer, core=other.core)
            for layer, other in zip(detached.layers, three_layers(f"{name}-in-graph", "lateral").layers, strict=True)
        ]
    )
    x, signal = spike_input(steps), loss_signal("all steps", steps)
    exact = autograd_gradients(detached, x, signal)
    assert_alive(detached, x, exact)
    for a, b in zip(simulate(detached, x)[-1], simulate(in_graph, x)[-1], strict=True):
        assert torch.equal(a.output, b.output)
    assert relative_error(reference_gradients(in_graph, x, signal, steps, terms=0), exact) > 1e-2


def test_ignoring_the_delay_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 7
    network, x = three_layers("lif-subtract-detached", "lateral"), spike_input(steps)
    signal = loss_signal("all steps", steps)
    exact = autograd_gradients(network, x, signal)
    assert_alive(network, x, exact)
    monkeypatch.setattr(reference, "delay_shares", lambda edges: delay_shares(edges, delay=0))
    assert relative_error(reference_gradients(network, x, signal, steps, terms=8), exact) > 1e-2


def test_forgetting_tangents_between_bins_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 7
    network, x = three_layers("lif-subtract-detached", "feed-forward"), spike_input(steps)
    signal = loss_signal("all steps", steps)
    exact = autograd_gradients(network, x, signal)
    assert_alive(network, x, exact)

    def record_own_bins_only(layer: Layer, history: list[reference.Step], edges: list[int]) -> reference.Recording:
        recording = record(layer, history, edges)
        for c in range(steps):
            for later in range(c + 1, steps):
                recording.response[later][c].zero_()
        return recording

    monkeypatch.setattr(reference, "record", record_own_bins_only)
    assert relative_error(reference_gradients(network, x, signal, steps, terms=0), exact) > 1e-2
