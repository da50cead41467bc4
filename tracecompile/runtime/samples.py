"""Some samples of a batch start afresh while the others go on.

What the steps before have taught stays in the record; what they still do to the steps that come is forgotten for these
samples: their states start anew, and the tangents of these states, by which earlier currents and parameters act on
later outputs, are zero. Where a synapse reads an earlier step, the record has only shares of steps for the whole batch,
so that such a window has to be closed first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tracecompile.analysis.core_operators import unheard
from tracecompile.errors import InvalidInput
from tracecompile.program import StepProgram, example_value
from tracecompile.runtime.executor import Executor
from tracecompile.runtime.live import LiveState, count_states
from tracecompile.runtime.loop import Loop
from tracecompile.runtime.recompute.steps import KeptSteps
from tracecompile.runtime.window import Window

CLOSE = "Call backward before, or detach() of the converted module."


def check_mask(mask: object) -> Tensor:
    """Returns what says which samples start afresh.

    Raises:
        InvalidInput: It is no boolean tensor of one axis.
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.dim() != 1:
        given = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise InvalidInput(
            f"samples is {given}, and must be a boolean tensor with one entry a sample.",
            "Pass a mask such as done.bool(), True for the samples that start afresh.",
        )
    return mask


class Samples:
    """The samples in the states of one program."""

    def __init__(self, executor: Executor) -> None:
        """Takes what runs the program; looks at nothing yet."""
        self.executor, self.program = executor, executor.program
        self._axes: tuple[int | None, ...] | None = None

    def restart(self, live: LiveState, mask: Tensor) -> None:
        """Lets the samples of a mask start afresh.

        Raises:
            InvalidInput: The mask is not one of this batch, or the states or the open window cannot be taken apart by
                samples; everything stays as it was.
        """
        if self.program.explicit_states:
            raise InvalidInput(
                "The caller hands the states in, and the net keeps none.",
                "Set the rows of the states that you hand in, torch.where(samples[:, None], start, state).",
            )
        if live.states is None:
            return  # all of them stand at the start
        self._require_fitting(live.states, mask)
        if not bool(mask.any()):
            return
        if live.pending:
            raise InvalidInput("Steps of a snapshot wait for backward, and no step was made since.", CLOSE)
        starts, axes = self._starts(live.states, mask), self._sure_axes(live.states)
        window = live.window if live.window is not None and not live.window.closed else None
        if isinstance(window, Window):
            self._require_apart(window)
        with torch.inference_mode(False), torch.enable_grad():  # the others go on with their graph, where they have one
            rows = [_along(mask.clone(), axis, state.dim()) for state, axis in zip(live.states, axes, strict=True)]

            def begun(states: Sequence[Tensor]) -> list[Tensor]:
                found = [torch.where(*each) for each in zip(rows, starts, states, strict=False)]
                return [*found, *states[len(found) :]]

            changed = window.change(begun) if isinstance(window, KeptSteps) else begun(live.states)
            live.states = changed[: len(starts)]
        if isinstance(window, Window) and window.loop is not None:
            placeholders = (carry.placeholder for carry in self.program.carries)
            _forget(window.loop, mask, dict(zip(placeholders, axes, strict=False)))

    def _require_fitting(self, states: Sequence[Tensor], mask: Tensor) -> None:
        axes = self._sure_axes(states)
        for carry, state, axis in zip(self.program.carries, states, axes, strict=False):
            if mask.device != state.device:
                raise InvalidInput(
                    f"samples is on {mask.device}, and the state {carry.name} on {state.device}.",
                    f"Move it, samples.to({str(state.device)!r}).",
                )
            if mask.shape[0] != state.shape[axis]:
                raise InvalidInput(
                    f"samples has {mask.shape[0]} entries, and the state {carry.name} has {state.shape[axis]} samples.",
                    "Pass one entry for each sample of the last step.",
                )

    def _require_apart(self, window: Window) -> None:
        """Refuses an open window whose record does not tell what acts on the next step of one sample."""
        program = self.program
        reads = [(source, layer.name) for layer in program.layers for source in layer.sources]
        reads += [(port.source, "the result") for port in program.ports if port is not None]
        late = [(source, reader) for source, reader in reads if source.delay]
        if late:
            source, reader = late[0]
            raise InvalidInput(
                f"Steps wait for backward, and {reader} reads {source.value} of an earlier step: what that step has "
                "taught is kept for all samples together.",
                f'{CLOSE[:-1]}, or convert it with rule="exact".',
            )

    def _starts(self, states: Sequence[Tensor], mask: Tensor) -> list[Tensor]:
        """Returns what every state starts as, in its shape.

        Raises:
            InvalidInput: That depends on the input, or is trained where no graph leads to it.
        """
        leaves = _leaves(self.program, len(mask), mask.device)
        with torch.random.fork_rng(devices=[]):
            found = self.executor.ends.prepare(leaves).initial
            others = self.executor.ends.prepare([_other(leaf) for leaf in leaves]).initial
        made = []
        for carry, state, start, other in zip(self.program.carries, states, found, others, strict=False):
            if not torch.equal(start, other):
                raise InvalidInput(
                    f"The state {carry.name} starts from the input, and that of the next step is not known yet.",
                    "Let the model start it where a mask among its inputs says so.",
                )
            if start.requires_grad and torch.is_grad_enabled() and not self.executor.rule.through_time:
                raise InvalidInput(
                    f"The start of the state {carry.name} is trained, and would learn nothing of these samples.",
                    "Let the model start it where a mask among its inputs says so.",
                )
            made.append(start.to(state).expand(state.shape))
        return made

    def _sure_axes(self, states: Sequence[Tensor]) -> tuple[int, ...]:
        """Returns the axis of the samples in each state.

        Raises:
            InvalidInput: It is not known of one.
        """
        if self._axes is None:
            shapes = [self._shapes(batch, states[0].device) for batch in (2, 3)]
            self._axes = tuple(_growing(few, more) for few, more in zip(*shapes, strict=True))
        for carry, axis in zip(self.program.carries, self._axes, strict=False):
            if axis is None:
                raise InvalidInput(
                    f"Which axis of the state {carry.name} is that of the samples is not known.",
                    "Call reset() for all samples, or let the model reset its states by a mask among its inputs.",
                )
        return tuple(axis for axis in self._axes if axis is not None)

    def _shapes(self, batch: int, device: torch.device) -> list[torch.Size]:
        """Returns the shapes of the states after one step of so many samples; none where it does not run."""
        executor, count = self.executor, count_states(self.program.carries)
        try:
            with unheard():
                prepared = executor.ends.prepare(_leaves(self.program, batch, device))
                if self.program.kind == "sequence":
                    prepared = executor.single.of(prepared)
                loop = executor.loop(prepared, executor.ends.statics(prepared), None)
                loop.step(loop.with_draws(prepared.inputs))
        except (RuntimeError, ValueError, IndexError, TypeError):
            return [torch.Size()] * count
        return [state.shape for state in loop.states[:count]]


