"""States that the caller hands in and gets back."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from tracecompile.capture.copying.copies import share_parameters, tensor_attributes
from tracecompile.capture.copying.registries import registries_redirected
from tracecompile.capture.signature import Parameter, leaf_names, parameters_of, substitute
from tracecompile.capture.tracing.tape import Tape
from tracecompile.errors import ConversionError

STATE_NAMES = re.compile(
    r"^(states?|hiddens?|hid|mem|membranes?|mems|h|c|v|u|z|s|a|b|i|syn|syns|spk|spks|spikes?|carry|trace|adapt\w*|i_syn|v_mem|"
    r"(prev|last|old)_\w+|\w+_(states?|mem|prev|old|hidden)|(h|c|v|u|s|i|mem|syn|spk|state|hidden)_?\d*)$"
)
Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class StateArguments:
    """Which arguments are states, and where they come back.

    Attributes:
        first: The call in which the model makes its own states, where it can; else the user's call.
        steady: The call with every state handed in.
        leaves: Positions of the states among the leaves of ``steady``.
        results: Positions of the next states among the leaves of the return value, in the same order.
        names: Name of each leaf of ``steady``.
        missing: Parameters that ``first`` leaves to the model.
        makes_own: Whether the model can make its states itself.
    """

    model: nn.Module
    first: Call
    steady: Call
    leaves: tuple[int, ...] = ()
    results: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    missing: tuple[Parameter, ...] = ()
    makes_own: bool = True

    def filled(self, first: Tape) -> StateArguments:
        """Takes the states that the first run returned as those of the steady call."""
        if not self.missing or not isinstance(first.result, (tuple, list)) or len(first.result) < 2:
            return self
        items = list(first.result)
        places = self.places(len(items))
        chosen = [items[place] for place in places]
        if not chosen or not all(
            any(isinstance(leaf, fx.Node) for leaf in pytree.tree_leaves(item)) for item in chosen
        ):
            return self
        values = [
            pytree.tree_map(lambda leaf: leaf.meta["val"].clone() if isinstance(leaf, fx.Node) else leaf, item)
            for item in chosen
        ]
        steady = substitute(
            *self.steady, {parameter.key: value for parameter, value in zip(self.missing, values, strict=True)}
        )
        return located(replace(self, steady=steady), tuple(parameter.name for parameter in self.missing), items, places)

    def places(self, count: int) -> list[int]:
        """Returns which of so many results become the missing states: those of their names, else the last ones."""
        returned = returned_names(self.model, count)
        names = [parameter.name for parameter in self.missing]
        if all(returned.count(name) == 1 for name in names):
            return [returned.index(name) for name in names]
        return list(range(count - len(names), count)) if len(names) < count else []


def located(arguments: StateArguments, names: tuple[str, ...], items: list[Any], places: list[int]) -> StateArguments:
    """Notes where the named state parameters, and the items of the result that they become, stand among the leaves."""
    parameters = {parameter.name: parameter for parameter in parameters_of(arguments.model, *arguments.steady)}
    offsets = [len(pytree.tree_leaves(items[:place])) for place in range(len(items))]
    leaves = tuple(leaf for name in names for leaf in parameters[name].leaves)
    results = tuple(offsets[place] + leaf for place in places for leaf in range(len(pytree.tree_leaves(items[place]))))
    return replace(
        arguments, leaves=leaves, results=results, names=tuple(leaf_names(arguments.model, *arguments.steady))
    )


def find_state_arguments(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StateArguments:
    """Finds the arguments that come back as results of the same structure."""
    call = (args, kwargs)
    parameters = parameters_of(model, args, kwargs)
    absent = [item for item in parameters if item.value is None and (item.given or item.default is None)]
    if absent:
        chosen = likely_states(model, absent)
        return StateArguments(model, call, call, names=tuple(leaf_names(model, *call)), missing=tuple(chosen))
    copy = share_parameters(model)
    before = remembered(copy)
    with torch.no_grad(), registries_redirected(copy):
        result = copy(*fresh(args), **fresh(kwargs))
    pairs = match_states(model, parameters, result, keeps_state=remembered(copy) != before)
    names = tuple(leaf_names(model, *call))
    if not pairs:
        return StateArguments(model, call, call, names=names)
    leaves = tuple(leaf for parameter, _ in pairs for leaf in parameter.leaves)
    results = tuple(position for _, positions in pairs for position in positions)
    optional = all(parameter.default is None for parameter, _ in pairs)
    first = substitute(args, kwargs, {parameter.key: None for parameter, _ in pairs}) if optional else call
    return StateArguments(model, first, call, leaves, results, names, makes_own=optional)


def likely_states(model: nn.Module, absent: list[Parameter]) -> list[Parameter]:
    """Returns which parameters that are None at first are states: by their names, by what is returned, or all."""
    named = [item for item in absent if STATE_NAMES.match(item.name)]
    if named:
        return named
    returned = set(returned_names(model))
    return [item for item in absent if item.name in returned] or (absent if len(absent) == 1 else [])


def remembered(model: nn.Module) -> dict[str, Any]:
    """Notes what a model remembers, apart from the statistics of torch's own layers."""
    own = {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        if type(module).__module__.startswith("torch.nn.")
        for name in module._buffers
    }
    return {name: (id(value), value._version) for name, value in tensor_attributes(model) if name not in own}


