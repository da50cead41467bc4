"""Session: what one model runs on, and where it stands in time."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tracecompile.arguments import Call
from tracecompile.capture.copying.copies import copy_as_they_are, detach_leftovers, replace_attribute
from tracecompile.compiled import Compiled, Request
from tracecompile.errors import InvalidInput
from tracecompile.graphs.copies import copy_graphs
from tracecompile.kinds import check_kinds
from tracecompile.program import Settings, StepProgram, example_value
from tracecompile.runtime.backward.anchors import with_anchors
from tracecompile.runtime.bins import StreamClock
from tracecompile.runtime.engine.compiled import Kernels
from tracecompile.runtime.executor import Executor
from tracecompile.runtime.faults import explained
from tracecompile.runtime.held import merged
from tracecompile.runtime.live import LiveState, count_states
from tracecompile.runtime.outside import refuse_transforms
from tracecompile.runtime.rerun import Prepared
from tracecompile.runtime.standing import Standing
from tracecompile.runtime.streams import as_sequences
from tracecompile.runtime.turn import Turn
from tracecompile.runtime.window import Window

MOST_PROGRAMS = 8
"""Programs that are kept, for a model whose mode or whose arguments' kind alternates."""
Compiler = Callable[[Request, Sequence[Compiled]], Compiled]
"""Makes what runs calls like one: (the call, what was compiled before)."""


