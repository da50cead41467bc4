"""One thread at a time: a net has states, and code that is told where in a sequence it stands."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any


class Turn:
    """A lock that the thread that holds it may take again; a copy of it is another lock."""

    def __init__(self) -> None:
        """Is free."""
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def __deepcopy__(self, memo: dict[int, Any]) -> Turn:
        return Turn()

    def __reduce__(self) -> tuple[type[Turn], tuple[()]]:
        return Turn, ()
