"""The rows of ``torch.compile``: a loop over time in pieces of 16 steps, or a model of the user's as it stands."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch.utils.checkpoint import checkpoint

from tracecompile.bench.case import Case
from tracecompile.bench.networks import Looped, States
from tracecompile.bench.over_time import layer_by_layer, looped_of, start_of
from tracecompile.bench.running import Run, Skipped
from tracecompile.diagnostics.check import projection_loss
from tracecompile.diagnostics.fidelity import call_or_loop

PIECE = 16
"""Steps of a compiled piece, as many as tracecompile's own have."""
UNROLLED = 128
"""Most steps of a user's own loop: ``torch.compile`` writes all of them out, and takes longer for each."""
SHORT = 32
"""Most steps of one that is compiled without being asked for: 100 steps of a small one take a minute and a half."""

Piece = Callable[[Looped, Tensor, States], tuple[Tensor, States]]


def takes_long(case: Case) -> str:
    """Returns why a user's own loop is not compiled unless that is asked for; "" where it is."""
    if case.looped is not None or isinstance(case.inputs, list) or not SHORT < case.steps <= UNROLLED:
        return ""
    return f"torch.compile writes all {case.steps} steps of the model's loop out, which takes minutes"


def compiled_inference(case: Case) -> Run:
    """The model in evaluation mode without gradients, compiled: what the best inference takes."""
    if case.looped is None:
        return _whole_model(case, trained=False)
    (x,), model = case.inputs, copy.deepcopy(case.looped).eval()
    piece, start = _compiled_piece(), start_of(model, x)

    def body(module: nn.Module) -> None:
        with torch.no_grad():
            _guarded(lambda: _sum_over(model, x, start, piece, PIECE))

    return Run(lambda: model, body, gradient_of=None, note=_pieces_of(case))


def compiled_through_time(case: Case) -> Run:
    """Backpropagation through time whose loop is compiled, all synapses but the lateral ones taken out of it."""
    if case.looped is None:
        return _whole_model(case, trained=True)
    (x,), model = case.inputs, copy.deepcopy(case.looped)
    piece, start = _compiled_piece(), start_of(model, x)

    def step() -> None:
        scores, _ = _sum_over(model, x, start, piece, PIECE)
        projection_loss(scores / case.steps).backward()

    def eager(module: nn.Module) -> Tensor:
        # What is compiled keeps less: a bound on it, found without compiling for other lengths.
        return projection_loss(layer_by_layer(model, x, start)[0] / case.steps)

    return Run(lambda: model, lambda module: _guarded(step), grows=eager, note=_pieces_of(case))


def compiled_checkpoints(case: Case) -> Run:
    """As ``compiled_through_time``, but only the states between segments are kept, and each is run once more."""
    (x,), model = case.inputs, copy.deepcopy(looped_of(case))
    piece, start = _compiled_piece(), start_of(model, x)
    length = PIECE * max(1, math.isqrt(case.steps) // PIECE)

    def pieces(module: Looped, part: Tensor, states: States) -> tuple[Tensor, States]:
        return _sum_over(module, part, states, piece, PIECE)

    def segment(module: Looped, part: Tensor, states: States) -> tuple[Tensor, States]:
        result: tuple[Tensor, States] = checkpoint(pieces, module, part, states, use_reentrant=False)
        return result

    def step() -> None:
        scores, _ = _sum_over(model, x, start, segment, length)
        projection_loss(scores / case.steps).backward()

    return Run(lambda: model, lambda module: _guarded(step), note=f"segments of {length} steps; {_pieces_of(case)}")


def _compiled_piece() -> Piece:
    compiled: Piece = _compiled(layer_by_layer)
    return lambda model, part, states: (compiled if len(part) == PIECE else layer_by_layer)(model, part, states)


def _sum_over(model: Looped, x: Tensor, states: States, piece: Piece, length: int) -> tuple[Tensor, States]:
    total = torch.zeros((), device=x.device)
    for part in x.split(length):
        scores, states = piece(model, part, states)
        total = total + scores
    return total, states


def _pieces_of(case: Case) -> str:
    left = case.steps % PIECE
    return f"compiled in pieces of {PIECE} steps" + (f", the last {left} as they are" if left else "")


class _Called(nn.Module):
    """Calls a model through what is compiled once for all of its copies."""

    def __init__(self, model: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, *inputs: Any) -> Any:
        return self.call(self.model, *inputs)


def _compiled(function: Callable[..., Any]) -> Any:
    """Returns a function compiled for each shape that it meets, apart from other compilations of the same function."""
    compile_: Any = torch.compile  # its types do not know isolate_recompiles
    return compile_(function, dynamic=False, fullgraph=True, isolate_recompiles=True)


def _whole_model(case: Case, trained: bool) -> Run:
    """The user's own model under ``torch.compile``: its step, or its loop over time written out."""
    is_step = isinstance(case.inputs, list)
    if not is_step and case.steps > UNROLLED:
        raise Skipped(
            f"torch.compile would write all {case.steps:,} steps of the model's loop out, and at most {UNROLLED} "
            "are taken: --steps shortens it"
        )

    call = _compiled(lambda model, *inputs: model(*inputs))

    def fresh() -> nn.Module:
        model = copy.deepcopy(case.model)
        return _Called(model if trained else model.eval(), call)

    def body(module: nn.Module) -> None:
        if trained:
            _guarded(lambda: projection_loss(call_or_loop(module, case.inputs)).backward())
            return
        with torch.no_grad():
            _guarded(lambda: call_or_loop(module, case.inputs))

    def eager(module: nn.Module) -> Tensor:
        return projection_loss(call_or_loop(module.get_submodule("model"), case.inputs))

    names = {name: f"model.{name}" for name, _ in case.model.named_parameters()} if trained else None
    note = "its step is compiled" if is_step else "its loop is compiled, all steps written out"
    return Run(fresh, body, grows=eager if trained else None, gradient_of=names, note=note)


def _guarded(run: Callable[[], object]) -> None:
    """Runs what is compiled at its first call.

    Raises:
        Skipped: ``torch.compile`` does not take it, or there is no compiler.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, about how it traces a model
            run()
    except (TorchDynamoException, FailOnRecompileLimitHit) as refusal:
        lines = [line.strip() for line in str(refusal).splitlines() if line.strip()]
        raise Skipped(f"torch.compile refuses it: {lines[0] if lines else type(refusal).__name__}") from refusal
