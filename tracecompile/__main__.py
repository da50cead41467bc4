"""``python -m tracecompile``."""

from tracecompile.cli import main

main()
