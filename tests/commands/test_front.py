"""The front of the command line: help, completion, bounds, inputs, weights, files that are whole or not there."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch

import tracecompile
from commands.schemas import CHECK, CONVERT, REPORT
from tracecompile.cli import COMMANDS, main
from tracecompile.example_inputs import choose_inputs
from tracecompile.files import written_whole
from tracecompile.targets import UsageError, load_target
from tracecompile.weights import load_weights

MODEL = """
import torch, time
from torch import nn
import tracecompile.nn as snn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.layer, self.readout = nn.Linear(6, 8), snn.RLIF(8), nn.Linear(8, 3)

    def forward(self, x):
        state, total = None, 0.0
        for x_t in x:
            z, state = self.layer(3 * self.weight(x_t), state)
            total = total + self.readout(z)
        return total

def make():
    return torch.ones(5, 2, 6)
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "front_model.py"
    path.write_text(MODEL)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out, captured.err


@pytest.mark.parametrize("command", ["", *(command.__name__ for command, _ in COMMANDS)])
def test_every_help_fits_a_screen(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run(capsys, *([command] if command else []), "-h")
    assert code == 0
    assert len(out.splitlines()) <= 32
    assert "..." not in out.replace("[ARGS]...", "")
    assert not re.search(r"^  -.*<\S+>", out, re.MULTILINE), "a placeholder of another style"
    assert max(map(len, out.splitlines())) <= 80
    assert out.count("Example: tracecompile ") == 1
    assert out.isascii()


def test_json_is_what_the_schemas_say(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = (f"{model}:Net", "--input", "20x4x6", "--json")
    printed = {
        "inspect": (run(capsys, "inspect", *common), REPORT),
        "convert": (run(capsys, "convert", *common, "-o", tmp_path / "saved"), CONVERT),
        "check": (run(capsys, "check", *common, "--half-life", 5, "--backend", "eager"), CHECK),
    }
    for (code, out, err), schema in printed.values():
        assert (code, err) == (0, "")
        jsonschema.validate(json.loads(out), schema)
    rows = json.loads(printed["check"][0][1])["variants"]["rows"]
    assert [row["name"] for row in rows if row["asked"]] == ["decay=0.8706"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**json.loads(printed["inspect"][0][1]), "more": 1}, REPORT)


def test_completion_knows_commands_and_values() -> None:
    found = []
    for words in ("tracecompile ch", "tracecompile check --rule ex"):
        number = str(len(words.split()) - 1)
        given = {"_TRACECOMPILE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": number}
        command = [sys.executable, "-m", "tracecompile"]
        done = subprocess.run(command, env=os.environ | given, capture_output=True, text=True, check=False, timeout=120)
        found.append(done.stdout.split())
    assert found == [["check"], ["exact"]]


def test_a_bound_that_does_not_hold_gives_3(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ("check", f"{model}:Net", "--input", "30x4x6", "--backend", "eager", "--seed", 1, "--json", "--min-cosine")
    code, out, err = run(capsys, *line, 1)
    assert code == 3
    below = json.loads(out)["bound"]["below"]
    assert below
    assert all(name in err for name in below)
    code, out, err = run(capsys, *line, -1)
    assert (code, err) == (0, "")
    assert json.loads(out)["bound"] == {"min_cosine": -1.0, "below": []}
    assert run(capsys, *line, "nan")[0] == run(capsys, *line, 2)[0] == 2


def test_inputs_of_every_kind(model: Path, tmp_path: Path) -> None:
    _, module = load_target(f"{model}:Net")
    np.save(tmp_path / "x.npy", np.full((4, 2, 6), 0.5))
    np.savez(tmp_path / "xs.npz", b=np.ones((3, 2)), a=np.arange(3))
    (x,) = choose_inputs(str(tmp_path / "x.npy"), module)
    assert (x.dtype, x.shape) == (torch.float32, (4, 2, 6))
    first, second = choose_inputs(str(tmp_path / "xs.npz"), module)
    assert (first.shape, second.tolist()) == ((3, 2), [0, 1, 2])
    one, two = choose_inputs(f"{model}:make, 7x2x6", module)
    assert (one.shape, two.shape) == ((5, 2, 6), (7, 2, 6))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-20])
    np.save(tmp_path / "objects.npy", np.array([Mark(tmp_path / "ran")], dtype=object), allow_pickle=True)
    for bad in ("cut.npy", "objects.npy", "missing.npz"):
        with pytest.raises(UsageError, match=bad):
            choose_inputs(str(tmp_path / bad), module)
    with pytest.raises(UsageError, match="Did you mean make"):
        choose_inputs(f"{model}:mak", module)
    assert not (tmp_path / "ran").exists()


