"""What of the user's source and of the printed stages belongs to one layer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from tracecompile.errors import SourceLine
from tracecompile.layers import Layer
from tracecompile.printing.comments import short_path
from tracecompile.program import StepProgram

PLACE = re.compile(r"# (\S.*?):(\d+)  ")
STEPS = ("\ndef traced_step(", "\ndef step(")
"""How the step begins in a stage's text: in trace form where it is there."""


def places(program: StepProgram, layer: Layer) -> list[dict[str, Any]]:
    """Returns the lines that a layer was made of, in the order of the step: the user's, with those of libraries."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for where in _lines(program, layer):
        own = where.caller or where
        entry = found.setdefault((own.file, own.line), _place(own) | {"inside": []})
        if where.caller is not None and _place(where) not in entry["inside"]:
            entry["inside"].append(_place(where))
    return list(found.values())


def _lines(program: StepProgram, layer: Layer) -> Iterator[SourceLine]:
    for node in program.step.graph.nodes:
        where = node.meta.get("where")
        if node.name in layer.nodes and isinstance(where, SourceLine):
            yield where


def _place(where: SourceLine) -> dict[str, Any]:
    return {"file": short_path(where.file), "line": where.line, "text": where.source}


def excerpts(stages: Iterable[tuple[str, str]], program: StepProgram, layer: Layer) -> list[dict[str, str]]:
    """Returns what each stage has of a layer: an empty text where it is that of the stage before."""
    known = {(short_path(where.file), where.line) for where in _lines(program, layer)}
    known |= {(place["file"], place["line"]) for place in places(program, layer)}
    found, before = [], ""
    for name, text in stages:
        parts = ["\n".join(_header(text, layer)), *_functions(text, layer), "\n".join(_groups(text, layer, known))]
        excerpt = "\n\n".join(part for part in parts if part)
        excerpt = excerpt or before  # a stage that changed nothing prints nothing
        found.append({"name": name, "text": "" if excerpt == before else excerpt})
        before = excerpt
    return found


def _header(text: str, layer: Layer) -> list[str]:
    lines = text.partition("\n\n")[0].splitlines()
    return [line for line in lines if line.startswith(f"# Layer {layer.name}: ") or _is_trace_of(line, layer)]


def _is_trace_of(line: str, layer: Layer) -> bool:
    _, reads, readers = line.rstrip(".").partition("; read by ")
    return line.startswith("# Trace of ") and bool(reads) and layer.name in readers.split(", ")


def _functions(text: str, layer: Layer) -> list[str]:
    """Returns the functions that stand under a comment with the layer's name."""
    found, inside = [], False
    for block in re.split(r"\n\n\n+", text):
        begins = block.lstrip("\n").partition("\n")[0]
        if begins.startswith("#"):
            inside = begins == f"# Layer {layer.name}."
        if inside:
            found.append(block.strip("\n"))
    return found


def _groups(text: str, layer: Layer, known: set[tuple[str, int]]) -> list[str]:
    """Returns the lines of the step that stand under a comment with a line or the name of the layer."""
    begin = next((place for place in map(text.find, STEPS) if place >= 0), -1)
    if begin < 0:
        return []
    found, taken = [], False
    for line in text[begin + 1 :].splitlines()[1:]:
        if line and not line.startswith((" ", ")")):
            break
        if line.startswith("    # "):
            place = PLACE.match(line.strip())
            taken = place is not None and (place[1], int(place[2])) in known
            taken |= line.strip() in (f"# layer {layer.name}", f"# {_INVERSION.format(layer.name)}")
        elif line.startswith("    return "):
            taken = False
        if taken:
            found.append(line.removeprefix("    "))
    return ["# in the step", *found] if found else []


_INVERSION = "insert_rate_inversion: derivative of {} and what it does to the outputs"
