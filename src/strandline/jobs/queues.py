"""Queues: what is said about them, by code and by operators, and the picture of it that a node keeps.

A queue needs no settings to be used. What code declares holds until an operator sets something;
then the operator's word stays until the queue is forgotten.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from strandline.errors import InvalidInput
from strandline.jobs.words import checked_word
from strandline.loops import Loop, Rhythm
from strandline.postgres.listener import Listener
from strandline.postgres.operations import Op, many, none, one
from strandline.postgres.pools import Pool
from strandline.postgres.statements import SqlFile
from strandline.telemetry.journal import Journal

log = Journal("strandline.jobs")

CHANNEL = "queues"
LOOK_EVERY = 2.0  # seconds between looks without a notice
COUNTED = 10_000  # up to which a list is exact
MOST = 2_147_483_647
LONGEST_REASON = 1_000

Rate = tuple[int, float]


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """What is said about a queue.

    Attributes:
        concurrency: Jobs of it at once on one node; None: nobody said.
        at_most: Jobs of it running at once in the whole cluster.
        per_key: The same for each key.
        rate: So many may begin in *rate_seconds*: as many at once at the most, then as they come
            due. A job that is tried again pays again.
        set_by: ``code`` or ``operator``; empty: nothing was said.
    """

    name: str
    concurrency: int | None = None
    at_most: int | None = None
    per_key: int | None = None
    rate: int | None = None
    rate_seconds: float | None = None
    paused_at: datetime | None = None
    paused_reason: str = ""
    set_by: str = ""

    @property
    def is_paused(self) -> bool:
        """Whether nothing is fetched from it."""
        return self.paused_at is not None

    @property
    def is_limited(self) -> bool:
        """Whether claims go by ``limits.claim``."""
        return not self.at_most is self.per_key is self.rate is None


@dataclass(frozen=True, slots=True)
class QueueState(QueueSettings):
    """A queue with what waits and runs in it.

    Attributes:
        available: Exact up to ``COUNTED``, and that if there are more; so is *scheduled*.
        oldest: Seconds the job that is next has waited since it was enqueued; None: there is none.
    """

    available: int = 0
    scheduled: int = 0
    running: int = 0
    oldest: float | None = None


@dataclass(frozen=True, slots=True)
class Named:
    """A queue that was changed."""

    name: str


class Unsaid:
    """Stands for an argument that was not given, where None means something."""

    def __repr__(self) -> str:
        return "UNSAID"


UNSAID = Unsaid()

_sql = SqlFile(__name__)
LIST_SETTINGS = _sql.many("list_settings", QueueSettings)
DECLARE_QUEUE = _sql.one("declare_queue", Named)
SET_QUEUE = _sql.one("set_queue", QueueSettings)
PAUSE_QUEUE = _sql.one("pause_queue", Named)
RESUME_QUEUE = _sql.one("resume_queue", Named)
FORGET_QUEUE = _sql.one("forget_queue", Named)
COUNT_RUNNING = _sql.none("count_running")
LIST_QUEUES = _sql.many("list_queues", QueueState)


def declared(
    name: str,
    *,
    concurrency: int | None = None,
    at_most: int | None = None,
    per_key: int | None = None,
    rate: Rate | None = None,
) -> QueueSettings:
    """Settings as code says them, checked.

    Args:
        name: Of the queue.
        concurrency: See ``QueueSettings``, as the others.
        at_most: In the cluster.
        per_key: In the cluster.
        rate: (jobs, seconds).

    Raises:
        InvalidInput: A number is not positive, or the name cannot be one.
    """
    checked_word(name, "queue")
    jobs, seconds = _rate(rate)
    return QueueSettings(
        name,
        concurrency=_number("concurrency", concurrency),
        at_most=_number("at_most", at_most),
        per_key=_number("per_key", per_key),
        rate=jobs,
        rate_seconds=seconds,
        set_by="code",
    )


def declare(settings: QueueSettings, *, schema: str) -> Op[bool]:
    """Say in the name of code what *settings* says; whether that changed anything."""
    found = yield from one(
        DECLARE_QUEUE,
        settings.name,
        settings.concurrency,
        settings.at_most,
        settings.per_key,
        settings.rate,
        settings.rate_seconds,
        _channel(schema),
    )
    return found is not None


def set_queue(
    name: str,
    *,
    schema: str,
    concurrency: int | Unsaid | None = UNSAID,
    at_most: int | Unsaid | None = UNSAID,
    per_key: int | Unsaid | None = UNSAID,
    rate: Rate | Unsaid | None = UNSAID,
) -> Op[QueueSettings]:
    """Set what is given, in the name of an operator; None takes a limit away."""
    checked_word(name, "queue")
    said: dict[str, Any] = {
        what: _number(what, value)
        for what, value in (
            ("concurrency", concurrency),
            ("at_most", at_most),
            ("per_key", per_key),
        )
        if not isinstance(value, Unsaid)
    }
    if not isinstance(rate, Unsaid):
        said["rate"], said["rate_seconds"] = _rate(rate)
    if not said:
        raise InvalidInput("nothing was given to set")
    found = yield from one(SET_QUEUE, name, json.dumps(said), _channel(schema))
    assert found is not None  # it is inserted or updated
    if found.is_limited:
        yield from none(COUNT_RUNNING, [name])
    return found


def pause(name: str, reason: str = "", *, schema: str) -> Op[None]:
    """Fetch nothing from it any more, on any node; what runs goes on."""
    checked_word(name, "queue")
    clean = reason.replace("\0", "").encode(errors="replace").decode()[:LONGEST_REASON]
    yield from one(PAUSE_QUEUE, name, clean, _channel(schema))


def resume(name: str, *, schema: str) -> Op[bool]:
    """Fetch from it again; whether it was paused."""
    checked_word(name, "queue")
    return (yield from one(RESUME_QUEUE, name, _channel(schema))) is not None


def forget(name: str, *, schema: str) -> Op[bool]:
    """Forget all that was said about it, a pause too; whether there was something."""
    checked_word(name, "queue")
    return (yield from one(FORGET_QUEUE, name, _channel(schema))) is not None


def list_queues() -> Op[list[QueueState]]:
    """All queues that have settings or jobs, with counts."""
    return (yield from many(LIST_QUEUES, COUNTED))


class Queues:
    """What is said about all queues, as this node knows it: at most ``LOOK_EVERY`` seconds old.

    Args:
        pool: To read it.
        listener: Hears of changes.
        interval: Seconds between looks without a notice.
    """

    def __init__(self, pool: Pool, listener: Listener, *, interval: float = LOOK_EVERY) -> None:
        self._pool = pool
        self._listener = listener
        self._on_changed: list[Callable[[], None]] = []
        self._known: dict[str, QueueSettings] = {}
        self._counting: set[str] = set()
        self._deaf: Callable[[], None] | None = None
        self._loop = Loop("queues", self._looked, Rhythm(interval=interval, limit=10.0))

    def settings_of(self, queue: str) -> QueueSettings:
        """What is said about *queue*; nothing but its name if nothing is."""
        return self._known.get(queue) or QueueSettings(queue)

    def on_changed(self, call: Callable[[], None]) -> Callable[[], None]:
        """Call *call* when the settings of a queue are others now. The answer ends that."""
        self._on_changed.append(call)
        return lambda: self._on_changed.remove(call)

    async def start(self) -> None:
        """Read it, and keep it fresh from now on.

        Raises:
            Unavailable: It cannot be read.
        """
        if self._deaf is None:
            self._deaf = self._listener.on(CHANNEL, lambda _: self._loop.wake())
            await self._looked()
            self._loop.start()

    async def stop(self) -> None:
        """End that."""
        deaf, self._deaf = self._deaf, None
        if deaf is not None:
            deaf()
        await self._loop.stop(timeout=1.0)

    async def _looked(self) -> None:
        found = {row.name: row for row in await self._pool.run(many(LIST_SETTINGS))}
        names = found.keys() | self._known.keys()
        changed = {name for name in names if found.get(name) != self._known.get(name)}
        self._known = found
        for call in list(self._on_changed) if changed else ():
            try:
                call()
            except Exception as error:  # whoever fails must not keep the settings from the others
                log.tell("queue_settings_failed", queues=sorted(changed), trace=error)
        limited = {name for name in changed if self.settings_of(name).is_limited}
        # Twice: an unlimited claim may have been under way at the first time.
        if counting := limited | self._counting:
            await self._pool.run(none(COUNT_RUNNING, sorted(counting)))
        self._counting = limited


def _channel(schema: str) -> str:
    return f"{schema}.{CHANNEL}"


def _number(what: str, value: int | None) -> int | None:
    return None if value is None else _positive(what, value)


def _positive(what: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST:
        raise InvalidInput(f"{what} is a whole number from 1, or None: {value!r}")
    return value


def _rate(rate: Any) -> tuple[int, float] | tuple[None, None]:
    if rate is None:
        return None, None
    if not isinstance(rate, tuple | list) or len(rate) != 2:
        raise InvalidInput(f"a rate is (jobs, seconds), e.g. (100, 60): {rate!r}")
    jobs, seconds = _positive("rate", rate[0]), rate[1]
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise InvalidInput(f"a rate is (jobs, seconds), e.g. (100, 60): {rate!r}")
    if not 0.001 <= seconds <= 31_536_000:
        raise InvalidInput(f"the seconds of a rate are between 0.001 and a year: {rate!r}")
    return jobs, float(seconds)
