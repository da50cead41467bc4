"""The measured rule against its oracles: autograd through time for K = T, the slow reference for K < T."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import models
import oracle_networks as networks
import pytest
import reference
import torch
from hypothesis import given, note, settings
from hypothesis import strategies as st
from oracle_networks import OracleLayer, OracleSpec, oracle_specs
from strategies import Vacuity
from torch import Tensor, nn

import tracecompile
from tracecompile.errors import UnsupportedOperation
from tracecompile.rules.measured.within import HorizonOfBins
from tracecompile.runtime.backward import neumann, solve
from tracecompile.runtime.backward.signals import is_uneven
from tracecompile.runtime.bins import Bins
from tracecompile.runtime.module import session_of

PLAIN = {"lateral": "none"}
LATERAL = {"lateral": "linear"}
DELAYED = {"held": st.sampled_from(networks.DELAYS[1:]), "delay": st.sampled_from([2, 3])}
FAMILIES: dict[str, st.SearchStrategy[OracleSpec]] = {
    "feed-forward": oracle_specs(PLAIN, PLAIN),
    "lateral weights": oracle_specs(LATERAL, LATERAL),
    "several lateral paths": oracle_specs({"lateral": "two"}),
    "recurrence through a convolution": oracle_specs({"lateral": "conv"}, width=st.integers(3, 4)),
    "top-down feedback": oracle_specs(fewest=2, top_down=True),
    "delays": oracle_specs(**DELAYED),
    "delays between layers": oracle_specs(fewest=2, delayed="forward", **DELAYED),
    "delays, lateral weights and feedback": oracle_specs(fewest=2, top_down=True, **DELAYED),
    "weights shared by two layers": oracle_specs(LATERAL, LATERAL, fewest=2, shared="layers"),
    "a weight used twice in a step": oracle_specs(shared="twice", merge=st.sampled_from(["none", "concatenation"])),
    "residual sum": oracle_specs(fewest=2, merge="residual"),
    "concatenation and two inputs": oracle_specs(fewest=2, merge="concatenation", two_inputs=True),
    "pooling": oracle_specs(fewest=2, width=4, pool=st.sampled_from(["max", "avg"])),
    "batch normalisation": oracle_specs(norm=st.sampled_from(["eval", "train"])),
    "one dropout mask per sequence": oracle_specs(mask=True, width=4),
    "chance at every step": oracle_specs(chance=st.sampled_from(networks.CHANCES), width=4),
}
EXAMPLES = 16  # in each of the families: 256 networks


def gradients(spec: OracleSpec, module: nn.Module, outputs: Tensor) -> dict[str, Tensor | None]:
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    loss = networks.loss_of(spec, outputs)
    return dict(zip(trained, torch.autograd.grad(loss, list(trained.values()), allow_unused=True), strict=True))


def assert_close(found: dict[str, Tensor | None], expected: dict[str, Any], rtol: float) -> bool:
    """Asserts that gradients agree, relative to their norms; returns whether any of them is not zero."""
    assert found.keys() == expected.keys()
    live = False
    for name, target in expected.items():
        target = torch.zeros(()) if target is None else target
        value = torch.zeros_like(target) if found[name] is None else found[name]
        assert value.isfinite().all(), f"{name}: not finite"
        error, norm = float((value - target).norm()), float(target.norm())
        assert error <= max(rtol * norm, 1e-12), f"{name}: error {error:.3g} in a gradient of norm {norm:.3g}"
        live |= norm > 0
    return live


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bin_per_step_is_backpropagation_through_time(family: str) -> None:
    vacuity = Vacuity()

    @settings(max_examples=EXAMPLES, derandomize=True, database=None)
    @given(FAMILIES[family])
    def holds(spec: OracleSpec) -> None:
        oracle = networks.build(spec)
        note(oracle.source)
        model = models.pristine(oracle.module)
        net = tracecompile.convert(oracle.module, oracle.inputs, bins=spec.steps).train(spec.training)
        with models.seeded(spec.seed):
            outputs = model(*oracle.inputs)
        with models.seeded(spec.seed):
            found = net(*oracle.inputs)
        assert torch.equal(found, outputs)
        live = assert_close(gradients(spec, net, found), gradients(spec, model, outputs), rtol=1e-9)
        vacuity.count(networks.spikes(spec), live)

    holds()
    vacuity.check()


@pytest.mark.parametrize("family", FAMILIES)
def test_recomputed_from_snapshots_it_is_backpropagation_through_time(family: str) -> None:
    vacuity = Vacuity()

    @settings(max_examples=EXAMPLES, derandomize=True, database=None)
    @given(FAMILIES[family])
    def holds(spec: OracleSpec) -> None:
        oracle = networks.build(spec)
        note(oracle.source)
        model = models.pristine(oracle.module)
        # A piece is a single step, so that few snapshots are used up and filled again.
        net = tracecompile.convert(oracle.module, oracle.inputs, rule="exact", chunk=1).train(spec.training)
        executor = session_of(net).executor
        assert executor is not None
        with models.seeded(spec.seed):
            outputs = model(*oracle.inputs)
        expected = gradients(spec, model, outputs)
        for snapshots in (2, 3, 32):
            executor.program = executor.program.evolve(settings=replace(executor.program.settings, snapshots=snapshots))
            with models.seeded(spec.seed):
                found = net(*oracle.inputs)
            assert snapshots > 2 or torch.equal(found, outputs)
            live = assert_close(gradients(spec, net, found), expected, rtol=1e-10)
        vacuity.count(networks.spikes(spec), live)

    holds()
    vacuity.check()


CORES: dict[str, tuple[Any, int, dict[str, float]]] = {
    "lif": (reference.leaky_integrate_and_fire, 1, {"leak": 0.8, "threshold": 1.0}),
    "adaptive": (
        reference.adaptive_threshold,
        2,
        {"leak": 0.8, "threshold": 1.0, "adaptation": 0.3, "adaptation_leak": 0.7},
    ),
    "synaptic": (reference.second_order_synapse, 2, {"synapse_leak": 0.5, "leak": 0.8, "threshold": 1.0}),
}
READOUT = (lambda reset, detach: reference.leaky_integrator, 1, {"leak": 0.7})


class Stack(nn.Module):
    """A network of the reference as a user would write it: the same cores, in a loop over time."""

    def __init__(self, kinds: list[str], reset: str, detach: bool, lateral: bool, top_down: bool, width: int) -> None:
        super().__init__()
        self.width, self.top_down = width, top_down
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        self.laterals, self.params = nn.ParameterList(), nn.ModuleList()
        self.cores, self.states = [], []
        for index, kind in enumerate(kinds):
            core, states, params = (CORES | {"readout": READOUT})[kind]
            self.cores.append(core(reset, detach))
            self.states.append(states)
            inputs = 3 if index == 0 else width
            self.weights.append(1.2 * torch.randn(width, inputs, dtype=torch.float64))
            self.biases.append(0.3 * torch.rand(width, dtype=torch.float64))
            if lateral and kind != "readout":
                self.laterals.append(0.15 * torch.randn(width, width, dtype=torch.float64))
            spread = 0.9 + 0.2 * torch.rand(width, dtype=torch.float64)
            self.params.append(nn.ParameterDict({name: value * spread for name, value in params.items()}))
        if top_down:
            self.down = nn.Parameter(0.15 * torch.randn(width, width, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        zeros = x.new_zeros(x.shape[1], self.width)
        states = [(zeros,) * count for count in self.states]
        spikes = [zeros for _ in self.states]
        outputs = []
        for t in range(x.shape[0]):
            below, above = x[t], spikes[-1]
            for index, core in enumerate(self.cores):
                current = nn.functional.linear(below, self.weights[index], self.biases[index])
                if index < len(self.laterals):
                    current = current + nn.functional.linear(spikes[index], self.laterals[index])
                if self.top_down and index == 0:
                    current = current + nn.functional.linear(above, self.down)
                params = dict(self.params[index].items())
                states[index], spikes[index] = core(states[index], current, params)
                below = spikes[index]
            outputs.append(below)
        return torch.stack(outputs)

    def reference(self) -> tuple[reference.Network, dict[str, str]]:
        """Returns the network and, by names of its parameters, those of the module's."""
        layers, names = [], {}
        for index, core in enumerate(self.cores):
            lateral = self.laterals[index].detach() if index < len(self.laterals) else None
            down = self.down.detach() if self.top_down and index == 0 else None
            params = {name: value.detach() for name, value in self.params[index].items()}
            weight, bias = self.weights[index].detach(), self.biases[index].detach()
            layers.append(reference.Layer(core, self.states[index], weight, bias, lateral, down, params))
            names |= {f"layer{index}.weight": f"weights.{index}", f"layer{index}.bias": f"biases.{index}"}
            names |= {f"layer{index}.{name}": f"params.{index}.{name}" for name in params}
            names |= {f"layer{index}.lateral": f"laterals.{index}"} if lateral is not None else {}
            names |= {f"layer{index}.topdown": "down"} if down is not None else {}
        return reference.Network(layers), names


