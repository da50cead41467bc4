"""Copies of the model and of its converted form, run on the same inputs, and nobody else notices."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tracecompile.capture.copying.copies import independent_copy, share_parameters, tensor_attributes
from tracecompile.capture.copying.fresh_start import start_afresh
from tracecompile.capture.copying.registries import registries_redirected
from tracecompile.capture.loops.lengths import TimeSource
from tracecompile.compiled import Compiled
from tracecompile.program import Settings, StepProgram
from tracecompile.runtime.executor import Executor
from tracecompile.runtime.session import Session
from tracecompile.self_check.generators import Generators, generators_kept
from tracecompile.self_check.in_order import Adding, adding
from tracecompile.self_check.inputs import Arguments

BuildAgain = Callable[[Session, tuple[Any, ...], dict[str, Any], TimeSource], Compiled]
"""Builds the program that a session has for another length: (session, args, kwargs, what says how long they are)."""


class ModelRefuses(Exception):
    """The model itself does not run on these inputs."""


@dataclass(frozen=True)
class Run:
    """One run of both.

    Attributes:
        reference, converted: The copies that ran.
        expected, found: The leaves of what they returned.
        fault: What the converted module raised where the model ran.
        drawn_alike: Whether both left torch's generators in the same state.
        learning: Whether it was recorded for training.
        adding: How products were added up, in both.
    """

    reference: nn.Module
    converted: nn.Module
    expected: list[Any]
    found: list[Any]
    fault: Exception | None = None
    drawn_alike: bool = True
    learning: bool = True
    adding: Adding = Adding.AS_EVER


class Pair:
    """A model and its converted form, copied once for all runs of a check."""

    def __init__(self, session: Session, build_again: BuildAgain) -> None:
        self.program: StepProgram = session.program
        self.settings: Settings = session.program.settings
        self.report = session.ready.report
        self.build_again = build_again
        self.model = independent_copy(session.model)
        start_afresh(self.model)
        self.converted = copy.deepcopy(session)
        moved = {*self.program.statistics, *(carry.statistic for carry in self.program.carries)}
        moved |= {name for name, _ in session.model.named_buffers()}
        kept = [value for name, value in tensor_attributes(self.converted.model) if name in moved]
        self._held = [(value, value.detach().clone()) for value in kept]

    def run(
        self,
        calls: Sequence[Arguments],
        learning: bool = True,
        chunk: int | None = None,
        settings: Settings | None = None,
        how: Adding = Adding.AS_EVER,
    ) -> Run:
        """Runs fresh copies of both on the same calls, from the same random numbers.

        Args:
            calls: The arguments of every call, in order; a step model is handed its own states from the second on.
            learning: Whether the run is recorded for training.
            chunk: How many steps the converted module takes together; None to take one after the other.
            settings: Instead of the module's own.
            how: How both add up their products.

        Raises:
            ModelRefuses: The model does not run on them.
        """
        reference, converted = share_parameters(self.model), self.rewound(chunk, settings)
        with generators_kept() as states, undisturbed(learning), adding(how):
            with registries_redirected(reference):
                expected = self.call(reference, calls, of_model=True)
            after = Generators.now()
            states.restore()
            fault, found = None, []
            try:
                # Generated code that fails prints itself; what the user is told is in the error.
                with redirect_stderr(io.StringIO()):
                    found = self.call(converted, calls)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                fault = error
            alike = after.drawn_alike(Generators.now())
        return Run(reference, converted.model, expected, found, fault, alike, learning, how)

    def rewound(self, chunk: int | None = None, settings: Settings | None = None) -> Session:
        """Returns the copy as it was before any run: running statistics, states, and what runs it."""
        converted = self.converted
        converted.live.clear()
        with torch.no_grad():
            for value, held in self._held:
                value.copy_(held)
        converted.settings = settings or self.settings
        executor = converted.executor
        assert executor is not None
        snapshots = converted.settings.snapshots
        together = replace(self.program.settings, backend="eager", chunk=chunk, snapshots=snapshots)
        executor.observer = None
        executor.stepped, executor.program = chunk is None, converted.program.evolve(settings=together)
        return converted

    @property
    def compiled(self) -> Compiled:
        """What the copy of the converted module runs."""
        return self.converted.ready

    @contextmanager
    def running(self, compiled: Compiled) -> Iterator[None]:
        """Lets the copy run something else."""
        converted = self.converted
        before = converted.compiled, converted.executor
        converted.compiled, converted.executor = compiled, Executor(compiled.program, converted.kernels, converted.turn)
        try:
            yield
        finally:
            converted.compiled, converted.executor = before

    def call(self, module: Callable[..., Any], calls: Sequence[Arguments], of_model: bool = False) -> list[Any]:
        """Calls a copy; returns the leaves of all results.

        Raises:
            ModelRefuses: It is the model's, and does not run.
        """
        results: list[Any] = []
        result: Any = None
        for number, (args, kwargs) in enumerate(calls):
            if number:
                args, kwargs = handed_on(self.program, args, kwargs, result)
            try:
                result = module(*args, **kwargs)
            except Exception as error:
                if of_model and not isinstance(error, torch.OutOfMemoryError):
                    raise ModelRefuses(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}") from error
                raise
            results += pytree.tree_leaves(result)
        return results


@contextmanager
def undisturbed(learning: bool) -> Iterator[None]:
    """Runs under the grad mode that is wanted, whatever the caller's, and without warnings of the model's."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(learning))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield


def handed_on(program: StepProgram, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Arguments:
    """Puts the states that a step returned in the place of those of a call."""
    if not program.explicit_states:
        return args, kwargs
    leaves, spec = pytree.tree_flatten((args, kwargs))
    count = program.signature.num_leaves - len(program.explicit_states)
    if spec == program.signature:
        inputs = [leaf for place, leaf in enumerate(leaves) if place not in program.explicit_states]
    else:  # the first call leaves the states to the model
        inputs = leaves if len(leaves) == count else [leaf for leaf in leaves if leaf is not None]
    if len(inputs) != count:
        return args, kwargs
    returned, remaining = pytree.tree_leaves(result), iter(inputs)
    states = {
        leaf: returned[place] for leaf, place in zip(program.explicit_states, program.explicit_results, strict=True)
    }
    given = [states[k] if k in states else next(remaining) for k in range(program.signature.num_leaves)]
    again: Arguments = pytree.tree_unflatten(given, program.signature)
    return again


def detached(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """Returns arguments that lead nowhere, and that autograd may keep."""
    again: Arguments = pytree.tree_map(
        lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, (args, kwargs)
    )
    return again
