"""Every conversion ends with a comparison; a compiler that is broken on purpose is caught by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import MODELS, RecurrentLoop, assert_same_fingerprint, fingerprint
from torch import Tensor, fx, nn

import tracecompile
from tracecompile.compile import compile_model
from tracecompile.errors import ConversionError, SelfCheckFailed
from tracecompile.runtime import module as runtime_module
from tracecompile.self_check import check_against_model
from tracecompile.self_check.check import MOST_STEPS

LOOP = MODELS["recurrent_loop"]
CASES = [MODELS[name] for name in ("recurrent_loop", "lazy_attributes", "tuple_state", "fixed_length", "batch_first")]


def broken(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None]) -> None:
    """Lets the compiler make a mistake."""

    def compile_wrongly(*args: Any) -> Any:
        compiled = compile_model(*args)
        change(compiled.program.emitted)
        return compiled

    monkeypatch.setattr(runtime_module, "compile_model", compile_wrongly)


def scale_first_constant(emitted: Any) -> None:
    """Halves a leak or a threshold in the step that runs."""
    for step in (emitted.plain, emitted.traced):
        for node in step.graph.nodes:
            if any(isinstance(argument, float) for argument in node.args):
                node.args = tuple(a * 0.5 if isinstance(a, float) else a for a in node.args)
                break
        step.recompile()


def drop_surrogates(emitted: Any) -> None:
    """Detaches every spike in the step that records: what stock tracers do to a surrogate."""
    graph = emitted.traced.graph
    outputs = next(node for node in graph.nodes if node.op == "output")
    (values, states), traces, layers, norms = outputs.args[0]
    silent = []
    for results, derivatives in layers:
        zeroed = []
        for derivative in derivatives:
            with graph.inserting_before(outputs):
                zeroed.append(
                    graph.call_function(torch.zeros_like, (derivative,))
                    if isinstance(derivative, fx.Node)
                    else derivative
                )
        silent.append((results, tuple(zeroed)))
    outputs.args = (((values, states), traces, tuple(silent), norms),)
    emitted.traced.recompile()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_changed_value_is_caught_and_its_layer_named(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, scale_first_constant)
    model = case.factory()
    before = fingerprint(model)
    with pytest.raises(SelfCheckFailed, match="the layer ") as caught:
        tracecompile.convert(model, case.example_inputs(6 if case.steps_at_construction else 5, 2))
    assert caught.value.where is not None
    assert caught.value.where.file.endswith("models.py")
    assert_same_fingerprint(before, fingerprint(model))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_lost_gradient_is_caught_and_its_parameter_named(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, drop_surrogates)
    with pytest.raises(SelfCheckFailed, match=r"the parameter .* gradient"):
        tracecompile.convert(case.factory(), case.example_inputs(6 if case.steps_at_construction else 5, 2))


def test_a_refused_module_stays_unconverted(monkeypatch: pytest.MonkeyPatch) -> None:
    net = tracecompile.convert(LOOP.factory())
    broken(monkeypatch, scale_first_constant)
    for _ in range(2):
        with pytest.raises(SelfCheckFailed):
            net(LOOP.make_inputs(5, 2))


def test_hooks_and_random_numbers_do_not_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LOOP.factory()
    seen: list[Tensor] = []
    for parameter in model.parameters():
        parameter.register_hook(seen.append)
    state = torch.get_rng_state()
    tracecompile.convert(model, LOOP.example_inputs(5, 2))
    assert not seen
    assert torch.equal(torch.get_rng_state(), state)


def test_a_long_example_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []

    class Watched(RecurrentLoop):
        def forward(self, x: Tensor) -> Tensor:
            lengths.append(len(x))
            return super().forward(x)

    model = Watched().double()
    tracecompile.convert(model, LOOP.make_inputs(300, 2))
    assert max(lengths) <= MOST_STEPS


def test_the_check_runs_at_every_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[nn.Module] = []

    def counted(net: Any, *args: Any) -> tuple[str, ...]:
        calls.append(net)
        return check_against_model(net, *args)

    monkeypatch.setattr(runtime_module, "check_against_model", counted)
    net = tracecompile.convert(LOOP.factory())
    net(LOOP.make_inputs(5, 2))
    tracecompile.convert(LOOP.factory(), LOOP.make_inputs(5, 2))
    assert len(calls) == 2
    assert issubclass(SelfCheckFailed, ConversionError)
