"""The commands of the command line, one a file; ``tracecompile.cli`` puts them together."""
