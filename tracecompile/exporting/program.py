"""The program of a network in eval mode, and calls of it: what there is to export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tracecompile.compiled import Compiled, training_flags
from tracecompile.errors import UnsupportedOperation
from tracecompile.program import StepProgram
from tracecompile.runtime.module import TracedModule, session_of
from tracecompile.self_check.inputs import Size, Varied, batch_axes
from tracecompile.self_check.sizes import time_source

STEPS, BATCHES = 6, (3, 5)
"""Numbers of time steps (and two more) and of samples of the calls that an export is made and checked with."""


def in_eval_mode(net: TracedModule) -> StepProgram:
    """Returns the program of calls like the last one where the network is in eval mode; the network stays in its mode.

    Raises:
        InvalidInput: The network is not captured yet, or was saved without a program of this mode.
        ConversionError: The model is refused in eval mode.
    """
    session = session_of(net)
    ready, model = session.ready, session.model
    flags = {module: module.training for module in model.modules()}
    try:
        model.eval()
        known = [ready, *reversed([each for each, _ in session.programs])]
        fitting = (each for each in known if each.modes in (None, training_flags(model)))
        found: Compiled = next(fitting, None) or session.compiler(
            session.example(), [each for each, _ in session.programs]
        )
    finally:
        for module, training in flags.items():
            module.training = training
    if found.program.prologue_again:
        raise UnsupportedOperation(
            "The model makes of all time steps together, in eval mode too, what its loop over time reads, and what is "
            "exported is one time step.",
            "Export a model that computes one step after the other.",
        )
    return found.program


@dataclass(frozen=True)
class Calls:
    """Calls of one program at two batch sizes.

    Attributes:
        few, many: The leaves of each that are no states, as the prologue takes them; of a step model, of every step.
        states: Those that are states, of the first of ``few`` and of ``many``.
    """

    few: Sequence[tuple[Any, ...]]
    many: Sequence[tuple[Any, ...]]
    states: tuple[tuple[Tensor, ...], tuple[Tensor, ...]]


def calls_of(net: TracedModule, program: StepProgram, count: int = STEPS) -> Calls:
    """Returns two calls, of so many steps, made from the example of the network: its values, drawn anew."""
    request = session_of(net).example()
    example = _with_values((request.args, request.kwargs))
    source = time_source(program, *example)
    axes = batch_axes(program, source, *example)
    fixed = program.length is not None or program.length_bound
    varied = Varied(source, program.explicit_states)
    steps = (None, None) if fixed else (count, count + 2)
    sizes = [Size(n, b, axes[0]) if axes else Size(n) for n, b in zip(steps, BATCHES, strict=True)]
    few, many = (
        [_split(program, pytree.tree_leaves(varied.make(*example, size, seed))) for seed in range(7, 7 + calls)]
        for size, calls in zip(sizes, (count if program.kind == "step" else 1,) * 2, strict=True)
    )
    return Calls([each for each, _ in few], [each for each, _ in many], (few[0][1], many[0][1]))


def _split(program: StepProgram, leaves: Sequence[Any]) -> tuple[tuple[Any, ...], tuple[Tensor, ...]]:
    states = tuple(leaves[place] for place in program.explicit_states)
    count = sum(node.op == "placeholder" for node in program.prologue.graph.nodes)
    others = [
        leaf
        for place, leaf in enumerate(leaves)
        if place not in program.explicit_states
        and (isinstance(leaf, Tensor) or (isinstance(leaf, (int, float)) and not isinstance(leaf, bool)))
    ]
    assert len(others) == count, f"{len(others)} leaves for {count} arguments of the prologue"
    return tuple(others), states


def _with_values(example: tuple[tuple[Any, ...], dict[str, Any]]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Gives numbers to what a saved network remembers of its example: shapes and dtypes alone."""
    generator = torch.Generator().manual_seed(1)

    def filled(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        leaf = leaf.detach().cpu()
        blank = leaf.is_floating_point() and leaf.numel() > 1 and not bool((leaf != leaf.flatten()[0]).any())
        return torch.randn(leaf.shape, generator=generator).mul(2).to(leaf.dtype) if blank else leaf

    found: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map(filled, example)
    return found
