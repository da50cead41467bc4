"""Recurrent models in which nothing spikes: what bptt needs is a step, what the measured rule needs are units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.comparisons import require_flat, require_values
from support.oracle import HIDDEN, INPUTS, Program, require_named_line, require_right, spike
from support.soundness import require_sound
from support.values import gradients
from torch import Tensor, nn

import tracecompile
from forms.recurrences import (
    BY_UNIT,
    MIXED,
    MIXED_STEPS,
    CapitalV,
    ComplexModes,
    ComplexState,
    DetachedFeedback,
    DiagonalStateSpace,
    Gated,
    GruCell,
    LayerOverOneStep,
    Leaky,
    LeakyStep,
    LinearAttention,
    Loop,
    LstmCell,
    LstmStepHandedItsState,
)
from tracecompile.errors import ConversionError

SIZES = ((13, 4), (1, 3), (7, 1))
"""Steps and samples that the conversion does not see."""

LONG = (37, 2)
"""More steps than one piece of the exact rule has."""

INTEGRATORS = (Leaky, CapitalV, LinearAttention, DetachedFeedback)
"""Their state is a leaky sum of one current: of which there is a curve."""

STEPS = [*MIXED_STEPS, LeakyStep]


def program_of(model: type[nn.Module]) -> Program:
    return Program(model, step=model in STEPS, returns_state=model is LstmStepHandedItsState, fires=False, flat=False)


def by_rule(rule: str) -> Callable[..., tracecompile.TracedModule]:
    """Returns what converts by a rule that knows no bins."""

    def convert(model: nn.Module, example: Any, **options: Any) -> tracecompile.TracedModule:
        options.pop("bins", None)
        return tracecompile.convert(model, example, rule=rule, **options)

    return convert


def worst_of(found: dict[str, Tensor | None], wanted: dict[str, Tensor | None]) -> float:
    """Returns the largest relative error over all parameters; where a gradient cancels, relative to the largest."""
    scale = max(float(each.norm()) for each in wanted.values() if each is not None)
    zero = torch.zeros(())
    pairs = [(found[name], gradient) for name, gradient in wanted.items()]
    assert all(one is not None or other is None for one, other in pairs)
    norms = [(zero if one is None else one, zero if other is None else other) for one, other in pairs]
    return max(float((one - other).norm()) / max(float(other.norm()), 1e-3 * scale) for one, other in norms)


@pytest.mark.parametrize("rule", ["bptt", "exact"])
@pytest.mark.parametrize("model", [*MIXED, *BY_UNIT, ComplexState, *STEPS], ids=lambda model: model.__name__)
def test_exact_rules_take_any_recurrence(model: type[nn.Module], rule: str) -> None:
    program, convert = program_of(model), by_rule(rule)
    require_sound(program)
    if model is not LayerOverOneStep or rule == "bptt":
        # In single precision torch has another kernel for its layers where nothing is to be differentiated.
        require_values(program, convert)
    with program.precision():
        twin, original = program.model(0), program.model(0)
        net = convert(original, program.arguments(*program.example))
        for size in (*SIZES, LONG):
            drawn = program.drawn(*size)
            wanted = gradients(twin, program.drive(twin, drawn))
            assert worst_of(gradients(original, program.drive(net, drawn)), wanted) < 1e-10


@pytest.mark.parametrize("model", [*BY_UNIT, LeakyStep], ids=lambda model: model.__name__)
def test_units_are_measured_as_neurons_are(model: type[nn.Module]) -> None:
    program = program_of(model)
    require_sound(program)
    require_values(program, tracecompile.convert)
    with program.precision():
        twin, original = program.model(0), program.model(0)
        net = tracecompile.convert(original, program.arguments(*program.example), bins=13, backend="eager")
        for size in SIZES:
            drawn = program.drawn(*size)
            wanted = gradients(twin, program.drive(twin, drawn))
            assert worst_of(gradients(original, program.drive(net, drawn)), wanted) < 1e-9


@pytest.mark.parametrize("model", [Leaky, DiagonalStateSpace, ComplexModes], ids=lambda model: model.__name__)
def test_memory_of_measured_units_does_not_grow(model: type[nn.Module]) -> None:
    require_flat(Program(model, fires=False), tracecompile.convert)


def slow(steps: int, batch: int) -> Tensor:
    """Returns inputs that change less from step to step than over the sequence."""
    time = torch.linspace(0, 6, steps).reshape(-1, 1, 1)
    return torch.sin(time + torch.rand(1, batch, INPUTS) * 6) + 0.3 * torch.randn(steps, batch, INPUTS)


def cosines(model: type[nn.Module], bins: int) -> list[float]:
    """Returns the cosine of every parameter's gradient to backpropagation through time, for a mean over time."""
    program = Program(model, inputs=slow, fires=False)
    with program.precision():
        twin, original = program.model(0), program.model(0)
        net = tracecompile.convert(original, program.arguments(*program.example), bins=bins, backend="eager")
        drawn = program.drawn(100, 8)
        pair = []
        for owner, module in ((twin, twin), (original, net)):
            owner.zero_grad()
            (module(drawn).mean(0) ** 2).sum().backward()
            pair.append([each.grad.flatten() for each in owner.parameters() if each.grad is not None])
        return [float(torch.cosine_similarity(one, other, dim=0)) for one, other in zip(*pair, strict=True)]


@pytest.mark.parametrize(("model", "bound"), [(Leaky, 0.9), (DiagonalStateSpace, 0.98), (ComplexModes, 0.97)])
def test_four_bins_are_near_where_the_slope_stays(model: type[nn.Module], bound: float) -> None:
    assert min(cosines(model, 4)) > bound


