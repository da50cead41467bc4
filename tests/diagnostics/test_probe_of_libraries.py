"""Rates that a probe shows, against those counted by hand, for neurons of libraries and of one's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tracecompile
import tracecompile.nn as snn
from tracecompile.errors import InvalidInput

STEPS, BATCH = 30, 6


def events(steps: int = STEPS, batch: int = BATCH, seed: int = 1) -> Tensor:
    return (torch.rand(steps, batch, 5, generator=torch.Generator().manual_seed(seed)) < 0.5).float()


def figures(net: Any, inputs: Any) -> tuple[tracecompile.Probe, list[dict[str, Any]]]:
    found = tracecompile.probe(net, inputs)
    assert "nan" not in str(found)
    return found, json.loads(json.dumps(found.to_dict(), allow_nan=False))["layers"]


class Sequence(nn.Module):
    """Weights, neurons, weights and neurons that never fire; returns the spikes of the first, which it counts."""

    def __init__(self, first: nn.Module, mute: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.deep, self.first, self.mute = nn.Linear(5, 8), nn.Linear(8, 6), first, mute

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.first(3 * self.enter(x))
        return torch.cat([spikes, self.mute(self.deep(spikes))], -1)


def snntorch_layers(**options: Any) -> nn.Module:
    import snntorch

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.enter, self.first = nn.Linear(5, 8), snntorch.Leaky(beta=0.9, **options)
            self.deep, self.mute = nn.Linear(8, 6), snntorch.Synaptic(alpha=0.8, beta=0.9, threshold=1e6)

        def forward(self, x: Tensor) -> Tensor:
            mem, (syn, low), out = self.first.init_leaky(), self.mute.init_synaptic(), []
            for x_t in x:
                spikes, mem = self.first(3 * self.enter(x_t), mem)
                silent, syn, low = self.mute(self.deep(spikes), syn, low)
                out.append(torch.cat([spikes, silent], -1))
            return torch.stack(out)

    return Net()


def spikingjelly_layers() -> nn.Module:
    from spikingjelly.activation_based import neuron

    made = [neuron.LIFNode(step_mode="m"), neuron.IFNode(v_threshold=1e6, step_mode="m")]
    return Sequence(*made)


def sinabs_layers() -> nn.Module:
    import sinabs.layers as layers

    class BatchFirst(Sequence):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.transpose(0, 1)).transpose(0, 1)

    return BatchFirst(layers.LIF(tau_mem=10.0, norm_input=False), layers.IAF(spike_threshold=torch.tensor(1e6)))


LIBRARIES: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "snntorch": ("snntorch", snntorch_layers),
    "snntorch, hard reset": ("snntorch", lambda: snntorch_layers(reset_mechanism="zero")),
    "snntorch, no reset": ("snntorch", lambda: snntorch_layers(reset_mechanism="none")),
    "spikingjelly": ("spikingjelly", spikingjelly_layers),
    "sinabs, several spikes a step": ("sinabs", sinabs_layers),
}


@pytest.mark.parametrize("name", LIBRARIES)
def test_rates_are_those_counted_by_hand_and_a_silent_layer_is_said_to_be_so(name: str) -> None:
    library, make = LIBRARIES[name]
    pytest.importorskip(library)
    model, x = make(), events()
    net = tracecompile.convert(model, events(6, 2), backend="eager")
    found, layers = figures(net, x)
    net.reset()
    spikes = net(x)[..., :8].detach()
    first, mute = (layer for layer in layers if layer["rate"] is not None)
    assert float(spikes.mean()) > 0.01, "a network that fires"
    assert first["rate"] == pytest.approx(float(spikes.mean()), abs=1e-6)
    assert first["silent"] == pytest.approx(float((spikes.sum(0) == 0).double().mean()))
    assert first["saturated"] == pytest.approx(float(((spikes != 0).double().mean(0) > 0.95).double().mean()))
    assert (mute["rate"], mute["silent"]) == (0.0, 1.0)
    silent = [sentence for sentence in found.advice if "100% silent" in sentence]
    assert [sentence.partition(":")[0] for sentence in silent] == [mute["name"]]
    assert any(note.startswith(f"{mute['name']}: no neuron fires") for note in net.report.notes)


spike = snn.sigmoid(4.0)


class Own(nn.Module):
    """Neurons whose spikes are a function of (argument, membrane); counts them by itself."""

    def __init__(self, fires: Callable[[Tensor], Tensor], reads: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.leave = nn.Linear(5, 8), nn.Linear(8, 3)
        self.fires, self.reads = fires, reads
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        v, total = x.new_zeros(x.shape[1], 8), 0.0
        for x_t in x:
            v = 0.9 * v + 3 * self.enter(x_t)
            z = self.fires(v - 0.5)
            v = v - 0.5 * z.detach()
            sent = {"spikes": z, "scaled": 0.25 * z + 1, "graded": z * v, "both": torch.cat([z, v], -1)[:, :8]}
            total = total + self.leave(sent[self.reads])
        return total


def straight_through(u: Tensor) -> Tensor:
    soft = torch.sigmoid(4 * u)
    return (u > 0).to(u.dtype).detach() + soft - soft.detach()


FIRES: dict[str, Callable[[Tensor], Tensor]] = {
    "surrogate": spike,
    "ternary": lambda u: spike(u) - spike(-u - 1.5),
    "straight through": straight_through,
    "comparison": lambda u: (u > 0).float(),
}


@pytest.mark.parametrize("fires", FIRES)
@pytest.mark.parametrize("reads", ["spikes", "scaled", "graded", "both"])
def test_spikes_are_counted_where_they_are_made(fires: str, reads: str) -> None:
    model, x = Own(FIRES[fires], reads), events()
    net = tracecompile.convert(model, events(6, 2), backend="eager")
    _, layers = figures(net, x)
    counted = []
    with torch.no_grad():
        v = torch.zeros(BATCH, 8)
        for x_t in x:
            v = 0.9 * v + 3 * model.enter(x_t)
            counted.append(model.fires(v - 0.5))
            v = v - 0.5 * counted[-1]
    spikes = torch.stack(counted).abs().round()
    (layer,) = (layer for layer in layers if layer["rate"] is not None)
    assert layer["rate"] == pytest.approx(float(spikes.mean()), abs=1e-6)
    assert layer["silent"] == pytest.approx(float((spikes.sum(0) == 0).double().mean()))


class Step(nn.Module):
    """One time step; two inputs where it is asked for."""

    def __init__(self, two: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.beside, self.v = nn.Linear(5, 8), nn.Linear(5, 8), None

    def clear(self) -> None:
        self.v = None

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        if self.v is None:
            self.v = x.new_zeros(x.shape[0], 8)
        u = 0.5 * self.v + 3 * self.enter(x) + (0.0 if y is None else self.beside(y))
        z = spike(u - 0.3)
        self.v = u - z
        return z


def test_every_step_of_an_iterator_is_seen() -> None:
    x = torch.zeros(5, 3, 5)
    x[0] = 5.0  # the first step alone makes neurons fire
    found = []
    for steps in (list(x), iter(list(x)), (x_t for x_t in x), tuple((x_t,) for x_t in x).__iter__(), x):
        net = tracecompile.convert(Step(), x[0], backend="eager")
        torch.manual_seed(0)
        found.append(figures(net, steps)[1])
    model = Step()
    with torch.no_grad():
        true = float(torch.stack([model(x_t) for x_t in x]).mean())
    assert true > 0
    assert found[0][0]["rate"] == pytest.approx(true, abs=1e-6)
    assert all(each == found[0] for each in found)


def test_a_generator_of_tuples_for_a_net_that_was_never_called() -> None:
    x, y = events(), events(seed=2)
    found = []
    for steps in (list(zip(x, y, strict=True)), ((a, b) for a, b in zip(x, y, strict=True))):
        torch.manual_seed(0)
        found.append(figures(tracecompile.convert(Step(), backend="eager"), steps)[1])
    model = Step()
    with torch.no_grad():
        true = torch.stack([model(*step) for step in zip(x, y, strict=True)]).mean()
    assert found[0] == found[1]
    assert found[0][0]["rate"] == pytest.approx(float(true), abs=1e-6)


def test_fewer_steps_than_bins() -> None:
    net = tracecompile.convert(Step(), events()[0], bins=8, backend="eager")
    for steps in (1, 2, 3, 5):
        _, layers = figures(net, list(events(steps)))
        assert layers[0]["rate"] is not None
    sequence = tracecompile.convert(Own(spike, "spikes"), events(6, 2), bins=8, backend="eager")
    for steps in (1, 2, 3):
        assert figures(sequence, events(steps))[1][0]["rate"] is not None


def test_what_cannot_be_told_is_none() -> None:
    net = tracecompile.convert(Own(spike, "spikes"), events(6, 2), bins=1, backend="eager")
    found, (spiking, readout) = figures(net, events())
    assert spiking["drift"] is None, "one bin sees no drift"
    assert (readout["rate"], readout["silent"], readout["saturated"]) == (None, None, None)
    assert " - " in str(found)


def test_steps_are_refused_for_a_model_of_sequences_and_so_is_none_at_all() -> None:
    net = tracecompile.convert(Own(spike, "spikes"), events(6, 2), backend="eager")
    with pytest.raises(InvalidInput, match="whole sequence"):
        tracecompile.probe(net, [events(), events()])
    step = tracecompile.convert(Step(), events()[0], backend="eager")
    with pytest.raises(InvalidInput, match="no step"):
        tracecompile.probe(step, iter([]))


def test_running_statistics_stay_as_they_are() -> None:
    class Normed(Own):
        def __init__(self) -> None:
            super().__init__(spike, "spikes")
            self.enter = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8))

    model = Normed()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    net = tracecompile.convert(model, events(6, 4), backend="eager").train()
    figures(net, events())
    assert before.keys() == net.state_dict().keys()
    for module in (model, net):
        assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
