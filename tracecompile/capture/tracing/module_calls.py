"""Records what stays whole in the program: torch's own modules and the user's surrogate functions."""

from __future__ import annotations

from collections.abc import Callable
from keyword import iskeyword
from typing import Any

import torch
from torch import nn
from torch.autograd import Function
from torch.utils import _pytree as pytree

from tracecompile.capture.tracing.opaque import keeps_memories, steps_recorded
from tracecompile.capture.tracing.operations import OperationRecorder
from tracecompile.capture.tracing.step_mode import is_wrapper
from tracecompile.capture.tracing.surrogates import SLOT, SurrogateLeaf, apply_directly
from tracecompile.capture.tracing.values import plain
from tracecompile.errors import UnsupportedOperation


class CallRecorder(OperationRecorder):
    """Makes one node of each call that is not to be looked into, so that a surrogate gradient is never lost."""

    def record_module(self, module: nn.Module, original: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """Runs a module: torch's own are one node, the user's are traced through."""
        path = self.paths.get(module)
        if isinstance(module, torch.jit.ScriptModule) and not self.paused:
            raise self.refusal(
                UnsupportedOperation,
                "A module compiled by torch.jit cannot be looked into.",
                "Use the module that it was made from.",
            )
        if self.paused or path is None:
            return original(module, *args, **kwargs)
        self.running.append(path)
        try:
            if keeps_memories(module):
                with steps_recorded(self, module, path):
                    return original(module, *args, **kwargs)
            if vars(module).get("training", self.modes[path]) != self.modes[path]:
                # Forward has switched it: what it computes in this mode is written down, not that it is called.
                return original(module, *args, **kwargs)
            if is_wrapper(module):
                return self.record_wrapper(module, path, original, args, kwargs)
            if not path or not self.is_leaf_module(module, path):
                return original(module, *args, **kwargs)
            with self.pause():
                return self.record_leaf_module(module, path, args, kwargs)
        finally:
            self.running.pop()

    def record_wrapper(
        self, module: nn.Module, path: str, original: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """Runs one of torch's modules that a library lets take whole sequences, as a batch of all their steps."""
        whole = module.step_mode == "m" and not isinstance(module, nn.Linear)
        if not whole or kwargs or len(args) != 1:
            with self.pause():
                return self.record_leaf_module(module, path, args, kwargs)
        (sequence,) = args
        flat = sequence.flatten(0, 1)
        with self.pause():
            wanted = original(module, sequence).detach()
            module.step_mode = "s"  # type: ignore[assignment]
            try:
                made = self.record_leaf_module(module, path, (flat,), {})
            finally:
                module.step_mode = "m"  # type: ignore[assignment]
        result = made.unflatten(0, (sequence.shape[0], sequence.shape[1]))
        with self.pause():
            if not torch.equal(result, wanted):
                raise self.refusal(
                    UnsupportedOperation,
                    f"The layer {path} makes something else of a sequence than of its steps.",
                    "Set its step_mode to 's' and call it once a step.",
                )
        return result

    def record_leaf_module(self, module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs one of torch's own modules as one node."""
        keyword = next((part for part in path.split(".") if iskeyword(part)), None)
        if keyword is not None:
            raise self.refusal(
                UnsupportedOperation,
                f"The submodule {path} has a name that is a keyword of Python, which no generated code can spell.",
                f"Give it another name, such as {keyword}_.",
            )
        written = getattr(module, "inplace", False) is True
        if written:
            module.inplace = False  # type: ignore[assignment]
        value = module(*pytree.tree_map(plain, args), **pytree.tree_map(plain, kwargs))
        result = self.write_down("call_module", path, args, kwargs, value)
        if written:
            self.memory.mutate(torch.Tensor.copy_, "copy_", (args[0], result), {})
        return result

    def record_surrogate(self, function: type[Function], args: tuple[Any, ...]) -> Any:
        """Writes down one application of the user's autograd Function as a call of a leaf."""
        if self.paused:
            return apply_directly(function, args)
        with self.pause():
            return self.record_application(function, args)

    def record_application(self, function: type[Function], args: tuple[Any, ...]) -> Any:
        """Runs an autograd Function as one node."""
        plain_args = tuple(plain(arg) for arg in args)
        value = apply_directly(function, plain_args)
        tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
        positions = iter(range(len(tensors)))
        template = tuple(
            (SLOT, next(positions)) if isinstance(arg, torch.Tensor) else ("constant", arg) for arg in plain_args
        )
        return self.write_down("call_module", self.surrogate_target(function, template), tuple(tensors), {}, value)

    def surrogate_target(self, function: type[Function], template: tuple[tuple[str, Any], ...]) -> str:
        """Returns the target of the leaf for a Function and its constants."""
        for target, leaf in self.tape.leaves.items():
            if isinstance(leaf, SurrogateLeaf) and leaf.function is function and leaf.template == template:
                return target
        target = f"spike_{len(self.tape.leaves)}"
        self.tape.leaves[target] = SurrogateLeaf(function, template)
        return target
