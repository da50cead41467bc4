"""The model as its programs need it: the tree of its modules with their weights, without the code of its classes.

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
    """Returns the tree of a model's modules.

    Args:
        writer: Knows the names of the weights.
        root: The model.
        called: Paths of the modules that its programs call.
        read: Paths of the attributes that they read.

    Raises:
        InvalidInput: A program calls a module that cannot be made again.
    """
    return _write(writer, root, "", frozenset(called), frozenset(read))


def _write(writer: Writer, module: nn.Module, path: str, called: frozenset[str], read: frozenset[str]) -> Json:
    prefix = f"{path}." if path else ""
    return {
        "class": module._get_name(),
        "torch": _class_of(module),
        "training": module.training,
        "plain": _plain(writer, module, path, path in called),
        "parameters": {
            name: None if value is None else _write_parameter(writer, f"{prefix}{name}", value)
            for name, value in module._parameters.items()
        },
        "buffers": {
            name: None if value is None else [writer.tensor(value), name not in module._non_persistent_buffers_set]
            for name, value in module._buffers.items()
        },
        "tensors": {
            name: writer.tensor(value)
            for name, value in vars(module).items()
            if isinstance(value, Tensor) and f"{prefix}{name}" in read
        },
        "modules": {
            name: None if child is None else _write(writer, child, f"{prefix}{name}", called, read)
            for name, child in module._modules.items()
        },
    }


def _plain(writer: Writer, module: nn.Module, path: str, is_called: bool) -> Json:
    """Returns the attributes that a module of torch's own computes with."""
    if not is_called:
        return {}
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
    """Returns the tree of modules, with its weights."""
    kind = _torch_class(str(written["torch"]))
    if kind is None:
        module: nn.Module = Model(str(written["class"]))
    elif issubclass(kind, CONTAINERS):
        module = kind()
    else:
        module = kind.__new__(kind)
        nn.Module.__init__(module)
    for name, value in written["plain"].items():
        setattr(module, name, reader.read(value))
    for name, entry in written["parameters"].items():
        module.register_parameter(name, None if entry is None else _parameter(reader, *entry))
    for name, entry in written["buffers"].items():
        value = None if entry is None else reader.tensor(entry[0])
        module.register_buffer(name, value, persistent=entry is None or entry[1])
    for name, key in written["tensors"].items():
        setattr(module, name, reader.tensor(key))
    for name, child in written["modules"].items():
        module.add_module(name, None if child is None else read_model(reader, child))
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
    keys = set(_parameter_keys(written))
    return {
        name: nn.Parameter(value, requires_grad=False) if name in keys else value for name, value in tensors.items()
    }


def _parameter_keys(written: Json) -> list[str]:
    own = [entry[0] for entry in written["parameters"].values() if entry is not None]
    return own + [key for child in written["modules"].values() if child is not None for key in _parameter_keys(child)]
