"""The command line: exit codes, what goes to stdout and what to stderr, every way to name a model."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import tracecompile
from tracecompile.cli import main
from tracecompile.example_inputs import choose_inputs, parse_shape
from tracecompile.targets import UsageError, load_target, random_inputs
from tracecompile.terminal import json_value

MODEL = """
import torch
from torch import nn
from tracecompile.nn import fast_sigmoid

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.readout = nn.Linear(6, 8), nn.Linear(8, 3)
        self.spike = fast_sigmoid(25.0)
        with torch.no_grad():
            self.weight.bias += 0.3

    def forward(self, x):
        v = x.new_zeros(x.shape[1], 8)
        s = x.new_zeros(x.shape[1], 8)
        total = x.new_zeros(x.shape[1], 3)
        for t in range(x.shape[0]):
            v = 0.9 * v + self.weight(x[t]) - s.detach()
            s = self.spike(v - 1.0)
            total = total + self.readout(s)
        return total

class Plain(nn.Linear):
    def __init__(self):
        super().__init__(6, 3)

def broken():
    raise KeyError("nothing here")

number = 3
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "cli_model.py"
    path.write_text(MODEL)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out, captured.err


def test_inspect_prints_a_report(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "inspect", f"{model}:Net", "--input", "20x4x6")
    assert (code, err) == (0, "")
    assert "weight.weight" in out
    assert "readout.bias" in out


