"""What is said when a network is converted: thresholds without a surrogate, what cannot learn, silence, norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracecompile
import tracecompile.nn as snn


class Fires(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return (v > 0).to(v.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors
        return grad / (1 + 5 * v.abs()) ** 2


class Layers(nn.Module):
    """Leaky neurons and a linear readout; how a spike is made is the argument."""

    def __init__(self, spike: Callable[[Tensor], Tensor], threshold: float = 0.3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.below, self.above = nn.Linear(4, 6), nn.Linear(6, 3)
        self.spike, self.threshold = spike, threshold

    def forward(self, x: Tensor) -> Tensor:
        v, total = torch.zeros(x.shape[1], 6), 0.0
        for x_t in x:
            v = 0.8 * v + self.below(x_t)
            z = self.spike(v - self.threshold)
            v = v * (1 - z.detach())
            total = total + self.above(z)
        return total


def straight_through(v: Tensor) -> Tensor:
    soft = torch.sigmoid(4 * v)
    return soft + ((v > 0).to(v.dtype) - soft).detach()


HARD: dict[str, Callable[[Tensor], Tensor]] = {
    "comparison": lambda v: (v > 0).float(),
    "greater or equal, cast": lambda v: torch.ge(v, 0).to(v.dtype),
    "where": lambda v: torch.where(v > 0, 1.0, 0.0),
}


def notes_of(model: nn.Module, **options: Any) -> str:
    torch.manual_seed(3)
    return "\n".join(tracecompile.convert(model, 2 * torch.randn(6, 2, 4), **options).report.notes)


@pytest.mark.parametrize("name", HARD)
def test_a_hard_threshold_is_named_with_its_line_and_so_is_what_it_cuts_off(name: str) -> None:
    model = Layers(HARD[name])
    notes = notes_of(model)
    assert "hard threshold at" in notes
    assert "test_said_aloud.py" in notes
    assert "No gradient can reach below.weight" in notes
    assert "above.weight (" not in notes


def test_what_torch_itself_cannot_differentiate_is_refused_at_its_line() -> None:
    model = Layers(lambda v: torch.heaviside(v, torch.zeros(())))
    with pytest.raises(tracecompile.ConversionError, match="no derivative of heaviside") as caught:
        tracecompile.convert(model, torch.randn(6, 2, 4))
    assert caught.value.where is not None
    assert caught.value.where.file == __file__


def straight_through_bare(v: Tensor) -> Tensor:
    """Without a detach of the comparison, which has no gradient anyway."""
    soft = torch.sigmoid(4 * v)
    return (v > 0).to(v.dtype) + soft - soft.detach()


def straight_through_residue(v: Tensor) -> Tensor:
    soft = v.clamp(-0.5, 0.5)
    return torch.where(v > 0, 1.0, 0.0) + (soft - soft.detach())


STRAIGHT = [straight_through, straight_through_bare, straight_through_residue]


@pytest.mark.parametrize("spike", [Fires.apply, *STRAIGHT], ids=["surrogate", "soft first", "bare", "residue"])
def test_nothing_is_said_where_a_surrogate_stands_beside_it(spike: Callable[[Tensor], Tensor]) -> None:
    model = Layers(spike)
    torch.manual_seed(3)
    report = tracecompile.convert(model, 2 * torch.randn(6, 2, 4), backend="eager").report
    assert "threshold" not in str(report)
    assert "No gradient" not in str(report)
    assert {entry.status for entry in report.parameters.values()} <= {"trace", "exact"}


def test_a_parameter_that_is_never_read_is_named() -> None:
    model = Layers(Fires.apply)
    model.unused = nn.Linear(2, 2)
    assert "No gradient can reach unused.weight, unused.bias" in notes_of(model)


def test_a_frozen_parameter_is_not_missed_until_it_is_trained() -> None:
    model = Layers(HARD["comparison"])
    model.below.requires_grad_(False)
    net = tracecompile.convert(model, 2 * torch.randn(6, 2, 4), backend="eager")
    assert "No gradient" not in str(net.report.notes)
    assert net.report.parameters["below.weight"].reason == "requires_grad is False"
    model.below.requires_grad_(True)
    assert any("No gradient can reach below.weight, below.bias" in note for note in net.report.notes)
    assert "threshold" in net.report.parameters["below.weight"].reason


class Deep(Layers):
    """Two layers of neurons, whose spikes may be made in two ways, before the readout."""

    def __init__(self, first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor]) -> None:
        super().__init__(first)
        self.between, self.unused, self.second = nn.Linear(6, 6), nn.Linear(2, 2), second

    def forward(self, x: Tensor) -> Tensor:
        v, w, total = torch.zeros(x.shape[1], 6), torch.zeros(x.shape[1], 6), 0.0
        for x_t in x:
            v = 0.8 * v + self.below(x_t)
            z = self.spike(v - 0.3)
            v = v * (1 - z.detach())
            w = 0.8 * w + self.between(z)
            s = self.second(w - 0.3)
            w = w * (1 - s.detach())
            total = total + self.above(s)
        return total


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("place", [0, 1, 2], ids=["first", "second", "both"])
def test_a_parameter_says_which_threshold_keeps_it_from_learning(name: str, place: int) -> None:
    spikes = [HARD[name] if place in (index, 2) else Fires.apply for index in range(2)]
    net = tracecompile.convert(Deep(*spikes), 2 * torch.randn(6, 2, 4), backend="eager")
    parameters = net.report.parameters
    cut = ["below"] if place == 0 else ["below", "between"]
    for layer in ("below", "between", "above"):
        entry = parameters[f"{layer}.weight"]
        assert (entry.status == "frozen") is (layer in cut), layer
        assert ("hard threshold without a surrogate at" in entry.reason) is (layer in cut)
    assert parameters["unused.weight"].status == "frozen"
    assert "nothing that is returned is computed from it" in parameters["unused.weight"].reason
    dead = [f"{layer}.{kind}" for layer in cut for kind in ("weight", "bias")]
    (note,) = (note for note in net.report.notes if note.startswith("No gradient can reach"))
    assert set(dead) | {"unused.weight", "unused.bias"} == set(
        note.partition("reach ")[2].partition(":")[0].split(", ")
    )


@pytest.mark.parametrize(("threshold", "words"), [(1e3, "no neuron fires"), (-1e3, "every neuron fires")])
def test_a_network_without_a_choice_is_said_to_be_so(threshold: float, words: str) -> None:
    notes = notes_of(Layers(Fires.apply, threshold))
    assert words in notes
    assert words not in notes_of(Layers(Fires.apply))


def test_a_silent_step_model_is_said_to_be_so() -> None:
    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights, self.neurons = nn.Linear(4, 6), snn.RLIF(6, threshold=1e3)
            self.state: Any = None

        def forward(self, x: Tensor) -> Tensor:
            spikes, self.state = self.neurons(self.weights(x), self.state)
            return spikes

    net = tracecompile.convert(Step(), torch.randn(2, 4))
    assert any("no neuron fires" in note for note in net.report.notes)


def test_a_probe_says_it_too() -> None:
    net = tracecompile.convert(Layers(HARD["comparison"]), 2 * torch.randn(6, 2, 4))
    advice = "\n".join(tracecompile.probe(net, 2 * torch.randn(8, 2, 4)).advice)
    assert "hard threshold at" in advice
    assert "No gradient can reach below.weight" in advice


class Normalised(Layers):
    def __init__(self) -> None:
        super().__init__(Fires.apply)
        self.below = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))


def test_normalisation_in_training_is_said_to_be_approximate() -> None:
    assert "cosine of 0.7" in notes_of(Normalised())
    assert "bins=16" in notes_of(Normalised())
    assert "cosine" not in notes_of(Normalised().eval())
    assert "cosine" not in notes_of(Normalised(), rule="bptt")
    assert "cosine" not in notes_of(Layers(Fires.apply))
