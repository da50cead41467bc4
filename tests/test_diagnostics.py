"""Memory accounting, gradient comparison and the report; most of it on stand-ins, so that it needs no conversion."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from models import (
    INPUTS,
    MODELS,
    RecurrentLoop,
    TupleState,
    assert_same_fingerprint,
    fast_sigmoid,
    fingerprint,
    weighted_loss,
)
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

import tracecompile
import tracecompile.nn
from tracecompile.diagnostics.check import check_model
from tracecompile.diagnostics.fidelity import compare_gradients
from tracecompile.diagnostics.gradient_table import GradientComparison, GradientRow, compare_tensors
from tracecompile.diagnostics.memory import live_state_bytes, saved_bytes
from tracecompile.errors import InvalidInput
from tracecompile.report import ConversionReport, LayerReport, ParameterReport

# ---------------------------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------------------------


def test_saved_bytes_counts_what_backward_needs() -> None:
    a, b = torch.ones(10, requires_grad=True), torch.ones(10)
    with saved_bytes() as saved:
        kept = a * b  # saves b, for a's gradient
    assert saved.bytes == 40
    with saved_bytes() as saved:
        kept = a + b  # saves nothing
    assert saved.bytes == 0
    del kept


def test_saved_bytes_counts_a_storage_once() -> None:
    a, b = torch.ones(10, requires_grad=True), torch.ones(10, dtype=torch.float32)
    with saved_bytes() as saved:
        kept = [a * b, a * b, a[:5] * b[:5]]
    assert saved.bytes == 40
    assert saved.tensors == 3
    del kept


def test_saved_bytes_does_not_count_what_was_let_go_within_the_block() -> None:
    a = torch.ones(1000, requires_grad=True)
    with saved_bytes() as saved:
        for _ in range(50):
            torch.exp(a * 2.0).sum().backward()
        assert saved.bytes == 0
        kept = torch.exp(a * 2.0)
        assert saved.bytes == 4000
    assert saved.bytes == 4000
    assert saved.tensors == 51
    del kept


def test_saved_bytes_lets_go_at_the_end() -> None:
    a, b = torch.ones(10, requires_grad=True), torch.ones(10)
    with saved_bytes() as saved:
        kept = a * b  # saves b
    watched = StorageWeakRef(b.untyped_storage())
    del b, kept
    assert saved.bytes == 40
    assert watched.expired()


def test_saved_bytes_leaves_out_what_is_excluded() -> None:
    a, b = torch.ones(10, requires_grad=True), torch.ones(10)
    with saved_bytes(exclude=[a]) as saved:
        kept = torch.exp(a * b)
    assert saved.bytes == 80
    with saved_bytes(exclude=iter([a, b])) as saved:
        kept = torch.exp(a * b)
    assert saved.bytes == 40
    del kept


def test_saved_bytes_sees_custom_functions_and_stops_at_the_end() -> None:
    v = torch.ones(10, requires_grad=True)
    with saved_bytes(exclude=[]) as saved:
        spikes = fast_sigmoid(v)
    assert saved.bytes == 40
    torch.exp(v)
    assert saved.bytes == 40
    spikes.sum().backward()
    assert v.grad is not None


def test_saved_bytes_ends_with_an_exception_too() -> None:
    v = torch.ones(10, requires_grad=True)
    with pytest.raises(ZeroDivisionError), saved_bytes() as saved:
        raise ZeroDivisionError
    torch.exp(v)
    assert saved.bytes == 0


def test_saved_bytes_grows_with_time_for_backpropagation() -> None:
    counts = []
    for steps in (8, 16, 32):
        model, x = RecurrentLoop(), torch.randn(steps, 2, INPUTS)
        with saved_bytes(exclude=[*model.parameters(), x]) as saved:
            loss = model(x).mean()
        loss.backward()
        counts.append(saved.bytes)
    assert counts[2] - counts[1] == 2 * (counts[1] - counts[0]) > 0


class Snapshot:
    """Anything with a ``snapshot``."""

    def __init__(self, **states: Any) -> None:
        self.states = states

    def snapshot(self) -> dict[str, Any]:
        return self.states


def test_live_state_bytes() -> None:
    shared = torch.zeros(6, dtype=torch.float64)
    assert live_state_bytes(Snapshot()) == 0
    assert live_state_bytes(Snapshot(mem=torch.zeros(4, 5), step=3)) == 80
    assert live_state_bytes(Snapshot(a=shared, b=shared[:2], nested={"c": [torch.zeros(1)]})) == 48 + 4


PEAK = """
import resource
from pathlib import Path
import torch
from tracecompile.diagnostics.memory import peak_resident_bytes

