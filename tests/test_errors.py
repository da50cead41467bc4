"""Errors: every entry of the catalogue is what its program says, and carets stand under what is meant."""

from __future__ import annotations

import linecache
import re
import runpy
import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tracecompile
from tracecompile import nn as snn
from tracecompile.errors import ConversionError, SourceLine

CATALOGUE = (Path(__file__).parent.parent / "docs" / "errors.md").read_text(encoding="utf-8")
ENTRY = re.compile(
    r"^## (.+?)\n.*?```python\n(.*?)```\n\n```text\n(.*?)```\n\nWrite instead: ", re.MULTILINE | re.DOTALL
)
ENTRIES = ENTRY.findall(CATALOGUE)


@pytest.mark.parametrize(("title", "program", "text"), ENTRIES, ids=[title for title, _, _ in ENTRIES])
def test_an_entry_of_the_catalogue_is_what_its_program_says(
    title: str, program: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    linecache.clearcache()  # of the entry before, in a file of the same name
    Path("model.py").write_text(program)
    with pytest.raises(ConversionError) as caught:
        runpy.run_path("model.py")
    assert f"{type(caught.value).__name__}: {caught.value}\n" == text


def test_every_entry_is_found_and_every_class_is_told() -> None:
    assert len(ENTRIES) == CATALOGUE.count("\n## ") > 8
    classes = {kind.__name__ for kind in ConversionError.__subclasses__() if kind.__module__ == "tracecompile.errors"}
    assert classes <= set(re.findall(r"^\| `(\w+)` \|", CATALOGUE, re.MULTILINE))


class Inner(nn.Module):
    def forward(self, v: Tensor) -> Tensor:
        ä = "é"; return v * float(v.mean()) if ä else v  # fmt: skip # noqa: E702


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.spike, self.inner = nn.Linear(4, 5), snn.fast_sigmoid(25.0), Inner()

    def forward(self, x: Tensor) -> Tensor:
        v, outs = x.new_zeros(x.shape[1], 5), []
        for x_t in x:
            v = 0.9 * v + self.inner(self.fc(x_t))
            outs.append(self.spike(v - 1.0))
        return torch.stack(outs)


def test_where_names_the_module_and_the_part_of_the_line() -> None:
    with pytest.raises(ConversionError) as caught:
        tracecompile.convert(Outer(), torch.rand(6, 2, 4))
    where = caught.value.where
    assert where is not None
    assert (where.file, where.module_path) == (__file__, "inner")
    assert where.columns is not None
    assert where.source[slice(*where.columns)] == "float(v.mean())", "positions count bytes, carets characters"
    line, carets = str(caught.value).splitlines()[-2:]
    assert line[carets.index("^") : len(carets)] == "float(v.mean())"


class Spread(Outer):
    def forward(self, x: Tensor) -> Tensor:
        v, outs = x.new_zeros(x.shape[1], 5), []
        for x_t in x:
            v = 0.9 * v + self.fc(x_t)
            outs.append(
                self.spike(v - 1.0) if bool(
                    (v > 1)
                    .any()
                ) else v
            )  # fmt: skip
        return torch.stack(outs)


def test_an_expression_of_several_lines_is_marked_on_the_line_that_is_shown() -> None:
    with pytest.raises(ConversionError) as caught:
        tracecompile.convert(Spread(), torch.rand(6, 2, 4))
    where = caught.value.where
    assert where is not None
    assert where.columns is not None
    assert where.source[slice(*where.columns)] == "bool("


def test_carets_stand_under_wide_letters_and_tabs() -> None:
    line = SourceLine("a.py", 1, "x\t= 界 + y", columns=(4, 5))
    assert line.carets == " \t  ^^"
    assert SourceLine("a.py", 1, "x").carets == ""
    assert line == SourceLine("a.py", 1, line.source), "two places on one line are one line"


def test_the_place_of_a_decorated_forward_is_its_name(tmp_path: Path) -> None:
    program = """
        import torch
        from torch import nn
        import tracecompile

        class Net(nn.Module):
            @torch.enable_grad()
            def forward(self, x):
                return torch.relu(x)

        tracecompile.convert(Net(), torch.rand(6, 2, 4))
    """
    (tmp_path / "decorated.py").write_text(textwrap.dedent(program))
    with pytest.raises(ConversionError) as caught:
        runpy.run_path(str(tmp_path / "decorated.py"))
    where = caught.value.where
    assert where is not None
    assert where.columns is not None
    assert where.source[slice(*where.columns)] == "def forward"
