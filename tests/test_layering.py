"""The order of the house: who may import whom."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).resolve().parent.parent

ORDER = (
    (
        "version",
        "errors",
        "files",
        "operations",
        "kinds",
        "exact",
        "later",
        "drawn",
        "neuron_step",
        "layers",
        "units",
        "emitted",
        "program",
        "segment",
    ),
    ("tables",),
    ("report", "arguments", "nn", "analysis"),
    ("capture", "rules", "settings", "facts", "own_checks", "parallel", "refused"),
    ("graphs",),
    ("printing",),
    ("passes",),
    ("compiled", "runtime"),
    ("diagnostics",),
    ("page",),
    ("self_check",),
    ("layer_by_layer",),
    ("compiler",),
    ("saving", "convert"),
    ("nir",),
    ("exporting",),
    ("targets", "example_inputs", "weights"),
    ("bench", "demo", "options", "terminal"),
    ("commands",),
    ("cli",),
    ("__main__",),
)
"""From the bottom to the top: a module imports what is on its own level or below."""


def sources() -> dict[str, Path]:
    """Returns the files of the package by the names under which they are imported."""
    found = {}
    for folder in ("tracecompile", "passes"):
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if parts[:2] == ("tracecompile", "passes"):
                continue
            name = ".".join(parts if parts[0] == "tracecompile" else ("tracecompile", *parts))
            found[name.removesuffix(".__init__")] = path
    return found


def imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yields (module, name) of what a module imports when it runs: not what it names in annotations alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)


@pytest.fixture(scope="module")
def imports() -> nx.DiGraph[str]:
    """Which module of the package imports which."""
    known = sources()
    graph: nx.DiGraph[str] = nx.DiGraph()
    for name, path in known.items():
        graph.add_node(name)
        for module, attribute in imported(ast.parse(path.read_text(encoding="utf-8"))):
            target = f"{module}.{attribute}" if f"{module}.{attribute}" in known else module
            if target in known and target != "tracecompile":
                graph.add_edge(name, target)
    return graph


def level(name: str) -> int:
    """Returns how high a module stands."""
    part = name.split(".")[1]
    return next(place for place, parts in enumerate(ORDER) if part in parts)


def test_no_module_imports_itself_through_others(imports: nx.DiGraph[str]) -> None:
    assert imports.number_of_edges() > 500
    assert [found for found in nx.strongly_connected_components(imports) if len(found) > 1] == []


def test_no_module_imports_upward(imports: nx.DiGraph[str]) -> None:
    upward = [edge for edge in imports.edges if edge[0] != "tracecompile" and level(edge[0]) < level(edge[1])]
    assert upward == []


def test_an_upward_import_is_seen() -> None:
    assert level("tracecompile.runtime.loop") < level("tracecompile.compiler")
    tree = ast.parse("if TYPE_CHECKING:\n    from a import b\nfrom tracecompile import compiler\nimport torch")
    assert list(imported(tree)) == [("tracecompile", "compiler"), ("torch", "")]
