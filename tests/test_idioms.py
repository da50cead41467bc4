"""Idioms: the same network written in two ways is the same program; any mixture of ways converts exactly."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from canonical import canonical
from hypothesis import example, given, note, settings
from idiom_strategies import IdiomSpec, arguments, build, idiom_specs, record
from models import (
    FastSigmoid,
    assert_gradients_close,
    assert_same_fingerprint,
    fingerprint,
    gradients,
    weighted_loss,
)
from strategies import LayerSpec, NetSpec, Vacuity, example_inputs
from strategies import build as build_net
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import tracecompile
from tracecompile.capture import capture_program

NETWORK = (LayerSpec(3, reset="subtract_detached"), LayerSpec(2, reset="subtract_detached"))


class LayerByLayer(nn.Module):
    """The network of ``NETWORK``, each layer over the whole sequence before the next."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(3, 3), nn.Linear(3, 2)

    @staticmethod
    def neurons(currents: list[Tensor], width: int) -> list[Tensor]:
        mem, fired = currents[0].new_zeros(currents[0].shape[0], width), []
        for current in currents:
            mem = 0.8 * mem + current
            z = FastSigmoid.apply(mem - 1.0)
            mem = mem - z.detach()
            fired.append(z)
        return fired

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.neurons([self.fc1(x_t) for x_t in x], 3)
        return torch.stack(self.neurons([self.fc2(z) for z in spikes], 2))


def _idioms() -> dict[str, Any]:
    spec = IdiomSpec(layers=NETWORK)
    written = {
        "locals": spec,
        "tuples, size": replace(spec, state="tuple", loop="size"),
        "nested tuples, len": replace(spec, state="nested", loop="len"),
        "NamedTuple, unbind": replace(spec, state="namedtuple", loop="unbind"),
        "dict, iteration": replace(spec, state="dict", loop="iterate"),
        "dataclass, while": replace(spec, state="dataclass", loop="while"),
        "attributes, batch first": replace(spec, state="attribute", loop="batch_first"),
        "buffers, preallocated": replace(spec, state="buffer", collect="preallocated"),
        "lists, fixed length": replace(spec, state="list", loop="fixed"),
        "number zero, time last": replace(spec, state="zero", loop="time_last"),
        "None at first, cat": replace(spec, state="none", collect="cat"),
        "in place, enumerate": replace(spec, state="in_place", loop="enumerate"),
    }
    made = {}
    for name, idiom in written.items():
        made[name] = (build(idiom)[0], arguments(idiom, idiom.steps, 2))
    for state in ("tuple", "attribute", "buffer"):
        step = NetSpec(layers=NETWORK, state=state, loop="step")
        built = build_net(step)
        given = example_inputs(step, built.module)
        made[f"step, {state}"] = (built.module, given if isinstance(given, tuple) else (given,))
    made["layer by layer"] = (LayerByLayer().double(), (torch.randn(5, 2, 3, dtype=torch.float64),))
    return made


IDIOMS = _idioms()
FORMS: dict[str, Any] = {}


def form(name: str) -> Any:
    if name not in FORMS:
        model, given = IDIOMS[name]
        program = capture_program(model, given, {})
        leaves = [leaf for k, leaf in enumerate(pytree.tree_leaves(given)) if k not in program.explicit_states]
        FORMS[name] = canonical(program, tuple(leaves))
    return FORMS[name]


@pytest.mark.parametrize(("one", "other"), list(combinations(IDIOMS, 2)))
def test_two_idioms_of_one_network_give_one_program(one: str, other: str) -> None:
    assert len(IDIOMS) >= 10
    assert form(one) == form(other)


@pytest.mark.parametrize(
    "layers",
    [
        (NETWORK[0], replace(NETWORK[1], reset="subtract")),
        (NETWORK[0], replace(NETWORK[1], surrogate="closure")),
        (replace(NETWORK[0], lateral=True), NETWORK[1]),
        (replace(NETWORK[0], learnable_leak=True), NETWORK[1]),
        (replace(NETWORK[0], width=4), NETWORK[1]),
    ],
    ids=["reset", "surrogate", "lateral", "leak", "width"],
)
def test_the_form_tells_networks_apart(layers: tuple[LayerSpec, ...]) -> None:
    spec = IdiomSpec(layers=layers)
    program = capture_program(build(spec)[0], arguments(spec, 5, 2), {})
    assert canonical(program, arguments(spec, 5, 2)) != form("locals")


def converted(spec: IdiomSpec, model: nn.Module, **options: Any) -> Any:
    steps = spec.steps if spec.loop in ("fixed", "static") else 5
    return tracecompile.convert(model, arguments(spec, steps, 2, seed=1), **options)


def leaves_of(result: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def test_any_mixture_of_idioms_converts_exactly() -> None:
    vacuity = Vacuity()

    @settings(max_examples=max(200, settings().max_examples))
    @given(idiom_specs())
    @example(IdiomSpec(NETWORK, "dataclass", "while", "max", "after", hoisted=True))
    @example(IdiomSpec(NETWORK, "in_place", "argument", "both"))
    def holds(spec: IdiomSpec) -> None:
        model, source = build(spec)
        note(source)
        before = fingerprint(model)
        net = converted(spec, model, bins=spec.steps)
        assert_same_fingerprint(before, fingerprint(model))
        lengths = [spec.steps] if spec.loop in ("fixed", "static") else [spec.steps, spec.steps + 5]
        for steps in lengths:
            given_ = arguments(spec, steps, spec.batch + 1)
            expected, actual = copy.deepcopy(model)(*given_), net(*given_)
            assert pytree.tree_structure(actual) == pytree.tree_structure(expected)
            for one, other in zip(leaves_of(actual), leaves_of(expected), strict=True):
                assert torch.equal(one, other)
        given_ = arguments(spec, spec.steps, spec.batch)
        reference = copy.deepcopy(model)
        wanted = gradients(reference, weighted_loss(leaves_of(reference(*given_))))
        found = gradients(model, weighted_loss(leaves_of(net(*given_))))
        record(vacuity, spec, assert_gradients_close(found, wanted, rtol=1e-9, may_be_zero=True))

    holds()
    vacuity.check(least=0.8)  # on average nine in ten are live
