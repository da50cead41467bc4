"""Every example runs, at a small size, and shows what it says it shows."""

import importlib.util
import json
import re
import sys
import wave
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from requirements import library

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # where dataclasses look for it
    specification.loader.exec_module(module)
    return module


def write_tone(path: Path, frequency: float, rate: int = 8000) -> None:
    seconds = np.arange(int(0.6 * rate)) / rate
    samples = (8000 * np.sin(2 * np.pi * frequency * seconds)).astype("<i2")
    with wave.open(str(path), "wb") as recording:
        recording.setnchannels(1)
        recording.setsampwidth(2)
        recording.setframerate(rate)
        recording.writeframes(samples.tobytes())


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    folder = tmp_path / "recordings"
    folder.mkdir()
    for digit in range(4):
        for take in range(3, 9):
            write_tone(folder / f"{digit}_anna_{take}.wav", 300.0 * 2**digit)
    write_tone(folder / "0_ben_5.wav", 300.0)
    (folder / "notes.txt").write_text("not a recording")
    return folder


def test_every_example_is_tested() -> None:
    tested = {
        "spoken_digits",
        "spoken_digits_table",
        "make_spoken_digits",
        "evidence_accumulation",
        "own_neuron",
        "fidelity",
    }
    tested |= {"long_memory", "long_memory_results", "ragged", "norms_fidelity", "images_from_scratch"}
    tested |= {"fidelity_networks", "fidelity_baselines"}  # parts of fidelity.py
    tested |= {"with_lightning", "plain_loop", "with_torchrun", "event_frames", "library_tutorials"}  # test_recipes.py
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested


def test_ragged_batches_are_trained_as_single_recordings(capsys: pytest.CaptureFixture[str]) -> None:
    results = example("ragged").main(["--batches", "15", "--batch", "16", "--hidden", "24"])
    assert set(results) == {"mean", "last", "each"}
    assert min(results.values()) > 0.6  # a guess is right in a quarter
    assert capsys.readouterr().out.count("as if it were alone: True") == 3


