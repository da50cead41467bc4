"""Every example runs, at a small size, and shows what it says it shows."""

import importlib.util
import re
import wave
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
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
    tested = {"spoken_digits", "make_spoken_digits", "evidence_accumulation", "own_neuron"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested


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


@pytest.mark.parametrize("extra", [[], ["--bptt"]])
def test_spoken_digits(recordings: Path, tmp_path: Path, extra: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "digits.npz"
    example("make_spoken_digits").main([str(recordings), str(data)])
    size = ["--data", str(data), "--epochs", "2", "--hidden", "12", "--batch", "8"]
    assert 0.0 <= example("spoken_digits").main([*size, *extra]) <= 1.0
    assert "epoch  2: test accuracy" in capsys.readouterr().out


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


def test_own_neuron(capsys: pytest.CaptureFixture[str]) -> None:
    assert example("own_neuron").main(["--steps", "60", "--batch", "8", "--hidden", "16"]) > 0.8
    out = capsys.readouterr().out
    assert "outputs equal bit for bit: True" in out
    assert "strength" in out
