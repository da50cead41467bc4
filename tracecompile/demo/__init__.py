"""The demo: one network, trained by backpropagation through time and converted, side by side."""

from tracecompile.demo.data import MissingDependency
from tracecompile.demo.run import run_demo

__all__ = ["MissingDependency", "run_demo"]
