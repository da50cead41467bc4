"""The rewriting passes of the compiler, one a file, in the order that ``pipeline.py`` lists.

The folder is at the top of the repository and its import name is ``tracecompile.passes`` (see pyproject.toml).
"""

if __name__ != "tracecompile.passes":
    raise ImportError(
        f"this folder was imported as {__name__!r}, which would make a second copy of every class in it; "
        "its import name is 'tracecompile.passes'"
    )