def test_inspect_json_is_json_and_nothing_else(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "inspect", f"{model}:Net", "--input", "20x4x6", "--rule", "analytic", "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["rule"] == "analytic"
    assert set(report["parameters"]) == {"weight.weight", "weight.bias", "readout.weight", "readout.bias"}


def test_inspect_writes_html_and_stages(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, folder = tmp_path / "out" / "report.html", tmp_path / "stages"
    code, _, _ = run(capsys, "inspect", f"{model}:Net", "--input", "20x4x6", "--html", page, "--dump", folder)
    assert code == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert "weight.weight" in text
    assert "http" not in text
    stages = sorted(folder.iterdir())
    assert [stage.name[:3] for stage in stages] == [f"{number:02d}_" for number in range(len(stages))]
    assert len(stages) >= 6
    for stage in stages:
        compile(stage.read_text(encoding="utf-8"), stage.name, "exec")
    assert "\ndef run(model, " in stages[-1].read_text(encoding="utf-8")


def test_check_compares_gradients_memory_and_time(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "check", f"{model}:Net", "--input", "40x4x6", "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert {row["parameter"] for row in result["parameters"]} >= {"weight.weight", "readout.weight"}
    assert all(row["cosine"] > 0.5 for row in result["parameters"])
    assert 0 < result["converted"]["bytes"] < result["bptt"]["bytes"]
    assert result["converted"]["seconds"] > 0


def test_check_as_text_names_both_sides(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "check", f"{model}:Net", "--input", "20x4x6")
    assert code == 0
    assert "backpropagation through time" in out
    assert "worst" in out


def test_convert_saves_what_inspect_can_read(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "saved"
    code, out, _ = run(
        capsys, "convert", f"{model}:Net", "--input", "20x4x6", "-o", folder, "--half-life", 10, "--json"
    )
    assert code == 0
    assert json.loads(out)["output"] == str(folder)
    assert any(folder.glob("*.safetensors"))
    code, out, _ = run(capsys, "inspect", folder)
    assert code == 0
    assert "weight.weight" in out
    assert run(capsys, "check", folder)[0] == 2
    assert run(capsys, "convert", folder, "-o", tmp_path / "again")[0] == 2


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_are_loaded(model: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    net, _ = load_target(f"{model}:Net")
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(net.state_dict(), file)
    else:
        save_file(net.state_dict(), file)
    assert run(capsys, "inspect", f"{model}:Net", "--input", "20x4x6", "--weights", file)[0] == 0
    code, _, err = run(capsys, "inspect", f"{model}:Plain", "--input", "20x4x6", "--weights", file)
    assert code == 2
    assert "does not fit the model" in err


def test_a_refused_model_gives_1_and_no_traceback(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "inspect", f"{model}:Plain", "--input", "20x4x6")
    assert (code, out) == (1, "")
    assert err.startswith("tracecompile: ")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["inspect", "{model}:Net"], "--input"),
        (["inspect", "{model}:Missing", "--input", "20x4x6"], "has no 'Missing'"),
        (["inspect", "{model}:number", "--input", "20x4x6"], "is a int"),
        (["inspect", "torch.nn:Linear", "--input", "20x4x6"], "Name a function of your own that makes the model"),
        (["inspect", "{model}:broken", "--input", "20x4x6"], "KeyError"),
        (["inspect", "{model}", "--input", "20x4x6"], "no target"),
        (["inspect", "nowhere.py:Net", "--input", "20x4x6"], "no file nowhere.py"),
        (["inspect", "no_such_package:Net", "--input", "20x4x6"], "cannot be imported"),
        (["inspect", "{model}:Net", "--input", "20xfourx6"], "no shape"),
        (["inspect", "{model}:Net", "--input", "20x0x6"], "no shape"),
        (["inspect", "{model}:Net", "--input", "20x4x6", "--rule", "magic"], "magic"),
        (["inspect", "{model}:Net", "--input", "20x4x6", "--half-life", "0"], "half-life"),
        (["inspect", "{model}:Net", "--input", "20x4x6", "--weights", "no.pt"], "no file no.pt"),
        (["inspect", "{model}:Net", "--input", "20x4x6", "--weights", "."], "is a folder: --weights takes a file"),
        (["convert", "{model}:Net", "--input", "20x4x6"], "output"),
        (["convert", "{model}:Net", "--input", "20x4x6", "-o", "{model}"], "not a folder"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_wrong_usage_gives_2(model: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *(argument.replace("{model}", str(model)) for argument in arguments))
    assert (code, out) == (2, "")
    assert says in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["inspect", "{model}:Net", "--bins", "4", "--half-life", "10"], "--bins 4 --half-life 10"),
        (["check", "{model}:Net", "--bins", "1", "--half-life", "10"], "bins=1 has no meaning beside decay"),
        (["inspect", "{model}:Net", "--bins", "4", "--rule", "analytic"], "--rule analytic --bins 4"),
        (["convert", "{model}:Net", "--bins", "4", "--rule", "bptt", "-o", "{folder}/new"], "no time bins"),
        (["check", "{model}:Net", "--half-life", "10", "--rule", "bptt"], "keeps no traces"),
        (["inspect", "{model}:Net", "--half-life", "inf"], "--half-life inf"),
        (["inspect", "{model}:Net", "--half-life", "nan"], "half-life"),
        (["inspect", "{model}:Net", "--bins", "0"], "--bins"),
        (["inspect", "{model}:Net", "--input", "999999999x99999999x6"], "no tensor for --input"),
        (["inspect", "{folder}/broken.py:Net"], "SyntaxError"),
        (["inspect", "{folder}/script.py:Net"], "SystemExit"),
        (["inspect", "{model}:stopping"], "SystemExit"),
        (["inspect", "{model}:Net", "--weights", "{folder}/script.py"], "reading it might run code"),
        (["inspect", "{model}:Net", "--weights", "{folder}/empty.pt"], "empty.pt is empty: give"),
        (["inspect", "{folder}"], "not a folder that tracecompile convert wrote"),
        (["convert", "{model}:Net", "-o", "{folder}"], "broken.py, which save has not written"),
        (["bench", "--input", "20x4x6"], "TARGET"),
        (["bench", "{model}:Net", "--memory-limit", "nan"], "memory-limit"),
        (["bench", "{model}:Net", "--device", "tpu"], "no device 'tpu'"),
        (["bench", "{model}:Net", "--device", "cuda:99"], "no device 'cuda:99'"),
    ],
    ids=str,
)
def test_options_that_mean_nothing_give_2(
    model: Path, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model.write_text(
        MODEL + "\ndef example_inputs():\n    return torch.ones(5, 2, 6)\n\ndef stopping():\n    exit(1)\n"
    )
    (model.parent / "broken.py").write_text("class Net(:\n")
    (model.parent / "empty.pt").touch()
    (model.parent / "script.py").write_text("import sys\nsys.exit(0)\n")
    before = sorted(model.parent.iterdir())
    places = {"{model}": str(model), "{folder}": str(model.parent)}
    for name, place in places.items():
        arguments = [argument.replace(name, place) for argument in arguments]
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert says in err.replace("\n", " ")
    assert "Traceback" not in err
    assert sorted(entry for entry in model.parent.iterdir() if entry.name != "__pycache__") == before


def test_options_say_nothing_of_what_is_converted(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "saved"
    assert run(capsys, "convert", f"{model}:Net", "--input", "20x4x6", "-o", saved)[0] == 0
    for options in (["--bins", "2"], ["--rule", "bptt"], ["--input", "20x4x6"], ["--half-life", "3"]):
        code, out, err = run(capsys, "inspect", saved, *options)
        assert (code, out) == (2, ""), options
        assert "converted already" in err


def test_a_busy_folder_is_left_alone(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ("convert", f"{model}:Net", "--input", "20x4x6", "-o")
    folder = tmp_path / "thesis"
    (folder / "figures").mkdir(parents=True)
    (folder / "chapter.txt").write_text("mine")
    code, _, err = run(capsys, *line, folder)
    assert code == 2
    assert "--force" in err
    assert {entry.name for entry in folder.iterdir()} == {"figures", "chapter.txt"}
    assert run(capsys, *line, folder, "--force")[0] == 0
    assert (folder / "chapter.txt").read_text() == "mine"
    assert (folder / "figures").is_dir()
    (tmp_path / "empty").mkdir()
    assert run(capsys, *line, tmp_path / "empty")[0] == 0
    assert run(capsys, *line, tmp_path / "empty", "--bins", "2")[0] == 0, "over an earlier version"
    _, out, _ = run(capsys, "inspect", tmp_path / "empty")
    assert "2 time bins" in out


def test_force_overwrites_nothing_of_the_users(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "module.py").write_text("mine")
    code, _, err = run(capsys, "convert", f"{model}:Net", "--input", "20x4x6", "-o", folder, "--force")
    assert code == 2
    assert "module.py" in err
    assert [(entry.name, entry.read_text()) for entry in folder.iterdir()] == [("module.py", "mine")]


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "--version")
    assert (code, out, err) == (0, f"tracecompile {tracecompile.__version__}\n", "")


@pytest.mark.parametrize("command", ["", "convert", "inspect", "check", "bench", "demo"])
def test_help_ends_in_a_line_that_can_be_typed(
    command: str, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [command] if command else []
    code, out, err = run(capsys, *words, "--help")
    assert (code, err) == (0, "")
    assert run(capsys, *words, "-h") == (0, out, "")
    before, example = out.strip().split("Example:")
    assert f"Usage: tracecompile {command}".rstrip() in before
    program, *typed = shlex.split(example)
    assert program == "tracecompile"
    assert typed[0] == (command or "inspect")
    if command in ("bench", "demo"):
        return  # they run for seconds; test_bench and test_demo call them
    monkeypatch.chdir(model.parent)
    model.with_name("model.py").write_text(MODEL.replace("6, 8", "40, 8"))
    assert run(capsys, *typed)[0] == 0


def test_json_has_no_numbers_that_json_does_not_know() -> None:
    found = json_value({"a": [float("nan"), 1.5, (float("inf"), -float("inf"))], "b": {"c": float("nan"), "d": True}})
    assert found == {"a": [None, 1.5, [None, None]], "b": {"c": None, "d": True}}
    json.dumps(found, allow_nan=False)


def test_as_a_module_in_a_pipe_it_is_silent_on_stderr(model: Path) -> None:
    command = [sys.executable, "-m", "tracecompile", "inspect", f"{model}:Net", "--input", "20x4x6", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["layers"]


def test_a_dotted_module_is_imported_from_the_working_folder(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    monkeypatch.setattr(sys, "path", list(sys.path))
    net, _ = load_target("cli_model:Net")
    assert type(net).__name__ == "Net"


def test_example_inputs_next_to_the_model_are_used(model: Path) -> None:
    model.write_text(MODEL + "\ndef example_inputs():\n    return torch.ones(5, 2, 6)\n")
    _, module = load_target(f"{model}:Net")
    (inputs,) = choose_inputs(None, module)
    assert inputs.shape == (5, 2, 6)
    (inputs,) = choose_inputs("7x2x6", module)
    assert inputs.shape == (7, 2, 6)
    model.write_text(MODEL + "\ndef example_inputs():\n    return 5\n")
    with pytest.raises(UsageError, match="must return a tensor"):
        choose_inputs(None, load_target(f"{model}:Net")[1])


def test_shapes_and_random_inputs() -> None:
    assert parse_shape("100x32X40") == (100, 32, 40)
    (first,) = random_inputs([(50, 20, 10)])
    assert first.unique().tolist() == [0.0, 1.0]
    assert 0.27 < first.mean() < 0.33
    assert torch.equal(first, random_inputs([(50, 20, 10)])[0])
    assert not torch.equal(first, random_inputs([(50, 20, 10)], seed=1)[0])
