"""The passes, each alone on programs written by hand."""