def test_recordings_become_features(recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "digits.npz"
    assert example("make_spoken_digits").main([str(recordings), str(output)]) == 25
    assert "2 speakers (anna, ben)" in capsys.readouterr().out
    with np.load(output) as data:
        features, digits = data["features"], data["digit"]
        assert np.bincount(data["speaker"]).tolist() == [24, 1]
        assert data["take"].max() == 8
    assert features.dtype == np.uint8
    assert features.shape == (25, 100, 40)
    assert features.max() == 255
    assert not features[:, 70:].any(), "silence after the recording must stay silent"
    loudest = [features[digits == digit][:, 10:50].mean(axis=(0, 1)).argmax() for digit in range(4)]
    assert loudest == sorted(set(loudest)), "a higher tone must be heard in a higher channel"


def test_a_recording_of_another_rate_is_refused(tmp_path: Path) -> None:
    write_tone(tmp_path / "1_anna_0.wav", 300.0, rate=16000)
    with pytest.raises(ValueError, match="8000 Hz"):
        example("make_spoken_digits").main([str(tmp_path), str(tmp_path / "digits.npz")])


RULES = (
    ["bptt"],
    ["exact"],
    ["measured", "--bins", "2"],
    ["truncated", "--window", "40"],
    ["truncated", "--window", "100"],
)


def test_spoken_digits(
    recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "digits.npz"
    example("make_spoken_digits").main([str(recordings), str(data)])
    size = ["--data", str(data), "--epochs", "2", "--hidden", "12", "--batch", "8", "--backend", "eager"]
    written = [tmp_path / f"{number}.json" for number in range(len(RULES))]
    for rule, path in zip(RULES, written, strict=True):
        run = example("spoken_digits").main([*size, "--rule", *rule, "--json", str(path)])
        assert len(run.losses) == 6
        assert len(run.accuracies) == 2
    out = capsys.readouterr().out
    assert out.count("epoch  2: test accuracy") == len(RULES)
    assert "update  6: loss" in out
    monkeypatch.syspath_prepend(str(EXAMPLES))  # it imports what a run is from its own folder
    table = example("spoken_digits_table").main([str(path) for path in written])
    rows = {cells[1]: cells for line in table.splitlines()[2:] if (cells := [part.strip() for part in line.split("|")])}
    assert list(rows) == ["bptt", "exact", "measured, bins=2", "truncated, 40 steps", "truncated, 100 steps"]
    apart = {rule: float(cells[5]) for rule, cells in rows.items() if rule != "bptt"}
    assert apart["exact"] < 1e-5
    assert apart["truncated, 100 steps"] < 1e-5, "one window is the whole sequence"
    assert apart["measured, bins=2"] > 1e-5
    assert apart["truncated, 40 steps"] > 1e-5
    held = {rule: float(cells[6].split()[0]) for rule, cells in rows.items()}
    assert held["exact"] < held["bptt"]


def test_spoken_digits_without_data_says_how_to_get_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert example("spoken_digits").main([]) is None
    assert "git clone" in capsys.readouterr().out


def test_evidence_accumulation(capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--steps", "400", "--rounds", "3", "--batch", "32", "--hidden", "8", "--segment", "50"]
    before, after = example("evidence_accumulation").main(size)
    assert 0.0 <= before <= 1.0
    assert after > before
    held = re.findall(r"([\d.]+ kB) of state", capsys.readouterr().out)
    assert len(held) == 3
    assert len(set(held)) == 1


def test_long_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))  # it imports its results from its own folder
    picture, written = tmp_path / "learnt.png", tmp_path / "learnt.json"
    size = ["--steps", "100,150", "--rounds", "2", "--every", "1", "--batch", "4", "--tested", "8"]
    rows = example("long_memory").main([*size, "--output", str(picture), "--json", str(written)])
    held = {(row.rule, row.steps): row.held for row in rows}
    assert len(held) == 10
    assert held["bptt", 150] > 1.3 * held["bptt", 100], "a graph over time grows"
    assert all(held[rule, 150] == held[rule, 100] for rule in ("measured, K=4", "measured, K=16"))
    # Under the exact rule snapshots are added until there are as many as it keeps.
    assert held["exact", 150] < 0.2 * held["bptt", 150]
    exact, through_time = (next(row for row in rows if row.rule == rule) for rule in ("exact", "bptt"))
    assert exact.correct == through_time.correct, "they have learnt the same"
    assert capsys.readouterr().out.count("| 150 |") == 5
    assert picture.stat().st_size > 5000
    again = tmp_path / "again.png"
    read = example("long_memory_results").main([str(written), "--output", str(again)])
    assert [vars(row) for row in read] == [vars(row) for row in rows]
    assert again.read_bytes() == picture.read_bytes()


def test_long_memory_ends_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    size = ["--steps", "80", "--rules", "bptt", "--batch", "4", "--tested", "8", "--longest", "0"]
    (row,) = example("long_memory").main(size)
    assert list(row.correct) == [1]


def test_own_neuron(capsys: pytest.CaptureFixture[str]) -> None:
    assert example("own_neuron").main(["--steps", "60", "--batch", "8", "--hidden", "16"]) > 0.8
    out = capsys.readouterr().out
    assert "outputs equal bit for bit: True" in out
    assert "strength" in out


@pytest.fixture
def fidelity(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))  # it imports its parts from its own folder
    return example("fidelity")


def write_speech(path: Path, frames: int = 12) -> Path:
    generator = np.random.default_rng(0)
    digit = np.tile(np.arange(10, dtype=np.uint8), 6)
    features = generator.integers(0, 100, (60, frames, 40), dtype=np.uint8)
    for index, channel in enumerate(digit):
        features[index, :, 4 * channel : 4 * channel + 4] = 220
    np.savez(path, features=features, digit=digit, take=np.repeat(np.arange(2, 8, dtype=np.uint8), 10))
    return path


def write_images(path: Path) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(40, dtype=np.uint8) % 10)
    return path


SMALL = ["--hidden", "16", "--batch", "10"]


