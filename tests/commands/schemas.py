"""What ``--json`` prints, as JSON schemas: no field more, no field less."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
POSITIVE: Schema = {"type": "number", "exclusiveMinimum": 0}
FLAG: Schema = {"type": "boolean"}


def fields(**schemas: Schema) -> Schema:
    return {"type": "object", "properties": schemas, "required": list(schemas), "additionalProperties": False}


def many(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


def named(schema: Schema) -> Schema:
    return {"type": "object", "additionalProperties": schema}


def perhaps(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


COST = fields(bytes=COUNT, seconds=POSITIVE)
LAYER = fields(
    **dict.fromkeys(("name", "kind", "trace", "recurrence", "reset"), TEXT),
    **{name: many(TEXT) for name in ("inputs", "states", "outputs")},
)
MEMORY = dict.fromkeys(("states", "traces", "tangents", "responses", "snapshots", "piece", "profiles"), COUNT)
REPORT = fields(
    rule={"enum": ["measured", "analytic", "exact", "bptt"]},
    bins=perhaps(COUNT),
    backend={"enum": ["auto", "eager", "inductor"]},
    layers=many(LAYER),
    parameters=named(fields(status={"enum": ["trace", "exact", "frozen"]}, reason=TEXT)),
    schedule=many(TEXT),
    memory=perhaps(fields(**MEMORY, grows=FLAG, total=COUNT)),
    execution={},
    notes=many(TEXT),
)
CONVERT = fields(output=TEXT, report=REPORT)
ROW = fields(parameter=TEXT, cosine=perhaps(NUMBER), norm_ratio=perhaps(NUMBER), status=TEXT, reason=TEXT)
VARIANT = fields(
    name=TEXT, asked=FLAG, cosine=perhaps(NUMBER), norm_ratios=perhaps(many(NUMBER)), bytes=COUNT, seconds=POSITIVE
)
CHECK = fields(
    parameters=many(ROW),
    worst=perhaps(TEXT),
    remarks=many(TEXT),
    reference={"enum": ["bptt", "exact"]},
    bptt=perhaps(COST),
    converted=COST,
    advice=many(TEXT),
    variants=fields(steps=perhaps(COUNT), rows=many(VARIANT), refused=named(TEXT), choice=TEXT),
    bound=perhaps(fields(min_cosine=NUMBER, below=many(TEXT))),
)
TRAINING = fields(
    accuracy=NUMBER, seconds_per_step=POSITIVE, bytes_for_backward=COUNT, losses=many(NUMBER), first_seconds=POSITIVE
)
DEMO = fields(
    steps=COUNT,
    bptt=TRAINING,
    converted=TRAINING,
    lengths=many(fields(steps=COUNT, converted=COST, bptt=perhaps(COST), predicted=COUNT)),
    picture=TEXT,
    backend=TEXT,
)
BENCH_ROW = fields(
    **dict.fromkeys(("network", "title", "method", "name", "note"), TEXT),
    **{name: perhaps(TEXT) for name in ("worst_parameter", "compared_with", "skipped")},
    **{name: perhaps(NUMBER) for name in ("seconds", "first_seconds", "lowest_cosine", "first_norm_ratio")},
    **{name: perhaps(NUMBER) for name in ("ratio_to_inference", "ratio_to_compiled_inference")},
    **{name: perhaps(COUNT) for name in ("peak_bytes", "returned_bytes", "start_bytes")},
    steps=COUNT,
    times=many(POSITIVE),
)
BENCH = fields(rows=many(BENCH_ROW), environment=named({}), settings=named({}), files=named(TEXT))
