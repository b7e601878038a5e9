"""Time as seen by the process: monotonic deadlines and UTC instants; replaced in tests."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Where time comes from. Tests pass one that moves when told."""

    def monotonic(self) -> float:
        """Seconds that never go back; their zero means nothing."""
        ...

    def now(self) -> datetime:
        """The wall clock, in UTC. For people and records, never for deadlines."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait until *seconds* have gone by on this clock."""
        ...


class SystemClock:
    """The clock of this machine."""

    def monotonic(self) -> float:
        """See ``Clock``."""
        return time.monotonic()

    def now(self) -> datetime:
        """See ``Clock``."""
        return datetime.now(UTC)

    async def sleep(self, seconds: float) -> None:
        """See ``Clock``."""
        await asyncio.sleep(seconds)


def in_words(seconds: float) -> str:
    """A length of time in two units at the most: ``0.3 s``, ``4 min 10 s``, ``2 d 3 h``."""
    if seconds < 60:
        return f"{max(seconds, 0):.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    for name, size, small, unit in (("d", 86400, "h", 3600), ("h", 3600, "min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {name} {seconds % size // unit:.0f} {small}"
    return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
