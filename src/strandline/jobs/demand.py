"""How many jobs to fetch ahead: what the runners will have begun by the time the next claim is back."""

from __future__ import annotations

import math
from collections.abc import Sequence

from strandline.jobs.row import Claimed

LONG = 0.1  # seconds; jobs that take longer on average are not fetched ahead
AHEAD = 2.0  # round trips of the claim that fetched jobs should last for
SHARE = 0.5  # of what was seen last in the mean of how long jobs take
SHARE_OF_TRIP = 0.3
MOST_TEXT = 8_000_000  # characters of arguments fetched ahead: they are kept in memory, and sent in one answer


class Demand:
    """Learns from what has ended how long jobs take, and from claims how long those do.

    Args:
        most: Jobs fetched ahead at the most.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._mean: float | None = None  # seconds of one attempt; None: not known
        self._round_trip = 0.005
        self._size = 1.0  # characters of the arguments of one job
        self._seen = (0, 0.0)

    def claimed(self, seconds: float) -> None:
        """A claim took so long."""
        self._round_trip += SHARE_OF_TRIP * (seconds - self._round_trip)

    def weighed(self, jobs: Sequence[Claimed]) -> None:
        """*jobs* were claimed: those to come may be as large."""
        if jobs:
            size = sum([len(job.args) for job in jobs]) / len(jobs)
            self._size = max(1.0, size, self._size + SHARE * (size - self._size))

    def learn(self, ended: int, seconds: float) -> None:
        """So many attempts have ended so far, and took that long in all."""
        count, took = ended - self._seen[0], seconds - self._seen[1]
        if count:
            self._seen = (ended, seconds)
            mean = took / count
            self._mean = mean if self._mean is None else self._mean + SHARE * (mean - self._mean)

    def forget(self) -> None:
        """Jobs have waited for their turn in vain: fetch none ahead until one has ended."""
        self._mean = None

    def ahead(self, runners: int) -> int:
        """Jobs to fetch beyond what *runners* are at."""
        if self._mean is None or self._mean > LONG:
            return 0
        rate = runners / max(self._mean, 1e-6)
        most = min(self._most, int(MOST_TEXT / self._size))
        return min(most, math.ceil(rate * self._round_trip * AHEAD))
