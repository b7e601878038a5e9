"""Looks at everything again and again, on one node: the leader's, or a solo one.

A duty of the leader, so that a cluster is looked at once and not by every node. What was seen is
kept for metrics and health while it is fresh, and told as ``surveyed``. When looks fail, ``age``
grows, and after ``INTERVALS`` intervals nothing is shown any more: stale numbers must not look
alive. Looking writes nothing, so nothing is fenced: a former leader that has not heard of its
end does no harm, and shows nothing once it has. For the same reason an end cuts the look under
way, and waits for nothing.

Looks have a connection of their own: one that hangs holds up neither the mark nor those who wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from strandline.clock import Clock, SystemClock
from strandline.cluster.leading import Term
from strandline.loops import Loop, Rhythm
from strandline.postgres.line import FRESH_PLANS, Line
from strandline.settings import Settings
from strandline.survey.facts import Survey
from strandline.survey.survey import SECOND_LOOK, WITHIN, take
from strandline.telemetry.signals import Signals

INTERVALS = 3  # after so many without a look nothing is shown any more
GRACE = 2.0  # seconds added to these, for a look under way
LIMIT = 20.0  # seconds one look may take with all its parts
ALONE = -1  # the epoch where there is no cluster


@dataclass(frozen=True, slots=True)
class SurveyStatistics:
    """What the office of this node shows.

    Attributes:
        last: What was seen last; None before the first look, and when it is too old to be shown.
        age: Seconds since then; since the office began if nothing was seen yet.
        surveys: Looks that went well.
        failures: Looks that did not, in a row.
    """

    last: Survey | None
    age: float
    surveys: int
    failures: int


class _TermOverError(Exception):
    """Ends the loop of a term."""


class SurveyOffice:
    """An ``Office`` of the cluster, or begun ``alone``.

    Args:
        url: Where it looks: where control goes, on a connection of each term's own.
        settings: ``survey_interval``, ``stale_after``; of connections.
        signals: Told ``surveyed``.
        detects: Whether a detector of the mark is at work in this process; nothing in the database
            says that its loop has ended.
        clock: Source of ages.
    """

    def __init__(
        self,
        url: str,
        settings: Settings,
        signals: Signals,
        *,
        detects: Callable[[], bool],
        clock: Clock | None = None,
    ) -> None:
        self._url = url
        self._settings = settings
        self._signals = signals
        self._detects = detects
        self._clock = clock or SystemClock()
        self._watch: _Watch | None = None
        self._ending: list[_Watch] = []

    def begin(self, term: Term) -> None:
        """See ``Office``."""
        self._begin(term.epoch, term.me)

    def begin_alone(self) -> None:
        """Begin where there is no cluster."""
        self._begin(ALONE, None)

    def serves(self, epoch: int) -> bool:
        """See ``Office``."""
        return self._watch is not None and self._watch.epoch == epoch and self._watch.is_at_work

    def end(self, epoch: int) -> None:
        """See ``Office``."""
        if self._watch is not None and self._watch.epoch <= epoch:
            self._end()

    async def stop(self, *, timeout: float) -> None:
        """See ``Office``."""
        self._end()
        ending, self._ending = self._ending, []
        await asyncio.gather(*(watch.stop(timeout=timeout) for watch in ending))

    def wake(self) -> None:
        """See ``Office``: it looks by its own clock, since nothing waits for what it sees."""

    def statistics(self) -> SurveyStatistics | None:
        """A picture of now, for any thread; None where this node does not look."""
        watch = self._watch
        return watch.statistics() if watch is not None else None

    @property
    def last(self) -> Survey | None:
        """What was seen last, if it is fresh and this node looks."""
        found = self.statistics()
        return found.last if found is not None else None

    def _begin(self, epoch: int, me: UUID | None) -> None:
        if self.serves(epoch):
            return
        self._end()

        line = self._line()

        async def look() -> Survey:
            detects = self._detects()
            return await take(line, stale_after=self._settings.stale_after, detects=detects, me=me)

        interval = self._settings.survey_interval
        self._watch = _Watch(epoch, look, line.cut, interval, self._signals, self._clock)
        self._watch.start()

    def _line(self) -> Line:
        settings, url = self._settings, self._url
        is_pooled = settings.pooler == "transaction" and url != settings.direct_url
        idle = str(
            int(settings.idle_transaction_timeout * 1000)
        )  # a frozen process holds a snapshot
        return Line(
            url,
            settings.schema,
            application="strandline survey",
            connect_timeout=min(settings.connect_timeout, WITHIN / 2),  # then the next host's turn
            deadline=WITHIN,
            prepared=settings.prepared_statements and not is_pooled,
            parameters={**FRESH_PLANS, "idle_in_transaction_session_timeout": idle},
        )

    def _end(self) -> None:
        watch, self._watch = self._watch, None
        self._ending = [one for one in self._ending if one.is_at_work]
        if watch is not None:
            watch.end()
            self._ending.append(watch)


class _Watch:
    """The looks of one term; what was seen is forgotten with it."""

    def __init__(
        self,
        epoch: int,
        look: Callable[[], Coroutine[Any, Any, Survey]],
        disconnect: Callable[[], None],
        interval: float,
        signals: Signals,
        clock: Clock,
    ) -> None:
        self.epoch = epoch
        self._look = look
        self._disconnect = disconnect
        self._looking: asyncio.Task[Survey] | None = None
        self._fresh = INTERVALS * interval + GRACE
        self._signals = signals
        self._clock = clock
        self._is_over = self._is_doubtful = False
        self._soon = min(interval, SECOND_LOOK)
        self._seen: tuple[Survey | None, float, int] = (None, clock.monotonic(), 0)
        rhythm = Rhythm(interval, limit=LIMIT, gap=min(interval, 0.05))
        self._loop = Loop("survey", self._step, rhythm, ends_on=(_TermOverError,), clock=clock)

    def start(self) -> None:
        self._loop.start()

    @property
    def is_at_work(self) -> bool:
        return self._loop.running

    def end(self) -> None:
        """Begin no further look, and cut the one under way."""
        self._is_over = True
        if self._looking is not None:
            self._looking.cancel()
        self._disconnect()
        self._loop.wake()

    async def stop(self, *, timeout: float) -> None:
        await self._loop.stop(timeout=timeout)

    def statistics(self) -> SurveyStatistics:
        last, at, surveys = self._seen
        age = self._clock.monotonic() - at
        return SurveyStatistics(
            last=last if age <= self._fresh else None,
            age=age,
            surveys=surveys,
            failures=self._loop.statistics().consecutive_failures,
        )

    async def _step(self) -> None:
        self._check()
        self._looking = asyncio.create_task(self._look(), name="strandline:look")
        try:
            survey = await self._looking
        except asyncio.CancelledError:
            self._check()
            raise
        finally:
            self._looking = None
        self._check()
        is_doubted_first = survey.mark.detector_state != "alive" and not self._is_doubtful
        self._is_doubtful = survey.mark.detector_state != "alive"
        if is_doubted_first:  # the duty may just be changing hands: two looks say so, or none
            survey = replace(survey, mark=replace(survey.mark, detector_state="alive"))
        self._seen = (survey, self._clock.monotonic(), self._seen[2] + 1)
        self._signals.tell("surveyed", survey=survey, seconds=survey.seconds)
        if is_doubted_first:  # not waited for here: an end must not wait for it either
            asyncio.get_running_loop().call_later(self._soon, self._loop.wake)

    def _check(self) -> None:
        if self._is_over:
            raise _TermOverError
