"""A library neuron whose step is one registered operator, kept whole in the program.

No tracer can look into such an operator. What is known of the neuron is its library's own protocol: a pure function
from (inputs, states) to (outputs, next states). A step of it stands in the program as one call per value that it makes,
``lif__spike(x, v)`` and ``lif__v(x, v)``: each is an elementwise function of one tensor, as every other operation of a
core is.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

Reset = Literal["in graph", "detached"]


class OpaqueStep(nn.Module):
    """The step of a library neuron as a function of tensors: inputs, states, then its parameters and buffers.

    Attributes:
        neuron: A copy of the user's neuron, without its state.
        states: Number of states.
        tensors: Names of the neuron's parameters and buffers, which are handed in.
        reset: How its reset meets the gradient.
    """

    def __init__(self, neuron: nn.Module) -> None:
        super().__init__()
        memories, resets = vars(neuron)["_memories"], vars(neuron)["_memories_rv"]
        self.tensors = tuple(name for name, _ in tensors_of(neuron))
        self.neuron = copy.deepcopy(neuron, {id(value): resets[name] for name, value in memories.items()})
        self.states = len(memories)
        self.reset: Reset = "detached" if getattr(neuron, "detach_reset", False) else "in graph"
        for name, value in list(self.neuron.named_parameters()):
            # What the step computes with is handed in: nobody is to take the copy for something that learns.
            path, _, attribute = name.rpartition(".")
            owner = self.neuron.get_submodule(path)
            delattr(owner, attribute)
            owner.register_buffer(attribute, value.detach().clone(), persistent=False)

    def forward(self, *given: Tensor) -> tuple[Any, ...]:
        """Returns (*outputs, *next states)."""
        inputs, states, tensors = self.sorted(given)
        held = {f"neuron.{name}": value for name, value in zip(self.tensors, tensors, strict=True)}
        arguments = (inputs, states)
        outputs, following = functional_call(_Call(self.neuron), held, arguments)
        return (*outputs, *following)

    def sorted(self, given: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Splits arguments into inputs, states, and the neuron's own tensors."""
        last = len(given) - len(self.tensors)
        first = last - self.states
        return tuple(given[:first]), tuple(given[first:last]), tuple(given[last:])


class _Call(nn.Module):
    def __init__(self, neuron: nn.Module) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, inputs: tuple[Tensor, ...], states: tuple[Tensor, ...]) -> Any:
        step: Any = self.neuron.single_step_functional_forward
        return step(inputs, states)


class NeuronStep(nn.Module):
    """One of the values that a step makes: an output of the neuron, or the next value of one of its states.

    Attributes:
        step: The whole step.
        position: Which of its results.
        results: How many there are.
    """

    def __init__(self, step: OpaqueStep, position: int, results: int) -> None:
        super().__init__()
        self.step = step
        self.position = position
        self.results = results

    def forward(self, *given: Tensor) -> Any:
        """Takes what the step takes and returns this one of its results."""
        return self.step(*given)[self.position]

    def extra_repr(self) -> str:
        """Names the result."""
        return f"result {self.position}"

    def emits_spikes(self, given: list[Tensor]) -> bool:
        """Probes the value on currents of all magnitudes, at rest: spikes take a few whole values, and more than one.

        Args:
            given: What the step takes, on the example.
        """
        sizes = torch.logspace(-3, 6, 128)
        current = torch.cat([-sizes.flip(0), sizes]).to(given[0])
        inputs, states, tensors = self.step.sorted(given)
        rest = [torch.zeros_like(current) for _ in (*inputs[1:], *states)]
        with torch.no_grad():
            value = self(current, *rest, *tensors)
        levels = torch.unique(value)
        return 1 < len(levels) <= 16 and torch.equal(levels, levels.round())


def tensors_of(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Returns the names and values of a module's parameters and buffers."""
    return [*module.named_parameters(), *module.named_buffers()]
