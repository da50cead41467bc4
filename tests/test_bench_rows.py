"""What the rows of the bench compute: one network in all of them, exact where they say so, within a limit of memory."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from requirements import library
from torch import Tensor, nn

import tracecompile
from tracecompile.bench import libraries, methods
from tracecompile.bench.case import Case, Job, open_case
from tracecompile.bench.measure import lowest_cosine, measure_case
from tracecompile.bench.methods import BY_KEY
from tracecompile.bench.networks import QUICK, Looped
from tracecompile.bench.running import Skipped
from tracecompile.bench.worker import measure_peak
from tracecompile.diagnostics.check import projection_loss
from tracecompile.diagnostics.held import count_held
from tracecompile.diagnostics.memory import peak_resident_bytes
from tracecompile.errors import ConversionError

BENCHMARKS = Path(__file__).parent.parent / "examples" / "benchmarks"


def case_of(network: str, steps: int = 20) -> Case:
    return open_case(Job(network=network, steps=steps, quick=True))


def gradients(case: Case, method: str) -> dict[str, Tensor | None]:
    run = BY_KEY[method].make(case)
    run.prepare()
    run.step()
    found = run.gradients()
    assert any(gradient is not None and gradient.norm() > 0 for gradient in found.values())
    return found


@pytest.mark.parametrize("network", list(QUICK))
def test_the_networks_fire_and_stay_silent(network: str) -> None:
    case = case_of(network)
    fired: list[Tensor] = []
    looped, (x,) = case.looped, case.inputs
    assert looped is not None
    for name in ("lif1", "lif2"):
        looped.get_submodule(name).register_forward_hook(lambda module, args, result: fired.append(result[0]))
    looped(x)
    for spikes in (torch.stack(fired[0::2]), torch.stack(fired[1::2])):
        assert set(spikes.unique().tolist()) == {0.0, 1.0}
        assert 0.02 < spikes.mean() < 0.5


@pytest.mark.parametrize("network", list(QUICK))
def test_checkpointing_is_exact_and_truncation_is_not(network: str) -> None:
    case = case_of(network, 50)
    expected = gradients(case, "bptt")
    assert set(expected) == {name for name, _ in case.model.named_parameters()}
    for name, gradient in gradients(case, "checkpoint").items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)
    assert 0.3 < lowest_cosine(gradients(case, "truncated"), expected)[0] < 0.9999


@pytest.mark.parametrize("network", ["dense", "recurrent"])
def test_the_exact_rule_is_exact(network: str) -> None:
    case = case_of(network, 50)
    expected = gradients(case, "bptt")
    found = gradients(case, "exact-eager")
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


def test_truncation_to_the_whole_sequence_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of("recurrent", 4)
    whole = open_case(Job(network="recurrent", steps=4, quick=True))
    expected = gradients(whole, "bptt")
    assert methods.truncated(case).note == "windows of 1 steps"
    monkeypatch.setattr(methods, "min", lambda *sizes: 4, raising=False)
    for name, gradient in gradients(case, "truncated").items():
        torch.testing.assert_close(gradient, expected[name])


def test_what_would_not_fit_is_left_out_and_checkpointing_is_the_reference() -> None:
    case = case_of("dense", 80)
    rows = [BY_KEY[key] for key in ("inference", "bptt", "checkpoint", "eager-4")]
    left_out = {row.method: row for row in measure_case(case, "dense", rows, 1, 1000, lambda text: None)}
    assert "would hold" in left_out["bptt"].skipped
    assert left_out["bptt"].times == []
    assert left_out["eager-4"].compared_with == "checkpoint"
    cosine = left_out["eager-4"].cosine
    assert cosine is not None
    assert 0.5 < cosine < 1.0


def test_the_prediction_of_a_graph_over_time_is_close() -> None:
    case = case_of("dense", 200)
    held = count_held(lambda: projection_loss(case.model(*case.inputs)))
    rows = [BY_KEY["inference"], BY_KEY["bptt"]]
    for limit, fits in ((int(1.1 * held), True), (int(0.9 * held), False)):
        _, row = measure_case(case, "dense", rows, 1, limit, lambda text: None)
        assert (row.skipped == "") == fits, row.skipped


def test_the_bench_takes_every_backend_that_convert_takes() -> None:
    case = case_of("dense")
    for key, bins, options in (
        ("eager-1", 1, {"backend": "eager", "chunk": 1}),
        ("chunked-4", 4, {"backend": "eager", "chunk": 16}),
        ("inductor-1", 1, {"backend": "inductor"}),
        ("inductor-4", 4, {"backend": "inductor"}),
    ):
        refused = ""
        try:
            tracecompile.convert(case.model, case.inputs, bins=bins, **options)  # type: ignore[arg-type]
        except ConversionError as refusal:
            refused = str(refusal).splitlines()[0]
        if not refused:
            assert BY_KEY[key].make(case).trains
            continue
        with pytest.raises(Skipped) as skipped:
            BY_KEY[key].make(case)
        assert str(skipped.value) == refused


def test_the_peak_of_a_process_is_its_own() -> None:
    block = torch.ones(150_000_000)  # 600 MB, which a child that asks getrusage would inherit
    found = measure_peak(Job(network="dense", steps=70, quick=True), "inference")
    assert not isinstance(found, str), found
    assert found.start is not None
    assert 50e6 < found.start <= found.peak < peak_resident_bytes() - 0.5 * block.nbytes


def test_a_process_that_fails_says_so() -> None:
    found = measure_peak(Job(network="none", steps=8), "inference")
    assert isinstance(found, str)
    assert "KeyError" in found


def test_peak_memory_of_a_stream_does_not_depend_on_its_length() -> None:
    size = ["--hidden", "64", "--segment", "25", "--steps", "100", "2000"]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "streamed_memory.py"), *size],
        env={"PYTHONPATH": str(BENCHMARKS.parent.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    short, long = (float(line.split()[-2].replace(",", "")) for line in done.stdout.splitlines())
    assert long < 1.03 * short


def test_the_time_of_a_streamed_step_is_put_side_by_side() -> None:
    options = ["--hidden", "8", "--steps", "12", "--samples", "2", "--lookahead", "4", "--repeats", "1"]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "streamed_time.py"), *options, "--backends", "eager"],
        env={"PYTHONPATH": str(BENCHMARKS.parent.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == ["8", "eager", "eager,", "8", "eager", "eager,"]
    assert [row[-1] for row in rows if row[0] == "eager"] == ["1.00", "1.00"]


def test_times_are_put_beside_the_rate_of_spikes() -> None:
    options = ["--hidden", "8", "--steps", "70", "--samples", "2", "--repeats", "1", "--thresholds", "9", "0.1"]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "firing_rates.py"), *options],
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS.parent.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()[2:]]
    assert [row[0] for row in rows] == ["9", "0.1"]
    rates = [float(row[1]) for row in rows]
    assert rates[0] == 0.0
    assert rates[1] > 0.05
    assert all(len(row) == 6 and float(row[-1]) > 0 for row in rows)


@pytest.fixture
def jelly() -> ModuleType:
    return library("spikingjelly")


@pytest.mark.libraries
@pytest.mark.parametrize("network", ["dense", "convolutional"])
@pytest.mark.parametrize("method", ["spikingjelly-ottt", "spikingjelly-sltt"])
def test_spikingjelly_computes_the_same_network(network: str, method: str, jelly: ModuleType) -> None:
    case = case_of(network)
    run = BY_KEY[method].make(case)
    twin = run.prepare()
    (x,) = case.inputs
    trace = torch.zeros_like(x[0])
    scores = []
    for x_t in x:
        trace = 0.9 * trace + x_t
        scores.append(twin([x_t, trace] if method.endswith("ottt") else x_t))
    torch.testing.assert_close(torch.stack(scores).mean(0), case.model(x))
    assert set(run.gradients()) == {name for name, _ in case.model.named_parameters()}


@pytest.mark.libraries
@pytest.mark.parametrize("method", ["spikingjelly-ottt", "spikingjelly-sltt"])
def test_spikingjelly_over_a_single_step_is_backpropagation(method: str, jelly: ModuleType) -> None:
    case = case_of("dense", 1)
    case.model.get_submodule("fc1").weight.data *= 3  # so that there are spikes in the first step
    case.model.get_submodule("fc2").weight.data *= 3
    expected = gradients(case, "bptt")
    for name, gradient in gradients(case, method).items():
        torch.testing.assert_close(gradient, expected[name])
    longer = case_of("dense", 20)
    assert lowest_cosine(gradients(longer, method), gradients(longer, "bptt"))[0] < 0.99


@pytest.mark.libraries
@pytest.mark.parametrize("network", list(QUICK))
def test_snntorch_begins_every_sequence_anew(network: str) -> None:
    library("snntorch")
    one = case_of(network, 1)
    for case, same in ((one, True), (case_of(network, 20), False)):
        run = BY_KEY["snntorch"].make(case)
        losses = []
        for _ in range(2):
            module = run.prepare()
            assert run.grows is not None
            losses.append(run.grows(module))
            losses[-1].backward()
        own = projection_loss(case.model(*case.inputs))
        torch.testing.assert_close(losses[0], losses[1])
        # In the first step nothing was reset yet; later its neurons are others.
        assert torch.allclose(losses[0], own, rtol=1e-4, atol=1e-6) == same


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "snntorch", None)
    with pytest.raises(Skipped, match="snntorch is not installed"):
        libraries.snntorch_loop(case_of("dense"))
    if importlib.util.find_spec("spikingjelly") is None:
        with pytest.raises(Skipped, match="spikingjelly is not installed"):
            libraries.spikingjelly_ottt(case_of("dense"))


def test_other_models_have_no_rows_that_need_a_step() -> None:
    class Plain(nn.Module):
        pass

    case = Case("plain", Plain(), (torch.zeros(4, 1, 2),), 4, (0,))
    assert not isinstance(case.model, Looped)
    for key in ("checkpoint", "truncated"):
        with pytest.raises(Skipped, match="built-in networks"):
            BY_KEY[key].make(case)
