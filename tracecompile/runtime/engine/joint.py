"""Scans with their derivatives, compiled: forward as any scan, and one call that runs it again and goes backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tracecompile.analysis.differentiable import differentiable
from tracecompile.runtime.engine.backstep import Backstep, both_ways, results_of_step, trace_backstep
from tracecompile.runtime.engine.both_ways import Run, backward_scan, keeping_scan
from tracecompile.runtime.engine.divided import Places
from tracecompile.runtime.engine.flat import Layout, precision, shape_pattern
from tracecompile.runtime.engine.kernels import Kernels, Key, Source
from tracecompile.runtime.engine.traced import Traced, agree


@dataclass(frozen=True)
class Joint:
    """One scan with its backward.

    Attributes:
        forward: (*arguments) to (*results, *kept).
        back: (*values, *carries or kept, *what every step reads, *cotangents) to the gradients of the wanted arguments.
        wanted: Positions of these.
        count: How many results of the scan forward have cotangents.
        keeps: Whether something is kept.
        places: Of the arguments.
    """

    forward: Run
    back: Run
    wanted: tuple[int, ...]
    count: int
    keeps: bool
    places: Places

    def apply(self, arguments: Sequence[Tensor]) -> Sequence[Tensor]:
        """Runs the scan forward; autograd will run it backward."""
        results: Sequence[Tensor] = ScanFunction.apply(self, *arguments)
        return results

    def saved(self, arguments: Sequence[Tensor], results: Sequence[Tensor]) -> list[Tensor]:
        """Returns what the scan backward begins with, of the arguments and results of the scan forward."""
        if not self.keeps:
            return list(arguments)
        kept = results[self.count :]
        return [*arguments[: self.places.values], *kept, *arguments[self.places.moving : self.places.count]]


class Joints:
    """The scans backward of one program."""

    def __init__(self, kernels: Kernels) -> None:
        """Compiles nothing yet."""
        self.kernels = kernels
        self._backsteps: dict[Key, Backstep] = {}
        self._checked: set[Key] = set()
        """Steps backward that were compared in this sequence."""
        self._made: dict[Key, Joint] = {}

    def begin(self) -> None:
        """Says that a sequence begins."""
        self._checked = set()

    def get(self, layout: Layout, forward: Source, traced: Traced, steps: int, arguments: Sequence[Tensor]) -> Joint:
        """Returns the scan backward for arguments like some, compiled now if there is none.

        Args:
            layout: Of the unit.
            forward: The scan forward, for steps of which nothing is kept.
            traced: A step of it.
            steps: How many it has.
            arguments: Of the scan, with their graph.
        """
        unit, plain = layout.form.unit, [value.detach() for value in arguments]
        first, last = len(unit.values), len(unit.values) + len(unit.carries)
        wanted = tuple(
            place
            for place, value in enumerate(arguments)
            # A state that starts without a gradient has one from the second step on.
            if value.requires_grad or (first <= place < last and differentiable(value))
        )
        back = self._backstep(layout, plain, wanted)
        alike = tuple((value.dtype, value.device) for value in plain)
        patterns = shape_pattern(plain), precision(plain[0].device)
        key = ("joint", back.text, traced.text, layout.structure(), steps, wanted, patterns, alike)
        shapes = (key, tuple(value.shape for value in plain))
        if shapes not in self._made:
            parts = back.parts
            count, keeps = len(unit.outputs) + len(unit.carries), parts.forward is not None
            if keeps:
                forward = Source(self.kernels, ("keeping", *key), keeping_scan(parts, steps))
            backward = Source(self.kernels, key, backward_scan(parts, traced.step, steps))
            joint = Joint(forward.code, forward.code, wanted, count, keeps, parts.places)
            results = [value.clone() for value in forward.code(*plain)]
            given = [*joint.saved(plain, results), *(torch.ones_like(value) for value in results[:count])]
            forward.begin(plain)
            backward.begin(given)
            self._made[shapes] = replace(joint, forward=forward.compiled(plain), back=backward.compiled(given))
        return self._made[shapes]

    def _backstep(self, layout: Layout, arguments: Sequence[Tensor], wanted: tuple[int, ...]) -> Backstep:
        """Returns a step backward as it is now, compared with autograd once in every sequence."""
        alike = tuple((value.shape, value.dtype) for value in arguments)
        key = (id(layout), wanted, precision(arguments[0].device), alike)
        back = self._backsteps.get(key)
        if back is not None and key not in self._checked:
            given = layout.first_step(arguments)
            signals = [torch.ones_like(value) for value in results_of_step(layout.step_of(*given))]
            if not agree(back.step(*given, *signals), both_ways(layout, wanted)(*given, *signals)):
                back = None
        self._checked.add(key)
        if back is None:
            back = self._backsteps[key] = trace_backstep(layout, arguments, wanted)
        return back


class ScanFunction(torch.autograd.Function):
    """A compiled scan whose derivative is compiled as well."""

    @staticmethod
    def forward(ctx: Any, joint: Joint, *arguments: Tensor) -> Any:
        """Returns the flat results of the scan: its outputs, and its last carries."""
        # Without their graph: the compiler of compiled code looks at it, though nothing is followed here.
        found = tuple(joint.forward(*(value.detach() for value in arguments)))
        results = found[: joint.count]
        ctx.joint, ctx.count = joint, len(arguments)
        ctx.save_for_backward(*joint.saved(arguments, found))
        ctx.mark_non_differentiable(*(value for value in results if not differentiable(value)))
        return results

    @staticmethod
    def backward(ctx: Any, *signals: Tensor) -> Any:
        """Runs the scan backward."""
        given = (value.detach() for value in (*ctx.saved_tensors, *signals))
        found = ctx.joint.back(*(value.contiguous() for value in given))
        gradients: list[Tensor | None] = [None] * ctx.count
        for place, gradient in zip(ctx.joint.wanted, found, strict=True):
            gradients[place] = gradient
        return None, *gradients
