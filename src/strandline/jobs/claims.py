"""Claims jobs of one queue: as a rule all that is there, in pieces where that costs too much."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

from strandline.clock import Clock
from strandline.errors import AnswerTimedOut
from strandline.jobs.cursor import START, Cursor
from strandline.jobs.demand import Demand
from strandline.jobs.fetcher import Fetcher
from strandline.jobs.row import Claimed
from strandline.settings import Settings


class Claims:
    """How the jobs of one queue are claimed.

    Args:
        queue: Its name.
        kinds: Those that can be run here.
        fetcher: The node's.
        settings: The app's.
        clock: The app's.
        demand: Learns what a claim takes.
        wake: Makes the next claim due.

    Attributes:
        more: There may be more than what was claimed.
        cursor: Where claims begin to look.
        fetches: So far; *fetched*: the jobs they brought; *seconds*: what the last one took.
    """

    def __init__(
        self,
        queue: str,
        kinds: Sequence[str],
        fetcher: Fetcher,
        settings: Settings,
        clock: Clock,
        demand: Demand,
        wake: Callable[[], None],
    ) -> None:
        self.more = True
        self.cursor = Cursor()
        self.fetches = self.fetched = 0
        self.seconds = 0.0
        self._queue = queue
        self._kinds = kinds
        self._fetcher = fetcher
        self._longest_pause = settings.job_poll_interval
        self._now = clock.monotonic
        self._demand = demand
        self._wake = wake
        self._pause = 0.0

    def woken(self) -> None:
        """There may be something to fetch."""
        self.more = True
        self._pause = 0.0
        self.cursor.wake()

    def rested(self, after: float) -> None:
        """A runner has nothing to do: a limited queue may have room again *after* so many seconds."""
        self._pause = 0.0
        self._look_again(after)

    async def claim(self, wanted: int) -> list[Claimed]:
        """Claim up to *wanted* jobs.

        Raises:
            Unavailable: No answer.
        """
        self.more = False
        cursor, began = self.cursor, self._now()
        start = cursor.start(began)
        if cursor.in_pieces:
            return await self._piece(wanted, start, began)
        try:
            fetched = await self._fetcher.claim(self._queue, self._kinds, wanted, start)
        except AnswerTimedOut:
            cursor.missed(start, began, self._now() - began)
            raise
        cost = self._took(self._now() - began, len(fetched))
        is_short = len(fetched) < wanted
        last = (fetched[-1].priority, fetched[-1].seq) if fetched else START
        look_in = cursor.looked(start, began, cost, is_short, len(fetched), last)
        if look_in is not None:
            self._look_again(look_in)
        self.more = self.more or not is_short
        return fetched

    async def claim_limited(self, wanted: int) -> list[Claimed]:
        """From a queue with limits: what is there may be claimable in a moment only. Raises as ``claim``."""
        self.more = False
        began = self._now()
        fetched = await self._fetcher.claim_limited(self._queue, self._kinds, wanted)
        self._took(self._now() - began, len(fetched or ()))
        if fetched is None:
            self._look_again(random.uniform(0.001, 0.005))  # noqa: S311 - spreading, not secrecy
            return []
        if len(fetched) < wanted:
            self._look_again(self._pause_after(bool(fetched)))
        else:
            self.more = True
        return fetched

    async def _piece(self, wanted: int, start: tuple[int, int], began: float) -> list[Claimed]:
        """Claim from the next piece of the line, however few of its jobs can be run here."""
        cursor = self.cursor
        try:
            piece = await self._fetcher.claim_piece(self._queue, self._kinds, wanted, start)
        except AnswerTimedOut:
            cursor.missed(start, began, self._now() - began)
            raise
        fetched, place, is_end = piece
        cost = self._took(self._now() - began, len(fetched))
        look_in = cursor.pieced(start, began, cost, place, is_end)
        if look_in is None:
            self.more = True
        else:
            self._look_again(look_in)
        return fetched

    def _pause_after(self, has_fetched: bool) -> float:
        """Seconds after which the limits may let another job go."""
        self._pause = (
            0.005 if has_fetched else min(self._longest_pause, max(0.005, self._pause * 2))
        )
        said = self._fetcher.pause_of(self._queue)
        return self._pause if said is None else min(self._longest_pause, max(0.001, said))

    def _look_again(self, delay: float) -> None:
        asyncio.get_running_loop().call_later(delay, self._wake)

    def _took(self, seconds: float, jobs: int) -> float:
        self.fetches += 1
        self.fetched += jobs
        self.seconds = seconds
        self._demand.claimed(seconds)
        return seconds