def _forget(loop: Loop, mask: Tensor, axes: Mapping[str, int]) -> None:
    """Lets nothing that some samples have met act on their later steps."""
    if loop.accrued:
        # At the next fold what acted before goes through these.
        loop.accrued = [
            total.masked_fill(_along(mask, axes[accrual.pair[1]], total.dim()), 0)
            if accrual.role == "tangent"
            else total
            for accrual, total in zip(loop.form.accruals, loop.accrued, strict=True)
        ]
    elif loop.record is not None:
        for responses in loop.record.responses.values():
            by_state = responses.tangents.by_state
            for key, tangent in by_state.items():
                by_state[key] = tangent.masked_fill(_along(mask, axes[key[1]] + 1, tangent.dim()), 0)


def _along(mask: Tensor, axis: int, dims: int) -> Tensor:
    """Returns a mask laid along one of so many axes."""
    return mask.reshape([-1 if place == axis else 1 for place in range(dims)])


def _growing(few: torch.Size, more: torch.Size) -> int | None:
    """Returns the only axis along which a state of two samples and one of three differ, and hold just these."""
    if len(few) != len(more):
        return None
    differing = [axis for axis, sizes in enumerate(zip(few, more, strict=True)) if sizes[0] != sizes[1]]
    sure = len(differing) == 1 and (few[differing[0]], more[differing[0]]) == (2, 3)
    return differing[0] if sure else None


def _leaves(program: StepProgram, batch: int, device: torch.device) -> list[Any]:
    """Returns the leaves of a call with so many samples, repeated from those that the program was captured with."""
    leaves = [example_value(node) for node in program.prologue.graph.nodes if node.op == "placeholder"]
    time = program.time[0] if program.kind == "sequence" else None
    axis = 1 if time == 0 else 0
    first = next((leaf for leaf in leaves if isinstance(leaf, Tensor)), None)
    if first is None or first.dim() <= axis:
        return leaves
    return [
        _repeated(leaf, first, axis, time, batch).to(device) if isinstance(leaf, Tensor) else leaf for leaf in leaves
    ]


def _repeated(leaf: Tensor, first: Tensor, axis: int, time: int | None, batch: int) -> Tensor:
    present = first.shape[axis]
    likely = [axis] if leaf.dim() == first.dim() else []
    fitting = [one for one in (*likely, *range(leaf.dim())) if one != time and leaf.shape[one] == present]
    if not fitting:
        return leaf
    return leaf.detach().index_select(fitting[0], torch.arange(batch, device=leaf.device) % present)


def _other(leaf: Any) -> Any:
    """Returns a leaf with other numbers."""
    return leaf + 1 if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
