"""With a record, the text of a program folds what the runtime folds, bit for bit, and makes the model's values."""

from __future__ import annotations

import ast
import copy
import operator
from typing import Any

import pytest
import torch
from models import MODELS
from torch import Tensor, fx, nn

import tracecompile
from printing.executed import require_same
from printing.test_stages import OWN, own_models
from printing.test_text import made_of
from tracecompile.graphs.glue import accruals_of
from tracecompile.printing import Printed, print_program
from tracecompile.printing.page import Page
from tracecompile.program import StepProgram
from tracecompile.runtime.loop import Loop
from tracecompile.runtime.module import session_of

FROM_HERE_ON = "insert_input_traces"
SETTINGS = {
    "measured, 1 bin": {"rule": "measured", "bins": 1},
    "measured, 4 bins": {"rule": "measured", "bins": 4},
    "measured, decay": {"rule": "measured", "decay": 0.9},
    "analytic": {"rule": "analytic"},
}
HAND_WRITTEN = ("two_recurrent_layers", "adaptive_threshold", "tuple_state")
Folds = dict[str, list[Tensor]]


@pytest.fixture
def folds(monkeypatch: pytest.MonkeyPatch) -> Folds:
    """What the runtime folds from here on, by the names of the accruals."""
    found: Folds = {}
    fold = Loop.fold

    def noting(self: Loop) -> None:
        if self.record is not None and self.since:
            for accrual, total in zip(self.form.accruals, self.accrued, strict=True):
                found.setdefault(accrual.name, []).append(total.clone())
        fold(self)

    monkeypatch.setattr(Loop, "fold", noting)
    return found


def own(values: Any) -> Any:
    return copy.deepcopy(values)


def names_of(program: StepProgram) -> list[str]:
    accruals = (*program.traces_kept, *(a for layer in program.layers for a in accruals_of(layer)))
    return [accrual.name for accrual in accruals]


def require_records(model: nn.Module, args: tuple[Any, ...], folds: Folds, **options: Any) -> None:
    net = tracecompile.convert(copy.deepcopy(model), args, backend="eager", chunk=1, **options)
    torch.manual_seed(3)
    expected = copy.deepcopy(model)(*own(args))
    source = copy.deepcopy(net.source)
    folds.clear()
    torch.manual_seed(3)
    net(*own(args))
    window = session_of(net).live.window
    if window is not None:  # of a stream, whose bins are still open
        window.settle()
    assert folds
    stages = session_of(net).ready.stages
    names = [name for name, _ in stages.programs]
    first = names.index(FROM_HERE_ON)
    for place, (name, program) in enumerate(stages.programs):
        printed = stages.printed[place].run()
        if place < first:
            assert "record" not in printed["run"].__code__.co_varnames, name
            continue
        record: Folds = {}
        torch.manual_seed(3)
        require_same(printed["run"](copy.deepcopy(source), *own(args), record=record), expected, name)
        torch.manual_seed(3)
        require_same(printed["run"](copy.deepcopy(source), *own(args)), expected, name)
        called = dict(zip(names_of(program), printed["CARRIED"], strict=True))
        assert list(record) == list(called.values())
        if place > first:
            assert set(folds) <= set(called), name
        for accrual in called.keys() & folds.keys():
            require_same(record[called[accrual]], folds[accrual], f"{name}: {accrual}")


@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("name", [name for name in OWN if name != "states"])
def test_the_record_is_that_of_the_runtime(name: str, options: dict[str, Any], folds: Folds) -> None:
    model, args = own_models()[name]
    require_records(model, args, folds, **options)


@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_the_record_of_a_hand_written_model_is_that_of_the_runtime(
    name: str, options: dict[str, Any], folds: Folds
) -> None:
    case = MODELS[name]
    given = case.example_inputs(7, 3)
    require_records(case.factory(), given if isinstance(given, tuple) else (given,), folds, **options)