before = peak_resident_bytes()
assert 10 * 2**20 < before < 2**40, before
resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
assert resident <= before + 2**22, resident  # the kernel counts in batches
block = torch.ones((before - resident + 2**26) // 4)  # four bytes each: more than was ever resident
assert peak_resident_bytes() >= before + 2**24
del block
assert peak_resident_bytes() >= before + 2**24, "a peak does not fall"
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_resident_bytes() -> None:
    # In a process of its own: what others have freed there is resident, or not, as the kernel pleases.
    found = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


# ---------------------------------------------------------------------------------------------------------------------
# Gradient comparison
# ---------------------------------------------------------------------------------------------------------------------


class StandIn(nn.Module):
    """Behaves like a converted module, with gradients that can be spoiled by hooks on the outputs of its model."""

    def __init__(self, model: nn.Module, parameters: dict[str, ParameterReport] | None = None) -> None:
        super().__init__()
        self.inner = copy.deepcopy(model)
        for path, module in model.named_modules():
            self.inner.get_submodule(path)._parameters.update(module._parameters)
        self.fresh = copy.deepcopy(self.inner)
        self.report = ConversionReport(parameters=parameters or {})
        self.calls = 0

    def forward(self, *args: Any) -> Any:
        self.calls += 1
        return self.inner(*args)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner.named_parameters(*args, **kwargs)

    def parameters(self, recurse: bool = True) -> Any:
        return self.inner.parameters(recurse)

    def modules(self) -> Any:
        yield self
        yield from self.inner.modules()

    def children(self) -> Any:
        yield self.inner

    def snapshot(self) -> dict[str, Any]:
        return {"calls": torch.tensor(self.calls)}

    def restore(self, snapshot: dict[str, Any]) -> None:
        self.calls = int(snapshot["calls"])

    def reset(self) -> None:
        self.calls = 0
        for path, module in self.fresh.named_modules():
            target = self.inner.get_submodule(path)
            for key, value in vars(module).items():
                if key == "mem":
                    setattr(target, key, value)


def test_a_copy_of_the_model_has_cosine_one() -> None:
    model, x = MODELS["recurrent_loop"].factory(), MODELS["recurrent_loop"].make_inputs(6, 3)
    result = compare_gradients(model, StandIn(model), x, lambda out: weighted_loss([out]))
    assert [row.parameter for row in result.rows] == ["fc.weight", "fc.bias", "rec.weight"]
    for row in result.rows:
        assert row.cosine == pytest.approx(1, abs=1e-12)
        assert row.norm_ratio == pytest.approx(1, abs=1e-12)


def test_a_wrong_gradient_is_seen() -> None:
    model, x = MODELS["recurrent_loop"].factory(), MODELS["recurrent_loop"].make_inputs(6, 3)
    net = StandIn(model)
    net.inner.rec.register_forward_hook(lambda module, args, output: output + 2 * (output - output.detach()))
    result = compare_gradients(model, net, x, lambda out: weighted_loss([out]))
    rows = {row.parameter: row for row in result.rows}
    assert rows["rec.weight"].norm_ratio > 1.5
    assert result.worst.cosine < 0.999
    assert result.worst.cosine == min(row.cosine for row in result.rows)


def test_nothing_is_changed_by_a_comparison() -> None:
    case = MODELS["lazy_attributes"]
    model = case.factory()
    net = StandIn(model)
    model.body[1].mem = model.body[0](case.make_inputs(1, 3)[0])  # a state that is part of an autograd graph
    for module in (model, net.inner):
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, 3)
        module.train()
        module.body[2].eval()
    net.calls = 5
    before = fingerprint(model), fingerprint(net.inner)
    mem = net.inner.body[1].mem
    compare_gradients(model, net, case.make_inputs(4, 3), weighted_loss)
    net.inner.body[1].mem, net.inner.body[3].mem = mem, None
    assert_same_fingerprint(before[0], fingerprint(model))
    assert_same_fingerprint(before[1], fingerprint(net.inner))
    assert net.calls == 5


