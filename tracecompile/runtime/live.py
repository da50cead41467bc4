"""What a converted module remembers between calls."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

from torch import Tensor

from tracecompile.runtime.differentiable import Flags
from tracecompile.runtime.stored import record_tensors
from tracecompile.runtime.window import Window


class LiveState:
    """States, and the open window of a stream or a step model.

    Attributes:
        states: The states after the last step, in the order of the carries; None at the start of a sequence.
        window: What is being recorded since the last backward.
        flags: Whether each of these states requires a gradient, as the model's own would; None where they say so.
        returned: The states as they were given to the caller, to recognise them when they come back.
        sequence: The window of the last whole sequence, as long as its outputs live.
        pending: What ``restore`` brought for the window that the next step opens.
    """

    def __init__(self) -> None:
        """Starts before the first step."""
        self.window: Window | None = None
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        self.states: Sequence[Tensor] | None = None
        self.flags: Flags | None = None
        self.close_window()
        self.returned: tuple[Tensor, ...] | None = None
        self.pending: dict[str, Tensor] = {}
        self.sequence: weakref.ref[Window] | None = None

    def flags_of(self, states: Sequence[Tensor]) -> Sequence[object]:
        """Returns what says whether each state at the beginning of a step requires a gradient."""
        own = self.states is not None and all(one is other for one, other in zip(states, self.states, strict=True))
        return self.flags if own and self.flags is not None else states

    def close_window(self) -> None:
        """Records nothing more in the open window, if there is one."""
        if self.window is not None:
            self.window.close()
        self.window = None

    def snapshot(self) -> dict[str, Tensor]:
        """Returns copies of the live tensors by name."""
        found = {f"state|{index}": state for index, state in enumerate(self.states or ())}
        if self.window is not None and not self.window.closed:
            found |= {f"window|{name}": tensor for name, tensor in record_tensors(self.window.record).items()}
        else:
            found |= {f"window|{name}": tensor for name, tensor in self.pending.items()}
        sequence = self.sequence() if self.sequence is not None else None
        if sequence is not None and not sequence.closed:
            # Not to be restored, since a sequence ends with its call; but it is held for backward.
            found |= {f"sequence|{name}": tensor for name, tensor in record_tensors(sequence.record).items()}
        return {name: tensor.detach().clone() for name, tensor in found.items()}

    def restore(self, snapshot: dict[str, Tensor]) -> None:
        """Takes over a snapshot."""
        self.clear()
        states = [name for name in snapshot if name.startswith("state|")]
        if states:
            self.states = [snapshot[f"state|{index}"].clone() for index in range(len(states))]
        prefix = "window|"
        self.pending = {name.removeprefix(prefix): t.clone() for name, t in snapshot.items() if name.startswith(prefix)}
