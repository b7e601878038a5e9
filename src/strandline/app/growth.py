"""Whether counters have grown lately, for checks that only see what they are at."""

from __future__ import annotations

import threading
import time

LATELY = 120.0  # seconds for which growth is news


class Growth:
    """Remembers counters from one look to the next; looks come from any thread."""

    def __init__(self, lately: float = LATELY) -> None:
        self._lately = lately
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[float, float | None]] = {}  # value, and when it grew last

    def lately(self, name: str, value: float) -> bool:
        """Take in that *name* is at *value*; whether it grew within the last two minutes.

        What it was at before the first look is no growth, for nobody knows when it came.
        """
        now = time.monotonic()
        with self._lock:
            before, grew = self._seen.get(name, (value, None))
            grew = now if value > before else grew
            self._seen[name] = (value, grew)
        return grew is not None and now - grew < self._lately
