"""Half precision by autocast, by a scaler and by a cast, and channels-last: values and gradients as the model's own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from test_devices import DEVICES
from torch import Tensor, nn

import tracecompile
from around.nets import SPIKE, Sequence, events
from tracecompile.bench.case import Job, open_case

STEPS = 24
PER_STEP: list[dict[str, Any]] = [{"bins": STEPS}, {"rule": "exact"}]


def network(name: str, device: str) -> tuple[nn.Module, Tensor]:
    case = open_case(Job(network=name, steps=STEPS, quick=True))
    return copy.deepcopy(case.model).to(device), case.inputs[0].to(device)


def gradients(module: nn.Module, output: Tensor) -> dict[str, Tensor]:
    module.zero_grad()
    output.float().square().mean().backward()
    found = {}
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == parameter.dtype
        found[name] = parameter.grad.double()
    return found


def farthest(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    assert found.keys() == wanted.keys()
    assert all(value.norm() > 0 for value in wanted.values())
    return max(float((found[name] - value).norm() / value.norm()) for name, value in wanted.items())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", [*PER_STEP, {"bins": 4}, {"rule": "exact", "chunk": 4}], ids=str)
@pytest.mark.parametrize("name", ["dense", "recurrent", "convolutional"])
def test_autocast_to_bfloat16(name: str, way: dict[str, Any], device: str) -> None:
    model, x = network(name, device)
    single, net, net_in_single = copy.deepcopy(model), copy.deepcopy(model), copy.deepcopy(model)
    net = tracecompile.convert(net, x, backend="eager", **way)
    with torch.autocast(device, torch.bfloat16):
        expected, found = model(x), net(x)
    assert found.dtype == torch.bfloat16
    # Steps taken together add up a result in another order.
    assert torch.equal(found, expected) or "chunk" in way
    torch.testing.assert_close(found, expected, rtol=0.03, atol=0.03)
    theirs, ours, precise = gradients(model, expected), gradients(net, found), gradients(single, single(x))
    # What half precision costs the model itself, and what bins cost without it.
    lost, binned = farthest(theirs, precise), 0.0
    if way == {"bins": 4}:
        net_in_single = tracecompile.convert(net_in_single, x, backend="eager", **way)
        binned = farthest(gradients(net_in_single, net_in_single(x)), precise)
    else:
        assert farthest(ours, theirs) <= 0.03
    assert farthest(ours, precise) <= lost + binned + 0.01


class Summed(Sequence):
    """Adds up what comes out in the type that it has: half precision under autocast."""

    def begin(self, x: Tensor) -> Tensor:
        return x.new_zeros(())  # of no dimensions: what is added says the type


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"chunk": 4, "backend": "eager"}], ids=["as it comes", "chunks"])
@pytest.mark.parametrize("kind", [Sequence, Summed])
def test_a_first_call_under_autocast(kind: type[nn.Module], options: dict[str, Any], dtype: torch.dtype) -> None:
    """Its running sum is as coarse as its type, in whatever order: no reason to refuse steps taken together."""
    torch.manual_seed(0)
    model, x = kind(), events(30, 6)
    net = tracecompile.convert(copy.deepcopy(model), **options)
    with torch.autocast("cpu", dtype):
        expected, found = model(x), net(x)
    assert found.dtype == expected.dtype == (dtype if kind is Summed else torch.float32)
    torch.testing.assert_close(found, expected, rtol=0.03, atol=0.03)
    assert farthest(gradients(net, found), gradients(model, expected)) < 0.5


class SpikesInHalf(nn.Module):
    """Membranes start from a number, and take the type of their currents; the second layer's are normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.between, self.leave = nn.Linear(5, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.norm = nn.LayerNorm(12)

    def forward(self, x: Tensor) -> Tensor:
        v, w, outputs = x.new_zeros(()), x.new_zeros(()), []
        for x_t in x:
            v = 0.9 * v + 2 * self.enter(x_t)
            z = SPIKE(v - 0.5)
            v = v - 0.5 * z
            w = 0.9 * w + self.norm(self.between(z))
            y = SPIKE(w - 0.5)
            w = w - 0.5 * y
            outputs.append(self.leave(y) + self.between(z).sum(-1, keepdim=True))
        return torch.stack(outputs)


