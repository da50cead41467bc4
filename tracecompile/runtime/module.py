"""TracedModule: the converted network."""

from __future__ import annotations

import copy
import dataclasses
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tracecompile.capture.copying.copies import copy_as_they_are, detach_leftovers
from tracecompile.capture.loops.lengths import TimeSource
from tracecompile.capture.tracing.source import line_of_forward
from tracecompile.compile import Compiled, compile_model, going_again, shape_of, with_epilogue_again
from tracecompile.diagnostics.report import ConversionReport
from tracecompile.errors import ConversionError, InvalidInput, UnsupportedOperation
from tracecompile.program import Settings
from tracecompile.runtime.anchors import with_anchors
from tracecompile.runtime.arguments import Call
from tracecompile.runtime.bins import StreamClock
from tracecompile.runtime.chunked.compiled import Kernels
from tracecompile.runtime.executor import Executor
from tracecompile.runtime.live import LiveState, count_states
from tracecompile.runtime.rerun import Prepared
from tracecompile.self_check import Checked, check_against_model

MOST_PROGRAMS = 8
"""Programs that are kept, for a model whose mode or whose arguments' kind alternates."""


class TracedModule(nn.Module):
    """A model in trace form: its values, trained in memory that does not grow with the number of time steps.

    Made by ``tracecompile.convert``. It has the model's submodules, parameters and buffers (the very same tensors), the
    signature of its forward, and the structure of its result. ``loss.backward()`` on anything computed from the outputs
    runs the local graphs once.
    """

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        """Takes a copy of the model that shares its tensors; compile with ``compile_with`` or at the first call."""
        super().__init__()
        self._settings = settings
        self._compiled: Compiled | None = None
        self._executor: Executor | None = None
        self._programs: list[tuple[Compiled, Executor]] = []
        """What has been compiled, for each mode and kind of arguments, the last one used last."""
        self._live = LiveState()
        self._kernels = Kernels()
        # The tables of the copy: what is moved or loaded here is moved or loaded there.
        self._parameters, self._buffers, self._modules = model._parameters, model._buffers, model._modules
        self._non_persistent_buffers_set = model._non_persistent_buffers_set
        self.training = model.training
        # In a list, so that it does not become a submodule: its tables are this module's own.
        self._copy = [model]

    def compile_with(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Captures and compiles the model from the inputs of one call.

        Raises:
            ConversionError: The model is refused.
        """
        model = self._copy[0]
        model.training = self.training
        # Whatever the mode of the caller: the rules differentiate the step.
        with torch.inference_mode(False), torch.enable_grad(), naming_a_line(model):
            args, kwargs = pytree.tree_map(_ordinary, (args, kwargs))
            compiled = self._compiled_for(args, kwargs)
            program = compiled.program
            try:
                self._install(compiled, args, kwargs)
            except UnsupportedOperation:
                raise
            except ConversionError as refusal:
                if program.length_bound or program.time == (None, None):
                    raise
                # What is another program at another length may be right as it is at this one.
                try:
                    compiled = compile_model(model, args, kwargs, self._settings, TimeSource(*program.time))
                    self._install(compiled, args, kwargs)
                except ConversionError as own:
                    # That memory grows is the model's business; any other fault shows best at a length that is free.
                    raise (own if isinstance(own, UnsupportedOperation) else refusal) from None

    def _compiled_for(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Compiled:
        """Compiles the model for a call: for its length alone, where another call has shown that each is another."""
        model = self._copy[0]
        bound = next((one.program for one, _ in reversed(self._programs) if one.program.length_bound), None)
        if bound is not None:
            try:
                compiled = compile_model(model, args, kwargs, self._settings, TimeSource(*bound.time))
                return going_again(compiled, bound.epilogue_again)
            except ConversionError:
                pass  # what says how long this call is may be something else
        return compile_model(model, args, kwargs, self._settings)

    def _install(self, compiled: Compiled, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Takes what was compiled into use, if it is the model."""
        before = self._compiled, self._executor
        try:
            try:
                checked = self._checked(compiled, args, kwargs)
            except UnsupportedOperation as refusal:
                # What comes after the loop keeps the steps for its derivatives. It need not.
                if (again := with_epilogue_again(compiled, refusal.where)) is None:
                    raise
                compiled = again
                checked = self._checked(compiled, args, kwargs)
        except ConversionError:
            self._compiled, self._executor = before
            raise
        report = dataclasses.replace(compiled.report, notes=(*compiled.report.notes, *checked.notes))
        shape = shape_of(compiled.program, args, kwargs, checked.batch_axes)
        self._compiled, executor = dataclasses.replace(compiled, report=report, shape=shape), self._executor
        assert executor is not None
        self._programs = [*self._programs[1 - MOST_PROGRAMS :], (self._compiled, executor)]

    def _checked(self, compiled: Compiled, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Checked:
        self._compiled, self._executor = compiled, Executor(compiled.program, self._kernels)
        return check_against_model(self, self._copy[0], args, kwargs)

    @property
    def source(self) -> nn.Module:
        """The copy of the model that shares its tensors: what the programs run on."""
        return self._copy[0]

    @property
    def _ready(self) -> Compiled:
        if self._compiled is None:
            raise InvalidInput(
                "The model is not captured yet.", "Call the module once, or pass example_inputs to convert."
            )
        return self._compiled

    @property
    def report(self) -> ConversionReport:
        """What the compiler found and what it made of it."""
        report, executor = self._ready.report, self._executor
        return report if executor is None else dataclasses.replace(report, execution=executor.execution())

    @property
    def stages(self) -> list[tuple[str, str]]:
        """The program after capture and after each pass as Python that runs, (pass name, text), in order.

        Each text ends in ``run(model, *arguments)``. It is printed when it is asked for; of a pass that changed nothing
        there is only a line that says so.
        """
        return self._ready.stages.texts

    @property
    def code(self) -> str:
        """The program after the last pass as Python that runs: the whole text, whether that pass changed it or not."""
        return self._ready.stages.code

    # Calls.

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the model.

        Args:
            *args: As the model's forward takes them; batch size, sequence length, dtype and device are free.
            **kwargs: Likewise.

        Returns:
            What the model's forward returns.

        Raises:
            InvalidInput: The arguments do not fit the model.
        """
        executor, call = self._prepared_for(args, kwargs)
        program = executor.program
        try:
            if program.kind == "sequence":
                keeps = any(carry.kept for carry in program.carries)
                left = self._live.states if keeps else None
                leaves, window, states = executor.sequence(call.leaves, self._settings.bins, left)
                if keeps:
                    self._live.states = states[: count_states(program.carries)]
                self._live.sequence = None if window is None else weakref.ref(window)
            else:
                leaves = self._step(executor, call)
        except ConversionError:
            raise
        except (RuntimeError, IndexError) as fault:
            raise _explained(fault, call) from fault
        return pytree.tree_unflatten(leaves, program.result)

    def _prepared_for(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Executor, Call]:
        """Binds a call; captures the model first if it never was, or was with tensors of other dtypes or devices.

        A model may read ``x.dtype``, ``x.device`` and ``self.training`` as plain Python values, so they are part of
        what was captured.
        """
        before = self._compiled
        if before is None or not before.fits(self, args, kwargs):
            fitting = [ready for ready in self._programs if ready[0].fits(self, args, kwargs)]
            if fitting:
                self._compiled, self._executor = fitting[-1]
            else:
                self.compile_with(args, kwargs)
            if before is not None:
                self._live.relay(before.program.carries, self._ready.program.carries)
        executor = self._executor
        assert executor is not None
        return executor, self._ready.arguments.bind(args, kwargs)

    def _step(self, executor: Executor, call: Call) -> list[Any]:
        live = self._live
        given = live.states if call.states is None and not executor.program.explicit_states else self._handed_in(call)
        prepared = executor.prepare(call.leaves, given)
        outputs, states = self._advance(executor, prepared)
        leaves = executor.finish(outputs, states, prepared.invariants)
        if executor.program.explicit_states:
            live.returned = tuple(states)
        return leaves

    def _handed_in(self, call: Call) -> Sequence[Tensor] | None:
        """Returns the states to go on from; a state that is not the one returned last begins another sequence."""
        live = self._live
        if call.states is None:
            live.clear()
            return None
        carries = self._ready.program.carries
        explicit = [i for i, carry in enumerate(carries) if carry.explicit]
        is_next = live.returned is not None and all(
            state is live.returned[position] for state, position in zip(call.states, explicit, strict=True)
        )
        if is_next and live.states is not None:
            return live.states
        live.clear()
        if len(explicit) < count_states(carries):
            raise InvalidInput("The model keeps part of its state itself.", "Call reset and begin without a state.")
        return call.states

    def _advance(self, executor: Executor, prepared: Prepared) -> tuple[list[Tensor], list[Tensor]]:
        """Runs one step from the prepared states; returns outputs and next states with their anchors."""
        live = self._live
        window = None
        if executor.wants_record(prepared) or (live.window is not None and torch.is_grad_enabled()):
            if live.window is None or live.window.closed:
                live.window = executor.open_window(StreamClock(self._settings.bins), prepared)
                live.window.load(live.pending)
                live.pending = {}
            window = live.window
        else:
            live.close_window()
        before = live.flags_of(prepared.initial)
        outputs, states = executor.step(prepared, prepared.initial, window)
        lasting = states[: count_states(executor.program.carries)]
        live.states = [state.detach() if executor.rule != "bptt" else state for state in lasting]
        live.flags = None
        if window is None:
            return outputs, states
        learns, flags = executor.flow.over(prepared.inputs, prepared.invariants, before, 1)
        live.flags = flags[: len(lasting)]
        anchors = window.step_anchors(executor.ports, [*outputs, *states], (*learns, *flags))
        return with_anchors(outputs, anchors[: len(outputs)]), with_anchors(states, anchors[len(outputs) :])

    def train(self, mode: bool = True) -> TracedModule:
        """Sets the mode as the model's own ``train`` does, which may leave parts of it frozen."""
        model = self._copy[0]
        model.train(mode)
        self.training = model.training
        return self

    # State over time.

    def reset(self) -> None:
        """Forgets states and traces: the next call starts a new sequence."""
        self._live.clear()

    def stream(self, steps: Iterable[Any]) -> Iterator[Any]:
        """Runs a sequence model one step at a time, in memory that does not grow with their number.

        It goes on from the live states (those of an earlier stream, or of ``restore``); call ``reset`` to start afresh.
        ``backward`` may be called at any point; it covers the steps since the last one.

        Args:
            steps: Per step, the slice that the model would take out of its sequence (a tuple for several inputs).

        Yields:
            The step's output (a tuple where the model has several): what the model collects over time.

        Raises:
            InvalidInput: The model is a step model (call it instead), or computes on its input before the loop.
        """
        for step in steps:
            given = step if isinstance(step, tuple) else (step,)
            if self._compiled is None:
                raise InvalidInput("The model is not captured yet.", "Pass example_inputs to convert before streaming.")
            executor = self._executor
            assert executor is not None
            executor, call = self._prepared_for(_as_sequences(executor, given), {})
            prepared = executor.one_step(executor.prepare(call.leaves, None), self._live.states)
            outputs, _ = self._advance(executor, prepared)
            yield outputs[0] if len(outputs) == 1 else tuple(outputs)

    def snapshot(self) -> dict[str, Tensor]:
        """Returns the live states and traces as a plain dict of tensors.

        Learning signals that were not backpropagated yet are not part of it.
        """
        return self._live.snapshot()

    def restore(self, snapshot: dict[str, Tensor]) -> None:
        """Puts back what ``snapshot`` returned; the run goes on as if it had not been interrupted."""
        self._live.restore(snapshot)

    def __deepcopy__(self, memo: dict[int, Any]) -> TracedModule:
        """Returns a copy that shares nothing and stands before the first step."""
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        memo[id(self._live)] = LiveState()
        if self._compiled is not None:
            # Pytree specifications never change, and torch warns about copying them.
            program = self._compiled.program
            memo |= {id(spec): spec for spec in (program.signature, program.result)}
        detach_leftovers(self._copy[0], memo)
        copy_as_they_are(self, memo)
        current = [] if self._compiled is None or self._executor is None else [(self._compiled, self._executor)]
        other.__dict__.update(copy.deepcopy({**self.__dict__, "_programs": current}, memo))
        return other

    def extra_repr(self) -> str:
        """Returns the rule for printing."""
        return f"rule={self._settings.rule!r}, bins={self._settings.bins}"


def _as_sequences(executor: Executor, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Gives each per-step input a time axis of one step, where the model's argument has it."""
    program = executor.program
    axes = executor.time_axes()
    if program.kind != "sequence" or axes is None or len(axes) != len(given):
        raise InvalidInput(
            "Only a model that takes a whole sequence, and slices it as it is given, can be streamed.",
            "Call a step model directly; move work on the whole input into the loop.",
        )
    return tuple(value.unsqueeze(axis) for value, axis in zip(given, axes, strict=True))


def _ordinary(leaf: Any) -> Any:
    """Returns a leaf that autograd may save: a tensor made in inference mode is none."""
    return leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf


@contextmanager
def naming_a_line(model: nn.Module) -> Iterator[None]:
    """Lets a refusal that has no line name that of the model's forward."""
    try:
        yield
    except InvalidInput:
        raise
    except ConversionError as error:
        raise error.at(line_of_forward(model)) from error.__cause__


def _explained(fault: Exception, call: Call) -> InvalidInput:
    shapes = ", ".join(str(tuple(leaf.shape)) for leaf in call.leaves if isinstance(leaf, Tensor))
    return InvalidInput(
        f"The model cannot run on inputs of shape {shapes}: {str(fault).splitlines()[0]}.",
        "Compare with the model's own input.",
    )
