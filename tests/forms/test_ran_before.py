"""Models that have already run: a net starts where the model does after its own reset, whatever batch it ran with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from requirements import library
from support.oracle import HIDDEN, INPUTS, OUTPUTS, Program, require_refused, require_right, require_right_or_refused
from support.program import spike
from torch import Tensor, nn

import tracecompile


def ran(batch: int, graph: bool = True) -> Callable[[nn.Module], None]:
    """A few steps, in training or not, left as they are."""

    def prepare(model: nn.Module) -> None:
        with torch.set_grad_enabled(graph):
            for x_t in 2 * torch.randn(4, batch, INPUTS):
                model(x_t)

    return prepare


class OwnState(nn.Module):
    """One step a call; the membrane is an attribute that ``reset`` clears."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, OUTPUTS)
        self.v: Any = None

    def reset(self) -> None:
        self.v = None

    def forward(self, x_t: Tensor) -> Tensor:
        if self.v is None:
            self.v = torch.zeros(x_t.shape[0], HIDDEN, dtype=x_t.dtype)
        v = 0.9 * self.v + self.inp(x_t)
        z = spike(v - 0.8)
        self.v = v - 0.8 * z
        return self.out(z)


class BufferState(OwnState):
    """The membrane is a buffer, made anew for a batch of another size."""

    def __init__(self) -> None:
        super().__init__()
        del self.v
        self.register_buffer("v", torch.zeros(0), persistent=False)

    def reset(self) -> None:
        self.v = torch.zeros(0)

    def forward(self, x_t: Tensor) -> Tensor:
        if self.v.shape[:1] != x_t.shape[:1]:
            self.v = torch.zeros(x_t.shape[0], HIDDEN, dtype=x_t.dtype)
        return super().forward(x_t)


class ListState(OwnState):
    """The states are in a list that starts empty."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Tensor] = []

    def reset(self) -> None:
        self.kept = []

    def forward(self, x_t: Tensor) -> Tensor:
        if not self.kept:
            self.kept = [torch.zeros(x_t.shape[0], HIDDEN, dtype=x_t.dtype)]
        v = 0.9 * self.kept[0] + self.inp(x_t)
        z = spike(v - 0.8)
        self.kept = [v - 0.8 * z]
        return self.out(z)


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.v: Any = 0.0

    def reset_state(self) -> None:
        self.v = 0.0

    def forward(self, current: Tensor) -> Tensor:
        self.v = 0.9 * self.v + current
        z = spike(self.v - 0.7)
        self.v = self.v - 0.7 * z
        return z


class StateInCells(OwnState):
    """Neurons are modules that keep their state, and have a reset of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Cell(), Cell()
        self.between = nn.Linear(HIDDEN, HIDDEN)

    def reset(self) -> None:
        for module in self.modules():
            if isinstance(module, Cell):
                module.reset_state()

    def forward(self, x_t: Tensor) -> Tensor:
        return self.out(self.second(3 * self.between(self.first(3 * self.inp(x_t)))))


FORMS = [OwnState, BufferState, ListState, StateInCells]


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_a_model_that_has_run_starts_after_its_own_reset(form: type[nn.Module], batch: int) -> None:
    require_right(Program(form, step=True, prepare=ran(batch, graph=batch != 2)))


def test_the_report_says_that_states_were_left() -> None:
    model = OwnState()
    ran(3)(model)
    before = model.v.clone()
    net = tracecompile.convert(model, torch.randn(2, INPUTS))
    assert any("held states of an earlier sequence" in note for note in net.report.notes)
    assert torch.equal(model.v, before)


def test_a_reset_that_makes_the_weights_anew_is_not_called() -> None:
    class Redrawn(OwnState):
        def reset(self) -> None:
            nn.init.zeros_(self.inp.weight)
            self.v = None

    model = Redrawn()
    ran(2)(model)
    before = model.inp.weight.clone()
    with pytest.raises(tracecompile.ConversionError):
        tracecompile.convert(model, torch.randn(2, INPUTS))
    assert torch.equal(model.inp.weight, before)


class ClearedFromOutside(OwnState):
    """It has no reset; the user sets the attribute."""

    reset = None  # type: ignore[assignment]


def clear(module: nn.Module) -> None:
    if isinstance(module, ClearedFromOutside):
        module.v = None
    else:
        module.reset()  # type: ignore[operator]


@pytest.mark.parametrize("batch", [2, 3])
def test_a_state_that_nothing_clears_is_refused_where_it_is_read(batch: int) -> None:
    program = Program(ClearedFromOutside, step=True, prepare=ran(batch), begin=clear)
    require_refused(program, line="v = 0.9 * self.v + self.inp(x_t)")


class Loop(OwnState):
    """The same over a sequence, cleared in forward; the last spikes are kept for a plot."""

    def forward(self, x: Tensor) -> Tensor:
        self.reset()
        outs = [super(Loop, self).forward(x_t) for x_t in x]
        self.last = outs[-1].detach()
        return torch.stack(outs)


def test_a_loop_that_has_run_and_learned() -> None:
    require_right(Program(Loop, prepare=lambda model: model(torch.randn(4, 3, INPUTS)).sum().backward()))


# Libraries.


def synaptic() -> nn.Module:
    import snntorch as snn

    net = nn.Sequential(
        nn.Linear(INPUTS, HIDDEN),
        snn.Synaptic(alpha=0.8, beta=0.9, init_hidden=True),
        nn.Linear(HIDDEN, OUTPUTS),
        snn.RLeaky(beta=0.9, linear_features=OUTPUTS, init_hidden=True, output=True),
    )
    with torch.no_grad():
        for layer in (net[0], net[2]):
            layer.weight.mul_(2)  # type: ignore[operator, union-attr]
    return net


def reset_snntorch(module: nn.Module) -> None:
    from snntorch import utils

    utils.reset(module)
    if isinstance(module, tracecompile.TracedModule):
        module.reset()


@pytest.mark.parametrize("batch", [2, 5])
@pytest.mark.parametrize("then_reset", [False, True])
def test_a_snntorch_net_that_has_run(batch: int, then_reset: bool) -> None:
    library("snntorch")

    def prepare(model: nn.Module) -> None:
        ran(batch)(model)
        if then_reset:
            reset_snntorch(model)

    require_right(Program(synaptic, step=True, prepare=prepare, begin=reset_snntorch, precise=False))


def spikingjelly_loop() -> nn.Module:
    from spikingjelly.activation_based import functional, layer, neuron, surrogate

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                layer.Linear(INPUTS, HIDDEN),
                neuron.ParametricLIFNode(v_threshold=0.4, surrogate_function=surrogate.ATan()),
                layer.Linear(HIDDEN, OUTPUTS),
                neuron.LIFNode(v_threshold=0.4, surrogate_function=surrogate.ATan()),
            )

        def forward(self, x: Tensor) -> Any:
            functional.reset_net(self.net)
            out: Any = 0
            for x_t in x:
                out = out + self.net(2 * x_t)
            return out / x.shape[0]

    return Loop()


def test_a_spikingjelly_loop_that_has_run_and_learned() -> None:
    library("spikingjelly")
    program = Program(
        spikingjelly_loop, prepare=lambda model: model(torch.randn(4, 3, INPUTS)).sum().backward(), precise=False
    )
    assert require_right_or_refused(program) == "right"
