"""Sending subscriptions to another place of the log, while nodes run them."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tally import Dropped, Ticked, Versions, connected, holds

import strandline as sl
from strandline.app import App, Transaction
from strandline.daemon import daemon
from strandline.errors import AnswerTimedOut, InvalidDefinition, InvalidInput, UnknownProjection
from strandline.events.event import RecordedEvent
from strandline.projections.subscription import EventBatch

TABLE = "CREATE TABLE IF NOT EXISTS handled (at serial PRIMARY KEY, position bigint, shard text)"


class Gate:
    """Lets a subscription's batches through, or holds them inside their transaction."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.held = asyncio.Event()


def app_of(url: str, *, shards: int = 1, gate: Gate | None = None, **settings: Any) -> App:
    app = App("rewinding", url, **{"mode": "solo", "poll_interval": 0.1, **settings})
    app.event("ticked")(Ticked)
    app.event("dropped")(Dropped)
    app.projection("versions")(Versions)
    gate = gate or Gate()

    @app.subscription("handled", shards=shards, batch_events=5)
    async def handled(batch: EventBatch, tx: Transaction) -> None:
        for one in batch:
            await tx.execute(
                "INSERT INTO handled (position, shard) VALUES ($1, $2)", one.position, batch.shard
            )
        if not gate.open.is_set():
            gate.held.set()
            await gate.open.wait()

    return app


async def handled(url: str, after: int = 0) -> list[int]:
    """The positions handled, in order; those written behind the first *after* rows."""
    async with connected(url) as connection:
        rows = await connection.fetch(
            "SELECT position FROM handled WHERE at > $1 ORDER BY at", after
        )
        return [row["position"] for row in rows]


async def tick(app: App, number: int, *, streams: int = 3) -> list[int]:
    return [
        (await app.append(f"s{count % streams}", Ticked(count))).position for count in range(number)
    ]


@pytest.fixture(autouse=True)
def table(database_url: str) -> None:
    async def create() -> None:
        async with connected(database_url) as connection:
            await connection.execute(TABLE)

    asyncio.run(create())


async def test_everything_beyond_a_position_is_handled_once_more(database_url: str) -> None:
    async with app_of(database_url) as app:
        positions = await tick(app, 20)
        await app.catch_up()

        assert await app.rewind("handled", positions[11]) == positions[11]
        await app.catch_up()
        assert await handled(database_url) == [*positions, *positions[12:]]

        await app.rewind("handled", "beginning")
        await app.catch_up()
        assert (await handled(database_url))[28:] == positions