def test_mode_and_buffers_of_the_net_are_put_back() -> None:
    class Normalised(RecurrentLoop):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(INPUTS)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.norm(x.flatten(0, 1)).unflatten(0, x.shape[:2]))

    model = Normalised()
    net = StandIn(model).eval()
    mean = net.inner.norm.running_mean.clone()
    result = compare_gradients(model, net, torch.randn(6, 3, INPUTS) + 1, lambda out: weighted_loss([out]))
    assert result.worst.cosine > 0.999, "both sides run in the model's mode"
    assert torch.equal(net.inner.norm.running_mean, mean)
    assert not net.training
    assert not net.inner.norm.training
    assert model.norm.training


def test_both_sides_draw_the_same_random_numbers() -> None:
    model = nn.Sequential(nn.Linear(INPUTS, 30), nn.Dropout(0.5))
    state = torch.random.get_rng_state()
    result = compare_gradients(model, StandIn(model), torch.randn(5, INPUTS), lambda out: weighted_loss([out]))
    state_after_inputs = torch.random.get_rng_state()
    assert result.worst.cosine == pytest.approx(1)
    torch.random.set_rng_state(state)
    torch.randn(5, INPUTS)
    assert torch.equal(torch.random.get_rng_state(), state_after_inputs)


def test_step_models_are_looped() -> None:
    case = MODELS["lazy_attributes"]
    model, inputs = case.factory(), case.make_inputs(6, 3)
    for steps in (inputs, iter(inputs), [(x,) for x in inputs]):
        result = compare_gradients(model, StandIn(model), steps, weighted_loss)
        assert result.worst.cosine == pytest.approx(1)
    lengths: list[int] = []

    def loss(outputs: list[Tensor]) -> Tensor:
        lengths.append(len(outputs))
        return weighted_loss(outputs)

    compare_gradients(model, StandIn(model), inputs, loss)
    assert lengths == [6, 6]


def test_the_net_starts_a_new_sequence() -> None:
    case = MODELS["lazy_attributes"]
    model, inputs = case.factory(), case.make_inputs(6, 3)
    net = StandIn(model)
    case.run(net, inputs)
    assert compare_gradients(model, net, inputs, weighted_loss).worst.cosine == pytest.approx(1, abs=1e-12)


def test_a_run_of_ones_own() -> None:
    case = MODELS["tuple_state"]
    model = case.factory()
    assert isinstance(model, TupleState)
    result = compare_gradients(model, StandIn(model), case.make_inputs(6, 3), weighted_loss, run=case.run)
    assert len(result.rows) == 6
    assert result.worst.cosine == pytest.approx(1)


def test_status_comes_from_the_report() -> None:
    model, x = MODELS["recurrent_loop"].factory(), MODELS["recurrent_loop"].make_inputs(6, 3)
    net = StandIn(model, {"fc.weight": ParameterReport("trace", "because"), "fc.bias": ParameterReport("exact")})
    rows = compare_gradients(model, net, x, lambda out: weighted_loss([out])).rows
    assert [(row.status, row.reason) for row in rows] == [("trace", "because"), ("exact", ""), ("", "")]


def test_parameters_that_are_not_trained_have_no_row() -> None:
    model, x = MODELS["recurrent_loop"].factory(), MODELS["recurrent_loop"].make_inputs(6, 3)
    model.fc.bias.requires_grad_(False)
    result = compare_gradients(model, StandIn(model), x, lambda out: weighted_loss([out]))
    assert [row.parameter for row in result.rows] == ["fc.weight", "rec.weight"]


def test_a_loss_that_depends_on_nothing_is_refused() -> None:
    model, x = MODELS["recurrent_loop"].factory(), MODELS["recurrent_loop"].make_inputs(6, 3)
    with pytest.raises(InvalidInput):
        compare_gradients(model, StandIn(model), x, lambda out: out.detach().sum())


