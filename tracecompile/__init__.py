"""tracecompile: rewrites recurrent spiking networks so that training memory is constant in the number of time steps."""

from tracecompile import nn
from tracecompile.convert import convert
from tracecompile.diagnostics.fidelity import GradientComparison, compare_gradients
from tracecompile.diagnostics.probe import Probe, probe
from tracecompile.errors import ConversionError
from tracecompile.exporting import export
from tracecompile.report import ConversionReport
from tracecompile.runtime.module import TracedModule
from tracecompile.saving import load, save
from tracecompile.version import VERSION as __version__

__all__ = [
    "ConversionError",
    "ConversionReport",
    "GradientComparison",
    "Probe",
    "TracedModule",
    "__version__",
    "compare_gradients",
    "convert",
    "export",
    "load",
    "nn",
    "probe",
    "save",
]
