"""The network, drawn: layers from top to bottom, their spikes between them, and what comes back later at the sides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tracecompile.page.markup import Markup, element
from tracecompile.page.words import count, later, named, rate, shape, shortened

WIDTH, HEIGHT, INPUT_HEIGHT = 232, 76, 44
APART, BELOW = 36, 66
"""Between two layers side by side, and between one and the next."""
LANE = 30
"""Between two lines at a side."""
RASTER, TICK = 168, 4
"""How wide the spikes of a layer are drawn, and how high those of a neuron."""
EDGE = 26
"""What is left free around."""


@dataclass(frozen=True)
class _Box:
    x: float
    y: float
    height: float

    @property
    def middle(self) -> float:
        return self.x + WIDTH / 2

    @property
    def bottom(self) -> float:
        return self.y + self.height


class _Plan:
    """Where everything is."""

    def __init__(self, figures: Mapping[str, Any]) -> None:
        self.figures, self.layers = figures, figures["layers"]
        places = [*(-1 - place for place in range(len(figures["inputs"]))), *range(len(self.layers))]
        self.ranks = dict.fromkeys(places, 0)
        forward = sorted((edge for edge in figures["edges"] if edge["from"] < edge["to"]), key=lambda e: e["to"])
        for place in range(len(self.layers)):
            before = [self.ranks[edge["from"]] for edge in forward if edge["to"] == place]
            self.ranks[place] = 1 + max(before, default=0)
        self.back = [edge for edge in figures["edges"] if edge["from"] >= edge["to"]]
        self.long = [edge for edge in forward if self.ranks[edge["to"]] - self.ranks[edge["from"]] > 1]
        self.short = [edge for edge in forward if edge not in self.long]
        rows = [
            [place for place in places if self.ranks[place] == rank] for rank in range(1 + max(self.ranks.values()))
        ]
        widest = max(map(len, rows))
        self.left = EDGE + LANE * len(self.long)
        inner = widest * WIDTH + (widest - 1) * APART
        self.right = self.left + inner
        away = [edge for edge in self.back if edge["from"] != edge["to"]]
        self.width = self.right + 92 + LANE * len(away)
        self.boxes: dict[int, _Box] = {}
        y = float(EDGE / 2)
        for row in (row for row in rows if row):
            start = self.left + (inner - len(row) * WIDTH - (len(row) - 1) * APART) / 2
            heights = [HEIGHT if place >= 0 else INPUT_HEIGHT for place in row]
            for column, (place, height) in enumerate(zip(row, heights, strict=True)):
                self.boxes[place] = _Box(start + column * (WIDTH + APART), y, height)
            y += max(heights) + BELOW
        self.height = y - BELOW + EDGE


def network(figures: Mapping[str, Any]) -> Markup:
    """Returns the picture; each layer in it leads to what is said of it further down."""
    plan = _Plan(figures)
    marker = element("path", d="M0 0 L8 4 L0 8 z")
    arrows = [
        element(
            "marker", marker, id=name, class_=name, viewBox="0 0 8 8", refX=7, refY=4, markerWidth=7, markerHeight=7,
            orient="auto-start-reverse",
        )
        for name in ("arrow", "arrow-later")
    ]  # fmt: skip
    return element(
        "svg",
        element("title", f"The layers of {figures['model']} and what they read", id="network-title"),
        element("desc", _in_words(figures), id="network-text"),
        element("defs", arrows),
        [_straight(plan, edge) for edge in plan.short],
        [_around(plan, edge, lane) for lane, edge in enumerate(plan.long)],
        _later(plan),
        [_raster(plan, place) for place in range(len(plan.layers))],
        [_input(plan, place) for place in range(len(figures["inputs"]))],
        [_layer(plan, place) for place in range(len(plan.layers))],
        viewBox=f"0 0 {plan.width:g} {plan.height:g}",
        width=f"{plan.width:g}",
        role="group",
        aria_labelledby="network-title network-text",
        class_="network",
    )


def _in_words(figures: Mapping[str, Any]) -> str:
    sentences = []
    for edge in figures["edges"]:
        reader, read = named(figures, edge["to"]), named(figures, edge["from"])
        whom = "itself" if edge["from"] == edge["to"] else read
        sentences.append(f"{reader} reads {whom}{', ' + later(edge['delay']) if edge['delay'] else ''}.")
    return " ".join(sentences)


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> Markup:
    return element("text", text, x=f"{x:g}", y=f"{y:g}", class_=kind, text_anchor=anchor)


def _path(points: str, delay: int) -> Markup:
    kind, arrow = ("later", "arrow-later") if delay else ("edge", "arrow")
    return element("path", d=points, class_=kind, marker_end=f"url(#{arrow})")


def _label(x: float, y: float, delay: int, anchor: str = "start") -> Markup | None:
    return _text(x, y, count(delay, "step"), "delay", anchor) if delay else None


def _straight(plan: _Plan, edge: Mapping[str, Any]) -> list[Markup | None]:
    start, end = plan.boxes[edge["from"]], plan.boxes[edge["to"]]
    shift = 14 if edge["delay"] else 0
    x0, x1, y0, y1 = start.middle + shift, end.middle + shift, start.bottom, end.y - 2
    half = (y0 + y1) / 2 + 12
    line = f"M{x0:g} {y0:g} C{x0:g} {half:g} {x1:g} {half:g} {x1:g} {y1:g}"
    return [_path(line, edge["delay"]), _label(x1 + 6, y1 - 8, edge["delay"])]


def _around(plan: _Plan, edge: Mapping[str, Any], lane: int) -> list[Markup | None]:
    start, end = plan.boxes[edge["from"]], plan.boxes[edge["to"]]
    x = plan.left - 14 - LANE * lane
    y0, y1 = start.bottom - 16, end.y + 16
    line = f"M{start.x:g} {y0:g} C{x:g} {y0:g} {x:g} {y0 + 30:g} {x:g} {y0 + 40:g} L{x:g} {y1 - 40:g} "
    line += f"C{x:g} {y1 - 20:g} {x:g} {y1:g} {end.x - 2:g} {y1:g}"
    return [_path(line, edge["delay"]), _label(x + 5, (y0 + y1) / 2, edge["delay"])]


def _later(plan: _Plan) -> list[list[Markup | None]]:
    """Draws what is read at a later step: loops at the right side of a layer, and lines up to earlier ones."""
    found, lane, loops = [], 0, dict[int, int]()
    for edge in plan.back:
        start, end, delay = plan.boxes[edge["from"]], plan.boxes[edge["to"]], edge["delay"]
        right = start.x + WIDTH
        if edge["from"] == edge["to"]:
            turn = loops[edge["to"]] = loops.get(edge["to"], 0) + 1
            reach, y0, y1 = 26 + 12 * turn, start.bottom - 16, start.y + 16
            line = f"M{right:g} {y0:g} C{right + reach:g} {y0:g} {right + reach:g} {y1:g} {right + 2:g} {y1:g}"
            x = right + reach * 0.8
            found.append([_path(line, delay), _label(x, start.y + 26 + 14 * turn, delay)])
            continue
        x = plan.right + 58 + LANE * lane
        y0, y1, lane = start.y + start.height / 2 + 8, end.y + end.height / 2 - 8, lane + 1
        line = f"M{right:g} {y0:g} L{x - 16:g} {y0:g} Q{x:g} {y0:g} {x:g} {y0 - 16:g} L{x:g} {y1 + 16:g} "
        line += f"Q{x:g} {y1:g} {x - 16:g} {y1:g} L{end.x + WIDTH + 2:g} {y1:g}"
        found.append([_path(line, delay), _label(x - 6, (y0 + y1) / 2 - 6 + 18 * lane, delay, "end")])
    return found


def _raster(plan: _Plan, place: int) -> Markup | None:
    """Draws the spikes of some neurons below their layer, a row each, time from left to right."""
    layer, box = plan.layers[place], plan.boxes[place]
    spikes = (layer["activity"] or {}).get("spikes")
    if not spikes or not spikes[0]:
        return None
    left, top, width = box.middle - RASTER / 2, box.bottom + 11, RASTER / len(spikes[0])
    ticks = "".join(
        f"M{left + (step + 0.5) * width:.1f} {top + row * TICK:.1f}v{TICK - 1}"
        for row, neuron in enumerate(spikes)
        for step, fired in enumerate(neuron)
        if fired
    )
    height = len(spikes) * TICK
    title = f"Spikes of {count(len(spikes), 'neuron')} of {layer['name']}, {count(len(spikes[0]), 'step')}"
    ground = element("rect", x=left - 6, y=top - 5, width=RASTER + 12, height=height + 9, rx=4, class_="raster")
    return element("g", element("title", title), ground, element("path", d=ticks or "M0 0", class_="spikes"))


def _input(plan: _Plan, place: int) -> Markup:
    given, box = plan.figures["inputs"][place], plan.boxes[-1 - place]
    rect = element(
        "rect", x=box.x, y=box.y, width=WIDTH, height=box.height, rx=box.height / 2, class_="input"
    )  # fmt: skip
    text = f"{shortened(given['name'], 18)}  {shape(given['shape'])}"
    return element(
        "g", element("title", f"Input {given['name']}"), rect, _text(box.middle, box.y + 27, text, "name", "middle")
    )


def _layer(plan: _Plan, place: int) -> Markup:
    layer, box = plan.layers[place], plan.boxes[place]
    fired = layer["activity"]
    size = f"{shape(layer['shape'])}" if layer["shape"] else ""
    seen = f"{rate(fired['rate'])} spikes per neuron and step" if fired else ""
    said = ", ".join(part for part in (layer["name"], layer["kind"], size, seen) if part)
    lines = [
        _text(box.x + 16, box.y + 25, shortened(layer["name"], 26), "name"),
        _text(
            box.x + 16, box.y + 44, shortened(" · ".join(part for part in (layer["kind"], size) if part), 34), "kind"
        ),
    ]
    if fired:
        width = (WIDTH - 32) * min(fired["rate"], 1.0)
        lines += [
            element("rect", x=box.x + 16, y=box.y + 56, width=WIDTH - 32, height=4, rx=2, class_="rail"),
            element("rect", x=box.x + 16, y=box.y + 56, width=f"{width:.1f}", height=4, rx=2, class_="fill"),
            _text(box.x + WIDTH - 16, box.y + 25, rate(fired["rate"]), "rate", "end"),
        ]
    rect = element("rect", x=box.x, y=box.y, width=WIDTH, height=box.height, rx=8, class_="box")
    inside = element("g", element("title", said), rect, lines)
    return element("a", inside, href=f"#layer-{place}", class_="node", aria_label=f"{said}: open", data_layer=place)
