"""The scans that a sequence will take, before it runs: compilers of distinct cores run side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from tracecompile.program import example_value, step_results
from tracecompile.runtime.engine.scan import Answers, Engine, Stretch
from tracecompile.runtime.forms import UnitForm
from tracecompile.runtime.loop import Loop
from tracecompile.runtime.span import Span


def foreseen(
    loop: Loop, engine: Engine, inputs: Mapping[str, Tensor], lengths: Sequence[int]
) -> Iterator[tuple[Stretch, Answers]]:
    """Yields the first scan of every unit, and one of every other length and of every other shape of its states.

    Values are as large as in the example: nothing where a sequence is not.

    Args:
        loop: Has entered the first piece.
        engine: Will run the scans.
        inputs: Of the step, by placeholder, (steps, *shape) each.
        lengths: Of all pieces.
    """
    step = loop.program.step
    examples = {node.name: example_value(node) for node in step.graph.nodes}
    units = [form for form in loop.form.units if form.step is not None and not form.unit.in_turn]
    alike = all(_alike(value[0], examples.get(name)) for name, value in inputs.items())
    cast = any(torch.is_autocast_enabled(value.device.type) for value in inputs.values())
    if cast or not alike:
        return
    later = {name: example_value(node) for name, node in zip(_carries(loop), step_results(step)[1], strict=True)}
    span = _Foreseen(loop, engine, {}, lengths[0])
    for form in units:
        first, *others = [size for length in lengths for size in engine.pieces(form, length)]
        starts = [(first, span.states), *((size, later) for size in sorted(set(others), reverse=True))]
        for steps, states in starts:
            given = span.scan_of(form, steps, examples, states)
            if given is not None:
                yield given, span._answers()


class _Foreseen(Span):
    """What a piece would begin its scans with."""

    def scan_of(
        self, form: UnitForm, steps: int, examples: Mapping[str, object], states: Mapping[str, object]
    ) -> Stretch | None:
        """Returns a scan of a unit on values of any kind; None where their shapes are not known."""
        unit = form.unit
        rows = [examples.get(name) for name in unit.values]
        carries = [states[name] for name in unit.carries]
        values = [each.new_zeros((steps, *each.shape)) for each in rows if isinstance(each, Tensor)]
        begun = [torch.zeros_like(each) for each in carries if isinstance(each, Tensor)]
        if len(values) < len(rows) or len(begun) < len(carries):
            return None
        statics = [self.loop.statics[name] for name in unit.step_statics]
        accrued = self._begun(form, begun, values)
        return Stretch(form, steps, values, begun, statics, accrued, self.loop.twins)


def _carries(loop: Loop) -> list[str]:
    return [carry.placeholder for carry in loop.program.carries]


def _alike(value: Tensor, example: object) -> bool:
    """Tells whether a value is as in the example."""
    if not isinstance(example, Tensor):
        return False
    return (value.shape, value.dtype, value.device) == (example.shape, example.dtype, example.device)
