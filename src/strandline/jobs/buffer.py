"""Jobs that were fetched and not begun, in the order in which they were fetched."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable

from strandline.jobs.row import Claimed


class Buffer:
    """Fetched jobs of one queue. Whoever runs one takes it from the left of ``jobs``."""

    __slots__ = ("_arrived", "jobs")

    def __init__(self) -> None:
        self.jobs: deque[Claimed] = deque()
        self._arrived: dict[int, float] = {}  # by claim: all jobs of a claim come together

    def __len__(self) -> int:
        return len(self.jobs)

    def add(self, jobs: list[Claimed], at: float) -> None:
        """*jobs*, all of one claim, have come at *at*."""
        if not self.jobs:
            self._arrived.clear()
        if jobs:
            self._arrived[jobs[0].claim] = at
            self.jobs.extend(jobs)

    def take_stale(self, before: float) -> list[Claimed]:
        """Take out those that came before that moment."""
        jobs, arrived = self.jobs, self._arrived
        taken: list[Claimed] = []
        while jobs and arrived[jobs[0].claim] < before:
            taken.append(jobs.popleft())
        if not jobs:
            arrived.clear()
        elif len(arrived) > 1:
            first = arrived[jobs[0].claim]
            for claim in [one for one, at in arrived.items() if at < first]:
                del arrived[claim]
        return taken

    def take(self, ids: Collection[int]) -> list[Claimed]:
        """Take out those of *ids* that are here."""
        taken = [job for job in self.jobs if job.id in ids]
        if taken:
            self._keep(job for job in self.jobs if job.id not in ids)
        return taken

    def take_all(self) -> list[Claimed]:
        """Take out all."""
        taken = list(self.jobs)
        self.jobs.clear()
        self._arrived.clear()
        return taken

    def _keep(self, jobs: Iterable[Claimed]) -> None:
        kept = list(jobs)
        self.jobs.clear()  # the same deque: the runners know it
        self.jobs.extend(kept)
