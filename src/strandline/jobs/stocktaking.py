"""Finds running jobs that their node knows nothing of, and lets them be tried again.

There should be none. But a fail-over may lose the commit of a completion, a claim may be committed
long after its answer was lost, and no other node takes a job from one that lives: the job, and
whatever waits behind its key, would wait for as long as the node does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from strandline.clock import Clock
from strandline.jobs.fetch import claimed_as, first_claim, long_running
from strandline.jobs.fetcher import Fetcher
from strandline.jobs.parts import Completer
from strandline.jobs.row import Claimed, Ended
from strandline.postgres.pools import Pool
from strandline.telemetry.journal import Journal

log = Journal("strandline.jobs")

EVERY = 2.0  # seconds between two looks; a job that is unknown at both is one
REST = 50.0  # times the cost of a look

Held = tuple[int, int]
"""A job, and its claim."""


class Stocktaking:
    """Compares what the table says that a node runs with what it knows of.

    Args:
        pool: Of the database.
        number: The node's.
        fetcher: Knows what is about to come, or to be given back.
        completer: Knows what has ended.
        held: What waits here, or runs.
        clock: The app's.
    """

    def __init__(
        self,
        pool: Pool,
        number: int,
        fetcher: Fetcher,
        completer: Completer,
        held: Callable[[], Iterable[Held]],
        clock: Clock,
    ) -> None:
        self._pool = pool
        self._range = (first_claim(number), first_claim(number + 1))
        self._fetcher = fetcher
        self._completer = completer
        self._held = held
        self._clock = clock
        self._unknown: set[Held] = set()
        self._due = clock.monotonic() + EVERY

    async def look(self) -> None:
        """Look, if it is time."""
        began = self._clock.monotonic()
        if began < self._due:
            return
        rows = await self._pool.run(long_running(*self._range, EVERY))
        took = self._clock.monotonic() - began
        self._due = began + max(EVERY, REST * took)
        before, self._unknown = self._unknown, self._without({(one.id, one.claim) for one in rows})
        lost = before & self._unknown
        if lost:
            jobs = await self._pool.run(claimed_as(sorted(lost)))
            known = self._without(lost)
            for job in jobs:
                if (job.id, job.claim) in known:
                    self._lost(job)

    def _without(self, found: set[Held]) -> set[Held]:
        """Those of *found* that nobody here knows of."""
        if not found:
            return found
        left = found.difference(self._held(), self._completer.held())
        return {one for one in left if not self._fetcher.knows(*one)}

    def _lost(self, job: Claimed) -> None:
        log.tell("job_lost", job=job.id, kind=job.kind)
        at = self._clock.now().isoformat()
        words = "its node knew nothing of this attempt: it never began, or its end was lost"
        record = {"attempt": job.attempt, "at": at, "class": "AttemptLost", "message": words}
        self._completer.put(Ended(job, "retry", error=record))
