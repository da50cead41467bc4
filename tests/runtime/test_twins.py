"""Backward puts stand-ins in the places of Parameters: where others look meanwhile, nothing is seen of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from requirements import library
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import tracecompile
from runtime.nets import HIDDEN, OUTPUTS, Whole, assert_same, events, gradients, twins
from runtime.test_threads import in_threads

STEPS = 6


class Watched(nn.Module):
    """A parametrisation that lets another thread look at a model whenever it runs."""

    def __init__(self, look: Callable[[], None]) -> None:
        super().__init__()
        self.look = look

    def forward(self, weight: Tensor) -> Tensor:
        self.look()
        return 0.9 * weight


def parametrised(model: Any, look: Callable[[], None]) -> None:
    parametrize.register_parametrization(model.above, "weight", Watched(look))


def parametrised_twice(model: Any, look: Callable[[], None]) -> None:
    parametrized = parametrizations.weight_norm(model.lateral)
    parametrize.register_parametrization(parametrized, "weight", Watched(look))


def pruned(model: Any, look: Callable[[], None]) -> None:
    prune.l1_unstructured(model.above, "weight", 0.3)
    model.above.register_forward_hook(lambda module, args, result: look())


KINDS = [parametrised, parametrised_twice, pruned]
RULES = {
    "measured": {"bins": STEPS},
    "exact": {"rule": "exact", "chunk": 1},
    "exact in chunks": {"rule": "exact", "chunk": 4},
}
rules = pytest.mark.parametrize("options", RULES.values(), ids=RULES)


@rules
@pytest.mark.parametrize("kind", KINDS)
def test_other_threads_see_the_models_own_parameters(
    kind: Callable[[Any, Callable[[], None]], None], options: dict[str, Any]
) -> None:
    model, twin = twins(Whole)
    seen: list[set[int]] = []
    looking = False

    def look() -> None:
        if looking:
            seen.extend(in_threads([lambda: {id(parameter) for parameter in model.parameters()}]))

    kind(model, look)
    kind(twin, lambda: None)
    net, x = tracecompile.convert(model, events(5, 2), backend="eager", **options), events(STEPS, 3)
    own = {id(parameter) for parameter in model.parameters()}
    loss, wanted = net(x).square().sum(), twin(x).square().sum()
    looking = True
    loss.backward()
    looking = False
    wanted.backward()
    assert seen, "backward has not called the layer"
    assert all(each == own for each in seen)
    assert_same(gradients(model), gradients(twin))


@pytest.mark.parametrize("rule", ["measured", "exact"])
def test_other_threads_see_the_models_own_parameters_while_a_step_is_compiled(rule: str) -> None:
    model, _ = twins(Whole)
    seen: list[set[int]] = []

    def look() -> None:
        if looking:
            seen.extend(in_threads([lambda: {id(parameter) for parameter in model.parameters()}]))

    looking = False
    parametrize.register_parametrization(model.lateral, "weight", Watched(look))
    net = tracecompile.convert(model, events(5, 2), rule=rule, backend="inductor", chunk=STEPS)  # type: ignore[arg-type]
    own = {id(parameter) for parameter in model.parameters()}
    looking = True
    net(events(STEPS, 3)).square().sum().backward()
    assert seen, "nothing has called the layer"
    assert all(each == own for each in seen)


def reads_the_model(model: Any) -> None:
    model.above.register_forward_hook(lambda module, args, result: result + model.above.weight.square().sum())


def reads_another_layer(model: Any) -> None:
    model.below.register_forward_hook(lambda module, args, result: result * (1 + module.bias) + model.below.bias)


def bound_forward(model: Any) -> None:
    own = model.above.forward
    model.above.forward = lambda z: 2 * own(z)


@rules
@pytest.mark.parametrize("change", [reads_the_model, reads_another_layer, bound_forward])
def test_what_finds_its_way_back_to_the_model_has_its_gradient(
    change: Callable[[Any], None], options: dict[str, Any]
) -> None:
    model, twin = twins(Whole)
    for each in (model, twin):
        change(each)
    net, x = tracecompile.convert(model, events(5, 2), backend="eager", **options), events(STEPS, 3)
    for each in (net, twin):
        each(x).square().sum().backward()
    assert_same(gradients(model), gradients(twin))


@rules
def test_a_parameter_that_is_read_past_all_modules_is_refused(options: dict[str, Any]) -> None:
    model, _ = twins(Whole)
    kept = model.above.weight  # whatever is put into the layer, the hook reads this one
    model.above.register_forward_hook(lambda module, args, result: result + kept.square().sum())
    net = tracecompile.convert(model, events(5, 2), backend="eager", **options)
    with pytest.raises(tracecompile.ConversionError, match="its gradient would be lost"):
        net(events(STEPS, 3)).square().sum().backward()


def test_a_parameter_that_no_layer_of_the_step_holds_is_refused() -> None:
    model, _ = twins(Whole)
    model.gain = nn.Parameter(model.above.bias.detach().clone())
    model.above.register_forward_hook(lambda module, args, result: result * model.gain)
    net = tracecompile.convert(model, events(5, 2), rule="exact", backend="eager")
    with pytest.raises(tracecompile.ConversionError, match="its gradient would be lost"):
        net(events(STEPS, 3)).square().sum().backward()


@pytest.mark.libraries
def test_layers_that_the_program_owns_are_called_on_twins_too() -> None:
    """SpikingJelly's layers of a whole sequence stand in the program as layers of one step."""
    layer, neuron = library("spikingjelly.activation_based.layer"), library("spikingjelly.activation_based.neuron")
    functional = library("spikingjelly.activation_based.functional")

    seen: list[list[int]] = []

    def made() -> Any:
        layers = [layer.Linear(5, HIDDEN), neuron.LIFNode(v_threshold=0.1), layer.Linear(HIDDEN, OUTPUTS)]
        net = nn.Sequential(*layers)
        net[2].register_forward_hook(lambda *given: seen.append([id(parameter) for parameter in net.parameters()]))
        functional.set_step_mode(net, "m")
        return net

    model, twin = twins(made)
    own = [id(parameter) for parameter in model.parameters()]
    net, x = tracecompile.convert(model, events(5, 2), bins=STEPS, backend="eager"), events(STEPS, 3)
    loss = net(x).square().sum()
    seen.clear()
    loss.backward()
    assert seen, "backward has not called the layer"
    assert all(each == own for each in seen)
    twin(x).square().sum().backward()
    assert_same(gradients(model), gradients(twin))
