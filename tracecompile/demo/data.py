"""Handwritten digits as spike trains, and what the demo needs to be installed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


class MissingDependency(ImportError):
    """A package of the ``demo`` extra is not installed."""


@dataclass(frozen=True)
class Digits:
    """Images as firing probabilities, [examples, 64] in 0 to 1, and their labels."""

    images: torch.Tensor
    labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor


def load_digits() -> Digits:
    """Returns scikit-learn's digits, every fourth one for the test.

    Raises:
        MissingDependency: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise MissingDependency("The demo needs scikit-learn: pip install 'tracecompile[demo]'") from error
    data = datasets.load_digits()
    images = torch.from_numpy(np.asarray(data.data, dtype=np.float32) / 16.0)
    labels = torch.from_numpy(np.asarray(data.target, dtype=np.int64))
    test = torch.arange(len(labels)) % 4 == 0
    return Digits(images[~test], labels[~test], images[test], labels[test])


def spike_trains(images: torch.Tensor, steps: int, generator: torch.Generator) -> torch.Tensor:
    """Returns Bernoulli spikes [steps, batch, 64] whose probability is the brightness [batch, 64]."""
    return torch.bernoulli(images.expand(steps, *images.shape), generator=generator)
