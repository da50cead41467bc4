"""compare_gradients: how close the gradients of a converted module are to backpropagation through time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tracecompile.diagnostics.gradient_table import GradientComparison, GradientRow, compare_tensors
from tracecompile.diagnostics.reference import LossFunction, Reference, Run, gradients_of, reference_of
from tracecompile.errors import InvalidInput
from tracecompile.report import ConversionReport

__all__ = ["GradientComparison", "GradientRow", "compare_gradients"]


class Converted(Protocol):
    """The part of a ``TracedModule`` that is used here."""

    @property
    def report(self) -> ConversionReport:
        """What the compiler found."""
        ...

    def snapshot(self) -> dict[str, Any]:
        """Returns the live states and traces."""
        ...

    def restore(self, snapshot: dict[str, Any], /) -> object:
        """Puts states and traces back."""
        ...

    def reset(self) -> object:
        """Starts a new sequence."""
        ...


def compare_gradients(
    model: nn.Module, net: nn.Module, inputs: Any, loss_fn: LossFunction, *, run: Run | None = None
) -> GradientComparison:
    """Compares the gradients of a converted module with ordinary backpropagation through time.

    Where a graph over time would take more than half of the memory that is free, the reference is the exact rule, which
    has the same gradients. Both start a new sequence from the same random state. Neither is changed: not the
    parameters' ``grad``, not the states, buffers or training flags, not the random number generators.

    Args:
        model: The model that was converted, with its states as at the start of a sequence.
        net: ``tracecompile.convert(model)``.
        inputs: A tensor or a tuple of arguments for one call. For a model whose ``forward`` is one time step, a list
            (or another iterable) of those, one per step.
        loss_fn: Maps the outputs (for a step model the list of every step's) to a scalar.
        run: Calls a module on the inputs and returns its outputs, ``run(module, inputs)``, where the default will not
            do: a step model that hands its state to the caller needs it.

    Raises:
        InvalidInput: If ``net`` does not share the parameters of the model, or no parameter reaches the loss.
    """
    call = run or call_or_loop
    if not isinstance(inputs, (Tensor, tuple, list, Mapping)) and isinstance(inputs, Iterable):
        inputs = list(inputs)
    _require_shared(model, net)
    return compared(reference_of(model, net, inputs, loss_fn, call), model, net, inputs, loss_fn, call)


def compared(
    reference: Reference, model: nn.Module, net: nn.Module, inputs: Any, loss_fn: LossFunction, run: Run
) -> GradientComparison:
    """Compares the gradients of a converted module with those that are known; see ``compare_gradients``."""
    with _undisturbed(net, model.training):
        cast(Converted, net).reset()
        own = dict(model.named_parameters())
        trained = [own[name] for name in reference.gradients]
        gradients = gradients_of(net, trained, inputs, loss_fn, run, reference.generators)
    reported = cast(Converted, net).report.parameters
    rows = []
    for (name, expected), measured in zip(reference.gradients.items(), gradients, strict=True):
        entry = reported.get(name)
        status, reason = (entry.status, entry.reason) if entry else ("", "")
        rows.append(compare_tensors(name, measured, expected, status, reason))
    return GradientComparison(tuple(rows), reference.by)


def call_or_loop(module: Any, inputs: Any) -> Any:
    """Calls a module once with a tensor or a tuple of arguments; with a list, once per entry, and returns the list."""
    if isinstance(inputs, list):
        return [call_or_loop(module, step) for step in inputs]
    return module(*inputs) if isinstance(inputs, tuple) else module(inputs)


def _require_shared(model: nn.Module, net: nn.Module) -> None:
    """Refuses two that do not train the same parameters: their gradients would be those of different networks.

    Raises:
        InvalidInput: With a parameter that only one of them has.
    """
    owned, theirs = ({id(each) for each in module.parameters()} for module in (model, net))
    strange = [name for name, each in model.named_parameters() if id(each) not in theirs]
    strange += [name for name, each in net.named_parameters() if id(each) not in owned]
    if strange:
        raise InvalidInput(
            f"The converted module does not share the parameters of this model: {strange[0]} is not the same in both.",
            "Compare it with the very model that it was made from, and convert that again after a layer was replaced.",
        )


@contextmanager
def _undisturbed(net: Any, training: bool) -> Iterator[None]:
    """Runs a block with the converted module in the model's mode, then puts back its states, buffers and mode."""
    before = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), net.snapshot())
    modules = list(net.modules())
    modes = [(module, module.training) for module in modules]
    owned = [(module, name, b) for module in modules for name, b in module._buffers.items() if b is not None]
    buffers = [(module, name, buffer, buffer.detach().clone()) for module, name, buffer in owned]
    try:
        if net.training != training:
            net.train(training)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for module, name, buffer, value in buffers:
            module._buffers[name] = buffer
            if not torch.equal(buffer, value):
                with torch.no_grad():
                    buffer.copy_(value)
        if before:
            net.restore(before)
        else:
            net.reset()  # it was not captured yet
