"""The passes in their order, over steps written by hand."""

from __future__ import annotations

import pytest
from support.hand_built import STEPS, hand_built

from tracecompile.errors import PassError
from tracecompile.passes.partition_layers import PartitionLayers
from tracecompile.passes.pipeline import PIPELINE, run_pipeline
from tracecompile.program import StepProgram

NAMES = [step.name for step in PIPELINE]


class DropsALayer(PartitionLayers):
    """Forgets the last layer."""

    name = "drops_a_layer"

    def run(self, program: StepProgram) -> StepProgram:
        found = super().run(program)
        return found.evolve(layers=found.layers[:-1])


def test_the_order() -> None:
    assert NAMES == [
        "draw_ahead",
        "find_spiking_layers",
        "partition_layers",
        "insert_input_traces",
        "insert_rate_inversion",
        "schedule_time",
        "emit_module",
    ]


def test_stages_are_in_the_order_of_the_pipeline() -> None:
    program, stages = run_pipeline(hand_built("one layer"))
    assert [name for name, _ in stages.programs] == [name for name, _ in stages.texts] == ["capture", *NAMES]
    assert stages.programs[-1][1] is program
    assert "model.fc(x)" in stages.texts[0][1]


@pytest.mark.parametrize("rule", ["measured", "analytic", "bptt"])
@pytest.mark.parametrize("name", STEPS)
def test_every_pass_keeps_its_promises(name: str, rule: str) -> None:
    program, _ = run_pipeline(hand_built(name, rule=rule))
    assert program.emitted is not None


def test_an_error_names_the_passes_that_ran_before() -> None:
    passes = (*PIPELINE[:2], DropsALayer(), *PIPELINE[3:])
    with pytest.raises(
        PassError, match=r"^Pass drops_a_layer broke .*\. It ran after draw_ahead, find_spiking_layers\."
    ):
        run_pipeline(hand_built("lateral"), passes)
    with pytest.raises(
        PassError, match=r"^Pass emit_module cannot run: .* after draw_ahead, find_spiking_layers, partition_layers\."
    ):
        run_pipeline(hand_built("lateral"), (*PIPELINE[:3], PIPELINE[-1]))


def test_no_passes_change_nothing() -> None:
    program = hand_built("one layer")
    found, stages = run_pipeline(program, ())
    assert found is program
    assert [name for name, _ in stages.programs] == ["capture"]
