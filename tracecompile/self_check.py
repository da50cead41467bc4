"""What every conversion ends with: the converted module against the model, on the example, bit for bit.

Both run as deep copies, so that parameters, their hooks, buffers and random numbers stay as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from tracecompile.capture.copying.copies import independent_copy
from tracecompile.capture.copying.fresh_start import start_afresh
from tracecompile.capture.copying.registries import registries_redirected
from tracecompile.capture.loops.lengths import TimeSource
from tracecompile.capture.loops.sequence import first_tensor, resized
from tracecompile.errors import SelfCheckFailed, SourceLine
from tracecompile.program import StepProgram

if TYPE_CHECKING:
    from tracecompile.runtime.module import TracedModule

STEPS = 5
MOST_STEPS = 40
"""Steps of the example over which values are compared; gradients are over ``STEPS``."""
CALLS = 3
MOST_BINS = 10
"""With more bins than this their responses take too much memory for a check, which then asks only for a gradient."""
TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3}
"""How far a gradient with a bin per step may be from backpropagation through time, relative to its norm."""
CANCELS = 1e-3
"""Gradients below this share of the largest one may be nothing but rounding: that of a bias before a norm is."""

ROUNDING = 16
"""Gradients of less than so many units in the last place of the largest one are rounding errors."""

REPORT = "This is a fault of tracecompile, please report it; a model written in another way may convert."


def check_against_model(net: TracedModule, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Compares outputs and gradients of a module that has just been converted with those of the model.

    Raises:
        SelfCheckFailed: A value differs, or a parameter is trained by the model and not by the module; names the layer.
    """
    program = net._ready.program
    require_same_body(net, model, args, kwargs)
    args, kwargs = shortened(program, args, kwargs, STEPS)
    reference, converted = as_before_a_sequence(model, net), copy.deepcopy(net)
    run_stepped(converted)
    steps = STEPS if program.length is None else program.length
    if net._settings.rule == "measured" and net._settings.decay is None and steps <= MOST_BINS:
        converted._settings = replace(net._settings, bins=steps)
    states = random_states()
    with torch.random.fork_rng(), torch.enable_grad():
        with registries_redirected(reference):
            expected = run(reference, program, args, kwargs)
        restore(states)
        found = run(converted, program, args, kwargs)
    require_same_results(program, expected, found)
    bins = converted._settings.bins if net._settings.rule == "measured" and net._settings.decay is None else 0
    require_same_gradients(
        net, (reference, expected), (converted, found), bins >= steps or net._settings.rule == "bptt"
    )


