"""convert(): the front door."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from tracecompile import compiler
from tracecompile.errors import InvalidInput
from tracecompile.runtime.module import TracedModule
from tracecompile.settings import BINS, SNAPSHOTS, Backend, Rule, settings_of


def convert(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    rule: Rule = "measured",
    bins: int = BINS,
    decay: float | Mapping[str, float] | None = None,
    backend: Backend = "auto",
    chunk: int | None = None,
    snapshots: int | None = SNAPSHOTS,
) -> TracedModule:
    """Rewrites a spiking network into trace form.

    Args:
        model: Any module that takes a whole sequence or one time step. Conversion leaves it as it is; the result holds
            it, and what is done to one of them is done to both.
        example_inputs: A tensor or a tuple of tensors, like one small training batch; its length and batch size bind
            nothing. None: the model is captured at the first call, from the inputs of that call.
        rule: "measured" records the slope of every neuron, "analytic" computes it from a rate curve, "exact" is
            backpropagation through time whose steps are run again from snapshots, so that memory does not grow with
            their number; "bptt" is ordinary backpropagation through the captured program.
        bins: Time bins of the measured rule for sequences, 4 where it is left out; more bins are closer to
            backpropagation through time. The other rules have none, and a model whose layers take all of their steps
            one after the other (normalisation over time and batch) needs none: its gradient is exact in any case.
        decay: Decay of the input traces: None for the mean of the whole sequence, a float in (0, 1), or a mapping of
            layer names to floats. With a decay there is one bin, so that ``bins`` has no meaning beside it; "exact" and
            "bptt" keep no traces.
        backend: What runs the time steps of a sequence that is trained. "eager" with ``chunk=1`` is the reference:
            values are those of the model, bit for bit. "inductor" compiles the neurons for many steps at once, which
            takes seconds at the first call. "auto" begins as "eager", counts what it is asked for in training, over
            calls, and compiles once that would have paid; the report says when, and which ran. It is a count and no
            clock: two runs of the same calls do the same. A copy, an unpickled and a loaded net count anew.
        chunk: Time steps computed together where the graph allows; None is 1 for the eager backend and up to 32 for
            inductor. Beyond 1, values are equal up to rounding: a spike may differ where its membrane is within
            rounding of the threshold. The exact rule runs so many steps (16 where it is None) with a graph at a time.
        snapshots: Moments whose states the exact rule keeps, 32 where it is left out. With fewer of them the steps are
            run again more often; None keeps as many as one recomputation of every step needs.

    Returns:
        A module with the model's signature, parameters, buffers and state_dict.

    Raises:
        ConversionError: The model is refused, or an option that means nothing, be it beside another one; says where
            and what to write instead.
    """
    settings = settings_of(rule, bins, decay, backend, chunk, snapshots)
    if not isinstance(model, nn.Module):
        raise InvalidInput(
            f"convert takes a torch.nn.Module, not {type(model).__name__}.",
            "Pass a model, not its class; wrap a function in a module.",
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
