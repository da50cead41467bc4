"""Structures of arguments and results (pytree specifications), and signatures, as JSON."""

from __future__ import annotations

import collections
import dataclasses
import inspect
import types
from typing import Any

from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._pytree import TreeSpec

from tracecompile.capture.tracing.results import open_result
from tracecompile.errors import InvalidInput

Json = Any

PLAIN = {"tuple": tuple, "list": list}
KINDS = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.VAR_POSITIONAL,
    inspect.Parameter.KEYWORD_ONLY,
    inspect.Parameter.VAR_KEYWORD,
)
KEYED = {"dict": dict, "OrderedDict": collections.OrderedDict, "SimpleNamespace": types.SimpleNamespace}


def write_tree(spec: TreeSpec) -> Json:
    """Returns a structure as JSON; classes of the user's are written as their names and fields.

    Raises:
        InvalidInput: It holds a container of another kind.
    """
    if spec.is_leaf():
        return None
    below = [write_tree(child) for child in spec.children()]
    kind, context = spec.type, spec.context
    name = getattr(kind, "__name__", "")
    if PLAIN.get(name) is kind:
        return {name: below}
    if KEYED.get(name) is kind and all(isinstance(key, (str, int)) for key in context):
        return {name: below, "keys": list(context)}
    if kind is collections.namedtuple:
        return {"namedtuple": below, "name": context.__name__, "keys": list(context._fields)}
    if dataclasses.is_dataclass(kind):
        return {"dataclass": below, "name": name, "keys": [field.name for field in dataclasses.fields(kind)]}
    raise InvalidInput(
        f"The model takes or returns a {kind.__module__}.{name}, which a saved folder cannot make.",
        "Use tuples, lists, dicts with text as keys, named tuples or dataclasses.",
    )


def read_tree(written: Json) -> TreeSpec:
    """Returns the structure."""
    example = _example(written)
    open_result(nn.Module(), example)
    return pytree.tree_structure(example)


def _example(written: Json) -> Any:
    """Returns an object of the structure, with zeros for leaves."""
    if written is None:
        return 0
    kind = next(iter(written))
    below = [_example(child) for child in written[kind]]
    if kind in PLAIN:
        return PLAIN[kind](below)
    keys = written["keys"]
    if kind == "SimpleNamespace":
        return types.SimpleNamespace(**dict(zip(keys, below, strict=True)))
    if kind in KEYED:
        return KEYED[kind](zip(keys, below, strict=True))
    name = str(written["name"])
    made = collections.namedtuple(name, keys) if kind == "namedtuple" else dataclasses.make_dataclass(name, keys)
    return made(*below)


def write_signature(signature: inspect.Signature) -> Json:
    """Returns the parameters of a ``forward``: name, kind, and the default where it is a plain value."""
    return [
        [parameter.name, int(parameter.kind), *_default(parameter.default)]
        for parameter in signature.parameters.values()
    ]


def _default(value: Any) -> list[Any]:
    if value is inspect.Parameter.empty:
        return []
    if value is None or type(value) in (bool, int, float, str):
        return [value]
    raise InvalidInput(
        f"The model's forward has {value!r} as the default of an argument, which a saved folder cannot make.",
        "Use a number, a text or None.",
    )


def read_signature(written: Json) -> inspect.Signature:
    """Returns the signature."""
    kinds = {int(kind): kind for kind in KINDS}
    return inspect.Signature(
        [
            inspect.Parameter(str(name), kinds[kind], default=default[0] if default else inspect.Parameter.empty)
            for name, kind, *default in written
        ]
    )
