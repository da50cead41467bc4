"""A generated network that goes through random changes between calls: its net is what an equal model would be.

TRACECOMPILE_CHANGES=1000 python -m pytest tests/around/test_random_changes.py for the long run
"""

from __future__ import annotations

import os
from collections import Counter

import pytest
import torch
from changes import changed
from strategies import Vacuity, build

from around.lived import Lived

LIVES = int(os.environ.get("TRACECOMPILE_CHANGES", "24"))
GROUPS = 4


@pytest.mark.parametrize("first", range(GROUPS))
def test_a_net_lives_through_changes_as_its_model(first: int) -> None:
    vacuity, rounds = Vacuity(), Counter[str]()
    for seed in range(first, LIVES, GROUPS):
        spec = changed(seed)
        built = build(spec.net)
        lived = Lived(spec, built)
        try:
            lived.live()
        except Exception as fault:
            fault.add_note(f"{spec}\n{built.source}")
            raise
        rounds.update(all=len(spec.rounds), refused=lived.refused, seen=lived.seen, moved=lived.moved)
        vacuity.count(torch.cat([each.flatten() for each in lived.outputs]), lived.trained > 0)
    vacuity.check(0.6)
    assert rounds["refused"] <= 0.2 * rounds["all"], rounds
    assert rounds["moved"] >= 0.3 * rounds["seen"] > 0, rounds
