"""Derivatives that a net has not are refused in words; those that it has come out right under torch's own wrappers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import tracecompile
from runtime.nets import Step, Whole, assert_same, events, gradients, twins
from runtime.test_several_losses import OverTime
from tracecompile.errors import ConversionError, UnsupportedOperation

KINDS = {"per step": Whole, "over time": OverTime}


def converted(kind: type = Whole, bins: int = 9) -> tuple[torch.nn.Module, torch.nn.Module, torch.nn.Module]:
    model, twin = twins(kind)
    return model, twin, tracecompile.convert(model, events(6, 2), bins=bins, backend="eager")


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("loss", [Tensor.sum, lambda y: y.square().mean()], ids=["linear", "square"])
def test_a_gradient_penalty_is_refused(kind: type, loss: Callable[[Tensor], Tensor]) -> None:
    _, _, net = converted(kind)
    x = events(9, 4).requires_grad_()
    found = loss(net(x))
    (of_input,) = torch.autograd.grad(found, [x], create_graph=True)
    with pytest.raises(UnsupportedOperation, match="second derivative"):
        (found + of_input.square().sum()).backward()


def test_the_second_derivative_of_a_stream_is_refused() -> None:
    model, _ = twins(Step)
    net = tracecompile.convert(model, events(1, 4)[0], backend="eager")
    loss = torch.stack([net(x_t) for x_t in events(5, 4)]).sum()
    (gradient,) = torch.autograd.grad(loss, [model.below.weight], create_graph=True)
    with pytest.raises(UnsupportedOperation, match="second derivative"):
        torch.autograd.grad(gradient.sum(), [model.below.weight], allow_unused=True)


def test_a_hessian_is_refused() -> None:
    _, _, net = converted()
    with pytest.raises(UnsupportedOperation, match="second derivative"):
        torch.autograd.functional.hvp(lambda x: net(x).square().sum(), events(9, 2), torch.ones(9, 2, 5).double())


def test_a_graph_of_the_gradient_does_no_harm_to_the_first() -> None:
    model, twin, net = converted()
    x = events(9, 4)
    for module, owner in ((net, model), (twin, twin)):
        loss = module(x).square().mean()
        for parameter, found in zip(
            owner.parameters(), torch.autograd.grad(loss, list(owner.parameters()), create_graph=True), strict=True
        ):
            parameter.grad = found.detach()
    assert_same(gradients(model), gradients(twin))


def test_derivatives_of_the_rule_bptt_are_those_of_the_model() -> None:
    model, twin = twins(Whole)
    net = tracecompile.convert(model, events(6, 2), rule="bptt", backend="eager")
    x = events(9, 4)
    for module, owner in ((net, model), (twin, twin)):
        (gradient,) = torch.autograd.grad(module(x).square().sum(), [owner.above.weight], create_graph=True)
        gradient.square().sum().backward()
    found, wanted = gradients(model), gradients(twin)
    assert_same({"above.weight": found["above.weight"]}, {"above.weight": wanted["above.weight"]})


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # of torch's own
def test_a_tangent_of_the_input_is_refused() -> None:
    _, twin, net = converted()
    x = events(9, 4)
    with forward_ad.dual_level(), pytest.raises(UnsupportedOperation, match="forward-mode"):
        net(forward_ad.make_dual(x, torch.ones_like(x)))
    assert torch.equal(net(x), twin(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # of torch's own
def test_a_tangent_of_a_parameter_is_refused() -> None:
    model, twin, net = converted()
    x, weight = events(9, 4), model.above.weight.detach()
    with forward_ad.dual_level(), pytest.raises(ConversionError):
        torch.func.functional_call(net, {"above.weight": forward_ad.make_dual(weight, torch.ones_like(weight))}, (x,))
    assert torch.equal(net(x), twin(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # of torch's own
def test_a_tangent_of_something_else_does_no_harm() -> None:
    _, twin, net = converted()
    x = events(9, 4)
    with forward_ad.dual_level():
        forward_ad.make_dual(torch.ones(2), torch.ones(2))
        assert torch.equal(net(x), twin(x))


TRANSFORMS: dict[str, Callable[[torch.nn.Module, Tensor], object]] = {
    "grad": lambda net, x: torch.func.grad(lambda given: net(given).sum())(x),
    "jvp": lambda net, x: torch.func.jvp(net, (x,), (torch.ones_like(x),)),
    "vjp": lambda net, x: torch.func.vjp(net, x),
    "vmap": lambda net, x: torch.func.vmap(net)(torch.stack([x, x])),
    "jacrev": lambda net, x: torch.func.jacrev(net)(x),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # of torch's own
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("captured", [True, False], ids=["captured", "first call"])
def test_a_transform_of_torch_func_is_refused(transform: Callable[..., object], captured: bool) -> None:
    model, twin = twins(Whole)
    net = tracecompile.convert(model, events(6, 2) if captured else None, backend="eager")
    with pytest.raises(UnsupportedOperation, match=r"torch\.func"):
        transform(net, events(9, 4))
    x = events(9, 4)
    assert torch.equal(net(x), twin(x))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("captured", [True, False], ids=["captured", "first call"])
def test_a_checkpoint_around_a_net_gives_the_gradient(kind: type, reentrant: bool, captured: bool) -> None:
    model, twin = twins(kind)
    net = tracecompile.convert(model, events(6, 2) if captured else None, bins=9, backend="eager")
    x = events(9, 4).requires_grad_()
    checkpoint(net, x, use_reentrant=reentrant).square().mean().backward()
    of_input, x.grad = x.grad, None
    twin(x).square().mean().backward()
    assert_same(gradients(model), gradients(twin))
    assert x.grad is not None
    assert of_input is not None
    assert torch.allclose(of_input, x.grad, rtol=1e-9)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_net_among_checkpointed_layers_gives_the_gradient(reentrant: bool) -> None:
    found, x = [], events(9, 4).requires_grad_()
    for is_net in (True, False):
        torch.manual_seed(4)
        below, above, (model, _) = torch.nn.Linear(5, 5).double(), torch.nn.Linear(3, 2).double(), twins(Whole)
        middle = tracecompile.convert(model, events(6, 2), bins=9, backend="eager") if is_net else model
        chain, owners = torch.nn.Sequential(below, middle, torch.nn.Tanh(), above), (below, model, above)
        checkpoint_sequential(chain, 2, x, use_reentrant=reentrant).square().mean().backward()
        found.append({f"{n}.{name}": g for n, owner in enumerate(owners) for name, g in gradients(owner).items()})
    assert_same(*found)


def test_tensors_that_are_saved_elsewhere_give_the_same_gradient() -> None:
    model, twin, net = converted()
    x = events(9, 4)
    with torch.autograd.graph.save_on_cpu():
        loss = net(x).square().mean()
    loss.backward()
    twin(x).square().mean().backward()
    assert_same(gradients(model), gradients(twin))