def test_fidelity_of_gradients(fidelity: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", str(write_speech(tmp_path / "speech.npz")), "--mnist", str(write_images(tmp_path / "images.npz"))]
    speech = ["--networks", "1", "--batches", "2", "--before", "5", "--bins", "1", "3", "12", "--loss-bins", "12"]
    images = ["--steps", "10", "--image-bins", "1", "10", "--image-updates", "3", "--layers", "3"]
    written = tmp_path / "tables.json"
    tables = fidelity.main([*data, *SMALL, *speech, *images, "--verbose", "--json", str(written)])
    assert json.loads(written.read_text()) == tables
    assert [row["bins"] for row in tables["speech"]] == [*2 * [1, 3, 12, 12, 12], 1, 3, 12, 12]
    assert [row["bins"] for row in tables["images"]] == 2 * [1, 10]
    for row in [*tables["speech"], *tables["images"]]:
        assert len(row["parameters"]) == (8 if "loss" in row else 6)
        assert row["single"] <= row["cosine"]
        if row["bins"] == row.get("steps", 12):  # a bin for every step: backpropagation through time itself
            assert row["single"] > 0.9999
            assert 0.999 < row["low"] <= row["high"] < 1.001
        else:
            assert -1.0 <= row["cosine"] < 0.9999
    out = capsys.readouterr().out
    assert "layer1.lateral.weight" in out
    assert "in graph" in out


def test_fidelity_in_training(fidelity: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", str(write_speech(tmp_path / "speech.npz"))]
    tables = fidelity.main([*data, *SMALL, "--train", "--seeds", "2", "--epochs", "1"])
    accuracies = {row["rule"]: row["accuracies"] for row in tables["training"]}
    assert len(accuracies) == 7
    assert all(len(values) == 2 for values in accuracies.values())
    assert "online through time" in capsys.readouterr().out


def test_fidelity_without_data_says_how_to_use_it(fidelity: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert fidelity.main([]) == {}
    assert "--data" in capsys.readouterr().out


def test_the_rules_that_training_is_compared_with(fidelity: ModuleType) -> None:
    torch.manual_seed(0)
    model, spikes = fidelity.RecurrentNet(16), torch.rand(30, 4, 40).round()
    labels = torch.tensor([0, 3, 7, 9])
    parameters = list(model.parameters())

    def gradients(scores: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(fidelity.loss_of(scores, labels), parameters))

    expected = gradients(model(spikes))
    assert torch.equal(fidelity.online(model, spikes), model(spikes))
    assert torch.equal(fidelity.truncated(model, spikes), model(spikes))
    for whole, reference in zip(gradients(fidelity.truncated(model, spikes, 30)), expected, strict=True):
        torch.testing.assert_close(whole, reference)
    assert not torch.allclose(gradients(fidelity.truncated(model, spikes, 10))[0], expected[0])
    names = [name for name, _ in model.named_parameters()]
    online = dict(zip(names, gradients(fidelity.online(model, spikes)), strict=True))
    weight, lateral = online_by_hand(fidelity, model, spikes, labels)
    torch.testing.assert_close(online["input2.weight"], weight)
    torch.testing.assert_close(online["layer2.lateral.weight"], lateral)


def online_by_hand(
    fidelity: ModuleType, model: torch.nn.Module, spikes: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The formula, for the second layer: the sum over time of (signal * slope) outer trace."""
    scores = model(spikes).detach().requires_grad_()
    (signal,) = torch.autograd.grad(fidelity.loss_of(scores, labels), scores)
    signal = signal @ model.output.weight.detach()
    below = above = None
    trace, own, membrane, fired = (torch.zeros(spikes.shape[1], 16) for _ in range(4))
    weight, lateral = torch.zeros(16, 16), torch.zeros(16, 16)
    with torch.no_grad():
        for step, x in enumerate(spikes):
            arriving, below = model.layer1(model.input1(x), below)
            trace, own = 0.95 * trace + arriving, 0.95 * own + fired
            current = model.input2(arriving)
            distance = 0.95 * membrane + current + model.layer2.lateral(fired) - 1.0
            local = signal[step] / (1 + 25 * distance.abs()) ** 2
            weight, lateral = weight + local.T @ trace, lateral + local.T @ own
            fired, above = model.layer2(current, above)
            membrane = above.membrane
    return weight, lateral


def test_fidelity_of_normalised_networks(capsys: pytest.CaptureFixture[str]) -> None:
    found = example("norms_fidelity").main(["--quick"])
    assert [row["norm"] for row in found] == ["batch", "layer", "maximum", "attention"]
    expected = [{"conv1.weight", "norm1.weight", "norm1.bias"}] * 2 + [{"conv1.bias"}, {"qkv.weight", "norm_qkv.bias"}]
    for row, names in zip(found, expected, strict=True):  # of a bin per step: backpropagation through time
        assert set(row["parameters"]) >= names | {"readout.weight"}
        assert all(abs(cosine - 1) < 1e-3 > abs(ratio - 1) for cosine, ratio in row["parameters"].values())
    assert capsys.readouterr().out.count("K = 8") == 4


def test_images_from_scratch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images_from_scratch = example("images_from_scratch")
    found = images_from_scratch.main(["--quick", "--methods", "bptt", "bins=4", "exact"])
    assert [row["net"] for row in found] == ["conv"] * 3 + ["transformer"] * 3
    for through_time, four, exact in (found[:3], found[3:]):
        for row in (four, exact):  # of four steps: each has a bin
            assert row["cosine"] == pytest.approx(1.0, abs=1e-5)
            assert row["training"] == pytest.approx(through_time["training"], abs=4.0)
        assert exact["held"] < through_time["held"]
    assert len(re.findall(r"^\| (?:conv|transformer) \|", capsys.readouterr().out, re.MULTILINE)) == 6
    images, labels = images_from_scratch.load(write_images(tmp_path / "images.npz"))
    assert images.shape == (40, 1, 8, 8)
    assert 0.9 < images.max() <= 1.0
    assert labels.bincount().tolist() == [4] * 10


@pytest.mark.libraries
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("mode", "rows"), [("s", ("checkpoint", "memopt", "exact")), ("m", ("checkpoint", "bins=4"))])
def test_all_rows_of_the_deep_benchmark_have_the_same_gradient(mode: str, rows: tuple[str, ...]) -> None:
    """With a bin per step that of the measured rule too."""
    library("spikingjelly.activation_based.memopt")
    deep = example("benchmarks/deep")
    gradients = {}
    for row in ("bptt", *rows):
        model, step = deep.made(row, mode, 3, 4, 16)
        step()
        # memopt and the segments wrap layers, which keeps the order of their parameters
        gradients[row] = [parameter.grad for parameter in model.parameters()]
    assert sum(bool(gradient.any()) for gradient in gradients["bptt"]) > 40
    for row in rows:
        for one, other in zip(gradients[row], gradients["bptt"], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * other.abs().max().item() + 1e-7)


@pytest.mark.libraries
def test_the_deep_benchmark_prints_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    library("spikingjelly.activation_based.memopt")
    example("benchmarks/deep").main(["--quick", "--mode", "m", "--rows", "bptt", "checkpoint"])
    assert re.findall(r"T = (\d+) .*?(bptt|checkpoint) .* MB", capsys.readouterr().out) == [
        ("2", "bptt"), ("2", "checkpoint"), ("6", "bptt"), ("6", "checkpoint")
    ]  # fmt: skip


@pytest.mark.libraries
@pytest.mark.filterwarnings("ignore")
def test_the_deep_benchmark_compares_gradients(capsys: pytest.CaptureFixture[str]) -> None:
    """With a bin per step they are the same; a conversion sees a net that is in training."""
    library("spikingjelly.activation_based.memopt")
    arguments = ["--fidelity", "--mode", "s", "--steps", "3", "--width", "4", "--side", "16"]
    example("benchmarks/deep").main(arguments)
    assert "T = 3    1.000, median 1.000; 1.00 - 1.00" in capsys.readouterr().out
