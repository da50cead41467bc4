"""The opponents of the bench: each computes what it says, on the same network, or says why it does not."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from requirements import library
from torch import Tensor, nn
from torch._dynamo.utils import counters

from tracecompile.bench import compiled, memopt, pp_prop
from tracecompile.bench.braintrace import PYTHON
from tracecompile.bench.case import Case, Job, open_case
from tracecompile.bench.measure import first_norm_ratio, lowest_cosine, measure_case
from tracecompile.bench.methods import BY_KEY
from tracecompile.bench.networks import QUICK
from tracecompile.bench.over_time import layer_by_layer, start_of, step_by_step
from tracecompile.bench.result import COMPILED_BASELINE, BenchResult, Row
from tracecompile.bench.run import run_bench
from tracecompile.bench.running import Run, Skipped
from tracecompile.bench.worker import measure_peak
from tracecompile.diagnostics.check import projection_loss
from tracecompile.targets import UsageError

BENCHMARKS = Path(__file__).parent.parent / "examples" / "benchmarks"


def case_of(network: str, steps: int = 20) -> Case:
    return open_case(Job(network=network, steps=steps, quick=True))


def after_a_step(case: Case, method: str) -> Run:
    run = BY_KEY[method].make(case)
    run.prepare()
    run.step()
    return run


def gradients(case: Case, method: str) -> dict[str, Tensor | None]:
    found = after_a_step(case, method).gradients()
    assert any(gradient is not None and gradient.norm() > 0 for gradient in found.values())
    return found


def assert_exact(case: Case, method: str) -> None:
    expected, found = gradients(case, "bptt"), gradients(case, method)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


@pytest.fixture
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "PIECE", 2)  # as many steps are compiled


@pytest.mark.parametrize("network", list(QUICK))
def test_layer_by_layer_is_step_by_step(network: str) -> None:
    case = case_of(network)
    assert case.looped is not None
    (x,), model = case.inputs, case.looped.double()
    expected, states = step_by_step(model, x.double(), model.start())
    found, after = start_of(model, x.double()), ()
    total = torch.zeros(())
    for part in x.double().split(7):
        scores, found = layer_by_layer(model, part, found)
        total, after = total + scores, found
    torch.testing.assert_close(total, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(after, states, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("network", list(QUICK))
def test_the_hoisted_loop_is_backpropagation_through_time(network: str) -> None:
    assert_exact(case_of(network), "hoisted")


@pytest.mark.parametrize("method", ["bptt-compiled", "checkpoint-compiled"])
@pytest.mark.parametrize("network", ["recurrent", "convolutional"])
def test_the_compiled_loop_is_backpropagation_through_time(network: str, method: str, short_pieces: None) -> None:
    assert_exact(case_of(network, 9), method)  # the last step is left over


def test_one_compiled_piece_serves_for_all_steps(short_pieces: None) -> None:
    case, before = case_of("dense", 12), counters["stats"]["unique_graphs"]
    run = after_a_step(case, "bptt-compiled")
    assert counters["stats"]["unique_graphs"] == before + 1
    assert "pieces of 2 steps" in run.note
    run.prepare()
    run.step()
    assert counters["stats"]["unique_graphs"] == before + 1


def test_compiled_inference_is_that_of_the_model(short_pieces: None, monkeypatch: pytest.MonkeyPatch) -> None:
    sums: list[Tensor] = []
    real = compiled._sum_over

    def sum_over(*arguments: object) -> object:
        result = real(*arguments)  # type: ignore[arg-type]
        sums.append(result[0])
        return result

    monkeypatch.setattr(compiled, "_sum_over", sum_over)
    case = case_of("convolutional", 8)
    run = after_a_step(case, "inference-compiled")
    assert not run.trains
    torch.testing.assert_close(sums[-1] / 8, case.model.eval()(*case.inputs), rtol=1e-4, atol=1e-5)
    assert not sums[-1].requires_grad


def test_the_graph_of_what_is_compiled_is_bounded_before_it_is_compiled() -> None:
    before = counters["stats"]["unique_graphs"]
    (row,) = measure_case(case_of("dense", 80), "dense", [BY_KEY["bptt-compiled"]], 1, 1000, lambda text: None)
    assert "would hold" in row.skipped
    assert counters["stats"]["unique_graphs"] == before


MODEL = '''
import torch
from torch import nn
import tracecompile.nn as snn

class Step(nn.Module):
    """One step a call; the state stays in the module."""

    def __init__(self):
        super().__init__()
        self.lif = snn.LIF(leak=0.8, surrogate=snn.fast_sigmoid(5.0))
        self.fc, self.out, self.state = nn.Linear(6, 8), nn.Linear(8, 3), None

    def forward(self, x):
        spikes, self.state = self.lif(3 * self.fc(x), self.state)
        return self.out(spikes)

class Broken(Step):
    """What torch.compile does not take whole."""

    def forward(self, x):
        spikes, self.state = self.lif(3 * self.fc(x), self.state)
        torch._dynamo.graph_break()
        return self.out(spikes)

class Sequence(Step):
    """The loop over time is in the model."""

    def forward(self, x):
        state, total = None, 0.0
        for x_t in x:
            spikes, state = self.lif(3 * self.fc(x_t), state)
            total = total + self.out(spikes)
        return total / x.shape[0]

def step_inputs():
    return torch.rand(4, 6)

def example_inputs():
    return torch.rand(4, 6)
'''


@pytest.fixture
def target(tmp_path: Path) -> str:
    (tmp_path / "opponents_model.py").write_text(MODEL)
    return str(tmp_path / "opponents_model.py")


def of_target(target: str, name: str, steps: int | None) -> Case:
    shape = f"{steps}x4x6" if name == "Sequence" else None
    return open_case(Job(target=f"{target}:{name}", steps=None if shape else steps, shape=shape))


@pytest.mark.parametrize("name", ["Step", "Sequence"])
def test_a_model_of_ones_own_is_compiled(name: str, target: str) -> None:
    case = of_target(target, name, 4)
    assert_exact(case, "bptt-compiled")
    run = after_a_step(case, "inference-compiled")
    assert not run.trains
    assert run.note.startswith("its step" if name == "Step" else "its loop")


@pytest.mark.parametrize("method", ["bptt-compiled", "inference-compiled"])
def test_what_torch_compile_does_not_take_whole_is_left_out(method: str, target: str) -> None:
    with pytest.raises(Skipped, match=r"torch\.compile refuses it: Call to"):
        after_a_step(of_target(target, "Broken", 3), method)


def test_a_long_loop_of_ones_own_is_compiled_on_request_and_a_longer_one_never(target: str) -> None:
    case, method = of_target(target, "Sequence", 40), BY_KEY["bptt-compiled"]
    with pytest.raises(Skipped, match=r"all 40 steps .* takes minutes; --rows bptt-compiled measures it"):
        method.by_default(case).make(case)
    assert method.make(case).trains
    assert method.by_default(case_of("dense", 40)) is method
    assert method.by_default(of_target(target, "Step", 40)) is method
    longer = of_target(target, "Sequence", 200)
    for chosen in (method, method.by_default(longer)):
        with pytest.raises(Skipped, match="at most 128"):
            chosen.make(longer)


def test_every_row_that_a_model_of_ones_own_has_not_says_why(target: str) -> None:
    case = of_target(target, "Sequence", 4)
    for key in ("hoisted", "checkpoint", "checkpoint-compiled", "truncated", "braintrace"):
        with pytest.raises(Skipped, match="only for the built-in networks"):
            BY_KEY[key].make(case)


@pytest.mark.libraries
@pytest.mark.parametrize("network", ["dense", "convolutional"])
def test_memopt_is_backpropagation_through_time(network: str) -> None:
    library("spikingjelly")
    case = case_of(network, 40)
    assert_exact(case, "spikingjelly-memopt")
    with pytest.raises(Skipped, match="no lateral weights"):
        memopt.spikingjelly_memopt(case_of("recurrent"))


def test_the_norm_that_is_shown_is_the_first_layers() -> None:
    torch.manual_seed(0)
    reference = {"leak": torch.rand(3), "first": torch.rand(3, 4), "second": torch.rand(3, 4)}
    measured = {"leak": 2 * reference["leak"], "first": 0.25 * reference["first"], "second": reference["second"]}
    assert first_norm_ratio(measured, reference) == pytest.approx(0.25)
    assert first_norm_ratio({"first": None}, {"first": reference["first"]}) == 0.0
    assert first_norm_ratio({"leak": 2 * reference["leak"]}, {"leak": reference["leak"]}) == pytest.approx(2.0)
    assert first_norm_ratio({}, {"leak": None}) is None


def test_times_are_related_to_compiled_inference_where_it_ran() -> None:
    times = {"inference": [4.0, 2.0, 9.0], "inference-compiled": [0.5], "eager-4": [3.0]}
    rows = [Row("dense", "dense", steps, key, key, found) for steps in (8, 16) for key, found in times.items()]
    rows[-1].times = [1.75]
    result = BenchResult(rows, {}, {})
    assert [result.ratio(row, COMPILED_BASELINE) for row in rows] == [8.0, 1.0, 6.0, 8.0, 1.0, 3.5]
    assert [row["ratio_to_compiled_inference"] for row in result.to_dict()["rows"]][-1] == 3.5
    assert "of compiled" in str(result)
    without = BenchResult([row for row in rows if row.method != "inference-compiled"], {}, {})
    assert without.ratio(rows[0], COMPILED_BASELINE) is None
    assert "of compiled  " not in str(without)


def test_the_allocator_can_be_asked_to_keep_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(network="dense", steps=8, quick=True)
    seen: list[dict[str, str]] = []
    real = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: (seen.append(k["env"]), real(*a, **k))[1])
    for returned in (False, True):
        assert not isinstance(measure_peak(job, "inference", returned), str)
    assert "MALLOC_TRIM_THRESHOLD_" not in seen[0]
    assert seen[1]["MALLOC_TRIM_THRESHOLD_"] == seen[1]["MALLOC_MMAP_THRESHOLD_"] == "65536"
    monkeypatch.setattr("platform.libc_ver", lambda: ("musl", "1.2"))
    with pytest.raises(UsageError, match="glibc"):
        run_bench(networks=["dense"], allocator=True)


def test_without_braintrace_its_row_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PYTHON, "/bin/false")
    with pytest.raises(Skipped, match=rf"BrainTrace is not installed for /bin/false .*{PYTHON} names another"):
        BY_KEY["braintrace"].make(case_of("dense", 4))
    with pytest.raises(Skipped, match="dense and the recurrent"):
        BY_KEY["braintrace"].make(case_of("convolutional", 4))


STAND_IN = """#!{python}
import sys
if "-c" in sys.argv:
    sys.exit(0)
