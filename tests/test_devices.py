"""Training on a CUDA device: the values and gradients of the CPU, in every way to run a sequence.

Everything runs on the CPU as well, so that the tests themselves are known to work where there is no such device.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from test_compiled_scans import gradients
from torch import Tensor

import tracecompile
from tracecompile.bench.case import Job, open_case
from tracecompile.diagnostics.memory import live_state_bytes
from tracecompile.runtime.module import session_of

NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=NO_CUDA)]
WAYS: dict[str, Any] = {
    "eager": {"backend": "eager"},
    "chunks": {"backend": "eager", "chunk": 16},
    "inductor": {"backend": "inductor"},
}


def trained(network: str, device: str, way: str, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
    """Outputs and gradients of one sequence, moved to the CPU."""
    case = open_case(Job(network=network, steps=40, quick=True))
    model, x = copy.deepcopy(case.model).to(device, dtype), case.inputs[0].to(device, dtype)
    net = tracecompile.convert(model, x, bins=2, **WAYS[way])
    outputs = net(x)
    execution = net.report.execution
    assert execution is not None
    assert execution.obstacles == ()
    found = gradients(net, outputs)
    assert all(gradient.device.type == device for gradient in found.values())
    return outputs.detach().cpu(), {name: gradient.cpu() for name, gradient in found.items()}


COMPARED = [("chunks", "cpu"), *(pytest.param(way, "cuda", marks=NO_CUDA) for way in WAYS)]


@pytest.mark.parametrize(("way", "device"), COMPARED)
@pytest.mark.parametrize("network", ["dense", "recurrent", "convolutional"])
def test_a_device_computes_what_the_reference_computes(network: str, way: str, device: str) -> None:
    expected, theirs = trained(network, "cpu", "eager", torch.float64)
    found, ours = trained(network, device, way, torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)
    for name, gradient in theirs.items():
        assert gradient.norm() > 0
        assert (ours[name] - gradient).norm() <= 1e-7 * gradient.norm(), name


@pytest.mark.parametrize("device", DEVICES)
def test_bfloat16_autocast_accumulates_in_float32(device: str) -> None:
    case = open_case(Job(network="dense", steps=40, quick=True))
    model, x = copy.deepcopy(case.model).to(device), case.inputs[0].to(device)
    net = tracecompile.convert(model, x, bins=2, backend="eager", chunk=16)
    plain = gradients(net, net(x))
    with torch.autocast(device, torch.bfloat16):
        outputs = net(x)
        found = gradients(net, outputs)
    window = session_of(net).window
    assert window is not None
    sums = [row for trace in window.record.traces.values() for row in trace.rows if row is not None]
    assert sums
    assert {value.dtype for value in sums} == {torch.float32}
    for name, gradient in plain.items():
        assert torch.cosine_similarity(found[name].flatten(), gradient.flatten(), 0) > 0.9, name


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_held_on_a_device_does_not_depend_on_the_length(device: str) -> None:
    case = open_case(Job(network="recurrent", steps=8, quick=True))
    net = tracecompile.convert(copy.deepcopy(case.model).to(device), case.inputs[0].to(device), bins=2)
    held = []
    for steps in (40, 160):
        outputs = net(torch.rand(steps, 8, 32, device=device))
        held.append(live_state_bytes(net))
        outputs.sum().backward()
    assert held[0] == held[1] > 0
