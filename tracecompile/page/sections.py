"""The sections of the page, each from the figures alone; None where there is nothing to say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tracecompile.page.charts import bar, memory, rates
from tracecompile.page.layers import layer_part
from tracecompile.page.markup import Child, Markup, element
from tracecompile.page.network import network
from tracecompile.page.words import count, format_bytes, number, rate

SHOWN = (100, 1_000, 10_000, 100_000)
"""Numbers of steps in the table of memory."""
Section = tuple[str, str, Markup | None]
"""(its anchor, its heading, what is in it)."""


def sections(figures: Mapping[str, Any]) -> list[Section]:
    """Returns all sections in order."""
    return [
        ("network", "The network", _network(figures)),
        ("layers", "Layer by layer", _layers(figures)),
        ("gradients", "How close the gradients are", _gradients(figures)),
        ("rates", "Firing over time", _rates(figures)),
        ("memory", "Memory", _memory(figures)),
        ("approximate", "What is approximate", _approximate(figures)),
        ("parameters", "Parameters", _parameters(figures)),
        ("running", "How it runs", _running(figures["report"])),
        ("notes", "Notes", _list(figures["report"]["notes"])),
    ]


def _scrolling(child: Child, label: str) -> Markup:
    return element("div", child, class_="scrolling", tabindex=0, role="region", aria_label=label)


def _table(caption: str, header: Sequence[str], rows: Iterable[Sequence[Child]], numbers: int = 0) -> Markup:
    """Returns a table whose first cells name its rows, and whose last ``numbers`` columns are figures."""
    right = len(header) - numbers

    def kind(column: int) -> str | None:
        return "figure" if column >= right else None

    heads = [element("th", name, scope="col", class_=kind(column)) for column, name in enumerate(header)]
    body = [
        element(
            "tr",
            element("th", row[0], scope="row"),
            [element("td", cell, class_=kind(column)) for column, cell in enumerate(row[1:], 1)],
        )
        for row in rows
    ]
    table = element(
        "table", element("caption", caption), element("thead", element("tr", heads)), element("tbody", body)
    )  # fmt: skip
    return _scrolling(table, caption)


def _network(figures: Mapping[str, Any]) -> Markup:
    said = "Time steps run through it from top to bottom. Dashed lines are read at a later step."
    if any(layer["activity"] for layer in figures["layers"]):
        said += " Between the layers: spikes of some of their neurons; on them: spikes per neuron and step."
    picture = _scrolling(network(figures), "Picture of the network")
    return element("figure", picture, element("figcaption", said, " Choose a layer to open it."))


def _layers(figures: Mapping[str, Any]) -> Markup:
    button = element("button", "Open all", type="button", id="open-all", aria_pressed="false", hidden=True)
    return element("div", button, [layer_part(figures, place) for place in range(len(figures["layers"]))])


def _gradients(figures: Mapping[str, Any]) -> Markup:
    fidelity = figures["fidelity"]
    if fidelity is None:
        return element("p", figures["why_no_fidelity"])
    rows = [
        (
            element("code", row["parameter"]),
            None if row["cosine"] is None else bar(row["cosine"]),
            row["status"],
            number(row["cosine"], ".4f"),
            number(row["norm_ratio"], ".3g"),
        )
        for row in fidelity["rows"]
    ]
    told = (
        "Beside those of backpropagation through time, for one input and a loss that weighs all outputs at random: "
        "a cosine of 1 is the same direction, a norm ratio of 1 the same length. Another loss may differ."
    )
    return element(
        "div",
        element("p", told),
        _table("Gradients by parameter", ("Parameter", "", "Gradient", "Cosine", "Norm ratio"), rows, 2),
        [element("p", remark) for remark in fidelity["remarks"]],
    )


def _rates(figures: Mapping[str, Any]) -> Markup:
    seen = figures["activity"]
    fired = [(layer["name"], layer["activity"]) for layer in figures["layers"] if layer["activity"]]
    if not fired:
        return element("p", seen["why"])
    highest = max(max(each["over_time"]) for _, each in fired) or 1.0
    width = fired[0][1]["steps_per_part"]
    over = f", each point the mean of {width} steps" if width > 1 else ""
    shown = " (one step, shown again and again)" if seen["repeated"] else ""
    told = f"Spikes per neuron and step, over {count(seen['steps'], 'step')}{shown}{over}. "
    pictures = [
        element(
            "figure",
            element("figcaption", element("strong", name), f" {rate(each['rate'])}"),
            rates(name, each, highest, seen["steps"]),
        )
        for name, each in fired
    ]
    return element(
        "div",
        element("p", told, f"All pictures reach up to {highest:.3f}."),
        element("div", pictures, class_="pictures"),
    )


def _memory(figures: Mapping[str, Any]) -> Markup:
    known, report = figures["memory"], figures["report"]["memory"]
    told = "What training holds between forward and backward, per sample; parameters and the input are not counted. "
    told += "The lines are foretold from one step"
    told += ", the dots were measured." if known["measured"] else "."
    if known["grows"]:
        told += " Beside what is drawn, something grows with the number of steps: the notes say what."
    at = {steps: place for place, steps in enumerate(known["steps"])}
    rows = [
        [f"{steps:,} steps", *(format_bytes(known[name][at[steps]]) for name in ("through_time", "converted"))]
        for steps in SHOWN
    ]
    if known["measured"]:
        measured = [format_bytes(known["measured"][name]) for name in ("through_time", "converted")]
        rows.append([f"{figures['activity']['steps'] or ''} steps, measured", *measured])
    parts = [(name, size) for name, size in report.items() if name not in ("total", "grows", "profiles") and size]
    held = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts)
    key = element(
        "p",
        element("span", "Through time", class_="key through-time"),
        element("span", "Converted", class_="key converted"),
        class_="keys",
    )
    return element(
        "div",
        element("p", told),
        element(
            "div",
            element("figure", key, memory(figures, figures["activity"]["steps"])),
            _table("Bytes per sample", ("Sequence", "Through time", "Converted"), rows, 2),
            class_="beside",
        ),
        element("p", f"Converted, it is made of: {held}.") if held else None,
    )


def _approximate(figures: Mapping[str, Any]) -> Markup:
    entries = figures["approximations"]
    if not entries:
        return element("p", "Nothing: values and gradients are those of the model.")
    return element(
        "div",
        element("p", "The values that come out are the model's own. Of the gradients:"),
        [
            element(
                "article",
                element("h3", element("code", entry["what"])),
                element("p", entry["kind"], _lowest(entry), class_="about"),
                element(
                    "dl",
                    element("div", element("dt", "Why"), element("dd", entry["why"])),
                    element("div", element("dt", "What mends it"), element("dd", entry["mend"])),
                    class_="facts",
                ),
            )
            for entry in entries
        ],
    )


def _lowest(entry: Mapping[str, Any]) -> str:
    return "" if entry["lowest"] is None else f"; lowest cosine {entry['lowest']:.4f}"


def _parameters(figures: Mapping[str, Any]) -> Markup | None:
    rows = [
        (element("code", name), entry["status"], entry["reason"])
        for name, entry in figures["report"]["parameters"].items()
    ]
    return _table("How each parameter gets its gradient", ("Parameter", "Gradient", "Why"), rows) if rows else None


def _running(report: Mapping[str, Any]) -> Markup:
    steps = element("ol", [element("li", line) for line in report["schedule"]])
    ran = report["execution"]
    told = f"The last sequence ran {ran['backend']}: {ran['reason']}." if ran else "It has not run in training yet."
    return element("div", steps, element("p", told), _list(ran["obstacles"]) if ran else None)


def _list(lines: Sequence[str]) -> Markup | None:
    return element("ul", [element("li", line) for line in lines]) if lines else None
