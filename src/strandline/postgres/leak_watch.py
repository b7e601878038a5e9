"""Finds transactions that stay open: reports each once, and ends it if that was asked for.

A transaction that nobody ends keeps a connection from others, holds its locks, and stops the
high-water mark once it has appended. The watch knows who began it and where (``checkouts``). With
``leak_rollback_after`` it closes the connection of such a transaction, and only that one; whoever
holds it gets ``TransactionFailed``. One whose COMMIT is on the way is left alone.

A transaction of the caller's own (``app.join``) is reported as well, and never ended: its
connection is not ours. We do not see when it began, so the server is asked before anything is said.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from strandline.errors import Unavailable
from strandline.loops import Loop, Rhythm
from strandline.postgres.checkouts import (
    Checkout,
    Frames,
    Holder,
    callers,
    cut_words,
    leak_words,
    places,
    shortened,
)
from strandline.postgres.faults import driver_errors
from strandline.postgres.operations import Answer, Op, one
from strandline.postgres.statements import SqlFile
from strandline.settings import Settings
from strandline.telemetry.journal import Journal
from strandline.telemetry.signals import Signals

log = Journal("strandline.pools")

LONGEST_REST = 1.0  # seconds between looks: a leak is found this much late at the most
PATIENCE = 2.0  # seconds for a question to the server; the next look asks again


@dataclass(frozen=True, slots=True)
class Ended:
    """Whether the server was told to end a backend."""

    ended: bool


@dataclass(frozen=True, slots=True)
class OpenTransaction:
    """What the server says of a backend's transaction."""

    age: float
    query: str


_sql = SqlFile(__name__)
END_BACKEND = _sql.one("end_backend", Ended)
TRANSACTION_OF = _sql.one("transaction_of", OpenTransaction)


def end_backend(pid: int, application: str, age: float) -> Op[Ended | None]:
    """End our backend *pid* if its transaction is older than *age* seconds."""
    return (yield from one(END_BACKEND, pid, application, age))


def transaction_of(pid: int) -> Op[OpenTransaction | None]:
    """Answer the transaction that the backend *pid* is in, if any."""
    return (yield from one(TRANSACTION_OF, pid))


class Watched(Protocol):
    """What the watch needs of a pool."""

    name: str
    application: str
    is_pooled: bool
    leaked: int
    rolled_back: int

    def checkouts(self) -> list[Checkout]:
        """The connections in use."""
        ...

    def cut(self, held: Checkout, reason: str) -> None:
        """Close a connection under its holder, who is told *reason*."""
        ...

    async def run(self, op: Op[Answer], /) -> Answer:
        """Run one operation."""
        ...


@dataclass(slots=True)
class Joined:
    """A connection of the caller's own, in whose transaction we took part."""

    connection: weakref.ref[Any]
    frames: Frames
    since: float
    reported: bool = False


class LeakWatch:
    """Looks at the open transactions of some pools, again and again."""

    def __init__(
        self, pools: Sequence[Watched], control: Watched, settings: Settings, signals: Signals
    ) -> None:
        self._pools = pools
        self._control = control
        self._report_after = settings.leak_after
        self._end_after = settings.leak_rollback_after
        self._signals = signals
        self._joined: dict[int, Joined] = {}
        soonest = min(self._report_after, self._end_after or self._report_after)
        interval = min(LONGEST_REST, max(0.02, soonest / 5))
        self._loop = Loop("leak watch", self._look, Rhythm(interval=interval, limit=30.0))

    def start(self) -> None:
        """Begin looking."""
        self._loop.start()

    async def stop(self) -> None:
        """End."""
        await self._loop.stop(timeout=1.0)

    def joined(self, connection: Any) -> None:
        """Watch the transaction that the caller's *connection* is in now."""
        try:
            reference = weakref.ref(connection)
        except TypeError:
            return
        self._joined[id(connection)] = Joined(reference, callers(), time.monotonic())

    async def _look(self) -> None:
        now = time.monotonic()
        for pool in self._pools:
            for held in pool.checkouts():
                if held.began is not None and held.watched and not held.ending:
                    await self._judge(pool, held, now - held.began)
        for key, joined in list(self._joined.items()):
            if not await self._is_still_open(joined, now) and self._joined.get(key) is joined:
                del self._joined[key]

    async def _judge(self, pool: Watched, held: Checkout, age: float) -> None:
        if age >= self._report_after and not held.reported:
            held.reported = True
            pool.leaked += 1
            holder = held.holder()
            log.tell(
                "transaction_leaked",
                summary=leak_words(holder, self._report_after),
                pool=pool.name,
                seconds=age,
                place=holder.place,
                query=holder.query,
            )
            self._signals.tell("transaction_leaked", **_facts(holder, age))
        if 0 < self._end_after <= age:
            await self._end(pool, held, age)

    async def _end(self, pool: Watched, held: Checkout, age: float) -> None:
        """Close its connection, and end its backend, which may be in the middle of a statement."""
        holder = held.holder()
        pid = held.connection.get_server_pid()
        pool.cut(held, cut_words(holder, self._end_after))
        pool.rolled_back += 1
        log.tell("transaction_rolled_back", pool=pool.name, holder=holder)
        self._signals.tell("transaction_rolled_back", **_facts(holder, age))
        if pool.is_pooled:  # the number is the pooler's, who notices by itself
            return
        with suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await self._control.run(end_backend(pid, pool.application, age / 2))

    async def _is_still_open(self, joined: Joined, now: float) -> bool:
        """Look at the caller's own connection; whether to look again."""
        connection = joined.connection()
        if connection is None or not _in_transaction(connection):
            return False
        age = now - joined.since
        if joined.reported or age < self._report_after:
            return True
        try:
            async with asyncio.timeout(PATIENCE):
                found = await self._control.run(transaction_of(_pid(connection)))
        except (Unavailable, TimeoutError):
            return True
        if found is None:
            return True
        if found.age < self._report_after:  # another one since then
            joined.since = now - found.age
            return True
        joined.reported = True
        callers_ = places(joined.frames)
        place = str(callers_[0]) if callers_ else "a place unknown"
        query = shortened(found.query)
        log.tell(
            "joined_transaction_leaked",
            seconds=found.age,
            leak_after=self._report_after,
            place=place,
            query=query,
        )
        self._signals.tell(
            "transaction_leaked", pool="joined", age=found.age, place=place, query=query, task=""
        )
        return True


def _facts(holder: Holder, age: float) -> dict[str, Any]:
    return {
        "pool": holder.pool,
        "age": age,
        "place": holder.place,
        "query": holder.query,
        "task": holder.task,
    }


def _in_transaction(connection: Any) -> bool:
    """Whether the caller's connection, of whichever driver, is open and in a transaction."""
    try:
        if hasattr(connection, "is_in_transaction"):
            return not connection.is_closed() and connection.is_in_transaction()
        return not connection.closed and connection.info.transaction_status.name != "IDLE"
    except driver_errors():
        return False


def _pid(connection: Any) -> int:
    if hasattr(connection, "get_server_pid"):
        return int(connection.get_server_pid())
    return int(connection.info.backend_pid)