class Session:
    """The programs of one model, the one that runs, and the live state.

    Attributes:
        model: The copy of the user's model that shares its tensors: what the programs run on.
        settings: What the user asked for.
        compiled, executor: What ran the last call; None before the first.
        programs: What has been compiled, for each mode and kind of arguments, the last one compiled last.
        live: States and the open window.
        kernels: Compiled code.
        turn: Of the thread that runs the net.
        waiting: A snapshot that was restored before the model was captured.
        awaited: The call to compile from once it is asked for, of a session that came out of a pickle.
        standing: How the model stands to what was captured; None for one that nobody changes meanwhile.
    """

    def __init__(self, model: nn.Module, settings: Settings, compiler: Compiler, watched: bool = False) -> None:
        """Stands before the first call.

        Args:
            model: What the programs will run on.
            settings: Of all programs.
            compiler: Is asked where nothing that is there fits a call.
            watched: Whether the model may be changed between calls, and its states read and set in it.
        """
        self.model, self.settings, self.compiler = model, settings, compiler
        self.compiled: Compiled | None = None
        self.executor: Executor | None = None
        self.programs: list[tuple[Compiled, Executor]] = []
        self.live = LiveState()
        self.kernels, self.turn = Kernels(), Turn()
        self.waiting: Mapping[str, Tensor] | None = None
        self.awaited: Request | None = None
        self.standing = Standing(model) if watched else None

    def compile_with(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Compiles the model from the inputs of one call.

        Raises:
            ConversionError: The model is refused; what ran before stays.
        """
        earlier = [compiled for compiled, _ in self.programs]
        with nullcontext() if self.standing is None else self.standing.afresh():
            self.use(self.compiler(Request(self.model, args, kwargs, self.settings), earlier))

    def use(self, compiled: Compiled) -> None:
        """Runs what was compiled from here on."""
        if self.standing is not None:
            facts = self.standing.look(compiled.program)
            compiled = replace(compiled, facts=facts) if compiled.facts is None else compiled
        self.compiled, self.executor = compiled, Executor(compiled.program, self.kernels, self.turn)
        self.programs = [*self.programs[1 - MOST_PROGRAMS :], (self.compiled, self.executor)]

    @property
    def is_ready(self) -> bool:
        """Whether the model is captured, or can be without a call."""
        return self.compiled is not None or self.awaited is not None

    @property
    def ready(self) -> Compiled:
        """What runs calls like the last one.

        Raises:
            InvalidInput: Nothing is compiled yet.
        """
        if self.compiled is None and self.awaited is not None:
            self.use(self.compiler(replace(self.awaited, model=self.model), []))
        if self.compiled is None:
            raise InvalidInput(
                "The model is not captured yet.", "Call the module once, or pass example_inputs to convert."
            )
        return self.compiled

    def example(self) -> Request:
        """Returns the call that the current program was compiled from."""
        program = self.program
        leaves = [example_value(node) for node in program.prologue.graph.nodes if node.op == "placeholder"]
        args, kwargs = pytree.tree_unflatten(leaves, program.signature)
        return Request(self.model, args, kwargs, self.settings)

    @property
    def program(self) -> StepProgram:
        """The program of ``ready``."""
        return self.ready.program

    @property
    def window(self) -> Window | None:
        """The window of the last whole sequence as long as its outputs live, or the open one of a stream."""
        sequence = None if self.live.sequence is None else self.live.sequence()
        return self.live.window if sequence is None else sequence

    # Calls.

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the model; see ``TracedModule.forward``."""
        with self.turn:
            executor, call = self.prepared_for(args, kwargs)
            program = executor.program
            with explained(call):
                if program.kind == "sequence":
                    keeps = any(carry.kept for carry in program.carries)
                    left = self._given(program) if keeps else None
                    leaves, window, states = executor.sequence(call.leaves, self.settings.bins, left)
                    if keeps:
                        self.live.states = states[: count_states(program.carries)]
                        self._lay()
                    self.live.sequence = None if window is None else weakref.ref(window)
                else:
                    leaves = self._step(executor, call)
        return pytree.tree_unflatten(leaves, program.result)

    def prepared_for(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Executor, Call]:
        """Binds a call; captures the model first if it never was, or was with tensors of other dtypes or devices.

        A model may read ``x.dtype``, ``x.device`` and ``self.training`` as plain values: they are part of the capture.
        """
        refuse_transforms(self.model, args, kwargs)
        check_kinds(args, kwargs)
        before = self.compiled
        stands = self.standing is None or self.standing.holds()
        if before is None or not stands or not before.fits(self.model, args, kwargs):
            self._choose(args, kwargs)
            if self.waiting is not None:
                snapshot, self.waiting = self.waiting, None
                self.restore(snapshot)
            if before is not None:
                self.live.relay(before.program.carries, self.ready.program.carries)
        executor = self.executor
        assert executor is not None
        return executor, self.ready.arguments.bind(args, kwargs)

    def _choose(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Lets run what fits a call and the model as it is now; compiles it where there is nothing."""
        before, standing = self.compiled, self.standing
        fitting = [ready for ready in self.programs if ready[0].fits(self.model, args, kwargs)]
        changed: list[str] = []
        if standing is not None and before is not None:
            facts = standing.look(before.program)
            changed = before.changed(facts)
            fitting = [ready for ready in fitting if not ready[0].changed(facts)]
        current = [ready for ready in fitting if ready[0] is before]
        if not fitting:
            self.compile_with(args, kwargs)
            if changed:
                self.note(f"Captured again, since {', '.join(changed[:3])} had changed.")
        elif not current:
            self.compiled, self.executor = fitting[-1]
            if standing is not None:
                standing.look(self.compiled.program)

    def note(self, sentence: str) -> None:
        """Adds a sentence to the report of what was compiled last."""
        compiled, executor = self.programs[-1]
        compiled = replace(compiled, report=replace(compiled.report, notes=(*compiled.report.notes, sentence)))
        self.compiled, self.programs[-1] = compiled, (compiled, executor)

    def reset(self) -> None:
        """Forgets states and traces."""
        self.live.clear()
        if self.standing is not None:
            self.standing.clear()

    def restore(self, snapshot: Mapping[str, Tensor]) -> None:
        """Goes on from a snapshot; see ``TracedModule.restore``."""
        if not self.is_ready:
            self.live.clear()
            self.waiting = snapshot
        else:
            self.live.restore(self.program, snapshot)
            self._lay()

    def _lay(self) -> None:
        if self.standing is not None:
            self.standing.lay(self.live)

    def _step(self, executor: Executor, call: Call) -> list[Any]:
        live = self.live
        prepared = self._prepared(executor, call)
        outputs, states = self._advance(executor, prepared)
        self._lay()
        leaves = executor.ends.finish(outputs, states, prepared.invariants)
        if executor.program.explicit_states:
            live.returned = tuple(states)
        return leaves

    def _prepared(self, executor: Executor, call: Call) -> Prepared:
        """Returns what a step starts from."""
        program, live = executor.program, self.live
        if call.states is not None or program.explicit_states:
            return executor.ends.prepare(call.leaves, self._handed_in(call))
        given = self._given(program)
        shapes = [leaf.shape for leaf in call.leaves if isinstance(leaf, Tensor)]
        known = given is live.states and (given is None or shapes == live.shapes)
        live.shapes = shapes
        if known or given is None:
            return executor.ends.prepare(call.leaves, given)
        fresh = executor.ends.prepare(call.leaves)
        return replace(fresh, initial=tuple(merged(program.carries, fresh.initial, given)))

    def _given(self, program: StepProgram) -> Sequence[Any] | None:
        return self.live.states if self.standing is None else self.standing.given(program, self.live)

    def _handed_in(self, call: Call) -> Sequence[Tensor] | None:
        """Returns the states to go on from; a state that is not the one returned last begins another sequence."""
        live = self.live
        if call.states is None:
            live.clear()
            return None
        carries = self.ready.program.carries
        explicit = [i for i, carry in enumerate(carries) if carry.explicit]
        if live.is_next(call.states, explicit) and live.states is not None:
            return live.states
        live.clear()
        if len(explicit) < count_states(carries):
            raise InvalidInput("The model keeps part of its state itself.", "Call reset and begin without a state.")
        return call.states

    def _advance(self, executor: Executor, prepared: Prepared) -> tuple[list[Tensor], list[Tensor]]:
        """Runs one step from the prepared states; returns outputs and next states with their anchors."""
        live = self.live
        window = None
        if executor.wants_record(prepared) or (live.window is not None and torch.is_grad_enabled()):
            if live.window is None or live.window.closed:
                live.window = executor.open_window(StreamClock(self.settings.bins), prepared)
                live.window.load(live.pending)
                live.pending = {}
            window = live.window
        else:
            live.close_window()
        before = live.flags_of(prepared.initial)
        outputs, states = executor.step(prepared, window)
        lasting = states[: count_states(executor.program.carries)]
        live.states = [state.detach() if executor.rule.records else state for state in lasting]
        live.flags = None
        if window is None:
            return outputs, states
        inputs = zip(executor.program.inputs, prepared.inputs, strict=True)
        window.given.take(window.record.clock.steps - 1, {x.name: value for x, value in inputs})
        learns, flags = executor.flow.over(prepared.inputs, prepared.invariants, before, 1)
        live.flags = flags[: len(lasting)]
        anchors = window.step_anchors(executor.program.ports, [*outputs, *states], (*learns, *flags))
        return with_anchors(outputs, anchors[: len(outputs)]), with_anchors(states, anchors[len(outputs) :])

    def advance(self, given: tuple[Any, ...]) -> Any:
        """Runs one step of a sequence model; see ``TracedModule.stream``."""
        if self.executor is None:
            raise InvalidInput("The model is not captured yet.", "Pass example_inputs to convert before streaming.")
        with self.turn:
            executor, call = self.prepared_for(as_sequences(self.executor.program, given), {})
            prepared = executor.one_step(executor.ends.prepare(call.leaves, None), self.live.states)
            outputs, _ = self._advance(executor, prepared)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Session:
        """Returns a copy that shares nothing and stands before the first step."""
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        memo[id(self.live)] = LiveState()
        detach_leftovers(self.model, memo)
        copy_as_they_are(self.model, memo)
        if self.compiled is not None:
            # Pytree specifications never change, and torch warns about copying them.
            memo |= {id(spec): spec for spec in (self.program.signature, self.program.result)}
            for _, program in self.compiled.stages.programs:
                copy_graphs(program, memo)
        own = {**self.__dict__, "executor": None, "programs": [], "standing": None}
        other.__dict__.update(copy.deepcopy(own, memo))
        other.begin_afresh({} if self.standing is None else copy.deepcopy(self.standing.fresh(), memo))
        if other.compiled is not None:
            other.compiled.stages.run_as_printed()
            other.use(replace(other.compiled, facts=None))
        return other

    def begin_afresh(self, places: Mapping[str, Any]) -> None:
        """Watches over a model that was copied in the middle of a sequence, and puts its states back.

        Args:
            places: What each holds before the first step, by name.
        """
        for name, value in places.items():
            replace_attribute(self.model, name, value)
        self.standing = Standing(self.model)

    def __getstate__(self) -> dict[str, Any]:
        """Returns what the session is made of: it comes back before the first step, and compiles again."""
        awaited = self.awaited if self.compiled is None else self.example()
        places = {} if self.standing is None else self.standing.fresh()
        made = {"model": self.model, "settings": self.settings, "compiler": self.compiler, "awaited": awaited}
        return {**made, "places": places}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Stands before the first step."""
        type(self).__init__(self, state["model"], state["settings"], state["compiler"])
        self.awaited = state["awaited"]
        self.begin_afresh(state["places"])
