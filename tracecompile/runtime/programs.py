"""Programs: what has been compiled of one model, and which of it runs a call."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Self

from torch import nn
from torch.utils import _pytree as pytree

from tracecompile.arguments import Call
from tracecompile.capture.copying.copies import copy_as_they_are, detach_leftovers, replace_attribute
from tracecompile.compiled import Compiled, Request
from tracecompile.errors import InvalidInput
from tracecompile.facts import Facts
from tracecompile.graphs.copies import copy_graphs
from tracecompile.own_checks import after_a_call, has_own_checks, sizes_of
from tracecompile.parallel import refuse_parts_of_processes
from tracecompile.program import Settings, StepProgram, example_value
from tracecompile.report import ParameterReport
from tracecompile.runtime.doubts import Doubts
from tracecompile.runtime.engine.kernels import Kernels
from tracecompile.runtime.executor import Executor
from tracecompile.runtime.standing import Standing
from tracecompile.runtime.turn import Turn

LOG = logging.getLogger("tracecompile")
MOST_PROGRAMS = 8
"""Programs that are kept, for a model whose mode or whose arguments' kind alternates."""
MOST_SIZES = 1000
"""Sizes of calls that are remembered."""
Compiler = Callable[[Request, Sequence[Compiled]], Compiled]
"""Makes what runs calls like one: (the call, what was compiled before)."""