def test_more_bins_are_nearer_where_the_slope_changes() -> None:
    few, many = min(cosines(Gated, 4)), min(cosines(Gated, 50))
    assert few < 0.9
    assert many > max(few, 0.95)


def test_the_report_says_what_a_bin_forgets() -> None:
    example = torch.randn(6, 2, INPUTS)
    notes = " ".join(tracecompile.convert(Leaky(), example).report.notes)
    assert "Nothing spikes in state: the slope is measured" in notes
    assert "is the same at every step" in notes
    notes = " ".join(tracecompile.convert(Gated(), example).report.notes)
    assert "forgets what slope and input do together" in notes
    assert "compare_gradients" in notes
    assert "Nothing spikes" not in " ".join(tracecompile.convert(GruCell(), example, rule="bptt").report.notes)


# What is refused.


def refusal(model: type[nn.Module], rule: str, **options: Any) -> str:
    """Returns what the conversion says, which names a line of the model's file and the way out."""
    program = program_of(model)
    with pytest.raises(ConversionError) as caught:
        tracecompile.convert(program.model(0), program.arguments(*program.example), rule=rule, **options)
    require_named_line(program.source_file(), caught.value)
    assert 'rule="exact"' in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("rule", ["measured", "analytic"])
@pytest.mark.parametrize("model", [*MIXED, *MIXED_STEPS], ids=lambda model: model.__name__)
def test_matrices_in_the_state_update_are_refused(model: type[nn.Module], rule: str) -> None:
    said = refusal(model, rule)
    assert f"the {rule} rule takes the slope of every unit by itself" in said


@pytest.mark.parametrize(
    "model", [each for each in BY_UNIT if each not in INTEGRATORS], ids=lambda model: model.__name__
)
def test_rate_curves_are_of_neurons_and_integrators(model: type[nn.Module]) -> None:
    assert "no leaky integrator: the analytic rule knows no curve" in refusal(model, "analytic")


def test_an_integrator_has_a_rate_curve() -> None:
    net = tracecompile.convert(Leaky(), torch.randn(6, 2, INPUTS), rule="analytic")
    assert next(layer.kind for layer in net.report.layers) == "without spikes (integrator curve)"


@pytest.mark.parametrize("rule", ["measured", "analytic"])
def test_a_complex_state_is_told_how_to_be_written(rule: str) -> None:
    assert "two real tensors" in refusal(ComplexState, rule)


class GruBehindSpikes(Loop):
    """The readout of spiking neurons is refused for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.cell = nn.Linear(INPUTS, HIDDEN), nn.GRUCell(HIDDEN, HIDDEN)

    def start(self, x: Tensor) -> Any:
        return x.new_zeros(x.shape[1], HIDDEN), x.new_zeros(x.shape[1], HIDDEN)

    def step(self, x_t: Tensor, state: Any) -> tuple[Tensor, Any]:
        v, h = state
        v = 0.9 * v + self.x(x_t)
        z = spike(v - 0.8)
        h = self.cell(z, h)  # the line to blame
        return h, (v - 0.8 * z, h)


def test_a_gru_behind_spikes_is_named() -> None:
    assert "GRUCell mixes" in refusal_at(GruBehindSpikes, "the line to blame")


def refusal_at(model: type[nn.Module], line: str) -> str:
    program = Program(model)
    with pytest.raises(ConversionError) as caught:
        tracecompile.convert(program.model(0), program.arguments(*program.example))
    require_named_line(program.source_file(), caught.value, line)
    return str(caught.value)


class MatrixAmongSpikes(Loop):
    """A matrix between membranes that spike is the lateral weight of a spiking layer, as ever."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.lateral = nn.Linear(INPUTS, HIDDEN), nn.Parameter(0.1 * torch.randn(HIDDEN, HIDDEN))

    def step(self, x_t: Tensor, state: Any) -> tuple[Tensor, Any]:
        v = 0.9 * state + self.x(x_t) + state @ self.lateral
        z = spike(v - 0.8)
        return z, v - 0.8 * z


def test_a_matrix_among_spikes_is_no_such_recurrence() -> None:
    require_right(Program(MatrixAmongSpikes))


class SpikingV(Loop):
    """A membrane by the name that it has in the textbooks."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Linear(INPUTS, HIDDEN)

    def step(self, x_t: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
        V = 0.9 * V + self.x(x_t)
        z = spike(V - 0.8)
        V = V - 0.8 * z
        return z, V


class SpikingSum(SpikingV):
    """A membrane that is called what Python calls a function."""

    def step(self, x_t: Tensor, sum: Tensor) -> tuple[Tensor, Tensor]:  # noqa: A002
        sum = 0.9 * sum + self.x(x_t)  # noqa: A001
        z = spike(sum - 0.8)
        sum = sum - 0.8 * z  # noqa: A001
        return z, sum


@pytest.mark.parametrize("model", [SpikingV, SpikingSum])
def test_a_state_may_have_any_name(model: type[nn.Module]) -> None:
    require_right(Program(model))
    net = tracecompile.convert(model(), torch.randn(6, 2, INPUTS))
    assert [carry.name for carry in net.program.carries] == [{SpikingV: "V", SpikingSum: "sum"}[model]]


@pytest.mark.parametrize("rule", ["bptt", "exact"])
def test_a_cell_of_two_states_is_called_once_a_step(rule: str) -> None:
    model, calls = LstmCell(), []
    net = tracecompile.convert(model, torch.randn(6, 2, INPUTS), rule=rule, backend="eager")
    net(torch.randn(3, 2, INPUTS))
    model.cell.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        net(torch.randn(9, 3, INPUTS))
        net(torch.randn(9, 3, INPUTS))
        calls.clear()
        net(torch.randn(9, 3, INPUTS))
    assert len(calls) == 9
