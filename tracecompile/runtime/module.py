"""TracedModule: the converted network."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from tracecompile.capture.copying.copies import copy_as_they_are, detach_leftovers
from tracecompile.parallel import gather_for
from tracecompile.program import Settings, StepProgram
from tracecompile.report import ConversionReport
from tracecompile.runtime.programs import Compiler
from tracecompile.runtime.session import Session
from tracecompile.runtime.streaming import advance, stream
from tracecompile.runtime.streams import Step

SHARED = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_state_dict_hooks",
    "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")  # fmt: skip
"""Tables of the model that a converted module has as its own."""


class TracedModule(nn.Module):
    """A model in trace form: its values, trained in memory that does not grow with the number of time steps.

    Made by ``tracecompile.convert``. It has the model's submodules, parameters and buffers (the very same tensors), the
    signature of its forward, and the structure of its result. ``loss.backward()`` runs the local graphs once.
    """

    def __init__(self, model: nn.Module, settings: Settings, compiler: Compiler) -> None:
        """Takes the model, and what compiles it, at the first call at the latest."""
        super().__init__()
        # The model's own tables: what is moved, loaded or replaced here is so there, and the other way round.
        for table in SHARED:
            vars(self)[table] = vars(model)[table]
        self._session = Session(model, settings, compiler, watched=True)

    def compile_with(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Captures and compiles the model from the inputs of one call.

        Raises:
            ConversionError: The model is refused.
        """
        session_of(self).compile_with(args, kwargs)

    @property
    def source(self) -> nn.Module:
        """The user's model: what the programs run on."""
        return self._session.model

    @property
    def program(self) -> StepProgram:
        """What runs calls like the last one, after all passes; ``InvalidInput`` before the model is captured."""
        return self._session.program

    @property
    def report(self) -> ConversionReport:
        """What the compiler found and what it made of it, and which parameters are trained as they are set now."""
        report, executor = self._session.ready.report, self._session.executor
        report = report.of_today({name: parameter.requires_grad for name, parameter in self.named_parameters()})
        return report if executor is None else dataclasses.replace(report, execution=executor.execution())

    @property
    def stages(self) -> list[tuple[str, str]]:
        """The program after capture and after each pass as Python that runs, (pass name, text), in order.

        Each text ends in ``run(model, *arguments)``. Of a pass that changed nothing there is a line that says so.
        """
        return self._session.ready.stages.texts

    @property
    def code(self) -> str:
        """The program after the last pass as Python that runs: the whole text, whether that pass changed it or not."""
        return self._session.ready.stages.code

    # Calls.

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the model.

        Args:
            *args: As the model's forward takes them; batch size, sequence length, dtype and device are free.
            **kwargs: Likewise.

        Returns:
            What the model's forward returns.

        Raises:
            InvalidInput: The arguments do not fit the model.
        """
        if torch.compiler.is_compiling():
            return outside_of_the_compiler(self, args, kwargs)
        return self._session(*args, **kwargs)

    # What a module does, done by the model: it may have its own way.

    @property
    def training(self) -> bool:
        """Whether the model is in training mode."""
        return self.source.training

    @training.setter
    def training(self, mode: bool) -> None:
        if "_session" in vars(self):  # a module is in training when it is made; this one is what its model is
            self.source.training = mode

    def train(self, mode: bool = True) -> TracedModule:
        """Sets the mode as the model's own ``train`` does, which may leave parts of it frozen."""
        self.source.train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TracedModule:
        self.source._apply(fn, recurse)
        return self

    def apply(self, fn: Callable[[nn.Module], None]) -> TracedModule:
        """Calls a function on every module of the model, and on the model last."""
        self.source.apply(fn)
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the state of the model, as the model does."""
        return self.source.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads a state into the model, as the model does."""
        return self.source.load_state_dict(state_dict, strict, assign)

    def __getattr__(self, name: str) -> Any:
        """Returns what the model has under a name that the converted module has no use for."""
        if name == "_session":
            raise AttributeError(name)  # it is being made
        return getattr(self._session.model, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute of the model where it is the model's, and not the converted module's."""
        if name in vars(self) or hasattr(type(self), name) or "_session" not in vars(self):
            super().__setattr__(name, value)
        else:
            owner = self.source if hasattr(self.source, name) else super()
            owner.__setattr__(name, value)

    # State over time.

    def reset(self, samples: Tensor | None = None) -> None:
        """Forgets states and traces: the next call starts a new sequence.

        Args:
            samples: (batch,), boolean: the samples that start afresh, None for all. The others go on. What the steps
                before have taught of these samples still comes with the next backward, as in a model that multiplies
                its states by ``~samples``; steps of a synapse that reads earlier ones (lateral weights, a delay) have
                to be backpropagated or detached before. A net that takes whole sequences starts afresh at every call,
                so that it is for a stream, a model of one step, and one that keeps its states from call to call.

        Raises:
            InvalidInput: It is no mask of this batch, or what it asks for cannot be done; everything stays as it was.
        """
        self._session.reset(samples)

    def detach(self) -> None:
        """Begins a new window of gradients: the states stay, and nothing that comes teaches the steps before.

        ``backward`` through what these steps have returned remains possible.
        """
        self._session.detach()

    def stream(self, steps: Iterable[Any], *, lookahead: int = 1) -> Iterator[Any]:
        """Runs a sequence model one step at a time, in memory that does not grow with their number.

        It goes on from the live states (those of an earlier stream, or of ``restore``); call ``reset`` to start afresh.
        ``backward`` covers the steps since the last one.

        Args:
            steps: Per step, the slice that the model would take out of its sequence (a tuple for several inputs).
            lookahead: How many inputs are taken from ``steps`` at a time and run together, as a chunk of a sequence is:
                values are then the model's up to rounding. No input may depend on outputs of these steps, which is not
                found out. ``backward`` waits until all are given; without lookahead it may come at any point.

        Yields:
            The step's output (a tuple where the model has several): what the model collects over time.

        Raises:
            InvalidInput: The model is a step model (call it instead), computes on its input before the loop, or cannot
                look ahead; the net was changed between outputs of steps that were run together.
        """
        gather_for(self, "_advance")
        return stream(session_of(self), self._advance, steps, lookahead)

    def _advance(self, steps: Sequence[Step], ahead: int) -> list[Any]:
        return advance(session_of(self), steps, ahead)

    def snapshot(self) -> dict[str, Tensor]:
        """Returns the live states and traces as a plain dict of tensors; an empty one before the model is captured.

        Learning signals that were not backpropagated yet are not part of it, nor is the work that ``backend="auto"``
        counts: another process counts anew, and may run eagerly what this one has compiled.
        """
        return self._session.snapshot()

    def restore(self, snapshot: dict[str, Tensor]) -> None:
        """Puts back what ``snapshot`` returned; the run goes on as if it had not been interrupted.

        A caller that hands the states in goes on from those that it kept, which must be the snapshot's.

        Raises:
            InvalidInput: It is no snapshot of this net, or not all of it; says what differs. The net stays as it was.
        """
        self._session.restore(snapshot)

    def __deepcopy__(self, memo: dict[int, Any]) -> TracedModule:
        """Returns a copy that shares nothing and stands before the first step."""
        other = type(self).__new__(type(self))
        memo[id(self)] = other
        detach_leftovers(self.source, memo)
        copy_as_they_are(self, memo)
        other.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return other

    def __repr__(self) -> str:
        """Returns a line, and one for each layer: ``source`` prints the modules, ``report`` all that was found."""
        first = f"{type(self).__name__} of {type(self.source).__name__}: {self.extra_repr()}"
        if not self._session.is_ready:
            return f"{first}; its layers are known from the first call on"
        layers = self._session.ready.report.layers
        return "\n".join([f"{first}, {len(layers)} layer{'s' * (len(layers) != 1)}", *(f"  {each}" for each in layers)])

    def extra_repr(self) -> str:
        """Returns the rule for printing."""
        settings = self._session.settings
        if settings.rule == "exact":
            return f"rule='exact', snapshots={settings.snapshots}"
        return f"rule={settings.rule!r}, bins={settings.bins}"


@_disable_dynamo  # torch.compiler.disable, but for loading the compiler where nobody compiles
def outside_of_the_compiler(net: TracedModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs a converted network that is part of something that torch.compile compiles: by itself, as ever."""
    return session_of(net)(*args, **kwargs)


def session_of(net: TracedModule) -> Session:
    """Returns what runs the calls of a converted network: for diagnostics and tests."""
    return net._session
