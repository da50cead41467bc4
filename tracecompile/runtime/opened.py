"""What a window was opened with, and backward goes by whatever the model has become until then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from torch import nn

from tracecompile.runtime.watch import Watch


class Opened:
    """A model at one time: its Parameters, its modes, and all else where a watch has it.

    ``torch.func.functional_call`` puts other tensors into its tables while forward runs, and takes them out again
    before backward does.
    """

    def __init__(self, model: nn.Module, watch: Watch | None) -> None:
        """Notes the Parameters and the modes of a model.

        Args:
            model: The model.
            watch: Has looked at it just now; None for one that nobody changes.
        """
        self.watch = watch
        modules = list(model.modules())
        self._modes = [(module, module.training) for module in modules]
        tables = [module._parameters for module in modules]
        self._entries = [(table, name, value) for table in tables for name, value in table.items()]

    @contextmanager
    def put_back(self) -> Iterator[None]:
        """Lets the model be so again while the context is open."""
        modes = [(module, mode, module.training) for module, mode in self._modes if module.training is not mode]
        with nullcontext() if self.watch is None else self.watch.put_back(), self._parameters_put_back():
            try:
                for module, mode, _ in modes:
                    module.training = mode
                yield
            finally:
                for module, _, mode in modes:
                    module.training = mode

    @contextmanager
    def _parameters_put_back(self) -> Iterator[None]:
        gone = [(table, name, value) for table, name, value in self._entries if table.get(name, value) is not value]
        now = [(table, name, table[name]) for table, name, _ in gone]
        try:
            for table, name, value in gone:
                table[name] = value
            yield
        finally:
            for table, name, value in now:
                table[name] = value
