"""What every conversion ends with: the converted module against the model, at sizes that the capture never saw."""

from tracecompile.self_check.check import Checked, check_against_model

__all__ = ["Checked", "check_against_model"]
