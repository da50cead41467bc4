"""Whatever a pass writes into the program that it was given is seen."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.hand_built import STEPS, before, hand_built
from torch import nn

import tracecompile
from tracecompile import nn as snn
from tracecompile.passes import base
from tracecompile.passes.emit_module import EmitModule
from tracecompile.passes.pipeline import run_pipeline
from tracecompile.passes.untouched import Untouched
from tracecompile.program import StepProgram


def node(program: StepProgram, name: str) -> Any:
    return next(each for each in program.step.graph.nodes if each.name == name)


def other_argument(program: StepProgram) -> None:
    node(program, "sub").args = (node(program, "add"), 2.0)


def other_operation(program: StepProgram) -> None:
    node(program, "mul").target = torch.add


def one_node_more(program: StepProgram) -> None:
    with program.step.graph.inserting_after(node(program, "fc")):
        program.step.graph.call_function(torch.relu, (node(program, "fc"),))


def node_renamed(program: StepProgram) -> None:
    node(program, "fc").name = "current"


def example_replaced(program: StepProgram) -> None:
    node(program, "fc").meta["val"] = node(program, "fc").meta["val"].clone()


def example_written_to(program: StepProgram) -> None:
    node(program, "fc").meta["val"].zero_()


def line_replaced(program: StepProgram) -> None:
    node(program, "fc").meta["where"] = "elsewhere"


def weight_written_to(program: StepProgram) -> None:
    with torch.no_grad():
        program.root.get_parameter("fc.weight").mul_(2)


def weight_replaced(program: StepProgram) -> None:
    program.root.get_submodule("fc").weight = nn.Parameter(torch.zeros(4, 3))


def buffer_moved(program: StepProgram) -> None:
    program.root.get_submodule("norm")(torch.randn(4, 4))


def module_exchanged(program: StepProgram) -> None:
    """Puts another normalisation into its place, over the same tensors."""
    before, other = program.root.get_submodule("norm"), nn.BatchNorm1d(4, eps=1.0)
    other._parameters, other._buffers = before._parameters, before._buffers
    program.root.norm = other


def mode_changed(program: StepProgram) -> None:
    program.root.get_submodule("norm").eval()


def leaf_added(program: StepProgram) -> None:
    program.leaves["other"] = nn.Identity()


def leaf_exchanged(program: StepProgram) -> None:
    program.leaves["spike"] = nn.Identity()


def constant_written_to(program: StepProgram) -> None:
    program.constants["one"].add_(1)


def unit_written_to(program: StepProgram) -> None:
    graph = program.units[0].below.graph
    with graph.inserting_before(next(iter(graph.nodes))):
        graph.placeholder("more")


def row_forgotten(program: StepProgram) -> None:
    program.layers[0].response.rows.clear()  # type: ignore[union-attr]


def frozen_written_to(program: StepProgram) -> None:
    object.__setattr__(program.layers[0], "name", "another")


CHANGES: dict[str, tuple[Callable[[StepProgram], None], str]] = {
    change.__name__: (change, part)
    for change, part in (
        *((change, "step") for change in (other_argument, other_operation, one_node_more, node_renamed)),
        *((change, "step") for change in (example_replaced, example_written_to, line_replaced)),
        *((change, "root") for change in (weight_written_to, weight_replaced, buffer_moved, mode_changed)),
        (module_exchanged, "root"),
        *((change, "leaves") for change in (leaf_added, leaf_exchanged)),
        (constant_written_to, "constants"),
        (unit_written_to, "units"),
        *((change, "layers") for change in (row_forgotten, frozen_written_to)),
    )
}


def made() -> StepProgram:
    """Returns a program with all that passes make, and a constant."""
    program = before(EmitModule, hand_built("lateral"))
    return program.evolve(constants={"one": torch.ones(1)})


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change: str) -> None:
    program = made()
    untouched = Untouched(program)
    assert untouched.changed() is None
    write, part = CHANGES[change]
    write(program)
    assert untouched.changed() == part


def test_what_an_analysis_notes_down_is_no_change() -> None:
    program = made()
    untouched = Untouched(program)
    node(program, "fc").meta["acts_on_elements"] = False
    assert untouched.changed() is None


def test_a_tensor_of_inference_mode_can_be_looked_at() -> None:
    with torch.inference_mode():
        program = hand_built("one layer").evolve(constants={"one": torch.ones(1)})
    untouched = Untouched(program)
    program.constants["one"] = torch.ones(1)
    assert untouched.changed() == "constants"


@pytest.mark.parametrize("name", STEPS)
def test_no_pass_changes_what_it_is_given(name: str) -> None:
    captured = hand_built(name)
    untouched = Untouched(captured)
    program, stages = run_pipeline(captured)
    of_stages = [Untouched(each) for _, each in stages.programs]
    assert stages.texts[-1][1] != stages.texts[0][1]
    assert untouched.changed() is None
    assert [each.changed() for each in of_stages] == [None] * len(stages.programs)
    assert program is stages.programs[-1][1]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.below, self.neurons, self.readout = nn.Linear(4, 8), snn.RLIF(8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state, total = None, 0.0
        for x_t in x:
            spikes, state = self.neurons(self.below(x_t), state)
            total = total + self.readout(spikes)
        return total / len(x)


def test_it_costs_little_of_a_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    spent = []

    class Timed(Untouched):
        """Counts the time of this process: other work on the machine does not count."""

        def __init__(self, program: StepProgram) -> None:
            start = time.process_time()
            super().__init__(program)
            spent.append(time.process_time() - start)

        def changed(self) -> str | None:
            start = time.process_time()
            found = super().changed()
            spent.append(time.process_time() - start)
            return found

    x = torch.randn(10, 5, 4)
    tracecompile.convert(Net(), x)  # imports
    monkeypatch.setattr(base, "Untouched", Timed)
    start = time.process_time()
    for _ in range(3):
        tracecompile.convert(Net(), x)
    whole = time.process_time() - start
    assert len(spent) >= 3 * 2 * 6
    assert sum(spent) < 0.03 * whole
