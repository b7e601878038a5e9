"""Import by COPY: order, versions, running it again, trouble on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from stores import Bench, Deposited, Opened, Stranger, bad, opened

from strandline.errors import (
    DuplicateEvent,
    InvalidEvent,
    InvalidInput,
    InvalidStream,
    PayloadTooLarge,
    StreamArchived,
    UnregisteredEvent,
)
from strandline.events.bulk import Imported, ImportedEvent
from strandline.events.event import Metadata
from strandline.testing.faults import Proxy


def given(count: int, streams: int = 7, *, first: int = 0) -> Iterator[ImportedEvent]:
    """Events that take turns over the streams, with ids of their own."""
    for number in range(first, first + count):
        yield ImportedEvent(f"s{number % streams}", Deposited(number), id=UUID(int=number + 1))


async def log(bench: Bench) -> list[tuple[Any, ...]]:
    return await bench.rows(
        "SELECT stream, version, (data->>'amount')::int FROM strandline.events ORDER BY position"
    )


def expected(count: int, streams: int = 7) -> list[tuple[str, int, int]]:
    return [(f"s{n % streams}", n // streams + 1, n) for n in range(count)]


@pytest.mark.parametrize("chunk_events", [1, 10, 5000])
async def test_positions_follow_the_order_given_and_versions_the_streams(
    database_url: str, chunk_events: int
) -> None:
    async with opened(database_url) as bench:
        done = await bench.store.import_events(given(95), chunk_events=chunk_events)

        assert done == Imported(95, 0, 95)
        assert await log(bench) == expected(95)
        states = await bench.rows("SELECT id, version FROM strandline.streams ORDER BY id")
        assert states == [(f"s{n}", (95 - n + 6) // 7) for n in range(7)]


async def test_versions_go_on_from_what_is_there_and_appends_go_on_from_the_import(
    database_url: str,
) -> None:
    async with opened(database_url) as bench:
        await bench.append("s0", [Deposited(-2), Deposited(-1)])
        await bench.store.import_events([ImportedEvent("s0", Deposited(0))])
        done = await bench.append("s0", Deposited(1), expected=3)

        assert done.version == 4
        assert [row[1] for row in await log(bench)] == [1, 2, 3, 4]


async def test_everything_that_was_given_is_stored(database_url: str) -> None:
    at = datetime(1999, 12, 31, 23, 59, 59, 123456, tzinfo=UTC)
    name = uuid4()
    about = Metadata(user="ada", headers={"x": [1]})
    async with opened(database_url) as bench:
        await bench.store.import_events(
            [
                ImportedEvent("a", Opened("é\\u0000"), at, name, about, "account", "two"),
                ImportedEvent("a", Opened("x"), tenant="two", metadata={"shoe": 43}),
            ]
        )
        first, second = await bench.store.read_stream("a", tenant="two")
        state = await bench.store.stream_state("a", tenant="two")

        assert (first.data, first.recorded_at, first.id) == (Opened("é\\u0000"), at, name)
        assert first.metadata == about
        assert second.metadata == Metadata(headers={"shoe": 43})
        assert abs((second.recorded_at - datetime.now(UTC)).total_seconds()) < 60
        assert state is not None
        assert (state.type, state.version) == ("account", 2)


async def test_an_async_source_and_an_empty_one(database_url: str) -> None:
    async def source() -> AsyncIterator[ImportedEvent]:
        for event in given(20):
            await asyncio.sleep(0)
            yield event

    async with opened(database_url) as bench:
        assert await bench.store.import_events([]) == Imported(0, 0, 0)
        assert (await bench.store.import_events(source(), chunk_events=3)).events == 20
        assert await log(bench) == expected(20)


async def test_the_source_is_read_no_further_than_needed(database_url: str) -> None:
    taken = 0
    most = 0

    def source() -> Iterator[ImportedEvent]:
        nonlocal taken
        for event in given(1000):
            taken += 1
            yield event

    def progress(stored: int) -> None:
        nonlocal most
        most = max(most, taken - stored)

    async with opened(database_url) as bench:
        await bench.store.import_events(source(), chunk_events=50, on_progress=progress)

        assert most <= 100  # one chunk at the server, one being encoded


async def test_progress_is_told_after_every_chunk(database_url: str) -> None:
    told: list[int] = []
    async with opened(database_url) as bench:
        await bench.store.import_events(given(95), chunk_events=40, on_progress=told.append)

        assert told == [40, 80, 95]


# ---- again


async def test_an_import_that_is_run_again_stores_nothing_twice(database_url: str) -> None:
    async with opened(database_url) as bench:
        await bench.store.import_events(given(30), chunk_events=7)
        with pytest.raises(DuplicateEvent):
            await bench.store.import_events(given(95), chunk_events=10)
        done = await bench.store.import_events(given(95), skip_existing=True, chunk_events=10)
        again = await bench.store.import_events(given(95), skip_existing=True, chunk_events=33)

        assert await log(bench) == expected(95)
        assert (done.events, done.skipped) == (65, 30)
        assert (again.events, again.skipped) == (0, 95)
        ((last,),) = await bench.rows("SELECT max(position) FROM strandline.events")
        assert done.last_position == again.last_position == last


@pytest.mark.parametrize("chunk_events", [1, 3, 100])
async def test_an_id_that_is_given_twice_is_stored_once_whatever_the_chunks(
    database_url: str, chunk_events: int
) -> None:
    async with opened(database_url) as bench:
        twice = [*given(5), *given(5)]
        done = await bench.store.import_events(twice, skip_existing=True, chunk_events=chunk_events)

        assert (done.events, done.skipped) == (5, 5)
        assert await log(bench) == expected(5)


async def test_the_last_position_covers_holes_that_were_filled(database_url: str) -> None:
    async with opened(database_url) as bench:
        await bench.store.import_events(given(3, first=7))
        done = await bench.store.import_events(given(10), skip_existing=True)

        ((last,),) = await bench.rows("SELECT max(position) FROM strandline.events")
        assert done.last_position == last


# ---- bad input

BAD: dict[str, tuple[type[Exception], Any]] = {
    "no ImportedEvent": (InvalidEvent, Deposited(1)),
    "an unknown class": (UnregisteredEvent, ImportedEvent("s0", Stranger(1))),
    "NUL": (InvalidEvent, ImportedEvent("s0", Opened("\0"))),
    "too large": (PayloadTooLarge, ImportedEvent("s0", Opened("x" * 2000))),
    "metadata too large": (
        PayloadTooLarge,
        ImportedEvent("s0", Deposited(1), metadata={"x": "y" * 2000}),
    ),
    "wrong metadata": (InvalidInput, ImportedEvent("s0", Deposited(1), metadata={"user": 1})),
    "no stream": (InvalidStream, ImportedEvent("", Deposited(1))),
    "a long tenant": (InvalidStream, ImportedEvent("a", Deposited(1), tenant="x" * 300)),
    "a long type": (InvalidStream, ImportedEvent("a", Deposited(1), stream_type="x" * 300)),
    "a time without zone": (
        InvalidEvent,
        ImportedEvent("a", Deposited(1), recorded_at=datetime(2030, 1, 1)),
    ),
    "a time that is a text": (
        InvalidEvent,
        ImportedEvent("a", Deposited(1), recorded_at="2030-01-01"),  # type: ignore[arg-type]
    ),
    "an id that is none": (InvalidEvent, ImportedEvent("a", Deposited(1), id="x")),  # type: ignore[arg-type]
    "only the server sees it": (InvalidEvent, ImportedEvent("a", bad())),
}


@pytest.mark.parametrize("name", BAD)
async def test_bad_input_ends_the_import_before_its_chunk(database_url: str, name: str) -> None:
    error, event = BAD[name]
    async with opened(database_url, max_payload_bytes=2000) as bench:
        with pytest.raises(error):
            await bench.store.import_events(
                [*given(10), *given(3, first=10), event], chunk_events=10
            )

        assert await log(bench) == expected(10)
        assert bench.pools.work.statistics().in_use == 0


async def test_an_archived_stream_ends_the_import(database_url: str) -> None:
    async with opened(database_url) as bench:
        await bench.store.import_events(given(10))
        await bench.store.archive("s3")
        with pytest.raises(StreamArchived, match="s3"):
            await bench.store.import_events(given(10, first=10))

        assert await log(bench) == expected(10)


@pytest.mark.parametrize("chunk_events", [0, -1])
async def test_a_chunk_has_at_least_one_event(database_url: str, chunk_events: int) -> None:
    async with opened(database_url) as bench:
        with pytest.raises(InvalidInput, match="at least 1"):
            await bench.store.import_events(given(1), chunk_events=chunk_events)


async def test_a_source_that_fails_leaves_whole_chunks(database_url: str) -> None:
    def source() -> Iterator[ImportedEvent]:
        yield from given(25)
        raise RuntimeError("the disk is gone")

    async with opened(database_url) as bench:
        with pytest.raises(RuntimeError, match="disk"):
            await bench.store.import_events(source(), chunk_events=10)

        assert await log(bench) == expected(20)


# ---- together with others


async def test_imports_and_appends_at_once_keep_every_stream_whole(database_url: str) -> None:
    async with opened(database_url) as bench, opened(database_url) as other:

        async def appends() -> None:
            for number in range(60):
                await other.append(f"s{number % 7}", Deposited(number))

        def source() -> Iterator[ImportedEvent]:
            return (ImportedEvent(f"s{n % 7}", Deposited(n)) for n in range(400))

        async with asyncio.timeout(60):
            await asyncio.gather(
                bench.store.import_events(source(), chunk_events=20),
                other.store.import_events(source(), chunk_events=30),
                appends(),
            )

        for stream in range(7):
            rows = await bench.rows(
                "SELECT version FROM strandline.events WHERE stream = $1 ORDER BY position",
                f"s{stream}",
            )
            assert [row[0] for row in rows] == list(range(1, len(rows) + 1))
        ((events, versions),) = await bench.rows(
            "SELECT (SELECT count(*) FROM strandline.events),"
            " (SELECT sum(version)::bigint FROM strandline.streams)"
        )
        assert events == versions == 860


async def test_streams_are_locked_before_positions_are_drawn(database_url: str) -> None:
    """The rule that the high-water proof needs: an import that waits has burnt no position."""
    async with opened(database_url) as bench:
        await bench.append("s3", Deposited(0))
        holder = await asyncpg.connect(database_url)
        await holder.execute("BEGIN")
        await holder.execute("SELECT FROM strandline.streams WHERE id = 's3' FOR UPDATE")
        importing = asyncio.create_task(bench.store.import_events(given(20)))
        async with asyncio.timeout(10):
            while not await holder.fetchval(
                "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"
            ):
                await asyncio.sleep(0.01)

        drawn = await holder.fetchval(
            "SELECT last_value FROM pg_sequences WHERE schemaname = 'strandline'"
        )
        await holder.execute("ROLLBACK")
        await holder.close()
        await importing

        assert drawn == 1


# ---- broken connections


async def test_a_chunk_whose_commit_is_not_answered_is_stored_once(database_url: str) -> None:
    async with Proxy(database_url) as proxy, opened(database_url, through=proxy.url) as bench:
        await bench.store.import_events(given(3))
        proxy.swallow_answer_to(b"COMMIT;")
        done = await bench.store.import_events(given(20, first=3), chunk_events=10)

        assert proxy.swallowed == 1
        assert (done.events, done.skipped) == (20, 0)
        assert await log(bench) == expected(23)


async def test_a_chunk_that_is_cut_off_is_written_again(database_url: str) -> None:
    async with Proxy(database_url) as proxy, opened(database_url, through=proxy.url) as bench:
        await bench.append("s3", Deposited(0))
        holder = await asyncpg.connect(database_url)
        await holder.execute("BEGIN")
        await holder.execute("SELECT FROM strandline.streams WHERE id = 's3' FOR UPDATE")
        importing = asyncio.create_task(bench.store.import_events(given(20)))
        async with asyncio.timeout(10):
            while not await holder.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                await asyncio.sleep(0.01)
        proxy.cut()
        await holder.execute("ROLLBACK")
        await holder.close()
        done = await importing

        assert done.events == 20
        assert len(await log(bench)) == 21
