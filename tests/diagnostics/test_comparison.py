"""What compare_gradients refuses to compare, and what it says where there is nothing to compare."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models import MODELS, weighted_loss
from torch import Tensor, nn

import tracecompile
import tracecompile.nn as snn
from tracecompile.bench.measure import lowest_cosine
from tracecompile.bench.result import BenchResult, Row
from tracecompile.diagnostics.check import check_model
from tracecompile.errors import InvalidInput


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(
            model, "rec", nn.Linear(model.rec.in_features, model.rec.out_features, bias=False).double()
        ),
        lambda model: setattr(model.fc, "weight", nn.Parameter(model.fc.weight.detach().clone())),
        lambda model: model.register_parameter("scale", nn.Parameter(torch.ones(()))),
    ],
    ids=["a layer", "a parameter", "one more"],
)
def test_a_model_that_was_changed_after_conversion_is_compared_as_it_is_now(change: Any) -> None:
    case = MODELS["recurrent_loop"]
    model = case.factory()
    net = tracecompile.convert(model, case.example_inputs(5, 2), bins=6, backend="eager")
    change(model)
    found = tracecompile.compare_gradients(model, net, case.make_inputs(6, 3), lambda out: weighted_loss([out]))
    assert {row.parameter for row in found.rows} == {name for name, _ in model.named_parameters()}
    compared = [row.cosine for row in found.rows if row.parameter != "scale"]
    assert all(cosine is not None and cosine > 0.999 for cosine in compared), compared


def test_a_copy_of_the_net_and_one_that_was_loaded_are_refused(tmp_path: Path) -> None:
    case = MODELS["recurrent_loop"]
    model = case.factory()
    net = tracecompile.convert(model, case.example_inputs(5, 2), backend="eager")
    tracecompile.save(net, tmp_path / "net")
    for other in (copy.deepcopy(net), tracecompile.load(tmp_path / "net")):
        with pytest.raises(InvalidInput, match="parameters"):
            tracecompile.compare_gradients(model, other, case.make_inputs(6, 3), lambda out: weighted_loss([out]))


class Silent(nn.Module):
    """Two layers that never fire, and what is returned: spikes, or a readout of them."""

    def __init__(self, reads: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.below, self.above, self.readout = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)
        self.first, self.second = (snn.LIF(leak=0.9, threshold=1e3) for _ in range(2))
        self.reads = reads

    def forward(self, x: Tensor) -> Tensor:
        s1 = s2 = None
        outputs = []
        for x_t in x:
            z, s1 = self.first(self.below(x_t), s1)
            z, s2 = self.second(self.above(z), s2)
            outputs.append(self.readout(z) if self.reads else z)
        return torch.stack(outputs)


@pytest.mark.parametrize("reads", [True, False])
def test_a_silent_network_has_nothing_to_compare_and_no_perfect_score(reads: bool) -> None:
    model, x = Silent(reads), torch.rand(12, 3, 4)
    net = tracecompile.convert(model, x[:5], backend="eager")
    found = tracecompile.compare_gradients(model, net, (x,), lambda out: out.square().mean())
    rows = {row.parameter: row for row in found.rows}
    # No weight that reads spikes has a gradient; with a loss on spikes alone none has one.
    silent = ["above.weight", "readout.weight"] if reads else list(rows)
    assert all((rows[n].cosine, rows[n].norm_ratio, rows[n].status) == (None, None, "no gradient") for n in silent)
    assert found.worst.cosine is None
    (remark,) = found.remarks
    assert all(name in remark for name in silent)
    assert "silent" in remark
    assert "nan" not in str(found)
    json.dumps([found.to_dict(), [row.cosine for row in found.rows]], allow_nan=False)
    json.dumps(check_model(model, net, (x,)).to_dict(), allow_nan=False)


def test_a_benchmark_without_a_gradient_has_no_cosine() -> None:
    zeros, ones = {"w": torch.zeros(3)}, {"w": torch.ones(3)}
    assert lowest_cosine(zeros, zeros) == (None, "")
    assert lowest_cosine({"w": torch.full((3,), float("nan"))}, ones) == (None, "w")
    assert lowest_cosine(ones, ones) == (pytest.approx(1.0), "w")
    row = Row("dense", "dense", 8, "bptt", "through time", cosine=lowest_cosine(zeros, zeros)[0])
    result = BenchResult([row, Row("dense", "dense", 8, "inference", "inference")], {}, {})
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["rows"][0]["lowest_cosine"] is None
    assert "nan" not in str(result)
