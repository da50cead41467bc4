"""The last step of a loop, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tracecompile.program import StepProgram
from tracecompile.runtime.forms import Form
from tracecompile.runtime.record import Moment, Record, owned


@dataclass(frozen=True)
class Last:
    """The last step.

    Attributes:
        read: What the traces have added up of it, in their order.
        of_layers: By layer (outputs, answers, derivatives); only the last two count where several steps were one piece.
            Empty where nobody was to see it.
    """

    read: Sequence[Tensor]
    of_layers: Sequence[Any]

    def moment(self, program: StepProgram, form: Form, record: Record, index: int) -> Moment:
        """Returns it as a moment.

        Args:
            program: Whose step it was.
            form: That was run.
            record: It is in, its bin not folded.
            index: That bin.
        """
        changes, first, derivatives = {}, {}, {}
        for core in form.cores:
            tangents, of_layer = record.responses[core.layer].tangents, self.of_layers[core.index]
            tangents.enter(index)
            changes[core.layer] = owned(tangents.answers(core.answers(of_layer)))
            derivatives[core.layer] = owned(core.derivatives(of_layer))
            first[core.layer] = tangents.first
        traces = (accrual.pair for accrual in program.traces_kept)
        values = owned(dict(zip(traces, self.read, strict=True)))
        return Moment(record.clock.steps - 1, index, values, changes, first, derivatives)
