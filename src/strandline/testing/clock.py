"""A clock that moves only when told."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta


class ManualClock:
    """Stands in for ``strandline.clock.SystemClock``; its readings and sleepers move together.

    Args:
        now: Where the wall clock begins.
    """

    def __init__(self, now: datetime = datetime(2030, 1, 1, tzinfo=UTC)) -> None:
        self._begun = now
        self._seconds = 0.0
        self._sleepers: dict[asyncio.Future[None], float] = {}

    def monotonic(self) -> float:
        """Seconds advanced so far."""
        return self._seconds

    def now(self) -> datetime:
        """The beginning, moved by as much."""
        return self._begun + timedelta(seconds=self._seconds)

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock was advanced by *seconds*."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers[woken] = self._seconds + seconds
        try:
            await woken
        finally:
            del self._sleepers[woken]

    @property
    def sleeping(self) -> tuple[float, ...]:
        """For each sleeper how many seconds are left, the next to wake first."""
        left = (
            until - self._seconds for woken, until in self._sleepers.items() if not woken.done()
        )
        return tuple(sorted(left))

    def advance(self, seconds: float) -> None:
        """Let *seconds* go by, and wake whose time has come. Call it from the event loop.

        Raises:
            ValueError: They are negative: a monotonic clock cannot go back.
        """
        if seconds < 0:
            raise ValueError(f"a clock cannot go back by {-seconds} s")
        self._seconds += seconds
        for woken, until in self._sleepers.items():
            # Sums of floats: 0.25 + 0.5 + 1.0 in another order must still be due.
            if until <= self._seconds + 1e-9 and not woken.done():
                woken.set_result(None)
