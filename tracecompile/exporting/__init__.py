"""export(): a converted network in formats that other programs run."""

from tracecompile.exporting.exported import Exported
from tracecompile.exporting.formats import export

__all__ = ["Exported", "export"]
