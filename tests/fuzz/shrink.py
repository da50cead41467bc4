"""The smallest program that ends in the same way."""

from __future__ import annotations

from fuzz.check import Verdict, check
from fuzz.choices import Choices
from fuzz.render import Rendered, render

ROUNDS = 3


def from_choices(taken: dict[str, int]) -> Rendered:
    """Renders a program again from the choices that were taken."""
    return render(Choices(taken=taken))


def shrunk(verdict: Verdict) -> Verdict:
    """Takes the first option wherever the program still ends with the same outcome and reason."""
    best = verdict
    for _ in range(ROUNDS):
        taken = dict(best.rendered.taken)
        for name in list(taken):
            fewer = {key: value for key, value in best.rendered.taken.items() if key != name}
            if len(fewer) == len(best.rendered.taken):
                continue
            try:
                tried = check(from_choices(fewer))
            except Exception:
                continue
            if (tried.outcome, tried.reason) == (verdict.outcome, verdict.reason):
                best = tried
        if len(best.rendered.taken) == len(taken):
            break
    return best
