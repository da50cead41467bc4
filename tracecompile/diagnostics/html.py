"""The conversion report as one HTML file: no script, nothing loaded from elsewhere, every text escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from tracecompile.report import ConversionReport

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; } caption { text-align: left; padding: .3rem 0; opacity: .75; }
th, td { text-align: left; vertical-align: top; padding: .35rem .7rem; border-bottom: 1px solid var(--line); }
tbody tr:nth-child(odd) { background: var(--soft); } td.name { font-family: ui-monospace, monospace; }
.trace { color: #1b6ca8; } .exact { color: #2a8a3e; } .frozen { color: #b3541e; font-weight: 600; }
"""


def report_html(report: ConversionReport, title: str = "converted network") -> str:
    """Returns a complete HTML page that shows a report: layers, parameters, schedule, notes."""
    values = report.to_dict()
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(_settings(values))}</p>",
        _layers(values["layers"]),
        _parameters(values["parameters"]),
        _list("Schedule", values["schedule"]),
        _list("Execution of the last sequence", _entries(values["execution"] or {})),
        _list("Notes", values["notes"]),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {values[name]}" for name in ("rule", "bins", "backend"))


def _layers(layers: Iterable[Mapping[str, Any]]) -> str:
    rows = list(layers)
    if not rows:
        return ""
    columns = [column for column in rows[0] if any(row[column] for row in rows)]
    cells = [[(_text(row[column]), "name" if column == "name" else "") for column in columns] for row in rows]
    return "<h2>Layers</h2>\n" + _table("In the order of the forward pass.", columns, cells)


def _parameters(parameters: Mapping[str, Mapping[str, str]]) -> str:
    if not parameters:
        return ""
    cells = [[(name, "name"), (p["status"], p["status"]), (p["reason"], "")] for name, p in parameters.items()]
    caption = "How each parameter gets its gradient: from traces, exactly, or not at all (frozen)."
    return "<h2>Parameters</h2>\n" + _table(caption, ["name", "gradient", "reason"], cells)


def _table(caption: str, columns: Iterable[str], rows: Iterable[Iterable[tuple[str, str]]]) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "\n".join("<tr>" + "".join(_cell(text, kind) for text, kind in row) + "</tr>" for row in rows)
    head = f"<caption>{escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>"
    return f"<table>\n{head}\n<tbody>\n{body}\n</tbody>\n</table>"


def _cell(text: str, kind: str) -> str:
    return f'<td class="{escape(kind)}">{escape(text)}</td>' if kind else f"<td>{escape(text)}</td>"


def _list(title: str, lines: Iterable[str]) -> str:
    body = "\n".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<h2>{escape(title)}</h2>\n<ul>\n{body}\n</ul>" if body else ""


def _entries(values: Mapping[str, Any]) -> list[str]:
    return [f"{name.replace('_', ' ')}: {_text(value)}" for name, value in values.items() if value]


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
