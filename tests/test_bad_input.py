"""Everything that is refused is refused in one or two sentences, and the model is left as it was."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from models import MODELS, RecurrentLoop, assert_same_fingerprint, fast_sigmoid, fingerprint
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import tracecompile
from tracecompile.arguments import check_tensor
from tracecompile.errors import (
    ConversionError,
    InvalidInput,
    NoSpikingLayer,
    UnsupportedControlFlow,
    UnsupportedOperation,
)

LOOP = MODELS["recurrent_loop"]
STEP = MODELS["lazy_attributes"]


@contextmanager
def refused(model: nn.Module, error: type[ConversionError] = ConversionError) -> Iterator[pytest.ExceptionInfo[Any]]:
    """Expects a refusal with a message of one or two sentences, and a model that nothing happened to."""
    before = fingerprint(model)
    with pytest.raises(error) as caught:
        yield caught
    assert_same_fingerprint(before, fingerprint(model))
    refusal = caught.value
    assert isinstance(refusal, tracecompile.ConversionError)
    message = " ".join(part for part in (refusal.explanation, refusal.advice) if part)
    assert refusal.explanation.strip()
    sentences = re.findall(r"[.!?](?=\s|$)", message.replace("e.g.", ""))
    assert 1 <= len(sentences) <= 2, f"not one or two sentences: {message!r}"
    assert "Traceback" not in str(refusal)
    assert len(message) < 500


@pytest.mark.parametrize(
    "options",
    [
        {"rule": "backprop"},
        {"rule": ""},
        {"rule": None},
        {"bins": 0},
        {"bins": -3},
        {"bins": 2.5},
        {"decay": 1.5},
        {"decay": 0.0},
        {"decay": 1.0},
        {"decay": -0.1},
        {"decay": float("nan")},
        {"decay": {"no such layer": 0.9}},
        {"backend": "tpu"},
        {"chunk": 0},
    ],
    ids=str,
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    model = LOOP.factory()
    with refused(model, InvalidInput):
        tracecompile.convert(model, LOOP.example_inputs(5, 2), **options)


def test_options_are_refused_even_before_there_is_an_input() -> None:
    model = LOOP.factory()
    with refused(model, InvalidInput):
        tracecompile.convert(model, rule="backprop")


def test_an_embedding_in_the_loop_is_refused_at_its_line() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.leak = nn.Embedding(10, 4), 0.9

        def forward(self, x: Tensor) -> Tensor:
            mem, total = 0.0, 0.0
            for t in range(x.shape[0]):
                mem = self.leak * mem + self.words(x[t])
                total = total + (mem > 1).float()
            return total

    model, example = Words(), torch.randint(10, (6, 3))
    with refused(model, UnsupportedOperation) as caught:
        tracecompile.convert(model, example)
    where = caught.value.where
    assert where is not None
    assert "self.words(x[t])" in where.source


def test_a_message_names_the_value_and_the_choices() -> None:
    with pytest.raises(InvalidInput) as caught:
        tracecompile.convert(LOOP.factory(), LOOP.example_inputs(5, 2), rule="backprop")
    assert "backprop" in str(caught.value)
    for rule in ("measured", "analytic", "bptt"):
        assert rule in str(caught.value)


def test_a_model_that_is_no_module() -> None:
    with pytest.raises(ConversionError):
        tracecompile.convert(lambda x: x, torch.zeros(5, 2, 4))


BAD_EXAMPLES: dict[str, Callable[[], Any]] = {
    "wrong feature size": lambda: torch.randn(5, 2, 9, dtype=torch.float64),
    "nan": lambda: torch.full((5, 2, 4), float("nan"), dtype=torch.float64),
    "infinity": lambda: torch.full((5, 2, 4), float("inf"), dtype=torch.float64),
    "empty sequence": lambda: torch.zeros(0, 2, 4, dtype=torch.float64),
    "a number": lambda: 3.0,
    "one argument too many": lambda: (torch.zeros(5, 2, 4), torch.zeros(5, 2, 4)),
}


@pytest.mark.parametrize("make", BAD_EXAMPLES.values(), ids=BAD_EXAMPLES.keys())
def test_examples_that_do_not_fit(make: Callable[[], Any]) -> None:
    model = LOOP.factory()
    example = make()
    with refused(model):
        tracecompile.convert(model, example)


@pytest.mark.parametrize(
    ("args", "kwargs", "says"),
    [
        ((), {}, "missing a required argument: 'x'"),
        ((torch.zeros(5, 2, 4),) * 3, {}, "too many positional arguments"),
        ((torch.zeros(5, 2, 4),), {"mask": 1.0}, "unexpected keyword argument 'mask'"),
    ],
)
def test_arguments_that_forward_does_not_take_point_at_it(args: Any, kwargs: Any, says: str) -> None:
    with pytest.raises(InvalidInput, match=says) as caught:
        tracecompile.convert(LOOP.factory())(*args, **kwargs)
    assert caught.value.where is not None
    assert "def forward(" in caught.value.where.source
    assert "Its forward takes (x" in caught.value.advice


class Sizes(TorchDispatchMode):
    """Notes how many elements every result has."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.found.append(result.numel())
        return result


def test_an_input_is_looked_at_without_a_copy() -> None:
    with Sizes() as sizes:
        check_tensor("An input", torch.ones(100, 2))
    assert max(sizes.found[1:]) == 1, "after the input itself"
    check_tensor("An input", torch.full((100,), torch.finfo(torch.float32).max))
    for bad in (float("inf"), -float("inf"), float("nan")):
        with pytest.raises(InvalidInput):
            check_tensor("An input", torch.tensor([1.0, bad, 2.0, -bad]))


