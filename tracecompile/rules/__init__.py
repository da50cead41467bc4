"""The gradient rules."""

from tracecompile.program import Settings
from tracecompile.rules.analytic import Analytic
from tracecompile.rules.bptt import Bptt
from tracecompile.rules.exact import Exact
from tracecompile.rules.measured.rule import MeasuredRule
from tracecompile.rules.rule import CoreRule, Response, Rule, Signals

RULES: dict[str, Rule] = {rule.name: rule for rule in (MeasuredRule(), Analytic(), Exact(), Bptt())}
"""By the name that ``convert`` takes."""

__all__ = ["RULES", "CoreRule", "Response", "Rule", "Signals", "rule_of"]


def rule_of(settings: Settings) -> Rule:
    """Returns the rule that the user asked for."""
    return RULES[settings.rule]
