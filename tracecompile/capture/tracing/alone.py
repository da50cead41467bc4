"""Captures one after the other, each in the thread that has asked for it.

While a model is captured, classes of torch and of Python hand what is called to the capture. They are those of the
whole process: no two captures may run at once, and what other threads call meanwhile is none of the capture's business.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

ONE_AT_A_TIME = threading.RLock()
"""Held by the thread that compiles a model."""


def other_threads() -> Callable[[], bool]:
    """Returns what tells whether it is called from another thread than this is."""
    own = threading.get_ident()
    return lambda: threading.get_ident() != own
