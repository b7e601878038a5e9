"""Parts of a survey that may be slow or refused: each is read for itself, and may be missing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from strandline.errors import StrandlineError
from strandline.jobs import queues
from strandline.jobs.queues import QueueState
from strandline.postgres.diagnosis import room
from strandline.postgres.faults import driver_errors
from strandline.postgres.line import Line
from strandline.postgres.operations import Answer, Op, many, none, one
from strandline.postgres.pools import Pool
from strandline.postgres.statements import SqlFile
from strandline.survey.extras import LetterFacts, QueueFacts, ServerFacts, TransactionFacts

WITHIN = 2.0  # seconds for each part
COUNTED = 10_000  # up to which numbers are exact
TRANSACTIONS = 10  # the oldest ones that are told

Place: TypeAlias = Pool | Line
"""Where to look."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What could be read; ``missing`` names the rest."""

    letters: tuple[LetterFacts, ...]
    queues: tuple[QueueFacts, ...]
    server: ServerFacts | None
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Letters:
    label: str
    status: str
    count: int
    failed: int
    oldest: float
    newest: float
    error: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class _Dead:
    queue: str
    count: int
    oldest: float


@dataclass(frozen=True, slots=True)
class _Server:
    version: str
    is_standby: bool
    horizon: float
    jobs_ended: int


_sql = SqlFile(__name__)
_wait_for_no_lock = _sql.none("wait_for_no_lock")
_letter_rows = _sql.many("letter_rows", _Letters)
_dead_rows = _sql.many("dead_rows", _Dead)
_server_row = _sql.one("server_row", _Server)
_open_transactions = _sql.many("open_transactions", TransactionFacts)


async def read_parts(place: Place) -> Parts:
    """Read each part in at most ``WITHIN`` seconds; what is locked or refused is missing."""
    missing: list[str] = []
    refused: tuple[type[Exception], ...] = (StrandlineError, *driver_errors())

    async def read(name: str, op: Callable[[], Op[Any]], otherwise: Any) -> Any:
        try:
            async with asyncio.timeout(WITHIN):
                return await place.transact(_not_waiting(op))
        except refused:
            missing.append(name)
            return otherwise

    return Parts(
        letters=await read("letters", letters, ()),
        queues=await read("queues", job_queues, ()),
        server=await read("server", server, None),
        missing=tuple(missing),
    )


def _not_waiting(op: Callable[[], Op[Answer]]) -> Op[Answer]:
    yield from wait_for_no_lock()
    return (yield from op())


def wait_for_no_lock() -> Op[None]:
    """Let what this transaction reads from now on fail soon where a table is locked."""
    yield from none(_wait_for_no_lock)


def letters() -> Op[tuple[LetterFacts, ...]]:
    """Open dead letters by projection and status."""
    rows = yield from many(_letter_rows, COUNTED)
    return tuple(
        LetterFacts(
            projection=row.label,
            status=row.status,
            count=row.count,
            failed=row.failed,
            oldest=row.oldest,
            newest=row.newest,
            error=row.error,
            fingerprint=row.fingerprint,
        )
        for row in rows
    )


def job_queues() -> Op[tuple[QueueFacts, ...]]:
    """Queues that have settings, jobs or dead jobs, by name."""
    known = {one.name: one for one in (yield from queues.list_queues())}
    dead = {row.queue: row for row in (yield from many(_dead_rows, COUNTED))}
    return tuple(
        QueueFacts(
            state=known.get(name) or QueueState(name),
            dead=dead[name].count if name in dead else 0,
            oldest_dead=dead[name].oldest if name in dead else None,
        )
        for name in sorted(known.keys() | dead.keys())
    )


def server() -> Op[ServerFacts]:
    """The server, its connections and its oldest transactions."""
    row = yield from one(_server_row)
    assert row is not None  # it always answers
    return ServerFacts(
        version=row.version,
        room=(yield from room()),
        is_standby=row.is_standby,
        horizon=row.horizon,
        jobs_ended=row.jobs_ended,
        transactions=tuple((yield from many(_open_transactions, TRANSACTIONS))),
    )