import numpy as np
folder = sys.argv[-2]
task = dict(np.load(folder + "/task.npz"))
print("as it is said there", file=sys.stderr)
for line in sys.stdin:
    if line.strip() == "gradients":
        np.savez(folder + "/gradients.npz", **{{"fc1.weight": 3 * task["fc1.weight"], "cotangent": task["cotangent"]}})
    if line.strip() == "peak":
        break
    print("done", flush=True)
"""


def test_a_row_of_another_process_hands_gradients_over_and_says_what_ended_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = tmp_path / "python"
    stand_in.write_text(STAND_IN.format(python=sys.executable))
    stand_in.chmod(0o755)
    monkeypatch.setenv(PYTHON, str(stand_in))
    case = case_of("dense", 4)
    run = after_a_step(case, "braintrace")
    found = run.gradients()
    torch.testing.assert_close(found["fc1.weight"], 3 * case.model.get_parameter("fc1.weight").detach())
    scores = torch.zeros(8, 10, requires_grad=True)
    projection_loss(scores).backward()
    torch.testing.assert_close(found["cotangent"], scores.grad)
    with pytest.raises(Skipped, match="has ended: as it is said there"):
        run.peak()


def of_braintrace(network: str, steps: int, gain: float = 1.0) -> tuple[dict[str, Tensor | None], Case]:
    case = case_of(network, steps)
    with torch.no_grad():
        for module in case.model.modules():
            if isinstance(module, nn.Linear):
                module.weight *= gain
    try:
        run = after_a_step(case, "braintrace")
    except Skipped as reason:
        if PYTHON in os.environ:
            raise
        pytest.skip(str(reason))
    first = run.gradients()
    run.step()
    for name, gradient in run.gradients().items():
        assert torch.equal(gradient, first[name]), name  # type: ignore[arg-type]
    assert (run.peak() or 0) > 50e6
    return first, case


@pytest.mark.parametrize("network", ["dense", "recurrent"])
def test_braintrace_trains_the_same_network(network: str) -> None:
    found, case = of_braintrace(network, 1, gain=3.0)  # so that there are spikes in the first step
    for name, gradient in gradients(case, "bptt").items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    found, case = of_braintrace(network, 20)
    expected = gradients(case, "bptt")
    torch.testing.assert_close(found["readout.weight"], expected["readout.weight"], rtol=1e-4, atol=1e-6)
    cosine, _ = lowest_cosine(found, expected)
    assert cosine is not None
    assert 0.3 < cosine < 0.999


def test_the_worker_of_braintrace_imports_nothing_of_the_package() -> None:
    source = Path(pp_prop.__file__).read_text()
    assert "import tracecompile" not in source
    assert "from tracecompile" not in source
    assert "import torch" not in source


def test_the_rows_of_the_script_for_a_card_are_rows() -> None:
    script = BENCHMARKS / "cuda.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    (line,) = (line for line in script.read_text().splitlines() if line.startswith("rows="))
    assert set(line.removeprefix("rows=").split(",")) <= set(BY_KEY)


def test_the_table_has_a_column_for_each_network_and_brackets_for_what_is_not_exact() -> None:
    spec = importlib.util.spec_from_file_location("table", BENCHMARKS / "table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows = [
        Row("dense", "dense 4-5", 64, "inference", "inference", [0.002], peak_bytes=400_000_000),
        Row("dense", "dense 4-5", 64, "bptt", "through time", [0.005], cosine=1.0, norm_ratio=1.0),
        Row("dense", "dense 4-5", 64, "eager-4", "converted", [0.003], cosine=0.9876, norm_ratio=1.25),
        Row("dense", "dense 4-5", 64, "hoisted", "hoisted", skipped="it would not fit"),
    ]
    result = BenchResult(rows, {"device": "a card", "torch": "2.13"}, {})
    assert module.table(result.to_dict()).splitlines() == [
        "a card, torch 2.13, 64 time steps",
        "",
        "| | dense 4-5 | memory |",
        "|---|---|---|",
        "| inference | 2.0 ms | 400 MB |",
        "| through time | 2.50 |  |",
        "| converted | 1.50 (0.988, 1.25) |  |",
        "| hoisted |  |  |",
    ]
