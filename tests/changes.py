"""Random changes of a generated network between two calls: what its user, or a library, does to an ordinary module.

A change is drawn as a frozen value and applied to any number of equal models alike: to the one that a net holds, and to
its twin. What it makes anew comes from seeds that it names.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import models
import torch
from strategies import NEURONS, RESETS, SURROGATES, LayerSpec, NetSpec
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

STATES = ("mem", "syn", "adp", "spk")
NUMBERS = (0.6, 0.9, 0.8, 1.2)


@dataclass(frozen=True)
class Change:
    """Something that is done to a model.

    Attributes:
        kind: Key of ``KINDS``.
        layer: Which layer, counted round.
        number: Chooses among what the kind offers.
        by_net: Whether it is done by the net's own name for the model.
    """

    kind: str
    layer: int = 0
    number: int = 0
    by_net: bool = False


@dataclass(frozen=True)
class Round:
    """Changes, and a sequence that is run after them; the same sequence goes on where ``goes_on`` says so.

    Attributes:
        changes: What is done.
        after: The number of steps of the sequence before it is done; only a step model can wait.
        goes_on: Whether a step model goes on from where the last round left it.
        steps, batch: Of the sequence; one that goes on has the batch of the last.
        trains: Whether gradients are compared.
        late: What is done between forward and backward.
    """

    changes: tuple[Change, ...] = ()
    after: int = 0
    goes_on: bool = False
    steps: int = 4
    batch: int = 2
    trains: bool = True
    late: tuple[Change, ...] = ()


@dataclass(frozen=True)
class ChangedSpec:
    """A network, and what happens to it."""

    net: NetSpec
    rounds: tuple[Round, ...]


class Changed:
    """One of several equal models, and the name it is changed by."""

    def __init__(self, spec: NetSpec, model: Any, root: Any = None) -> None:
        self.spec, self.model, self.root = spec, model, model if root is None else root

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def cells(self) -> list[Any]:
        return [getattr(self.root, f"cell{index}") for index in range(len(self.spec.layers))]

    def apply(self, change: Change, batch: int) -> None:
        """Does it; nothing where the model has no such place."""
        root, self.root = self.root, self.root if change.by_net else self.model
        try:
            cells = self.cells()
            with models.seeded(7 + change.number):
                KINDS[change.kind](self, cells[change.layer % len(cells)], change.number, batch)
        finally:
            self.root = root

    def states(self) -> Iterator[tuple[Any, str]]:
        """The places of the states that the model keeps itself."""
        if self.spec.kind == "step" and not self.spec.explicit_state:
            for cell, layer in zip(self.cells(), self.spec.layers, strict=True):
                yield from ((cell, name) for name in layer.states)

    def clear(self) -> None:
        """Begins a sequence, as the model itself can."""
        for cell, name in self.states():
            shape = (1, getattr(cell, name).shape[-1]) if self.spec.state == "buffer" else ()
            setattr(cell, name, torch.zeros(shape, dtype=self.dtype) if shape else None)

    def detach(self) -> None:
        """Lets the next step learn nothing of those before it."""
        for cell, name in self.states():
            value = getattr(cell, name)
            setattr(cell, name, None if value is None else value.detach())


def linear(cell: Any) -> nn.Linear:
    """Returns the layer of weights below the neurons of a cell."""
    found: nn.Linear = next(part for part in cell.fc.modules() if isinstance(part, nn.Linear))
    return found


def strong(module: Any, dtype: torch.dtype) -> Any:
    """Gives a new module weights that let neurons fire, as ``strategies.build`` does."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
            elif parameter.ndim == 1:
                parameter.abs_()
    return module.to(dtype)


class Halved(nn.Module):
    """A parametrisation."""

    def forward(self, weight: Tensor) -> Tensor:
        return 0.5 * weight


def _scaled(result: Any, factor: float) -> Any:
    return (factor * result[0], *result[1:]) if isinstance(result, tuple) else factor * result


def _leak(on: Changed, cell: Any, number: int, batch: int) -> None:
    value = 0.5 + 0.1 * (number % 4)
    is_number = isinstance(cell.beta, float)
    cell.beta = value if is_number else nn.Parameter(torch.full_like(cell.beta, value))


def _threshold(on: Changed, cell: Any, number: int, batch: int) -> None:
    cell.threshold = NUMBERS[number % 4]


