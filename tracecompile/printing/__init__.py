"""Programs as Python that runs: the only place that makes text of graphs."""

from tracecompile.printing.code import bind
from tracecompile.printing.page import Printed
from tracecompile.printing.stage import print_graph, print_program
from tracecompile.printing.stages import Stages

__all__ = ["Printed", "Stages", "bind", "print_graph", "print_program"]
