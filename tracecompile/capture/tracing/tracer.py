"""The tracer: runs the user's code on example tensors and writes down every operation.

The user's code never meets a stand-in for a tensor. A torch-function mode sees each operation on the real ones, and the
recorder knows the node of each tensor; so ``isinstance``, ``is None``, device and dtype questions answer themselves,
and factory calls such as ``torch.zeros`` are nodes rather than constants with a baked batch size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from tracecompile.capture.copying.copies import replace_attribute, share_parameters, tensor_attributes
from tracecompile.capture.copying.registries import registries_redirected
from tracecompile.capture.layerwise.permutations import undo_permutations
from tracecompile.capture.tracing.alone import other_threads
from tracecompile.capture.tracing.draws import OtherDraws, torch_generators
from tracecompile.capture.tracing.example_sizes import free_sizes, resized_along
from tracecompile.capture.tracing.module_calls import CallRecorder
from tracecompile.capture.tracing.names import valid_name
from tracecompile.capture.tracing.results import open_result
from tracecompile.capture.tracing.scripted import compiled_code_recorded
from tracecompile.capture.tracing.source import line_of_failure
from tracecompile.capture.tracing.step_mode import in_single_steps
from tracecompile.capture.tracing.step_numbers import loops_counted
from tracecompile.capture.tracing.surrogates import surrogates_recorded
from tracecompile.capture.tracing.tape import Tape
from tracecompile.capture.tracing.trace_errors import ModelFailure, TooManySteps
from tracecompile.capture.tracing.values import TracedFloat, TracedInt, plain
from tracecompile.capture.tracing.watching import as_computed, mode_watched
from tracecompile.errors import ConversionError


class Recorder(CallRecorder):
    """One trace of one copy of the model."""

    def run(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        names: list[str],
        states: Mapping[str, bool] | None = None,
        state_leaves: tuple[int, ...] = (),
    ) -> Tape:
        """Runs the model and returns the tape, in which no size of the example is built in that the model would take.

        Args:
            names: Name of each leaf of the arguments.
            states: Attributes that become placeholders, and whether each is part of an autograd graph.
            state_leaves: Positions of the argument leaves that are states.
        """
        before = share_parameters(self.root)
        tape = self.run_once(args, kwargs, names, states, state_leaves)
        settle(tape, before, self.visits, args, kwargs, names, states, state_leaves)
        return tape

    def run_once(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        names: list[str],
        states: Mapping[str, bool] | None = None,
        state_leaves: tuple[int, ...] = (),
    ) -> Tape:
        """Runs the model and returns the tape as it was taken; for the arguments see ``run``."""
        leaves, spec = pytree.tree_flatten((args, kwargs))
        handed = [
            self.placeholder(name, value, position in state_leaves)
            for position, (name, value) in enumerate(zip(names, leaves, strict=True))
        ]
        self.tape.inputs = [node for node, _ in handed]
        for name, learning in (states or {}).items():
            self.hand_in_attribute(name, learning)
        before = {name: id(value) for name, value in tensor_attributes(self.root)}
        copied_args, copied_kwargs = pytree.tree_unflatten([value for _, value in handed], spec)
        others, self.tape.generators = OtherDraws(), torch_generators()
        with self.recording():
            result = run_user_code(self.root, copied_args, copied_kwargs)
        if others.moved():
            with registries_redirected(self.root), torch.no_grad():
                raise others.refusal(lambda: run_user_code(self.root, copied_args, copied_kwargs))
        open_result(self.root, result)
        self.tape.result = pytree.tree_map(self.result_leaf, result)
        self.read_attributes(before)
        self.drop_unread_numbers()
        in_single_steps(self.root)
        undo_permutations(self.tape)
        return self.tape

    def hand_in_attribute(self, name: str, learning: bool) -> None:
        """Makes the placeholder of a state that an attribute holds."""
        value = dict(tensor_attributes(self.root))[name]
        node = self.graph.placeholder(valid_name(name))
        node.meta.update(val=value.detach().clone(), where=None, place=None)
        # A tensor of its own for every state: two entries of a delay line may still be one and the same zero tensor.
        value = as_computed(value) if learning else value.detach().clone()
        replace_attribute(self.root, name, value)
        self.kept.append(value)
        self.memory.bind(value, node)
        self.tape.states[name] = node

    def placeholder(self, name: str, value: Any, state: bool) -> tuple[fx.Node | None, Any]:
        """Makes the placeholder of one argument leaf and the value that the user's code receives."""
        if isinstance(value, torch.Tensor):
            value = as_computed(value) if state else value.detach().clone()
        elif isinstance(value, bool) or not isinstance(value, (int, float)):
            return None, value
        node = self.graph.placeholder(valid_name(name))
        node.meta.update(val=value, where=None, place=None)
        if isinstance(value, torch.Tensor):
            self.memory.bind(value, node)
            return node, value
        return node, self.number(value, node)

    def result_leaf(self, value: Any) -> Any:
        """Returns the node of one leaf of the user's return value, or the constant that it is."""
        if isinstance(value, torch.Tensor):
            return self.node_of(value)
        return value.node if isinstance(value, (TracedInt, TracedFloat)) else plain(value)

    def drop_unread_numbers(self) -> None:
        """Erases sizes, and arithmetic on them, that only Python looked at: a comparison of shapes is no operation.

        It may look at another number of them in the first step, where a state has no shape yet.
        """
        returned = set(pytree.tree_leaves(self.tape.result))
        for node in reversed(self.graph.nodes):
            is_number = node.op.startswith("call_") and isinstance(node.meta["val"], (int, float))
            if is_number and not node.users and node not in returned:
                self.graph.erase_node(node)

    def read_attributes(self, before: dict[str, int]) -> None:
        """Notes what every attribute holds now that the model has run."""
        written = []
        for name, value in tensor_attributes(self.root):
            if not self.memory.knows(value):
                continue
            node = self.node_of(value)
            self.tape.attributes[name] = node
            self.tape.learning[name] = value.requires_grad
            untouched = before.get(name) == id(value) and not self.memory.was_written(value)
            if not untouched:
                written.append(name)
        self.tape.written = tuple(written)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Sends every torch function, module call and autograd Function to this recorder."""
        original = nn.Module.__call__
        recorder, elsewhere = self, other_threads()

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if elsewhere():
                return original(module, *args, **kwargs)
            return recorder.record_module(module, original, args, kwargs)

        nn.Module.__call__ = call  # type: ignore[method-assign]
        try:
            with (
                registries_redirected(self.root),
                mode_watched(self),
                loops_counted(self),
                torch.enable_grad(),
                _Mode(self),
                compiled_code_recorded(self),
                surrogates_recorded(self.record_surrogate),
            ):
                yield
        finally:
            nn.Module.__call__ = original  # type: ignore[method-assign]


def settle(
    tape: Tape,
    model: nn.Module,
    visits: int | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    names: list[str],
    states: Mapping[str, bool] | None = None,
    state_leaves: tuple[int, ...] = (),
    fixed: int | None = None,
) -> None:
    """Replaces the sizes of the example that a tape has built in, as far as the model takes others.

    Args:
        tape: As ``run_once`` has taken it.
        model: As it was before; copies of it are run.
        visits: Of the recorder.
        args, kwargs, names, states, state_leaves: Of the run.
        fixed: An axis of the first input whose size stays.
    """

    def trace_at(axis: int, size: int) -> Tape | None:
        again = Recorder(share_parameters(model), visits)
        changed_args, changed_kwargs = resized_along((args, kwargs), axis, size)
        try:
            return again.run_once(changed_args, changed_kwargs, names, states, state_leaves)
        except (ConversionError, TooManySteps):
            return None

    free_sizes(tape, trace_at, fixed)


class _Mode(TorchFunctionMode):
    """Hands every torch function to the recorder."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if self.recorder.paused:
            return func(*args, **(kwargs or {}))
        with self.recorder.pause():
            return self.recorder.record(func, args, kwargs or {})


def run_user_code(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Calls the model; the search for the user's line ends at this frame."""
    try:
        return model(*args, **kwargs)
    except (ConversionError, TooManySteps, torch.OutOfMemoryError):
        raise
    except Exception as error:
        message = f"The model failed on the example: {type(error).__name__}: {error}"
        raise ModelFailure(message, "Check that the example fits the model.", line_of_failure(error)) from error
