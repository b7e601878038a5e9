"""A job's effects and its end as one commit."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from strandline.backoff import QUICK
from strandline.errors import ClaimLost, OutcomeUnknown, Unavailable
from strandline.jobs import completion, order
from strandline.jobs.completer import CHANNEL
from strandline.jobs.completion import Linked
from strandline.jobs.row import Claimed, Ended
from strandline.jobs.wiring import JobWiring
from strandline.postgres.operations import Op, one
from strandline.postgres.pools import Pool
from strandline.postgres.statements import SqlFile
from strandline.telemetry.journal import Journal

log = Journal("strandline.jobs")


@dataclass(frozen=True, slots=True)
class Numbered:
    """The number of a transaction."""

    xid: str


@dataclass(frozen=True, slots=True)
class Status:
    """What became of a transaction."""

    status: str | None


class StillUnknown(Unavailable):
    """The server is still at the commit whose answer was lost."""


_sql = SqlFile(__name__)
NUMBER = _sql.one("number_transaction", Numbered)
STATUS = _sql.one("transaction_status", Status)


@asynccontextmanager
async def completing(
    wiring: JobWiring,
    job: Claimed,
    result: str | None = None,
    *,
    on_available: Callable[[Iterable[str]], None],
) -> AsyncIterator[Any]:
    """A transaction that completes *job* as it commits; its ``tx``.

    Nothing else may be written about the job afterwards.

    Args:
        wiring: What the parts share.
        job: As it was claimed.
        result: JSON text.
        on_available: Told of queues in which jobs became available.

    Raises:
        ClaimLost: Another attempt has the job; everything is rolled back.
        OutcomeUnknown: The answer to the commit was lost, and the server did not come back in time
            to tell whether it was done.
    """
    ended = Ended(job, "completed", result)
    completion.fit(ended)
    xid = ""
    try:
        async with wiring.pools.work.transaction() as session:
            tx, committed = wiring.begin(session)
            yield tx
            linked = await session.run(completion.settle_linked([ended]))
            if not linked.settled:
                raise ClaimLost(job.id, claim=job.claim)
            xid = await session.run(_number())
    except OutcomeUnknown:
        if not xid or not await _was_committed(wiring.pools.control, xid, job.id):
            raise
    committed()
    wiring.notifier.notify(CHANNEL)
    await _follow(wiring.pools.work, linked, on_available)


def _number() -> Op[str]:
    found = yield from one(NUMBER)
    return found.xid if found else ""


def _status(xid: str, job: int) -> Op[str | None]:
    found = yield from one(STATUS, xid, job)
    return found.status if found else None


async def _follow(
    pool: Pool, linked: Linked, on_available: Callable[[Iterable[str]], None]
) -> None:
    """What comes after the commit: a failure of it is not one of the job."""
    queues = linked.queues
    if linked.keys:
        try:
            queues = queues | await pool.run(order.promote(linked.keys))
        except Unavailable as error:
            log.tell("next_of_key_waits", error=error)
    if queues:
        on_available(queues)


async def _was_committed(pool: Pool, xid: str, job: int) -> bool:
    """Whether the transaction *xid* was committed and *job* completed; False also if nobody can tell."""
    try:
        async for attempt in QUICK.retrying(Unavailable):
            with attempt:
                status = await pool.run(_status(xid, job))
                if status == "in progress":
                    raise StillUnknown(f"transaction {xid} is in progress")
                return status == "committed"
    except Unavailable as error:
        log.tell("commit_unknown", xid=xid, error=error)
    return False
