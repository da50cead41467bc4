"""Every conversion ends with a comparison; a compiler that is broken on purpose is caught by it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from models import MODELS, FastSigmoid, RecurrentLoop, assert_same_fingerprint, fingerprint
from torch import Tensor, fx, nn

import tracecompile
from tracecompile import compiler
from tracecompile.errors import ConversionError, SelfCheckFailed, SourceLine
from tracecompile.printing import Stages
from tracecompile.runtime.collector import Collector
from tracecompile.runtime.ends import Ends
from tracecompile.runtime.executor import Executor
from tracecompile.self_check import check_against_model
from tracecompile.self_check.sizes import MOST_STEPS

LOOP = MODELS["recurrent_loop"]
CASES = [MODELS[name] for name in ("recurrent_loop", "lazy_attributes", "tuple_state", "fixed_length", "batch_first")]


def broken(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None]) -> None:
    """Lets the compiler make a mistake."""

    build = compiler.build

    def compile_wrongly(*args: Any) -> Any:
        compiled = build(*args)
        change(compiled.program.emitted)
        return printed_again(compiled)

    monkeypatch.setattr(compiler, "build", compile_wrongly)


def printed_again(compiled: Any) -> Any:
    """Lets a program whose graphs were changed run as it would be printed now."""
    stages = Stages(compiled.stages.programs)
    stages.run_as_printed()
    return replace(compiled, stages=stages)


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
    values, states, accrued, read, layers = outputs.args[0]
    with graph.inserting_before(outputs):
        silent = tuple(
            node if accrual.role == "trace" else graph.call_function(torch.zeros_like, (node,))
            for accrual, node in zip(emitted.accruals, accrued, strict=True)
        )
    outputs.args = ((values, states, silent, read, layers),)
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
    calls: list[Any] = []

    def counted(session: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(session)
        return check_against_model(session, *args, **kwargs)

    monkeypatch.setattr(compiler, "check_against_model", counted)
    net = tracecompile.convert(LOOP.factory())
    net(LOOP.make_inputs(5, 2))
    tracecompile.convert(LOOP.factory(), LOOP.make_inputs(5, 2))
    assert len(calls) == 2
    assert issubclass(SelfCheckFailed, ConversionError)


# What the example does not show.


class Read(nn.Module):
    """Leaky neurons, whose outputs over time a function reads."""

    def __init__(self, read: Callable[[Tensor], Tensor] = lambda outputs: outputs) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.read = nn.Linear(4, 5), read

    def forward(self, x: Tensor) -> Any:
        mem, outputs = self.start(x), []
        for x_t in x:
            mem = 0.9 * mem + self.fc(x_t)
            spikes = FastSigmoid.apply(mem - 0.5)
            mem = mem - spikes.detach()
            outputs.append(spikes)
        return self.read(torch.stack(outputs))

    def start(self, x: Tensor) -> Tensor:
        return torch.zeros(x.shape[1], 5)


LINE = SourceLine(__file__, 1, "the line")


def example(steps: int = 6, batch: int = 2) -> Tensor:
    torch.manual_seed(1)
    return 3 * torch.randn(steps, batch, 4)


def frozen(monkeypatch: pytest.MonkeyPatch, change: Callable[[fx.Graph], None], part: str = "epilogue") -> None:
    """Lets the capture take something from the example for a constant."""

    def freeze(emitted: Any) -> None:
        change(getattr(emitted, part).graph)
        getattr(emitted, part).recompile()

    broken(monkeypatch, freeze)


def freeze_numbers(graph: fx.Graph) -> None:
    for node in graph.nodes:
        if node.op == "call_method" and node.target == "size":
            node.replace_all_uses_with(node.meta["val"])  # type: ignore[arg-type]
            graph.erase_node(node)


def refusal_of(model: nn.Module, x: Tensor | None = None, **options: Any) -> ConversionError:
    with pytest.raises(ConversionError) as caught:
        tracecompile.convert(model, example() if x is None else x, **options)
    assert "report" not in str(caught.value)
    assert caught.value.where is not None
    assert caught.value.where.file == __file__
    return caught.value


def test_a_frozen_batch_size_is_caught_at_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen(monkeypatch, freeze_numbers, "prologue")
    assert "With 5 samples" in str(refusal_of(Read()))


def test_a_body_that_changes_late_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(Read):
        def forward(self, x: Tensor) -> Tensor:
            mem, total = self.start(x), 0.0
            for t, x_t in enumerate(x):
                if t == 20:
                    mem = mem * 0.0
                mem = 0.9 * mem + self.fc(x_t)
                total = total + FastSigmoid.apply(mem - 0.5)
            return total

    assert "mem * 0.0" in str(refusal_of(Late()))


def test_a_step_counter_in_an_attribute_is_caught_at_the_twentieth_call() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.calls, self.mem = nn.Linear(4, 5), 0, None

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            current = self.fc(x)
            self.mem = current if self.mem is None else 0.9 * self.mem + current
            if self.calls == 20:
                self.mem = self.mem * 0.0
            return FastSigmoid.apply(self.mem - 0.5)

    refusal_of(Counts(), example()[0])


def test_work_that_is_kept_for_every_step_is_refused_at_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def keep(graph: fx.Graph) -> None:
        collected = next(node for node in graph.nodes if node.op == "placeholder" and node.users)
        with graph.inserting_after(collected):
            kept = graph.call_method("cos", (collected,))
            kept.meta["where"] = LINE
        with graph.inserting_after(kept):
            changed = graph.call_method("exp", (kept,))
            changed.meta["where"] = LINE
        with graph.inserting_after(changed):
            nothing = graph.call_function(torch.mul, (changed, 0))
        with graph.inserting_after(nothing):
            total = graph.call_function(torch.add, (collected, nothing))
        collected.replace_all_uses_with(total, lambda user: user not in (kept, total))

    frozen(monkeypatch, keep)
    with pytest.raises(ConversionError, match="kept for every time step") as caught:
        tracecompile.convert(Read(), example())
    assert caught.value.where == LINE


def test_memory_that_grows_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Tensor] = []
    step = Executor._slices

    def slices(self: Any, inputs: Any, time: int) -> Any:
        kept.append(torch.ones(64))
        return step(self, inputs, time)

    monkeypatch.setattr(Executor, "_slices", slices)
    with pytest.raises(ConversionError, match="kept for every time step"):
        tracecompile.convert(Read(), example())


class Spread(nn.Module):
    """Keeps the spread of the spikes over time, which needs them all, of a number of steps that no input says."""

    def __init__(self, steps: int | None, spread: bool = True) -> None:
        super().__init__()
        self.fc, self.steps, self.spread = nn.Linear(4, 6), steps, spread

    def forward(self, x: Tensor) -> Any:
        steps = self.steps or len(x)
        mem, spikes = torch.zeros(x.shape[-2], 6), []
        for t in range(steps):
            mem = 0.9 * mem + self.fc(x if self.steps else x[t])
            spikes.append(FastSigmoid.apply(mem - 0.5))
        rows = torch.stack(spikes)
        if steps <= 7:  # makes each length a program of its own
            return rows.sum(0)
        return rows.var(0) if self.spread else rows.mean(0)


@pytest.mark.parametrize("steps", [None, 9])
def test_memory_is_compared_where_the_program_is_that_of_one_length(
    steps: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = (3, 4) if steps else (9, 3, 4)
    net = tracecompile.convert(Spread(steps), torch.randn(shape))
    assert any("computed after the loop needs the values of all time steps" in each for each in net.report.notes)
    net = tracecompile.convert(Spread(steps, spread=False), torch.randn(shape))
    assert not any("not compared" in each or "after the loop needs" in each for each in net.report.notes)
    monkeypatch.setattr(compiler, "with_epilogue_again", lambda *_: None)
    with pytest.raises(ConversionError, match="kept for every time step") as caught:
        tracecompile.convert(Spread(steps), torch.randn(shape))
    assert caught.value.where is not None
    assert "var" in caught.value.where.source


def test_other_values_in_chunks_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: Any, outputs: Any) -> None:
        right(self, [2 * value for value in outputs])

    right = Collector.add_chunk
    monkeypatch.setattr(Collector, "add_chunk", wrong)
    assert "steps computed together" in str(refusal_of(Read(), chunk=4, backend="eager"))
    tracecompile.convert(Read(), example(), backend="eager")


def test_another_draw_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    step = Ends.finish

    def drawing(self: Any, *args: Any) -> Any:
        torch.rand(1)
        return step(self, *args)

    monkeypatch.setattr(Ends, "finish", drawing)
    with pytest.raises(SelfCheckFailed, match="draws other random numbers"):
        tracecompile.convert(Read(), example())


def test_what_the_model_itself_refuses_is_said_and_no_error() -> None:
    class Strict(Read):
        def forward(self, x: Tensor) -> Any:
            assert x.shape[1] > 1, "a batch"
            return super().forward(x + torch.ones(11, 1, 4)[: x.shape[0]])

    notes = "\n".join(tracecompile.convert(Strict(), example()).report.notes)
    assert "does not run with 23 time steps" in notes
    assert "(11)" in notes
    assert "does not run with 1 sample " in notes
    assert "does not run with 3" not in notes


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_runs_under_any_grad_mode(mode: Callable[[], Any]) -> None:
    model, x = Read(), example()
    with mode():
        net = tracecompile.convert(model, x)
    net(example(9, 3)).sum().backward()


def test_every_generator_is_left_alone() -> None:
    states = random.getstate(), np.random.get_state()[1].tolist()
    tracecompile.convert(Read(), example())
    assert states[0] == random.getstate()
    assert states[1] == np.random.get_state()[1].tolist()
