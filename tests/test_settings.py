"""Options of convert that mean nothing, alone or beside each other, are refused by a sentence that names them."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping
from fractions import Fraction
from types import MappingProxyType
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tracecompile
from tracecompile import nn as snn
from tracecompile.errors import ConversionError, InvalidInput
from tracecompile.options import Rule as OfferedRule
from tracecompile.rules import RULES
from tracecompile.settings import Backend, Rule, settings_of


class Net(nn.Module):
    """Two layers of neurons with names of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.above = nn.Linear(4, 6), nn.Linear(6, 3)
        self.slow, self.fast = snn.LIF(leak=0.95), snn.LIF(leak=0.7)

    def forward(self, x: Tensor) -> Tensor:
        first, second, total = None, None, 0.0
        for x_t in x:
            spikes, first = self.slow(self.below(x_t), first)
            spikes, second = self.fast(self.above(spikes), second)
            total = total + spikes
        return torch.as_tensor(total)


def example() -> Tensor:
    return (torch.rand(6, 2, 4, generator=torch.Generator().manual_seed(0)) < 0.4).float()


MEANINGLESS: dict[str, list[dict[str, Any]]] = {
    "bins": [
        *({"bins": value} for value in (True, False, 0, -1, 2.5, 4.0, None, "4", [4], float("nan"), np.True_)),
        *({"bins": bins, "decay": 0.9} for bins in (1, 4, 10)),
        {"bins": 4, "decay": {"slow": 0.9}},
        *({"bins": bins, "rule": rule} for bins in (1, 4) for rule in ("analytic", "exact", "bptt")),
        {"bins": 8, "rule": "analytic", "decay": 0.9},
    ],
    "decay": [
        *(
            {"decay": value}
            for value in (0, 1, 0.0, 1.0, 1.5, -0.5, True, float("nan"), float("inf"), "0.9", [0.9], {})
        ),
        {"decay": {"slow": 1.2}},
        {"decay": {"slow": 0.9, "fast": None}},
        {"decay": {"slow": True}},
        {"decay": {0: 0.9}},
        {"decay": MappingProxyType({})},
        {"decay": torch.tensor(0.9)},
        {"decay": 0.9, "rule": "bptt"},
        {"decay": {"slow": 0.9}, "rule": "bptt"},
        {"decay": 0.9, "rule": "exact"},
    ],
    "chunk": [{"chunk": value} for value in (0, -1, True, 2.0, "8", [8])],
    "snapshots": [
        *({"snapshots": value, "rule": "exact"} for value in (0, -1, True, 2.0, "8", [8])),
        *({"snapshots": value, "rule": rule} for value in (32, None, 4) for rule in ("measured", "analytic", "bptt")),
    ],
    "rule": [{"rule": value} for value in ("mesured", "BPTT", "", None, 3, ["measured"], {})],
    "backend": [{"backend": value} for value in ("cuda", "Eager", "", None, 0, ["eager"], True)],
}
EACH = [(name, options) for name, several in MEANINGLESS.items() for options in several]


@pytest.mark.parametrize("with_example", [True, False])
@pytest.mark.parametrize(("name", "options"), EACH, ids=str)
def test_what_means_nothing_is_refused_by_its_name(name: str, options: dict[str, Any], with_example: bool) -> None:
    with pytest.raises(InvalidInput, match=rf"\b{name}\b") as caught:
        tracecompile.convert(Net(), example() if with_example else None, **options)
    assert isinstance(caught.value, ConversionError)
    assert caught.value.advice


@pytest.mark.parametrize(
    ("options", "near"),
    [
        ({"rule": "mesured"}, "rule='measured'"),
        ({"rule": "analytical"}, "rule='analytic'"),
        ({"backend": "inducter"}, "backend='inductor'"),
    ],
)
def test_the_nearest_spelling_is_said(options: dict[str, Any], near: str) -> None:
    with pytest.raises(InvalidInput, match=near):
        tracecompile.convert(Net(), **options)


@pytest.mark.parametrize(("wrong", "right"), [("slw", "slow"), ("fats", "fast")])
@pytest.mark.parametrize("rule", ["measured", "analytic"])
def test_a_mistyped_layer_is_refused_where_the_layers_are_known(wrong: str, right: str, rule: Any) -> None:
    with pytest.raises(InvalidInput, match=rf"decay .*{wrong}") as caught:
        tracecompile.convert(Net(), example(), decay={wrong: 0.9}, rule=rule)
    assert f"Write {right!r}" in caught.value.advice
    assert "slow, fast" in caught.value.advice
    net = tracecompile.convert(Net(), decay={wrong: 0.9}, rule=rule)
    with pytest.raises(InvalidInput, match=wrong):
        net(example())


MEANT: list[dict[str, Any]] = [
    {},
    {"bins": 1},
    {"bins": np.int64(3)},
    {"decay": 0.9},
    {"decay": np.float32(0.5)},
    {"decay": Fraction(1, 2)},
    {"decay": MappingProxyType({"slow": 0.9})},
    {"rule": "analytic", "decay": {"fast": 0.5}},
    {"rule": "bptt", "backend": "eager", "chunk": 1},
    {"bins": 2, "backend": "eager", "chunk": np.int32(2)},
    {"rule": "exact", "snapshots": np.int32(2)},
    {"rule": "exact", "snapshots": None, "backend": "eager", "chunk": 1},
]


@pytest.mark.parametrize("options", MEANT, ids=str)
def test_what_means_something_is_done(options: dict[str, Any]) -> None:
    model = Net()
    net = tracecompile.convert(model, example(), **options)
    assert torch.equal(net(example()), model(example()))
    decay = options.get("decay")
    wanted = options.get("bins", 4) if decay is None and options.get("rule") is None else 1
    assert net.report.bins == wanted
    for layer in net.report.layers:
        if net.report.rule in ("exact", "bptt"):
            assert layer.trace == "", "it keeps none"
            continue
        own = decay.get(layer.name) if isinstance(decay, Mapping) else decay
        assert layer.trace == ("mean of each time bin" if own is None else f"decay {float(own)}")


def test_a_mapping_that_changes_later_changes_nothing() -> None:
    decay = {"slow": 0.9}
    net = tracecompile.convert(Net(), decay=decay)
    decay["nobody"] = 2.0
    net(example())
    assert [layer.trace for layer in net.report.layers] == ["decay 0.9", "mean of each time bin"]


def test_the_default_reads_as_the_number_that_it_is() -> None:
    bins = inspect.signature(tracecompile.convert).parameters["bins"]
    assert str(bins) == "bins: 'int' = 4"
    assert settings_of(bins=bins.default, decay=0.9).bins == 1, "the default passed on is still the default"
    assert type(settings_of().bins) is int
    assert settings_of().bins == 4


def test_every_rule_says_which_options_it_has_a_use_for() -> None:
    assert set(RULES) == {*get_args(Rule)} == {*OfferedRule}
    for name, backend in itertools.product(get_args(Rule), get_args(Backend)):
        assert settings_of(rule=name, backend=backend).rule == name
