"""The compiler: capture, passes and self-check, in this order. The only caller of all three."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tracecompile.arguments import Arguments, check_tensor
from tracecompile.capture import capture_program
from tracecompile.capture.copying.copies import share_parameters
from tracecompile.capture.copying.owned import resolved_in
from tracecompile.capture.copying.registries import registries_redirected
from tracecompile.capture.loops.lengths import TimeSource
from tracecompile.capture.tracing.alone import ONE_AT_A_TIME
from tracecompile.capture.tracing.source import line_of_failure, line_of_forward
from tracecompile.compiled import Compiled, Request, shape_of, steps_of, training_flags
from tracecompile.diagnostics.describe import describe
from tracecompile.errors import ConversionError, InvalidInput, SourceLine, UnsupportedOperation, UnsupportedState
from tracecompile.kinds import described, first_line, no_fit
from tracecompile.layer_by_layer import by_its_rule, compiled_segments
from tracecompile.passes.pipeline import run_pipeline
from tracecompile.program import StepProgram
from tracecompile.refused import check_model
from tracecompile.runtime.faults import is_from_outside
from tracecompile.runtime.outside import unseen
from tracecompile.runtime.session import Session
from tracecompile.self_check import Checked, check_against_model


def compile(request: Request, earlier: Sequence[Compiled] = ()) -> Compiled:  # noqa: A001 (what it does)
    """Compiles a model from one call of it, and compares what came out with the model.

    Args:
        request: The model and the call.
        earlier: What was compiled of this model for other calls.

    Raises:
        ConversionError: The model is refused.
    """
    # Whatever the mode of the caller: the rules differentiate the step.
    with ONE_AT_A_TIME, torch.inference_mode(False), torch.enable_grad(), unseen(), naming_a_line(request.model):
        args, kwargs = pytree.tree_map(_ordinary, (request.args, request.kwargs))
        request = replace(request, args=args, kwargs=kwargs)
        check_model(request.model)
        compiled = _built_for(request, earlier)
        program = compiled.program
        try:
            return _checked(compiled, request, earlier)
        except UnsupportedOperation:
            raise
        except ConversionError as refusal:
            if program.length_bound or program.time == (None, None):
                raise
            # What is another program at another length may be right as it is at this one.
            try:
                return _checked(build(request, TimeSource(*program.time)), request, earlier)
            except ConversionError as own:
                # That memory grows is the model's business; any other fault shows best at a length that is free.
                raise (own if isinstance(own, UnsupportedOperation) else refusal) from None


def _built_for(request: Request, earlier: Sequence[Compiled]) -> Compiled:
    """Builds a program for a call: for its length alone, where another call has shown that each is another."""
    bound = next((each.program for each in reversed(earlier) if each.program.length_bound), None)
    if bound is not None:
        try:
            return going_again(build(request, TimeSource(*bound.time)), bound.epilogue_again)
        except ConversionError:
            pass  # what says how long this call is may be something else
    return build(request)


def _checked(compiled: Compiled, request: Request, earlier: Sequence[Compiled]) -> Compiled:
    """Compares what was built with the model; returns it with what was found out."""
    args, kwargs = request.args, request.kwargs

    def check(candidate: Compiled) -> Checked:
        session = Session(request.model, request.settings, compile)
        session.use(candidate)
        # What grows with the number of steps does so in the program of any, and each costs two more to compare.
        known = any(each.program.length_bound and each.modes == candidate.modes for each in earlier)
        return check_against_model(session, build_again, args, kwargs, memory=not known)

    try:
        checked = check(compiled)
    except UnsupportedOperation as refusal:
        # What comes after the loop keeps the steps for its derivatives. It need not.
        if (again := with_epilogue_again(compiled, refusal.library or refusal.where)) is None:
            raise
        compiled = again
        checked = check(compiled)
    report = replace(compiled.report, notes=(*compiled.report.notes, *checked.notes))
    return replace(compiled, report=report, shape=shape_of(compiled.program, args, kwargs, checked.batch_axes))


def build_again(session: Session, args: tuple[Any, ...], kwargs: dict[str, Any], source: TimeSource) -> Compiled:
    """Builds the program that a length-bound model of a session has for another length."""
    program = session.program
    request = Request(session.model, args, kwargs, program.asked)
    return going_again(build(request, source), program.epilogue_again)


def with_epilogue_again(compiled: Compiled, where: SourceLine | None) -> Compiled | None:
    """Returns a program whose epilogue keeps nothing for backward; None where the line that keeps is not there.

    Args:
        compiled: A program that keeps something for every time step.
        where: The line that does.
    """
    program = compiled.program
    lines = {node.meta.get("where") for node in program.epilogue.graph.nodes}
    if program.kind == "step" or program.epilogue_again or where is None or where not in lines:
        return None
    return going_again(compiled, where)


def going_again(compiled: Compiled, where: SourceLine | None) -> Compiled:
    """Returns a program whose epilogue backward runs again because of a line; the program itself for None."""
    program = compiled.program.evolve(epilogue_again=where)
    return replace(compiled, program=program, report=describe(program))


def build(request: Request, source: TimeSource | None = None) -> Compiled:
    """Captures a model and runs the passes.

    Args:
        request: The model and the call.
        source: What says how many steps there are, to build the program for this number of them alone.

    Raises:
        ConversionError: The model is refused.
    """
    model, args, kwargs = request.model, request.args, request.kwargs
    for leaf in pytree.tree_leaves((args, kwargs)):
        if isinstance(leaf, Tensor):
            check_tensor("An example input", leaf)
    try:
        captured = capture_program(model, args, kwargs, source)
    except (ConversionError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, TypeError, IndexError, ValueError) as fault:
        raise _does_not_run(model, args, kwargs, fault) from fault
    for name, where in captured.left_over:
        raise UnsupportedState(
            f"The state {name} is left over from an earlier call, with a row for each sample of that call.",
            "Clear it before the model is converted, or give the model a method reset() that does.",
            where,
        )
    program, stages = run_pipeline(compiled_segments(by_its_rule(resolved_in(model, captured), request.settings)))
    stages.run_as_printed()
    arguments = Arguments.of(model, program, args, kwargs)
    if program.length_bound:
        _forget_examples(program)
    return Compiled(
        program,
        stages,
        describe(program),
        arguments,
        modes=training_flags(model) if program.reads_mode else None,
        numbers=arguments.numbers(program.pinned, args, kwargs),
        steps=steps_of(program, args, kwargs),
    )


def _forget_examples(program: StepProgram) -> None:
    """Keeps one time step of the values that the program was captured with: they are as long as the sequence.

    Many programs of this kind may be kept. What is asked of these values from here on is their shape and type.
    """
    parts = [program.prologue, program.epilogue]
    if program.emitted is not None:
        parts += [program.emitted.prologue, program.emitted.arguments, program.emitted.epilogue]

    def shortened(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dim() == 0:
            return value
        axis = min(program.time[0] or 0, value.dim() - 1)
        return value.narrow(axis, 0, min(1, value.shape[axis])).clone().expand(value.shape)

    for node in (node for part in parts for node in part.graph.nodes):
        if "val" in node.meta:
            node.meta["val"] = pytree.tree_map(shortened, node.meta["val"])


def _does_not_run(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], fault: Exception) -> Exception:
    """Tells an input that the model itself cannot take from a fault of the capture, which stays as it is."""
    try:
        (signature := inspect.signature(model.forward)).bind(*args, **kwargs)
    except TypeError as misfit:
        return no_fit(signature, misfit).at(line_of_forward(model))
    try:
        copied = share_parameters(model)
        with torch.no_grad(), torch.random.fork_rng(), registries_redirected(copied):
            copied(*args, **kwargs)
    except (RuntimeError, TypeError, IndexError, ValueError) as own:
        if is_from_outside(own):
            return own
        return InvalidInput(
            f"The model itself cannot run on the example ({described([args, kwargs])}): {first_line(own)}.",
            "Pass an input that it can run on; clear states that it has kept from other inputs.",
            line_of_failure(own),
        )
    return fault


def _ordinary(leaf: Any) -> Any:
    """Returns a leaf that autograd may save: a tensor made in inference mode is none."""
    return leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf


@contextmanager
def naming_a_line(model: nn.Module) -> Iterator[None]:
    """Lets a refusal that has no line name that of the model's forward."""
    try:
        yield
    except InvalidInput:
        raise
    except ConversionError as error:
        raise error.at(line_of_forward(model)) from error.__cause__
