"""A whole step in elementary operations, without what it only hands on; and how its results are put together again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from tracecompile.rules.written import draws_random_numbers
from tracecompile.runtime.engine.traced import Untraceable, written_out


@dataclass(frozen=True)
class StepWritten:
    """A step of tensors.

    Attributes:
        module: Arguments to the tensors that are made of them, each once.
        text: The same for steps that compute the same.
        places: Of the results: their numbers among the arguments and, behind them, what is made.
    """

    module: fx.GraphModule
    text: str
    places: tuple[int, ...]


def write_step(code: Callable[..., Sequence[Tensor]], arguments: Sequence[Tensor]) -> StepWritten:
    """Writes a step down, for arguments of the very shapes of some.

    Raises:
        Untraceable: It draws random numbers.
    """
    module = make_fx(code, tracing_mode="fake")(*arguments)
    if draws_random_numbers(module.graph):
        raise Untraceable("it draws random numbers, which compiled code would draw otherwise")
    for node in list(module.graph.nodes):
        if node.target is torch.ops.aten.detach.default:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    known = [node for node in module.graph.nodes if node.op == "placeholder"]
    count, places = len(known), []
    output = next(node for node in reversed(module.graph.nodes) if node.op == "output")
    for node in output.args[0]:
        if node not in known:
            known.append(node)
        places.append(known.index(node))
    output.args = (tuple(known[count:]),)
    module.graph.eliminate_dead_code()
    module.recompile()
    return StepWritten(module, written_out(module), tuple(places))


def assembler(results: Any, places: Sequence[int]) -> Callable[[Sequence[Tensor]], Any]:
    """Returns what puts the results of a step together.

    Torch's own way to do so takes as long as a small step.

    Args:
        results: Like them: sequences of sequences, down to tensors and constants.
        places: Of the tensors among what is given: arguments, and behind them what is made.
    """
    left, constants = iter(places), []

    def text(value: Any) -> str:
        if isinstance(value, (tuple, list)):
            return f"({''.join(f'{text(each)}, ' for each in value)})"
        if isinstance(value, Tensor):
            return f"given[{next(left)}]"
        constants.append(value)
        return f"constants[{len(constants) - 1}]"

    found: Callable[[Sequence[Tensor]], Any] = eval(f"lambda given: {text(results)}", {"constants": constants})
    return found


def tensors_of(results: Any) -> list[Tensor]:
    """Returns the tensors among the results of a step, in the order in which ``assembler`` takes them."""
    if isinstance(results, (tuple, list)):
        return [tensor for each in results for tensor in tensors_of(each)]
    return [results] if isinstance(results, Tensor) else []