def require_same_body(net: TracedModule, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Compares values over more of the example: a body that changes later on looks the same in a short trace."""
    program = net._ready.program
    if program.kind == "step" or program.length is not None or example_steps(program, args, kwargs) <= STEPS:
        return
    args, kwargs = shortened(program, args, kwargs, MOST_STEPS)
    reference, converted = as_before_a_sequence(model, net), copy.deepcopy(net)
    states = random_states()
    with torch.random.fork_rng(), torch.no_grad():
        with registries_redirected(reference):
            expected = run(reference, program, args, kwargs)
        restore(states)
        found = run(converted, program, args, kwargs)
    require_same_results(program, expected, found)


def as_before_a_sequence(model: nn.Module, net: TracedModule) -> nn.Module:
    """Returns a copy of the model that starts where a converted module does: as its library's reset leaves it."""
    reference = independent_copy(model)
    reference.training = net.training
    start_afresh(reference)
    return reference


def run_stepped(converted: TracedModule) -> None:
    """Makes a module run the reference: larger chunks may round differently."""
    assert converted._executor is not None
    converted._executor.stepped = True


def example_steps(program: StepProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Returns the number of time steps of a sequence model's example; 0 where it does not say."""
    source, first = TimeSource(*program.time), first_tensor(args, kwargs)
    if source.number is not None:
        return int(pytree.tree_leaves((args, kwargs))[source.number])
    return int(first.shape[source.axis]) if first is not None and source.axis is not None else 0


def shortened(
    program: StepProgram, args: tuple[Any, ...], kwargs: dict[str, Any], most: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Cuts the example of a sequence model to a few steps."""
    if example_steps(program, args, kwargs) <= most:
        return args, kwargs
    return resized(args, kwargs, TimeSource(*program.time), most)


def random_states() -> list[Tensor]:
    """Returns the states of the random generators."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])]


def restore(states: list[Tensor]) -> None:
    """Puts back what ``random_states`` returned."""
    torch.set_rng_state(states[0])
    if states[1:]:
        torch.cuda.set_rng_state_all(states[1:])


def run(module: nn.Module, program: StepProgram, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Calls a module once for a sequence, three times in a row for a step; returns the leaves of all results."""
    args, kwargs = pytree.tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, (args, kwargs))
    if program.kind == "sequence":
        return pytree.tree_leaves(module(*args, **kwargs))
    results: list[Any] = []
    for _ in range(CALLS):
        result = module(*args, **kwargs)
        results += pytree.tree_leaves(result)
        args, kwargs = handed_on(program, args, kwargs, result)
    return results


def handed_on(
    program: StepProgram, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Puts the states that a step returned in the place of those that it was given."""
    if not program.explicit_states:
        return args, kwargs
    leaves, spec = pytree.tree_flatten((args, kwargs))
    count = program.signature.num_leaves - len(program.explicit_states)
    if spec == program.signature:
        inputs = [leaf for place, leaf in enumerate(leaves) if place not in program.explicit_states]
    else:  # the first call leaves the states to the model
        inputs = leaves if len(leaves) == count else [leaf for leaf in leaves if leaf is not None]
    if len(inputs) != count:
        return args, kwargs
    returned, remaining = pytree.tree_leaves(result), iter(inputs)
    states = {
        leaf: returned[place] for leaf, place in zip(program.explicit_states, program.explicit_results, strict=True)
    }
    given = [states[k] if k in states else next(remaining) for k in range(program.signature.num_leaves)]
    again: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_unflatten(given, program.signature)
    return again


def require_same_results(program: StepProgram, expected: Sequence[Any], found: Sequence[Any]) -> None:
    """Refuses a module whose results are not those of the model."""
    if len(expected) == len(found) and all(same(one, other) for one, other in zip(expected, found, strict=True)):
        return
    wrong = [k for k, pair in enumerate(zip(expected, found, strict=False)) if not same(*pair)]
    node = made_by(program, wrong[0] % max(program.result.num_leaves, 1) if wrong else 0)
    layer = layer_of(program, node)
    raise SelfCheckFailed(
        f"On the example the converted module returns something else than the model, seen in {layer}.",
        "Write a body of the loop that is the same at every step and call; if it is, please report this.",
        line_of(node),
    )


def same(one: Any, other: Any) -> bool:
    """Compares two results bit for bit; NaN equals NaN."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return type(one) is type(other) and bool(one == other)
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def made_by(program: StepProgram, result: int) -> fx.Node | None:
    """Returns the node of the step that one leaf of the result comes from."""
    placeholders = [node for node in program.epilogue.graph.nodes if node.op == "placeholder"]
    output = next(node for node in reversed(program.epilogue.graph.nodes) if node.op == "output")
    waiting = [leaf for leaf in [output.args[0][result]] if isinstance(leaf, fx.Node)]
    made = next(node for node in reversed(program.step.graph.nodes) if node.op == "output").args[0]
    values = [*made[0], *made[1]]
    while waiting:
        node = waiting.pop()
        if node in placeholders and placeholders.index(node) < len(values):
            made_here: fx.Node = values[placeholders.index(node)]
            return made_here
        waiting += node.all_input_nodes
    return None


def layer_of(program: StepProgram, node: fx.Node | None) -> str:
    """Returns the name of the layer that computes a node."""
    for layer in program.layers:
        if node is not None and (node.name in layer.nodes or node.name in layer.outputs or node.name in layer.states):
            return f"the layer {layer.name}"
    return f"the value {node.name}" if node is not None else "a value that no layer makes"


def line_of(node: fx.Node | None) -> SourceLine | None:
    """Returns the user's line of a node."""
    return None if node is None else node.meta.get("where")


Run = tuple[nn.Module, list[Any]]


def require_same_gradients(net: TracedModule, reference: Run, converted: Run, exact: bool) -> None:
    """Refuses a module that does not train a parameter that the model trains, or (exact) trains it otherwise."""
    try:
        expected = gradients(*reference)
    except RuntimeError:
        return  # the model overwrites in place what autograd needs: it cannot be trained as it is, and so not compared
    found = gradients(*converted)
    report, rule = net.report, net._settings.rule
    largest = max((float(gradient.norm()) for gradient in expected.values() if gradient is not None), default=0.0)
    for name, gradient in expected.items():
        other = found.get(name)
        if gradient is None or not bool(gradient.any()) or not bool(gradient.isfinite().all()):
            continue
        if float(gradient.norm()) <= ROUNDING * torch.finfo(gradient.dtype).eps * largest:
            continue  # nothing but rounding: a bias before a normalisation that subtracts it again
        explained = report.parameters[name].status == "frozen" and bool(report.parameters[name].reason)
        if other is None or not bool(other.any()):
            if rule == "analytic" and (other is not None or explained):
                continue  # a rate curve has flat parts
            raise failed_parameter(net._ready.program, name, "gets no gradient, though the model trains it")
        if exact and float((other - gradient).norm()) > tolerated(gradient, largest):
            raise failed_parameter(net._ready.program, name, "gets another gradient than the model gives it")


def tolerated(gradient: Tensor, largest: float) -> float:
    """Returns the error that rounding may make in a gradient, one that cancels (a bias before a norm) included.

    Under autocast the model's own gradients are those of half precision, which say little at this length.
    """
    if torch.is_autocast_enabled(gradient.device.type):
        return float("inf")
    return TOLERANCE.get(gradient.dtype, float("inf")) * max(float(gradient.norm()), CANCELS * largest)


def gradients(module: nn.Module, results: list[Any]) -> dict[str, Tensor | None]:
    """Returns the gradients of a fixed weighted sum of all results; empty where nothing can be learnt."""
    learning = [leaf for leaf in results if isinstance(leaf, Tensor) and leaf.requires_grad]
    named = {name: value for name, value in module.named_parameters() if value.requires_grad}
    if not learning or not named:
        return {}
    terms = []
    for leaf in learning:
        weights = torch.arange(leaf.numel(), device=leaf.device).mul(0.7).cos().add(0.3)
        terms.append((leaf * weights.to(leaf.dtype).reshape(leaf.shape)).sum())
    found = torch.autograd.grad(torch.stack(terms).sum(), list(named.values()), allow_unused=True)
    return dict(zip(named, found, strict=True))


def failed_parameter(program: StepProgram, name: str, how: str) -> SelfCheckFailed:
    """Makes the error for a parameter; names the layer that holds it."""
    node = next((each for each in program.step.graph.nodes if reads(program, each, name)), None)
    return SelfCheckFailed(
        f"On the example the parameter {name} {how}; it belongs to {layer_of(program, node)}.", REPORT, line_of(node)
    )


def reads(program: StepProgram, node: fx.Node, name: str) -> bool:
    """Tells whether a node is, or is computed with, a parameter."""
    if node.op == "get_attr":
        return str(node.target) == name
    return node.op == "call_module" and name.rpartition(".")[0] == str(node.target)
