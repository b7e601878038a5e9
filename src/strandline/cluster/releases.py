"""Rights given back: the first at once, and with the next statement whatever has ended meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Any

from strandline.cluster import claims
from strandline.cluster.node import Identity
from strandline.postgres.operations import Op
from strandline.telemetry.journal import Journal
from strandline.telemetry.signals import Signals

log = Journal("strandline.reconciler")

Run = Callable[[Op[Any]], Awaitable[Any]]


class Outcome(StrEnum):
    """What became of a release."""

    RELEASED = "released"
    TAKEN = "taken"  # it was somebody else's already, or nobody's
    UNKNOWN = "unknown"  # no answer: the next look shows it


class Releases:
    """Gives back what *me* has stopped running.

    Args:
        me: The node.
        run: Runs an operation, within a limited time.
        signals: Told ``work_released``.
        channel: Where the others are told.
    """

    def __init__(self, me: Identity, run: Run, signals: Signals, channel: str) -> None:
        self.released = 0
        self._me = me
        self._run = run
        self._signals = signals
        self._channel = channel
        self._due: dict[str, tuple[int, asyncio.Future[Outcome]]] = {}
        self._under_way: dict[str, int] = {}
        self._given: dict[str, float] = {}
        self._flushing: asyncio.Task[None] | None = None

    def add(self, work: str, epoch: int) -> asyncio.Future[Outcome]:
        """Give it back as soon as possible; the answer tells what became of that."""
        done: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._due[work] = (epoch, done)
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush(), name="strandline:releases")
        return done

    def is_news(self, work: str, looked: float) -> bool:
        """Whether what a look that began at *looked* says of *work* is not older than its release."""
        if work in self._due or work in self._under_way:
            return False
        return self._given.get(work, 0.0) < looked

    def forget(self, work: str) -> None:
        """It was given back by another statement."""
        self._given[work] = time.monotonic()

    async def all(self) -> int:
        """Give back whatever is still the node's; how much that was.

        Raises:
            Unavailable: The database did not answer.
        """
        given = await self._run(claims.give_back(self._me, channel=self._channel))
        self._tell(given)
        return len(given)

    def cancel(self) -> None:
        """End what is under way: nobody waits for it any more."""
        if self._flushing is not None:
            self._flushing.cancel()

    async def _flush(self) -> None:
        while self._due:
            due, self._due = self._due, {}
            self._under_way = {work: epoch for work, (epoch, _) in due.items()}
            given: list[str] = []
            otherwise = Outcome.UNKNOWN
            try:
                given = await self._run(
                    claims.release(self._me, self._under_way, channel=self._channel)
                )
                otherwise = Outcome.TAKEN
                self._tell(given)
            except Exception as error:  # the next look shows what became of it
                log.tell("release_delayed", works=listed(due), error=error)
            finally:
                self._under_way = {}
                now = time.monotonic()
                for work, (_, done) in due.items():
                    self._given[work] = now
                    if not done.done():
                        done.set_result(Outcome.RELEASED if work in given else otherwise)

    def _tell(self, works: list[str]) -> None:
        if works:
            self.released += len(works)
            log.tell("work_released", works=listed(works), count=len(works))
            self._signals.tell("work_released", count=len(works), works=works)


def listed(names: Any, most: int = 10) -> str:
    """The first names, and how many more there are."""
    found = list(names)
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more
