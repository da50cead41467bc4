"""A record as a plain dict of tensors, and back: so that a stream that is interrupted goes on as if it had not been."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tracecompile.errors import InvalidInput
from tracecompile.rules.measured.profiles import Profile
from tracecompile.rules.measured.responses import Responses, Row
from tracecompile.runtime.bins import StreamClock
from tracecompile.runtime.layout import joined, parted
from tracecompile.runtime.record import Record
from tracecompile.runtime.sampled import SAMPLES, Samples


def record_tensors(record: Record) -> dict[str, Tensor]:
    """Returns everything that was recorded, by a name."""
    found = {
        "steps": torch.tensor(record.clock.steps),
        "generation": torch.tensor(getattr(record.clock, "generation", 0)),
        "cell_generation": torch.tensor(getattr(record.cells, "generation", 0)),
    }
    for key, trace in record.traces.items():
        name = joined("trace", *key)
        found[f"{name}|weights"] = torch.tensor(trace.weights, dtype=torch.float64)
        found |= {f"{name}|{index}": row for index, row in enumerate(trace.rows) if row is not None}
    found |= _sample_tensors(record.samples)
    for layer, responses in record.responses.items():
        tangents = responses.tangents
        found[joined("response", layer, "weights")] = torch.tensor(responses.weights, dtype=torch.float64)
        found[joined("response", layer, "bins")] = torch.tensor([tangents.first, tangents.latest_bin])
        found |= {joined("tangent", layer, v, s): t for (v, s), t in tangents.by_state.items()}
        for (output, variable), rows in responses.rows.items():
            found |= {joined("row", layer, output, variable, i, row.first): row.sums for i, row in rows.items()}
        for (output, variable), profile in responses.profiles.items():
            assert profile.sums is not None
            weights = torch.tensor(profile.weights, dtype=torch.float64)
            found[joined("profile", layer, output, variable)] = torch.stack([profile.sums.to(weights), weights])
    return found


def load_record(record: Record, tensors: Mapping[str, Tensor]) -> None:
    """Puts back what ``record_tensors`` returned into a record that has just been opened."""
    record.clock.steps = int(tensors["steps"])
    if isinstance(record.clock, StreamClock):
        record.clock.generation = int(tensors["generation"])
    if isinstance(record.cells, StreamClock):
        record.cells.steps = record.clock.steps
        record.cells.generation = int(tensors["cell_generation"])
    for key, trace in record.traces.items():
        name = joined("trace", *key)
        trace.weights = tensors[f"{name}|weights"].tolist()
        rows = (tensors.get(f"{name}|{index}") for index in range(len(trace.rows)))
        trace.rows = [None if row is None else row.clone() for row in rows]
    _load_samples(record.samples, tensors)
    for layer, responses in record.responses.items():
        _load_responses(responses, layer, tensors)


def _sample_tensors(samples: Samples) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for index, kept in enumerate(samples.rows) if samples.pairs else ():
        found |= {joined("sample", index, *pair): values for pair, values in kept.values.items()}
        found[joined("sampled", index)] = places = torch.full((SAMPLES,), -1)
        for step, place in kept.steps.values():
            places[place] = step
        found["stride"] = torch.tensor(samples.stride)
    return found


def _load_samples(samples: Samples, tensors: Mapping[str, Tensor]) -> None:
    if not samples.pairs:
        return
    if "stride" not in tensors:
        raise InvalidInput(
            "The snapshot lacks the steps that synapses want to see as they were: an earlier version has taken it.",
            "Take it again with this version.",
        )
    samples.stride = int(tensors["stride"])
    for index, kept in enumerate(samples.rows):
        for place, step in enumerate(tensors[joined("sampled", index)].tolist()):
            if step >= 0:
                kept.steps[samples.share(step, index)] = (step, place)
        for pair in samples.pairs if kept.steps else ():
            kept.values[pair] = tensors[joined("sample", index, *pair)].clone()


def _load_responses(responses: Responses, layer: str, tensors: Mapping[str, Tensor]) -> None:
    responses.weights = tensors[joined("response", layer, "weights")].tolist()
    tangents = responses.tangents
    tangents.by_state = {}
    tangents.first, tangents.latest_bin = tensors[joined("response", layer, "bins")].tolist()
    for key, tensor in tensors.items():
        kind, *parts = parted(key)
        if len(parts) < 3 or parts[0] != layer:
            continue
        pair = (parts[1], parts[2])
        if kind == "tangent":
            tangents.by_state[pair] = tensor.clone()
        elif kind == "row":
            responses.rows.setdefault(pair, {})[int(parts[3])] = Row(int(parts[4]), tensor.clone())
        elif kind == "profile":
            profile = responses.profiles[pair] = Profile(tensor.shape[1])
            profile.sums, profile.weights = tensor[0].clone(), tensor[1].tolist()
