"""The compiler's table of contents: the passes, in order."""

from __future__ import annotations

from tracecompile.passes.base import Pass
from tracecompile.passes.draw_ahead import DrawAhead
from tracecompile.passes.emit_module import EmitModule
from tracecompile.passes.find_spiking_layers import FindSpikingLayers
from tracecompile.passes.insert_input_traces import InsertInputTraces
from tracecompile.passes.insert_rate_inversion import InsertRateInversion
from tracecompile.passes.partition_layers import PartitionLayers
from tracecompile.passes.schedule_time import ScheduleTime
from tracecompile.printing import Stages
from tracecompile.program import StepProgram

PIPELINE: tuple[Pass, ...] = (
    DrawAhead(),
    FindSpikingLayers(),
    PartitionLayers(),
    InsertInputTraces(),
    InsertRateInversion(),
    ScheduleTime(),
    EmitModule(),
)


def run_pipeline(program: StepProgram, passes: tuple[Pass, ...] = PIPELINE) -> tuple[StepProgram, Stages]:
    """Runs the passes over a captured program.

    Args:
        program: As captured, with the user's settings.
        passes: In order.

    Returns:
        The program with everything that the runtime needs, and what it was after capture and after every pass.

    Raises:
        ConversionError: A pass refused the model, or (PassError) broke its contract.
    """
    stages = [("capture", program)]
    for step in passes:
        program = step(program, [name for name, _ in stages[1:]])
        stages.append((step.name, program))
    return program, Stages(stages)
