"""Draws are made before a step is computed: in every backend, in streams, in second passes, at every kind of call."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from forms.test_draws import DrawsInAnotherOrder, DropsSpikes, Lateral, OneStepOfItsOwn, SpikesByChance, Two
from support.oracle import HIDDEN, INPUTS
from torch import Tensor, nn

import tracecompile

Run = tuple[Tensor, Tensor, dict[str, Tensor]]


def sequence(steps: int = 12, batch: int = 4) -> Tensor:
    return 2 * torch.randn(steps, batch, INPUTS, generator=torch.Generator().manual_seed(steps)).double()


def run(module: nn.Module, model: nn.Module, x: Tensor, seed: int = 5, step: int | None = None) -> Run:
    """Returns what a module returns, where it leaves torch's generator, and the gradients of the model."""
    torch.manual_seed(seed)
    found = module(x)
    state = torch.get_rng_state()
    model.zero_grad()
    (found if step is None else found[step]).sin().sum().backward()
    assert torch.equal(state, torch.get_rng_state()), "backward has drawn"
    return found.detach(), state, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def cosine(one: Run, other: Run) -> float:
    flat = [torch.cat([each[2][name].flatten() for name in one[2]]) for each in (one, other)]
    return float(torch.cosine_similarity(*flat, 0))


def built(kind: type[nn.Module], **options: Any) -> tuple[nn.Module, tracecompile.TracedModule]:
    torch.manual_seed(0)
    model = kind().double()
    return model, tracecompile.convert(model, sequence(6, 2), **options)


@pytest.mark.parametrize("kind", [DropsSpikes, DrawsInAnotherOrder, Lateral])
def test_compiled_code_draws_what_the_model_draws(kind: type[nn.Module]) -> None:
    model, net = built(kind, bins=12, backend="inductor", chunk=4)
    wanted, found = (run(module, model, sequence()) for module in (model, net))
    assert torch.allclose(found[0], wanted[0], rtol=1e-9, atol=1e-12)
    assert torch.equal(found[1], wanted[1])
    for name, gradient in wanted[2].items():
        assert torch.allclose(found[2][name], gradient, rtol=1e-9, atol=1e-9), name