def _surrogate(on: Changed, cell: Any, number: int, batch: int) -> None:
    if hasattr(cell, "spike"):
        cell.spike = (models.FastSigmoid.apply, models.arctan(3.0), models.straight_through)[number % 3]


def _weights(on: Changed, cell: Any, number: int, batch: int) -> None:
    if isinstance(cell.fc, nn.Linear):
        cell.fc = strong(nn.Linear(cell.fc.in_features, cell.fc.out_features, bias=number % 3 > 0), on.dtype)


def _neurons(on: Changed, cell: Any, number: int, batch: int) -> None:
    index = next(index for index, each in enumerate(on.cells()) if each is cell)
    setattr(on.root, f"cell{index}", strong(type(cell)(), on.dtype))


def _frozen(on: Changed, cell: Any, number: int, batch: int) -> None:
    parameters = list(on.root.parameters())
    parameters[number % len(parameters)].requires_grad_(number % 2 == 0)


def _all_frozen(on: Changed, cell: Any, number: int, batch: int) -> None:
    on.root.requires_grad_(number % 3 > 0)


def _tied(on: Changed, cell: Any, number: int, batch: int) -> None:
    places = [
        (part, name, value)
        for part in on.model.modules()
        for name, value in part._parameters.items()
        if value is not None
    ]
    pairs = [(a, b) for a in places for b in places if a[2] is not b[2] and a[2].shape == b[2].shape]
    if pairs:
        (part, name, _), (_, _, value) = pairs[number % len(pairs)]
        setattr(part, name, value)


def _without_bias(on: Changed, cell: Any, number: int, batch: int) -> None:
    linear(cell).bias = None


def _loaded(on: Changed, cell: Any, number: int, batch: int) -> None:
    factor = 0.9 + 0.1 * (number % 3)
    held = {
        name: factor * value if value.is_floating_point() else value for name, value in on.root.state_dict().items()
    }
    on.root.load_state_dict(held, assign=number % 2 == 1)


def _another_data(on: Changed, cell: Any, number: int, batch: int) -> None:
    for parameter in linear(cell).parameters():
        parameter.data = 0.9 * parameter.data


def _written(on: Changed, cell: Any, number: int, batch: int) -> None:
    with torch.no_grad():
        for parameter in on.root.parameters():
            parameter.mul_(1.05)


def _cast(on: Changed, cell: Any, number: int, batch: int) -> None:
    on.root.to(torch.float64) if on.dtype == torch.float32 else on.root.float()


def _mode(on: Changed, cell: Any, number: int, batch: int) -> None:
    on.root.train(number % 2 == 0)


def _hook(on: Changed, cell: Any, number: int, batch: int) -> None:
    factor = 0.8 + 0.1 * (number % 3)
    if number % 2:
        cell.fc.register_forward_hook(lambda module, args, result: factor * result)
    else:
        linear(cell).register_forward_pre_hook(lambda module, args: (factor * args[0],))


def _hook_of_cell(on: Changed, cell: Any, number: int, batch: int) -> None:
    factor = 0.8 + 0.1 * (number % 3)
    cell.register_forward_hook(lambda module, args, result: _scaled(result, factor))


def _no_hooks(on: Changed, cell: Any, number: int, batch: int) -> None:
    for part in cell.modules():
        part._forward_hooks.clear()


def _wrapped(on: Changed, cell: Any, number: int, batch: int) -> None:
    last = nn.Tanh() if number % 2 else nn.BatchNorm1d(linear(cell).out_features)
    cell.fc = nn.Sequential(cell.fc, strong(last, on.dtype).train(on.root.training))


def _pruned(on: Changed, cell: Any, number: int, batch: int) -> None:
    if "weight" in linear(cell)._parameters:
        prune.l1_unstructured(linear(cell), "weight", amount=0.3)


def _parametrised(on: Changed, cell: Any, number: int, batch: int) -> None:
    layer = linear(cell)
    if parametrize.is_parametrized(layer, "weight") or "weight" in layer._parameters:
        parametrize.register_parametrization(layer, "weight", Halved())


def _plain_weights(on: Changed, cell: Any, number: int, batch: int) -> None:
    layer = linear(cell)
    if hasattr(layer, "weight_orig"):
        prune.remove(layer, "weight")
    elif parametrize.is_parametrized(layer, "weight"):
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=number % 2 == 0)


def _cleared(on: Changed, cell: Any, number: int, batch: int) -> None:
    on.clear()