@pytest.mark.parametrize("bins", [1, 4])
def test_a_first_step_that_stands_apart_is_folded_by_itself(
    bins: int, folds: Folds, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, args = own_models()["library"]
    net = tracecompile.convert(model, args, backend="eager", chunk=1, bins=bins)
    follow = Loop.follow

    def apart(self: Loop, *given: Any) -> None:
        follow(self, *given)
        self.first_apart = True

    monkeypatch.setattr(Loop, "follow", apart)
    folds.clear()
    net(*args)
    printed = print_program(net.program.evolve(first_apart=True), "emit_module").run()
    record: Folds = {}
    printed["run"](net.source, *args, record=record)
    called = dict(zip(names_of(net.program), printed["CARRIED"], strict=True))
    assert {len(totals) for totals in folds.values()} == {bins + 1}
    for accrual, totals in folds.items():
        require_same(record[called[accrual]], totals, accrual)


def test_every_bin_has_an_entry(folds: Folds) -> None:
    model, args = own_models()["library"]
    require_records(model, args, folds, bins=3)
    assert {len(totals) for totals in folds.values()} == {3}


def test_every_call_of_a_step_has_an_entry() -> None:
    model, args = own_models()["states"]
    net = tracecompile.convert(copy.deepcopy(model), args)
    run, record = _printed(net, "emit_module").run()["run"], {}
    for count in (1, 2):
        require_same(run(net.source, *own(args), record=record), model(*own(args)), "values")
        assert {len(totals) for totals in record.values()} == {count}


def test_what_is_carried_is_called_after_what_it_is() -> None:
    model, args = own_models()["library"]
    net = tracecompile.convert(model, args, bins=2)
    texts = {name: printed.text for name, printed in zip(dict(net.stages), _all(net), strict=True)}
    traces, inversion, emitted = (
        texts[name].partition("def traced_step(")[2].partition("\n# ---")[0]
        for name in ("insert_input_traces", "insert_rate_inversion", "emit_module")
    )
    for text in (traces, inversion, emitted):
        assert "    # insert_input_traces: one for each source\n    trace_x_t = accumulated(trace_x_t, x_t)\n" in text
        assert "    trace_spike = accumulated(trace_spike, spike)\n" in text
    assert "tangent_" not in traces
    assert "_in_trace_form(\n" in inversion
    note = "    # insert_rate_inversion: derivative of neurons and what it does to the outputs\n"
    assert emitted.count(note) == 1
    total = "response_spike_by_weights"
    assert f"    {total} = product_accumulated({total}, slope_spike_by_weights, " in emitted
    assert "    tangent_neurons_membrane_by_weights = spread(" in emitted
    assigned = [node.targets[0] for node in ast.walk(ast.parse(texts["emit_module"])) if isinstance(node, ast.Assign)]
    written = {target.id for target in assigned if isinstance(target, ast.Name)}
    assert not [name for name in written if name.startswith(("accumulated", "spread", "precise"))]


def test_a_name_is_taken_over_once_nobody_reads_its_old_value() -> None:
    def build(graph: fx.Graph, a: fx.Node, b: fx.Node) -> Any:
        moved = graph.call_function(operator.add, (a, b))
        other = graph.call_function(operator.mul, (a, b))
        return moved, other, moved

    graph = made_of(build, "a", "b")
    first, second = (node for node in graph.nodes if node.op == "call_function")
    page = Page()
    function = page.add(fx.GraphModule({}, graph), "made", {first: "a", second: "b"})
    page.close()
    text = Printed("\n".join([*page.head(), *page.print(function)]), {})
    # The product still reads what a and b were when the sum is made; nobody does after it.
    assert "    a_next = a + b\n    b = a * b\n    return a_next, b, a_next" in text.text
    found = text.run()["made"](torch.tensor(3.0), torch.tensor(4.0))
    assert [float(value) for value in found] == [7.0, 12.0, 7.0]


def _all(net: tracecompile.TracedModule) -> list[Printed]:
    return list(session_of(net).ready.stages.printed)


def _printed(net: tracecompile.TracedModule, stage: str) -> Printed:
    return _all(net)[[name for name, _ in net.stages].index(stage)]
