"""What autograd keeps of one time step, found by taking one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tracecompile.program import StepProgram, example_value
from tracecompile.runtime.replay import buffers_kept


def graph_bytes(program: StepProgram) -> int:
    """Returns the bytes that the graph of one step holds, on values like the example's, for all its samples.

    Parameters and the step's inputs are not counted: they are there anyway.
    """
    assert program.emitted is not None
    assert program.statics is not None
    given = {node.name: example_value(node) for node in program.step.graph.nodes if node.op == "placeholder"}
    invariants = [given[name] for name in program.invariants]
    statics = program.statics.graph(*(program.resolve(path) for path in program.statics.attributes), *invariants)
    named = zip(program.statics.names, statics, strict=True)
    arguments = [value for name, value in named if name not in program.invariants]
    aside = [*(given[x.name] for x in program.inputs), *invariants, *statics]
    aside += [*program.root.parameters(), *program.root.buffers()]
    saved = Saved(aside)
    states = example_states(program, given)
    names = {carry.placeholder for carry in program.carries}
    before = [value for name, value in given.items() if name not in names]
    with buffers_kept(program.root), saved.counting(states):
        _, following, *_ = program.emitted.plain(*before, *states, *arguments)
        for state, after in zip(states, following, strict=True):
            # A state that is kept is what the step before has made: counted as what this one makes.
            tensors = isinstance(state, Tensor) and isinstance(after, Tensor)
            if tensors and saved.found.pop(_key(state), None) is not None:
                saved.found[_key(after)] = after.detach()
        del following
    return saved.bytes


class Saved:
    """What autograd saves.

    Attributes:
        found: By storage.
    """

    def __init__(self, aside: Iterable[Any]) -> None:
        """Has seen nothing yet.

        Args:
            aside: What is there anyway, and does not count.
        """
        self.found: dict[int, Tensor] = {}
        self._aside = {_key(value): value for value in aside if isinstance(value, Tensor)}

    @property
    def bytes(self) -> int:
        """Sum of the sizes of the storages."""
        return sum(tensor.untyped_storage().nbytes() for tensor in self.found.values())

    @contextmanager
    def counting(self, states: Sequence[Any]) -> Iterator[None]:
        """Runs what follows with gradients, and looks at what is saved; leaves the random generators as they are.

        Args:
            states: That it begins with.
        """
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.random.fork_rng(devices={v.device for v in states if isinstance(v, Tensor) and v.is_cuda}),
            torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor),
        ):
            yield

    def _pack(self, tensor: Tensor) -> Tensor:
        if _key(tensor) not in self._aside:
            self.found[_key(tensor)] = tensor.detach()
        return tensor.detach()


def example_states(program: StepProgram, given: Mapping[str, Any]) -> list[Any]:
    """Returns the states as a piece of a sequence begins with them, out of example values by name."""
    return [_state(given[carry.placeholder]) for carry in program.carries]


def _state(value: Any) -> Any:
    return value.detach().clone().requires_grad_(value.is_floating_point()) if isinstance(value, Tensor) else value


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
