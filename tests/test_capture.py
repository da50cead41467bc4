"""Captured programs compute what the model computes, forwards and backwards, at sizes never seen at capture."""

from __future__ import annotations

from typing import Any

import pytest
import test_capture_models as models
import torch
from test_capture_helpers import StepRunner, assert_equal, gradients, run_sequence, snapshot, untouched
from torch import nn
from torch.utils import _pytree as pytree

from tracecompile.capture import capture_program

HIDDEN, INPUTS, OUTPUTS = models.HIDDEN, models.INPUTS, models.OUTPUTS

LOOPS = [
    (models.LoopOverShape, 0, False),
    (models.LoopOfFixedLength, 0, True),
    (models.StatesFromZero, 0, False),
    (models.LazyLoop, 0, True),
    (models.NestedLoop, 0, False),
    (models.StraightThrough, 0, True),
    (models.Preallocated, 0, False),
    (models.BatchFirst, 1, False),
    (models.FirstStepApart, 0, False),
    (models.WhileLoop, 0, False),
    (models.DelayLine, 0, False),
]


def build(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    return kind()


def sequence(length: int, batch: int, time_axis: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = 6 * torch.randn(length, batch, INPUTS, generator=generator)
    return x.transpose(0, 1).contiguous() if time_axis == 1 else x


@pytest.mark.parametrize(("kind", "axis", "fixed"), LOOPS, ids=[kind.__name__ for kind, _, _ in LOOPS])
def test_loop_equals_model(kind: type[nn.Module], axis: int, fixed: bool) -> None:
    model = build(kind)
    example = sequence(models.FIXED_STEPS, 2, axis)
    before = snapshot(model)
    program = capture_program(model, (example,), {})
    assert snapshot(model) == before
    assert program.kind == "sequence"
    assert program.length == (models.FIXED_STEPS if fixed else None)
    for length, batch in [(models.FIXED_STEPS, 2), (models.FIXED_STEPS, 3)] + (
        [] if fixed else [(1, 4), (11, 3), (17, 1)]
    ):
        x = sequence(length, batch, axis, seed=length)
        expected, found = untouched(model)(x), run_sequence(program, x)
        assert_equal(expected, found)
        if kind is models.BatchFirst:  # a product over the whole sequence is summed up in another order
            torch.testing.assert_close(gradients(model, expected), gradients(model, found))
        else:
            assert_equal(gradients(model, expected), gradients(model, found))


STEPS: list[tuple[type[nn.Module], Any]] = [
    (models.LazyStep, None),
    (models.BufferInPlace, None),
    (models.BufferReassigned, None),
    (models.FloatState, None),
    (models.ClosureSurrogate, None),
    (models.NestedState, lambda b: ((torch.zeros(b, HIDDEN), torch.zeros(b, HIDDEN)), (torch.zeros(b, OUTPUTS),))),
    (models.NamedState, lambda b: models.LifState(torch.zeros(b, HIDDEN), torch.zeros(b, HIDDEN))),
    (models.TwoStates, lambda b: (torch.zeros(b, HIDDEN), torch.zeros(b, HIDDEN))),
    (models.DictState, lambda b: {"mem": torch.zeros(b, HIDDEN), "spk": torch.zeros(b, HIDDEN)}),
]


def arguments(kind: type[nn.Module], x_t: torch.Tensor, state: Any) -> tuple[Any, ...]:
    if state is None:
        return (x_t,)
    return (x_t, *state) if kind is models.TwoStates else (x_t, state)


def run_steps(kind: type[nn.Module], call: Any, x: torch.Tensor, state: Any) -> list[Any]:
    results = []
    for x_t in x:
        result = call(*arguments(kind, x_t, state))
        results.append(result)
        if state is not None:
            state = tuple(result[1:]) if kind is models.TwoStates else result[1]
    return results


@pytest.mark.parametrize(("kind", "start"), STEPS, ids=[kind.__name__ for kind, _ in STEPS])
def test_step_equals_model(kind: type[nn.Module], start: Any) -> None:
    model = build(kind)
    example = sequence(1, 2, 0)[0]
    before = snapshot(model)
    program = capture_program(model, arguments(kind, example, start(2) if start else None), {})
    assert snapshot(model) == before
    assert program.kind == "step"
    assert all(carry.explicit == (start is not None) for carry in program.carries)
    for length, batch in [(6, 2), (7, 3)]:
        x = sequence(length, batch, 0, seed=length)
        state = start(batch) if start else None
        expected = run_steps(kind, untouched(model), x, state)
        found = run_steps(kind, StepRunner(program), x, state)
        assert_equal(expected, found)
        assert_equal(gradients(model, expected), gradients(model, found))


@pytest.mark.parametrize("given", ["omitted", "none", "tensor"])
def test_optional_state(given: str) -> None:
    model = build(models.OptionalState)
    x = sequence(5, 2, 0)
    extra = {"omitted": (), "none": (None,), "tensor": (torch.zeros(2, HIDDEN),)}[given]
    program = capture_program(model, (x[0], *extra), {})
    assert program.explicit_states == (1,)
    x = sequence(5, 3, 0, seed=2)

    def drive(call: Any) -> list[Any]:
        out, mem = call(x[0])
        results = [(out, mem)]
        for x_t in x[1:]:
            out, mem = call(x_t, mem)
            results.append((out, mem))
        return results

    expected, found = drive(model), drive(StepRunner(program))
    assert_equal(expected, found)
    assert_equal(gradients(model, expected), gradients(model, found))


def test_buffer_of_batch_size_starts_as_zeros_of_any_batch() -> None:
    model = build(models.BufferWrittenPlainly)
    program = capture_program(model, (sequence(1, 2, 0)[0],), {})
    x = sequence(6, 3, 0, seed=1)
    runner = StepRunner(program)
    found = [runner(x_t) for x_t in x]
    model.mem = torch.zeros(3, HIDDEN)
    mem, expected = torch.zeros(3, HIDDEN), []
    for x_t in x:
        mem = mem * 0.9 + model.fc(x_t)
        out = models.spike(mem - 1)
        mem = mem - out.detach()
        expected.append(out)
    assert_equal(expected, found)


def test_state_left_over_from_earlier_calls() -> None:
    model = build(models.LazyStep)
    x = sequence(6, 2, 0)
    model(x[0])
    expected_model = untouched_with_state(model)
    program = capture_program(model, (x[1],), {})
    runner = StepRunner(program)
    assert_equal([expected_model(x_t) for x_t in x[1:]], [runner(x_t) for x_t in x[1:]])


def untouched_with_state(model: nn.Module) -> nn.Module:
    mems = model.lif1.mem, model.lif2.mem
    model.lif1.mem = model.lif2.mem = None
    copied = untouched(model)
    model.lif1.mem, model.lif2.mem = mems
    copied.lif1.mem, copied.lif2.mem = (mem.detach().clone() for mem in mems)
    return copied


def test_every_node_of_the_step_knows_value_and_line() -> None:
    program = capture_program(build(models.LazyStep), (sequence(1, 2, 0)[0],), {})
    for node in program.step.graph.nodes:
        if node.op in ("call_function", "call_method", "call_module"):
            assert node.meta["where"].file.endswith("test_capture_models.py")
            assert node.meta["where"].source
        if node.op != "output":
            assert isinstance(node.meta["val"], (torch.Tensor, int))
    line = next(node.meta["where"] for node in program.step.graph.nodes if node.target == "spike_0")
    assert line.module_path == "lif1"
    assert line.source == "out = spike(self.mem - 1)"


def test_surrogates_are_kept_whole() -> None:
    program = capture_program(build(models.TwoStates), (torch.randn(2, INPUTS), *(torch.zeros(2, HIDDEN),) * 2), {})
    (leaf,) = program.leaves.values()
    assert leaf.function is models.SlopedSpike
    assert pytree.tree_leaves(program.explicit_states) == [1, 2]
