"""Writes how attempts have ended: many in one statement, each under its claim, none ever dropped.

Completions gather while a flush is at the server and go together when it returns; the first one
after a rest goes at once. There is no timer. The connection is its own.

What can go wrong, and what then:

* Another attempt has a job (its claim moved on): nothing is written; counted and logged.
* The server is away: everything is kept and tried again, until ``abandon`` says that the node was
  evicted, when its jobs belong to others.
* The answer is lost: the same is sent again; ``completion.traces`` tells what had been written by
  then from what was lost, so that both are counted right.
* There is no answer in time: it waits aside while others go on. What somebody has locked is told by
  ``completion.locked`` and waits until it is not; else it is halved, until what takes so long is
  alone.
* The data of one job is refused: the flush is halved until that one is alone, which is then
  written without its record and result.
* Even that is refused, or a row is, whatever its data (a trigger, a damaged page): it waits aside
  and is tried again now and then, while the others go on.
* The tables are not as they should be (somebody took a right away, a migration): the same, whole.
* The server is slower than the handlers: ``room`` lets the workers wait.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Iterable

from strandline.errors import TO_THE_PROCESS, SetupError, Unavailable
from strandline.jobs import completion, order
from strandline.jobs.asides import Asides
from strandline.jobs.completer_statistics import CompleterStatistics
from strandline.jobs.completion import NOT_PLAIN
from strandline.jobs.fetcher import PLANS
from strandline.jobs.flush_writer import FlushWriter, Written
from strandline.jobs.flushes import Flush, gathered, grouped, timed
from strandline.jobs.refusals import Trouble, trouble
from strandline.jobs.row import Claimed, Ended, Flag
from strandline.jobs.telling import told
from strandline.jobs.wiring import JobWiring
from strandline.loops import Loop, Rhythm
from strandline.postgres.line import FRESH_PLANS, Line
from strandline.telemetry.journal import Journal

log = Journal("strandline.jobs")

MOST_PENDING = 10_000  # attempts; beyond it workers wait
MOST_PENDING_BYTES = 268_435_456
LONGEST_PAUSE = 1.0  # seconds between tries while the server is away
KEEP_NOTHING = int(Flag.KEEP_NOTHING)
CHANNEL = "job_done"
ASIDE = 5.0  # seconds between tries of what is refused
REST = 10.0  # times the cost of a try that had no answer in time
AGAIN = 1.0  # seconds between looks whether rows are locked
LOCKED = 2  # delays of what was found locked
CONFLICTS = 3  # with others in a row, after which it may be about one job


class Completer:
    """Where attempts go when they have ended.

    Args:
        wiring: What the parts share.
        on_available: Told of queues in which jobs became available.
        application: Stands in ``application_name`` behind ``strandline jobs done``.
    """

    def __init__(
        self,
        wiring: JobWiring,
        *,
        on_available: Callable[[Iterable[str]], None],
        application: str = "",
    ) -> None:
        work, settings = wiring.pools.work, wiring.settings
        self._signals = wiring.signals
        self._notifier = wiring.notifier
        self._clock = wiring.clock
        self._on_available = on_available
        self._line = Line(
            work.url,
            settings.schema,
            application=f"strandline jobs done {application}".rstrip(),
            connect_timeout=settings.connect_timeout,
            deadline=settings.statement_timeout,
            prepared=settings.prepared_statements and not work.is_pooled,
            parameters=PLANS | FRESH_PLANS,
        )
        self._writer = FlushWriter(self._line)
        self._loop = Loop("job completer", self._step, Rhythm(interval=1.0))
        self._groups: defaultdict[int, list[int]] = defaultdict(list)
        self._others: deque[Ended] = deque()
        self._flushes: deque[Flush] = deque()
        self._aside = Asides(wiring.clock)
        self._keys: set[tuple[str, str]] = set()
        self._pending = self._bytes = 0
        self._resting = True
        self._abandoned = False
        self._moved = asyncio.Event()
        self._completed = self._settled = self._fenced = self._untold = 0
        self._sent = self._failures = 0

    # ---- what workers call

    def done(self, job: Claimed, result: str | None = None) -> None:
        """*job* has completed; *result* is JSON text."""
        self._pending += 1
        flags = job[6]
        if flags & NOT_PLAIN or (result is not None and not flags & KEEP_NOTHING):
            self._add(Ended(job, "completed", result))
        else:
            self._groups[job[1]].append(job[0])
        if self._resting:
            self._resting = False
            self._loop.wake()

    def put(self, ended: Ended) -> None:
        """An attempt has ended in another way."""
        self._pending += 1
        self._add(ended)
        if self._resting:
            self._resting = False
            self._loop.wake()

    @property
    def has_room(self) -> bool:
        """Whether it is not too far behind."""
        return self._pending < MOST_PENDING and self._bytes < MOST_PENDING_BYTES

    async def room(self) -> None:
        """Wait until it is not too far behind, or has been abandoned."""
        while not (self.has_room or self._abandoned):
            self._moved.clear()
            await self._moved.wait()

    def held(self) -> set[tuple[int, int]]:
        """Jobs of which it is not written yet how they ended, each with its claim."""
        held = {(one, claim) for claim, ids in self._groups.items() for one in ids}
        held.update((one.job.id, one.job.claim) for one in self._others)
        for flush in (*self._flushes, *self._aside):
            held.update((one.id, one.claim) for one in flush.held())
        return held

    # ---- its life

    def start(self) -> None:
        """Begin writing."""
        self._loop.start()

    async def stop(self, timeout: float) -> bool:
        """Write what is pending, for *timeout* seconds at the most, and end.

        Returns:
            Whether nothing is left to be written.
        """
        until = self._clock.monotonic() + timeout
        self._aside.hasten(all=True)
        self._loop.wake()
        while self._pending and self._loop.running and not self._abandoned:
            left = until - self._clock.monotonic()
            if left <= 0:
                break
            self._moved.clear()
            try:
                async with asyncio.timeout(min(left, LONGEST_PAUSE)):
                    await self._moved.wait()
            except TimeoutError:
                pass
        left = until - self._clock.monotonic()
        await self._loop.stop(timeout=0.05 if self._pending else max(left, 1.0))
        await self._line.close()
        if self._pending and not self._abandoned:
            log.tell("ended_jobs_lost", count=self._pending)
        return self._abandoned or not self._pending

    def abandon(self) -> None:
        """The node is evicted: its jobs belong to others, so nothing more is written."""
        if self._pending:
            log.tell("ended_jobs_left", count=self._pending)
        self._abandoned = True
        self._forget()
        self._line.cut()
        self._moved.set()

    def _forget(self) -> None:
        for things in (self._groups, self._others, self._flushes, self._aside, self._keys):
            things.clear()
        self._pending = self._bytes = 0

    def statistics(self) -> CompleterStatistics:
        """A picture of now."""
        return CompleterStatistics(
            pending=self._pending,
            aside=self._aside.size,
            completed=self._completed,
            settled=self._settled,
            fenced=self._fenced,
            untold=self._untold,
            flushes=self._sent,
            failures=self._failures,
            loop=self._loop.statistics(),
        )

    # ---- gathering

    def _add(self, one: Ended) -> None:
        if one.result is not None:
            completion.fit(one)
            self._bytes += len(one.result or "")
        self._others.append(one)

    def _gather(self) -> None:
        """Make flushes of what has come in."""
        if self._groups:
            self._flushes.append(grouped(self._groups))
        if self._others:
            self._flushes.extend(gathered(self._others))

    # ---- writing

    async def _step(self) -> bool:
        """Write one round. True: there is more."""
        if self._abandoned:
            self._forget()
            self._resting = True
            return False
        if not self._flushes:
            self._gather()
        now = self._clock.monotonic()
        if (due := self._aside.taken(now)) is not None:
            self._flushes.append(due)
        try:
            while self._flushes:
                with timed(self._signals, self._flushes[0]):
                    await self._write(self._flushes[0])
            if self._keys:
                await self._promoted()
        except (Unavailable, SetupError) as error:
            await self._away(error)
            return True
        self._back()
        self._resting = not (self._groups or self._others)
        return not self._resting or self._aside.is_due(now)

    async def _write(self, flush: Flush) -> None:
        """Send the first flush; it leaves the line only with an answer."""
        if flush.delays and self._parted(flush, await self._writer.locked(flush)):
            return
        self._sent += 1
        began = self._clock.monotonic()
        try:
            written = await self._writer.write(flush)
        except TO_THE_PROCESS:
            raise
        except Exception as error:
            self._failed(flush, error, self._clock.monotonic() - began)
        else:
            self._written(flush, written)

    def _written(self, flush: Flush, written: Written) -> None:
        self._completed += written.completed
        self._settled += written.settled
        self._untold += written.untold
        self._keys |= written.keys
        self._woke(written.queues)
        if written.is_shown:
            self._notifier.notify(CHANNEL)
        if written.lost and not self._abandoned:
            self._fenced += written.lost
            log.tell(
                "completions_refused",
                count=written.lost,
                job_ids=tuple(written.lost_ids[:20]) or "all of them have ended",
            )
            told(self._signals, "jobs_fenced", count=written.lost, ids=tuple(written.lost_ids))
        if self._abandoned or self._flushes[0] is not flush:
            return
        self._flushes.popleft()
        self._pending -= flush.size
        self._bytes -= flush.bytes
        self._moved.set()
        if flush.was_aside and not flush.delays:
            self._aside.hasten()  # what kept it out may be over for all

    async def _promoted(self) -> None:
        queues = await self._line.run(order.promote(self._keys))
        self._keys.clear()
        self._woke(queues)

    def _woke(self, queues: Iterable[str]) -> None:
        if queues:
            try:
                self._on_available(queues)
            except Exception as error:  # it is written all the same
                log.tell("queues_not_told", trace=error)

    # ---- trouble

    def _failed(self, flush: Flush, error: Exception, cost: float) -> None:
        """*flush* could not be written: it waits with all others, or aside while they go on.

        Raises:
            Unavailable: There is a pause before anything else is sent.
        """
        what = trouble(error)
        if what in ("away", "late"):
            flush.is_doubtful = True
        if not self._flushes or self._flushes[0] is not flush:  # abandoned
            return
        if what == "away":
            raise error
        if what in ("late", "conflict"):
            flush.delays += 1
            if what == "late" or flush.delays >= CONFLICTS:
                self._delayed(flush, cost)
            raise error
        self._refused(flush, error, what)

    def _delayed(self, flush: Flush, cost: float) -> None:
        """It takes too long, or meets the same others again and again: that may be about one job."""
        self._flushes.popleft()
        if flush.delays == 1:
            self._aside.put([flush], 0.0)
        elif flush.size > 1:
            self._aside.put(flush.halves(), cost)
        else:
            self._aside.put([flush], max(ASIDE, REST * cost))

    def _parted(self, flush: Flush, locked: set[int]) -> bool:
        """Put those jobs of the first flush aside whose rows are *locked*; whether there are any."""
        if not locked or not self._flushes or self._flushes[0] is not flush:
            return bool(locked)
        self._flushes.popleft()
        held, free = flush.parted(locked)
        if free.size:
            self._flushes.appendleft(free)
        if flush.delays < LOCKED:
            held.delays = LOCKED
            log.tell("ended_jobs_locked", count=held.size)
        self._aside.put([held], AGAIN)
        return True

    def _refused(self, flush: Flush, error: Exception, what: Trouble) -> None:
        """The server does not take *flush*: smaller, without its data, later."""
        self._flushes.popleft()
        if what == "setup":  # as a rule for all, and for a moment
            self._aside.put(flush.halves() if flush.was_aside else [flush], ASIDE)
            self._aside.defer(ASIDE)
        elif flush.size > 1:
            self._flushes.extendleft(reversed(flush.halves()))
            return
        elif what == "data" and (stripped := flush.stripped()) is not None:
            self._bytes -= flush.bytes
            self._flushes.appendleft(stripped)
            job = flush.items[0].job
            log.tell("result_not_stored", job=job.id, kind=job.kind, error=error)
            return
        else:
            self._aside.put([flush], ASIDE)
        log.tell("ended_jobs_refused", count=flush.size, seconds=ASIDE, error=error)
        told(self._signals, "jobs_refused", count=flush.size, error=error)

    async def _away(self, error: Exception) -> None:
        if self._abandoned:
            return
        self._failures += 1
        if self._failures == 1:
            log.tell("ended_jobs_delayed", count=self._pending, error=error)
            told(self._signals, "jobs_delayed", pending=self._pending, error=error)
        await asyncio.sleep(min(LONGEST_PAUSE, 0.05 * 2 ** min(self._failures, 10)))

    def _back(self) -> None:
        if self._failures:
            log.tell("ended_jobs_taken_again", failures=self._failures)
            self._failures = 0
