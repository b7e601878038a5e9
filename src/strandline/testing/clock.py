"""A clock that moves only when told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


class ManualClock:
    """Stands in for ``strandline.clock.SystemClock``; both of its readings move together.

    Args:
        now: Where the wall clock begins.
    """

    def __init__(self, now: datetime = datetime(2030, 1, 1, tzinfo=UTC)) -> None:
        self._begun = now
        self._seconds = 0.0

    def monotonic(self) -> float:
        """Seconds advanced so far."""
        return self._seconds

    def now(self) -> datetime:
        """The beginning, moved by as much."""
        return self._begun + timedelta(seconds=self._seconds)

    def advance(self, seconds: float) -> None:
        """Let *seconds* go by.

        Raises:
            ValueError: They are negative: a monotonic clock cannot go back.
        """
        if seconds < 0:
            raise ValueError(f"a clock cannot go back by {-seconds} s")
        self._seconds += seconds
