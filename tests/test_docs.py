"""The documentation is true: its programs run, its commands and links lead somewhere, no public name is left out."""

from __future__ import annotations

import importlib.util
import inspect
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import typer
from requirements import library
from support.pages import DOCS, PAGES, ROOT, blocks, commands, languages, needed, run

import tracecompile
import tracecompile.nn
from tracecompile.cli import app

PROGRAMS = [
    pytest.param(page, id=page.relative_to(ROOT).as_posix(), marks=[pytest.mark.libraries] if needed(page) else [])
    for page in PAGES
]
OTHERS = {"python", "python3", ".venv/bin/pip", ".venv/bin/tracecompile", "torchrun", "mkdocs", "git", "pip"}
"""First words of commands that are none of ours."""


@pytest.mark.filterwarnings("ignore")  # of libraries
@pytest.mark.parametrize("page", PROGRAMS)
def test_every_page_has_a_program_that_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page.name == "errors.md":
        pytest.skip("its entries are made by tests of their own")
    if (name := needed(page)) is not None:
        library(name)
    monkeypatch.chdir(tmp_path)
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert list(blocks(page, "python")), "a page without a program"
    run(page, tmp_path)


def test_a_program_that_fails_names_the_line_of_its_page(tmp_path: Path) -> None:
    page = tmp_path / "some.md"
    page.write_text("# Title\n\n```python\nx = 1\n```\n\nWords.\n\n```python\nassert x == 2\n```\n")
    with pytest.raises(AssertionError) as caught:
        run(page, tmp_path)
    assert caught.traceback[-1].lineno == 9  # counted from 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_says_what_it_is(page: Path) -> None:
    assert languages(page) <= {"python", "sh", "text"}


def options_of(words: list[str]) -> tuple[Any, list[str]]:
    """Returns the command that words are, and the options among them."""
    group: Any = typer.main.get_command(app)
    assert words[0] in group.commands, words
    return group.commands[words[0]], [word for word in words[1:] if word.startswith("-")]


def known(command: Any) -> set[str]:
    return {"-h", "--help"} | {name for each in command.params for name in (*each.opts, *each.secondary_opts)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_exists(page: Path) -> None:
    for line in commands(page):
        words = shlex.split(line)
        if words[0] == "tracecompile":
            command, given = options_of(words[1:])
            assert set(given) <= known(command), line
            continue
        assert words[0] in OTHERS or line == "python3 -m venv .venv", line
        for script in (word for word in words if word.endswith(".py") and "/" in word):
            assert (ROOT / script).is_file(), line


def test_every_command_and_option_is_documented() -> None:
    text = (DOCS / "cli.md").read_text()
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        assert f"tracecompile {name} " in text, name
        for option in known(command):
            assert not option.startswith("--") or f"`{option}`" in text, (name, option)


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_link_is_broken(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
        assert not target.startswith("http"), "nothing here needs the network"
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.is_file(), target
        assert not anchor or anchor in anchors(found), target


def test_every_page_is_in_the_contents() -> None:
    listed = set(re.findall(r": ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert listed == {page.relative_to(DOCS).as_posix() for page in PAGES if DOCS in page.parents}


def public() -> dict[str, Any]:
    """Returns every public name, and every public method and property of a converted network."""
    found = {f"tracecompile.{name}": getattr(tracecompile, name) for name in tracecompile.__all__}
    found |= {f"tracecompile.nn.{name}": getattr(tracecompile.nn, name) for name in tracecompile.nn.__all__}
    for name, value in vars(tracecompile.TracedModule).items():
        if not name.startswith("_"):
            found[f"tracecompile.TracedModule.{name}"] = value
    return found


def test_no_public_name_is_undocumented() -> None:
    reference = (DOCS / "api.md").read_text()
    directives = re.findall(r"^::: ([\w.]+)$", reference, re.MULTILINE)
    for name, value in public().items():
        within = any(name == each or name.startswith(f"{each}.") for each in directives)
        assert within or f"`{name}`" in reference, f"{name} is not in docs/api.md"
        if inspect.isclass(value) or inspect.isroutine(value) or isinstance(value, property | ModuleType):
            assert inspect.getdoc(value), f"{name} has no docstring"


def figure(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(DOCS / "figures"))  # they import what they share from their own folder
    specification = importlib.util.spec_from_file_location(f"figure_{name}", DOCS / "figures" / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, specification.name, module)
    specification.loader.exec_module(module)
    return module


SMALL = {
    "overview": ["--lengths", "10,20", "--epochs", "1", "--digits", "64", "--backend", "eager"],
    "slopes": ["--steps", "30"],
    "bins": ["--bins", "1,8", "--steps", "8", "--epochs", "1", "--digits", "64"],
    "exact": ["--lengths", "20,40"],
    "long_memory": [],  # of what is kept
}


def test_every_figure_is_drawn_by_a_script() -> None:
    scripts = {path.stem for path in (DOCS / "figures").glob("*.py")} - {"style"}
    drawn = {path.stem for path in (DOCS / "figures").glob("*.svg")}
    assert scripts == drawn == set(SMALL)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_figure(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "drawn.svg"
    values = figure(name, monkeypatch).main([*SMALL[name], "--output", str(picture)])
    assert "<svg" in picture.read_text()
    if name == "bins":
        assert values["cosines"][-1] > 0.9999, "a bin for every step"
        assert values["held"][1] > values["held"][0]
    if name in ("overview", "exact"):
        held = {way: [getattr(row, "bytes", row) for row in rows] for way, rows in values["costs"].items()}
        (through_time,) = (rows for way, rows in held.items() if "through time" in way)
        (converted,) = (rows for way, rows in held.items() if way in ("converted", "measured, 4 bins"))
        assert through_time[1] > 1.5 * through_time[0]
        assert converted[1] == converted[0]
    if name == "slopes":
        assert torch.all(values["recovered"] >= values["without"])
        assert values["slopes"].max() > 0.5
