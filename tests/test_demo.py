"""The demo, in its quick form: every number that it shows, and the picture."""

import json
import sys
from pathlib import Path

import jsonschema
import pytest
import torch
from commands.schemas import DEMO

import tracecompile
from tracecompile.cli import main
from tracecompile.demo import run
from tracecompile.demo.data import load_digits
from tracecompile.demo.network import DigitNet
from tracecompile.demo.result import DemoResult
from tracecompile.diagnostics import cost


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    return run.run_demo(steps=20, quick=True, output=tmp_path_factory.mktemp("demo") / "picture.png")


def test_memory_is_flat_for_the_converted_network_and_grows_for_the_other(result: DemoResult) -> None:
    first, *_, last = result.lengths
    assert last.steps == 4 * first.steps
    assert len({row.converted.bytes for row in result.lengths}) == 1
    assert first.converted.bytes > 0
    assert first.bptt is not None
    assert last.bptt is not None
    assert last.bptt.bytes > 3 * first.bptt.bytes


def test_both_trainings_learn_from_the_same_start(result: DemoResult) -> None:
    assert result.bptt.losses[0] == pytest.approx(result.converted.losses[0], abs=1e-6)
    assert len(result.bptt.losses) == len(result.converted.losses)
    for training in (result.bptt, result.converted):
        assert training.losses[-1] < training.losses[0]
        assert 0.0 <= training.accuracy <= 1.0
        assert training.seconds_per_step > 0


def test_the_picture_is_a_png(result: DemoResult) -> None:
    content = Path(result.picture).read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(content) > 20_000


def test_the_result_is_text_and_json(result: DemoResult) -> None:
    assert "backpropagation through time" in str(result)
    values = json.loads(json.dumps(result.to_dict()))
    jsonschema.validate(values, DEMO)
    assert values["lengths"][0]["steps"] == result.lengths[0].steps


def test_what_is_done_once_is_stated_beside_the_warm_times(result: DemoResult) -> None:
    assert f"once, conversion: {result.converted.first_seconds:.1f} s, not in these times" in str(result)
    assert result.converted.first_seconds > 2 * result.converted.seconds_per_step, "it was in the times"
    assert all(len(line) <= 80 for line in str(result).splitlines() if not line.startswith("picture"))


def test_what_would_not_fit_is_predicted_and_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracecompile.demo.run.BYTES_LIMIT", 2_000_000)
    model = DigitNet(hidden=16)
    net = tracecompile.convert(DigitNet(hidden=16), torch.rand(4, 2, 64).round())
    short, long = run.measure_lengths(model, net, load_digits(), [10, 400], lambda text: None)
    assert short.bptt is not None
    assert long.bptt is None
    assert long.predicted == 40 * short.bptt.bytes


def test_every_time_is_that_of_a_warm_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracecompile.demo.run.LONG", 15)
    calls: dict[tuple[int, bool], list[float]] = {}
    real = run.time_step

    def timed(net: torch.nn.Module, inputs: tuple[torch.Tensor], loss: object) -> float:
        calls.setdefault((len(inputs[0]), net is model), []).append(real(net, inputs, loss))  # type: ignore[arg-type]
        return calls[len(inputs[0]), net is model][-1]

    for module in (run, cost):
        monkeypatch.setattr(module, "time_step", timed)
    model = DigitNet(hidden=16)
    rows = run.measure_lengths(
        model, tracecompile.convert(DigitNet(hidden=16)), load_digits(), [10, 20], lambda _: None
    )
    for row in rows:
        assert row.bptt is not None
        for shown, is_model in ((row.bptt.seconds, True), (row.converted.seconds, False)):
            first, *warm = calls[row.steps, is_model]
            assert len(warm) == (1 if row.steps > 15 else 3)
            assert shown == min(warm)
            assert shown != first


@pytest.mark.parametrize("package", ["sklearn", "matplotlib"])
def test_a_missing_package_is_named_with_the_cure(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--quick"])
    assert stopped.value.code == 2
    assert "pip install 'tracecompile[demo]'" in capsys.readouterr().err
