"""Which neuron of NIR the polynomials of a core are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from tracecompile.errors import UnsupportedOperation
from tracecompile.exporting.nir.algebra import Neuron
from tracecompile.exporting.nir.polynomial import SPIKE, Polynomial, is_zero

CURRENT = "synaptic current"
"""The symbol of a state that gathers the currents before the membrane does. No node of a graph is called so."""


@dataclass(frozen=True)
class Gathered:
    """A first-order filter of the currents: ``i <- decay i + constant + sum of gains c``.

    Attributes:
        decay, constant: Numbers, or one per neuron.
        gains: By current.
        late: Whether the membrane takes it up one step later.
    """

    decay: Tensor
    gains: Mapping[str, Tensor]
    constant: Tensor
    late: bool


@dataclass(frozen=True)
class Cell:
    """A neuron: ``u <- decay u + constant + sum of gains c + feedback s``, s the spike of the step before.

    It starts at zero. With a threshold ``s = u > threshold`` and then ``u <- u - threshold s``.

    Attributes:
        decay, constant: Numbers, or one per neuron.
        gains: By current; of CURRENT where ``gathered`` stands before it.
        threshold: None of a neuron that does not spike.
        feedback: Beside the subtraction of the threshold.
        gathered: What filters the currents first, if anything does.
        outputs: By what each output is the product of the spike, or of the membrane where there is none.
        memory: Whether it has a state.
    """

    decay: Tensor
    constant: Tensor
    gains: Mapping[str, Tensor]
    threshold: Tensor | None
    feedback: Tensor
    gathered: Gathered | None
    outputs: Mapping[str, Tensor]
    memory: bool = True


def cell_of(neuron: Neuron, starts: Mapping[str, Tensor]) -> Cell:
    """Returns what a core is in NIR.

    Args:
        neuron: What it computes.
        starts: Of its states.

    Raises:
        UnsupportedOperation: Nothing that NIR has; names the user's line.
    """
    return _Matching(neuron, starts).cell()


class _Matching:
    def __init__(self, neuron: Neuron, starts: Mapping[str, Tensor]) -> None:
        self.neuron, self.starts = neuron, starts
        self.following, self.outputs = dict(neuron.following), dict(neuron.outputs)
        self.arguments = {name: condition.argument for name, condition in neuron.conditions.items()}
        self.late: set[str] = set()

    def refuse(self, what: str, advice: str, result: str = "") -> NoReturn:
        """Refuses the neuron, at the line of one of its results."""
        lines = self.neuron.lines
        where = lines.get(result) or next((line for line in lines.values() if line is not None), None)
        raise UnsupportedOperation(
            f"NIR has no neuron like {self.neuron.layer.name}: {what}.",
            f'{advice}, or export it as ONNX, which takes any step: tracecompile.export(net, "onnx").',
            where,
        )

    def cell(self) -> Cell:
        """Matches."""
        self._merge()
        self._find_late()
        for name, value in self.following.items():
            self._linear(name, value)
        for name, value in self.arguments.items():
            self._linear(name, value)
        if len(self.arguments) > 1:
            self.refuse("it makes spikes at several thresholds", "Give it one")
        spike = next(iter(self.arguments), None)
        gathered, membrane = self._gathered()
        if spike is None:
            return self._integrator(membrane, gathered)
        outputs = {name: value.at(spike) for name, value in self.outputs.items() if set(value.terms) == {(spike,)}}
        if membrane is None:
            argument = self.arguments[spike]
            gains = self._gains(argument.symbols, argument)
            zero = torch.zeros(())
            return Cell(zero, zero, gains, -argument.at(), zero, gathered, outputs, gathered is not None)
        return self._firing(spike, membrane, gathered, outputs)

    def _merge(self) -> None:
        """Takes spikes that are made twice, of the same value, as one."""
        for name, argument in list(self.arguments.items()):
            same = next((other for other in self.arguments if self.arguments[other].equals(argument)), name)
            if same != name:
                del self.arguments[name]
                self._replace(name, Polynomial.symbol(same))

    def _replace(self, name: str, by: Polynomial) -> None:
        for values in (self.following, self.outputs, self.arguments):
            values.update({key: value.replaced(name, by) for key, value in values.items()})

    def _find_late(self) -> None:
        """Finds the spikes of the step before: carried as a state, or made anew of the last membrane."""
        for name in [key for key in self.following if any(SPIKE + key in p.symbols for p in self._all())]:
            value = self.following[name]
            if set(value.terms) - {(spike,) for spike in self.arguments} or len(value.terms) != 1:
                self.refuse(f"{name} is no spike of the step before", "Carry the spike itself", name)
            (only,) = value.terms
            if not is_zero(value.at(*only) - 1) or not is_zero(self.starts[name]):
                self.refuse(f"{name} is no spike of the step before", "Carry the spike itself, from zero on", name)
            del self.following[name]
            self.late.add(SPIKE + name)
        for name, argument in list(self.arguments.items()):
            if not argument.symbols or argument.symbols - set(self.following):
                continue
            now = argument
            for state in argument.symbols:
                now = now.replaced(state, self.following[state])
            others = {key: value for key, value in self.arguments.items() if key != name}
            if not any(now.equals(other) for other in others.values()):
                continue
            first = argument
            for state in argument.symbols:
                first = first.replaced(state, Polynomial.of(self.starts[state]))
            if bool((first.at() > 0).any()):
                self.refuse("it starts above its threshold", "Start below it", next(iter(argument.symbols)))
            del self.arguments[name]
            self.late.add(name)
        for state in [s for s in self.following if not any(s in p.symbols for p in self._all())]:
            del self.following[state]  # a state that nobody reads

    def _all(self) -> Iterable[Polynomial]:
        return (*self.following.values(), *self.outputs.values(), *self.arguments.values())

    def _linear(self, name: str, value: Polynomial) -> None:
        for symbols in value.terms:
            if len(symbols) > 1:
                self.refuse(
                    "at a spike it sets a state to a value, and NIR's neurons subtract their threshold",
                    "Subtract the threshold where it resets (v = v - s * threshold; reset_mechanism='subtract'; "
                    "v_reset=None)",
                    name,
                )

    def _gathered(self) -> tuple[Gathered | None, str | None]:
        """Returns what filters the currents before the membrane, if anything does, and the membrane."""
        states = list(self.following)
        if len(states) < 2:
            return None, states[0] if states else None
        first = [s for s in states if not self.following[s].symbols & {*states, *self.late, *self.arguments} - {s}]
        if len(states) > 2 or len(first) != 1:
            self.refuse(f"it has the states {', '.join(states)}", "Use a membrane and one synaptic current", states[0])
        synapse, value = first[0], self.following.pop(first[0])
        membrane = next(iter(self.following))
        if not is_zero(self.starts[synapse]):
            self.refuse(f"{synapse} starts at another value than zero", "Start it at zero", synapse)
        gains = self._gains(value.symbols - {synapse}, value)
        decay = value.at(synapse)
        readers = [*self.following.values(), *self.outputs.values(), *self.arguments.values()]
        late = not any(reader.symbols & set(gains) for reader in readers)
        by = Polynomial.symbol(CURRENT)
        if not late:
            if bool((decay == 0).any()):
                self.refuse(f"{synapse} forgets everything in one step", "Leave it out", synapse)
            by = (by - value.without(synapse)).times(1 / decay)
        elif not is_zero(value.at()):
            self.refuse(f"{synapse} has a constant and is read a step later", "Leave the constant out", synapse)
        self._replace(synapse, by)
        for values in (self.following, self.outputs, self.arguments):
            values.update({key: value.cleaned() for key, value in values.items()})
        if any(reader.symbols & set(gains) for reader in self._all()):
            self.refuse("its currents reach the membrane twice", "Lead them into the synaptic current alone", membrane)
        return Gathered(decay, gains, value.at(), late), membrane

    def _gains(self, symbols: Iterable[str], value: Polynomial) -> dict[str, Tensor]:
        return {name: value.at(name) for name in sorted(symbols) if not name.startswith(SPIKE)}

    def _integrator(self, membrane: str | None, gathered: Gathered | None) -> Cell:
        """Matches a neuron that does not spike: its output is a multiple of the membrane after the step."""
        if membrane is None:
            self.refuse("it has neither a state nor spikes", "Leave it to a layer of its own")
        value = self.following[membrane]
        outputs: dict[str, Tensor] = {}
        for name, output in self.outputs.items():
            keys = set(value.terms) & set(output.terms)
            factor = next((output.at(*key) / value.at(*key) for key in keys if bool((value.at(*key) != 0).all())), None)
            if factor is not None and output.equals(value.times(factor)):
                outputs[name] = factor
        if not is_zero(self.starts[membrane]):
            self.refuse("it starts at another value than zero", "Start it at zero", membrane)
        if value.spikes:
            self.refuse("spikes of its own reach a membrane that does not spike", "Let it spike", membrane)
        gains = self._gains(value.symbols - {membrane}, value)
        return Cell(value.at(membrane), value.at(), gains, None, torch.zeros(()), gathered, outputs)

    def _firing(self, spike: str, membrane: str, gathered: Gathered | None, outputs: dict[str, Tensor]) -> Cell:
        """Matches ``a = alpha v + sum of b c + kappa``, a spike where a > 0, and ``v <- scale a + offset - g s``."""
        argument, value = self.arguments[spike], self.following[membrane]
        alpha, kappa, start = argument.at(membrane), argument.at(), self.starts[membrane]
        if bool((alpha == 0).any()):
            self.refuse("its spikes do not come from its membrane", "Compare the membrane with the threshold", membrane)
        scale = value.at(membrane) / alpha
        rest = (value - argument.times(scale)).cleaned(value)
        if rest.symbols - {spike}:
            self.refuse(
                "the membrane that it compares with its threshold is not the one that it keeps",
                "Compare what it keeps, before the reset",
                membrane,
            )
        decay, drop = value.at(membrane), -alpha * rest.at(spike)
        # In terms of a: a <- decay a + alpha rest + kappa + sum of b c - drop s; u = a - origin starts at zero.
        origin = torch.where(decay == 0, kappa + alpha * rest.at(), alpha * (start - rest.at()) / decay)
        constant = decay * origin + alpha * rest.at() + kappa - origin
        if not is_zero(torch.where(decay == 0, start - rest.at(), torch.zeros_like(start)), 1.0):
            self.refuse("its first step differs from the others", "Start it where it rests", membrane)
        threshold = -origin
        for late in self.late:
            drop = drop - argument.at(late)
        constant = torch.where(constant.abs() < 1e-12 * (1 + threshold.abs()), 0.0, constant)
        feedback = decay * threshold - drop
        feedback = torch.where(feedback.abs() < 1e-12 * (1 + threshold.abs()), 0.0, feedback)
        gains = self._gains(argument.symbols - {membrane}, argument)
        return Cell(decay, constant, gains, threshold, feedback, gathered, outputs)
