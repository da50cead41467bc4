"""What every conversion ends with: the converted module against the model, at sizes that the capture never saw."""

from tracecompile.self_check.check import check_against_model

__all__ = ["check_against_model"]