@pytest.mark.parametrize("pooler", ["none", "transaction"])
async def test_a_subscription_that_waits_on_another_node_begins_again(
    database_url: str, pooler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is appended that would wake it: it hears a notice; through a pooler it looks."""
    if pooler != "none":
        monkeypatch.setattr(daemon, "CARE_EVERY", 0.2)
    async with app_of(database_url, pooler=pooler) as node, app_of(database_url) as elsewhere:
        positions = await tick(node, 5)
        await node.start()
        await node.wait_for(positions[-1])

        await elsewhere.rewind("handled", positions[0] - 1)

        async def came_again() -> bool:
            return len(await handled(database_url)) >= 10

        await holds(came_again, 5.0)
        assert await handled(database_url) == positions * 2


async def test_a_batch_under_way_is_rolled_back_or_done_and_never_counts_twice(
    database_url: str,
) -> None:
    gate = Gate()
    async with app_of(database_url, gate=gate) as node, app_of(database_url) as elsewhere:
        positions = await tick(node, 30)
        gate.open.clear()
        await node.start()
        await gate.held.wait()
        rewinding = asyncio.ensure_future(elsewhere.rewind("handled", positions[2]))
        done, _ = await asyncio.wait({rewinding}, timeout=0.3)
        assert not done, "it waits for the batch"
        gate.open.set()
        await rewinding
        await node.wait_for(positions[-1])

        found = await handled(database_url)
        again = max(index for index, one in enumerate(found) if one == positions[3])
        assert found[again:] == positions[3:], "each beyond it exactly once since"
        assert found[:again] == positions[:again], "what was committed before, once each"


async def test_a_batch_that_never_ends_is_told_of(database_url: str) -> None:
    gate = Gate()
    async with app_of(database_url, gate=gate) as node, app_of(database_url) as elsewhere:
        await tick(node, 3)
        gate.open.clear()
        await node.start()
        await gate.held.wait()

        with pytest.raises(AnswerTimedOut, match="handled was not rewound within 0.1 s"):
            await elsewhere.rewind("handled", 0, timeout=0.1)
        gate.open.set()


async def test_rewinds_at_once_under_load_leave_nothing_out(database_url: str) -> None:
    """On nodes with slices, while events come: the last rewind decides what comes again."""
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(app_of(database_url, shards=3)) for _ in range(2)]
        positions = await tick(nodes[0], 30)
        await nodes[0].start()
        await nodes[0].wait_for(positions[-1], "handled")
        writing = asyncio.ensure_future(tick(nodes[1], 40))
        await asyncio.gather(*(nodes[1].rewind("handled", positions[5]) for _ in range(6)))
        operator = await stack.enter_async_context(connected(database_url))
        marker = await operator.fetchval("SELECT coalesce(max(at), 0) FROM handled")
        await nodes[1].rewind("handled", "beginning")
        positions += await writing
        await nodes[0].wait_for(positions[-1], "handled", timeout=20.0)

        shards = await operator.fetch(
            "SELECT shard, array_agg(position ORDER BY at) AS seen FROM handled WHERE at > $1 GROUP BY 1",
            marker,
        )
        last = {row["shard"]: _last_run(row["seen"]) for row in shards}
        assert sorted(one for run in last.values() for one in run) == positions


def _last_run(seen: list[int]) -> list[int]:
    """What was handled since the last time it began anew."""
    begun = max(
        (index for index in range(1, len(seen)) if seen[index] <= seen[index - 1]), default=0
    )
    return seen[begun:]


async def test_to_the_present_leaves_out_what_is_pending(database_url: str) -> None:
    async with app_of(database_url) as app:
        await tick(app, 10)
        await app.rewind("handled", "present")  # it has never run: it begins there
        after = await tick(app, 4)
        await app.catch_up()
        assert await handled(database_url) == after

        await tick(app, 5)
        last = await app.highest_position()
        assert await app.rewind("handled", "present") == last
        await app.catch_up()
        assert await handled(database_url) == after


async def test_an_empty_log_can_be_rewound(database_url: str) -> None:
    async with app_of(database_url) as app:
        for to in ("beginning", "present", 0, datetime(2020, 1, 1, tzinfo=UTC)):
            assert await app.rewind("handled", to) == 0
        positions = await tick(app, 2)
        await app.catch_up()
        assert await handled(database_url) == positions


async def test_to_a_time_nothing_recorded_since_is_left_out(database_url: str) -> None:
    """Also what was recorded before something older was imported."""
    async with app_of(database_url) as app:
        positions = await tick(app, 6)
        middle = datetime.now(UTC)
        positions += await tick(app, 4)
        await app.import_events(
            [
                sl.ImportedEvent("imported", Ticked(1), recorded_at=middle - timedelta(days=9))
                for _ in range(3)
            ]
        )
        await app.catch_up()
        last = await app.highest_position()

        assert await app.rewind("handled", middle) == positions[5]
        assert await app.rewind("handled", middle - timedelta(days=1)) == 0
        assert await app.rewind("handled", datetime.now(UTC)) == last


async def test_what_is_no_place_in_the_log_is_refused_in_words(database_url: str) -> None:
    async with app_of(database_url) as app:
        last = (await tick(app, 3))[-1]
        await app.catch_up()

        for to, words in (
            (last + 1, f"to={last + 1} lies beyond the high-water mark, which is at {last}"),
            (datetime.now(UTC) + timedelta(hours=1), "is in the future"),
            (datetime(2020, 1, 1), "has no time zone"),  # noqa: DTZ001 - what is refused
            (-1, "is not a position from 0"),
            (True, "is not a position from 0"),
            ("begin", "is not a position from 0, a datetime, 'beginning' or 'present'"),
        ):
            with pytest.raises(InvalidInput, match=words):
                await app.rewind("handled", to)
        with pytest.raises(
            InvalidDefinition, match="versions:v1 is a projection: rewound, it would"
        ):
            await app.rewind(Versions, 0)
        with pytest.raises(UnknownProjection):
            await app.rewind("others", 0)
        await app.catch_up()
        assert len(await handled(database_url)) == 3, "nothing was changed"


async def test_open_letters_beyond_it_are_superseded(database_url: str) -> None:
    async with app_of(database_url) as app, connected(database_url) as operator:
        positions = await tick(app, 4)
        await app.catch_up()
        for position, status in zip(positions, ("parked", "skipped", "parked", "resolved")):
            await operator.execute(
                """INSERT INTO strandline.dead_letters
                     (label, shard, tenant, key, position, stream, version, type, status, retry_at)
                   VALUES ('handled', 'handled:all', 'default', '', $1, 's', 1, 'ticked', $2,
                           clock_timestamp() + interval '1 day')""",
                position,
                status,
            )
        await app.rewind("handled", positions[0])

        rows = await operator.fetch(
            "SELECT status, retry_at IS NULL AS quiet FROM strandline.dead_letters ORDER BY position"
        )
        assert [tuple(row) for row in rows] == [
            ("parked", False),
            ("superseded", True),
            ("superseded", True),
            ("resolved", False),
        ]


async def test_a_function_names_its_subscription(database_url: str) -> None:
    app = app_of(database_url)
    seen: list[RecordedEvent[Any]] = []

    @app.subscription("seen")
    async def note(batch: EventBatch) -> None:
        seen.extend(batch)

    async with app:
        await tick(app, 2)
        await app.catch_up(note)
        assert await app.rewind(note, "beginning") == 0
        await app.catch_up(note)
        assert len(seen) == 4
