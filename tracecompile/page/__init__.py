"""The report as one HTML file: what was found in a model, drawn; nothing in it is loaded from elsewhere."""

from tracecompile.page.document import page
from tracecompile.page.figures import figures_of

__all__ = ["figures_of", "page"]
