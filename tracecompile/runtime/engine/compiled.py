"""Scans compiled by inductor: every distinct core once per length of a piece, whichever layer it belongs to.

A scan is unrolled and traced to elementary operations, with the user's own surrogate derivatives as they come out of
autograd, and compiled with sizes left open. States and derivatives then stay in registers for a whole piece. What
inductor keeps on disk serves the next run of the same program.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tracecompile.analysis.folding import runs_per_step
from tracecompile.program import StepProgram
from tracecompile.report import ExecutionReport
from tracecompile.runtime.engine.choice import Choice
from tracecompile.runtime.engine.flat import Layout, layout_of, precision, shape_pattern
from tracecompile.runtime.engine.inductor import Run
from tracecompile.runtime.engine.joint import Joints
from tracecompile.runtime.engine.kernels import Kernels, Key, Source
from tracecompile.runtime.engine.scan import Answers, Engine, ScanResult, Stretch
from tracecompile.runtime.engine.sums.instead import Instead
from tracecompile.runtime.engine.traced import Traced, Untraceable, agree, trace_step
from tracecompile.runtime.forms import UnitForm

PIECE = 16
"""Steps of a compiled scan. Twice as many take twice as long to compile and gain nothing measurable; what is left of a
chunk is run by a compiled scan of one step."""
RECURRENT_PIECE = 8
"""Steps of a compiled scan of a recurrent block that carries what the rule sums up: its products cannot be fused, so
that more of them save calls alone, and turn its weights less often. Half as many take a tenth longer; twice as many
take a tenth less, and half as long again to compile. What carries states alone has as many as any other."""
PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.Size)
"""What a compiled step may take for a constant."""

Made = TypeVar("Made")


@dataclass
class _Ready:
    """A scan for arguments of certain shapes, compiled once it runs: with its derivatives another one often does."""

    layout: Layout
    traced: Traced
    forward: Source
    run: Run | None = None

    def compiled(self, arguments: Sequence[Tensor]) -> Run:
        """Returns the scan, for arguments of these shapes."""
        if self.run is None:
            self.run = self.forward.compiled(arguments)
        return self.run


class CompiledEngine(Engine):
    """Runs the scans of one program compiled; those that cannot be compiled as they are.

    Attributes:
        kernels: Compiled code.
        obstacles: Why a unit is not compiled, by its layers.
    """

    def __init__(self, kernels: Kernels) -> None:
        """Compiles nothing yet."""
        self.kernels = kernels
        self.obstacles: dict[tuple[int, ...], str] = {}
        self._layouts: dict[Key, Layout] = {}
        self._ready: dict[Key, _Ready] = {}
        self._checked: set[tuple[int, ...]] = set()
        """Units whose compiled code was compared in this sequence."""
        self._foreseen = False
        self.joints = Joints(kernels)

    def begin(self) -> None:
        """See Engine."""
        self._checked = set()
        self.kernels.settle()
        self.joints.begin()

    def foresee(self, scans: Callable[[], Iterable[tuple[Stretch, Answers]]]) -> None:
        """See Engine: the first time, compilers begin with all of them before any is waited for."""
        if self._foreseen:
            return
        self._foreseen = True
        for given, answers in scans():
            if self._wanted(given):
                layout = self._layout(given.form, given.statics, answers != "last")
                plain = [value.detach() for value in layout.arguments(given)]
                ready = self._ready_for(layout, given.steps, plain)
                if ready is not None:
                    self._attempt(layout, functools.partial(ready.forward.begin, plain))

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledEngine:
        """Returns one that starts anew, for the copy of its kernels: it refers to layouts by identity."""
        return CompiledEngine(copy.deepcopy(self.kernels, memo))

    def report(self, program: StepProgram, choice: Choice) -> ExecutionReport:
        """Says how a sequence was run, and what is compiled so far.

        Args:
            program: Which.
            choice: What ran the sequence.
        """
        obstacles = tuple(
            f"{', '.join(program.layers[layer].name for layer in layers)}: not compiled, {reason}"
            for layers, reason in self.obstacles.items()
        )
        obstacles += tuple(
            f"a scan is compiled by torch.compile, which takes longer: {reason}" for reason in self.kernels.detours
        )
        if (reason := self.kernels.products.refused) is not None:
            obstacles += (f"products with spikes are those of torch: {reason}",)
        count, seconds = self.kernels.count, self.kernels.seconds
        return ExecutionReport(choice.backend, choice.chunk, choice.reason, count, seconds, obstacles)

    def products(self, graph: nn.Module, statics: Iterable[Any]) -> AbstractContextManager[None]:
        """See Engine."""
        products = self.kernels.products
        return (
            Instead(products) if products.stand([*graph.parameters(), *statics]) else super().products(graph, statics)
        )

    def forget(self) -> None:
        """See Engine."""
        self.kernels.products.forget()

    def pieces(self, form: UnitForm, steps: int) -> list[int]:
        """See Engine."""
        assert form.step is not None
        unit = form.unit
        if unit.layers not in self.obstacles and any(runs_per_step(module) for module in form.step.modules()):
            self._refuse(form, "a module in its step has hooks or counts what passes through it")
        if unit.layers in self.obstacles:
            return [steps]
        size = RECURRENT_PIECE if unit.recurrent and form.accruals else PIECE
        whole, left = divmod(steps, size)
        return [size] * whole + [1] * left

    def run(self, given: Stretch, answers: Answers) -> ScanResult:
        """See Engine."""
        form, layers = given.form, given.form.unit.layers
        if self._wanted(given):
            layout = self._layout(form, given.statics, answers != "last")
            arguments = layout.arguments(given)
            self.kernels.products.stand(layout.standing(arguments))
            plain = [value.detach() for value in arguments]
            ready = self._ready_for(layout, given.steps, plain)
            if ready is not None and layers not in self._checked:
                ready = self._up_to_date(ready, given.steps, plain)
            if ready is not None and torch.is_grad_enabled():
                forward, traced = ready.forward, ready.traced
                joint = self._attempt(layout, lambda: self.joints.get(layout, forward, traced, given.steps, arguments))
                if joint is not None:
                    return layout.result(joint.apply(arguments), [(0, 0)] * len(traced.counts))
            elif ready is not None:
                run = self._attempt(layout, lambda: ready.compiled(plain))
                if run is not None:
                    found = layout.result(run(*arguments), ready.traced.counts)
                    if answers == "means":
                        found.answers = [{key: _means(value) for key, value in core.items()} for core in found.answers]
                    return found
        return super().run(given, answers)

    def _wanted(self, given: Stretch) -> bool:
        """Tells whether a scan is to be compiled."""
        if not all(isinstance(value, (Tensor, *PLAIN)) for value in given.statics):
            self._refuse(given.form, "its step takes a value that is neither a tensor nor a number")
        return given.form.unit.layers not in self.obstacles

    def _layout(self, form: UnitForm, statics: Sequence[Any], each: bool) -> Layout:
        constants = tuple(value for value in statics if not isinstance(value, Tensor))
        key = (id(form), each, constants)
        if key not in self._layouts:
            self._layouts[key] = layout_of(form, statics, each)
        return self._layouts[key]

    def _ready_for(self, layout: Layout, steps: int, arguments: Sequence[Tensor]) -> _Ready | None:
        """Returns the compiled scan for arguments of these shapes, or None where it cannot be compiled."""
        alike = tuple((value.shape, value.dtype, value.device) for value in arguments)
        key = (id(layout), steps, precision(arguments[0].device), alike)
        if key not in self._ready:
            found = self._attempt(layout, lambda: self._prepare(layout, steps, arguments))
            if found is None:
                return None
            self._ready[key] = found
        return self._ready[key]

    def _attempt(self, layout: Layout, make: Callable[[], Made]) -> Made | None:
        """Compiles something; None, with a warning, where that cannot be."""
        try:
            with torch.no_grad():
                return make()
        except Untraceable as reason:
            self._refuse(layout.form, str(reason))
        except Exception as fault:  # the user's own surrogate is run by tracers here: anything may come out of it
            lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
            self._refuse(layout.form, " ".join([f"{type(fault).__name__}:", *lines[:2]]))
        return None

    def _up_to_date(self, ready: _Ready, steps: int, arguments: Sequence[Tensor]) -> _Ready | None:
        """Compares what is compiled with a step of the unit as it is now, once in every sequence.

        A surrogate may have been given another slope since, which is a number in what is compiled.
        """
        layout = ready.layout
        self._checked.add(layout.form.unit.layers)
        given = layout.first_step(arguments)
        if agree(ready.traced.step(*given), layout.step_of(*given)):
            return ready
        self._ready = {key: other for key, other in self._ready.items() if other.layout is not layout}
        anew = self._ready_for(layout, steps, arguments)
        if anew is None or agree(anew.traced.step(*given), layout.step_of(*given)):
            return anew
        self._refuse(layout.form, "its step does not compute the same twice from the same values")
        return None

    def _prepare(self, layout: Layout, steps: int, arguments: Sequence[Tensor]) -> _Ready:
        traced = trace_step(layout, arguments)
        alike = tuple((value.dtype, value.device) for value in arguments)
        autocast = precision(arguments[0].device)
        key = (traced.text, layout.structure(), steps, shape_pattern(arguments), alike, autocast)
        return _Ready(layout, traced, Source(self.kernels, key, layout.scan_of(traced.step, steps)))

    def _refuse(self, form: UnitForm, reason: str) -> None:
        layers = form.unit.layers
        if layers in self.obstacles:
            return
        self.obstacles[layers] = reason
        warnings.warn(f"A block is run without being compiled: {reason}", stacklevel=2)


def _means(values: Tensor) -> Tensor:
    """Returns the mean over all neurons of each step."""
    return values.flatten(1).mean(1) if values.ndim > 1 else values
