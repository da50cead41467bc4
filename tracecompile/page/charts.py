"""Curves over time and over the number of steps, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, floor, log10
from typing import Any

from tracecompile.page.markup import Child, Markup, element
from tracecompile.page.words import format_bytes

LEFT, RIGHT, TOP, BOTTOM = 62, 20, 16, 40
WIDTH, HEIGHT = 460, 300


def rates(name: str, fired: Mapping[str, Any], highest: float, steps: int) -> Markup:
    """Returns the rate of a layer over time.

    Args:
        name: Of the layer.
        fired: What was seen of it.
        highest: The rate at the top of the picture, which is that of all layers.
        steps: Number of time steps.
    """
    width, height, values = 300, 72, fired["over_time"]
    each = width / max(len(values), 1)
    line = "".join(
        f"{'L' if place else 'M'}{place * each:.1f} {y:.1f}L{(place + 1) * each:.1f} {y:.1f}"
        for place, y in enumerate(height - value / highest * (height - 6) for value in values)
    )
    said = f"Spikes per neuron and step of {name}: {fired['rate']:.3f} in the mean, {max(values):.3f} at most"
    return element(
        "svg",
        element("title", said),
        element("path", d=f"{line}L{width} {height}L0 {height}z", class_="area"),
        element("path", d=line, class_="curve"),
        element("path", d=f"M0 {height}H{width}", class_="axis"),
        element("text", "0", x=0, y=height + 16, class_="tick"),
        element("text", f"{steps:,} steps", x=width, y=height + 16, class_="tick", text_anchor="end"),
        viewBox=f"0 0 {width} {height + 22}",
        role="img",
        class_="rates",
    )


def memory(figures: Mapping[str, Any], steps_seen: int) -> Markup:
    """Returns the bytes that training holds over the number of steps, both axes in powers of ten."""
    known = figures["memory"]
    steps, curves = known["steps"], (known["through_time"], known["converted"])
    measured = known["measured"] or {}
    sizes = [size for curve in curves for size in curve if size > 0] + [size for size in measured.values() if size > 0]
    low, high = floor(log10(min(sizes, default=1))), ceil(log10(max(sizes, default=10)))
    low, high = (low, high) if low < high else (low, low + 1)

    def at(step: float, size: float) -> tuple[float, float]:
        span = log10(steps[-1] / steps[0])
        x = LEFT + (WIDTH - LEFT - RIGHT) * (log10(max(step, steps[0])) - log10(steps[0])) / span
        return x, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (log10(max(size, 10.0**low)) - low) / (high - low)

    parts: list[Child] = [_grid(at, steps, low, high)]
    for kind, curve in zip(("through-time", "converted"), curves, strict=True):
        points = "L".join(f"{x:.1f} {y:.1f}" for x, y in (at(*pair) for pair in zip(steps, curve, strict=True)))
        parts.append(element("path", d=f"M{points}", class_=f"line {kind}"))
    for kind, name in (("through-time", "through_time"), ("converted", "converted")):
        if measured.get(name) and steps[0] <= steps_seen <= steps[-1]:
            x, y = at(steps_seen, measured[name])
            said = element("title", f"measured at {steps_seen:,} steps: {format_bytes(measured[name])}")
            parts.append(element("circle", said, cx=f"{x:.1f}", cy=f"{y:.1f}", r=5, class_=f"dot {kind}"))
    title = (
        f"Memory per sample for training: {format_bytes(curves[0][0])} at {steps[0]:,} steps and "
        f"{format_bytes(curves[0][-1])} at {steps[-1]:,} through time; {format_bytes(curves[1][0])} and "
        f"{format_bytes(curves[1][-1])} converted"
    )
    return element("svg", element("title", title), parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", class_="chart")


def _grid(at: Any, steps: Sequence[int], low: int, high: int) -> list[Markup]:
    parts = []
    for power in range(low, high + 1):
        _, y = at(steps[0], 10.0**power)
        parts.append(element("path", d=f"M{LEFT} {y:.1f}H{WIDTH - RIGHT}", class_="grid"))
        if power % (1 if high - low <= 6 else 2) == 0:
            label = format_bytes(10.0**power).replace(".0 ", " ")
            parts.append(element("text", label, x=LEFT - 8, y=f"{y + 4:.1f}", class_="tick", text_anchor="end"))
    for power in range(ceil(log10(steps[0])), floor(log10(steps[-1])) + 1):
        x, _ = at(10**power, 10.0**low)
        anchor = "end" if 10**power == steps[-1] else "middle"
        parts.append(
            element("text", f"{10**power:,}", x=f"{x:.1f}", y=HEIGHT - BOTTOM + 18, class_="tick", text_anchor=anchor)
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(element("text", "time steps", x=middle, y=HEIGHT - 4, class_="tick", text_anchor="middle"))
    return parts


def bar(share: float) -> Markup:
    """Returns a bar that is full at one; a negative share is an empty one."""
    width = f"{100 * min(max(share, 0.0), 1.0):.2f}"
    return element(
        "svg",
        element("rect", width=100, height=8, class_="rail"),
        element("rect", width=width, height=8, class_="fill"),
        viewBox="0 0 100 8",
        preserveAspectRatio="none",
        aria_hidden="true",
        class_="bar",
    )
