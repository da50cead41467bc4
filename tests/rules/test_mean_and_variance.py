"""Statistics of a batch: in two passes over the values, and no less precise than torch's one pass."""

from __future__ import annotations

import pytest
import torch

from tracecompile.rules.norm import batch_statistics, mean_and_variance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 6), (2, 1, 3, 4), (1, 2)])
def test_they_are_those_of_torch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    value = (100 + torch.randn(shape, dtype=torch.float64)).to(dtype)
    axes = [axis for axis in range(value.ndim) if axis != 1]
    variance, mean = torch.var_mean(value.double(), axes, unbiased=False)
    found = batch_statistics(value)
    assert [each.dtype for each in found] == [dtype, dtype]
    assert [each.shape for each in found] == [mean.shape, mean.shape]
    for one, other in zip(found, (mean, variance), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=4 * torch.finfo(dtype).eps, atol=1e-12)


def test_their_gradients_are_those_of_torch() -> None:
    value = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 3, dtype=torch.float64)
    pulls = []
    for mean, variance in (batch_statistics(value), torch.var_mean(value, (0, 2), unbiased=False)[::-1]):
        loss = (weights[0] * mean + weights[1] * variance).sum()
        pulls.append(torch.autograd.grad(loss, value)[0])
    torch.testing.assert_close(*pulls, rtol=1e-12, atol=1e-14)


def test_steps_are_kept_apart() -> None:
    values = torch.randn(3, 4, 2, 5)
    mean, variance = mean_and_variance(values, (1, 3))
    for step, value in enumerate(values):
        for one, other in zip((mean[step], variance[step]), batch_statistics(value), strict=True):
            torch.testing.assert_close(one, other)
