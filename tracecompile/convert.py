"""convert(): the front door."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

from torch import Tensor, nn

from tracecompile import compiler
from tracecompile.errors import InvalidInput
from tracecompile.program import Settings
from tracecompile.rules import RULES
from tracecompile.runtime.module import TracedModule

Rule = Literal["measured", "analytic", "bptt"]
Backend = Literal["auto", "eager", "inductor"]


def convert(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    rule: Rule = "measured",
    bins: int = 4,
    decay: float | Mapping[str, float] | None = None,
    backend: Backend = "auto",
    chunk: int | None = None,
) -> TracedModule:
    """Rewrites a spiking network into trace form.

    Args:
        model: Any module that takes a whole sequence or one time step; it is never modified.
        example_inputs: A tensor or a tuple of tensors, like one small training batch; its length and batch size bind
            nothing. None: the model is captured at the first call, from the inputs of that call.
        rule: "measured" records the slope of every neuron, "analytic" computes it from a rate curve, "bptt" is ordinary
            backpropagation through the captured program.
        bins: Time bins of the measured rule for sequences; more bins are closer to backpropagation through time.
        decay: Decay of the input traces: None for the mean of the whole sequence, a float in (0, 1), or a mapping of
            layer names to floats. With a decay there is one bin.
        backend: What runs the time steps of a sequence that is trained. "eager" with ``chunk=1`` is the reference:
            values are those of the model, bit for bit. "inductor" compiles the neurons for many steps at once, which
            takes seconds at the first call. "auto" does so where the sequence is long and large enough to pay for it;
            the report says which and why.
        chunk: Time steps computed together where the graph allows; None is 1 for the eager backend and up to 32 for
            inductor. Beyond 1, values are equal up to rounding: a spike may differ where its membrane is within
            rounding of the threshold.

    Returns:
        A module with the model's signature, parameters, buffers and state_dict.

    Raises:
        ConversionError: The model or a setting is refused; says where and what to write instead.
    """
    settings = _settings(rule, bins, decay, backend, chunk)
    if not isinstance(model, nn.Module):
        raise InvalidInput(
            f"convert takes a torch.nn.Module, not {type(model).__name__}.", "Wrap the function in a module."
        )
    if isinstance(model, TracedModule):
        raise InvalidInput("The model is converted already.", "Convert the original model.")
    net = TracedModule(model, settings, compiler.compile)
    if example_inputs is not None:
        args = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
        if not any(isinstance(arg, Tensor) for arg in args):
            raise InvalidInput("example_inputs holds no tensor.", "Pass a tensor or a tuple of tensors.")
        net.compile_with(args, {})
    return net


def _settings(rule: Any, bins: Any, decay: Any, backend: Any, chunk: Any) -> Settings:
    if rule not in RULES:
        raise InvalidInput(f"There is no rule {rule!r}.", f"The rules are: {', '.join(RULES)}.")
    if not isinstance(bins, int) or bins < 1:
        raise InvalidInput(f"bins is {bins!r}, but must be a whole number of at least 1.")
    for value in decay.values() if isinstance(decay, Mapping) else [decay]:
        if value is not None and not (isinstance(value, float) and 0 < value < 1):
            raise InvalidInput(
                f"decay is {value!r}, but must lie between 0 and 1.", "Leave it out for the mean of the whole sequence."
            )
    if backend not in get_args(Backend):
        raise InvalidInput(f"There is no backend {backend!r}.", f"The backends are: {', '.join(get_args(Backend))}.")
    if chunk is not None and (not isinstance(chunk, int) or isinstance(chunk, bool) or chunk < 1):
        raise InvalidInput(f"chunk is {chunk!r}, but must be a whole number of at least 1.")
    settings = Settings(rule, bins, decay, backend, chunk)
    return replace(settings, bins=RULES[rule].bins(settings))
