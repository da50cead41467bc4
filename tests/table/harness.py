"""What is checked for every model of the table.

A group of the table is a file ``tests/table/<group>.py`` with a list ``ENTRIES``. Nothing here knows a library: a model
is built, converted from an example of one length and batch size, and compared at others.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pytest
import torch
from models import assert_gradients_close, assert_same_fingerprint, fingerprint, gradients, mean_loss, weighted_loss
from requirements import library
from torch import Tensor, nn
from torch.autograd.function import _SingleLevelFunction
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import tracecompile
from tracecompile.diagnostics.memory import live_state_bytes, saved_bytes
from tracecompile.errors import InvalidInput
from tracecompile.self_check.in_order import adding

EXAMPLE_STEPS, EXAMPLE_BATCH = 5, 2
SIZES = ((6, 3), (11, 1), (5, 4))
SPIKE_OPERATIONS = ("gt", "ge", "lt", "le", "heaviside", "sign", "floor", "round", "greater", "greater_equal")


@dataclass(frozen=True)
class Entry:
    """One model of the table.

    Attributes:
        name: "snntorch: two Leaky layers, explicit state".
        build: Makes the model with fresh weights; the harness seeds, so it is always the same one. It imports its
            library inside.
        example: (steps, batch) -> the arguments of forward, drawn from torch's default generator: of a whole sequence,
            or of one step (``steps`` ignored). What a step model takes after its inputs is state, and is fed back from
            the results after the first.
        kind: Whether forward takes a sequence or one step.
        library: Import name of the library that it needs.
        reset: The library's own reset, where the model keeps state between calls.
        states: Reads the final states of the original where they live in the module (step models).
        inputs: How many leading arguments of a step model are inputs and no states.
        build_for: Builds the model for a number of steps, where the model fixes it; ``build`` is not used then.
        batch: The only batch size that the model takes, if there is one.
        mixes: Whether layers take the whole sequence one after the other: spikes between them are kept, as bits.
        double: Whether gradients are compared in float64 (to 1e-9), else in float32 (to 1e-6).
    """

    name: str
    build: Callable[[], nn.Module]
    example: Callable[[int, int], tuple[Any, ...]]
    kind: Literal["sequence", "step"] = "sequence"
    library: str | None = None
    reset: Callable[[nn.Module], None] | None = None
    states: Callable[[nn.Module], list[Tensor]] | None = None
    inputs: int = 1
    build_for: Callable[[int], nn.Module] | None = None
    batch: int | None = None
    mixes: bool = False
    double: bool = True

    def model(self, steps: int = EXAMPLE_STEPS) -> nn.Module:
        """Returns the model, always with the same weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return self.build_for(steps) if self.build_for is not None else self.build()

    def arguments(self, steps: int, batch: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
        """Returns the arguments of one call, always the same for one seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(100 + seed)
            found = self.example(steps, self.batch or batch)
        return pytree.tree_map(lambda leaf: _cast(leaf, dtype), found)

    def convert(self, model: nn.Module, steps: int = EXAMPLE_STEPS, **options: Any) -> tracecompile.TracedModule:
        """Converts the model from an example of the dtype of its parameters."""
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        steps = steps if self.build_for is not None else EXAMPLE_STEPS
        return tracecompile.convert(model, self.arguments(steps, EXAMPLE_BATCH, seed=50, dtype=dtype), **options)

    def sizes(self) -> Sequence[tuple[int, int]]:
        """Returns the (steps, batch) at which outputs are compared."""
        return SIZES[:1] if self.batch else SIZES


def calls(entry: Entry, steps: int, batch: int, dtype: torch.dtype = torch.float32) -> list[tuple[Any, ...]]:
    """Returns the arguments of the calls that make one sequence."""
    if entry.kind == "sequence":
        return [entry.arguments(steps, batch, dtype=dtype)]
    return [entry.arguments(1, batch, seed=step, dtype=dtype) for step in range(steps)]


def run(entry: Entry, module: nn.Module, given: list[tuple[Any, ...]]) -> Any:
    """Runs a model, or its converted form, over a whole sequence from a fresh start; returns all that it returned."""
    if isinstance(module, tracecompile.TracedModule):
        module.reset()
    elif entry.reset is not None:
        entry.reset(module)
    if entry.kind == "sequence":
        return module(*given[0])
    states: tuple[Any, ...] | None = None
    results = []
    for arguments in given:
        if states is not None:
            arguments = (*arguments[: entry.inputs], *states)
        result = module(*arguments)
        if len(arguments) > entry.inputs:
            states = tuple(result[-(len(arguments) - entry.inputs) :])
        results.append(pytree.tree_map(lambda leaf: leaf, result))  # the model may write into what it returned
    return results


def check_outputs_and_states(entry: Entry) -> None:
    """Outputs, their structure, and final states are those of the model, bit for bit.

    What the model multiplies for all steps at once, and the net step by step, is added up in one order in both.
    """
    for training in (True, False):
        for steps, batch in entry.sizes():
            model = entry.model(steps).train(training)
            net = entry.convert(entry.model(steps), steps).train(training)
            given = calls(entry, steps, batch)
            with adding(bool(net.program.stepwise)):
                for _ in range(2):  # a second sequence shows whether the first one left anything behind
                    expected, actual = run(entry, model, given), run(entry, net, given)
                    assert_equal_trees(actual, expected)
            if entry.states is not None:
                live = [value for name, value in net.snapshot().items() if name.startswith("state|")]
                for state in entry.states(model):
                    assert any(equal(state, other) for other in live), "a final state of the model is none of the net"


def check_gradients(entry: Entry) -> None:
    """The gradients with a bin per step are those of backpropagation through time, for every parameter."""
    steps, batch = 6, 3
    dtype, tolerance = (torch.float64, 1e-9) if entry.double else (torch.float32, 1e-6)
    model, reference = entry.model(steps).to(dtype).train(), entry.model(steps).to(dtype).train()
    net = entry.convert(model, steps, rule="measured", bins=steps)
    given = calls(entry, steps, batch, dtype)
    expected = gradients(reference, weighted_loss(learning(run(entry, reference, given))))
    actual = gradients(model, weighted_loss(learning(run(entry, net, given))))
    assert_gradients_close(actual, expected, rtol=tolerance)
    for name, gradient in actual.items():
        if gradient is None or not gradient.any():
            assert net.report.parameters[name].status == "frozen", f"{name}: no gradient and no explanation"


def check_exact(entry: Entry) -> None:
    """The gradients under the exact rule are those of backpropagation through time, from few snapshots too."""
    steps, batch = 9, 3
    dtype, tolerance = (torch.float64, 1e-10) if entry.double else (torch.float32, 1e-6)
    model, reference = entry.model(steps).to(dtype).train(), entry.model(steps).to(dtype).train()
    net = entry.convert(model, steps, rule="exact", snapshots=2, chunk=1)
    given = calls(entry, steps, batch, dtype)
    expected = gradients(reference, weighted_loss(learning(run(entry, reference, given))))
    actual = gradients(model, weighted_loss(learning(run(entry, net, given))))
    assert_gradients_close(actual, expected, rtol=tolerance)


def check_memory(entry: Entry) -> None:
    """What training keeps does not grow with the number of time steps, and the measure sees it grow in the model."""
    saved, live, original = [], [], []
    for steps in (8, 16):
        net = entry.convert(entry.model(steps), steps).train()
        given = calls(entry, steps, 3)
        with saved_bytes(exclude=[*net.parameters(), *_tensors(given)]) as counter:
            loss = mean_loss(learning(run(entry, net, given)))
        saved.append(counter.bytes)
        live.append(live_state_bytes(net))
        loss.backward()
        model = entry.model(steps).train()
        with saved_bytes(exclude=[*model.parameters(), *_tensors(given)]) as counter:
            kept = mean_loss(learning(run(entry, model, given)))
        original.append(counter.bytes)
        del loss, kept
    if entry.mixes:
        share = (saved[1] - saved[0]) / (original[1] - original[0])
        assert share <= 0.1, f"of what the model saves more at 2T than at T: {share:.0%}"
    else:
        assert saved[0] == saved[1], f"bytes saved for backward at T and 2T: {saved}"
    assert live[0] == live[1], f"bytes of live state at T and 2T: {live}"
    assert original[1] > 1.5 * original[0], f"bytes that the model itself saves at T and 2T: {original}"


def check_live(entry: Entry) -> None:
    """Neurons both fire and stay silent: a comparison of dead networks proves nothing."""
    steps, batch = SIZES[0]
    with SpikeCounter() as counter:
        run(entry, entry.model(steps), calls(entry, steps, batch))
    rate = counter.fired / max(counter.seen, 1)
    assert 0.02 < rate < 0.98, f"{counter.fired} of {counter.seen} thresholds were crossed"


def check_untouched(entry: Entry) -> None:
    """The model, torch and the library's registries are as they were."""
    model = entry.model().train()  # a library's default surrogate is one for all models, in whatever mode they left it
    seen: list[str] = []
    handle = model.register_forward_hook(lambda *_: seen.append("called"))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    given = calls(entry, EXAMPLE_STEPS, EXAMPLE_BATCH)
    run(entry, entry.model(), given)  # what the library loads lazily is loaded now
    before, registries = fingerprint(model), library_globals(entry.library)
    net = entry.convert(model)
    assert_same_fingerprint(before, fingerprint(model))
    assert library_globals(entry.library) == registries, "the conversion left something in a registry of the library"
    run(entry, net.eval(), given)
    assert not model.training, "both are in one mode"
    net.train()
    net.reset()
    assert_same_fingerprint(before, fingerprint(model))
    assert "apply" not in vars(_SingleLevelFunction), "the patch of autograd.Function is still there"
    handle.remove()


def check_saved(entry: Entry) -> None:
    """A saved network comes back with the same values and gradients, bit for bit, with and without its code."""
    net = entry.convert(entry.model()).train()
    dtype = next((p.dtype for p in net.parameters() if p.is_floating_point()), torch.float32)
    given = calls(entry, *(SIZES[-1] if entry.build_for is None else (EXAMPLE_STEPS, EXAMPLE_BATCH)), dtype)
    with TemporaryDirectory() as folder:
        tracecompile.save(net, folder)
        for weights_only in (False, True):
            if weights_only and "value of a neuron" in (Path(folder) / "program.json").read_text():
                # A neuron that is an operator of its library, which is code.
                with pytest.raises(InvalidInput, match=f"It needs {entry.library}."):
                    tracecompile.load(folder, weights_only=True)
                continue
            again = tracecompile.load(folder, weights_only=weights_only).train()
            results = [run(entry, module, given) for module in (net, again)]
            for one, other in zip(*map(_tensors, results), strict=True):
                assert equal(one, other), f"{one} is not {other}"
            expected, found = (
                gradients(module, weighted_loss(learning(result)))
                for module, result in zip((net, again), results, strict=True)
            )
            assert expected.keys() == found.keys()
            assert all(equal(expected[name], found[name]) for name in expected)


CHECKS: dict[str, Callable[[Entry], None]] = {
    "outputs": check_outputs_and_states,
    "gradients": check_gradients,
    "exact": check_exact,
    "memory": check_memory,
    "live": check_live,
    "untouched": check_untouched,
    "saved": check_saved,
}


class SpikeCounter(TorchDispatchMode):
    """Counts the results of comparisons, in autograd Functions too, and of operators that are not torch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.fired = 0
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        namespace, name = func.name().partition(".")[0].split("::")
        if name in SPIKE_OPERATIONS or namespace not in ("aten", "prim", "prims"):
            value = result[0] if isinstance(result, (tuple, list)) else result
            if isinstance(value, Tensor) and value.ndim > 0:
                self.seen += value.numel()
                self.fired += int(value.count_nonzero())
        return result


def library_globals(library: str | None) -> dict[str, Any]:
    """Notes what a library keeps in its modules and classes: containers by their entries, plain values as they are."""
    noted: dict[str, Any] = {}
    for name, module in list(sys.modules.items()):
        if library is None or module is None or name.partition(".")[0] != library:
            continue
        for key, value in list(vars(module).items()):
            noted |= _noted(f"{name}.{key}", value)
            if isinstance(value, type) and getattr(value, "__module__", None) == name:
                for attribute, held in list(vars(value).items()):
                    noted |= _noted(f"{name}.{key}.{attribute}", held)
    return noted


def _noted(name: str, value: Any) -> dict[str, Any]:
    if name.rpartition(".")[2].startswith("__"):
        return {}
    if isinstance(value, (bool, int, float, str)):
        return {name: value}
    if isinstance(value, dict):
        return {name: [(repr(key), id(entry)) for key, entry in value.items()]}
    return {name: [id(entry) for entry in value]} if isinstance(value, (list, set)) else {}


def equal(one: Any, other: Any) -> bool:
    """Compares two leaves bit for bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)


def assert_equal_trees(actual: Any, expected: Any) -> None:
    """Asserts that two results have one structure and the same values, bit for bit."""
    leaves, structure = pytree.tree_flatten(actual)
    others, wanted = pytree.tree_flatten(expected)
    assert structure == wanted, f"{structure} is not {wanted}"
    for one, other in zip(leaves, others, strict=True):
        assert equal(one, other), f"{one} is not {other}"


def learning(result: Any) -> list[Tensor]:
    """Returns the tensors of a result that a loss can be computed from."""
    return [leaf for leaf in _tensors(result) if leaf.is_floating_point() and leaf.requires_grad]


@contextmanager
def needs(entry: Entry) -> Iterator[None]:
    """Skips, with the reason, where the library of an entry is not installed and need not be."""
    if entry.library is not None:
        library(entry.library)
    yield


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _cast(leaf: Any, dtype: torch.dtype) -> Any:
    return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
