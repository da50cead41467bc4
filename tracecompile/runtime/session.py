"""Session: what one model runs on, and where it stands in time."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tracecompile.arguments import Call
from tracecompile.capture.tracing.step_mode import follow_modes
from tracecompile.errors import InvalidInput
from tracecompile.kinds import check_kinds
from tracecompile.program import Settings, StepProgram
from tracecompile.runtime.backward.anchors import with_anchors
from tracecompile.runtime.basis import Basis, goes_through, refuse_change
from tracecompile.runtime.executor import Executor
from tracecompile.runtime.faults import explained
from tracecompile.runtime.held import merged
from tracecompile.runtime.live import LiveState, count_states
from tracecompile.runtime.outside import refuse_transforms
from tracecompile.runtime.owed import refuse_owed
from tracecompile.runtime.programs import Compiler, Programs
from tracecompile.runtime.recompute.steps import KeptSteps
from tracecompile.runtime.replay import random_states
from tracecompile.runtime.rerun import Prepared
from tracecompile.runtime.samples import Samples, check_mask
from tracecompile.runtime.steady import Steady
from tracecompile.runtime.window import Window
from tracecompile.segment import lasting


class Session(Programs):
    """The programs of one model, and the live state.

    Attributes:
        live: States and the open window.
        waiting: A snapshot that was restored before the model was captured.
        basis: What backward of the live window goes by.
        steady: What was found out of the last steps of a stream.
    """

    def __init__(self, model: nn.Module, settings: Settings, compiler: Compiler, watched: bool = False) -> None:
        """Stands before the first call; see ``Programs``."""
        super().__init__(model, settings, compiler, watched)
        self.live = LiveState()
        self.waiting: Mapping[str, Tensor] | None = None
        self.steady: Steady | None = None
        self._samples: Samples | None = None
        self.basis: Basis | None = None

    @property
    def window(self) -> Window | None:
        """The window of the last whole sequence as long as its outputs live, or the open one of a stream."""
        sequence = None if self.live.sequence is None else self.live.sequence()
        is_record = sequence is None and isinstance(self.live.window, Window)
        return self.live.window if is_record else sequence  # type: ignore[return-value]

    # Calls.

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the model; see ``TracedModule.forward``."""
        with self.turn:
            executor, call = self.prepared_for(args, kwargs)
            program = executor.program
            with explained(call):
                if program.kind == "sequence":
                    keeps = any(carry.kept for carry in lasting(program))
                    left = self._given(program) if keeps else None
                    leaves, window, states = executor.sequence(call.leaves, self.settings.bins, left)
                    if keeps:
                        self.live.states = executor.lasting(states)
                        self._lay()
                    self.live.sequence = None if window is None else weakref.ref(window)
                else:
                    leaves = self._step(executor, call)
            self.doubts.settle()
        return pytree.tree_unflatten(leaves, program.result)

    def prepared_for(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Executor, Call]:
        """Binds a call; captures the model first if it never was, or was with tensors of other dtypes or devices.

        A model may read ``x.dtype``, ``x.device`` and ``self.training`` as plain values: they are part of the capture.
        """
        refuse_transforms(self.model, args, kwargs)
        check_kinds(args, kwargs)
        before = self.compiled
        stands = self.standing is None or self.standing.holds()
        if self.basis is not None and not stands:
            self.basis.doubtful = True
        if before is None or not stands or not before.fits(self.model, args, kwargs):
            self.choose(args, kwargs)
            if self.waiting is not None:
                snapshot, self.waiting = self.waiting, None
                self.restore(snapshot)
            if before is not None:
                self.live.relay(lasting(before.program), lasting(self.ready.program))
        executor = self.executor
        assert executor is not None
        follow_modes(executor.program.leaves.values())
        return executor, self.bound(args, kwargs)

    def reset(self, samples: object = None) -> None:
        """Forgets states and traces; see ``TracedModule.reset``."""
        if samples is not None:
            self._restart(check_mask(samples))
            return
        self.live.clear()
        if self.standing is not None:
            self.standing.clear()

    def _restart(self, mask: Tensor) -> None:
        if (executor := self.executor) is None:
            return  # no step was made
        with self.turn:
            if self.standing is not None:
                self.standing.require_untouched()
            if self._samples is None or self._samples.executor is not executor:
                self._samples = Samples(executor)
            self._samples.restart(self.live, mask)
            self.live.owed = None
            self._lay()

    def detach(self) -> None:
        """Begins a new window; see ``TracedModule.detach``."""
        with self.turn:
            self.live.detach()
            self._lay()

    def snapshot(self) -> dict[str, Tensor]:
        """Returns the live state, with what the caller has put into the model since the last step."""
        refuse_owed(self.live.owed, "snapshot()")
        if not self.is_ready:
            return {}
        assigned = {} if self.standing is None else self.standing.assigned()
        live = self.live.with_assigned(assigned, len(lasting(self.program))) if assigned else self.live
        return live.snapshot(self.program)

    def restore(self, snapshot: Mapping[str, Tensor]) -> None:
        """Goes on from a snapshot; see ``TracedModule.restore``."""
        if not self.is_ready:
            self.live.clear()
            self.waiting = snapshot
        else:
            self.live.restore(self.program, snapshot)
            if self.standing is not None and self.live.states is None:
                self.standing.clear()  # it was taken before a first step
            self._lay()

    def _lay(self) -> None:
        if self.standing is not None:
            self.standing.lay(self.live)

    def _step(self, executor: Executor, call: Call) -> list[Any]:
        live = self.live
        prepared = self._prepared(executor, call)
        outputs, states = self.advance(executor, prepared, call.leaves)
        self._lay()
        leaves = executor.ends.finish(outputs, states, prepared.invariants)
        if executor.program.explicit_states:
            live.returned = tuple(states)
        return leaves

    def _prepared(self, executor: Executor, call: Call) -> Prepared:
        """Returns what a step starts from."""
        program, live = executor.program, self.live
        if call.states is not None or program.explicit_states:
            return executor.ends.prepare(call.leaves, self._handed_in(executor, call))
        given = self._given(program)
        refuse_change(self.changed(executor, call.leaves))
        shapes = [leaf.shape for leaf in call.leaves if isinstance(leaf, Tensor)]
        if given is None or (given is live.states and shapes == live.shapes):
            found = executor.ends.prepare(call.leaves, given)
        else:
            fresh = executor.ends.prepare(call.leaves)
            found = replace(fresh, initial=tuple(merged(program.carries, fresh.initial, given)))
        live.shapes = shapes
        return found

    def _given(self, program: StepProgram) -> Sequence[Any] | None:
        return self.live.states if self.standing is None else self.standing.given(program, self.live)

    def changed(self, executor: Executor, leaves: Sequence[Any]) -> str:
        """Names what backward of the open window goes by, and has become another thing since; nothing where all is."""
        window, basis = self.live.window, self.basis
        if window is None or window.closed or basis is None or not torch.is_grad_enabled():
            return ""
        return basis.change(self.ready, lambda: executor.ends.read_by_statics(leaves))

    def _handed_in(self, executor: Executor, call: Call) -> Sequence[Tensor] | None:
        """Returns the states to go on from; a state that is not the one returned last begins another sequence."""
        live = self.live
        if call.states is None:
            live.clear()
            return None
        carries = self.ready.program.carries
        explicit = [i for i, carry in enumerate(carries) if carry.explicit]
        if live.is_next(call.states, explicit) and live.states is not None:
            change = self.changed(executor, call.leaves)
            if not change:
                return live.states
            refuse_change("" if goes_through(executor.program, call.states, explicit) else change)
            # Another window learns through the states that the caller holds.
        live.clear()
        if len(explicit) < count_states(carries):
            raise InvalidInput("The model keeps part of its state itself.", "Call reset and begin without a state.")
        return call.states

    def advance(self, executor: Executor, prepared: Prepared, leaves: Sequence[Any]) -> tuple[list[Tensor], ...]:
        """Runs one step from the prepared states; returns outputs and next states with their anchors."""
        live, window = self.live, self.window_for(executor, prepared, leaves)
        before = live.flags_of(prepared.initial)
        drawn = random_states() if window is not None and window.draws else []
        outputs, states = executor.single.run(prepared, window)
        live.go_on(states, executor.program.carries, executor.rule.through_time)
        if window is None:
            return outputs, states
        window.take(prepared, drawn)
        learns, flags = executor.flow.over(prepared.inputs, prepared.invariants, before, 1)
        live.flags = flags[: len(live.states or ())]
        (place,) = window.places(1)
        anchors = window.step_anchors(executor.program.ports, [*outputs, *states], (*learns, *flags), place)
        return with_anchors(outputs, anchors[: len(outputs)]), with_anchors(states, anchors[len(outputs) :])

    def window_for(self, executor: Executor, prepared: Prepared, leaves: Sequence[Any]) -> Window | KeptSteps | None:
        """Returns the open window that a step from the prepared states is recorded in; None where it is not trained."""
        live = self.live
        if not (executor.wants_window(prepared) or (live.window is not None and torch.is_grad_enabled())):
            live.close_window()
            return None
        if live.window is None or live.window.closed or not live.window.goes_on(prepared):
            live.close_window()
            live.window = executor.open_steps(self.settings.bins, prepared)
            self.basis = Basis(self.ready, executor.ends.read_by_statics(leaves), executor.rule.recomputes)
            live.window.load(live.pending)
            live.pending = {}
        return live.window

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Returns a copy that shares nothing and stands before the first step."""
        memo |= {id(self.live): LiveState(), id(self._samples): None, id(self.steady): None}
        return super().__deepcopy__(memo)