def test_a_net_of_another_model_is_refused() -> None:
    case = MODELS["recurrent_loop"]
    with pytest.raises(InvalidInput, match=r"parameters of this model: fc\.weight"):
        compare_gradients(case.factory(), StandIn(nn.Identity()), case.make_inputs(6, 3), lambda out: out.sum())


def test_a_net_of_a_twin_is_refused() -> None:
    case = MODELS["recurrent_loop"]
    model, twin = case.factory(), case.factory()
    twin.load_state_dict(model.state_dict())
    with pytest.raises(InvalidInput, match="parameters"):
        compare_gradients(model, StandIn(twin), case.make_inputs(6, 3), lambda out: out.sum())


G = torch.tensor([3.0, 4.0])


@pytest.mark.parametrize(
    ("measured", "expected", "cosine", "ratio", "status"),
    [
        (G, G, 1.0, 1.0, "trace"),
        (2 * G, G, 1.0, 2.0, "trace"),
        (-G, G, -1.0, 1.0, "trace"),
        (torch.tensor([-4.0, 3.0]), G, 0.0, 1.0, "trace"),
        (None, G, 0.0, 0.0, "trace"),
        (0 * G, G, 0.0, 0.0, "trace"),
        (G, 0 * G, 0.0, None, "trace"),
        (G, None, 0.0, None, "trace"),
        (1e-30 * G, 1e30 * G, 1.0, 1e-60, "trace"),
        (None, None, None, None, "no gradient"),
        (0 * G, None, None, None, "no gradient"),
        (0 * G, 0 * G, None, None, "no gradient"),
        (G * math.nan, G, None, None, "not finite"),
        (G, G * math.inf, None, None, "not finite"),
    ],
)
def test_one_row(measured: Tensor, expected: Tensor, cosine: float | None, ratio: float | None, status: str) -> None:
    row = compare_tensors("w", measured, expected, "trace")
    assert row.cosine == (None if cosine is None else pytest.approx(cosine))
    assert row.norm_ratio == (None if ratio is None else pytest.approx(ratio, rel=1e-6, abs=0))
    assert row.status == status


def test_the_cosine_is_accumulated_in_double_precision() -> None:
    values = torch.ones(2**22)
    values[0] = 2**13
    row = compare_tensors("w", values, values)
    assert row.cosine == pytest.approx(1, abs=1e-10)
    assert compare_tensors("w", values.half(), values).norm_ratio == pytest.approx(1, abs=1e-10)


def test_worst_flags_what_could_not_be_judged() -> None:
    bad, good = GradientRow("bad", -0.9, 1.0, "trace"), GradientRow("good", 1.0, 1.0, "exact")
    unknown = GradientRow("unknown", None, None, "no gradient")
    assert GradientComparison((good, bad)).worst is bad
    assert GradientComparison((bad, unknown, good)).worst is unknown
    assert GradientComparison((unknown, bad)).worst is unknown
    with pytest.raises(InvalidInput):
        _ = GradientComparison(()).worst


def test_the_table_and_the_dictionary() -> None:
    judged = GradientRow("layer.weight", 0.98765, 1.25, "trace", "why")
    comparison = GradientComparison((judged, GradientRow("b", None, None, "no gradient")))
    lines = str(comparison).splitlines()
    assert lines[0].split() == ["parameter", "cosine", "norm", "ratio", "gradient", "reason"]
    assert lines[2].split() == ["layer.weight", "0.987650", "1.25", "trace", "why"]
    assert lines[3].split() == ["b", "-", "-", "no", "gradient"]
    assert lines[4].startswith("Nothing to compare for b: neither side has a gradient.")
    assert lines[-1] == "worst: b, no gradient"
    decoded = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert decoded["worst"] == "b"
    assert decoded["rows"][0]["cosine"] == 0.98765
    assert decoded["rows"][1] == {
        "parameter": "b",
        "cosine": None,
        "norm_ratio": None,
        "status": "no gradient",
        "reason": "",
    }
    assert str(GradientComparison(()))


