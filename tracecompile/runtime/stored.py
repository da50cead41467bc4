"""A record as a plain dict of tensors, and back: so that a stream that is interrupted goes on as if it had not been."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tracecompile.runtime.bins import StreamClock
from tracecompile.runtime.record import Record
from tracecompile.runtime.responses import Responses, Row


def record_tensors(record: Record) -> dict[str, Tensor]:
    """Returns everything that was recorded, by a name."""
    found = {
        "steps": torch.tensor(record.clock.steps),
        "generation": torch.tensor(getattr(record.clock, "generation", 0)),
        "cell_generation": torch.tensor(getattr(record.cells, "generation", 0)),
    }
    for (value, decay), trace in record.traces.items():
        found[f"trace|{value}|{decay}|weights"] = torch.tensor(trace.weights, dtype=torch.float64)
        if trace.sums is not None:
            found[f"trace|{value}|{decay}|sums"] = trace.sums
    for layer, responses in record.responses.items():
        tangents = responses.tangents
        found[f"response|{layer}|weights"] = torch.tensor(responses.weights, dtype=torch.float64)
        found[f"response|{layer}|bins"] = torch.tensor([tangents.first, tangents.latest_bin])
        found |= {f"tangent|{layer}|{v}|{s}": t for (v, s), t in tangents.by_state.items()}
        for (output, variable), rows in responses.rows.items():
            found |= {f"row|{layer}|{output}|{variable}|{i}|{row.first}": row.sums for i, row in rows.items()}
        for (output, variable), profile in responses.profiles.items():
            assert profile.sums is not None
            weights = torch.tensor(profile.weights, dtype=torch.float64)
            found[f"profile|{layer}|{output}|{variable}"] = torch.stack([profile.sums.to(weights), weights])
    return found


def load_record(record: Record, tensors: Mapping[str, Tensor]) -> None:
    """Puts back what ``record_tensors`` returned into a record that has just been opened."""
    record.clock.steps = int(tensors["steps"])
    if isinstance(record.clock, StreamClock):
        record.clock.generation = int(tensors["generation"])
    if isinstance(record.cells, StreamClock):
        record.cells.steps = record.clock.steps
        record.cells.generation = int(tensors["cell_generation"])
    for (value, decay), trace in record.traces.items():
        trace.weights = tensors[f"trace|{value}|{decay}|weights"].tolist()
        sums = tensors.get(f"trace|{value}|{decay}|sums")
        trace.sums = None if sums is None else sums.clone()
    for layer, responses in record.responses.items():
        _load_responses(responses, layer, tensors)


def _load_responses(responses: Responses, layer: str, tensors: Mapping[str, Tensor]) -> None:
    responses.weights = tensors[f"response|{layer}|weights"].tolist()
    tangents = responses.tangents
    tangents.by_state = {}
    tangents.first, tangents.latest_bin = tensors[f"response|{layer}|bins"].tolist()
    for key, tensor in tensors.items():
        kind, *parts = key.split("|")
        if len(parts) < 3 or parts[0] != layer:
            continue
        pair = (parts[1], parts[2])
        if kind == "tangent":
            tangents.by_state[pair] = tensor.clone()
        elif kind == "row":
            responses.rows.setdefault(pair, {})[int(parts[3])] = Row(int(parts[4]), tensor.clone())
        elif kind == "profile":
            responses.load_profile(pair, tensor)
