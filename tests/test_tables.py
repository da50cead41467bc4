"""Tables of a bounded width."""

from __future__ import annotations

import pytest

from tracecompile.tables import WIDTH, text_table


@pytest.mark.parametrize("first", ["backpropagation through time and much more of it", "short"])
def test_a_word_is_broken_only_where_there_is_no_other_way(first: str) -> None:
    header = ["name", *(f"column {number}" for number in range(7))]
    rows = [[first, *["1,234.5"] * 7], ["another one of several words", *["5.0"] * 7]]
    lines = text_table(header, rows).splitlines()
    assert max(map(len, lines)) <= WIDTH
    words = {word for row in (header, *rows) for cell in row for word in cell.split()}
    assert {word for line in lines for word in line.split() if "-" not in word} == words


def test_words_that_are_too_long_are_broken() -> None:
    rows = [["a" * 100, "b" * 100]]
    lines = text_table(["one", "two"], rows).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert sum(line.count("a") for line in lines) == 100
