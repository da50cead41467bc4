"""What every test runs under: fixed seeds, one thread, and a hypothesis profile."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest
import torch
from hypothesis import register_random, settings

# HYPOTHESIS_PROFILE=nightly python -m pytest ... for the long run
settings.register_profile("ci", derandomize=True, max_examples=50, deadline=None, print_blob=True, database=None)
settings.register_profile("dev", max_examples=200, deadline=None, print_blob=True)
settings.register_profile("nightly", max_examples=5000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


class _TorchRandom(random.Random):
    """Torch's default generator, in the form in which hypothesis seeds and restores random states."""

    def seed(self, a: object = 0, version: int = 2) -> None:
        # random.Random.__init__ calls this too, and must leave torch alone
        if isinstance(a, int):
            torch.manual_seed(a)

    def getstate(self) -> tuple[object, ...]:
        return (torch.get_rng_state(),)

    def setstate(self, state: tuple[object, ...]) -> None:
        torch.set_rng_state(state[0])


# hypothesis keeps a weak reference
_TORCH_RANDOM = _TorchRandom(None)
register_random(_TORCH_RANDOM)


def pytest_configure() -> None:
    # results that do not depend on the number of cores
    torch.set_num_threads(1)
    # TRACECOMPILE_TEST_DEVICE=cuda python -m pytest tests/forms ... makes the models and the inputs there
    if device := os.environ.get("TRACECOMPILE_TEST_DEVICE"):
        torch.set_default_device(device)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    state = torch.get_rng_state()
    torch.manual_seed(0)
    yield
    torch.set_rng_state(state)
