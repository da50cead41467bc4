"""Converted networks as folders: a program in a written form, the code that is printed from it, and weights."""

from tracecompile.saving.folder import load, save

__all__ = ["load", "save"]
