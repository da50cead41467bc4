"""The oracle can fail: every part of it, shown by a stand-in for ``convert`` that is wrong in one thing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.oracle import (
    HIDDEN,
    INPUTS,
    OUTPUTS,
    Program,
    Unsound,
    Wrong,
    require_refused,
    require_right,
    require_right_or_refused,
    spike,
)
from torch import Tensor, nn

from tracecompile.errors import ConversionError, PassError, SourceLine


class Leaky(nn.Module):
    """One recurrent layer over a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.rec, self.out = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        v, z, record = x.new_zeros(x.shape[1], HIDDEN), x.new_zeros(x.shape[1], HIDDEN), []
        for x_t in x:
            v = 0.8 * v + self.inp(x_t) + 0.2 * self.rec(z)
            z = spike(v - 0.5)
            v = v - 0.5 * z
            record.append(self.out(z))
        return torch.stack(record), v.detach()


class Kept(nn.Module):
    """One step per call; the membrane is kept between calls."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(INPUTS, HIDDEN, bias=False), nn.Linear(HIDDEN, OUTPUTS)
        self.v: Tensor | None = None

    def reset(self) -> None:
        self.v = None

    def current(self, x_t: Tensor) -> Tensor:
        return self.inp(x_t)

    def forward(self, x_t: Tensor) -> Tensor:
        v = 0.0 if self.v is None else self.v
        v = 0.8 * v + self.current(x_t)
        z = spike(v - 0.5)
        self.v = v - 0.5 * z
        return self.out(z)


class Normalised(Kept):
    """The same with batch normalisation of the current."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(HIDDEN)

    def current(self, x_t: Tensor) -> Tensor:
        return self.norm(self.inp(x_t))


PROGRAM, STEPPED = Program(Leaky), Program(Kept, step=True)
NORMALISED = Program(Normalised, step=True, runs=((3, 4), (11, 5), (23, 2)))


