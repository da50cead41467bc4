"""The recipes of examples/ run, at a small size, and show what they say they show."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from requirements import library

ROOT = Path(__file__).resolve().parent.parent


def recipe(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(f"recipe_{name}", ROOT / "examples" / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.libraries
@pytest.mark.filterwarnings("ignore")  # lightning's own, of loaders without workers and of torch
def test_lightning_trains_and_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    library("lightning")
    size = ["--epochs", "4", "--examples", "128", "--steps", "20", "--folder", str(tmp_path)]
    result = recipe("with_lightning").main(size)
    assert (tmp_path / "last.ckpt").is_file()
    assert (result["steps_before"], result["steps"]) == (8, 16), "the second trainer went on from the first"
    assert result["val_accuracy"] > 0.6


class Heard:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def begin(self, config: object) -> None:
        self.calls.append("begin")

    def log(self, values: dict[str, float], step: int) -> None:
        self.calls.append(str(step))

    def finish(self) -> None:
        self.calls.append("finish")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_plain_loop_learns_and_tells_its_callbacks(precision: str, tmp_path: Path) -> None:
    heard, log = Heard(), tmp_path / "log.jsonl"
    size = ["--updates", "12", "--steps", "20", "--precision", precision, "--log", str(log)]
    losses = recipe("plain_loop").main(size, [heard])
    assert losses[-1] < 0.8 * losses[0]
    assert heard.calls == ["begin", *map(str, range(12)), "finish"]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines[0]["config"]["updates"] == 12
    assert [line["loss"] for line in lines[1:]] == losses
    assert all(line["gradient_norm"] > 0 for line in lines[1:])


def test_torchrun_goes_on_from_a_checkpoint_with_or_without_shards(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    script = [str(ROOT / "examples" / "with_torchrun.py"), "--steps", "12", "--examples", "27"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    losses = []
    for options in (["--epochs", "2"], ["--epochs", "4", "--shard"]):
        whole = [*command, *script, *options, "--checkpoint", str(tmp_path / "kept")]
        result = subprocess.run(whole, env=environment, capture_output=True, text=True, timeout=300)
        # Not by its exit code: the threads of gloo abort one in ten interpreters that end.
        assert "2 processes" in result.stdout, result.stderr
        losses.append(float(result.stdout.split("loss ")[1]))
    assert "epochs 2 to 4" in result.stdout
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["0001", "0002", "0003", "0004"]
    assert losses[1] < losses[0]


def test_frames_of_events_are_learned_in_padded_batches() -> None:
    losses = recipe("event_frames").main(["--epochs", "4", "--examples", "96"])
    assert losses[-1] < losses[0]


def test_a_frame_counts_its_events() -> None:
    module = recipe("event_frames")
    frames, label = module.Spots(8)[3]
    assert label == 3
    assert frames.sum() == 12 * len(frames)
    padded, lengths, labels = module.padded([module.Spots(8)[index] for index in range(4)])
    assert padded.shape[:2] == (int(lengths.max()), 4)
    assert labels.tolist() == [0, 1, 2, 3]


@pytest.mark.libraries
@pytest.mark.filterwarnings("ignore")  # of libraries
@pytest.mark.parametrize("name", ["snntorch", "spikingjelly", "norse"])
def test_a_tutorial_is_converted_in_one_line(name: str) -> None:
    library(name)
    equal, first, last = recipe("library_tutorials").main(["--library", name, "--updates", "15"])[name]
    assert equal
    assert last < first
