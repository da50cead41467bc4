"""What becomes of numbers, of random ones, and of the rows of a batch is what the table says, in modules too."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import nn

from operations.checks import EMPTY, VALUES, close, is_constant, leaves, named, same
from operations.examples import ARGUMENTS, calls, numbers, run, with_facts
from operations.modules import given, made
from tracecompile.operations import OPERATIONS, SHAPE_ONLY, Fact, Operation, Rows

FILLED = ("zero", "fill", "__setitem__")
"""What is written over, or returns nothing."""

# What is kept of the numbers.


@named(with_facts(Fact.COPIES | Fact.CASTS | Fact.DETACHES))
def test_the_same_numbers(entry: Operation) -> None:
    x, y = numbers()
    whole = (4 * x).round().abs()
    assert torch.equal(run(entry, whole, y).double(), whole.bool().double() if entry.name == "bool" else whole)


@named(with_facts(Fact.LAYS_OUT))
def test_each_number_once(entry: Operation) -> None:
    x, y = numbers()
    assert torch.equal(run(entry, x, y).flatten().sort().values, x.flatten().sort().values)


@named(with_facts(Fact.PERMUTES))
def test_another_order_of_the_axes(entry: Operation) -> None:
    x, y = numbers()
    assert torch.equal(run(entry, x, y), x.permute(1, 0))


@named(with_facts(SHAPE_ONLY, Fact.RANDOM))
def test_values_have_no_part_in_it(entry: Operation) -> None:
    (x, y), other = numbers(), numbers()[1]
    one, two = run(entry, x, y), run(entry, other, y)
    assert entry.name in EMPTY or (same(one, two) if leaves(one) else one == two)
    assert Fact.LIKE not in entry.facts or one.shape == x.shape


@named([entry for entry in VALUES if not entry.facts & (SHAPE_ONLY | Fact.RANDOM) and entry.name not in FILLED])
def test_values_have_a_part_in_others_that_take_a_tensor(entry: Operation) -> None:
    first = ARGUMENTS.get(entry.name, lambda x, y: (x,))(*numbers())[0]
    assert not isinstance(first, torch.Tensor) or not is_constant(entry)


@named(with_facts(Fact.FILLS))
def test_one_number_everywhere(entry: Operation) -> None:
    value = run(entry, *numbers())
    assert value.unique().tolist() == [0.5 if entry.fill is None else entry.fill]


@named(with_facts(Fact.WHOLE))
def test_whole_numbers_of_whole_numbers(entry: Operation) -> None:
    function = getattr(operator, entry.symbol)
    for pair in ((7, 3), (12, 5), (9, 9)):
        assert run(entry, *map(torch.tensor, pair)).item() == function(*pair)
        assert type(function(*pair)) is int


@named(with_facts(Fact.CHOOSES))
def test_every_number_is_one_of_the_first_tensor(entry: Operation) -> None:
    given = ARGUMENTS.get(entry.name, lambda x, y: (x,))(*numbers())
    for value in leaves(calls(entry)(*given)):
        assert torch.isin(value, given[0]).all()


@named(with_facts(Fact.SELECTS))
def test_as_many_as_the_values_say(entry: Operation) -> None:
    x, y = numbers()
    assert len({len(run(entry, value, y)) for value in (x, x.abs(), x - 0.8)}) > 1


@named(with_facts(Fact.READS))
def test_reading_gives_no_tensor(entry: Operation) -> None:
    assert not leaves(run(entry, *numbers()))


# Random numbers.


def two_draws(entry: Operation) -> list[Any]:
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(calls(entry)(*ARGUMENTS.get(entry.name, lambda x, y: (x,))(*numbers())))
    return found


@named(VALUES)
def test_two_seeds_differ_where_it_is_random(entry: Operation) -> None:
    assert same(*two_draws(entry)) == (Fact.RANDOM not in entry.facts)


@named([entry for entry in with_facts(Fact.DROPS) if entry.modules])
def test_what_drops_keeps_the_shape_and_draws_in_training_alone(entry: Operation) -> None:
    for kind in entry.modules:
        module, x = made(kind), given(kind, numbers()[0])
        assert module(x).shape == x.shape
        module.eval()
        assert same(module(x), module(x))


# Rows.

ROWS = [entry for entry in OPERATIONS if entry.rows is not None]


@named(ROWS)
def test_rows_stay_apart(entry: Operation) -> None:
    """As the examples call them: along no first axis, and what normalises or drops in evaluation."""
    x, y = numbers()
    if entry.facts & (Fact.BATCH_STATISTICS | Fact.RANDOM):
        return
    weights = y[:, :4]
    whole = run(entry, x, y if Fact.JOINS in entry.facts else weights)
    for row in range(3):
        one = run(entry, x[row : row + 1], y[row : row + 1] if Fact.JOINS in entry.facts else weights)
        assert close(one, whole[row : row + 1])


MODULES = [(entry, kind) for entry in OPERATIONS for kind in entry.modules]


@pytest.mark.parametrize(("entry", "kind"), MODULES, ids=lambda each: getattr(each, "__name__", ""))
def test_a_module_is_what_its_entry_says(entry: Operation, kind: type[nn.Module]) -> None:
    module = made(kind).eval()
    x = given(kind, numbers()[0])
    value = module(x)
    assert entry.spatial in (None, x.ndim - 2)
    if Fact.ELEMENTWISE in entry.facts:
        changed = x.clone()
        changed[1, 2] = 0.371
        differing = (module(changed) != value).nonzero().tolist()
        assert differing in ([[1, 2]], [])
    if entry.facts & (Fact.LINEAR | Fact.PRODUCT):
        other = given(kind, numbers()[1])
        assert close(module(0.3 * x + 0.7 * other), 0.3 * value + 0.7 * module(other))
    if entry.rows in (Rows.SAMPLES, Rows.LAST_AXIS, Rows.NAMED_AXES):
        assert all(close(module(x[row : row + 1]), value[row : row + 1]) for row in range(3))
    if entry.facts & Fact.BATCH_STATISTICS and kind is not nn.SyncBatchNorm:
        module.train()
        before = module.running_mean.clone()
        assert not close(module(x)[:2], module(x[:2]))
        assert not torch.equal(before, module.running_mean)
