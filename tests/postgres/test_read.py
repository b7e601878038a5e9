"""Reading streams and the whole log: ranges, filters, pages, unknown types."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from stores import Bench, Deposited, Opened, amounts, deposits, opened, settle

from strandline.errors import (
    InvalidStream,
    InvalidVersion,
    StreamNotFound,
    UndecodableEvent,
    UnknownEventType,
    UnregisteredEvent,
)
from strandline.events.event import Unknown
from strandline.events.read import read_page


async def everything(bench: Bench, **options: Any) -> list[Any]:
    return [event async for event in bench.store.read_all(**options)]


# ---- one stream


async def test_a_stream_is_read_in_order_with_all_that_was_stored(database_url: str) -> None:
    name = uuid4()
    async with opened(database_url) as bench:
        await bench.append("other", Deposited(0))
        done = await bench.append("a", Opened("Ada"), ids=[name])
        await bench.append("a", Deposited(1))

        first, second = await bench.store.read_stream("a")

        assert (first.data, second.data) == (Opened("Ada"), Deposited(1))
        assert (first.type, first.stream, first.tenant) == ("opened", "a", "default")
        assert (first.version, first.position, first.id) == (1, done.position, name)
        assert abs(first.recorded_at - datetime.now(UTC)) < timedelta(minutes=1)
        assert second.recorded_at >= first.recorded_at


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, [1, 2, 3, 4, 5]),
        ({"from_version": 3}, [3, 4, 5]),
        ({"to_version": 3}, [1, 2, 3]),
        ({"from_version": 2, "to_version": 4}, [2, 3, 4]),
        ({"from_version": 4, "to_version": 2}, []),
        ({"from_version": 6}, []),
        ({"limit": 2}, [1, 2]),
        ({"limit": 0}, []),
        ({"backwards": True}, [5, 4, 3, 2, 1]),
        ({"backwards": True, "limit": 2}, [5, 4]),
        ({"backwards": True, "from_version": 2, "to_version": 4, "limit": 2}, [4, 3]),
    ],
)
async def test_a_part_of_a_stream(
    database_url: str, options: dict[str, Any], found: list[int]
) -> None:
    async with opened(database_url) as bench:
        await bench.append("a", deposits(1, 2, 3, 4, 5))

        assert amounts(await bench.store.read_stream("a", **options)) == found


async def test_a_stream_as_it_was(database_url: str) -> None:
    async with opened(database_url) as bench:
        for number in (1, 2, 3):
            await bench.append("a", Deposited(number))
        events = await bench.store.read_stream("a")

        assert amounts(await bench.store.read_stream("a", as_of=events[1].recorded_at)) == [1, 2]
        before = events[0].recorded_at - timedelta(microseconds=1)
        assert await bench.store.read_stream("a", as_of=before) == []


async def test_a_stream_that_does_not_exist_is_empty(database_url: str) -> None:
    async with opened(database_url) as bench:
        assert await bench.store.read_stream("a") == []
        assert await bench.store.stream_state("a") is None


@pytest.mark.parametrize(
    ("error", "stream", "options"),
    [
        (InvalidStream, "", {}),
        (InvalidStream, "a\0", {}),
        (InvalidStream, 5, {}),
        (InvalidStream, "a", {"tenant": ""}),
        (InvalidVersion, "a", {"from_version": -1}),
        (InvalidVersion, "a", {"from_version": "1"}),
        (InvalidVersion, "a", {"to_version": 2**63}),
        (InvalidVersion, "a", {"limit": -1}),
        (InvalidVersion, "a", {"limit": True}),
        (InvalidVersion, "a", {"as_of": datetime(2030, 1, 1)}),
    ],
)
async def test_what_cannot_be_read_is_refused_in_words(
    database_url: str, error: type[Exception], stream: Any, options: dict[str, Any]
) -> None:
    async with opened(database_url) as bench:
        with pytest.raises(error):
            await bench.store.read_stream(stream, **options)


async def test_types_without_a_class_are_reported_or_kept(database_url: str) -> None:
    async with opened(database_url) as bench:
        await bench.append("a", Deposited(1))
        del bench.types.decoders["deposited"]

        with pytest.raises(UnknownEventType, match="'deposited' at position 1"):
            await bench.store.read_stream("a")
        (kept,) = await bench.store.read_stream("a", unknown="keep")
        assert kept.data == Unknown("deposited", '{"amount": 1}')
        await settle(bench)
        assert [one.data.type for one in await everything(bench)] == ["deposited"]
        with pytest.raises(UnknownEventType):
            await everything(bench, unknown="raise")


async def test_json_that_does_not_fit_its_class_is_named(database_url: str) -> None:
    async with opened(database_url) as bench:
        await bench.append("a", Deposited(1))
        await bench.rows('UPDATE strandline.events SET data = \'{"amount": "much"}\'')

        with pytest.raises(UndecodableEvent, match="'deposited' at position 1"):
            await bench.store.read_stream("a")


async def test_an_alias_is_read_as_its_class(database_url: str) -> None:
    async with opened(database_url) as bench:
        await bench.append("a", Opened("Ada"))
        await bench.rows("UPDATE strandline.events SET type = 'account-opened'")

        (event,) = await bench.store.read_stream("a")

        assert (event.type, event.data) == ("account-opened", Opened("Ada"))


async def test_an_event_is_found_by_its_id(database_url: str) -> None:
    async with opened(database_url) as bench:
        done = await bench.append("a", deposits(1, 2))

        found = await bench.store.event(done.ids[1])

        assert found is not None
        assert (found.data, found.version) == (Deposited(2), 2)
        assert await bench.store.event(done.ids[1], tenant="another") is None
        assert await bench.store.event(UUID(int=1)) is None


async def test_the_state_of_a_stream(database_url: str) -> None:
    async with opened(database_url) as bench:
        await bench.append("a", deposits(1, 2), stream_type="account")

        state = await bench.store.stream_state("a")
        archived = await bench.store.archive("a")
        again = await bench.store.archive("a")
        back = await bench.store.unarchive("a")

        assert state is not None
        assert (state.tenant, state.id, state.type, state.version) == (
            "default", "a", "account", 2,
        )  # fmt: skip
        assert not state.is_archived
        assert archived.is_archived
        assert again.archived_at == archived.archived_at
        assert not back.is_archived
        assert amounts(await bench.store.read_stream("a")) == [1, 2]
        with pytest.raises(StreamNotFound, match="'b'"):
            await bench.store.archive("b")
        with pytest.raises(StreamNotFound, match="'a'"):
            await bench.store.unarchive("a", tenant="another")


# ---- all events


async def filled(bench: Bench) -> None:
    """Positions 1 to 6."""
    await bench.append("a", Opened("Ada"), stream_type="account")
    await bench.append("b", Deposited(2), stream_type="box")
    await bench.append("a", deposits(3, 4))
    await bench.append("a", Deposited(5), tenant="two", stream_type="account")
    await bench.append("c", Deposited(6))
    await settle(bench)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, [1, 2, 3, 4, 5, 6]),
        ({"after": 2}, [3, 4, 5, 6]),
        ({"up_to": 2}, [1, 2]),
        ({"after": 1, "up_to": 4}, [2, 3, 4]),
        ({"limit": 3}, [1, 2, 3]),
        ({"limit": 0}, []),
        ({"types": [Opened]}, [1]),
        ({"types": ["deposited"]}, [2, 3, 4, 5, 6]),
        ({"types": [Opened, "deposited"], "limit": 2}, [1, 2]),
        ({"types": []}, []),
        ({"types": ["no-such-type"]}, []),
        ({"stream_type": "account"}, [1, 3, 4, 5]),
        ({"stream_type": "account", "tenant": "default"}, [1, 3, 4]),
        ({"tenant": "two"}, [5]),
        ({"tenant": "three"}, []),
        ({"backwards": True}, [6, 5, 4, 3, 2, 1]),
        ({"backwards": True, "limit": 2}, [6, 5]),
        ({"backwards": True, "after": 1, "up_to": 4}, [4, 3, 2]),
        ({"backwards": True, "types": [Deposited], "tenant": "default"}, [6, 4, 3, 2]),
    ],
)
@pytest.mark.parametrize("page_events", [1, 2, 1000])
async def test_a_part_of_the_log(
    database_url: str, options: dict[str, Any], found: list[int], page_events: int
) -> None:
    async with opened(database_url) as bench:
        await filled(bench)

        events = await everything(bench, **options, page_events=page_events)

        assert [one.position for one in events] == found


async def test_reading_the_log_settles_it_first_where_no_node_does(database_url: str) -> None:
    async with opened(database_url) as bench:
        await bench.append("a", deposits(1, 2))
        await settle(bench)
        await bench.append("a", Deposited(3))

        assert amounts(await everything(bench)) == [1, 2, 3]
        assert amounts(await everything(bench, up_to=2)) == [1, 2]
        assert amounts(await everything(bench, up_to=1)) == [1]
        assert amounts(await everything(bench, settled=False)) == [1, 2, 3]
        assert amounts(await everything(bench, settled=False, backwards=True)) == [3, 2, 1]


async def test_a_settled_read_does_not_overtake_a_slow_commit(database_url: str) -> None:
    """What ``settled=False`` may show is why it is not the default."""
    async with opened(database_url) as bench:
        slow = await asyncpg.connect(database_url)
        await slow.execute("BEGIN")
        await slow.execute(
            'SELECT strandline.append(\'slow\', \'[{"type": "deposited", "data": {"amount": 1}}]\')'
        )
        await bench.append("a", Deposited(2))

        assert amounts(await everything(bench, settled=False)) == [2]
        assert await everything(bench) == []

        await slow.execute("COMMIT")
        await slow.close()
        await settle(bench)
        assert amounts(await everything(bench)) == [1, 2]


async def test_reading_all_holds_one_page_and_no_connection(database_url: str) -> None:
    async with opened(database_url, work_connections=2) as bench:
        await bench.append("a", deposits(*range(100)))
        await settle(bench)
        asked: list[int] = []
        run = bench.pools.work.run

        async def counted(op: Any) -> Any:
            rows = await run(op)
            asked.append(len(rows) if isinstance(rows, list) else -1)
            return rows

        bench.pools.work.run = counted  # type: ignore[method-assign]
        reading = bench.store.read_all(page_events=10)
        seen = [await anext(reading) for _ in range(15)]

        assert amounts(seen) == list(range(15))
        assert asked == [10, 10]
        assert bench.pools.work.statistics().in_use == 0
        await reading.aclose()

        asked.clear()
        assert len(await everything(bench, page_events=10, limit=13)) == 13
        assert asked == [10, 3]


@pytest.mark.parametrize(
    "options", [{"after": -1}, {"up_to": "x"}, {"limit": -1}, {"page_events": 0}]
)
async def test_numbers_that_are_none_are_refused(
    database_url: str, options: dict[str, Any]
) -> None:
    async with opened(database_url) as bench:
        await bench.append("a", Deposited(1))
        await settle(bench)

        with pytest.raises(InvalidVersion):
            await everything(bench, **options)


async def test_a_class_that_is_not_registered_cannot_be_asked_for(database_url: str) -> None:
    async with opened(database_url) as bench:
        with pytest.raises(UnregisteredEvent):
            await everything(bench, types=[int])


async def test_a_page_as_an_operation(database_url: str) -> None:
    async with opened(database_url) as bench:
        await filled(bench)

        page = await bench.pools.work.run(
            read_page(types=bench.types, after=1, limit=2, names=["deposited"])
        )

        assert [one.position for one in page] == [2, 3]