@pytest.mark.parametrize("chunk", [1, 5])
def test_a_second_pass_draws_what_the_first_one_drew(chunk: int) -> None:
    """A loss on one step in the middle of a bin makes backward run the sequence again."""
    model, net = built(DropsSpikes, bins=3, backend="eager", chunk=chunk)
    wanted, found = (run(module, model, sequence(), step=6) for module in (model, net))
    assert cosine(found, wanted) > 0.99
    torch.manual_seed(5)
    found_later = net(sequence())
    torch.rand(100)
    model.zero_grad()
    found_later[6].sin().sum().backward()
    assert all(torch.equal(p.grad, found[2][name]) for name, p in model.named_parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", [DropsSpikes, Lateral])
def test_four_bins_are_near_backpropagation_through_time(kind: type[nn.Module]) -> None:
    model, net = built(kind, bins=4)
    x = sequence(64, 16)
    assert cosine(*(run(module, model, x) for module in (net, model))) > 0.95


def test_another_seed_is_another_mask() -> None:
    model, net = built(DropsSpikes, backend="eager")
    first, again, other = (run(net, model, sequence(), seed)[0] for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_two_nets_in_a_row_draw_what_two_models_in_a_row_draw() -> None:
    model, net = built(DropsSpikes, backend="eager")
    other, net_of_other = built(DrawsInAnotherOrder, backend="eager")
    found = []
    for one, two in ((model, other), (net, net_of_other)):
        torch.manual_seed(1)
        found.append([one(sequence()), two(sequence(7)), one(sequence(3, 1)), torch.rand(3)])
    assert all(map(torch.equal, *found))


def test_without_gradients_it_draws_the_same() -> None:
    model, net = built(DropsSpikes, backend="eager")
    found = []
    for module in (model, net):
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                torch.manual_seed(1)
                found.append(module(sequence()))
    assert all(torch.equal(found[0], each) for each in found)


def test_a_stream_draws_step_by_step() -> None:
    model, net = built(DropsSpikes, backend="eager")
    torch.manual_seed(1)
    wanted = model(sequence())
    torch.manual_seed(1)
    found = torch.stack(list(net.stream(iter(sequence()))))
    assert torch.equal(found, wanted)
    found.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_windows_of_single_steps_draw_on() -> None:
    """Backward after every third step; the gradients are those of the truncated graph."""
    torch.manual_seed(0)
    model = OneStepOfItsOwn().double()
    twin = copy.deepcopy(model)
    net = tracecompile.convert(model, sequence()[0], bins=3)
    drawn = []
    for module, owner in ((twin, twin), (net, model)):
        module.reset()
        torch.manual_seed(2)
        loss: Any = 0.0
        for t, x_t in enumerate(sequence(9)):
            loss = loss + module(x_t).sin().sum()
            if t % 3 == 2:
                loss.backward()
                loss = 0.0
                if module is twin:
                    twin.v, twin.w = twin.v.detach(), twin.w.detach()
        drawn.append(([p.grad for p in owner.parameters() if p.grad is not None], torch.get_rng_state()))
    (wanted, state), (found, state_of_net) = drawn
    assert torch.equal(state, state_of_net)
    assert len(wanted) == len(found) > 0
    assert all(torch.allclose(one, other, rtol=1e-9, atol=1e-11) for one, other in zip(wanted, found, strict=True))


def test_a_mode_is_that_of_each_dropout() -> None:
    """Dropout in evaluation, as it is asked for estimates of uncertainty, and a share that changes."""
    model, net = built(DropsSpikes, backend="eager")

    def same() -> bool:
        return torch.equal(run(net, model, sequence())[0], run(model, model, sequence())[0])

    assert same()
    net.eval()
    assert same()
    assert torch.equal(run(net, model, sequence(), 1)[0], run(net, model, sequence(), 2)[0])
    model.drop.train()
    assert same()
    assert not torch.equal(run(net, model, sequence(), 1)[0], run(net, model, sequence(), 2)[0])
    model.train()
    model.drop.p = 0.7
    assert same()
    model.drop.p = 0.0
    assert same()


class Autocast(Two):
    """Under autocast its currents, and what is drawn like them, have another type than its states."""

    def step(self, x: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        current = self.first(x)
        z, v = self.fire(self.drop(current) + torch.randn_like(current), v)
        q, w = self.fire(self.second(z), w)
        return self.out(q), v, w


def test_it_draws_in_the_type_of_the_call() -> None:
    model = Autocast()
    net = tracecompile.convert(model, torch.randn(6, 2, INPUTS), backend="eager")
    x = 2 * torch.randn(9, 3, INPUTS)
    for on in (False, True, False):
        found = []
        for module in (model, net):
            torch.manual_seed(3)
            with torch.autocast("cpu", torch.bfloat16, enabled=on):
                found.append((module(x), torch.get_rng_state()))
        assert all(map(torch.equal, *found))


class CountsItsVisits(Two):
    """A normalisation on the way to what is drawn, which must be visited once a step."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.after = nn.BatchNorm1d(HIDDEN), nn.Linear(HIDDEN, HIDDEN)

    def step(self, x: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z, v = self.fire(F.dropout(self.after(self.norm(self.first(x))), 0.2, self.training), v)
        q, w = self.fire(self.second(z), w)
        return self.out(q), v, w


def test_the_shapes_of_draws_are_found_without_a_trace() -> None:
    torch.manual_seed(0)
    model = CountsItsVisits()
    twin, calls = copy.deepcopy(model), []
    for module in (model, twin):
        module.first.register_forward_hook(lambda *given: calls.append(1))
    net = tracecompile.convert(model, torch.randn(6, 2, INPUTS), backend="eager")
    with torch.no_grad():
        for batch in (2, 3, 2):
            x = torch.randn(9, batch, INPUTS)
            found = []
            for module in (twin, net):
                calls.clear()
                torch.manual_seed(3)
                found.append(module(x))
            assert torch.equal(*found)
            assert len(calls) == 9
    assert int(model.norm.num_batches_tracked) == 27
    assert torch.equal(model.norm.running_mean, twin.norm.running_mean)


@pytest.mark.parametrize("kind", [DropsSpikes, DrawsInAnotherOrder, Lateral, SpikesByChance])
@pytest.mark.parametrize("chunk", [1, 5])
def test_the_exact_rule_draws_every_piece_again(kind: type[nn.Module], chunk: int) -> None:
    model, net = built(kind, rule="exact", snapshots=2, backend="eager", chunk=chunk)
    wanted, found = (run(module, model, sequence(33)) for module in (model, net))
    assert torch.allclose(found[0], wanted[0], rtol=1e-9, atol=1e-12)
    assert torch.equal(found[1], wanted[1])
    assert wanted[2].keys() == found[2].keys()
    for name, gradient in wanted[2].items():
        assert torch.allclose(found[2][name], gradient, rtol=1e-9, atol=1e-9), name


class Gumbel(Two):
    """What is drawn is differentiated."""

    def step(self, x: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return super().step(F.gumbel_softmax(x @ self.first.weight.T @ self.first.weight, 1.0) + self.drop(x), v, w)


def test_what_cannot_be_drawn_ahead_is_drawn_by_rules_that_go_through_time() -> None:
    for rule in ("exact", "bptt"):
        model, net = built(Gumbel, rule=rule, chunk=4) if rule == "exact" else built(Gumbel, rule=rule)
        wanted, found = (run(module, model, sequence()) for module in (model, net))
        assert torch.equal(found[0], wanted[0])
        assert torch.equal(found[1], wanted[1])
        for name, gradient in wanted[2].items():
            assert torch.allclose(found[2][name], gradient, rtol=1e-9, atol=1e-9), name
