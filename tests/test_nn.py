"""The layers against their equations written out plainly, and the surrogates against their formulas."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tracecompile import nn as tnn

STEPS, BATCH, FEATURES = 12, 3, 5

# slope of each surrogate, in plain Python on one number, and the smooth curve whose derivative it is
SURROGATES = {
    "fast_sigmoid": (tnn.fast_sigmoid(7.0), lambda x: 1 / (1 + 7 * abs(x)) ** 2, lambda x: x / (1 + 7 * abs(x))),
    "fast_sigmoid default": (tnn.fast_sigmoid(), lambda x: (25 * abs(x) + 1) ** -2, lambda x: x / (1 + 25 * abs(x))),
    "arctan": (
        tnn.arctan(3.0),
        lambda x: 1.5 / (1 + (math.pi / 2 * 3 * x) ** 2),
        lambda x: math.atan(math.pi / 2 * 3 * x) / math.pi + 0.5,
    ),
    "arctan default": (
        tnn.arctan(),
        lambda x: 1 / (1 + (math.pi * x) ** 2),
        lambda x: math.atan(math.pi * x) / math.pi,
    ),
    "sigmoid": (
        tnn.sigmoid(5.0),
        lambda x: 5 * math.exp(-5 * x) / (1 + math.exp(-5 * x)) ** 2,
        lambda x: 1 / (1 + math.exp(-5 * x)),
    ),
    "triangular": (
        tnn.triangular(width=0.8, height=0.3),
        lambda x: 0.3 * max(0.0, 1 - abs(x) / 0.8),
        lambda x: 0.3 * (x - x * abs(x) / 1.6) if abs(x) < 0.8 else math.copysign(0.3 * 0.4, x),
    ),
    "straight_through": (tnn.straight_through(), lambda x: 1.0, lambda x: x),
}

# on both sides, outside the triangle, and clear of its corners, where no finite difference holds
DISTANCES = [-3.0, -1.0, -0.7, -0.21, -0.03, 0.02, 0.17, 0.6, 1.1, 4.0]


def currents(requires_grad: bool = False) -> Tensor:
    return (torch.randn(STEPS, BATCH, FEATURES) * 0.8 + 0.2).requires_grad_(requires_grad)


def run(layer: nn.Module, inputs: Tensor) -> tuple[Tensor, object]:
    state, outputs = None, []
    for current in inputs:
        output, state = layer(current, state)
        outputs.append(output)
    return torch.stack(outputs), state


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogate_spikes_strictly_above_zero(name: str) -> None:
    surrogate = SURROGATES[name][0]
    tiny = torch.finfo(torch.float32).tiny
    x = torch.tensor([[-2.0, -tiny, 0.0], [-0.0, tiny, 3.0]])
    assert torch.equal(surrogate(x), torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 1.0]]))
    assert surrogate(x.double()).dtype == torch.float64


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogate_gradient_is_its_formula(name: str) -> None:
    surrogate, slope, _ = SURROGATES[name]
    x = torch.tensor([0.0, *DISTANCES], dtype=torch.float64, requires_grad=True)
    upstream = torch.linspace(-2, 3, x.numel(), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(surrogate(x), x, upstream)
    expected = upstream * torch.tensor([slope(value) for value in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogate_gradient_is_the_derivative_of_its_smooth_curve(name: str) -> None:
    surrogate, _, curve = SURROGATES[name]
    step = 1e-5
    x = torch.tensor(DISTANCES, dtype=torch.float64, requires_grad=True)
    surrogate(x).sum().backward()
    differences = [(curve(value + step) - curve(value - step)) / (2 * step) for value in DISTANCES]
    torch.testing.assert_close(x.grad, torch.tensor(differences, dtype=torch.float64), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in SURROGATES if name != "straight_through"])
def test_surrogate_second_derivative_is_that_of_the_slope(name: str) -> None:
    surrogate, slope, _ = SURROGATES[name]
    step = 1e-5
    x = torch.tensor(DISTANCES, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(surrogate(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    differences = [(slope(value + step) - slope(value - step)) / (2 * step) for value in DISTANCES]
    torch.testing.assert_close(second, torch.tensor(differences, dtype=torch.float64), rtol=1e-4, atol=1e-9)


def test_sigmoid_slope_does_not_vanish_by_cancellation() -> None:
    x = torch.tensor([-20.0, 20.0], requires_grad=True)
    tnn.sigmoid(1.0)(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.full((2,), math.exp(-20)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogate_copies_and_works_under_vmap(name: str) -> None:
    surrogate = SURROGATES[name][0]
    assert pickle.loads(pickle.dumps(surrogate)) == surrogate
    assert copy.deepcopy(surrogate) == surrogate
    x = torch.randn(4, 3)
    slopes = torch.func.vmap(torch.func.grad(lambda row: surrogate(row).sum()))(x)
    leaf = x.clone().requires_grad_()
    surrogate(leaf).sum().backward()
    assert torch.equal(slopes, leaf.grad)


def test_surrogates_differ_by_value() -> None:
    assert tnn.arctan(2.0) != tnn.arctan(3.0)
    assert repr(tnn.triangular(0.5, 2.0)) == "Triangular(width=0.5, height=2)"


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_surrogate_refuses_a_senseless_constant(value: float) -> None:
    for factory, name in ((tnn.fast_sigmoid, "slope"), (tnn.arctan, "alpha"), (tnn.sigmoid, "slope")):
        with pytest.raises(ValueError, match=f"{name} of a surrogate"):
            factory(value)
    with pytest.raises(ValueError, match="width of a surrogate"):
        tnn.triangular(width=value)
    with pytest.raises(ValueError, match="height of a surrogate"):
        tnn.triangular(height=value)


def plain_lif(
    inputs: Tensor, leak: Tensor, threshold: Tensor, reset: str, detach: bool, lateral: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """LIF with the arctan surrogate of the default, with no code of the package."""
    membrane = torch.zeros(inputs.shape[1:])
    spikes = torch.zeros(inputs.shape[1:])
    record = []
    for current in inputs:
        membrane = leak * membrane + current
        if lateral is not None:
            membrane = membrane + spikes @ lateral.T
        x = membrane - threshold
        # forward a step and exactly zero; backward d/dx arctan(pi x) / pi
        smooth = torch.arctan(math.pi * x) / math.pi
        spikes = (x > 0).float() + (smooth - smooth.detach())
        gate = (x > 0).float() if detach else spikes
        if reset == "subtract":
            membrane = membrane - gate * threshold
        elif reset == "zero":
            membrane = membrane - gate * membrane
        record.append(spikes)
    return torch.stack(record), membrane


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
def test_lif_follows_its_equations(reset: tnn.Reset, detach: bool, recurrent: bool) -> None:
    leak = torch.rand(FEATURES) * 0.5 + 0.4
    threshold = torch.rand(FEATURES) + 0.5
    kind = tnn.RLIF if recurrent else tnn.LIF
    layer = kind(
        FEATURES,
        leak=leak,
        threshold=threshold,
        reset=reset,
        detach_reset=detach,
        learn_threshold=True,
    )
    inputs = currents(requires_grad=True)
    spikes, state = run(layer, inputs)
    membrane = state.membrane if isinstance(state, tnn.RLIFState) else state

    plain_inputs = inputs.detach().clone().requires_grad_()
    plain_threshold = threshold.clone().requires_grad_()
    lateral = layer.lateral.weight.detach().clone().requires_grad_() if recurrent else None
    plain_spikes, plain_membrane = plain_lif(plain_inputs, leak, plain_threshold, reset, detach, lateral)

    assert 0.05 < spikes.mean() < 0.95
    assert torch.equal(spikes, plain_spikes)
    assert torch.equal(membrane, plain_membrane)
    if recurrent:
        assert torch.equal(state.spikes, spikes[-1])

    weights = torch.randn_like(spikes)
    ((spikes * weights).sum() + membrane.sum()).backward()
    ((plain_spikes * weights).sum() + plain_membrane.sum()).backward()
    torch.testing.assert_close(inputs.grad, plain_inputs.grad)
    torch.testing.assert_close(layer.threshold.grad, plain_threshold.grad)
    if recurrent:
        torch.testing.assert_close(layer.lateral.weight.grad, lateral.grad)
        assert layer.lateral.weight.grad.abs().min() > 0


@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_detaching_the_reset_changes_gradients_and_no_value(reset: tnn.Reset) -> None:
    inputs, results = currents(), []
    for detach in (True, False):
        leaf = inputs.clone().requires_grad_()
        spikes, _ = run(tnn.LIF(reset=reset, detach_reset=detach), leaf)
        spikes.sum().backward()
        results.append((spikes, leaf.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert not torch.allclose(results[0][1], results[1][1])


def test_lif_fires_at_the_rate_of_its_closed_form() -> None:
    """With constant current and reset to zero, the interval is ceil(log(1 - threshold (1 - leak) / c) / log leak)."""
    leak, current = 0.9, 0.25
    interval = math.ceil(math.log(1 - (1 - leak) / current) / math.log(leak))
    spikes, _ = run(tnn.LIF(leak=leak, reset="zero"), torch.full((interval * 10, 1, 1), current))
    assert interval > 3
    assert spikes.flatten().nonzero().flatten().tolist() == [interval * n - 1 for n in range(1, 11)]


def test_li_and_lis_follow_their_equations() -> None:
    inputs, leak = currents(), torch.rand(FEATURES)
    outputs, state = run(tnn.LI(FEATURES, leak=leak), inputs)
    probabilities, lis_state = run(tnn.LIS(FEATURES, leak=leak), inputs)
    logarithms, _ = run(tnn.LIS(FEATURES, leak=leak, log=True), inputs)
    membrane = torch.zeros(BATCH, FEATURES)
    for step, current in enumerate(inputs):
        membrane = leak * membrane + current
        assert torch.equal(outputs[step], membrane)
        exponentials = membrane.exp()
        torch.testing.assert_close(probabilities[step], exponentials / exponentials.sum(-1, keepdim=True))
        torch.testing.assert_close(logarithms[step], probabilities[step].log())
    assert torch.equal(state, membrane)
    assert torch.equal(lis_state, membrane)


def test_a_constant_current_takes_li_to_its_fixed_point() -> None:
    outputs, _ = run(tnn.LI(leak=0.8), torch.full((200, 1, 1), 0.3))
    torch.testing.assert_close(outputs[-1], torch.full((1, 1), 0.3 / (1 - 0.8)))


@pytest.mark.parametrize("kind", [tnn.LIF, tnn.RLIF, tnn.LI, tnn.LIS])
def test_learned_leak_and_threshold_are_trained_and_fixed_ones_are_not(kind: type[nn.Module]) -> None:
    spiking = issubclass(kind, tnn.LIF)
    options = {"learn_threshold": True} if spiking else {}
    layer = kind(FEATURES, learn_leak=True, **options)
    weights = torch.randn(STEPS, BATCH, FEATURES)
    (run(layer, currents())[0] * weights).sum().backward()
    assert layer.raw_leak.grad.shape == (FEATURES,)
    assert layer.raw_leak.grad.abs().min() > 0
    if spiking:
        assert layer.threshold.grad.shape == (FEATURES,)
        assert layer.threshold.grad.abs().min() > 0

    fixed = kind(FEATURES)
    assert {name for name, _ in fixed.named_parameters()} <= {"lateral.weight"}
    assert set(fixed.state_dict()) >= {"fixed_leak", *(["threshold"] if spiking else [])}


def test_learned_leak_has_the_gradient_of_finite_differences() -> None:
    layer = tnn.LI(leak=0.7, learn_leak=True).double()
    inputs = currents().double()
    run(layer, inputs)[0].square().sum().backward()
    step, values = 1e-6, []
    for sign in (1, -1):
        moved = copy.deepcopy(layer)
        with torch.no_grad():
            moved.raw_leak += sign * step
        values.append(run(moved, inputs)[0].square().sum().item())
    assert layer.raw_leak.grad.item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-6)


@given(
    leak=st.floats(0.001, 0.999),
    moves=st.lists(st.floats(-5, 5), max_size=5),
    features=st.sampled_from([None, 1, 4]),
)
def test_leak_starts_as_given_and_stays_in_its_interval(leak: float, moves: list[float], features: int | None) -> None:
    shape = () if features is None else (features,)
    fixed, learned = tnn.LI(features, leak=leak), tnn.LI(features, leak=leak, learn_leak=True)
    assert fixed.leak.shape == learned.leak.shape == shape
    assert torch.equal(fixed.leak, torch.full(shape, leak))
    torch.testing.assert_close(learned.leak, torch.full(shape, leak), rtol=1e-5, atol=1e-7)
    for move in moves:
        with torch.no_grad():
            learned.raw_leak += move
        assert bool(((learned.leak >= 0) & (learned.leak <= 1)).all())


@given(batch=st.lists(st.integers(1, 3), max_size=2), split=st.integers(0, STEPS), seed=st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("kind", [tnn.LIF, tnn.RLIF, tnn.LI, tnn.LIS])
@torch.no_grad()
def test_state_carries_all_there_is(kind: type[nn.Module], batch: list[int], split: int, seed: int) -> None:
    """Two runs with the state handed over are one run, and batch rows do not meet."""
    torch.manual_seed(seed)
    layer = kind(FEATURES)
    inputs = torch.randn(STEPS, *batch, FEATURES)
    whole, state, outputs = run(layer, inputs)[0], None, []
    for current in inputs[:split]:
        output, state = layer(current, state)
        outputs.append(output)
    state = copy.deepcopy(state)
    for current in inputs[split:]:
        output, state = layer(current, state)
        outputs.append(output)
    assert torch.equal(torch.stack(outputs), whole)
    if batch:
        torch.testing.assert_close(run(layer, inputs[:, :1])[0], whole[:, :1])


@pytest.mark.parametrize("surrogate", [value[0] for value in SURROGATES.values()], ids=list(SURROGATES))
@pytest.mark.parametrize("kind", [tnn.LIF, tnn.RLIF])
def test_spiking_layers_use_their_surrogate_and_survive_pickling(kind: type[tnn.LIF], surrogate: tnn.Surrogate) -> None:
    layer = kind(FEATURES, surrogate=surrogate, learn_leak=True)
    inputs = currents(requires_grad=True)
    spikes, _ = run(layer, inputs)
    (gradient,) = torch.autograd.grad(spikes.sum(), inputs)
    # at the last step, nothing but the surrogate stands between current and spike
    distance = _last_distance(layer, inputs.detach()).requires_grad_()
    surrogate(distance).sum().backward()
    assert torch.equal(gradient[-1], distance.grad)
    for twin in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert twin.surrogate == surrogate
        assert torch.equal(run(twin, inputs)[0], spikes)


def _last_distance(layer: tnn.LIF, inputs: Tensor) -> Tensor:
    _, state = run(layer, inputs[:-1])
    membrane, lateral = state, 0.0
    if isinstance(state, tnn.RLIFState):
        membrane, lateral = state.membrane, layer.lateral(state.spikes)
    return (layer.leak * membrane + inputs[-1] + lateral - layer.threshold).detach()


@pytest.mark.parametrize("kind", [tnn.LIF, tnn.LI, tnn.LIS])
def test_scalar_layers_take_images(kind: type[nn.Module]) -> None:
    images = torch.randn(4, 2, 3, 8, 8)
    outputs, state = run(kind(), images)
    flat, _ = run(kind(), images.movedim(-1, 2).flatten(3).movedim(2, -1))
    assert outputs.shape == images.shape
    assert state.shape == images.shape[1:]
    assert torch.equal(flat, outputs.movedim(-1, 2).flatten(3).movedim(2, -1))


@pytest.mark.parametrize("leak", [0.0, 1.0, -0.5, 1.5, math.nan, 1 - 1e-12, torch.tensor([0.5, 1.0])])
def test_leak_outside_its_interval_is_refused(leak: float | Tensor) -> None:
    with pytest.raises(ValueError, match="leak must lie strictly between 0 and 1"):
        tnn.LIF(2, leak=leak)


@pytest.mark.parametrize("threshold", [0.0, -1.0, math.inf, math.nan, torch.tensor([1.0, 0.0])])
def test_threshold_that_is_not_positive_is_refused(threshold: float | Tensor) -> None:
    with pytest.raises(ValueError, match="threshold must be positive and finite"):
        tnn.LIF(2, threshold=threshold)


@pytest.mark.parametrize("features", [0, -1, 2.0, True])
@pytest.mark.parametrize("kind", [tnn.LIF, tnn.RLIF, tnn.LI, tnn.LIS])
def test_features_must_be_a_positive_integer(kind: type[nn.Module], features: object) -> None:
    with pytest.raises(ValueError, match="features must be a positive integer"):
        kind(features)


def test_other_senseless_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="not None"):
        tnn.RLIF(None)
    with pytest.raises(ValueError, match=r"shape \(3,\), not \(2,\)"):
        tnn.LIF(3, leak=torch.tensor([0.5, 0.6]))
    with pytest.raises(ValueError, match=r"shape \(\), not \(2,\)"):
        tnn.LIF(threshold=torch.tensor([0.5, 0.6]))
    with pytest.raises(ValueError, match=r"not a tensor of torch\.int64"):
        tnn.LIF(threshold=torch.tensor(1))
    with pytest.raises(ValueError, match="'subtract', 'zero', 'none', not 'hard'"):
        tnn.LIF(reset="hard")


def test_layers_do_not_share_memory_with_the_tensors_they_are_given() -> None:
    leak = torch.full((2,), 0.5)
    layer = tnn.LI(2, leak=leak)
    leak.fill_(0.1)
    assert torch.equal(layer.leak, torch.full((2,), 0.5))


def test_repr_names_what_matters() -> None:
    assert repr(tnn.LIF()) == "LIF(leak=0.9, threshold=1, reset='subtract', surrogate=Arctan(alpha=2))"
    assert repr(tnn.LIS(10, leak=0.5, log=True)) == "LIS(10, leak=0.5, log=True)"
    layer = tnn.LIF(2, leak=torch.tensor([0.25, 0.75]), learn_threshold=True, detach_reset=False, reset="zero")
    assert repr(layer) == (
        "LIF(2, leak=0.25..0.75, threshold=1 (learned), reset='zero', detach_reset=False, surrogate=Arctan(alpha=2))"
    )
    assert "leak=0.5 (learned)" in repr(tnn.RLIF(2, leak=0.5, learn_leak=True))


@pytest.mark.parametrize("learned", [False, True])
def test_a_step_traces_as_a_graph(learned: bool) -> None:
    """Stock torch.fx traces a step with its state, the surrogate set apart as a leaf."""
    from torch import fx

    class Leaf(nn.Module):
        def __init__(self, surrogate: tnn.SpikeFunction) -> None:
            super().__init__()
            self.surrogate = surrogate

        def forward(self, x: Tensor) -> Tensor:
            return self.surrogate(x)

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return isinstance(m, Leaf) or super().is_leaf_module(m, module_qualified_name)

    # fx calls a module of any other package than torch.nn by its graph
    layer = tnn.LIF(FEATURES, learn_leak=learned, learn_threshold=learned, surrogate=Leaf(tnn.arctan()))
    graph = Tracer().trace(layer)
    traced = fx.GraphModule(layer, graph)
    current, state = torch.randn(BATCH, FEATURES), torch.rand(BATCH, FEATURES)
    for result, expected in zip(traced(current, state), layer(current, state), strict=True):
        assert torch.equal(result, expected)