class Programs:
    """What has been compiled of one model.

    Attributes:
        model: The user's model: what the programs run on.
        settings: What the user asked for.
        compiler: Is asked where nothing that is there fits a call.
        compiled, executor: What ran the last call; None before the first.
        programs: What has been compiled, for each mode and kind of arguments, the last one compiled last.
        kernels: Compiled code.
        turn: Of the thread that runs the net.
        doubts: Inputs of which a device has still to say whether they are finite.
        awaited: The call to compile from once it is asked for, where the net is a copy of one that was captured.
        passed: Sizes of calls that the model's own checks have seen; None where it has none.
        standing: How the model stands to what was captured; None for one that nobody changes meanwhile.
    """

    def __init__(self, model: nn.Module, settings: Settings, compiler: Compiler, watched: bool) -> None:
        """Stands before the first call.

        Args:
            model: What the programs will run on.
            settings: Of all programs.
            compiler: Makes what runs calls like one.
            watched: Whether the model may be changed between calls, and its states read and set in it.
        """
        self.model, self.settings, self.compiler = model, settings, compiler
        self.compiled: Compiled | None = None
        self.executor: Executor | None = None
        self.programs: list[tuple[Compiled, Executor]] = []
        self.kernels, self.turn, self.doubts = Kernels(), Turn(), Doubts()
        self.awaited: Request | None = None
        self.standing = Standing(model) if watched else None
        self.passed: set[tuple[Any, ...]] | None = None

    def compile_with(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Compiles the model from the inputs of one call.

        Raises:
            ConversionError: The model is refused; what ran before stays.
        """
        earlier = [compiled for compiled, _ in self.programs]
        with nullcontext() if self.standing is None else self.standing.afresh():
            compiled = self.compiler(Request(self.model, args, kwargs, self.settings), earlier)
            if self.standing is not None:
                self.standing.learn_containers(compiled.program, args, kwargs)
        self.use(compiled)
        LOG.info("%s is captured, program %d", type(self.model).__name__, len(self.programs))
        for sentence in compiled.report.notes:
            LOG.info("%s: %s", type(self.model).__name__, sentence)
        self.warn_of_no_gradient(compiled.report.parameters)
        if self.standing is not None and has_own_checks(self.model):
            self.passed = {sizes_of(args, kwargs)}
            self.note("The model may refuse an input itself: it is run once, without gradients, at every new size.")

    def warn_of_no_gradient(self, parameters: Mapping[str, ParameterReport]) -> None:
        """Says aloud, in training, where a backward pass will fail: no parameter that asks for a gradient gets one."""
        wanted = [name for name, value in self.model.named_parameters() if value.requires_grad]
        reasons = [parameters[name] for name in wanted if name in parameters]
        cut = [each.reason for each in reasons if each.status == "frozen" and "hard threshold" in each.reason]
        if self.model.training and cut and all(each.status == "frozen" for each in reasons):
            LOG.warning(
                "%s: no parameter can learn: %s. Pass the membrane through a surrogate function, such as those of "
                "tracecompile.nn.",
                type(self.model).__name__,
                cut[0],
            )

    def bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Binds a call to what runs it, once the model's own checks have seen one of its size.

        Raises:
            InvalidInput: It does not fit, or a tensor of it, or of a call before, is not finite.
            Exception: Whatever the model raises.
        """
        call = self.ready.arguments.bind(args, kwargs)
        self.doubts.settle(call.doubts)
        self._ask_the_model(args, kwargs)
        return call

    def _ask_the_model(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Lets the model's own checks see a call of a size that they have not seen.

        Raises:
            Exception: Whatever the model raises.
        """
        if self.passed is None or self.standing is None or (sizes := sizes_of(args, kwargs)) in self.passed:
            return
        with self.standing.afresh():
            after_a_call(self.model, args, kwargs)
        self.passed = {*list(self.passed)[-MOST_SIZES:], sizes}

    def use(self, compiled: Compiled) -> None:
        """Runs what was compiled from here on."""
        if self.standing is not None:
            facts = self.standing.look(compiled.program)
            compiled = replace(compiled, facts=facts) if compiled.facts is None else compiled
        opened = None if self.standing is None else self.standing.opened
        self.compiled, self.executor = compiled, Executor(compiled.program, self.kernels, self.turn, opened)
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
        values = {node.name: example_value(node) for node in program.step.graph.nodes if node.op == "placeholder"}
        handed_in = (values[carry.placeholder] for carry in program.carries if carry.explicit)
        for place, state in sorted(zip(program.explicit_states, handed_in, strict=True), key=lambda given: given[0]):
            leaves.insert(place, state)
        args, kwargs = pytree.tree_unflatten(leaves, program.signature)
        return Request(self.model, args, kwargs, self.settings)

    @property
    def program(self) -> StepProgram:
        """The program of ``ready``."""
        return self.ready.program

    def choose(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Lets run what fits a call and the model as it is now; compiles it where there is nothing."""
        refuse_parts_of_processes(self.model)
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
        LOG.info("%s: %s", type(self.model).__name__, sentence)
        compiled, executor = self.programs[-1]
        compiled = replace(compiled, report=replace(compiled.report, notes=(*compiled.report.notes, sentence)))
        self.compiled, self.programs[-1] = compiled, (compiled, executor)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Returns a copy that shares nothing and stands before the first step."""
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        detach_leftovers(self.model, memo)
        copy_as_they_are(self.model, memo)
        if self.compiled is not None:
            # Pytree specifications never change, and torch warns about copying them.
            memo |= {id(spec): spec for spec in (self.program.signature, self.program.result)}
            for _, program in self.compiled.stages.programs:
                copy_graphs(program, memo)
        own = {**self.__dict__, "executor": None, "programs": [], "standing": None, "doubts": Doubts()}
        other.__dict__.update(copy.deepcopy(own, memo))
        if self.standing is not None:
            other.begin_afresh(copy.deepcopy(self.standing.fresh(), memo))
        if other.compiled is not None:
            if self.compiled is not None and self.standing is not None and self.compiled.changed(Facts(self.model)):
                other.awaited, other.compiled = replace(self.example(), model=other.model), None
                return other
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
        places = None if self.standing is None else self.standing.fresh()
        made = {"model": self.model, "settings": self.settings, "compiler": self.compiler, "awaited": awaited}
        return {**made, "places": places}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Stands before the first step."""
        places = state["places"]
        type(self).__init__(self, state["model"], state["settings"], state["compiler"], places is not None)
        self.awaited = state["awaited"]
        if places is not None:
            self.begin_afresh(places)
