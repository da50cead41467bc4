"""tracecompile bench: a complete table, ratios of medians, files; never how fast anything is."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from commands.schemas import BENCH
from typer.testing import CliRunner

import tracecompile
from tracecompile.bench.methods import METHODS
from tracecompile.bench.result import BenchResult
from tracecompile.bench.run import run_bench
from tracecompile.cli import app
from tracecompile.targets import UsageError

ROWS = ["bptt", "eager-1", "eager-4"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[BenchResult, Path]:
    output = tmp_path_factory.mktemp("bench") / "table"
    return run_bench(networks=["dense"], steps=[12], methods=ROWS, repeats=3, quick=True, output=output), output


def test_every_row_has_its_times_memory_and_cosine(measured: tuple[BenchResult, Path]) -> None:
    result, _ = measured
    assert [row.method for row in result.rows] == ["inference", *ROWS]
    for row in result.rows:
        assert row.skipped == ""
        assert len(row.times) == 3
        assert row.seconds == statistics.median(row.times) > 0
        assert row.peak_bytes is not None
        assert row.peak_bytes > 50e6  # a process that has imported torch
        assert (row.cosine is None) == (row.method == "inference")
    cosines = {row.method: row.cosine for row in result.rows if row.cosine is not None}
    assert cosines["bptt"] == pytest.approx(1.0)
    assert 0.5 < cosines["eager-1"] < 1.0
    assert cosines["eager-1"] < cosines["eager-4"] < 1.0


def test_ratios_are_those_of_the_medians_of_one_run(measured: tuple[BenchResult, Path]) -> None:
    result, output = measured
    written = json.loads(Path(f"{output}.json").read_text())
    jsonschema.validate(written, BENCH)
    rows = {row["method"]: row for row in written["rows"]}
    baseline = statistics.median(rows["inference"]["times"])
    for row in rows.values():
        assert row["ratio_to_inference"] == pytest.approx(statistics.median(row["times"]) / baseline)
    assert f"{rows['eager-4']['ratio_to_inference']:.2f}" in str(result)


def test_the_picture_is_a_picture(measured: tuple[BenchResult, Path]) -> None:
    _, output = measured
    content = Path(f"{output}.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 10_000


def test_a_row_that_cannot_be_measured_says_why() -> None:
    # What takes the compiler is measured in test_bench_opponents.py, and in test_bench_rows.py.
    others = (method.key for method in METHODS if method.key not in ("inference", *ROWS))
    methods = [key for key in others if "compiled" not in key and "inductor" not in key]
    result = run_bench(networks=["dense"], steps=[8], methods=methods, repeats=1, quick=True)
    for row in result.rows:
        assert (row.skipped != "") == (not row.times)
        assert row.skipped == "" or len(row.skipped.split()) > 2, row.skipped


def test_a_model_of_ones_own_by_the_command_line(tmp_path: Path) -> None:
    target = Path(__file__).parent.parent / "examples" / "benchmarks" / "own_model.py"
    arguments = ["bench", f"{target}:AdaptiveNet", "--steps", "10,20", "--rows", "eager-4", "--repeats", "1", "--json"]
    found = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / "own"), "--no-picture"])
    assert found.exit_code == 0, found.output
    table = json.loads(found.output)
    assert [(row["method"], row["steps"]) for row in table["rows"]] == [
        (method, steps) for steps in (10, 20) for method in ("inference", "eager-4")
    ]
    assert not (tmp_path / "own.png").exists()


@pytest.mark.parametrize(("given", "message"), [({"networks": ["dens"]}, "no network"), ({"methods": ["x"]}, "no row")])
def test_what_does_not_exist_is_a_usage_error(given: dict[str, list[str]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run_bench(**given)  # type: ignore[arg-type]


def test_the_report_states_the_live_bytes_of_the_built_in_networks() -> None:
    from tracecompile.bench.case import Job, open_case
    from tracecompile.diagnostics.memory import live_state_bytes

    for name in ("dense", "recurrent", "convolutional"):
        case = open_case(Job(network=name, steps=12, quick=True))
        net = tracecompile.convert(case.model, case.inputs)
        outputs = net(*case.inputs)
        batch = case.inputs[0].shape[1]
        memory = net.report.memory
        expected = batch * (memory.total - memory.states)  # a sequence's own states are not kept between its calls
        assert math.isclose(live_state_bytes(net), expected, rel_tol=0.1), (name, str(memory), outputs.shape)


def test_importing_the_package_brings_little_beyond_torch() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import tracecompile; "
        "print(sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    brought = set(eval(found.stdout)) - sys.stdlib_module_names
    assert brought <= {"tracecompile", "safetensors"}
