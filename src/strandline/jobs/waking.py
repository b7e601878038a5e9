"""Who is told that there are jobs: this process's workers at once, all others by a notice soon.

After a commit only. A notice is a hint: workers poll as well, so one that is lost costs a moment.
The same loop lets ordered jobs begin that were inserted blocked (``order.promote``); what is lost
there is found by the leader's sweep.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import uuid4

from strandline.errors import Unavailable
from strandline.jobs.enqueue import is_due
from strandline.jobs.order import promote
from strandline.jobs.row import ORDERED, NewJob
from strandline.loops import Loop, Rhythm
from strandline.postgres.operations import Op, none
from strandline.postgres.pools import Pool
from strandline.postgres.statements import SqlFile
from strandline.settings import Settings
from strandline.telemetry.journal import Journal
from strandline.telemetry.signals import Signals

log = Journal("strandline.jobs")

CHANNEL = "jobs"
TURNS = "job_turns"  # ordered keys of transactions whose end only the server sees
MOST_TURNS = 100  # told by one commit; the leader's sweep finds the others
MOST_QUEUES = 20  # named in one statement; beyond it all are told to look

_sql = SqlFile(__name__)
NOTIFY_QUEUES = _sql.none("notify_queues")


@dataclass(slots=True)
class Written:
    """What a transaction has enqueued, to be told once it is committed.

    Attributes:
        counts: Jobs by queue.
        queues: Those with jobs that may run at once.
        keys: (queue, key) of ordered jobs: somebody has to see whether it is their turn.
    """

    counts: Counter[str] = field(default_factory=Counter)
    queues: set[str] = field(default_factory=set)
    keys: set[tuple[str, str]] = field(default_factory=set)

    def add(self, jobs: Iterable[NewJob]) -> None:
        """*jobs* are enqueued too."""
        for one in jobs:
            self.counts[one.queue] += 1
            if one.blocked:
                continue
            if one.flags & ORDERED and one.key is not None:
                self.keys.add((one.queue, one.key))
            elif is_due(one):
                self.queues.add(one.queue)

    def update(self, other: Written) -> None:
        """What *other* tells is enqueued too."""
        self.counts.update(other.counts)
        self.queues |= other.queues
        self.keys |= other.keys

    def __bool__(self) -> bool:
        return bool(self.counts)


class Wakes:
    """Tells workers that there are jobs for them.

    Attributes:
        mark: Names this process in notices to itself.
    """

    def __init__(self, pool: Pool, settings: Settings, signals: Signals) -> None:
        self.mark = uuid4().hex[:8]
        self._pool = pool
        self._channel = channel(settings)
        self._signals = signals
        self._local: list[Callable[[str], None]] = []
        self._queues: set[str] = set()
        self._keys: set[tuple[str, str]] = set()
        gap = settings.job_notify_interval
        self._loop = Loop("job wakes", self._tell, Rhythm(interval=3600.0, limit=10.0, gap=gap))

    def start(self) -> None:
        """Begin telling others."""
        self._loop.start()

    async def stop(self) -> None:
        """Tell what is due, and end."""
        await self._loop.stop(timeout=2.0)
        with suppress(TimeoutError, Unavailable):
            async with asyncio.timeout(2.0):
                await self._tell()

    def on(self, wake: Callable[[str], None]) -> Callable[[], None]:
        """Call *wake* with a queue of which this process knows that it has jobs. The answer ends that."""
        self._local.append(wake)
        return lambda: self._local.remove(wake)

    def written(self, written: Written) -> None:
        """*written* is committed."""
        self.enqueued(written.queues, written.keys, written.counts)

    def turn(self, notice: str) -> None:
        """A transaction that this process, or one that hears nothing, took part in has committed."""
        if notice:
            sender, queue, key = json.loads(notice)
            if sender in ("", self.mark):
                self.enqueued((), [(queue, key)])

    def enqueued(
        self,
        queues: Iterable[str],
        keys: Iterable[tuple[str, str]] = (),
        counts: Mapping[str, int] | None = None,
    ) -> None:
        """Jobs in *queues* may run now; of ordered *keys* it is somebody's turn, perhaps."""
        for queue, count in (counts or {}).items():
            self._signals.tell("jobs_enqueued", queue=queue, count=count)
        queues, keys = set(queues), set(keys)
        self._wake(queues)
        self._queues |= queues
        self._keys |= keys
        if queues or keys:
            self._loop.wake()

    async def _tell(self) -> None:
        keys, self._keys = self._keys, set()
        if keys:
            try:
                free = await self._pool.run(promote(keys))
            except BaseException:
                self._keys |= keys
                raise
            self._wake(free)
            self._queues |= free
        queues, self._queues = self._queues, set()
        if queues:
            try:
                await self._pool.run(notify(self._channel, queues))
            except Unavailable as error:
                log.tell("job_notice_not_sent", error=error)  # polling covers it

    def _wake(self, queues: Iterable[str]) -> None:
        for queue in queues:
            for wake in list(self._local):
                wake(queue)


def channel(settings: Settings) -> str:
    """On which it is told that there are jobs."""
    return f"{settings.schema}.{CHANNEL}"


def notify_within(settings: Settings, written: Written, mark: str = "") -> Op[None]:
    """Let the commit of this transaction, which is somebody else's, tell what it has enqueued.

    Args:
        settings: Name the schema.
        written: What was enqueued.
        mark: ``Wakes.mark`` of who shall see whose turn it is; empty: everybody.
    """
    yield from notify(channel(settings), written.queues)
    if written.keys:
        turns = [json.dumps([mark, *one]) for one in sorted(written.keys)[:MOST_TURNS]]
        yield from none(NOTIFY_QUEUES, f"{settings.schema}.{TURNS}", turns)


def notify(channel: str, queues: Iterable[str]) -> Op[None]:
    """Tell that *queues* have jobs; inside a transaction, when it commits."""
    names = sorted(queues)
    if names:
        yield from none(NOTIFY_QUEUES, channel, names if len(names) <= MOST_QUEUES else [""])
