"""Tests of tracecompile.saving."""
