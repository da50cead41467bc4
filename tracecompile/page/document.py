"""The whole page: head, key figures, sections, and the data that they were made of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tracecompile.page.markup import Child, Markup, data_block, element
from tracecompile.page.sections import Section, sections
from tracecompile.page.words import count, format_bytes, number

FOLDER = Path(__file__).parent


def page(figures: Mapping[str, Any]) -> str:
    """Returns a complete HTML page of what ``figures_of`` has returned."""
    shown = [section for section in sections(figures) if section[2] is not None]
    body = element(
        "body",
        element("a", "Skip to the network", href="#network", class_="skip"),
        _header(figures, shown),
        element("main", _key_figures(figures), [_section(section) for section in shown]),
        element(
            "footer",
            element("p", f"tracecompile {figures['version']}. The figures are in this file as JSON: "),
            element("button", "Save them", type="button", id="save", hidden=True),
        ),
        data_block("data", figures),
        Markup(f"<script>{_file('script.js')}</script>"),
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", figures["title"]),
        element("link", rel="icon", href="data:,"),
        Markup(f"<style>{_file('style.css')}</style>"),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _file(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _header(figures: Mapping[str, Any], shown: list[Section]) -> Markup:
    report = figures["report"]
    bins = f", {count(report['bins'], 'time bin')}" if report["rule"] == "measured" else ""
    links = [element("li", element("a", title, href=f"#{name}")) for name, title, _ in shown]
    return element(
        "header",
        element("button", "Dark", type="button", id="theme", aria_pressed="false", hidden=True),
        element("p", "Conversion report", class_="kicker"),
        element("h1", figures["title"]),
        element("p", f"{figures['model']} in trace form: rule {report['rule']}{bins}.", class_="lead"),
        element("nav", element("ul", links), aria_label="Contents"),
    )


def _key_figures(figures: Mapping[str, Any]) -> Markup:
    report, fidelity = figures["report"], figures["fidelity"]
    spiking = [layer for layer in figures["layers"] if layer["kind"].startswith("spiking")]
    neurons = sum(layer["units"] for layer in spiking)
    cosines = [row["cosine"] for row in fidelity["rows"] if row["cosine"] is not None] if fidelity else []
    recurrent = sum(1 for layer in figures["layers"] if layer["recurrence"])
    cards: list[tuple[str, str, Child]] = [
        ("Layers", f"{len(figures['layers'])}", f"{recurrent} recurrent" if recurrent else "none recurrent"),
        ("Spiking neurons", f"{neurons:,}", f"in {count(len(spiking), 'layer')}"),
        ("Trained numbers", f"{figures['parameters']:,}", count(len(report["parameters"]), "tensor")),
        ("Held for backward", format_bytes(report["memory"]["total"]), _held(report["memory"])),
    ]
    if cosines:
        cards.append(("Lowest cosine", number(min(cosines), ".4f"), fidelity["worst"] if fidelity else ""))
    return element(
        "dl",
        [
            element("div", element("dt", name), element("dd", value, class_="value"), element("dd", about))
            for name, value, about in cards
        ],
        class_="key-figures",
    )


def _held(memory: Mapping[str, Any]) -> str:
    return "per sample, and more with time" if memory["grows"] else "per sample, whatever the length"


def _section(section: Section) -> Markup:
    name, title, inside = section
    heading = element("h2", title, id=f"{name}-heading")
    return element("section", heading, inside, id=name, aria_labelledby=f"{name}-heading", tabindex=-1)
