"""Work on whole sequences, before the loop and after it, is done at every step; the values are those of the model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from models import assert_live, mean_loss, weighted_loss
from table.idiom_loops import Hoisted, HoistedConvolution, LayerByLayer, ReadoutAfter, linear, spike
from torch import Tensor, nn

import tracecompile
from tracecompile.diagnostics.memory import saved_bytes
from tracecompile.exact import exact_value


class WideHoisted(nn.Module):
    """Wide enough that a product over all rows and one over few rows differ in the last bit."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = linear(128, 64, 1.0), linear(64, 10, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        currents = self.fc(x) * 3.0
        currents = self.rectified(currents)
        mem = x.new_zeros(x.shape[1], 64)
        fired = []
        for t in range(x.shape[0]):
            mem = 0.9 * mem + currents[t]
            z = spike(mem - 1.0)
            mem = mem - z
            fired.append(z)
        return self.out(torch.stack(fired))

    def rectified(self, currents: Tensor) -> Tensor:
        return currents


class Rectified(WideHoisted):
    """The same with a rectifier after the product."""

    def rectified(self, currents: Tensor) -> Tensor:
        return torch.relu(currents)


def test_the_products_do_differ() -> None:
    """What exact values are there for; else the tests below could not fail."""
    torch.manual_seed(0)
    layer, x = nn.Linear(128, 64), torch.randn(50, 1, 128)
    whole, stepwise = layer(x), torch.stack([layer(x_t) for x_t in x])
    if torch.equal(whole, stepwise):
        pytest.skip("this processor computes both alike")
    torch.testing.assert_close(whole, stepwise)


@pytest.mark.parametrize("batch", [1, 2, 3, 32])
@pytest.mark.parametrize("rule", ["measured", "bptt"])
@pytest.mark.parametrize("build", [WideHoisted, Rectified])
def test_values_are_those_of_the_big_product(build: type[nn.Module], batch: int, rule: str) -> None:
    torch.manual_seed(0)
    model = build()
    net = tracecompile.convert(model, torch.randn(5, 2, 128), rule=rule)
    x = torch.randn(50, batch, 128)
    expected = model(x)
    assert_live([expected])
    assert torch.equal(net(x), expected)
    with torch.no_grad():
        assert torch.equal(net(x), expected)


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (WideHoisted, lambda steps: (steps, 3, 128)),
        (Hoisted, lambda steps: (3, steps, 6)),
        (HoistedConvolution, lambda steps: (steps, 3, 1, 8, 8)),
        (ReadoutAfter, lambda steps: (steps, 3, 6)),
        (LayerByLayer, lambda steps: (steps, 3, 6)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_nothing_of_the_sequence_is_kept(
    build: Callable[[], nn.Module], shape: Callable[[int], tuple[int, ...]]
) -> None:
    torch.manual_seed(0)
    net = tracecompile.convert(build(), torch.randn(shape(5)))
    assert not any("grows with the sequence" in note for note in net.report.notes)
    saved = []
    for steps in (8, 16):
        x = torch.randn(shape(steps))
        with saved_bytes(exclude=[*net.parameters(), x]) as counter:
            loss = mean_loss([net(x)])
        saved.append(counter.bytes)
        loss.backward()
    assert saved[0] == saved[1]


def test_a_model_with_a_hoisted_product_streams() -> None:
    torch.manual_seed(0)
    model = Hoisted()
    net = tracecompile.convert(model, torch.randn(2, 5, 6))
    x = torch.randn(3, 9, 6)
    streamed = torch.stack(list(net.stream(x.unbind(1))), dim=1)
    assert torch.equal(streamed, torch.stack([y[:, 0] for y in _one_by_one(model, x)], dim=1))


def _one_by_one(model: Hoisted, x: Tensor) -> list[Tensor]:
    """The model's own outputs, from ever longer sequences: step by step, as a stream computes them."""
    return [model(x[:, : t + 1])[:, -1:] for t in range(x.shape[1])]


class Normalised(WideHoisted):
    """A batch normalisation over time and batch together couples the steps: it has to stay where it is."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(128)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm(x.flatten(0, 1)).view(x.shape))


def test_what_couples_the_steps_stays_before_the_loop() -> None:
    torch.manual_seed(0)
    model, twin = Normalised(), None
    net = tracecompile.convert(model, torch.randn(5, 2, 128))
    twin = Normalised()
    twin.load_state_dict(model.state_dict())
    x = torch.randn(7, 3, 128)
    assert torch.equal(net(x), twin(x))
    assert any(
        "All time steps are taken together by what is computed before a loop (norm" in n for n in net.report.notes
    )


def test_exact_value() -> None:
    computed, value = torch.tensor([0.1, 0.2], requires_grad=True), torch.tensor([0.1 + 1e-8, 0.3])
    result = exact_value(computed, value)
    assert torch.equal(result, value)
    weighted_loss([result]).backward()
    assert computed.grad is not None
    assert computed.grad.all()