@pytest.mark.parametrize("bins", [9, 2])
@pytest.mark.parametrize("read", [slice(None), -1], ids=["all steps", "the last step"])
def test_spikes_in_half_precision_meet_weights_in_single(bins: int, read: Any) -> None:
    """In backward, which runs outside of autocast: at means, at steps as they were, and at the step that is read."""
    torch.manual_seed(0)
    model, x = SpikesInHalf(), events(9, 6)
    net = tracecompile.convert(copy.deepcopy(model), bins=bins, backend="eager")
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = model(x), net(x)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)
    ours, theirs = gradients(net, found[read].float()), gradients(model, expected[read].float())
    assert farthest(ours, theirs) <= (0.03 if bins == 9 else 1.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["dense", "convolutional"])
def test_a_model_that_is_cast(name: str, dtype: torch.dtype) -> None:
    model, x = network(name, "cpu")
    single = copy.deepcopy(model)
    precise = gradients(single, single(x))
    model, x = model.to(dtype), x.to(dtype)
    expected = model(x)
    theirs = gradients(model, expected)
    for way in PER_STEP:
        net = tracecompile.convert(copy.deepcopy(model), x, backend="eager", **way)
        found = net(x)
        assert found.dtype == dtype
        assert torch.equal(found, expected)
        ours = gradients(net, found)
        assert farthest(ours, theirs) <= 0.05
        assert farthest(ours, precise) <= farthest(theirs, precise) + 0.01
    net = tracecompile.convert(copy.deepcopy(model), x)
    torch.testing.assert_close(net(x), expected, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", PER_STEP, ids=str)
def test_a_scaler_of_gradients_skips_and_grows_as_with_the_model(way: dict[str, Any], device: str) -> None:
    model, x = network("dense", device)
    net = tracecompile.convert(copy.deepcopy(model), x, backend="eager", **way)
    found: list[tuple[list[float], list[float], list[Tensor]]] = []
    for module in (model, net):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler(device, init_scale=2.0**40, backoff_factor=2.0**-30, growth_interval=3)
        scales, losses = [], []
        before = [parameter.detach().clone() for parameter in module.parameters()]
        for _ in range(10):
            optimizer.zero_grad()
            with torch.autocast(device, torch.float16):
                output = module(x)
                loss = output.float().square().mean()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
            losses.append(float(loss.detach()))
            if len(scales) == 1:
                assert all(map(torch.equal, module.parameters(), before)), "a step with infinite gradients was made"
        found.append((scales, losses, [parameter.detach() for parameter in module.parameters()]))
    (theirs, wanted, weights), (ours, losses, others) = found
    assert ours == theirs
    assert ours[0] == 2.0**10
    assert ours[-1] == 2.0**13, "steps were skipped"
    assert losses == pytest.approx(wanted, rel=0.02)
    assert losses[-1] < losses[0]
    for one, other in zip(others, weights, strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=2e-3)


LAYOUTS = [
    {"bins": STEPS, "backend": "eager"},
    {"bins": 4, "backend": "eager", "chunk": 4},
    {"rule": "exact", "backend": "eager"},
    {"bins": 4, "backend": "inductor"},
]


# What is compiled costs seconds, and is the same whenever the layout changes.
CHANGES = [(way, when) for way in LAYOUTS for when in ("before", "after")[: 1 + (way["backend"] == "eager")]]


@pytest.mark.parametrize(("way", "when"), CHANGES, ids=str)
def test_channels_last(way: dict[str, Any], when: str) -> None:
    model, x = network("convolutional", "cpu")
    model, x = model.double(), x.double()
    last = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, x.shape[:2])
    rows = tracecompile.convert(copy.deepcopy(model), x, **{**way, "backend": "eager"})
    if when == "before":
        model = model.to(memory_format=torch.channels_last)
    net = tracecompile.convert(model, last if when == "before" else x, **way)
    net.to(memory_format=torch.channels_last)
    expected, found = rows(x), net(last)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    theirs, ours = gradients(rows, expected), gradients(net, found)
    assert farthest(ours, theirs) <= 1e-9
    filters = [parameter for parameter in net.parameters() if parameter.dim() == 4 and parameter.shape[1] > 1]
    assert filters
    for optimizer in (
        torch.optim.SGD(net.parameters(), 0.1, foreach=True),
        torch.optim.Adam(net.parameters(), fused=True),
    ):
        optimizer.step()
    for parameter in filters:
        assert parameter.grad is not None
        assert parameter.is_contiguous(memory_format=torch.channels_last)
        assert parameter.grad.stride() == parameter.stride()
