"""A net and an equal model, which live through the same changes and are compared all the way."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from changes import Change, Changed, ChangedSpec, Round
from models import weighted_loss
from strategies import Built, example_inputs, make_inputs
from torch import Tensor, nn

import tracecompile
from tracecompile.errors import InvalidInput

BINS = 8
LOOSE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Relative errors."""
MAY_BE_REFUSED = (
    "changed while steps wait for backward",
    "what the others learn of the steps before would be lost",
    "In this mode the model is made of other layers",
)
"""What is said of a change while steps wait for backward, of which a gradient would be lost."""


class Lived:
    """A net and an equal model, through all rounds.

    Attributes:
        refused: Rounds that the net has refused to go on in, since steps waited for backward.
        trained: Rounds whose gradients were compared, and not all zero.
        seen, moved: Rounds whose outputs were compared with those of a model that was left alone, and were others.
        outputs: Of the twin.
    """

    def __init__(self, spec: ChangedSpec, built: Built) -> None:
        self.spec, self.net_spec = spec, spec.net
        self.twin = Changed(spec.net, copy.deepcopy(built.module))
        example = example_inputs(spec.net, built.module)
        self.net: Any = tracecompile.convert(built.module, example, bins=BINS, backend="eager")
        self.model = Changed(spec.net, built.module, self.net)
        self.states: list[Any] = [None, None]  # as handed in, of the net and of the twin
        self.refused = self.trained = self.seen = self.moved = 0
        self.outputs: list[Tensor] = []

    def change(self, changes: tuple[Change, ...], turn: Round) -> None:
        for change in changes:
            if change.kind == "copy":
                self.net = copy.deepcopy(self.net)
                self.model = Changed(self.net_spec, self.net.source, self.net)
            if change.kind in ("copy", "reset"):
                self.net.reset()
                self.twin.clear()
            elif change.kind == "restore":
                self.go_back(turn)
            else:
                for one in (self.model, self.twin):
                    one.apply(change, turn.batch)

    def go_back(self, turn: Round) -> None:
        """Takes two steps, and goes back to where it stood before them."""
        left = [(part, name, getattr(part, name)) for part, name in self.twin.states()]
        kept, inputs = self.net.snapshot(), self.inputs(turn)
        inputs = inputs[:2] if self.net_spec.kind == "step" else inputs
        with torch.no_grad():
            if not self.net_spec.explicit_state:
                _assert_same(*(self.steps(each, inputs, []) for each in (0, 1)))
        self.net.restore(kept)
        for part, name, value in left:
            setattr(part, name, value)

    def inputs(self, turn: Round, seed: int = 0) -> Any:
        made = make_inputs(self.net_spec, turn.steps, turn.batch, seed)
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

    def begin(self, turn: Round) -> None:
        if not turn.goes_on:
            self.net.reset()
            self.twin.clear()
            if self.net_spec.explicit_state:
                first = self.inputs(turn)[0]
                self.states = [self.twin.model.initial(first) for _ in range(2)]
            return
        self.twin.detach()
        self.states = [None if each is None else tuple(map(_detached, each)) for each in self.states]

    def live(self) -> None:
        """Goes through all rounds."""
        lost = False
        for number, turn in enumerate(self.spec.rounds):
            if lost and turn.goes_on:
                turn = dataclasses.replace(turn, goes_on=False)
            try:
                self.run(number, turn)
                lost = False
            except InvalidInput as refusal:
                waited = turn.after > 0 and turn.trains
                if not waited or not any(sentence in refusal.explanation for sentence in MAY_BE_REFUSED):
                    raise
                self.refused += 1
                lost = True

    def run(self, number: int, turn: Round) -> None:
        unchanged = self.unchanged(turn, number)
        if not turn.after:
            self.change(turn.changes, turn)
        self.begin(turn)
        inputs = self.inputs(turn, number)
        known = [[*dict.fromkeys(each.model.parameters())] for each in (self.model, self.twin)]
        found: list[Tensor] = []
        wanted: list[Tensor] = []
        with torch.set_grad_enabled(turn.trains):
            if turn.after:
                self.steps(0, inputs[: turn.after], found)
                self.steps(1, inputs[: turn.after], wanted)
                self.change(turn.changes, turn)
                inputs = inputs[turn.after :]
            self.steps(0, inputs, found)
            self.steps(1, inputs, wanted)
        _assert_same(found, wanted)
        self.outputs += [each.detach() for each in wanted]
        if unchanged:
            self.seen += 1
            self.moved += not all(map(_equal, unchanged, wanted))
        self.change(turn.late, turn)
        if turn.trains:
            self.compare(known, found, wanted)

    def unchanged(self, turn: Round, number: int) -> list[Tensor]:
        """Returns what would come out without the changes; nothing where to ask would move the twin on."""
        moves = any(isinstance(part, nn.BatchNorm1d) for part in self.twin.model.modules())
        if moves or turn.after or turn.goes_on or self.net_spec.explicit_state:
            return []
        self.net.reset()
        self.twin.clear()
        with torch.no_grad():
            found = self.steps(1, self.inputs(turn, number), [])
        self.twin.clear()
        return found

    def compare(self, known: list[list[nn.Parameter]], found: list[Tensor], wanted: list[Tensor]) -> None:
        """Compares the gradients of all parameters that there were at the beginning, or are at the end."""
        learns = [any(each.requires_grad for each in outputs) for outputs in (found, wanted)]
        assert learns[0] == learns[1]
        if not learns[0]:
            return
        gradients = []
        for one, before, outputs in zip((self.model, self.twin), known, (found, wanted), strict=True):
            parameters = dict.fromkeys([*one.model.parameters(), *before])
            for parameter in parameters:
                parameter.grad = None
            weighted_loss(outputs).backward()
            gradients.append([parameter.grad for parameter in parameters])
        names = [name for name, _ in self.twin.model.named_parameters()]
        names += ["one that was replaced"] * (len(gradients[0]) - len(names))
        trained = False
        # Of a bias before a normalisation there is nothing but rounding.
        largest = max((float(each.norm()) for each in gradients[1] if each is not None), default=0.0)
        for name, one, other in zip(names, *gradients, strict=True):
            right = torch.zeros(()) if other is None else other
            error = float((torch.zeros(()) if one is None else one).sub(right).norm())
            loose = LOOSE[self.twin.dtype] * max(float(right.norm()), 0.1 * largest)
            assert error <= loose, f"{name}: off by {error:.3g}"
            trained |= bool(right.any())
        self.trained += trained


def _detached(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.detach()
    made = [each.detach() for each in state]
    return type(state)(*made) if hasattr(state, "_fields") else tuple(made)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _assert_same(found: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(found) == len(wanted)
    for step, (one, other) in enumerate(zip(found, wanted, strict=True)):
        assert one.dtype == other.dtype
        assert torch.equal(one, other), f"step {step}: largest difference {float((one - other).abs().max())}"
