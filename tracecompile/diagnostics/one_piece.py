"""What autograd keeps of a piece of several steps that are computed together, found by taking one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tracecompile.diagnostics.one_step import Saved, example_states
from tracecompile.program import StepProgram, example_value
from tracecompile.runtime.engine.compiled import CompiledEngine
from tracecompile.runtime.engine.kernels import Kernels, Key
from tracecompile.runtime.engine.scan import Engine
from tracecompile.runtime.forms import Form, Forms, UnitForm
from tracecompile.runtime.loop import Loop
from tracecompile.runtime.piece import run_piece
from tracecompile.runtime.replay import buffers_kept


def piece_bytes(program: StepProgram, steps: int, compiled: bool) -> int:
    """Returns the bytes that the graph of a piece holds, on values like the example's, for all its samples.

    Parameters, inputs and the states before it are not counted: they are there anyway.

    Args:
        program: After all passes.
        steps: Of the piece.
        compiled: Whether its scans are.
    """
    form = Forms(program).plain
    engine = AsCompiled() if compiled else Engine()
    if compiled:
        _held(program, steps, form, engine)  # traces the steps
    return _held(program, steps, form, engine)


class Uncompiled(Kernels):
    """Runs code as it is."""

    def get(self, key: Key, code: Callable[..., Any], arguments: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
        """See Kernels."""
        return code

    def begin(self, key: Key, code: Callable[..., Any], arguments: Sequence[Tensor]) -> None:
        """See Kernels."""


class AsCompiled(CompiledEngine):
    """Keeps what compiled scans keep, and calls no compiler."""

    def __init__(self) -> None:
        """Has run nothing yet."""
        super().__init__(Uncompiled())

    def _refuse(self, form: UnitForm, reason: str) -> None:
        self.obstacles.setdefault(form.unit.layers, reason)


def _held(program: StepProgram, steps: int, form: Form, engine: Engine) -> int:
    given = {node.name: example_value(node) for node in program.step.graph.nodes if node.op == "placeholder"}
    invariants = [given[name] for name in program.invariants]
    assert program.statics is not None
    statics = program.statics.graph(*(program.resolve(path) for path in program.statics.attributes), *invariants)
    inputs = {x.name: torch.stack([given[x.name]] * steps) for x in program.inputs}
    aside = [*inputs.values(), *invariants, *statics, *program.root.parameters(), *program.root.buffers()]
    states = example_states(program, given)
    saved = Saved([*aside, *states])
    with buffers_kept(program.root), saved.counting(states):
        named = dict(zip(program.statics.names, statics, strict=True))
        outputs = run_piece(Loop(program, form, None, states, named, invariants), engine, inputs, steps)
        del outputs
    return saved.bytes
