"""How much memory a converted network holds while it trains, known before any step is run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from math import prod

import torch
from torch import Tensor

from tracecompile.diagnostics.one_piece import piece_bytes
from tracecompile.diagnostics.one_step import graph_bytes
from tracecompile.layers import Accrual
from tracecompile.program import StepProgram
from tracecompile.report import Footprint
from tracecompile.rules import rule_of
from tracecompile.rules.accumulation import accumulator_dtype
from tracecompile.rules.measured.horizon import CELLS
from tracecompile.rules.measured.lines import FROM
from tracecompile.runtime.engine.choice import COMPILED_CHUNK, one_by_one
from tracecompile.runtime.record import read_pairs
from tracecompile.runtime.sampled import SAMPLES

_SUM_AND_WEIGHT = 16
"""Bytes of one cell of a profile."""


def footprint(program: StepProgram, grows: bool = False) -> Footprint:
    """Returns what a program that has gone through all passes holds per sample.

    Values whose first axis is not the batch (shared states) count as if they belonged to one sample each.

    Args:
        program: The program.
        grows: Whether something of every time step is kept beside.
    """
    values = {node.name: node.meta.get("val") for node in program.step.graph.nodes}
    settings = program.settings
    bins = rule_of(settings).bins(settings)
    held = dict.fromkeys(("trace", "tangent", "response"), 0)
    profiles = 0
    rows = {layer.name: layer.response.rows for layer in program.layers if layer.response is not None}
    currents = {layer.name: layer.currents for layer in program.layers}
    assert program.emitted is not None
    for accrual in program.emitted.accruals:
        variable = accrual.pair[1] if accrual.role == "response" else accrual.pair[0]
        count = _slots(accrual, variable, bins, variable in currents.get(accrual.layer, ()))
        held[accrual.role] += count * _bytes(values.get(accrual.like), summed=True)
        if accrual.role == "response" and not variable.startswith(FROM):
            profiles += (1 + (accrual.pair in rows[accrual.layer])) * CELLS * _SUM_AND_WEIGHT
    if bins > 1 or settings.decay is not None:
        profiles = 0
    sampled = {pair for layer in program.layers if layer.sampled for pair in read_pairs(layer)}
    held["trace"] += bins * SAMPLES * sum(_bytes(values.get(value)) for value, statistic in sampled if not statistic)
    states = sum(_bytes(values[carry.placeholder]) for carry in program.carries)
    batch = _batch(program, values)
    states, traces, tangents, responses = (-(-size // batch) for size in (states, *held.values()))
    snapshots = piece = 0
    if rule_of(settings).recomputes:
        # On top of the snapshots the states before the last piece are kept.
        snapshots = states * ((settings.snapshots or 0) + 1)
        piece = -(-_piece(program) // batch)
    return Footprint(states, traces, tangents, responses, snapshots, piece, profiles, grows)


def added(footprints: Sequence[Footprint]) -> Footprint:
    """Returns what several programs hold that run one after the other: one of them runs a piece at a time."""
    names = [each.name for each in fields(Footprint) if each.name not in ("piece", "grows")]
    held = {name: sum(getattr(each, name) for each in footprints) for name in names}
    return Footprint(**held, piece=max(each.piece for each in footprints), grows=any(f.grows for f in footprints))


def _piece(program: StepProgram) -> int:
    """Returns the bytes of the graph of a piece; the most of them where the length of a sequence will say how it runs.

    A state that is kept for the next step and for what is computed of all steps together is there twice.
    """
    chunk = program.settings.chunk
    steps, alone = chunk or COMPILED_CHUNK, one_by_one(program)
    found = []
    if program.settings.backend != "inductor" or alone:
        together = not alone and (chunk or 1) > 1
        found.append(piece_bytes(program, steps, False) if together else graph_bytes(program) * steps)
    if program.settings.backend != "eager" and not alone:
        found.append(piece_bytes(program, steps, True))
    return max(found)


def _slots(accrual: Accrual, variable: str, bins: int, is_current: bool) -> int:
    """Returns how many tensors of the size of an accrual are held of it at most, the record included."""
    if variable.startswith(FROM):
        return int(bins > 1)
    if accrual.role == "trace":
        return bins
    if accrual.role == "tangent":
        return bins if is_current else 1
    return bins * (bins + 1) // 2 if is_current else bins


def _batch(program: StepProgram, values: dict[str, object]) -> int:
    """Returns the batch size of the example: the first axis of a layer's output."""
    for layer in program.layers:
        value = values.get(layer.outputs[0]) if layer.outputs else None
        if isinstance(value, Tensor) and value.ndim > 1:
            return value.shape[0]
    return 1


def _bytes(value: object, summed: bool = False) -> int:
    if not isinstance(value, Tensor):
        return 0
    dtype = accumulator_dtype(value.dtype) if summed and value.is_floating_point() else value.dtype
    return prod(value.shape) * torch.empty((), dtype=dtype, device="meta").element_size()
