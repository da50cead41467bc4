"""What is said of one layer, to be opened: its source, its states and traces, its step after each pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tracecompile.page.markup import Child, Markup, element
from tracecompile.page.words import count, later, named, rate, shape


def layer_part(figures: Mapping[str, Any], place: int) -> Markup:
    """Returns a layer, closed; its head says what it is."""
    layer = figures["layers"][place]
    seen = layer["activity"]
    about = [
        layer["kind"],
        shape(layer["shape"]) if layer["shape"] else "",
        f"rate {rate(seen['rate'])}" if seen else "",
    ]
    head = element(
        "summary",
        element("h3", layer["name"]),
        element("span", " · ".join(part for part in about if part), class_="about"),
    )
    inside = element(
        "div",
        element("dl", list(_facts(figures, place)), class_="facts"),
        _source(layer["places"]),
        _stages(layer["stages"], layer["name"]),
        class_="inside",
    )
    return element("details", head, inside, class_="layer", id=f"layer-{place}")


def _facts(figures: Mapping[str, Any], place: int) -> Iterable[Markup]:
    layer = figures["layers"][place]
    reads = [edge for edge in figures["edges"] if edge["to"] == place]
    rows: list[tuple[str, Child]] = [
        ("Reads", ", ".join(_read(figures, edge, place) for edge in reads)),
        ("Sends", ", ".join(layer["outputs"])),
        ("States", [_state(state) for state in layer["held"] if state["kind"] != "spikes"]),
        ("Traces", [_trace(trace) for trace in layer["traces"]]),
        ("Beside these", _derivatives(layer["derivatives"])),
        ("Reset", f"{layer['reset']} with respect to the gradient" if layer["reset"] not in ("", "none") else ""),
        ("Parameters", [element("span", _parameter(each), class_="item code") for each in layer["parameters"]]),
        ("Firing", _firing(layer["activity"])),
    ]
    for name, value in rows:
        if value:
            yield element("div", element("dt", name), element("dd", value))


def _read(figures: Mapping[str, Any], edge: Mapping[str, Any], place: int) -> str:
    name = "itself" if edge["from"] == place else named(figures, edge["from"])
    return f"{name} ({later(edge['delay'])})" if edge["delay"] else name


def _state(state: Mapping[str, Any]) -> Markup:
    kind = "" if state["kind"] == "state" else f"{state['kind']}, "
    return element("span", element("code", state["name"]), f" {kind}{shape(state['shape'])}", class_="item")


def _trace(trace: Mapping[str, Any]) -> Markup:
    how = "the mean of each time bin" if trace["decay"] is None else f"a sum that decays by {trace['decay']:g} a step"
    return element("span", element("code", trace["of"]), f" {shape(trace['shape'])}: {how}", class_="item")


def _derivatives(kept: Mapping[str, int]) -> str:
    parts = [count(number, role) for role, number in kept.items() if number]
    return f"{' and '.join(parts)}: derivatives of its states and of its mean outputs" if parts else ""


def _parameter(parameter: Mapping[str, Any]) -> str:
    return f"{parameter['name']} {shape(parameter['shape'])}"


def _firing(seen: Mapping[str, Any] | None) -> str:
    return f"{rate(seen['rate'])} spikes per neuron and step; {seen['silent']:.1%} never fire" if seen else ""


def _source(places: Iterable[Mapping[str, Any]]) -> Markup | None:
    lines = [
        element("li", _line(place), element("ul", [element("li", _line(each)) for each in place["inside"]]))
        if place["inside"]
        else element("li", _line(place))
        for place in places
    ]
    return element("section", element("h4", "Your source"), element("ul", lines, class_="source")) if lines else None


def _line(place: Mapping[str, Any]) -> list[Markup]:
    where = element("span", f"{place['file']}:{place['line']}", class_="where")
    return [where, element("code", place["text"])]


def _stages(stages: Iterable[Mapping[str, str]], layer: str) -> Markup | None:
    parts = []
    for stage in stages:
        name = stage["name"].replace("_", " ")
        if not stage["text"]:
            parts.append(element("li", element("span", name, class_="pass"), " changes nothing here"))
            continue
        code = element(
            "pre", element("code", stage["text"]), tabindex=0, role="region", aria_label=f"{layer} after {name}"
        )
        parts.append(element("li", element("details", element("summary", name, class_="pass"), code)))
    title = element("h4", "Its step after each pass")
    return element("section", title, element("ol", parts, class_="stages")) if parts else None
