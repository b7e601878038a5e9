"""The limit: what plain SQL reaches here, with no versions to check and no order to prove.

The table has the columns and the indexes of an event store's. Appends are one prepared INSERT
each over a pool of 32 connections (no size from 8 to 64 was clearly better); batches and the import
are COPY. Catching up is reading the log in pages of 1000 and nothing else: no decoding, no folding,
no writing.
`table_catch_up` is one statement that aggregates the whole log inside the server.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from bench import workload
from bench.harness import Measure, Place, Workload, append_concurrently, appended, rate
from bench.workload import Entry, Expected

POOL = 32

TABLES = """
CREATE TABLE events (
    position    bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    version     bigint      NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    id          uuid        NOT NULL UNIQUE,
    stream      text        NOT NULL,
    type        text        NOT NULL,
    data        jsonb       NOT NULL,
    metadata    jsonb,
    UNIQUE (stream, version)
);
CREATE TABLE balances (
    account  uuid   PRIMARY KEY,
    balance  bigint NOT NULL,
    n        bigint NOT NULL,
    last_pos bigint NOT NULL
);
"""
COLUMNS = ("version", "id", "stream", "type", "data")
INSERT = "INSERT INTO events (version, id, stream, type, data) VALUES ($1, $2, $3, $4, $5)"
READ = """
SELECT position, stream, version, type, data, metadata, recorded_at, id
  FROM events WHERE position > $1 ORDER BY position LIMIT 1000
"""
DELTA = """
CASE type WHEN 'AccountOpened' THEN 0
          WHEN 'MoneyDeposited' THEN (data->>'amount')::bigint
          ELSE -(data->>'amount')::bigint END
"""
AGGREGATE = f"""
INSERT INTO balances AS b (account, balance, n, last_pos)
SELECT (data->>'account')::uuid, sum({DELTA}), count(*), max(position)
  FROM events GROUP BY 1
ON CONFLICT (account) DO UPDATE
   SET balance = b.balance + excluded.balance, n = b.n + excluded.n, last_pos = excluded.last_pos
"""
LOG_SUMS = f"SELECT count(*), coalesce(sum({DELTA}), 0)::bigint FROM events"
BALANCE_SUMS = "SELECT coalesce(sum(n), 0)::bigint, coalesce(sum(balance), 0)::bigint FROM balances"

Row = tuple[int, UUID, str, str, str]


def row(entry: Entry) -> Row:
    """The columns of an entry."""
    account, version = entry
    return (
        version,
        uuid4(),
        workload.stream_id(account),
        workload.event_type(version),
        workload.payload(account, version).decode(),
    )


async def append(place: Place, *, writers: int) -> list[Measure]:
    """Single-row inserts by concurrent tasks."""
    per_account = place.sizes.alone if writers == 1 else place.sizes.together
    shares = workload.shared_out(writers, per_account)
    rows = [[row(entry) for entry in share] for share in shares]
    async with _pool(place, min(writers, POOL)) as pool:

        async def insert(one: Row) -> None:
            async with pool.acquire() as connection:
                await connection.execute(INSERT, *one)

        await place.ready()
        measures = await append_concurrently(rows, insert)
        await _check(pool, LOG_SUMS, workload.expected(entry for s in shares for entry in s))
    return measures


async def append_batch(place: Place) -> list[Measure]:
    """A new stream of 100 events at a time, by one writer."""
    entries = workload.batches(place.sizes.log * workload.ACCOUNTS)
    batches = [[row(entry) for entry in batch] for batch in entries]
    async with _pool(place, 1) as pool, pool.acquire() as connection:
        await place.ready()
        latencies = []
        began = time.perf_counter()
        for batch in batches:
            start = time.perf_counter()
            await _copy(connection, batch)
            latencies.append(time.perf_counter() - start)
        seconds = time.perf_counter() - began
        wanted = workload.expected(entry for batch in entries for entry in batch)
        await _check(connection, LOG_SUMS, wanted)
    return appended(wanted.events, seconds, latencies)


async def bulk_import(place: Place) -> list[Measure]:
    """The whole log by one COPY."""
    rows = [row(entry) for entry in workload.stored_log(place.sizes.log)]
    async with _pool(place, 1) as pool:
        await place.ready()
        began = time.perf_counter()
        await _copy(pool, rows)
        seconds = time.perf_counter() - began
        await _check(pool, LOG_SUMS, workload.expected(workload.stored_log(place.sizes.log)))
    return [rate(len(rows), seconds)]


async def read(place: Place) -> list[Measure]:
    """The whole log in pages, the data as text."""
    wanted = workload.expected(workload.stored_log(place.sizes.log))
    async with _pool(place, 1) as pool, pool.acquire() as connection:
        await _load(connection, place)
        page_after = await connection.prepare(READ)
        await place.ready()
        events = position = 0
        began = time.perf_counter()
        while page := await page_after.fetch(position):
            events += len(page)
            position = page[-1]["position"]
        seconds = time.perf_counter() - began
        if (events, position) != (wanted.events, wanted.events):
            raise workload.WrongResult(f"read {events} events up to position {position}")
        await _check(connection, LOG_SUMS, wanted)
    return [rate(events, seconds)]


async def aggregate(place: Place) -> list[Measure]:
    """The balances of the whole log by one statement."""
    wanted = workload.expected(workload.stored_log(place.sizes.log))
    async with _pool(place, 1) as pool, pool.acquire() as connection:
        await _load(connection, place)
        await place.ready()
        began = time.perf_counter()
        await connection.execute(AGGREGATE)
        seconds = time.perf_counter() - began
        await _check(connection, BALANCE_SUMS, wanted)
    return [rate(wanted.events, seconds)]


@asynccontextmanager
async def _pool(place: Place, size: int) -> AsyncIterator[Any]:
    async def no_reset(connection: Any) -> None:
        """One round trip less for each use: nothing here changes a session."""

    async with asyncpg.create_pool(place.url, min_size=size, max_size=size, reset=no_reset) as pool:
        await pool.execute(TABLES)
        yield pool


async def _load(connection: Any, place: Place) -> None:
    await _copy(connection, (row(entry) for entry in workload.stored_log(place.sizes.log)))
    await connection.execute("VACUUM (ANALYZE) events")


async def _copy(connection: Any, rows: Iterable[Row]) -> None:
    await connection.copy_records_to_table("events", records=rows, columns=COLUMNS)


async def _check(connection: Any, sums: str, wanted: Expected) -> None:
    events, balance = await connection.fetchrow(sums)
    workload.check("the limit", events=events, balance=balance, wanted=wanted)


SYSTEMS: dict[str, dict[str, Workload]] = {
    "limit": {
        **{f"append_{n}": partial(append, writers=n) for n in (1, 16, 64, 256)},
        "append_batch_100": append_batch,
        "import": bulk_import,
        "catch_up": read,
        "table_catch_up": aggregate,
        "rebuild": read,
    }
}
