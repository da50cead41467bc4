"""A network as ONNX models: its step, what begins a sequence, and what ends one."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from tracecompile.exporting.exported import Exported
from tracecompile.exporting.idle import without_idle_draws
from tracecompile.exporting.onnx.check import compare
from tracecompile.exporting.onnx.guide import Plan, described, guide
from tracecompile.exporting.onnx.write import Proto, require_onnx, write_part
from tracecompile.exporting.parts import begin_part, end_part, step_part
from tracecompile.exporting.program import calls_of, in_eval_mode
from tracecompile.exporting.trajectory import trajectory
from tracecompile.runtime.module import TracedModule
from tracecompile.version import VERSION

PRODUCER = "tracecompile"
BESIDE = {"begin", "end"}
"""What there may be beside the model of the step."""


def to_onnx(net: TracedModule) -> Exported:
    """Returns the step of a network as an ONNX model, compared with the network in onnxruntime; see ``export``."""
    require_onnx()
    program = without_idle_draws(in_eval_mode(net))
    calls = calls_of(net, program)
    step = step_part(program, calls)
    begin = begin_part(program, calls, step)
    end = end_part(program, calls) if program.kind == "sequence" else None
    few, many = (
        trajectory(program, begin, step, end, leaves, states)
        for leaves, states in zip((calls.few, calls.many), calls.states, strict=True)
    )
    plan = Plan.of(program, step, begin, end, few, many)
    models: dict[str, Proto] = {}
    hanging = 0
    for part in plan.parts:
        models[part.name] = write_part(part, few.of(part)[-1], many.of(part)[-1])
        hanging += compare(part, models[part.name], [*few.of(part), *many.of(part)])
    description = described(plan, models)
    notes = list(plan.notes)
    if hanging:
        notes.append(
            f"{hanging} values hang on rounding, such as a membrane at its threshold to the last digit: there "
            "onnxruntime and torch may come to another spike."
        )
    for model in models.values():
        model.producer_name, model.producer_version = PRODUCER, VERSION
    exported = Exported("onnx", models["step"], others(models), "", description, tuple(notes))
    return labelled(exported, "step.onnx")


def labelled(exported: Exported, name: str) -> Exported:
    """Returns an export whose guide, in the models themselves as well, names its files."""
    names = file_names(exported, name)
    text = guide(exported.description, names)
    for model in (exported.model, *exported.others.values()):
        model.doc_string = text
        del model.metadata_props[:]
        entry = model.metadata_props.add()
        entry.key, entry.value = "tracecompile", json.dumps({**exported.description, "files": names})
    return replace(exported, guide=text)


def file_names(exported: Exported, name: str) -> dict[str, str]:
    """Returns the names of the files by what they hold."""
    return {"step": name, **{part: _name_beside(name, part) for part in exported.others}}


def _name_beside(name: str, part: str) -> str:
    return f"{name.removesuffix('.onnx')}.{part}.onnx"


def _remove_own(path: Path) -> None:
    """Removes a model that an export has written, and no other file."""
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # there is none, or it is something else
        return
    if model.producer_name == PRODUCER:
        path.unlink()


def write_onnx(exported: Exported, path: Path) -> Exported:
    """Writes all models, or none where one cannot be written: that of the step under the given name.

    What an earlier export has written beside it, and this one has not, is removed: it belongs to another network.
    """
    exported = labelled(exported, path.name)
    models = {"step": exported.model, **exported.others}
    targets = {part: path.with_name(name) for part, name in file_names(exported, path.name).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = {part: target.with_name(f".{target.name}.part") for part, target in targets.items()}
    try:
        for part, place in unfinished.items():
            place.write_bytes(models[part].SerializeToString())
        for part, place in unfinished.items():
            os.replace(place, targets[part])
        for part in BESIDE - targets.keys():
            _remove_own(path.with_name(_name_beside(path.name, part)))
    finally:
        for place in unfinished.values():
            place.unlink(missing_ok=True)
    return replace(exported, files=tuple(targets.values()))


def others(models: dict[str, Any]) -> dict[str, Any]:
    """Returns the models beside that of the step."""
    return {name: model for name, model in models.items() if name != "step"}
