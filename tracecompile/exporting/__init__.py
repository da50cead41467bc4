"""export(): a converted network in formats that other programs run."""

from tracecompile.exporting.formats import export
from tracecompile.exporting.exported import Exported

__all__ = ["Exported", "export"]
