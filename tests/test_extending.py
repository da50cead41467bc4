"""What somebody else adds to the compiler, by its protocols alone: a neuron, a rule, a pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from support.oracle import spike
from torch import Tensor, fx, nn

import tracecompile
from tracecompile.layers import Accrual, Layer, Pair
from tracecompile.passes import pipeline
from tracecompile.passes.base import Pass
from tracecompile.program import StepProgram
from tracecompile.rules import RULES, Rule, Signals

STEPS, BATCH, INPUTS, HIDDEN = 9, 3, 4, 6


class Adaptive(nn.Module):
    """A neuron whose threshold rises with every spike and falls back."""

    def __init__(self) -> None:
        super().__init__()
        self.leak = nn.Parameter(torch.tensor(0.8))

    def forward(self, current: Tensor, v: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        v = self.leak * v + current
        z = spike(v - 0.5 - a)
        return z, v - 0.5 * z, 0.9 * a + 0.1 * z


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inp, self.neuron, self.out = nn.Linear(INPUTS, HIDDEN), Adaptive(), nn.Linear(HIDDEN, 2)

    def forward(self, x: Tensor) -> Tensor:
        v = a = x.new_zeros(x.shape[1], HIDDEN)
        total: Any = 0.0
        for x_t in x:
            z, v, a = self.neuron(self.inp(x_t), v, a)
            total = total + self.out(z)
        return total


def drawn() -> tuple[Net, Tensor, Tensor]:
    torch.manual_seed(0)
    return Net().double(), 2 * torch.randn(STEPS, BATCH, INPUTS).double(), torch.randn(BATCH, 2).double()


def gradients(module: nn.Module, x: Tensor, weigh: Tensor) -> dict[str, Tensor]:
    named = {name: value for name, value in module.named_parameters() if value.requires_grad}
    found = torch.autograd.grad((module(x) * weigh).sum(), list(named.values()))
    return dict(zip(named, found, strict=True))


def test_a_neuron() -> None:
    model, x, weigh = drawn()
    net = tracecompile.convert(model, x, bins=STEPS)
    assert torch.equal(net(x), model(x))
    for name, wanted in gradients(model, x, weigh).items():
        torch.testing.assert_close(gradients(net, x, weigh)[name], wanted, rtol=1e-10, atol=1e-12)
        assert wanted.norm() > 0


class Straight(Rule):
    """Every neuron hands on what it receives, as if it were a wire."""

    name: ClassVar[str] = "straight"
    records: ClassVar[bool] = True

    def core(self, program: StepProgram, layer: Layer, trainable: frozenset[str]) -> Wire:
        return Wire()

    def has_flat_parts(self) -> bool:
        return True

    def is_exact(self, bins: int, steps: int) -> bool:
        return False


@dataclass
class Wire:
    graph: None = None
    accruals: tuple[Accrual, ...] = ()
    rows: dict[Pair, int | float] = field(default_factory=dict)
    invariant: bool = False
    kind: str = "wire"
    parts: dict[str, fx.GraphModule] = field(default_factory=dict)
    responses: None = None
    factors: dict[Pair, float] = field(default_factory=dict)

    def record(self, layer: Layer, trained: Sequence[str], learned: Sequence[str], bins: int) -> None:
        return None

    def local(self, layer: Layer, recorded: Any, currents: Any, statics: Mapping[str, Tensor]) -> Wire:
        return self

    def on_currents(self, layer: Layer, signals: Signals, index: int) -> dict[str, Tensor]:
        signal = signals[layer.outputs[0]][index]
        return {} if signal is None else dict.fromkeys(layer.currents, signal)

    def parameter_signals(self, layer: Layer, signals: Signals) -> dict[str, Tensor]:
        return {}


def test_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "straight", Straight())
    model, x, weigh = drawn()
    model.neuron.requires_grad_(False)  # a wire has no leak
    net = tracecompile.convert(model, x, rule="straight")  # type: ignore[arg-type]
    assert torch.equal(net(x), model(x))
    # The signal of every step is the same, and reaches the inputs of all of them.
    weight = (weigh @ model.out.weight).T @ x.sum(0)
    torch.testing.assert_close(gradients(net, x, weigh)["inp.weight"], weight.detach())
    assert "wire" in str(net.report)


class DoublesTheLeak(Pass):
    """Not a pass that anybody needs: it changes one number of the step, and nothing else knows."""

    name: ClassVar[str] = "doubles_the_leak"

    def run(self, program: StepProgram) -> StepProgram:
        graph = fx.Graph()
        graph.output(graph.graph_copy(program.step.graph, values := {}))
        for node in graph.nodes:
            if 0.9 in node.args:
                node.args = tuple(1.8 if each == 0.9 else each for each in node.args)
        assert values
        return program.evolve(step=program.graph_module(graph, "Step"))


def test_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    passes = (DoublesTheLeak(), *pipeline.PIPELINE)
    monkeypatch.setattr(pipeline.run_pipeline, "__defaults__", (passes,))
    model, x, _ = drawn()
    with pytest.raises(tracecompile.ConversionError, match="something else than the model"):
        tracecompile.convert(model, x)
