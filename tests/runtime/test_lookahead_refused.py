"""What is refused of streams that look ahead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from runtime.test_lookahead import made
from tracecompile.errors import InvalidInput


@pytest.mark.parametrize("lookahead", [0, -3, 2.0, True, None, "4"])
def test_what_is_no_number_of_steps(lookahead: Any) -> None:
    _, convert, x = made()
    with pytest.raises(InvalidInput, match="lookahead is"):
        convert().stream(x, lookahead=lookahead)


@pytest.mark.parametrize("rule", ["measured", "exact"])
def test_backward_waits_for_the_outputs_that_are_owed(rule: str) -> None:
    _, convert, x = made(rule=rule)
    net = convert()
    stream = net.stream(x, lookahead=4)
    outputs = [next(stream) for _ in range(6)]
    with pytest.raises(InvalidInput, match=r"backward in the middle of 4 steps.*\s.*2 of their outputs"):
        outputs[-1].sum().backward()
    with pytest.raises(InvalidInput, match=r"snapshot\(\) in the middle"):
        net.snapshot()
    outputs += [next(stream) for _ in range(2)]
    torch.stack(outputs).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize("change", ["reset", "detach", "eval", "write", "stream", "no_grad", "samples"])
def test_outputs_that_single_steps_would_not_give_are_not_given(change: str) -> None:
    model, convert, x = made(rule="exact" if change == "samples" else "measured")
    net = convert()
    stream = net.stream(x, lookahead=4)
    for _ in range(5):
        next(stream)
    changes: dict[str, Callable[[], Any]] = {
        "reset": net.reset,
        "detach": net.detach,
        "eval": net.eval,
        "write": lambda: nn.init.zeros_(model.first.weight),
        "stream": lambda: next(net.stream(x)),
        "no_grad": lambda: None,
        "samples": lambda: net.reset(samples=torch.tensor([True, False, False, False])),
    }
    changes[change]()
    with torch.set_grad_enabled(change != "no_grad"), pytest.raises(InvalidInput, match="changed, called, reset"):
        next(stream)


def test_a_stream_that_is_left_early_stands_after_what_was_taken() -> None:
    model, convert, x = made()
    net = convert()
    inputs = iter(x)
    with torch.no_grad():
        for _ in net.stream(inputs, lookahead=8):
            break
        assert net.snapshot()
        rest = list(net.stream(inputs))
        torch.testing.assert_close(torch.stack(rest), model(x)[8:])


@pytest.mark.parametrize(
    ("settings", "words"), [({"rule": "bptt"}, "one by one"), ({"rule": "exact", "drop": 0.5}, "draw")], ids=str
)
def test_models_whose_steps_cannot_be_computed_together(settings: dict[str, Any], words: str) -> None:
    _, convert, x = made(**settings)
    with pytest.raises(InvalidInput, match=words):
        next(convert().stream(x, lookahead=2))


def test_an_input_that_is_not_finite() -> None:
    _, convert, x = made()
    net = convert()
    x[2, 0, 0] = torch.nan
    with pytest.raises(InvalidInput, match="NaN"):
        list(net.stream(x, lookahead=4))
    net.reset()
    assert len(list(net.stream(x[:2], lookahead=4))) == 2