class Mark:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def spoilt(path: Path, model: torch.nn.Module) -> dict[Path, str]:
    """Writes weights of every bad kind; returns them with what an error has to say."""
    torch.save({"weight.weight": torch.ones(2), "bad": Mark(path / "ran")}, path / "code.pt")
    (path / "plain.pt").write_bytes(pickle.dumps(Mark(path / "ran"), protocol=2))
    torch.save(model.state_dict(), path / "whole.pt")
    (path / "cut.pt").write_bytes((path / "whole.pt").read_bytes()[:500])
    (path / "empty.pt").write_bytes(b"")
    (path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    torch.save({name: torch.ones(2) for name in model.state_dict()}, path / "shapes.pt")
    torch.save({"epoch": 3, "state_dict": model.state_dict()}, path / "checkpoint.pt")
    torch.save(torch.ones(3), path / "tensor.pt")
    says = {"code.pt": "run", "plain.pt": "run", "cut.pt": "cannot be read", "empty.pt": "is empty"}
    says |= {"shapes.pt": "size mismatch", "checkpoint.pt": "state_dict", "tensor.pt": "not a state dict"}
    says |= {"cut.safetensors": "safetensors"}
    return {path / name: text for name, text in says.items()}


def test_bad_weights_give_a_clear_error_and_run_nothing(model: Path, tmp_path: Path) -> None:
    net, _ = load_target(f"{model}:Net")
    for path, says in spoilt(tmp_path, net).items():
        with pytest.raises(UsageError, match=says) as caught:
            load_weights(net, path)
        assert path.name in str(caught.value)
        assert len(str(caught.value)) < 900
    for name in ("code", "plain"):
        with pytest.raises(UsageError, match="nothing of it was run"):
            load_weights(net, tmp_path / f"{name}.pt")
    assert not (tmp_path / "ran").exists()
    pickle.loads((tmp_path / "plain.pt").read_bytes())
    assert (tmp_path / "ran").exists(), "the check above could not have failed"


def test_a_dump_writes_into_nobody_elses_folder(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ("inspect", f"{model}:Net", "--input", "20x4x6", "--dump", tmp_path / "dump")
    (tmp_path / "dump").mkdir()
    (tmp_path / "dump" / "mine.txt").write_text("mine")
    code, _, err = run(capsys, *line)
    assert code == 2
    assert "mine.txt" in err
    assert run(capsys, *line, "--force")[0] == 0
    assert (tmp_path / "dump" / "mine.txt").read_text() == "mine"
    (tmp_path / "dump" / "mine.txt").unlink()
    (tmp_path / "dump" / "99_stale.py").write_text("# Net after stale\n")
    assert run(capsys, *line)[0] == 0, "over an earlier dump"
    assert not (tmp_path / "dump" / "99_stale.py").exists()
    assert run(capsys, *line[:-2], "--html", model)[0] == 2
    assert model.read_text() == MODEL


def test_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    def cut() -> None:
        with written_whole(tmp_path / "new" / "a", tmp_path / "b") as (first, _):
            first.write_text("half")
            raise KeyboardInterrupt

    (tmp_path / "b").write_text("earlier")
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / ".b.part").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeyboardInterrupt):
        cut()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["b", "elsewhere"]
    (tmp_path / ".b.part").symlink_to(tmp_path / "elsewhere")
    with written_whole(tmp_path / "new" / "a", tmp_path / "b") as parts:
        for part in parts:
            part.write_text("whole")
    assert [(tmp_path / name).read_text() for name in ("new/a", "b", "elsewhere")] == ["whole", "whole", "mine"]


SLOW = """
import sys, time
from pathlib import Path
import tracecompile.saving.folder as folder
write = folder.save_file
def slow(weights, path):
    write(weights, path)
    Path(sys.argv.pop()).touch()
    time.sleep(60)
folder.save_file = slow
from tracecompile.cli import main
main(sys.argv[1:-1])
"""


def test_ctrl_c_leaves_nothing_half_written(model: Path, tmp_path: Path) -> None:
    arguments = ["convert", f"{model}:Net", "--input", "20x4x6", "-o", str(tmp_path / "saved"), str(tmp_path / "now")]
    # A run in the background hands on that interrupts are ignored: a terminal does not.
    command = [sys.executable, "-c", f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{SLOW}"]
    with subprocess.Popen([*command, *arguments], stdout=-1, stderr=-1, text=True) as process:
        try:
            until = time.monotonic() + 120
            while not (tmp_path / "now").exists() and process.poll() is None and time.monotonic() < until:
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert out == ""
    assert not (tmp_path / "saved").exists()


def nested(folder: Path) -> None:
    (folder / "program.json").write_text("[" * 200_000)


def empty(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(b"")


def third(name: str) -> Callable[[Path], Any]:
    def cut(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 3])

    return cut


FILES = ("program.json", "weights.safetensors", "report.json", "module.py")
SPOILT: dict[str, Callable[[Path], Any]] = {"nested": nested}
SPOILT |= {f"empty {name}": empty(name) for name in FILES} | {f"a third of {name}": third(name) for name in FILES}


def test_a_broken_folder_is_one_clear_error(model: Path, tmp_path: Path) -> None:
    net = tracecompile.convert(load_target(f"{model}:Net")[0], torch.ones(20, 4, 6), backend="eager")
    for name, spoil in SPOILT.items():
        folder = tmp_path / name
        tracecompile.save(net, folder)
        spoil(folder)
        before = sorted(folder.iterdir())
        with pytest.raises(tracecompile.ConversionError):
            tracecompile.load(folder, weights_only=True)
        assert sorted(folder.iterdir()) == before, name


def test_in_a_pipe_there_are_no_control_characters(model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tracecompile"]
    for words in (["inspect", f"{model}:Net", "--input", "20x4x6"], ["inspect", "--no-such-option"]):
        done = subprocess.run([*command, *words], capture_output=True, text=True, check=False, timeout=120)
        assert "\x1b" not in done.stdout + done.stderr
        assert "\r" not in done.stdout + done.stderr
