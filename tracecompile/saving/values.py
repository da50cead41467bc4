"""Values as JSON: a closed set of types, each written so that reading makes it again, bit for bit.

What JSON has itself stands for itself (an array is a tuple); anything else is an object with one key that says what it
is. Data classes, graphs and modules may be shared: each is written once, into a table, and named by its number.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import TreeSpec

from tracecompile.errors import InvalidInput, SourceLine
from tracecompile.printing.comments import short_path
from tracecompile.saving.functions import named, written_name
from tracecompile.saving.records import RECORDS, record_name
from tracecompile.saving.trees import read_tree, write_tree

Json = Any
TORCH_VALUES = (torch.dtype, torch.memory_format, torch.layout)


@dataclasses.dataclass(frozen=True)
class NodeName:
    """Stands for a node among the arguments of another."""

    name: str


class Writer:
    """Writes values; ``shared`` holds what several may refer to, ``tensors`` what JSON is no place for.

    Args:
        names: Of the model's weights, by identity of the tensor.
        parts: Write what is no plain value: graphs and modules, by type.
    """

    def __init__(
        self, names: Mapping[int, str], parts: Mapping[type, tuple[str, Callable[[Writer, Any], Json]]]
    ) -> None:
        self.names, self.parts = names, parts
        self.shared: list[Json] = []
        self.tensors: dict[str, Tensor] = {}
        self._numbers: dict[int, int] = {}
        self._alive: list[Any] = []

    def write(self, value: Any) -> Json:
        """Returns a value as JSON.

        Raises:
            InvalidInput: It is of a type that has no written form.
        """
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if type(value) is tuple:
            return [self.write(item) for item in value]
        written = self._plain(value)
        return self._shared(value) if written is None else written

    def _plain(self, value: Any) -> Json | None:
        if isinstance(value, Tensor):
            return {"tensor": self.tensor(value)}
        if isinstance(value, (torch.Size, fx.immutable_collections.immutable_list, list)):
            return {"size" if isinstance(value, torch.Size) else "list": [self.write(item) for item in value]}
        if isinstance(value, dict):
            return {"dict": [[self.write(key), self.write(item)] for key, item in value.items()]}
        if isinstance(value, (set, frozenset)):
            return {"set": sorted(self.write(item) for item in value)}
        if isinstance(value, (slice, range)):
            parts = (value.start, value.stop, value.step)
            return {type(value).__name__: [self.write(part) for part in parts]}
        if isinstance(value, TORCH_VALUES):
            return {"torch": str(value).removeprefix("torch.")}
        if isinstance(value, torch.device):
            return {"device": str(value)}
        if isinstance(value, complex):
            return {"complex": [self.write(value.real), self.write(value.imag)]}
        if value is Ellipsis:
            return {"ellipsis": True}
        if isinstance(value, TreeSpec):
            return {"tree": write_tree(value)}
        if isinstance(value, NodeName):
            return {"node": value.name}
        name = written_name(value) if callable(value) and not isinstance(value, nn.Module) else None
        return None if name is None else {"function": name}

    def tensor(self, value: Tensor) -> str:
        """Returns the name of a tensor: a weight of the model, or a constant of the program."""
        if id(value) in self.names:
            return self.names[id(value)]
        found = next((name for name, other in self.tensors.items() if other is value), None)
        if found is None:
            found = f"constants.{len(self.tensors)}"
            self.tensors[found] = value
        return found

    def _shared(self, value: Any) -> Json:
        if id(value) not in self._numbers:
            kind = next((kind for kind in self.parts if isinstance(value, kind)), None)
            if kind is not None:
                name, write = self.parts[kind]
                entry = {name: write(self, value)}
            elif dataclasses.is_dataclass(value) and not isinstance(value, type):
                entry = self._record(value)
            else:
                raise InvalidInput(
                    f"The program holds {_described(value)}, which has no written form.",
                    "Import it from where it is defined, convert again, and keep the state_dict instead.",
                )
            self.shared.append(entry)
            self._alive.append(value)
            self._numbers[id(value)] = len(self.shared) - 1
        return {"ref": self._numbers[id(value)]}

    def _record(self, value: Any) -> Json:
        if isinstance(value, SourceLine):
            # Where the file lies is nobody's business, and another place there.
            value = dataclasses.replace(value, file=short_path(value.file), columns=None)
        fields = {
            field.name: self.write(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init
        }
        return {"record": record_name(type(value)), "fields": fields}


class Reader:
    """Reads what a Writer has written.

    Args:
        shared: The table.
        tensors: Weights and constants by name.
        parts: Read what is no plain value, by the key that says what it is.
        imports: Whether a library may be imported for a neuron of its own.
    """

    def __init__(
        self,
        shared: list[Json],
        tensors: Mapping[str, Tensor],
        parts: Mapping[str, Callable[[Reader, Json], Any]],
        imports: bool = True,
    ) -> None:
        self.shared, self.tensors, self.parts, self.imports = shared, tensors, parts, imports
        self._read: dict[int, Any] = {}
        self._kinds: dict[str, Callable[[Json], Any]] = {
            "float": float,
            "tensor": self.tensor,
            "size": lambda items: torch.Size(self.read(items)),
            "list": lambda items: list(self.read(items)),
            "dict": lambda items: {self.read(key): self.read(item) for key, item in items},
            "set": lambda items: frozenset(self.read(items)),
            "slice": lambda parts: slice(*self.read(parts)),
            "range": lambda parts: range(*self.read(parts)),
            "torch": _of_torch,
            "device": torch.device,
            "complex": lambda parts: complex(*self.read(parts)),
            "ellipsis": lambda _: Ellipsis,
            "tree": read_tree,
            "node": NodeName,
            "function": named,
            "ref": self._referred,
        }

    def read(self, written: Json) -> Any:
        """Returns the value.

        Raises:
            InvalidInput: No Writer has written this.
        """
        if isinstance(written, list):
            return tuple(self.read(item) for item in written)
        if not isinstance(written, dict):
            return written
        kind = next(iter(written), "")
        if kind not in self._kinds:
            raise InvalidInput(f"The program holds a {kind!r}, which this version does not know.")
        return self._kinds[kind](written[kind])

    def tensor(self, name: str) -> Tensor:
        """Returns a tensor by its name."""
        if name not in self.tensors:
            raise InvalidInput(f"The weights lack {name}.")
        return self.tensors[name]

    def _referred(self, number: int) -> Any:
        if number not in self._read:
            entry = self.shared[number]
            kind = next(iter(entry))
            if kind == "record":
                fields = {name: self.read(value) for name, value in entry["fields"].items()}
                self._read[number] = RECORDS[entry["record"]](**fields)
            else:
                self._read[number] = self.parts[kind](self, entry[kind])
        return self._read[number]


def _of_torch(name: str) -> Any:
    found = getattr(torch, name, None)
    if not isinstance(found, TORCH_VALUES):
        raise InvalidInput(f"The program names torch.{name}, which is no dtype and no layout.")
    return found


def _described(value: Any) -> str:
    kind = value if isinstance(value, type) or callable(value) else type(value)
    name = getattr(kind, "__qualname__", type(value).__name__)
    return f"{name} of {getattr(kind, '__module__', '')}"