@pytest.mark.parametrize("name", ["recurrent_loop", "two_recurrent_layers", "lazy_attributes", "tuple_state"])
def test_with_a_converted_module(name: str) -> None:
    case = MODELS[name]
    model, inputs = case.factory(), case.make_inputs(6, 3)
    net = tracecompile.convert(model, case.example_inputs(5, 2), bins=6)
    before = fingerprint(model)
    result = tracecompile.compare_gradients(model, net, inputs, weighted_loss, run=case.run)
    assert_same_fingerprint(before, fingerprint(model))
    assert [row.parameter for row in result.rows] == [key for key, _ in model.named_parameters()]
    assert result.worst.cosine == pytest.approx(1, abs=1e-9)
    assert {row.status for row in result.rows} <= {"trace", "exact"}


# ---------------------------------------------------------------------------------------------------------------------
# The report
# ---------------------------------------------------------------------------------------------------------------------

REPORT = ConversionReport(
    layers=(
        LayerReport("lif1", "spiking", ("x", "lif1.spk"), ("lif1.mem",), ("spk",), "mean", "lateral", "subtract"),
        LayerReport("readout", "leaky integrator", inputs=("lif1.spk",), states=("out",)),
    ),
    parameters={"fc.weight": ParameterReport("trace", "by bins"), "scale": ParameterReport("frozen", "unused")},
    schedule=("lif1, step by step", "readout, all steps at once"),
    notes=("Max pooling runs on the mean input.",),
    rule="measured",
    bins=4,
    backend="eager",
)


def test_the_report_as_text() -> None:
    text = str(REPORT)
    for word in ("measured", "4 time bins", "eager", "lif1.mem", "leaky integrator", "fc.weight", "frozen", "unused"):
        assert word in text
    for line in (*REPORT.schedule, *REPORT.notes):
        assert line in text
    assert all(line == line.rstrip() for line in text.splitlines())
    assert "notes\n- Max pooling" in text
    assert "schedule\n1. lif1" in text
    narrow = ConversionReport(layers=tuple(dataclasses.replace(each, trace="") for each in REPORT.layers))
    table = str(narrow).split("layers\n")[1].split("\n\n")[0].splitlines()
    assert table[2].index("spiking") == table[3].index("leaky integrator") == table[0].index("kind")
    assert "reset" in table[0]
    assert "lif1\n  kind        spiking\n  inputs      x, lif1.spk\n" in text, "what is too wide is no table"
    assert "reset" not in str(ConversionReport(layers=(REPORT.layers[1],))), "an empty column is left out"


def test_the_report_as_json() -> None:
    decoded = json.loads(json.dumps(REPORT.to_dict(), allow_nan=False))
    assert decoded == REPORT.to_dict(), "only lists, dictionaries, strings and numbers"
    assert decoded["layers"][0]["inputs"] == ["x", "lif1.spk"]
    assert decoded["parameters"]["scale"] == {"status": "frozen", "reason": "unused"}
    assert decoded["bins"] == 4


def test_an_empty_report_is_readable() -> None:
    assert str(ConversionReport(rule="bptt")) == "rule: bptt; backend: eager"
    assert ConversionReport().to_dict()["parameters"] == {}


def test_the_report_of_a_conversion() -> None:
    case = MODELS["two_recurrent_layers"]
    report = tracecompile.convert(case.factory(), case.example_inputs(5, 2), bins=2).report
    assert isinstance(report, ConversionReport)
    assert len(report.layers) == 2
    assert set(report.parameters) == {name for name, _ in case.factory().named_parameters()}
    assert (report.rule, report.bins) == ("measured", 2)
    json.dumps(report.to_dict(), allow_nan=False)
    assert "fc1.weight" in str(report)


def test_check_says_what_a_probe_of_the_network_advises() -> None:
    class Unstable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.rlif, self.out = nn.Linear(4, 16), tracecompile.nn.RLIF(16), nn.Linear(16, 2)
            with torch.no_grad():
                self.rlif.lateral.weight.mul_(10.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            state, outputs = None, []
            for x_t in x:
                spikes, state = self.rlif(self.fc(x_t), state)
                outputs.append(self.out(spikes))
            return torch.stack(outputs).mean(0)

    torch.manual_seed(0)
    model, x = Unstable(), 3 * torch.rand(40, 4, 4)
    result = check_model(model, tracecompile.convert(model, x), (x,))
    assert any("did not settle" in sentence for sentence in result.advice)
    assert "did not settle" in str(result)
    assert result.to_dict()["advice"] == list(result.advice)
