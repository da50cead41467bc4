"""The benchmark: training a network in every way that is at hand, side by side."""

from tracecompile.bench.result import BenchResult, Row
from tracecompile.bench.run import run_bench

__all__ = ["BenchResult", "Row", "run_bench"]
