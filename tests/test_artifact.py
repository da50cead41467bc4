"""A saved network comes back, also where the model's source cannot be imported, or says what is missing."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tracecompile
from tracecompile.artifact import load, save
from tracecompile.demo.network import DigitNet
from tracecompile.errors import InvalidInput
from tracecompile.targets import load_target

MODEL = """
from tracecompile.demo.network import DigitNet

class OwnNet(DigitNet):
    pass
"""


def spikes(steps: int) -> torch.Tensor:
    return (torch.rand(steps, 3, 64, generator=torch.Generator().manual_seed(0)) < 0.3).float()


def test_outputs_gradients_and_report_survive(tmp_path: Path) -> None:
    net = tracecompile.convert(DigitNet(hidden=16), spikes(8))
    save(net, tmp_path)
    again = load(tmp_path)
    assert torch.equal(net(spikes(30)), again(spikes(30)))
    for each in (net, again):
        each(spikes(30)).square().sum().backward()
    for (name, one), (other_name, other) in zip(net.named_parameters(), again.named_parameters(), strict=True):
        assert name == other_name
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad), name
    assert again.report == net.report
    assert again.stages == net.stages


def test_it_loads_in_a_process_that_cannot_import_the_model(tmp_path: Path) -> None:
    (tmp_path / "elsewhere_model.py").write_text(MODEL)
    model, _ = load_target(f"{tmp_path / 'elsewhere_model.py'}:OwnNet")
    save(tracecompile.convert(model, spikes(8)), tmp_path / "saved")
    (tmp_path / "elsewhere_model.py").unlink()
    command = [sys.executable, "-m", "tracecompile", "inspect", str(tmp_path / "saved")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "saved" / "source" / "elsewhere_model.py").unlink()
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert "elsewhere_model" in done.stderr
    assert "Traceback" not in done.stderr


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="not a folder written by"):
        load(tmp_path)


def test_a_network_that_is_not_captured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="not captured"):
        save(tracecompile.convert(DigitNet(hidden=4)), tmp_path / "saved")
