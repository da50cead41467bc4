"""What a program cannot be: refused in words."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import tracecompile
from around.nets import WIDTH, Sequence, assert_trains_alike, events, twins
from tracecompile.errors import ConversionError, InvalidInput, UnsupportedOperation


class Entered(Sequence):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x)


class Left(Sequence):
    def forward(self, x: Tensor) -> Tensor:
        with torch.amp.autocast("cpu", enabled=False):
            return super().forward(x)


class Decorated(Sequence):
    @torch.autocast("cpu", dtype=torch.bfloat16)
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Lazy(Sequence):
    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.LazyLinear(WIDTH)


def observed() -> nn.Module:
    model = Sequence()
    model.enter.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.prepare_qat(model.train())


@pytest.mark.parametrize(
    ("make", "kind", "said"),
    [
        (Entered, UnsupportedOperation, "autocast"),
        (Left, UnsupportedOperation, "autocast"),
        (Decorated, UnsupportedOperation, "autocast"),
        (Lazy, InvalidInput, "Run the model once"),
        (observed, UnsupportedOperation, "quantis"),
    ],
)
def test_models_that_are_more_than_operations(
    make: Callable[[], nn.Module], kind: type[ConversionError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        tracecompile.convert(make(), events(5, 2), backend="eager")


def test_a_lazy_model_that_has_run_converts() -> None:
    model = Lazy()
    model(events(3, 2))
    net, x = tracecompile.convert(model, events(5, 2), backend="eager"), events(7, 4)
    assert torch.equal(net(x), model(x))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["jit", "export"])
def test_a_net_is_neither_traced_nor_exported(how: str) -> None:
    net, x = tracecompile.convert(Sequence(), events(5, 2), backend="eager"), events(7, 4)
    export: dict[str, Callable[[], Any]] = {
        "jit": lambda: torch.jit.trace(net, x),
        "export": lambda: torch.export.export(net, (x,)),
    }
    with pytest.raises(UnsupportedOperation, match=r"traced or exported"):
        export[how]()
    assert torch.equal(net(x), net.source(x))


def test_pruning_before_conversion_and_its_removal_afterwards() -> None:
    model, twin = twins(Sequence)
    for module in (model, twin):
        prune.l1_unstructured(module.enter, "weight", 0.5)
    net, x = tracecompile.convert(model, events(5, 2), bins=7, backend="eager"), events(7, 4)
    assert_trains_alike(net, model, twin, x)
    for module in (model, twin):
        prune.remove(module.enter, "weight")
    assert_trains_alike(net, model, twin, x)


def test_data_parallel_around_a_net() -> None:
    model, twin = twins(Sequence)
    net, x = tracecompile.convert(model, events(5, 2), backend="eager"), events(7, 4)
    assert torch.equal(nn.DataParallel(net)(x), twin(x))
