"""One way of training, ready to be run again and again from the same start."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn


class Skipped(Exception):
    """A row that cannot be measured; its text is the reason, which the table shows."""


class Run:
    """Repeats a training step: forward and backward, without an update, so that all runs do the same."""

    def __init__(
        self,
        fresh: Callable[[], nn.Module],
        body: Callable[[nn.Module], None],
        *,
        grows: Callable[[nn.Module], Tensor] | None = None,
        gradient_of: Mapping[str, str] | str | None = "itself",
        note: str = "",
    ) -> None:
        """Takes what to run.

        Args:
            fresh: Returns the module at the start of a sequence; is not timed.
            body: Runs forward and backward; is timed.
            grows: Returns the loss with its graph, where that graph grows with time: its size is predicted before.
            gradient_of: The module's parameters by the names of the model's; "itself" where they have those names;
                None where there is no gradient to be compared.
            note: What the table says about it.
        """
        self._fresh, self._body, self.grows = fresh, body, grows
        self._gradient_of, self.note = gradient_of, note
        self.module: nn.Module | None = None

    @property
    def trains(self) -> bool:
        """Whether a run gives gradients that can be compared with backpropagation through time."""
        return self._gradient_of is not None

    def prepare(self) -> nn.Module:
        """Puts everything back to the start."""
        self.module = self._fresh()
        self.module.zero_grad(set_to_none=True)
        return self.module

    def step(self) -> None:
        """Runs once; ``prepare`` comes before."""
        assert self.module is not None
        self._body(self.module)

    def peak(self) -> int | None:
        """Returns the peak memory, in bytes, of the process that ran; None where that is this one."""
        return None

    def gradients(self) -> dict[str, Tensor | None]:
        """Returns the gradients of the last run by the names of the model's parameters."""
        assert self.module is not None
        if self._gradient_of is None:
            return {}
        found = {name: parameter.grad for name, parameter in self.module.named_parameters()}
        if isinstance(self._gradient_of, str):
            return found
        return {name: found[own] for name, own in self._gradient_of.items()}
