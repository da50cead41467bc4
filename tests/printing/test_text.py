"""Functions of hand-built graphs: names, operators, literals, order, comments, line breaks."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn

from printing.executed import require_same
from tracecompile.errors import SourceLine
from tracecompile.printing import Printed
from tracecompile.printing.comments import short_path, source_comment
from tracecompile.printing.layout import Expression
from tracecompile.printing.literals import literal
from tracecompile.printing.page import Page

LINE = SourceLine("/home/someone/net.py", 30, "v = 0.9 * v + self.w1(x_t)")
OTHER = SourceLine("/home/someone/net.py", 31, "z = spike(v)")


def printed(graph: fx.Graph, root: dict[str, Any] | None = None) -> Printed:
    page = Page()
    function = page.add(fx.GraphModule(root or {}, graph), "made")
    page.close()
    lines = page.print(function)
    return Printed("\n".join([*page.head(), "", "", *lines]).strip() + "\n", page.references.constants)


def made_of(build: Callable[..., Any], *names: str) -> fx.Graph:
    graph = fx.Graph()
    graph.output(build(graph, *(graph.placeholder(name) for name in names)))
    return graph


def require_runs(graph: fx.Graph, *given: Any, root: dict[str, Any] | None = None) -> str:
    result = printed(graph, root)
    torch.manual_seed(0)
    # Not the graph's own code: in that, a placeholder named torch shadows torch.
    expected = fx.Interpreter(fx.GraphModule(root or {}, graph)).run(*given)
    torch.manual_seed(0)
    require_same(result.run()["made"](*given), expected, result.text)
    return result.text


def at(node: fx.Node, where: SourceLine | None) -> fx.Node:
    node.meta["where"] = where
    return node


def test_no_name_shadows_what_is_called() -> None:
    names = ("getitem", "torch", "linear", "lambda_", "input", "model", "run", "constants", "made", "print", "match")

    def build(graph: fx.Graph, *given: fx.Node) -> fx.Node:
        total = graph.call_function(nn.functional.linear, (given[0], given[1]), name="linear")
        for node in given[2:]:
            item = graph.call_function(operator.getitem, (node, 0), name="getitem")
            total = graph.call_function(torch.maximum, (total, item), name="torch")
        return total

    text = require_runs(made_of(build, *names), *(torch.randn(3, 3) for _ in names))
    assigned = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name) and not _is_read(node)}
    assigned |= {node.arg for node in ast.walk(ast.parse(text)) if isinstance(node, ast.arg)}
    assert not assigned & {"torch", "linear", "input", "model", "run", "constants", "made", "print", "match"}


def _is_read(node: ast.Name) -> bool:
    return isinstance(node.ctx, ast.Load)


def test_sums_keep_their_order() -> None:
    def build(graph: fx.Graph, a: fx.Node, b: fx.Node, c: fx.Node) -> fx.Node:
        right = graph.call_function(operator.add, (b, c))
        total = graph.call_function(operator.add, (a, right))
        left = graph.call_function(operator.sub, (total, c))
        power = graph.call_function(operator.pow, (graph.call_function(operator.neg, (left,)), 2))
        truth = graph.call_function(operator.lt, (power, b))
        return graph.call_function(operator.eq, (graph.call_function(operator.gt, (a, b)), truth))

    values = [torch.tensor([1e16, 1.0, 0.1]), torch.tensor([1.0, 0.1, 0.2]), torch.tensor([-1e16, 0.3, 0.7])]
    text = require_runs(made_of(build, "a", "b", "c"), *values)
    assert "return" in text
    assert "a + (b + c) - c" in text
    assert "(-(a + (b + c) - c)) ** 2" in text
    assert "(a > b) == " in text or "gt == " in text


@pytest.mark.parametrize(
    "value",
    [
        math.inf, -math.inf, math.nan, -0.0, 1e-300, -2, True, None, "it's \"so\"\n", complex(1, -2), torch.float32,
        torch.device("cpu"), torch.contiguous_format, torch.strided, float, (), (1,), [1, (2, [3])], {"a": 1, 2: None},
        slice(1, None, 2), range(1, 9, 2), Ellipsis,
    ],
    ids=repr,
)  # fmt: skip
def test_literals_make_the_value_again(value: Any) -> None:
    found = eval(literal((value, -3.5), _no_literal).text, {"torch": torch})[0]
    assert type(found) is type(value)
    assert repr(found) == repr(value)


def _no_literal(value: Any) -> Expression:
    raise AssertionError(f"{value!r} is a literal")


def test_a_type_of_torch_is_imported() -> None:
    graph = made_of(lambda graph, x: graph.call_method("to", (x, torch.float16)), "x")
    assert require_runs(graph, torch.zeros(2)).startswith("import torch\n")


@pytest.mark.parametrize(
    ("index", "text"),
    [
        (0, "x[0]"), (-1, "x[-1]"), (slice(None), "x[:]"), (slice(1, -1), "x[1:-1]"), (slice(None, None, 2), "x[::2]"),
        ((slice(None), 1), "x[:, 1]"), ((Ellipsis, None, 0), "x[..., None, 0]"), ((1,), "x[(1,)]"),
        ([0, 2], "x[[0, 2]]"),
    ],
)  # fmt: skip
def test_items_are_read_by_brackets(index: Any, text: str) -> None:
    graph = made_of(lambda graph, x: graph.call_function(operator.getitem, (x, index)), "x")
    assert text in require_runs(graph, torch.arange(24.0).view(4, 3, 2))


def test_bounds_that_are_computed_stand_apart() -> None:
    def build(graph: fx.Graph, x: fx.Node, n: fx.Node) -> fx.Node:
        end = graph.call_function(operator.add, (n, 1))
        return graph.call_function(operator.getitem, (x, slice(n, end)))

    assert "x[n : n + 1]" in require_runs(made_of(build, "x", "n"), torch.arange(6.0), 2)


def test_every_operation_runs_in_its_turn() -> None:
    seen: list[str] = []

    class Noting(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(self.name)
            return x + torch.rand(())

    root = {name: Noting(name) for name in "abcd"}

    def build(graph: fx.Graph, x: fx.Node) -> fx.Node:
        a, b = graph.call_module("a", (x,)), graph.call_module("b", (x,))
        crossed = graph.call_function(operator.sub, (b, a))
        c, d = graph.call_module("c", (crossed,)), graph.call_module("d", (x,))
        graph.call_module("a", (x,))
        return graph.call_function(operator.add, (c, d))

    text = require_runs(made_of(build, "x"), torch.zeros(2), root=root)
    assert seen == [*"abcda", *"abcda"]
    assert "a_1 = a(x)\n    c_1 = c(b(x) - a_1)\n" in text


def test_one_comment_for_a_run_of_lines() -> None:
    def build(graph: fx.Graph, x: fx.Node, v: fx.Node) -> Any:
        scaled = at(graph.call_function(operator.mul, (0.9, v)), LINE)
        current = at(graph.call_function(torch.relu, (x,)), LINE)
        charged = at(graph.call_function(operator.add, (scaled, current)), LINE)
        slope = at(graph.call_function(torch.sign, (current,)), None)
        twice = at(graph.call_function(operator.mul, (slope, charged)), LINE)
        return at(graph.call_function(torch.sigmoid, (charged,)), OTHER), twice

    text = require_runs(made_of(build, "x", "v"), torch.randn(3), torch.randn(3))
    assert [line.strip() for line in text.splitlines() if "#" in line] == [
        "# net.py:30  v = 0.9 * v + self.w1(x_t)",
        "# net.py:31  z = spike(v)",
    ]


def test_paths_are_those_of_the_package() -> None:
    assert short_path("/venv/lib/python3.11/site-packages/snntorch/_neurons/leaky.py") == "snntorch/_neurons/leaky.py"
    assert short_path(str(source_comment.__code__.co_filename)) == "tracecompile/printing/comments.py"
    assert short_path("/home/someone/project/net.py") == "net.py"
    assert len(source_comment(SourceLine("net.py", 1, "x" * 300))) == 116


def test_long_lines_break_where_a_formatter_breaks_them() -> None:
    names = [f"a_value_with_a_rather_long_name_{letter}" for letter in "abcdef"]

    def build(graph: fx.Graph, *given: fx.Node) -> Any:
        whole = graph.call_function(torch.cat, (list(given), 0))
        return tuple(graph.call_function(operator.getitem, (whole, i), name="short") for i in range(40)), given

    text = require_runs(made_of(build, *names), *(torch.randn(8) for _ in names))
    assert max(map(len, text.splitlines())) <= 120
    assert "def made(\n    a_value_with_a_rather_long_name_a,\n" in text
    assert "\n        short,\n" in text or "\n            short,\n" in text


def test_a_function_of_the_users_is_a_constant() -> None:
    def own(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    graph = made_of(lambda graph, x: graph.call_function(own, (x,)), "x")
    assert '\nown = constants["own"]' in require_runs(graph, torch.zeros(2))
    assert printed(graph).constants == {"own": own}


def test_what_nobody_reads_is_still_run() -> None:
    norm = nn.BatchNorm1d(2)

    def build(graph: fx.Graph, x: fx.Node) -> fx.Node:
        graph.call_module("norm", (x,))
        graph.call_method("add_", (x, 1))
        return x

    text = printed(made_of(build, "x"), {"norm": norm})
    assert "\n    norm(x)\n    x.add_(1)\n    return x" in text.text
    given = torch.zeros(3, 2)
    assert torch.equal(text.run()["made"](given), torch.ones(3, 2))
    assert int(norm.num_batches_tracked) == 1


def test_two_constants_of_one_name_are_two() -> None:
    page = Page()
    graph = made_of(lambda graph, x: graph.call_module("own", (x,)), "x")
    modules = [fx.GraphModule({"own": made}, graph) for made in (nn.Linear(2, 2), nn.Linear(2, 3), nn.Linear(2, 2))]
    functions = [page.add(module, "made") for module in (*modules, fx.GraphModule({"own": modules[0].own}, graph))]
    page.close()
    lines = [line for function in functions for line in page.print(function)]
    namespace = Printed("\n".join([*page.head(), *lines]), page.references.constants).run()
    assert [function.name for function in functions] == ["made", "made_1", "made_2", "made_3"]
    for function in functions:
        require_same(namespace[function.name](torch.ones(2)), function.module(torch.ones(2)), function.name)
    assert list(page.references.constants) == ["own", "own_1", "own_2"]