class Wrapped(nn.Module):
    """The model itself in place of a converted net."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._parameters, self._buffers, self._modules = model._parameters, model._buffers, model._modules
        self._held = [model]
        self.reset = getattr(model, "reset", lambda: None)

    @property
    def model(self) -> nn.Module:
        return self._held[0]

    def train(self, mode: bool = True) -> Wrapped:
        self.training = mode
        self.model.train(mode)
        return self

    def forward(self, *args: Any) -> Any:
        return self.model(*args)


def wrapped_in(forward: Callable[..., Any]) -> Callable[..., nn.Module]:
    """Returns a stand-in for convert whose net runs the model and does something to it."""

    class Net(Wrapped):
        def forward(self, *args: Any) -> Any:
            return forward(self, *args)

    return lambda model, example, **options: Net(model)


def other_value(net: Wrapped, x: Tensor) -> Any:
    record, v = net.model(x)
    return (record + 1e-6 * (len(x) == 23), v)


def other_batch(net: Wrapped, x: Tensor) -> Any:
    record, v = net.model(x)
    return (record[:, :1] if x.shape[1] == 5 else record), v


def list_for_tuple(net: Wrapped, x: Tensor) -> Any:
    return list(net.model(x))


def other_type(net: Wrapped, x: Tensor) -> Any:
    record, v = net.model(x)
    return record, v.double()


def needs_a_gradient(net: Wrapped, x: Tensor) -> Any:
    record, v = net.model(x)
    return record, v.requires_grad_(net.training)


def draws(net: Wrapped, x: Tensor) -> Any:
    torch.rand(1)
    return net.model(x)


def other_in_evaluation(net: Wrapped, x: Tensor) -> Any:
    record, v = net.model(x)
    return record + (0.0 if net.training else 1e-6), v


def cut_gradient(net: Wrapped, x: Tensor) -> Any:
    record, v = net.model(x)
    return torch.cat([record[:-1], record[-1:].detach()]), v


def keeps(net: Wrapped, x: Tensor) -> Any:
    net.model.__dict__["kept"] = [torch.ones(100) for _ in x]
    return net.model(x)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (other_value, "at T=23, B=2, training: other values"),
        (other_batch, "at T=11, B=5, training: returns"),
        (list_for_tuple, "returns ('list'"),
        (other_type, "float64"),
        (needs_a_gradient, "requires_grad [True, True] for [True, False]"),
        (draws, "torch's generator"),
        (other_in_evaluation, "evaluating: other values"),
        (cut_gradient, "gradient of inp.weight off by"),
        (keeps, "bytes alive after a forward pass"),
        (lambda net, x: net.model(x), "bytes held for backward"),
    ],
)
def test_a_net_that_is_wrong_in_one_thing_is_found_out(forward: Callable[..., Any], message: str) -> None:
    with pytest.raises(Wrong) as wrong:
        require_right(PROGRAM, convert=wrapped_in(forward))
    assert message in str(wrong.value)


def test_the_model_in_place_of_the_net_is_right_in_all_but_memory() -> None:
    plain = wrapped_in(lambda net, *args: net.model(*args))
    for program in (PROGRAM, STEPPED, NORMALISED):
        with pytest.raises(Wrong) as wrong:
            require_right(program, convert=plain)
        assert str(wrong.value).startswith("memory grows")
        assert ";" not in str(wrong.value)


def test_statistics_that_the_model_never_sees_are_found_out() -> None:
    def convert(model: nn.Module, example: Any, **options: Any) -> nn.Module:
        with torch.random.fork_rng():
            net = Wrapped(Normalised())
        net.model.load_state_dict(model.state_dict())
        return net

    with pytest.raises(Wrong) as wrong:
        require_right(NORMALISED, convert=convert)
    assert "norm.running_mean of the model is not what it is in the model alone" in str(wrong.value)


def test_chunks_that_differ_by_more_than_rounding_are_found_out() -> None:
    def convert(model: nn.Module, example: Any, chunk: int = 1, **options: Any) -> nn.Module:
        return wrapped_in(lambda net, x: (net.model(x)[0] + 1e-6 * (chunk - 1), net.model(x)[1]))(model, example)

    with pytest.raises(Wrong) as wrong:
        require_right(PROGRAM, convert=convert)
    assert "other values with chunk=4" in str(wrong.value)


def test_a_conversion_that_leaves_something_in_the_model_is_found_out() -> None:
    def convert(model: nn.Module, example: Any, **options: Any) -> nn.Module:
        model(*example)
        return Wrapped(model)

    with pytest.raises(Wrong) as wrong:
        require_right(STEPPED, convert=convert)
    assert "left something in the model" in str(wrong.value)


def test_foreign_exceptions_are_no_answer() -> None:
    def convert(model: nn.Module, example: Any, **options: Any) -> nn.Module:
        raise KeyError("node")

    for require in (require_right, require_right_or_refused):
        with pytest.raises(Wrong) as wrong:
            require(PROGRAM, convert=convert)
        assert "crash: KeyError" in str(wrong.value)


def refusing(error: ConversionError) -> Callable[..., nn.Module]:
    def convert(model: nn.Module, example: Any, **options: Any) -> nn.Module:
        raise error

    return convert


def line_with(text: str) -> SourceLine:
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    number = next(i for i, line in enumerate(lines, 1) if text in line)
    return SourceLine(__file__, number, lines[number - 1].strip())


def test_a_refusal_is_right_where_it_names_the_line_and_nowhere_else() -> None:
    honest = refusing(ConversionError("No.", "", line_with("z = spike(v - 0.5)")))
    require_refused(PROGRAM, line="spike(v", convert=honest)
    assert require_right_or_refused(PROGRAM, convert=honest) == "refused"
    with pytest.raises(Wrong, match="refused at another line"):
        require_refused(PROGRAM, line="self.rec", convert=honest)
    with pytest.raises(Wrong, match="refused: ConversionError"):
        require_right(PROGRAM, convert=honest)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConversionError("No."), "refused without a line"),
        (ConversionError("No.", "", SourceLine("/elsewhere.py", 3, "z = 1")), "refused without a line"),
        (PassError("Broken.", "", line_with("z = spike(v - 0.5)")), "blamed on tracecompile"),
        (ConversionError("This is a fault of tracecompile.", "", line_with("z = spike(v")), "blamed on tracecompile"),
    ],
)
def test_a_refusal_without_the_users_line_is_no_answer(error: ConversionError, message: str) -> None:
    with pytest.raises(Wrong, match=message):
        require_refused(PROGRAM, convert=refusing(error))
    with pytest.raises(Wrong, match=message):
        require_right_or_refused(PROGRAM, convert=refusing(error))


def test_a_program_that_must_be_refused_may_not_convert() -> None:
    with pytest.raises(Wrong, match="it is converted"):
        require_refused(PROGRAM)


class Silent(Leaky):
    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.inp.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x / 1000)


class Random(Leaky):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        record, v = super().forward(x)
        return record + id(record) % 97, v


class Unused(Leaky):
    def __init__(self) -> None:
        super().__init__()
        self.never = nn.Parameter(torch.zeros(3))


@pytest.mark.parametrize(
    ("model", "message"), [(Silent, "never fire"), (Random, "differ"), (Unused, "never gets no gradient")]
)
def test_a_program_that_tells_nothing_is_a_fault_of_the_test(model: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(Unsound, match=message):
        require_right(Program(model))


@pytest.mark.parametrize("program", [PROGRAM, STEPPED], ids=["sequence", "step"])
def test_simple_models_are_converted_right(program: Program) -> None:
    require_right(program)