BAD_CALLS: dict[str, Callable[[], Any]] = {
    "rank too low": lambda: torch.randn(5, 4, dtype=torch.float64),
    "rank too high": lambda: torch.randn(5, 2, 1, 4, dtype=torch.float64),
    "wrong feature size": lambda: torch.randn(5, 2, 9, dtype=torch.float64),
    "nan": lambda: torch.full((5, 2, 4), float("nan"), dtype=torch.float64),
    "empty sequence": lambda: torch.zeros(0, 2, 4, dtype=torch.float64),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("make", BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_calls_that_do_not_fit(make: Callable[[], Any], training: bool) -> None:
    model = LOOP.factory()
    net = tracecompile.convert(model, LOOP.example_inputs(5, 2)).train(training)
    bad = make()
    with refused(model):
        net(bad)
    good = LOOP.make_inputs(6, 3)
    assert torch.equal(net(good), LOOP.factory()(good)), "a refused call must not spoil the next one"


@pytest.mark.parametrize(
    "bad", [torch.zeros(3, 9, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)], ids=["features", "rank"]
)
def test_a_bad_step_leaves_the_state_alone(bad: Tensor) -> None:
    model = STEP.factory()
    net = tracecompile.convert(model, STEP.example_inputs(1, 2))
    inputs = STEP.make_inputs(4, 3)
    expected = STEP.run(STEP.factory(), inputs)
    actual = [net(inputs[0]), net(inputs[1])]
    with refused(model):
        net(bad)
    actual += [net(inputs[2]), net(inputs[3])]
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


class NoLoop(nn.Module):
    """Neither spikes nor a state."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.fc(x))


class NoState(nn.Module):
    """Spikes over time, but nothing is kept from one step to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        outs = []
        for t in range(x.shape[0]):
            outs.append(fast_sigmoid(self.fc(x[t]) - 1.0))
        return torch.stack(outs)


@pytest.mark.parametrize("cls", [NoLoop, NoState])
def test_a_model_without_state(cls: type[nn.Module]) -> None:
    model = cls()
    example = torch.randn(5, 2, 4)
    with refused(model, NoSpikingLayer):
        tracecompile.convert(model, example)


class BranchOnSpikes(RecurrentLoop):
    """Branches on the values of a tensor inside the loop."""

    def forward(self, x: Tensor) -> Tensor:
        mem = torch.zeros(x.shape[1], 5, dtype=x.dtype)
        outs = []
        for t in range(x.shape[0]):
            mem = 0.9 * mem + self.fc(x[t])
            spk = self.spike_fn(mem - 1.0)
            if spk.sum() > 0:  # the line to blame
                mem = mem - spk
            outs.append(spk)
        return torch.stack(outs)


class BranchInStep(nn.Module):
    """The same in a module that takes one step."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 5)
        self.mem: Tensor | None = None

    def forward(self, x_t: Tensor) -> Tensor:
        if self.mem is None:
            self.mem = x_t.new_zeros(x_t.shape[0], 5)
        self.mem = 0.9 * self.mem + self.fc(x_t)
        if self.mem.max() > 1:  # the line to blame
            self.mem = self.mem - 1
        return fast_sigmoid(self.mem - 1.0)


class ReadsANumber(RecurrentLoop):
    """Turns a tensor into a Python number."""

    def forward(self, x: Tensor) -> Tensor:
        mem = torch.zeros(x.shape[1], 5, dtype=x.dtype)
        outs = []
        for t in range(x.shape[0]):
            mem = 0.9 * mem + self.fc(x[t])
            threshold = 1.0 + mem.mean().item()  # the line to blame
            outs.append(self.spike_fn(mem - threshold))
        return torch.stack(outs)


@pytest.mark.parametrize(
    ("cls", "shape"),
    [(BranchOnSpikes, (5, 2, 4)), (BranchInStep, (2, 4)), (ReadsANumber, (5, 2, 4))],
    ids=["branch in a loop", "branch in a step", "item"],
)
def test_control_flow_that_depends_on_data(cls: type[nn.Module], shape: tuple[int, ...]) -> None:
    model = cls()
    example = torch.randn(shape)
    with refused(model, UnsupportedControlFlow) as caught:
        tracecompile.convert(model, example)
    where = caught.value.where
    assert where is not None
    assert where.file == __file__
    assert where.source.endswith("# the line to blame")
    assert where.source in str(caught.value)
    with open(__file__, encoding="utf-8") as source:
        assert source.read().splitlines()[where.line - 1].strip() == where.source


class TimeDependent(RecurrentLoop):
    """The loop's body is not the same at every step."""

    def forward(self, x: Tensor) -> Tensor:
        mem = torch.zeros(x.shape[1], 5, dtype=x.dtype)
        outs = []
        for t in range(x.shape[0]):
            mem = 0.9 * mem + self.fc(x[t])
            spk = self.spike_fn(mem - 1.0)
            mem = mem - spk if t % 2 else mem
            outs.append(spk)
        return torch.stack(outs)


def test_a_loop_body_that_changes_with_time() -> None:
    model = TimeDependent()
    example = torch.randn(6, 2, 4)
    with refused(model):
        tracecompile.convert(model, example)