def _assigned(on: Changed, cell: Any, number: int, batch: int) -> None:
    for place, (part, name) in enumerate(on.states()):
        width = linear(part).out_features
        setattr(part, name, torch.full((batch, width), 0.2 + 0.1 * ((number + place) % 4), dtype=on.dtype))


def _one_assigned(on: Changed, cell: Any, number: int, batch: int) -> None:
    if places := list(on.states()):
        part, name = places[number % len(places)]
        setattr(part, name, torch.full((batch, linear(part).out_features), 0.3, dtype=on.dtype))


def _state_written(on: Changed, cell: Any, number: int, batch: int) -> None:
    on.detach()  # the model's own has a graph
    for part, name in on.states():
        if getattr(part, name) is not None:
            getattr(part, name).mul_(0.5)


KINDS: dict[str, Callable[[Changed, Any, int, int], None]] = {
    "leak": _leak,
    "threshold": _threshold,
    "surrogate": _surrogate,
    "weights": _weights,
    "neurons": _neurons,
    "freeze": _frozen,
    "freeze all": _all_frozen,
    "tie": _tied,
    "no bias": _without_bias,
    "load": _loaded,
    "data": _another_data,
    "write": _written,
    "cast": _cast,
    "mode": _mode,
    "hook": _hook,
    "hook of a cell": _hook_of_cell,
    "no hooks": _no_hooks,
    "wrap": _wrapped,
    "prune": _pruned,
    "parametrise": _parametrised,
    "plain weights": _plain_weights,
    "clear": _cleared,
    "assign": _assigned,
    "assign one": _one_assigned,
    "write into states": _state_written,
}
OF_THE_NET = ("copy", "restore", "reset")
"""What is done to a net alone; its twin is brought to where that leads."""
BEFORE_BACKWARD = ("leak", "threshold", "surrogate", "weights", "neurons", "freeze", "no bias", "mode", "hook",
    "hook of a cell", "no hooks", "wrap", "prune", "clear", "assign", "assign one")  # fmt: skip
"""What a user may do while steps wait for backward: the others write into what autograd has saved."""
AT_A_BEGINNING = ("cast", "copy", "reset")
"""What leaves no state to go on from."""


def changed(seed: int) -> ChangedSpec:
    """Draws a network and two to four rounds: all of what may be drawn is about equally frequent."""
    chance = random.Random(seed)
    layers = [
        LayerSpec(
            chance.randint(2, 4), *map(chance.choice, ((False, True), RESETS, SURROGATES, NEURONS, (False, True)))
        )
        for _ in range(chance.choice((1, 2, 2, 3)))
    ]
    loop = chance.choice(("shape", "batch_first", "fixed", "step", "step", "step"))
    state = chance.choice(("locals", "tuple", "namedtuple", "attribute", "attribute", "buffer", "buffer"))
    net = NetSpec(tuple(layers), state, loop, chance.choice(("stack", "list", "sum", "mean")), 6, 3, seed)
    rounds: list[Round] = []
    for _ in range(chance.randint(2, 4)):
        rounds.append(_round(chance, net, rounds[-1] if rounds and net.kind == "step" else None))
    return ChangedSpec(net, tuple(rounds))


def _round(chance: random.Random, net: NetSpec, last: Round | None) -> Round:
    goes_on = last is not None and chance.random() < 0.5
    steps = net.steps if net.loop == "fixed" else chance.randint(3, 8)
    after = chance.randint(1, steps - 1) if net.kind == "step" and chance.random() < 0.3 else 0
    possible = BEFORE_BACKWARD if after else (*KINDS, *OF_THE_NET)
    kinds = [kind for kind in possible if not goes_on or kind not in AT_A_BEGINNING]
    batch = last.batch if last is not None and goes_on else chance.randint(2, 4)
    late = _changes(chance, [kind for kind in BEFORE_BACKWARD if kind != "freeze"], 1 if chance.random() < 0.25 else 0)
    return Round(
        _changes(chance, kinds, chance.choice((1, 1, 2, 3))), after, goes_on, steps, batch, chance.random() < 0.8, late
    )


def _changes(chance: random.Random, kinds: list[str], count: int) -> tuple[Change, ...]:
    return tuple(
        Change(chance.choice(kinds), chance.randrange(3), chance.randrange(12), chance.random() < 0.5)
        for _ in range(count)
    )
