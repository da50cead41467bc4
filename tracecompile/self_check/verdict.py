"""What two runs of model and converted module say, and the error where they differ."""

from __future__ import annotations

from collections.abc import Sequence

from tracecompile.errors import ConversionError, SelfCheckFailed
from tracecompile.self_check.inputs import Arguments
from tracecompile.self_check.pair import Pair, Run
from tracecompile.self_check.results import first_difference, layer_of, line_of, made_by, same_results


def require_same(pair: Pair, run: Run, at: str, calls: Sequence[Arguments], example: Arguments | None = None) -> None:
    """Refuses a module that is not the model in a run of both.

    Args:
        pair: What ran.
        run: What came out.
        at: Where that was, for the message ("With 23 time steps").
        calls: The arguments.
        example: The call that the model was captured from, where its sizes are others.

    Raises:
        ConversionError: With the line whose value was frozen, or that makes what differs.
    """
    fault = run.fault
    if fault is None and same_results(run.expected, run.found):
        return
    if isinstance(fault, ConversionError) and fault.where is not None:
        raise fault
    program = pair.program
    wrong = first_difference(run.expected, run.found) % max(program.result.num_leaves, 1)
    node = made_by(program, wrong)
    seen = f"seen in {layer_of(program, node)}" if fault is None else f"it fails: {fault}"
    raise SelfCheckFailed(
        f"{at} the converted module returns something else than the model, {seen}.",
        "Write a body of the loop that is the same at every step and call.",
        line_of(node),
    ) from fault
