"""What ``convert`` promises, on networks written by hand in many styles; see ``models``."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from models import (
    MODELS,
    ModelCase,
    assert_gradients_close,
    assert_live,
    assert_same_fingerprint,
    fingerprint,
    gradients,
    mean_loss,
    weighted_loss,
)
from torch import Tensor, nn

import tracecompile
from tracecompile.diagnostics.memory import live_state_bytes, saved_bytes

STEPS, BATCH = 6, 3
every_model = pytest.mark.parametrize("case", MODELS.values(), ids=MODELS.keys())
sequence_models = pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name) for c in MODELS.values() if c.kind == "sequence"]
)
hidden_state_models = pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name) for c in MODELS.values() if c.kind == "step" and not c.explicit_state]
)


def convert(case: ModelCase, model: nn.Module, steps: int = 5, **options: Any) -> Any:
    """Converts at another length and batch size than those that the tests run."""
    steps = model.T if case.steps_at_construction else steps
    return tracecompile.convert(model, case.example_inputs(steps, 2, seed=3), **options)


def test_the_registry_covers_what_it_should() -> None:
    assert len(MODELS) >= 16
    assert {case.kind for case in MODELS.values()} == {"sequence", "step"}


@every_model
def test_the_model_itself_is_live(case: ModelCase) -> None:
    assert_live(case.run(case.factory(), case.make_inputs(STEPS, BATCH)))


@every_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_outputs_equal_bit_for_bit(case: ModelCase, dtype: torch.dtype) -> None:
    model = case.factory(dtype)
    net = convert(case, case.factory())  # captured in float64
    net.load_state_dict(model.state_dict())
    net.to(dtype)
    lengths = [STEPS] if case.steps_at_construction else [STEPS, 1, 17]
    for training in (True, False):
        net.train(training)
        for steps in lengths:
            for batch in (BATCH, 1, 8):
                inputs = case.make_inputs(steps, batch, dtype)
                expected = case.run(case.factory(dtype).train(training), inputs)
                net.reset()
                actual = case.run(net, inputs)
                assert [a.dtype for a in actual] == [e.dtype for e in expected]
                assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


@every_model
def test_return_structure_is_that_of_the_model(case: ModelCase) -> None:
    model = case.factory()
    net = convert(case, model)
    example = case.example_inputs(STEPS, BATCH)
    arguments = example if isinstance(example, tuple) else (example,)
    expected = case.factory()(*arguments)
    actual = net(*arguments)
    assert type(actual) is type(expected)
    assert torch.utils._pytree.tree_structure(actual) == torch.utils._pytree.tree_structure(expected)


@every_model
def test_the_model_is_left_alone(case: ModelCase) -> None:
    model = case.factory()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = fingerprint(model)
    net = convert(case, model)
    assert_same_fingerprint(before, fingerprint(model))
    net.eval()
    case.run(net, case.make_inputs(STEPS, BATCH))
    net.train()
    net.reset()
    assert_same_fingerprint(before, fingerprint(model))


@every_model
def test_state_dicts_are_interchangeable(case: ModelCase) -> None:
    model, other = case.factory(), case.factory(seed=1)
    net = convert(case, model)
    assert {id(p) for p in net.parameters()} == {id(p) for p in model.parameters()}
    assert list(net.state_dict()) == list(model.state_dict())
    net.load_state_dict(other.state_dict())
    inputs = case.make_inputs(STEPS, BATCH)
    expected = case.run(case.factory(seed=1), inputs)
    net.reset()
    assert all(torch.equal(a, e) for a, e in zip(case.run(net, inputs), expected, strict=True))
    fresh = case.factory(seed=2)
    fresh.load_state_dict(convert(case, case.factory(seed=1)).state_dict())
    assert all(torch.equal(a, e) for a, e in zip(case.run(fresh, inputs), expected, strict=True))


@every_model
def test_rule_bptt_has_the_gradients_of_the_model(case: ModelCase) -> None:
    model, inputs = case.factory(), case.make_inputs(STEPS, BATCH)
    net = convert(case, model, rule="bptt")
    reference = case.factory()
    expected = gradients(reference, weighted_loss(case.run(reference, inputs)))
    assert_gradients_close(gradients(model, weighted_loss(case.run(net, inputs))), expected, rtol=1e-12)


@every_model
def test_measured_with_one_bin_is_exact_for_one_step(case: ModelCase) -> None:
    if case.steps_at_construction:
        pytest.skip("a loop over one step cannot be told from no loop")
    model, inputs = case.factory(), case.make_inputs(1, 8)
    net = convert(case, model, rule="measured", bins=1)
    reference = case.factory()
    expected = gradients(reference, weighted_loss(case.run(reference, inputs)))
    assert_gradients_close(gradients(model, weighted_loss(case.run(net, inputs))), expected, rtol=1e-9)


@every_model
@pytest.mark.parametrize("steps", [4, 9])
def test_measured_with_a_bin_per_step_is_backpropagation_through_time(case: ModelCase, steps: int) -> None:
    model, inputs = case.factory(steps=steps), case.make_inputs(steps, BATCH)
    net = convert(case, model, rule="measured", bins=steps)
    reference = case.factory(steps=steps)
    expected = gradients(reference, weighted_loss(case.run(reference, inputs)))
    assert_gradients_close(gradients(model, weighted_loss(case.run(net, inputs))), expected, rtol=1e-9)


@every_model
@pytest.mark.parametrize("rule", ["measured", "analytic", "bptt"])
def test_backward_fills_every_gradient_or_the_report_says_why_not(case: ModelCase, rule: str) -> None:
    model = case.factory()
    net = convert(case, model, rule=rule)
    weighted_loss(case.run(net, case.make_inputs(STEPS, BATCH))).backward()
    assert set(net.report.parameters) == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        entry = net.report.parameters[name]
        if entry.status == "frozen":
            assert rule == "analytic", f"{name}: every parameter here has a gradient by this rule"
            assert entry.reason
        else:
            assert parameter.grad is not None, f"{name}: no gradient"
            assert parameter.grad.isfinite().all()
            assert parameter.grad.any(), f"{name}: zero gradient"


@every_model
@pytest.mark.parametrize("options", [{"bins": 1}, {"rule": "analytic"}], ids=str)
def test_memory_does_not_depend_on_the_number_of_steps(case: ModelCase, options: dict[str, Any]) -> None:
    saved, live, resident = [], [], []
    model = case.factory(steps=8)
    net = convert(case, model, **options)
    for steps in (8, 16):
        if case.steps_at_construction:
            model = case.factory(steps=steps)
            net = convert(case, model, **options)
        inputs = case.make_inputs(steps, BATCH)
        case.run(net, inputs)  # what is written down of the user's functions, once they have run often, stays
        net.reset()
        with _only_new_objects():
            with saved_bytes(exclude=[*net.parameters(), *_tensors(inputs)]) as counter:
                outputs = case.run(net, inputs)
                loss = mean_loss(outputs)
            gc.collect()
            known = {_address(t) for t in [*net.parameters(), *_tensors(inputs), *outputs, loss]}
            resident.append(sum(size for address, size in _new_storages().items() if address not in known))
        saved.append(counter.bytes)
        live.append(live_state_bytes(net))
        loss.backward()
        del outputs, loss
    assert saved[0] == saved[1], f"bytes saved for backward at T and 2T: {saved}"
    assert live[0] == live[1], f"bytes of live state at T and 2T: {live}"
    assert resident[0] == resident[1], f"bytes of tensors that Python holds at T and 2T: {resident}"
    assert live[0] > 0


@pytest.mark.parametrize("name", ["recurrent_loop", "batch_first", "two_recurrent_layers"])
def test_the_memory_measure_sees_backpropagation_through_time_grow(name: str) -> None:
    case = MODELS[name]
    saved = []
    for steps in (8, 16):
        model, inputs = case.factory(), case.make_inputs(steps, BATCH)
        with saved_bytes(exclude=[*model.parameters(), inputs]) as counter:
            outputs = case.run(model, inputs)
        assert outputs
        saved.append(counter.bytes)
    assert saved[1] > 1.5 * saved[0]


@every_model
def test_captured_at_the_first_call(case: ModelCase) -> None:
    net = tracecompile.convert(case.factory())
    inputs = case.make_inputs(STEPS, BATCH)
    expected = case.run(case.factory(), inputs)
    for _ in range(2):
        assert all(torch.equal(a, e) for a, e in zip(case.run(net, inputs), expected, strict=True))
        net.reset()


@sequence_models
def test_an_example_of_one_step_is_enough(case: ModelCase) -> None:
    if case.steps_at_construction:
        pytest.skip("the model fixes its length")
    net = convert(case, case.factory(), steps=1)
    inputs = case.make_inputs(STEPS, BATCH)
    expected = case.run(case.factory(), inputs)
    assert all(torch.equal(a, e) for a, e in zip(case.run(net, inputs), expected, strict=True))


@pytest.mark.parametrize("name", ["recurrent_loop", "batch_first", "iterate_input", "convolution_synapse"])
def test_a_stream_yields_the_outputs_of_the_sequence(name: str) -> None:
    case = MODELS[name]
    net = convert(case, case.factory())
    x = case.make_inputs(STEPS, BATCH)
    expected = case.factory()(x)
    per_step = expected if isinstance(expected, list) else list(expected.unbind(case.time_axis))
    streamed = list(net.stream(iter(x.unbind(case.time_axis))))
    assert len(streamed) == STEPS
    assert all(torch.equal(a, e) for a, e in zip(streamed, per_step, strict=True))


@hidden_state_models
def test_a_step_model_keeps_its_state_between_calls(case: ModelCase) -> None:
    net = convert(case, case.factory())
    inputs = case.make_inputs(STEPS, BATCH)
    expected = case.run(case.factory(), inputs)
    first, second = case.run(net, inputs[:2]), None
    snapshot = {key: value.clone() if isinstance(value, Tensor) else value for key, value in net.snapshot().items()}
    second = case.run(net, inputs[2:])
    assert all(torch.equal(a, e) for a, e in zip([*first, *second], expected, strict=True))
    net.restore(snapshot)
    again = case.run(net, inputs[2:])
    assert all(torch.equal(a, e) for a, e in zip(again, second, strict=True))
    net.reset()
    assert all(torch.equal(a, e) for a, e in zip(case.run(net, inputs), expected, strict=True))


def _tensors(inputs: Any) -> list[Tensor]:
    return list(inputs) if isinstance(inputs, list) else [inputs]


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@contextmanager
def _only_new_objects() -> Iterator[None]:
    """Hides from the garbage collector what exists already, which also makes collecting quick."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _new_storages() -> dict[int, int]:
    """Sizes of the storages of the tensors made since, by address; sees what a Function keeps as attributes."""
    tensors = [entry for entry in gc.get_objects() if issubclass(type(entry), Tensor)]
    plain = [t for t in tensors if type(t) in (Tensor, nn.Parameter)]
    return {_address(t): t.untyped_storage().nbytes() for t in plain}
