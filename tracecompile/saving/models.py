"""The model as its programs need it: its modules with their weights, without the code of its classes.

Of a module of torch's own, which a program calls, all is kept that makes it what it is. Any other module holds
parameters, buffers and further modules, and nothing else.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

from tracecompile.capture.tracing.step_mode import is_wrapper
from tracecompile.errors import InvalidInput
from tracecompile.saving.hooks import read_hooks, write_hooks
from tracecompile.saving.values import Json, Reader, Writer

TABLES = frozenset(nn.Module().__dict__)
"""What every module has."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


class Model(nn.Module):
    """A module of a class that is not here: a place for weights, under the class's name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def _get_name(self) -> str:
        return self._name


def write_model(writer: Writer, root: nn.Module, called: Collection[str], read: Collection[str]) -> Json:
    """Returns every module of a model once, by its first path.

    Args:
        writer: Knows the names of the weights.
        root: The model.
        called: Paths of the modules that its programs call.
        read: Paths of the attributes that they read.

    Raises:
        InvalidInput: A program calls a module that cannot be made again.
    """
    paths: dict[nn.Module, list[str]] = {}
    for path, module in root.named_modules(remove_duplicate=False):
        paths.setdefault(module, []).append(path)
    return {
        own[0]: {
            **_write(writer, module, own, not set(called).isdisjoint(own), read),
            "modules": {name: None if child is None else paths[child][0] for name, child in module._modules.items()},
        }
        for module, own in paths.items()
    }


def _write(writer: Writer, module: nn.Module, paths: list[str], is_called: bool, read: Collection[str]) -> Json:
    prefixes = [f"{path}." if path else "" for path in paths]
    return {
        "class": module._get_name(),
        "torch": _class_of(module),
        "training": module.training,
        "plain": _plain(writer, module, paths[0]) if is_called else {},
        "parameters": {
            name: None if value is None else _write_parameter(writer, f"{prefixes[0]}{name}", value)
            for name, value in module._parameters.items()
        },
        "buffers": {
            name: None if value is None else [writer.tensor(value), name not in module._non_persistent_buffers_set]
            for name, value in module._buffers.items()
        },
        "tensors": {
            name: writer.tensor(value)
            for name, value in vars(module).items()
            if isinstance(value, Tensor) and any(f"{prefix}{name}" in read for prefix in prefixes)
        },
    }


def _plain(writer: Writer, module: nn.Module, path: str) -> Json:
    """Returns the attributes that a module of torch's own computes with."""
    if _class_of(module) is None:
        raise InvalidInput(
            f"The program calls {path}, a {type(module).__module__}.{type(module).__name__}, whose code belongs to "
            "its library: a saved folder cannot hold it.",
            f"Keep the state_dict, and convert the model where {type(module).__module__} can be imported.",
        )
    if any(getattr(module, table) for table in HOOKS):
        raise InvalidInput(
            f"The module {path} has hooks, which are code of the program that is running.", "Remove them before save."
        )
    found = {}
    for name, value in vars(module).items():
        if name not in TABLES:
            found[name] = writer.write(value)
    return found


def _class_of(module: nn.Module) -> str | None:
    """Returns the name of torch's class whose forward a module runs, None where it runs its own."""
    kinds = type(module).__mro__ if is_wrapper(module) else type(module).__mro__[:1]
    return next((kind.__name__ for kind in kinds if _torch_class(kind.__name__) is kind), None)


def _torch_class(name: str) -> type[nn.Module] | None:
    found = getattr(nn, name, None)
    return found if isinstance(found, type) and issubclass(found, nn.Module) else None


def _write_parameter(writer: Writer, name: str, value: nn.Parameter) -> Json:
    return [writer.tensor(value), value.requires_grad, write_hooks(writer, name, value)]


def read_model(reader: Reader, written: Json) -> nn.Module:
    """Returns the model, with its weights."""
    made: dict[str, nn.Module] = {}

    def module_of(path: str) -> nn.Module:
        if path not in made:
            made[path] = _read(reader, written[path])
            for name, child in written[path]["modules"].items():
                made[path].add_module(name, None if child is None else module_of(child))
        return made[path]

    return module_of("")


def _read(reader: Reader, written: Json) -> nn.Module:
    kind = _torch_class(str(written["torch"]))
    if kind is None:
        module: nn.Module = Model(str(written["class"]))
    elif issubclass(kind, CONTAINERS):
        module = kind()
    else:
        module = kind.__new__(kind)
        nn.Module.__init__(module)
    for name, value in written["plain"].items():
        if name.startswith("__") or name in TABLES:
            raise InvalidInput(f"The model sets {name}, which no layer of torch has.")
        setattr(module, name, reader.read(value))
    for name, entry in written["parameters"].items():
        module.register_parameter(name, None if entry is None else _parameter(reader, *entry))
    for name, entry in written["buffers"].items():
        value = None if entry is None else reader.tensor(entry[0])
        module.register_buffer(name, value, persistent=entry is None or entry[1])
    for name, key in written["tensors"].items():
        setattr(module, name, reader.tensor(key))
    module.training = written["training"]
    return module


def _parameter(reader: Reader, key: str, learns: bool, hooks: Json) -> nn.Parameter:
    value = reader.tensor(key)
    if not isinstance(value, nn.Parameter):
        raise InvalidInput(f"{key} is no parameter.")
    value.requires_grad_(learns)
    if not value._backward_hooks:  # it may belong to several modules
        read_hooks(reader, hooks, value)
    return value


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Returns parameters and buffers by name, each once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def as_weights(tensors: dict[str, Tensor], written: Json) -> dict[str, Tensor]:
    """Turns those tensors into parameters that are parameters of a model."""
    parameters = [entry for module in written.values() for entry in module["parameters"].values()]
    keys = {entry[0] for entry in parameters if entry is not None}
    return {
        name: nn.Parameter(value, requires_grad=False) if name in keys else value for name, value in tensors.items()
    }
