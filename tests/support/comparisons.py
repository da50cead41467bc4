"""The parts of the comparison of a model with its converted net."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from models import assert_same_fingerprint, fingerprint
from torch import Tensor, nn

from support.held import held_for_backward, live_bytes, only_what_is_new
from support.program import Program, seed
from support.soundness import Unsound
from support.values import all_equal, equal, gradients, leaves, loss_of, structure
from tracecompile import TracedModule
from tracecompile.self_check.in_order import adding

LAST_PLACES = 2
GRADIENT_SIZE, CHUNK_SIZE, MEMORY_BATCH = (9, 3), (11, 3), 3
Convert = Callable[..., nn.Module]


class Wrong(AssertionError):
    """The converted net is not the model; the message says in what."""


@dataclass(frozen=True)
class Pair:
    """A model that was converted, its net, and a twin of the model that was left alone."""

    model: nn.Module
    net: nn.Module
    twin: nn.Module


def converted(program: Program, convert: Convert, steps: int | None = None, **options: Any) -> Pair:
    """Converts the model, made for so many steps if it fixes them, and requires that it is left as it was."""
    made_for = steps if steps is not None and program.fixed_steps else program.example[0]
    model, twin = program.model(made_for), program.model(made_for)
    example = program.arguments(made_for, program.example[1])
    seed(1)
    before = fingerprint(model)
    net = convert(model, example, backend="eager", **options)
    try:
        assert_same_fingerprint(before, fingerprint(model))
    except AssertionError as changed:
        raise Wrong(f"the conversion left something in the model or in torch's generator: {changed}") from None
    return Pair(model, net.train(), twin.train())


def require_values(program: Program, convert: Convert) -> None:
    """Values bit for bit, in training and then in evaluation; running statistics; what needs a gradient."""
    groups = [[run] for run in program.runs] if program.fixed_steps else [list(program.runs)]
    for runs in groups:
        pair = converted(program, convert, runs[0][0])
        for training in (True, False):
            pair.net.train(training)
            pair.twin.train(training)
            for steps, batch in runs if training else reversed(runs):
                _require_same_run(program, pair, steps, batch, training)
        _require_same_predictions(program, pair, *runs[-1])


def rounding_aside(net: nn.Module) -> AbstractContextManager[object]:
    """Adds up in one order what the model multiplies for all steps at once and the net step by step."""
    return adding(isinstance(net, TracedModule) and bool(net.program.stepwise))


def _require_same_run(program: Program, pair: Pair, steps: int, batch: int, training: bool) -> None:
    drawn = program.drawn(steps, batch)
    where = f"at T={steps}, B={batch}, {'training' if training else 'evaluating'}"
    with torch.set_grad_enabled(training), rounding_aside(pair.net):
        wanted, state = program.drive(pair.twin, drawn), torch.get_rng_state()
        found, state_of_net = program.drive(pair.net, drawn), torch.get_rng_state()
    if structure(found) != structure(wanted):
        raise Wrong(f"{where}: returns {_brief(structure(found))} for {_brief(structure(wanted))}")
    if not all_equal(found, wanted):
        raise Wrong(f"{where}: other values")
    if not torch.equal(state, state_of_net):
        raise Wrong(f"{where}: leaves torch's generator elsewhere than the model does")
    flags = [[leaf.requires_grad for leaf in leaves(each)] for each in (found, wanted)]
    if flags[0] != flags[1]:
        raise Wrong(f"{where}: requires_grad {flags[0]} for {flags[1]}")
    kept = _statistics(program, pair.twin)
    for name, module in (("net", pair.net), ("model", pair.model)):
        held = _statistics(program, module)
        if wrong := [key for key, value in kept.items() if key not in held or not equal(held[key], value)]:
            raise Wrong(f"{where}: {wrong[0]} of the {name} is not what it is in the model alone")


def _require_same_predictions(program: Program, pair: Pair, steps: int, batch: int) -> None:
    """After training through the net, the model itself predicts as one that was trained alone."""
    if not _statistics(program, pair.twin):
        return
    drawn = program.drawn(steps, batch)
    with torch.no_grad():
        if not all_equal(program.drive(pair.model.eval(), drawn), program.drive(pair.twin.eval(), drawn)):
            raise Wrong("the model predicts otherwise after training through the net")


def require_chunks(program: Program, convert: Convert) -> None:
    """Up to rounding the model's values where steps are computed together."""
    if program.step:
        return
    with program.precision() as rounding:
        pair = converted(program, convert, CHUNK_SIZE[0], chunk=4)
        drawn = program.drawn(*CHUNK_SIZE)
        found, wanted = program.drive(pair.net, drawn), program.drive(pair.twin, drawn)
        near = {"rtol": 10 * rounding, "atol": 10 * rounding, "equal_nan": True}
        if structure(found) != structure(wanted) or not all(
            torch.allclose(a.double(), b.double(), **near) for a, b in zip(leaves(found), leaves(wanted), strict=True)
        ):
            raise Wrong("other values with chunk=4")