def fresh(value: Any) -> Any:
    """Returns arguments whose tensors the model may write."""
    return pytree.tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf, value)


Pair = tuple[Parameter, tuple[int, ...]]


def match_states(model: nn.Module, parameters: list[Parameter], result: Any, keeps_state: bool) -> list[Pair]:
    """Pairs each state parameter with the leaves of the result in which it comes back."""
    items = list(result) if isinstance(result, (tuple, list)) and not hasattr(result, "_fields") else [result]
    offsets = [len(pytree.tree_leaves(items[:position])) for position in range(len(items))]
    returned = returned_names(model, len(items))
    pairs: list[Pair] = []
    free = set(range(len(items)))
    candidates = [
        item for item in parameters if item.given and any(same_structure(item.value, other) for other in items)
    ]
    states = [item for item in candidates if item.name in returned or is_state(item, parameters)]
    states = with_aligned(states, parameters, items, returned, keeps_state)
    for parameter in reversed(states):
        fitting = [position for position in sorted(free) if same_structure(parameter.value, items[position])]
        if not fitting:
            raise ConversionError(
                f"The argument {parameter.name} looks like a state, but more states go in than come back.",
                "Return every state from forward, in the order of the arguments.",
            )
        exact = [position for position in fitting if returned[position] == parameter.name]
        position = exact[0] if exact else fitting[-1]
        free.discard(position)
        count = len(pytree.tree_leaves(items[position]))
        pairs.append((parameter, tuple(range(offsets[position], offsets[position] + count))))
    return pairs[::-1]


def with_aligned(
    states: list[Parameter], parameters: list[Parameter], items: list[Any], returned: list[str], keeps_state: bool
) -> list[Parameter]:
    """Adds the arguments that stand among the arguments where a result of their shape stands among the results.

    That is how states are handed on whose names say nothing. An input may stand there as well, so the order has to be
    that of the states known by name; where none is, the model must have no other state, and no result but those.
    """
    given = [item for item in parameters if item.given]
    shift = len(items) - len(given)
    known = {item.name for item in states}
    moved = [
        item.name in returned and returned.index(item.name) != place + shift
        for place, item in enumerate(given)
        if item.name in known
    ]
    if any(moved):
        return states
    if not known and (keeps_state or shift < 0):
        return states
    aligned = [
        item
        for place, item in enumerate(given)
        if place > 0
        and 0 < place + shift < len(items)
        and same_structure(item.value, items[place + shift])
        and returned[place + shift] in ("", item.name)
    ]
    if not known and len(aligned) != len(given) - 1:
        return states
    return [item for item in given if item in states or item in aligned]


def is_state(parameter: Parameter, parameters: list[Parameter]) -> bool:
    """Tells a state from an input that merely has an output's shape."""
    if not isinstance(parameter.value, torch.Tensor):
        return True
    return bool(STATE_NAMES.match(parameter.name)) and (parameter is not parameters[0] or len(parameters) > 1)


def same_structure(first: Any, second: Any) -> bool:
    """Tells whether two values have the same pytree and the same shapes, with at least one tensor."""
    leaves, spec = pytree.tree_flatten(first)
    others, other_spec = pytree.tree_flatten(second)
    if spec != other_spec or not any(isinstance(leaf, torch.Tensor) for leaf in leaves):
        return False
    return all(
        isinstance(other, torch.Tensor) and leaf.shape == other.shape
        if isinstance(leaf, torch.Tensor)
        else type(leaf) is type(other)
        for leaf, other in zip(leaves, others, strict=True)
    )


def returned_names(model: nn.Module, count: int | None = None) -> list[str]:
    """Returns the variable names in forward's last return statement ("" for what is no plain name).

    With a count, all are "" where the statement has another number of elements.
    """
    nothing = [""] * (count or 0)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(type(model).forward)))
    except (OSError, TypeError, SyntaxError):
        return nothing
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.Return) and node.value is not None]
    if not statements:
        return nothing
    value = max(statements, key=lambda node: node.lineno).value
    elements = value.elts if isinstance(value, ast.Tuple) else [value]
    names = [element.id if isinstance(element, ast.Name) else "" for element in elements]
    return names if count is None or len(names) == count else nothing
