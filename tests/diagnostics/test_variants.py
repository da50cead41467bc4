"""The reference where a graph over time would not fit, and the rules side by side."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

import tracecompile
import tracecompile.nn as snn
from tracecompile.diagnostics import reference
from tracecompile.diagnostics.check import agreeing, check_model
from tracecompile.diagnostics.cost import Cost
from tracecompile.diagnostics.memory import saved_bytes
from tracecompile.diagnostics.reference import predicted_bytes
from tracecompile.diagnostics.variants import Variant, Variants

STEPS, BATCH = 40, 5


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.below, self.layer, self.above = nn.Linear(6, 12), snn.RLIF(12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        state, outputs = None, []
        for x_t in x:
            z, state = self.layer(2 * self.below(x_t), state)
            outputs.append(self.above(z))
        return torch.stack(outputs)


class Step(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.below, self.above = nn.Linear(6, 12), nn.Linear(12, 3)
        self.v: Tensor | None = None

    def reset(self) -> None:
        self.v = None

    def forward(self, x: Tensor) -> Tensor:
        v = 2 * self.below(x) if self.v is None else 0.9 * self.v + 2 * self.below(x)
        z = snn.fast_sigmoid(5.0)(v - 0.5)
        self.v = v - 0.5 * z
        return self.above(z)


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "memory_limit", lambda device: 0)


def inputs() -> Tensor:
    return (torch.rand(STEPS, BATCH, 6, generator=torch.Generator().manual_seed(1)) < 0.4).float()


@pytest.mark.parametrize("make", [Net, Step])
def test_the_exact_rule_is_the_reference_where_the_graph_would_not_fit(
    make: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = make(), inputs()
    sequence = (x,) if make is Net else list(x)
    net = tracecompile.convert(model, x if make is Net else x[0], bins=2, backend="eager")

    def loss(outputs: object) -> Tensor:
        return (torch.stack(outputs) if isinstance(outputs, list) else outputs).square().mean()  # type: ignore[union-attr]

    expected = tracecompile.compare_gradients(model, net, sequence, loss)
    monkeypatch.setattr(reference, "memory_limit", lambda device: 0)
    found = tracecompile.compare_gradients(model, net, sequence, loss)
    assert (expected.reference, found.reference) == ("bptt", "exact")
    assert "exact rule" in str(found)
    for one, other in zip(expected.rows, found.rows, strict=True):
        assert one.parameter == other.parameter
        assert one.cosine == pytest.approx(other.cosine, abs=1e-6)
        assert one.norm_ratio == pytest.approx(other.norm_ratio, rel=1e-5)
    assert expected.worst.cosine < 0.9999, "the comparison proves nothing"


def test_what_a_graph_over_time_holds_is_known_before() -> None:
    model, x = Net(), inputs()
    net = tracecompile.convert(model, x[:7, :2], backend="eager")
    with saved_bytes(exclude=[x, *model.parameters()]) as held:
        outputs = model(x)
    assert predicted_bytes(net, x) == pytest.approx(held.bytes, rel=0.1)
    del outputs


def test_the_rules_side_by_side() -> None:
    model, x = Net(), inputs()
    net = tracecompile.convert(model, x, backend="eager")
    said: list[str] = []
    result = check_model(model, net, (x,), say=said.append)
    rows = {row.name: row for row in result.variants.rows}
    assert list(rows) == ["bins=1", "bins=4", "bins=10", "bins=32", "exact"]
    assert rows["exact"].cosine == pytest.approx(1, abs=1e-6)
    assert rows["bins=1"].cosine < rows["bins=32"].cosine
    assert len(said) == len(rows) - 1, "what was asked for is not measured twice"
    assert [row.name for row in result.variants.rows if row.asked] == ["bins=4"]
    assert result.below(-1) == []
    lowest = result.gradients.worst
    assert result.below(lowest.cosine + 1e-9) == [lowest.parameter]
    assert all(len(line) <= 80 for line in str(result).splitlines())
    assert result.variants.choice in " ".join(str(result).split())
    json.dumps(result.to_dict(), allow_nan=False)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_where_the_graph_would_not_fit_it_is_not_made(no_room: None) -> None:
    model, x = Net(), inputs()
    result = check_model(model, tracecompile.convert(model, x, backend="eager"), (x,))
    assert result.bptt is None
    assert "would not fit" in str(result)
    assert result.to_dict()["bptt"] is None


@pytest.mark.parametrize(
    ("rows", "choice"),
    [
        ([("bins=1", 0.7, 1.0), ("bins=4", 0.995, 2.0), ("exact", 1.0, 4.0)], "Take bins=4: its lowest"),
        ([("bins=1", 0.992, 2.0), ("bins=4", 0.995, 1.95), ("exact", 1.0, 4.0)], "Take bins=1: "),
        ([("bins=1", 0.7, 1.0), ("bins=4", 0.8, 2.0), ("exact", 1.0, 4.0)], "Take rule='exact': no number of bins"),
        ([("bins=1", 0.7, 1.0), ("bins=4", 0.995, 2.0), ("exact", 1.0, 1.5)], "Take rule='exact': its lowest"),
        ([("bins=1", None, 1.0), ("exact", None, 2.0)], "No choice"),
        ([("bins=1", 0.7, 1.0), ("bins=4", 0.995, 2.0)], "Take bins=4: its lowest cosine is 0.9950, and no faster one"),
        ([("bins=1", 0.995, 2.0), ("bins=4", 0.995, 1.95)], "Take bins=1: its lowest cosine is 0.9950, and none that"),
        ([("bins=1", 0.995, 1.0), ("bins=4", 0.995, 2.0)], "Take bins=1: its lowest cosine is 0.9950, and none is fas"),
    ],
)
def test_what_is_chosen(rows: list[tuple[str, float | None, float]], choice: str) -> None:
    made = [Variant(name, cosine, None, Cost(100, seconds)) for name, cosine, seconds in rows]
    assert Variants(tuple(made)).choice.startswith(choice)


def test_what_is_worse_in_every_respect_is_not_chosen() -> None:
    rows = Variant("bins=4", 0.995, None, Cost(100, 2.0)), Variant("exact", 1.0, None, Cost(50, 1.95))
    assert Variants(rows).choice.startswith("Take rule='exact': its lowest cosine is 1.0000, and none is faster")


def test_every_rule_draws_what_the_model_drew() -> None:
    class Dropping(Net):
        def forward(self, x: Tensor) -> Tensor:
            state, outputs = None, []
            for x_t in x:
                z, state = self.layer(torch.nn.functional.dropout(2 * self.below(x_t), 0.4), state)
                outputs.append(self.above(z))
            return torch.stack(outputs)

    model, x = Dropping(), inputs()[:12]
    result = check_model(model, tracecompile.convert(model, x, backend="eager"), (x,))
    rows = {row.name: row.cosine for row in result.variants.rows}
    assert rows["exact"] == pytest.approx(1, abs=1e-6)
    assert rows["bins=1"] < rows["bins=10"], "the comparison proves nothing"


@pytest.mark.parametrize(("cosine", "more"), [(0.999, False), (0.9, True)])
def test_the_advice_agrees_with_the_choice(cosine: float, more: bool) -> None:
    """Where as many bins as asked for are chosen, more of them are not advised; where more are chosen, they are."""
    advice = ("a: the input drifts (0.80) over the sequence; use more bins.", "a: 95% silent; lower the threshold.")
    rows = [Variant("bins=4", cosine, (1.0, 1.0), Cost(10, 1.0), asked=True)]
    rows.append(Variant("bins=10", 0.9999, (1.0, 1.0), Cost(20, 2.0)))
    variants = Variants(tuple(rows))
    found = agreeing(advice, variants)
    assert found[1] == advice[1]
    assert ("more bins" in found[0]) is more
    assert more or found[0] == "a: the input drifts (0.80) over the sequence; bins=4 is close all the same."
    none = Variants((Variant("bins=4", 0.5, (1.0, 1.0), Cost(10, 1.0), asked=True),))
    assert agreeing(advice, none) == advice
