"""Chunks of time steps against the reference, which takes one step after the other."""

from __future__ import annotations

from typing import Any

import models
import oracle_networks as networks
import pytest
import torch
from hypothesis import Phase, given, note, settings
from hypothesis import strategies as st
from oracle_networks import OracleSpec
from strategies import Vacuity
from test_oracle import FAMILIES, assert_close, gradients
from torch import Tensor

import tracecompile
from tracecompile.bench.case import Job, open_case
from tracecompile.diagnostics.held import count_held
from tracecompile.runtime.module import session_of
from tracecompile.runtime.piece import lengths
from tracecompile.runtime.stored import record_tensors
from tracecompile.runtime.window import Window

EXAMPLES = 10


def recorded(net: tracecompile.TracedModule, inputs: tuple[Tensor, ...], seed: int) -> tuple[Tensor, Window]:
    """Runs a sequence; returns its outputs and the window that its record lies in."""
    with models.seeded(seed):
        outputs = net(*inputs)
    window = session_of(net).window
    assert window is not None
    return outputs, window


def assert_same_records(found: Window, expected: Window) -> None:
    """Asserts that two records hold the same statistics, tangents and last step; a missing entry is zero."""
    ours, theirs = record_tensors(found.record), record_tensors(expected.record)
    for name in ours.keys() | theirs.keys():
        one, other = ours.get(name), theirs.get(name)
        like = next(value for value in (one, other) if value is not None)
        one, other = (torch.zeros_like(like) if value is None else value for value in (one, other))
        torch.testing.assert_close(
            one.expand_as(other), other, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}"
        )
    last, wanted = found.record.moment, expected.record.moment
    assert last is not None
    assert wanted is not None
    assert (last.step, last.index, last.first) == (wanted.step, wanted.index, wanted.first)
    for name, value in wanted.values.items():
        torch.testing.assert_close(last.values[name], value)
    for layer, changes in wanted.changes.items():
        for key, change in changes.items():
            torch.testing.assert_close(last.changes[layer][key], change.expand_as(last.changes[layer][key]))
        for key, slope in wanted.derivatives[layer].items():
            assert torch.allclose(torch.as_tensor(last.derivatives[layer][key]), torch.as_tensor(slope))


@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_leave_what_single_steps_leave(family: str) -> None:
    vacuity = Vacuity()

    @settings(max_examples=EXAMPLES, derandomize=True, database=None, phases=[Phase.generate])
    @given(FAMILIES[family], st.sampled_from([1, 2, 3]), st.sampled_from([2, 3, 4, 16]))
    def holds(spec: OracleSpec, bins: int, chunk: int) -> None:
        oracle = networks.build(spec)
        note(oracle.source)
        settings: Any = {"bins": bins, "backend": "eager"}
        stepped = tracecompile.convert(oracle.module, oracle.inputs, chunk=1, **settings).train(spec.training)
        chunked = tracecompile.convert(oracle.module, oracle.inputs, chunk=chunk, **settings).train(spec.training)
        expected, reference = recorded(stepped, oracle.inputs, spec.seed)
        found, window = recorded(chunked, oracle.inputs, spec.seed)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        assert_same_records(window, reference)
        live = assert_close(gradients(spec, chunked, found), gradients(spec, stepped, expected), rtol=1e-9)
        for (name, one), (_, other) in zip(chunked.named_buffers(), stepped.named_buffers(), strict=True):
            torch.testing.assert_close(one, other, msg=lambda m, n=name: f"{n}: {m}")
        vacuity.count(networks.spikes(spec), live)

    holds()
    vacuity.check()


@pytest.mark.parametrize("edges", [(0, 5), (0, 7, 14, 20), (0, 1, 2, 3)])
@pytest.mark.parametrize("size", [1, 2, 4, 100])
@pytest.mark.parametrize("apart", [False, True])
def test_chunks_cover_every_step_and_cross_no_edge(edges: tuple[int, ...], size: int, apart: bool) -> None:
    found = lengths(edges, size, apart)
    ends = [sum(found[: index + 1]) for index in range(len(found))]
    assert ends[-1] == edges[-1]
    assert set(edges[1:]) <= set(ends)
    assert all(0 < length <= size for length in found)
    assert not apart or found[0] == 1


def test_nothing_of_a_chunk_is_held_but_what_single_steps_leave() -> None:
    case = open_case(Job(network="recurrent", steps=40, quick=True))
    held = {}
    for chunk in (1, 20):
        net = tracecompile.convert(case.model, case.inputs, bins=2, backend="eager", chunk=chunk)
        net(*case.inputs)
        held[chunk] = count_held(lambda net=net: net(*case.inputs))  # type: ignore[misc]
    assert 0.9 * held[1] <= held[20] <= 1.05 * held[1], held
