"""A generated network that goes through random changes between calls: its net is what an equal model would be."""

from __future__ import annotations

import copy
import os
from collections import Counter
from typing import Any

import pytest
import torch
from changes import Changed, ChangedSpec, Round, changed_specs
from hypothesis import given, note, settings
from models import weighted_loss
from strategies import Vacuity, build, example_inputs, make_inputs
from torch import Tensor, nn

import tracecompile
from tracecompile.errors import ConversionError

BINS = 8
EXAMPLES = int(os.environ.get("TRACECOMPILE_CHANGES", "40"))
LOOSE = {torch.float64: 1e-9, torch.float32: 1e-4}
MAY_BE_REFUSED = ("was set from outside, and", "goes on",)


class Refused(Exception):
    """The net has said that it cannot go on, where it may."""


class Lived:
    """A net and an equal model, through all rounds."""

    def __init__(self, spec: ChangedSpec) -> None:
        self.spec, self.net_spec = spec, spec.net
        built = build(spec.net)
        note(built.source)
        self.twin = Changed(spec.net, copy.deepcopy(built.module))
        example = example_inputs(spec.net, built.module)
        self.net: Any = tracecompile.convert(built.module, example, bins=BINS, backend="eager")
        self.model = Changed(spec.net, built.module, self.net)
        self.states: list[Any] = [None, None]  # as handed in, of the net and of the twin
        self.had_gradient = False
        self.outputs: list[Tensor] = []

    def change(self, round: Round, training: bool) -> None:
        for change in round.changes:
            if change.kind == "copy":
                self.net = copy.deepcopy(self.net)
                self.model = Changed(self.net_spec, self.net.source, self.net)
            if change.kind in ("copy", "reset"):
                self.net.reset()
                self.twin.clear()
            elif change.kind == "restore":
                self.go_back(round)
            else:
                for one in (self.model, self.twin):
                    one.apply(change, round.batch)

    def go_back(self, round: Round) -> None:
        """Takes two steps, and goes back to where it stood before them."""
        left = [(part, name, getattr(part, name)) for part, name in self.twin.states()]
        kept = self.net.snapshot()
        with torch.no_grad():
            if not self.net_spec.explicit_state:
                self.same(*(self.steps(each, self.inputs(round)[:2], []) for each in (0, 1)))
        self.net.restore(kept)
        for part, name, value in left:
            setattr(part, name, value)

    def inputs(self, round: Round, seed: int = 0) -> Any:
        made = make_inputs(self.net_spec, round.steps, round.batch, seed)
        if isinstance(made, list):
            return [x.to(self.twin.dtype) for x in made]
        return made.to(self.twin.dtype)

    def steps(self, which: int, inputs: Any, found: list[Tensor]) -> list[Tensor]:
        """Runs the net (0) or the twin (1) on a sequence, or on a part of one."""
        called = (self.net, self.twin.model)[which]
        if self.net_spec.kind == "sequence":
            result = called(inputs)
            found += result if isinstance(result, (list, tuple)) else [result]
        elif not self.net_spec.explicit_state:
            found += [called(x) for x in inputs]
        else:
            for x in inputs:
                output, self.states[which] = called(x, self.states[which])
                found.append(output)
        return found

    def same(self, found: list[Tensor], wanted: list[Tensor]) -> None:
        assert len(found) == len(wanted)
        for step, (one, other) in enumerate(zip(found, wanted, strict=True)):
            assert one.dtype == other.dtype
            assert torch.equal(one, other), f"step {step}: largest difference {float((one - other).abs().max())}"

    def begin(self, round: Round) -> None:
        if not round.goes_on:
            self.net.reset()
            self.twin.clear()
            if self.net_spec.explicit_state:
                first = self.inputs(round)[0]
                self.states = [self.twin.model.initial(first) for _ in range(2)]
            return
        self.twin.detach()
        self.states = [None if each is None else tuple(detached(s) for s in each) for each in self.states]

    def run(self, number: int, round: Round) -> None:
        if not round.after:
            self.change(round, round.trains)
        self.begin(round)
        known = [[*dict.fromkeys(each.model.parameters())] for each in (self.model, self.twin)]
        inputs, found, wanted = self.inputs(round, number), [], []
        with torch.set_grad_enabled(round.trains):
            if round.after:
                self.steps(0, inputs[: round.after], found)
                self.steps(1, inputs[: round.after], wanted)
                self.change(round, round.trains)
                inputs = inputs[round.after :]
            self.steps(1, inputs, wanted)
            self.steps(0, inputs, found)
        self.same(found, wanted)
        self.outputs += [each.detach() for each in wanted]
        if round.trains:
            self.compare(known, found, wanted)

    def compare(self, known: list[list[nn.Parameter]], found: list[Tensor], wanted: list[Tensor]) -> None:
        learns = [any(each.requires_grad for each in outputs) for outputs in (found, wanted)]
        assert learns[0] == learns[1]
        if not learns[0]:
            return
        gradients = []
        for one, before, outputs in zip((self.model, self.twin), known, (found, wanted), strict=True):
            parameters = dict.fromkeys([*before, *one.model.parameters()])
            for parameter in parameters:
                parameter.grad = None
            weighted_loss(outputs).backward()
            gradients.append([parameter.grad for parameter in parameters])
        names = {p: name for name, p in self.twin.model.named_parameters()}
        for name, one, other in zip([*names.values(), *["gone"] * 99], *gradients, strict=False):
            right = torch.zeros(()) if other is None else other
            error = float((torch.zeros(()) if one is None else one).sub(right).norm())
            assert error <= max(LOOSE[self.twin.dtype] * float(right.norm()), 1e-12), f"{name}: off by {error:.3g}"
            self.had_gradient |= bool(right.any())


def detached(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.detach()
    made = [each.detach() for each in state]
    return type(state)(*made) if hasattr(state, "_fields") else tuple(made)


def test_a_net_lives_through_changes_as_its_model() -> None:
    vacuity, done, refused = Vacuity(), Counter[str](), 0

    @settings(max_examples=EXAMPLES)
    @given(changed_specs())
    def holds(spec: ChangedSpec) -> None:
        nonlocal refused
        lived = Lived(spec)
        for number, round in enumerate(spec.rounds):
            lived.run(number, round)
            done.update(change.kind for change in round.changes)
        vacuity.count(torch.cat([each.flatten() for each in lived.outputs]), lived.had_gradient)

    holds()
    vacuity.check(0.7)
