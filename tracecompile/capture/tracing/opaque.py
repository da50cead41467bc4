"""Records neurons that follow SpikingJelly's protocol: states by name, and a pure function for one step.

The library is never imported: its classes are known by the module that defines them. Only a neuron whose step runs a
registered operator is kept whole; any other is traced through like the user's own code.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from tracecompile.capture.tracing.names import valid_name
from tracecompile.capture.tracing.tape import Tape
from tracecompile.errors import ConversionError, UnsupportedOperation
from tracecompile.neuron_step import NeuronStep, OpaqueStep, tensors_of

LIBRARY = "spikingjelly."
OWN_NAMESPACES = frozenset(["aten", "prim", "prims", "torchvision", "quantized", "profiler"])


class Recorder(Protocol):
    """What is needed of the running trace."""

    tape: Tape
    paused: int

    def pause(self) -> Any:
        """Records nothing while the context is open."""

    def write_down(self, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> Any:
        """Adds a node and ties its value to it."""

    def refusal(self, kind: type[ConversionError], explanation: str, advice: str) -> ConversionError:
        """Makes an error that names the user's line."""


def library_class(module: nn.Module, name: str) -> type | None:
    """Returns the library's class of that name among a module's bases."""
    bases = type(module).__mro__
    return next((base for base in bases if base.__name__ == name and base.__module__.startswith(LIBRARY)), None)


def keeps_memories(module: nn.Module) -> bool:
    """Tells whether a module keeps its states the way SpikingJelly does."""
    return "_memories" in vars(module) and library_class(module, "MemoryModule") is not None


@contextmanager
def steps_recorded(recorder: Recorder, module: nn.Module, path: str) -> Iterator[None]:
    """Lets a neuron's step be written down whole while the context is open, and a sequence be made of such steps.

    The library's own forward runs, with its handling of states; only its innermost function is replaced, on the copy.
    """
    base = library_class(module, "BaseNode")
    with recorder.pause():
        whole_step = None if recorder.paused > 1 or base is None else step_of(recorder.tape, module, path)
    if whole_step is None or base is None:
        yield
        return
    step: Callable[..., Any] = module.single_step_functional_forward  # type: ignore[assignment]
    whole: Callable[..., Any] = module.multi_step_functional_forward  # type: ignore[assignment]

    def recorded(inputs: tuple[Any, ...], states: tuple[Any, ...], **kwargs: Any) -> Any:
        if recorder.paused or kwargs:
            return step(inputs, states, **kwargs)
        return record_step(recorder, whole_step, module, path, inputs, states)

    def one_by_one(inputs: tuple[Any, ...], states: tuple[Any, ...], **kwargs: Any) -> Any:
        memory: Any = library_class(module, "MemoryModule")
        found = memory.multi_step_functional_forward(module, inputs, states, **kwargs)
        with recorder.pause(), torch.no_grad():
            require_equal(recorder, path, found, whole(inputs, states, **kwargs))
        return found

    forward: Any = vars(base)["multi_step_forward"]
    replaced = {
        "single_step_functional_forward": recorded,
        "multi_step_functional_forward": one_by_one,
        "multi_step_forward": forward.__get__(module),
    }
    try:
        for name, function in replaced.items():
            object.__setattr__(module, name, function)
        yield
    finally:
        for name in replaced:
            object.__delattr__(module, name)


def require_equal(recorder: Recorder, path: str, found: Any, wanted: Any) -> None:
    """Refuses a neuron that makes something else of a whole sequence than of its steps."""
    pairs = zip((*found[0], *found[1]), (*wanted[0], *wanted[1]), strict=True)
    if not all(torch.equal(one, other) for one, other in pairs if isinstance(other, torch.Tensor)):
        raise recorder.refusal(
            UnsupportedOperation,
            f"The neuron {path} computes a whole sequence at once, and not what its single steps compute.",
            "Set its step_mode to 's' and call it once a step.",
        )


def record_step(
    recorder: Recorder,
    step: OpaqueStep,
    neuron: nn.Module,
    path: str,
    inputs: tuple[Any, ...],
    states: tuple[Any, ...],
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Writes one step down as a call per result."""
    given = (*inputs, *states, *(value for _, value in tensors_of(neuron)))
    if not all(isinstance(value, torch.Tensor) for value in given):
        raise recorder.refusal(
            UnsupportedOperation,
            f"The neuron {path} keeps a state that is no tensor.",
            "Use one of the library's neurons whose states are tensors.",
        )
    with recorder.pause():
        values = step(*given)
        count = len(values) - len(states)
        names = [*("spike" if not number else f"output_{number}" for number in range(count))]
        names += list(vars(neuron)["_memories"])
        results = list(values)
        for position, value in enumerate(values):
            if not any(value is other for other in given):
                target = f"{valid_name(path)}__{names[position]}"
                recorder.tape.leaves.setdefault(target, NeuronStep(step, position, len(values)))
                results[position] = recorder.write_down("call_module", target, given, {}, value)
    return tuple(results[:count]), tuple(results[count:])


def step_of(tape: Tape, neuron: nn.Module, path: str) -> OpaqueStep | None:
    """Returns the step of a neuron, the same one at every call of it; None where it can be traced through."""
    known = tape.leaves.get(f"{valid_name(path)}__spike")
    if isinstance(known, NeuronStep):
        return known.step
    return OpaqueStep(neuron) if runs_operator(neuron) else None


def runs_operator(neuron: nn.Module) -> bool:
    """Tells whether the single step of a neuron runs an operator that is not one of torch's own.

    It is asked in float32, whatever the model's own type: a library may have its operator for some types only, and the
    program is not to depend on that.
    """
    memories, resets = vars(neuron)["_memories"], vars(neuron)["_memories_rv"]
    with torch.random.fork_rng(devices=[]), torch.no_grad(), _OperatorFinder() as finder:
        try:
            probe: Any = copy.deepcopy(neuron, {id(value): resets[name] for name, value in memories.items()}).float()
            example = torch.zeros(1, 1, device=next((value.device for _, value in tensors_of(neuron)), None))
            states = probe.materialize_states((example,), tuple(vars(probe)["_memories"].values()), "s")
            probe.single_step_functional_forward((example,), states)
        except (RuntimeError, ValueError, TypeError, NotImplementedError, IndexError):
            return False
    found: bool = finder.found
    return found


class _OperatorFinder(TorchFunctionMode):
    """Notices operators of other libraries."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        namespace = getattr(func, "namespace", None)
        self.found |= isinstance(namespace, str) and namespace not in OWN_NAMESPACES
        return func(*args, **(kwargs or {}))
