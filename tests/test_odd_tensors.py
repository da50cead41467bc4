"""Tensors that no network can work with are refused by what is odd about them; the others give what the model gives."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracecompile
from tracecompile import nn as snn
from tracecompile.errors import ConversionError, InvalidInput

pytestmark = [
    pytest.mark.filterwarnings("ignore:Casting complex values to real"),
    pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta state"),
    pytest.mark.filterwarnings("ignore:.*prototype stage"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor"),
]


def spikes(steps: int = 9, batch: int = 4) -> Tensor:
    return (torch.rand(steps, batch, 5, generator=torch.Generator().manual_seed(steps)) < 0.4).float()


class Casting(nn.Module):
    """Takes whatever it is given to the type of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.neurons = nn.Linear(5, 3), snn.LIF(leak=0.9)

    def forward(self, x: Tensor) -> Tensor:
        state, out = None, []
        for x_t in x.to(self.fc.weight.dtype):
            s, state = self.neurons(3 * self.fc(x_t), state)
            out.append(s)
        return torch.stack(out)


class Direct(Casting):
    """Takes its input as it is."""

    def forward(self, x: Tensor) -> Tensor:
        state, total = None, 0.0
        for t in range(x.size(0)):
            s, state = self.neurons(3 * self.fc(x[t]), state)
            total = total + s
        return torch.as_tensor(total)


class Handed(nn.Module):
    """One time step; the caller keeps the state."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 3)
        self.spike = snn.fast_sigmoid(25.0)

    def forward(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v = 0.9 * v + 3 * self.fc(x)
        s = self.spike(v - 0.5)
        return s, v - s


def ragged(layout: torch.layout) -> Tensor:
    return torch.nested.nested_tensor([torch.rand(4, 5), torch.rand(3, 5)], layout=layout)


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "meta": (lambda x: x.to("meta"), "meta"),
    "sparse": (lambda x: x.to_sparse(), "sparse.*dense"),
    "hybrid": (lambda x: x.to_sparse(1), "sparse.*dense"),
    "csr": (lambda x: torch.ones_like(x).to_sparse_csr(), "sparse.*dense"),
    "bsr": (lambda x: torch.ones_like(x).to_sparse_bsr((1, 1)), "sparse.*dense"),
    "of a library": (lambda x: x.to_mkldnn(), "mkldnn.*dense"),
    "nested": (lambda x: ragged(torch.strided), "nested.*padded"),
    "jagged": (lambda x: ragged(torch.jagged), "nested.*padded"),
    "quantised": (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8), "quint8.*dequantize"),
    "quantised by channel": (
        lambda x: torch.quantize_per_channel(x, torch.ones(x.shape[1]), torch.zeros(x.shape[1]), 1, torch.qint8),
        "qint8.*dequantize",
    ),
    "float8": (lambda x: x.to(torch.float8_e4m3fn), "float8.*float"),
}
odd = pytest.mark.parametrize(("make", "said"), REFUSED.values(), ids=REFUSED.keys())


@odd
@pytest.mark.parametrize("model", [Casting, Direct])
def test_a_call_with_an_odd_tensor_is_refused(
    model: type[nn.Module], make: Callable[[Tensor], Tensor], said: str
) -> None:
    own = model()
    net = tracecompile.convert(own, spikes(6, 2), backend="eager")
    with pytest.raises(InvalidInput, match=said):
        net(make(spikes()))
    assert torch.equal(net(spikes()), own(spikes())), "a refused call must not spoil the next one"


@odd
def test_an_odd_example_is_refused(make: Callable[[Tensor], Tensor], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        tracecompile.convert(Casting(), make(spikes()))
    net = tracecompile.convert(Direct())
    with pytest.raises(InvalidInput, match=said):
        net(make(spikes()))


@odd
def test_an_odd_state_is_refused(make: Callable[[Tensor], Tensor], said: str) -> None:
    net = tracecompile.convert(Handed(), (spikes()[0], torch.zeros(4, 3)), backend="eager")
    state = make(torch.ones(4, 3))
    with pytest.raises(InvalidInput, match=said):
        net(spikes()[0], state)
    with pytest.raises(InvalidInput, match=said):
        net(x=spikes()[0], v=state)


AS_THE_MODEL: dict[str, tuple[Callable[[], Any], str]] = {
    "complex64": (lambda: spikes().to(torch.complex64), "complex"),
    "complex128": (lambda: spikes().to(torch.complex128), "complex"),
    "int64": (lambda: spikes().long(), "int64"),
    "int8": (lambda: spikes().to(torch.int8), "int8"),
    "uint8": (lambda: spikes().byte(), "uint8"),
    "uint16": (lambda: spikes().to(torch.uint16), "uint16"),
    "bool": (lambda: spikes().bool(), "bool"),
    "half": (lambda: spikes().half(), "float16"),
    "double": (lambda: spikes().double(), "float64"),
    "None": (lambda: None, "None"),
    "list": (lambda: spikes().tolist(), "list|float"),
    "list of tensors": (lambda: list(spikes()), "list|structure"),
    "array": (lambda: spikes().numpy(), "ndarray"),
    "number": (lambda: 1.0, "float"),
}


@pytest.mark.parametrize(("make", "said"), AS_THE_MODEL.values(), ids=AS_THE_MODEL.keys())
@pytest.mark.parametrize("first", [True, False], ids=["first call", "later call"])
@pytest.mark.parametrize("model", [Casting, Direct])
def test_other_types_are_what_they_are_to_the_model(
    model: type[nn.Module], make: Callable[[], Any], said: str, first: bool
) -> None:
    own = model()
    twin = copy.deepcopy(own)
    net = tracecompile.convert(own, None if first else spikes(6, 2), backend="eager")
    wanted, found = outcome(twin, make()), outcome(net, make())
    if isinstance(wanted, Tensor):
        assert isinstance(found, Tensor)
        assert torch.equal(found, wanted)
    elif isinstance(found, ConversionError):
        assert re.search(said, found.explanation), found.explanation
    else:
        assert isinstance(found, type(wanted))
        assert str(found).splitlines()[:1] == str(wanted).splitlines()[:1]


def outcome(net: nn.Module, x: Any) -> Any:
    """Returns what a call gives, or raises."""
    try:
        return net(x)
    except Exception as fault:
        return fault


def test_an_odd_step_of_a_stream_is_refused() -> None:
    net = tracecompile.convert(Direct(), spikes(6, 2), backend="eager")
    for make, said in REFUSED.values():
        with pytest.raises(InvalidInput, match=said):
            list(net.stream([spikes()[0], make(spikes()[0])]))
    for other in (None, spikes()[0].tolist(), spikes()[0].numpy()):
        with pytest.raises(InvalidInput, match=type(other).__name__):
            list(net.stream([spikes()[0], other]))
