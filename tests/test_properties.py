"""Properties of ``convert`` over generated networks; see ``strategies``.

Each property counts the examples in which neurons both fire and stay silent, and fails if these are fewer than 90 %.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import example, given, note
from models import (
    assert_gradients_close,
    assert_same_fingerprint,
    fingerprint,
    gradients,
    mean_loss,
    pristine,
    weighted_loss,
)
from strategies import LOOPS, Built, LayerSpec, NetSpec, Vacuity, build, example_inputs, make_inputs, net_specs, run
from torch import Tensor, nn

import tracecompile
from tracecompile.diagnostics.memory import live_state_bytes, saved_bytes

FREE_LENGTH = tuple(loop for loop in LOOPS if loop != "fixed")
TWO_LAYERS = NetSpec(layers=(LayerSpec(3, lateral=True, reset="subtract"), LayerSpec(2, neuron="synaptic")))


def convert(spec: NetSpec, built: Built, **options: Any) -> Any:
    note(built.source)
    return tracecompile.convert(built.module, example_inputs(spec, built.module), **options)


def reference_gradients(spec: NetSpec, built: Built, inputs: Any) -> dict[str, Tensor | None]:
    model = pristine(built.module)
    return gradients(model, weighted_loss(run(spec, model, model, inputs)))


def converted_gradients(spec: NetSpec, built: Built, net: nn.Module, inputs: Any) -> dict[str, Tensor | None]:
    net.reset()
    return gradients(built.module, weighted_loss(run(spec, built.module, net, inputs)))


def assert_equal_outputs(actual: list[Tensor], expected: list[Tensor]) -> None:
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        assert torch.equal(a, e), f"largest difference {float((a - e).abs().max())}"


def test_outputs_are_those_of_the_model_at_any_length_and_batch() -> None:
    vacuity = Vacuity()

    @given(net_specs())
    @example(TWO_LAYERS)
    def holds(spec: NetSpec) -> None:
        built = build(spec)
        vacuity.record(spec)
        before = fingerprint(built.module)
        net = convert(spec, built)
        sizes = [(spec.steps, spec.batch), (spec.steps, spec.batch + 3)]
        if spec.loop != "fixed":
            sizes += [(spec.steps + 6, 1), (1, spec.batch)]
        for training in (True, False):
            net.train(training)
            for steps, batch in sizes:
                inputs = make_inputs(spec, steps, batch)
                net.reset()
                model = pristine(built.module).train(training)
                assert_equal_outputs(run(spec, model, net, inputs), run(spec, model, model, inputs))
        net.train()
        net.reset()
        assert_same_fingerprint(before, fingerprint(built.module))

    holds()
    vacuity.check()


def test_parameters_are_shared_and_state_dicts_interchangeable() -> None:
    @given(net_specs())
    def holds(spec: NetSpec) -> None:
        built, other = build(spec), build(spec)
        net = convert(spec, built)
        assert {id(p) for p in net.parameters()} == {id(p) for p in built.module.parameters()}
        assert list(net.state_dict()) == list(built.module.state_dict())
        with torch.no_grad():
            for parameter in other.module.parameters():
                parameter.add_(0.25)
        net.load_state_dict(other.module.state_dict())
        for name, value in built.module.state_dict().items():
            assert torch.equal(value, other.module.state_dict()[name])
        inputs = make_inputs(spec, spec.steps, spec.batch)
        expected = run(spec, other.module, pristine(other.module), inputs)
        net.reset()
        assert_equal_outputs(run(spec, built.module, net, inputs), expected)
        fresh = build(spec).module
        fresh.load_state_dict(convert(spec, other).state_dict())
        assert_equal_outputs(run(spec, fresh, fresh, inputs), expected)

    holds()


def test_rule_bptt_has_the_gradients_of_the_model() -> None:
    vacuity = Vacuity()

    @given(net_specs())
    @example(TWO_LAYERS)
    def holds(spec: NetSpec) -> None:
        built = build(spec)
        net = convert(spec, built, rule="bptt")
        expected = reference_gradients(spec, built, built.inputs)
        actual = converted_gradients(spec, built, net, built.inputs)
        vacuity.record(spec, has_gradient=assert_gradients_close(actual, expected, rtol=1e-12, may_be_zero=True))

    holds()
    vacuity.check()


def test_measured_with_one_bin_is_exact_for_one_step() -> None:
    vacuity = Vacuity()

    @given(net_specs(FREE_LENGTH))
    @example(TWO_LAYERS)
    def holds(spec: NetSpec) -> None:
        built = build(spec)
        inputs = make_inputs(spec, 1, 16)
        net = convert(spec, built, rule="measured", bins=1)
        expected = reference_gradients(spec, built, inputs)
        actual = converted_gradients(spec, built, net, inputs)
        compared = assert_gradients_close(actual, expected, rtol=1e-9, may_be_zero=True)
        vacuity.record(spec, steps=1, batch=16, has_gradient=compared)

    holds()
    vacuity.check()


def test_measured_with_a_bin_per_step_is_backpropagation_through_time() -> None:
    vacuity = Vacuity()

    @given(net_specs())
    @example(TWO_LAYERS)
    def holds(spec: NetSpec) -> None:
        built = build(spec)
        net = convert(spec, built, rule="measured", bins=spec.steps)
        expected = reference_gradients(spec, built, built.inputs)
        actual = converted_gradients(spec, built, net, built.inputs)
        vacuity.record(spec, has_gradient=assert_gradients_close(actual, expected, rtol=1e-9, may_be_zero=True))

    holds()
    vacuity.check()


@pytest.mark.parametrize("options", [{"bins": 1}, {"rule": "analytic"}], ids=str)
def test_no_parameter_is_left_out_in_silence(options: dict[str, Any]) -> None:
    @given(net_specs())
    @example(TWO_LAYERS)
    def holds(spec: NetSpec) -> None:
        built = build(spec)
        net = convert(spec, built, **options)
        assert set(net.report.parameters) == {name for name, _ in built.module.named_parameters()}
        expected = reference_gradients(spec, built, built.inputs)

        def reaches(name: str) -> bool:
            gradient = expected[name]
            return gradient is not None and bool(gradient.any())

        for name, value in converted_gradients(spec, built, net, built.inputs).items():
            frozen = net.report.parameters[name].status == "frozen"
            assert not frozen or net.report.parameters[name].reason, f"{name}: frozen without a reason"
            assert not frozen or "rule" in options or not reaches(name), f"{name}: frozen, but it has a gradient"
            if not frozen:
                assert value is not None, f"{name}: no gradient, and not reported as frozen"
                assert value.isfinite().all(), f"{name}: gradient not finite"
                assert value.any() or not reaches(name), f"{name}: zero gradient, and not reported as frozen"

    holds()


def test_memory_does_not_depend_on_the_number_of_steps() -> None:
    @given(net_specs())
    @example(TWO_LAYERS)
    def holds(spec: NetSpec) -> None:
        built = build(spec)
        net = convert(spec, built, bins=1)
        saved, live = [], []
        for steps in (8, 16):
            if spec.loop == "fixed":
                spec = NetSpec(**{**vars(spec), "steps": steps})
                built = build(spec)
                net = convert(spec, built, bins=1)
            inputs = make_inputs(spec, steps, spec.batch)
            net.reset()
            leaves = list(inputs) if isinstance(inputs, list) else [inputs]
            with saved_bytes(exclude=[*net.parameters(), *leaves]) as counter:
                loss = mean_loss(run(spec, built.module, net, inputs))
            saved.append(counter.bytes)
            live.append(live_state_bytes(net))
            loss.backward()
        assert saved[0] == saved[1], f"bytes saved for backward at T and 2T: {saved}"
        assert live[0] == live[1], f"bytes of live state at T and 2T: {live}"

    holds()


def test_samples_of_a_batch_do_not_mix() -> None:
    @given(net_specs())
    def holds(spec: NetSpec) -> None:
        built = build(spec)
        net = convert(spec, built)
        axis = 0 if spec.loop in ("batch_first", "step") else 1
        order = torch.arange(spec.batch).roll(1)
        inputs = built.inputs
        if isinstance(inputs, list):
            permuted: Any = [x.index_select(axis, order) for x in inputs]
        else:
            permuted = inputs.index_select(axis, order)
        net.reset()
        plain = run(spec, built.module, net, inputs)
        net.reset()
        out_axis = 1 if spec.output == "stack" and spec.loop in ("shape", "iterate", "fixed") else 0
        for a, e in zip(run(spec, built.module, net, permuted), plain, strict=True):
            torch.testing.assert_close(a, e.index_select(out_axis, order), rtol=1e-9, atol=1e-9)

    holds()


def test_a_step_model_continues_where_it_stopped() -> None:
    vacuity = Vacuity()

    @given(net_specs(("step",)).filter(lambda spec: not spec.explicit_state))
    def holds(spec: NetSpec) -> None:
        built = build(spec)
        vacuity.record(spec)
        net = convert(spec, built)
        whole = [net(x) for x in built.inputs]
        net.reset()
        first = [net(x) for x in built.inputs[:2]]
        snapshot = {key: value.clone() if isinstance(value, Tensor) else value for key, value in net.snapshot().items()}
        rest = [net(x) for x in built.inputs[2:]]
        assert_equal_outputs([*first, *rest], whole)
        other = convert(spec, build(spec))  # another model: this one's states go on with the net
        other.restore(snapshot)
        assert_equal_outputs([other(x) for x in built.inputs[2:]], rest)

    holds()
    vacuity.check()