def in_time(signal: Tensor, bins: int, loss: str) -> tuple[Tensor, bool]:
    """Returns a signal [T, ...] that falls in time as ``loss`` says, and whether it is taken step by step."""
    edges = Bins.over(len(signal), bins)
    if loss == "even":
        signal = torch.cat([signal[:1] * (i + 1) for i, width in enumerate(edges.widths) for _ in range(width)])
    elif loss != "uneven":
        chosen = -1 if loss == "last step" else len(signal) // 2
        signal = torch.zeros_like(signal).index_copy(0, torch.tensor([chosen % len(signal)]), signal[:1])
    return signal, edges.count < len(signal) and is_uneven(signal, edges)


@pytest.mark.parametrize("settled", [neumann.SETTLED, 0.0])
@pytest.mark.parametrize("recurrence", ["none", "lateral", "top-down"])
def test_fewer_bins_are_what_the_reference_computes(
    recurrence: str, settled: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference takes the most iterations that the runtime would: with a tolerance of zero both are the same.

    It knows nothing of the finite-horizon factor, which test_horizon is about.
    """
    monkeypatch.setattr(HorizonOfBins, "_factors", lambda self, kernel, profile: [torch.ones(1, 9, 9)] * 2)
    monkeypatch.setattr(neumann, "SETTLED", settled)
    exact = recurrence == "none" or settled == 0
    vacuity = Vacuity()
    lateral, top_down = recurrence == "lateral", recurrence == "top-down"

    @settings(max_examples=EXAMPLES // 2, derandomize=True, database=None)
    @given(
        st.lists(st.sampled_from(list(CORES)), min_size=1 + top_down, max_size=2),
        st.sampled_from(["none", "subtract", "zero"]),
        st.booleans(),
        st.integers(5, 8),
        st.integers(2 if recurrence == "none" else 1, 4),  # with one bin, see the finite-horizon factor
        st.sampled_from(["even", "uneven", "last step", "one step"]),
        st.booleans(),
        st.integers(0, 999),
    )
    def holds(
        kinds: list[str], reset: str, detach: bool, steps: int, bins: int, loss: str, readout: bool, seed: int
    ) -> None:
        with models.seeded(seed):
            kinds = [*kinds, "readout"] if readout and not top_down else kinds
            model = Stack(kinds, reset, detach, lateral, top_down, width=3)
            x, signal = (scale * torch.randn(steps, 2, 3, dtype=torch.float64) for scale in (1.5, 1.0))
            signal, by_step = in_time(signal, bins, loss)
        net = tracecompile.convert(model, x, bins=bins)
        outputs = net(x)
        assert torch.equal(outputs, model(x))
        window = session_of(net).window
        found = models.gradients(net, (outputs * signal).sum())
        assert window is not None
        # A second pass places its bins by the signal: where, test_placing says; what it makes of them, the reference.
        assert window.reran == (by_step and loss != "last step")
        edges = list(window.record.bins.edges)
        network, names = model.reference()
        terms = 0 if recurrence == "none" else neumann.MOST_LATERAL_TERMS
        expected = reference.reference_gradients(network, x, signal, edges, terms, by_step=by_step)
        expected = {names[name]: value for name, value in expected.items()}
        live = assert_close(found, expected, rtol=1e-9 if exact else 0.02)
        every = [step.output for history in reference.simulate(network, x) for step in history]
        vacuity.count(torch.stack(every), live)

    holds()
    vacuity.check()


@pytest.mark.parametrize("bins", [1, 4])
def test_large_lateral_weights_never_explode(bins: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand updates. Here backpropagation through time has gradients of norm 200, and no iteration converges."""
    cut_off = []

    def run(solver: solve.Solver, original: Any = solve.Solver.run) -> None:
        original(solver)
        cut_off.append(sum(solver.settling.unsettled.values()))

    monkeypatch.setattr(solve.Solver, "run", run)
    layer = OracleLayer(lateral="linear", reset="subtract_detached", surrogate="closure")
    oracle = networks.build(OracleSpec(layers=(layer, layer), width=8, top_down=True, steps=16))
    net = tracecompile.convert(oracle.module, oracle.inputs, bins=bins)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.startswith(("lat", "down")):
                parameter.mul_(10.0)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    norms, rates = [], []
    for _ in range(1000):
        x = 2 * torch.randn(16, 4, 3, generator=generator, dtype=torch.float64)
        before = [p.detach().clone() for p in net.parameters()]
        optimizer.zero_grad()
        outputs = net(x)
        rates.append(float(outputs.detach().mean()))
        ((outputs.mean(0) - 0.3) ** 2).mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
        norms.append(float(torch.stack([p.grad.norm() for p in net.parameters()]).norm()))
        optimizer.step()
        moved = [float((p.detach() - old).abs().max()) for p, old in zip(net.parameters(), before, strict=True)]
        assert max(moved) < 0.05
    assert sum(count > 0 for count in cut_off) > 500, "the iterations converge: nothing had to be cut off"
    probe = tracecompile.probe(net, oracle.inputs)
    assert max(layer.unsettled for layer in probe.layers) > 0
    assert "cut off" in str(probe)
    assert min(rates) > 0
    assert max(rates) < 1
    assert min(norms) > 0
    assert max(norms) < 10, f"largest gradient norm {max(norms):.3g}"


class DropsEveryStep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        mem = x.new_zeros(x.shape[1], 4)
        outs = []
        for t in range(x.shape[0]):
            mem = 0.8 * mem + self.drop(self.fc(x[t]))
            spk = models.fast_sigmoid(mem - 1.0)
            mem = mem - spk
            outs.append(spk)
        return torch.stack(outs)


def test_a_dropout_mask_per_step_is_exact_in_both_modes() -> None:
    model = DropsEveryStep().double()
    x = 3 * torch.randn(5, 2, 3, dtype=torch.float64)
    net = tracecompile.convert(model, x, bins=5)
    for training in (True, False):
        model.train(training)
        with models.seeded(0):
            outputs = model(x)
        with models.seeded(0):
            found = net(x)
        assert torch.equal(outputs, found)
        expected = models.gradients(model, models.weighted_loss([outputs]))
        assert models.assert_gradients_close(models.gradients(net, models.weighted_loss([found])), expected, rtol=1e-9)


def test_the_analytic_rule_refuses_what_is_drawn_at_every_step() -> None:
    model = DropsEveryStep().double()
    x = 3 * torch.randn(5, 2, 3, dtype=torch.float64)
    with pytest.raises(UnsupportedOperation, match="every step") as caught:
        tracecompile.convert(model, x, rule="analytic")(x).sum().backward()
    assert caught.value.where is not None
    assert caught.value.where.file == __file__
    assert "self.drop(self.fc(x[t]))" in str(caught.value)
    assert torch.equal(tracecompile.convert(model.eval(), x, rule="analytic")(x), model(x))
