"""The manners of a converted module: streams, snapshots, copies, precision, and what autograd expects of a module."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

import tracecompile
from tracecompile import nn as snn
from tracecompile.runtime.module import session_of


class Recurrent(nn.Module):
    """A lateral layer and a leaky readout, over a whole sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.readout = nn.Linear(4, 8), nn.Linear(8, 3)
        self.neurons, self.integrator = snn.RLIF(8, surrogate=snn.sigmoid(4.0), learn_leak=True), snn.LI(leak=0.9)

    def forward(self, x: Tensor) -> Tensor:
        state, membrane, outputs = None, None, []
        for t in range(x.shape[0]):
            spikes, state = self.neurons(self.below(x[t]), state)
            output, membrane = self.integrator(self.readout(spikes), membrane)
            outputs.append(output)
        return torch.stack(outputs)


def make(
    steps: int, bins: int = 4, dtype: torch.dtype = torch.float64
) -> tuple[Recurrent, tracecompile.TracedModule, Tensor]:
    torch.manual_seed(3)
    model = Recurrent().to(dtype)
    x = 3 * torch.randn(steps, 5, 4, dtype=dtype)
    return model, tracecompile.convert(model, x, bins=bins), x


def gradients(net: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(net.parameters())))


def test_a_stream_has_the_outputs_of_the_sequence() -> None:
    model, net, x = make(12)
    streamed = torch.stack([output.detach() for output in net.stream(x)])
    assert torch.equal(streamed, model(x))
    assert streamed.abs().sum() > 0


@pytest.mark.parametrize("steps", [4, 8, 16])
def test_a_stream_has_the_gradients_of_the_sequence_where_the_bins_are_the_same(steps: int) -> None:
    _, net, x = make(steps)
    # The same weights within each bin: a sequence takes a loss that varies within its bins step by step.
    weights = torch.randn(4, 5, 3, dtype=x.dtype).repeat_interleave(steps // 4, dim=0)
    expected = gradients(net, (net(x) * weights).sum())
    found = gradients(net, sum((o * w).sum() for o, w in zip(net.stream(x), weights, strict=True)))
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        assert a.norm() > 0


def test_a_stream_with_a_bin_per_step_is_backpropagation_through_time() -> None:
    model, net, x = make(7, bins=8)
    weights = torch.randn(7, 5, 3, dtype=x.dtype)
    expected = gradients(model, (model(x) * weights).sum())
    found = gradients(net, sum((o * w).sum() for o, w in zip(net.stream(x), weights, strict=True)))
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_backward_in_a_stream_covers_the_steps_since_the_last_one() -> None:
    model, net, x = make(8, bins=8)
    found = []
    outputs: list[Tensor] = []
    for t, output in enumerate(net.stream(x)):
        outputs.append(output)
        if t in (3, 7):
            found.append(gradients(net, torch.stack(outputs).sum()))
            outputs = []
    whole = tracecompile.convert(model, x, bins=8)
    first = gradients(whole, whole(x[:4]).sum())
    for a, b in zip(first, found[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert any(not torch.allclose(a, b) for a, b in zip(*found, strict=True))


def test_a_restored_run_goes_on_bit_equal() -> None:
    _, net, x = make(10)
    outputs = []
    for t, output in enumerate(net.stream(x)):
        if t == 5:
            snapshot = net.snapshot()
        outputs.append(output)
    expected = gradients(net, outputs[-1].sum())
    other = tracecompile.convert(_fresh(net), x)
    other.restore(snapshot)
    resumed = list(other.stream(x[6:]))
    assert all(torch.equal(a, b) for a, b in zip(outputs[6:], resumed, strict=True))
    for a, b in zip(expected, gradients(other, resumed[-1].sum()), strict=True):
        assert torch.equal(a, b)
    assert all(isinstance(value, Tensor) for value in snapshot.values())


def _fresh(net: nn.Module) -> Recurrent:
    model = Recurrent().double()
    model.load_state_dict(net.state_dict())
    return model


def test_reset_starts_a_new_sequence() -> None:
    _, net, x = make(6)
    first = [output.detach() for output in net.stream(x)]
    second = [output.detach() for output in net.stream(x)]
    net.reset()
    third = [output.detach() for output in net.stream(x)]
    assert all(torch.equal(a, b) for a, b in zip(first, third, strict=True))
    assert not torch.equal(first[-1], second[-1])


def test_a_copy_shares_nothing() -> None:
    model, net, x = make(6)
    other = copy.deepcopy(net)
    net(x).sum().backward()
    assert all(p.grad is None for p in other.parameters())
    other(x).sum().backward()
    for (name, p), q in zip(net.named_parameters(), other.parameters(), strict=True):
        assert p is not q, name
        assert q.grad is not None, name
        assert torch.equal(p.grad, q.grad), name
    assert all(p is q for p, q in zip(net.parameters(), model.parameters(), strict=True))


def test_parameters_changed_between_forward_and_backward_are_noticed() -> None:
    _, net, x = make(6)
    loss = net(x).sum()
    with torch.no_grad():
        next(net.parameters()).add_(1.0)
    with pytest.raises(RuntimeError, match="modified in place"):
        loss.backward()


def test_hooks_and_accumulation_work_as_always() -> None:
    _, net, x = make(6)
    seen: list[Tensor] = []
    parameter = next(net.parameters())
    for each in net.parameters():
        each.register_hook(seen.append)
    net(x).sum().backward()
    once = parameter.grad.clone()
    net(x).sum().backward()
    assert len(seen) == 2 * len(list(net.parameters()))
    torch.testing.assert_close(parameter.grad, 2 * once)


def test_the_gradient_of_the_input_is_exact_with_a_bin_per_step() -> None:
    model, net, x = make(7, bins=7)
    x.requires_grad_()
    (expected,) = torch.autograd.grad(model(x).square().sum(), x)
    (found,) = torch.autograd.grad(net(x).square().sum(), x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert expected.norm() > 0


def test_statistics_stay_in_single_precision_under_autocast() -> None:
    model, net, x = make(40, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, found = model(x), net(x)
        assert torch.equal(expected, found)
        loss = found.float().mean()
    held = [value.dtype for name, value in net.snapshot().items() if "trace" in name or "tangent" in name]
    assert held
    assert torch.bfloat16 not in held
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_other_dtypes_are_captured_again() -> None:
    model, net, x = make(6)
    net.float()
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}, "the tensors are the same"
    assert torch.equal(net(x.float()), model(x.float()))
    assert net(x.float()).dtype == torch.float32


@pytest.mark.parametrize("trained", [True, False])
def test_nothing_of_a_sequence_waits_for_the_garbage_collector(trained: bool) -> None:
    _, net, x = make(12)
    gc.collect()
    gc.disable()
    try:
        outputs = net(x)
        assert session_of(net).live.sequence is not None
        window = session_of(net).live.sequence
        assert window() is not None
        if trained:
            outputs.sum().backward()
        del outputs
        assert window() is None
    finally:
        gc.enable()


def test_a_stream_that_is_reset_does_not_wait_for_the_garbage_collector() -> None:
    _, net, x = make(12)
    gc.collect()
    gc.disable()
    try:
        outputs = list(net.stream(x))
        assert session_of(net).live.window is not None
        window = weakref.ref(session_of(net).live.window)
        net.reset()
        outputs[-1].sum().backward()
        del outputs
        assert window() is None
    finally:
        gc.enable()
