"""What two runs of model and converted module say, and the error where they differ."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, fx

from tracecompile.analysis.parts import parts_of
from tracecompile.capture.copying.fresh_start import library_of
from tracecompile.capture.tracing.build import is_random
from tracecompile.errors import ConversionError, SelfCheckFailed
from tracecompile.program import Settings
from tracecompile.self_check.frozen import find_frozen
from tracecompile.self_check.in_order import Adding
from tracecompile.self_check.inputs import Arguments, Size
from tracecompile.self_check.pair import Pair, Run
from tracecompile.self_check.results import first_difference, layer_of, line_of, made_by, same

ONCE = (
    "What Python decides from a size or a step number (if, max, len, an index) is decided once, at conversion: compute "
    "it with tensor operations from x.shape, or hand in as an input what changes."
)


def decisive(pair: Pair, calls: Sequence[Arguments], learning: bool = True, settings: Settings | None = None) -> Run:
    """Runs both, and once more if they differ and rounding may be the reason: with products added up in another way.

    Where the model computes something for all steps at once and the converted module at each, in one order: if that is
    all the difference, then it is none where the number of rows does not matter. Else of operands in memory of their
    own: a step that the model takes out of a stacked sequence is a tensor of its own in the module.

    Returns:
        The run to judge by. One of the second kind whose results are the same shows that rounding alone differs.

    Raises:
        ModelRefuses: The model does not run on the calls.
    """
    run = pair.run(calls, learning, settings=settings)
    if run.fault is not None:
        return run
    if first_difference(run.expected, run.found) is None and not moved_buffers(pair, run):
        return run
    how = Adding.IN_ORDER if pair.program.stepwise else Adding.OF_OWN_MEMORY
    return pair.run(calls, learning, settings=settings, how=how)


def require_same(pair: Pair, run: Run, at: str = "On the example") -> None:
    """Refuses a module that is not the model in a run of both.

    Raises:
        ConversionError: With the line that makes what differs.
    """
    if isinstance(run.fault, ConversionError) and run.fault.where is not None:
        raise run.fault
    wrong = first_difference(run.expected, run.found)
    if run.fault is not None or wrong is not None:
        node = maker(pair, wrong or 0)
        seen = f"seen in {layer_of(pair.program, node)}" if run.fault is None else f"it fails ({run.fault})"
        raise SelfCheckFailed(
            f"{at} the converted module returns something else than the model, {seen}.",
            "Write a body of the loop that is the same at every step and call.",
            line_of(node),
        ) from run.fault
    require_same_traces(pair, run, at)


def require_same_traces(pair: Pair, run: Run, at: str) -> None:
    """Refuses a module that returns what the model returns, and leaves something else behind.

    Raises:
        SelfCheckFailed: What requires a gradient, running statistics, or the random generator differ.
    """
    if not run.drawn_alike:
        raise SelfCheckFailed(
            f"{at} the converted module draws other random numbers than the model, whatever becomes of them.",
            "Leave out random numbers that are not used; draw those that are before the loop over time.",
            line_of(drawn_at(pair)),
        )
    tensors = [pair for pair in zip(run.expected, run.found, strict=True) if isinstance(pair[0], Tensor)]
    flags = [one.requires_grad == other.requires_grad for one, other in tensors]
    if run.learning and not all(flags):
        node = maker(pair, flags.index(False))
        wanted = tensors[flags.index(False)][0].requires_grad
        raise SelfCheckFailed(
            f"{at} what the model returns {'requires' if wanted else 'is cut off from'} a gradient, and what the "
            f"converted module returns {'does not' if wanted else 'is not'}.",
            "Detach it, or leave it attached, in the step itself.",
            line_of(node),
        )
    for name in moved_buffers(pair, run):
        raise SelfCheckFailed(
            f"{at} the model leaves other values in its buffer {name} than the converted module does.",
            "Move running statistics with torch's own normalisation layers, within the step.",
            next((line_of(node) for node in pair.program.step.graph.nodes if name.startswith(f"{node.target}.")), None),
        )


def moved_buffers(pair: Pair, run: Run) -> list[str]:
    """Returns the buffers that the model moves, states aside, and that the converted module moves otherwise."""
    states = {carry.name for carry in pair.program.carries if not carry.statistic} | set(pair.program.written)
    for path, module in run.reference.named_modules():
        if library_of(module) is not None:
            states |= {f"{path}.{name}" if path else name for name, _ in module.named_buffers()}
    before, found = dict(pair.model.named_buffers()), dict(run.converted.named_buffers())
    return [
        name
        for name, value in run.reference.named_buffers()
        if name not in states
        and name in before
        and name in found
        and not same(value, before[name])
        and not same(value, found[name])
    ]


def maker(pair: Pair, position: int) -> fx.Node | None:
    """Returns the node of the step that makes one leaf of the results of some calls."""
    return made_by(pair.program, position % max(pair.program.result.num_leaves, 1))


def drawn_at(pair: Pair) -> fx.Node | None:
    """Returns where the program draws random numbers, if it does."""
    return next((node for part in parts_of(pair.program) for node in part.graph.nodes if is_random(node)), None)


def require_near(pair: Pair, run: Run, chunk: int) -> None:
    """Refuses a module whose values in chunks are not those of the model, by more than rounding.

    Raises:
        ConversionError: With the line that makes what differs.
    """
    if isinstance(run.fault, ConversionError) and run.fault.where is not None:
        raise run.fault
    node = made_by(
        pair.program, (first_difference(run.expected, run.found) or 0) % max(pair.program.result.num_leaves, 1)
    )
    raise SelfCheckFailed(
        f"With {chunk} steps computed together the converted module returns something else than the model, by more "
        f"than rounding, seen in {layer_of(pair.program, node)}.",
        'Convert with backend="eager" and without a chunk: the steps are then taken one by one.',
        line_of(node),
    ) from run.fault


def require_same_at(
    pair: Pair, run: Run, size: Size, steps: int, calls: Sequence[Arguments], example: Arguments
) -> None:
    """Refuses a module that is not the model at another size than the example's.

    Args:
        pair: What ran.
        run: What came out.
        size: The other size.
        steps: Number of time steps of the example.
        calls: The arguments.
        example: The call that the model was captured from.

    Raises:
        ConversionError: With the line whose value was frozen.
    """
    if run.fault is None and first_difference(run.expected, run.found) is None:
        require_same(pair, run, f"With {size.words()}")
        return
    more = size.steps - steps if size.steps is not None else 0
    frozen = find_frozen(pair.model, pair.program, example, calls[0], more)
    if frozen is None:
        require_same(pair, run, f"With {size.words()}")
        return
    raise SelfCheckFailed(
        f"With {size.words()} {frozen.what}, so what was captured from the example does not fit there.",
        ONCE,
        frozen.where,
    ) from run.fault
