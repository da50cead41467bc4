"""save() and load(): a converted network as a folder.

weights.safetensors    parameters and buffers, by the names of the state_dict
network.pickle         the model without its weights, the settings, and the call that it is compiled from
report.json            the conversion report
stages/                the program after each pass, as Python that runs
source/                the files that define the model's own classes, used where they cannot be imported
"""

from __future__ import annotations

import inspect
import io
import json
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_unflatten

from tracecompile import compiler
from tracecompile.errors import InvalidInput
from tracecompile.program import example_value
from tracecompile.runtime.module import TracedModule

Key = tuple[str, str, bool]
"""Name of a weight, "parameter" or "buffer", and whether it requires a gradient."""


def save(net: TracedModule, path: str | Path) -> None:
    """Writes a converted network into a folder, which is made where it does not exist; live states are not saved.

    Raises:
        InvalidInput: The network is not captured yet, or the model's class cannot be found again by name.
    """
    report, stages = net.report, net.stages
    program = net.program
    leaves = [example_value(node) for node in program.prologue.graph.nodes if node.op == "placeholder"]
    args, kwargs = tree_unflatten(leaves, program.signature)
    weights = _weights(net)
    pickler = _Pickler({id(value): name for name, value in weights.items()})
    content, modules = pickler.pack((program.root, program.settings, args, kwargs))
    folder = Path(path)
    (folder / "stages").mkdir(parents=True, exist_ok=True)
    (folder / "network.pickle").write_bytes(content)
    save_file(
        {name: value.detach().clone().contiguous() for name, value in weights.items()}, folder / "weights.safetensors"
    )
    _write(folder / "report.json", json.dumps(report.to_dict(), indent=2) + "\n")
    for number, (name, text) in enumerate(stages):
        _write(folder / "stages" / f"{number:02d}_{name}.py", text)
    for name in sorted(modules):
        source = _own_source(name)
        if source is not None:
            _write(folder / "source" / Path(*name.split(".")).with_suffix(".py"), source)


def load(path: str | Path) -> TracedModule:
    """Reads what ``save`` wrote. The folder contains code that is run: load only folders that you trust.

    Raises:
        InvalidInput: It is no such folder, or the code of the model is missing; says which.
    """
    folder = Path(path)
    if not (folder / "network.pickle").is_file() or not (folder / "weights.safetensors").is_file():
        raise InvalidInput(f"{folder} is not a folder written by tracecompile.save.")
    weights = load_file(folder / "weights.safetensors")
    try:
        with (folder / "network.pickle").open("rb") as file, _importable(folder / "source"):
            model, settings, args, kwargs = _Unpickler(file, weights).load()
            net = TracedModule(model, settings, compiler.compile)
            net.compile_with(args, kwargs)
    except (ImportError, AttributeError) as error:
        raise InvalidInput(
            f"The model in {folder} needs code that is not here: {error}.", "Put the module on the Python path."
        ) from error
    return net


class _Pickler(pickle.Pickler):
    """Leaves the weights out, by name, and notes the modules of all classes and functions."""

    def __init__(self, names: dict[int, str]) -> None:
        self.buffer = io.BytesIO()
        super().__init__(self.buffer, protocol=4)
        self.names = names
        self.modules: set[str] = set()

    def pack(self, value: Any) -> tuple[bytes, set[str]]:
        """Returns a pickled value and the names of the modules that it needs."""
        try:
            self.dump(value)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise InvalidInput(
                f"The model cannot be saved: {error}.", "Define its classes at the top level of a module."
            ) from error
        if "__main__" in self.modules:
            raise InvalidInput(
                "The model's class belongs to the script that is running, where nobody else will find it.",
                "Move the class into a module of its own and import it.",
            )
        return self.buffer.getvalue(), self.modules

    def persistent_id(self, value: Any) -> Key | None:
        """Returns the key of a weight, None for all else."""
        if isinstance(value, Tensor):
            name = self.names.get(id(value))
            kind = "parameter" if isinstance(value, nn.Parameter) else "buffer"
            return None if name is None else (name, kind, value.requires_grad)
        if isinstance(value, type) or inspect.isfunction(value):
            self.modules.add(value.__module__)
        return None


class _Unpickler(pickle.Unpickler):
    """Puts the weights back in."""

    def __init__(self, file: Any, weights: dict[str, Tensor]) -> None:
        super().__init__(file)
        self.weights = weights
        self.made: dict[str, Tensor] = {}

    def persistent_load(self, key: Key) -> Tensor:
        """Returns the weight of a key, the same object for the same key."""
        name, kind, trained = key
        if name not in self.made:
            value = self.weights[name]
            self.made[name] = nn.Parameter(value, requires_grad=trained) if kind == "parameter" else value
        return self.made[name]


def _weights(net: nn.Module) -> dict[str, Tensor]:
    return {**dict(net.named_parameters()), **dict(net.named_buffers())}


def _own_source(module: str) -> str | None:
    """Returns the source of a module of the user's, None for one that is installed."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return None
    installed = (
        Path(sys.prefix),
        Path(sys.base_prefix),
        Path(torch.__file__).parent,
        Path(__file__).parent,
    )
    path = Path(file).resolve()
    if path.suffix != ".py" or any(path.is_relative_to(place.resolve()) for place in installed):
        return None
    return path.read_text(encoding="utf-8")


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Makes the modules in a folder importable, after all others."""
    sys.path.append(str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
