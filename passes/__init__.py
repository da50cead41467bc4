"""The rewriting passes of the compiler, one a file, in the order that ``pipeline.py`` lists.

What a pass is stands in ``base.py``, and that it leaves alone what it is given in ``untouched.py``. The other files are
the words in which passes promise: ``compared.py`` and ``glued.py`` for all of them, ``inverted.py``, ``scheduled.py``
and ``emitted.py`` for one each.

The folder is at the top of the repository and its import name is ``tracecompile.passes`` (see pyproject.toml).
"""

if __name__ != "tracecompile.passes":
    raise ImportError(
        f"this folder was imported as {__name__!r}, which would make a second copy of every class in it; "
        "its import name is 'tracecompile.passes'"
    )