def require_gradients(program: Program, convert: Convert) -> None:
    """With a bin per step, the gradient of every parameter is that of backpropagation through time."""
    with program.precision() as rounding:
        steps = GRADIENT_SIZE[0]
        _require_same_gradients(program, converted(program, convert, steps, bins=steps), rounding)


def _require_same_gradients(program: Program, pair: Pair, rounding: float) -> None:
    drawn = program.drawn(*GRADIENT_SIZE)
    wanted = gradients(pair.twin, program.drive(pair.twin, drawn))
    found = gradients(pair.model, program.drive(pair.net, drawn))
    scale = max((float(each.norm()) for each in wanted.values() if each is not None), default=0.0)
    for name, gradient in wanted.items():
        _require_same_gradient(name, found[name], gradient, rounding, scale)


def _require_same_gradient(
    name: str, found: Tensor | None, wanted: Tensor | None, rounding: float, scale: float
) -> None:
    """Requires that an error is rounding: of the gradient, or what additions leave of the largest where it cancels."""
    if found is None or wanted is None:
        given = wanted if found is None else found
        if given is not None and bool(given.any()):
            raise Wrong(f"{name}: {'no gradient' if found is None else 'a gradient that the model does not give'}")
        return
    if not bool(wanted.isfinite().all()):
        raise Unsound(f"the model's own gradient of {name} is not finite")
    error, norm = float((found - wanted).norm()), max(float(wanted.norm()), 1e-3 * scale)
    if not error <= max(rounding * norm, LAST_PLACES * torch.finfo(wanted.dtype).eps * scale):
        raise Wrong(f"gradient of {name} off by {error / norm:.1e}")


def require_flat(program: Program, convert: Convert) -> None:
    """What a forward pass leaves behind is the same for four times as many steps; a number per step is allowed."""
    if program.flat:
        _require_same_memory(program, convert, None if program.fixed_steps else converted(program, convert, bins=4))


def _require_same_memory(program: Program, convert: Convert, pair: Pair | None) -> None:
    with only_what_is_new():
        pairs = [pair or converted(program, convert, steps, bins=4) for steps in program.lengths]
        found = [_left_behind(program, each, steps) for each, steps in zip(pairs, program.lengths, strict=True)]
    numbers, grown = 8 * (program.lengths[1] - program.lengths[0]), []
    for what, i, slack in (("held for backward", 0, 0.0), ("alive after a forward pass", 1, 0.02 * found[0][1] + 4096)):
        if found[1][i] > found[0][i] + slack + numbers:
            grown.append(f"{[each[i] for each in found]} bytes {what}")
    if grown:
        raise Wrong(f"memory grows: {', '.join(grown)} at T={list(program.lengths)}")


def require_at_once(program: Program, convert: Convert) -> None:
    """All but chunks with one conversion, for when there are thousands of programs: less is compared of each."""
    steps = GRADIENT_SIZE[0]
    with program.precision() as rounding:
        pair = converted(program, convert, steps, bins=steps)
        runs = [(steps, 5)] if program.fixed_steps else program.runs
        for training in (True, False):
            pair.net.train(training)
            pair.twin.train(training)
            for run in runs if training else runs[-1:]:
                _require_same_run(program, pair, *run, training)
        pair.net.train()
        pair.twin.train()
        _require_same_gradients(program, pair, rounding)
        if program.flat:
            _require_same_memory(program, convert, None if program.fixed_steps else pair)


def _left_behind(program: Program, pair: Pair, steps: int) -> tuple[int, int]:
    """Returns the bytes that autograd holds, and those that are alive, after a forward pass."""
    drawn = program.drawn(steps, MEMORY_BATCH)
    own = [*pair.model.parameters(), *pair.model.buffers(), *leaves(drawn)]
    loss_of(program.drive(pair.net, drawn)).backward()  # what is allocated once, is by the first
    pair.model.zero_grad(set_to_none=True)
    before = live_bytes([])
    with held_for_backward() as held:
        results = program.drive(pair.net, drawn)
    return held.bytes([own, results]), live_bytes(results) - before


def _statistics(program: Program, module: nn.Module) -> dict[str, Tensor]:
    """Returns the buffers that a model and its net must have in common."""
    held = module.state_dict()
    return {name: value for name, value in held.items() if any(part in name for part in program.statistics)}


def _brief(value: Any) -> str:
    return str(value).replace("torch.", "")[:120]
