"""A training step does not wait for its device but where it has to: once for each unit of layers, when it begins.

Without a CUDA device, what would wait there is known by the places in the package that read values.
"""

from __future__ import annotations

import copy
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import tracecompile
from tracecompile.bench.case import Job, open_case
from tracecompile.diagnostics.check import projection_loss
from tracecompile.rules.written import equal_at_once
from tracecompile.runtime.engine.traced import agree, agree_at_once
from tracecompile.runtime.replay import buffers_kept

NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
PACKAGE = str(Path(tracecompile.__file__).parent)
WARM_UP = 6
READS = {
    *(torch.tensor, torch.as_tensor, torch.from_numpy, torch.equal, torch.allclose, torch.nonzero, torch.unique),
    *(Tensor.new_tensor, Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.equal, Tensor.allclose),
    *(Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.__index__, Tensor.nonzero, Tensor.masked_select),
    *(torch.masked_select, torch.repeat_interleave, Tensor.repeat_interleave, torch.is_nonzero),
}
CPU_ALONE = {"checked", "_drop_faded", "__init__", "placed"}
"""Functions that ask a CPU at once what a CUDA device is asked for later, or never (``Later`` is one), or hand
it numbers without waiting (``placed``)."""
COMPARISONS = {"agree", "_same"}
"""Those that compare what is written down or compiled with the model as it is now, once a unit in every sequence."""
WAYS: dict[str, dict[str, Any]] = {
    "eager": {"bins": 4, "backend": "eager"},
    "chunks": {"bins": 4, "backend": "eager", "chunk": 16},
    "inductor": {"bins": 4, "backend": "inductor"},
    "exact": {"rule": "exact", "backend": "eager"},
    "analytic": {"rule": "analytic", "backend": "eager"},
    "bptt": {"rule": "bptt", "backend": "eager"},
}
WITHOUT = {"exact", "analytic", "bptt"}
"""Ways that have nothing to compare, and wait for nothing."""


class Readers(TorchFunctionMode):
    """Takes down which functions of the package read values of tensors, or make tensors of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS:
            inside = [frame.name for frame in traceback.extract_stack() if frame.filename.startswith(PACKAGE)]
            self.found.add(next(name for name in reversed(inside) if not name.startswith("<")))
        return func(*args, **(kwargs or {}))


def training_step(network: str, way: str, device: str) -> Callable[[], None]:
    case = open_case(Job(network=network, steps=70, quick=True, device=device))
    model, (x,) = copy.deepcopy(case.model), case.inputs
    net = tracecompile.convert(model, x, **WAYS[way])

    def step() -> None:
        model.zero_grad()
        projection_loss(net(x)).backward()

    for _ in range(WARM_UP):
        step()
    return step


CASES = [(network, way) for network in ("recurrent", "convolutional") for way in WAYS]


@pytest.mark.parametrize(("network", "way"), [case for case in CASES if case != ("convolutional", "inductor")])
def test_a_step_reads_values_where_it_compares_alone(network: str, way: str) -> None:
    step = training_step(network, way, "cpu")
    with Readers() as readers:
        step()
    assert readers.found <= CPU_ALONE | {"buffers_kept"} | (set() if way in WITHOUT else COMPARISONS)
    assert "checked" in readers.found, "nothing was taken down"


@NO_CUDA
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("network", ["dense", "recurrent", "convolutional"])
def test_a_step_waits_for_a_cuda_device_once_a_unit(network: str, way: str) -> None:
    step = training_step(network, way, "cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error" if way in WITHOUT else "warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [warning for warning in said if "synchronizing" in str(warning.message)]
    # Two layers with neurons, each compared once; eager ones with their values and with their derivatives.
    assert len(waits) <= 4, [str(warning.message) for warning in waits]


def test_results_compared_at_once_are_those_compared_one_by_one() -> None:
    one = torch.rand(4, 3)
    nan = torch.where(one > 0.5, torch.nan, one)
    for other in (one, one + 1e-9, one + 1e-3, nan, -one):
        for first in (one, nan):
            assert agree_at_once([(one, one), (first, other)]) == agree([one, first], [one, other])
            assert equal_at_once([(one, one), (first, other)]) == torch.equal(first, other)


def test_buffers_of_a_device_are_put_back_without_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.BatchNorm1d(3)
    model.register_buffer("expanded", torch.ones(1).expand(5))
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda tensor: True))
    monkeypatch.setattr(torch, "equal", lambda *tensors: pytest.fail("it has looked"))
    version = model.running_mean._version  # type: ignore[union-attr]
    with buffers_kept(model):
        model(torch.rand(4, 3))
    assert model.running_mean.tolist() == [0.0, 0.0, 0.0]  # type: ignore[union-attr]
    assert int(model.num_batches_tracked) == 0  # type: ignore[arg-type]
    assert model.running_mean._version == version  # type: ignore[union-attr]
