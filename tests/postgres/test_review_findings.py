"""Trouble found by review: each test failed before its fix."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from stores import Deposited, answers, opened, start
from tally import (
    Ticked,
    Versions,
    assert_applied_exactly_once,
    connected,
    fill,
    holds,
    tally_app,
)

from strandline.app import App
from strandline.errors import (
    ApplyFailed,
    OutcomeUnknown,
    TransactionFailed,
    Unavailable,
)
from strandline.events.bulk import ImportedEvent
from strandline.loops import Loop, Rhythm
from strandline.projections.handlers import apply
from strandline.projections.single_stream import SingleStream
from strandline.testing.faults import Proxy

# ---- agents


async def test_an_agent_whose_lost_commit_takes_effect_late_goes_on(database_url: str) -> None:
    """The connection is cut while the commit waits at the server; it commits after the re-read."""
    async with Proxy(database_url) as proxy:
        app = tally_app(proxy.url, page_events=5)
        async with app, connected(database_url) as operator:
            await app.start()
            await app.wait_for(await fill(app, 10))
            async with operator.transaction():
                await operator.execute("SELECT FROM strandline.shards FOR UPDATE")
                last = await fill(app, 10)
                await holds(lambda: waiting_commits(operator, 2))
                proxy.cut()
                await holds(lambda: waiting_commits(operator, 4))  # the lost ones, and the new
            await app.wait_for(await fill(app, 10), timeout=5)

            assert last
            await assert_applied_exactly_once(app)
            statistics = app.statistics()
            assert statistics is not None
            assert [one.state for one in statistics.agents] == ["running", "running"]


async def waiting_commits(operator: Any, wanted: int) -> bool:
    """Whether so many batches wait for their shard's row."""
    await operator.execute("SELECT pg_stat_clear_snapshot()")
    number = await operator.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND wait_event_type = 'Lock' AND query LIKE '%strandline\".shards SET position%'"
    )
    return bool(number >= wanted)


async def test_a_handler_that_raises_a_cancellation_of_its_own_is_tried_again(
    database_url: str,
) -> None:
    """As from a task that somebody else cancelled: it must not end the shard's loop."""
    app = App("cancelled", database_url, failure_pause=0.05)
    app.event("ticked")(Ticked)
    handled: list[int] = []
    calls = 0

    @app.subscription("listening")
    async def listening(batch: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise asyncio.CancelledError
        handled.extend(event.position for event in batch)

    async with app:
        await app.start()
        last = (await app.append("s", Ticked())).position
        await holds(lambda: last in handled, timeout=5)


async def test_a_node_whose_tasks_are_cancelled_ends(database_url: str) -> None:
    """As at the end of asyncio.run without app.close(): a retry must not swallow it."""
    app = App("cancelled", database_url)
    app.event("ticked")(Ticked)
    handling = asyncio.Event()

    @app.subscription("stuck")
    async def stuck(batch: Any) -> None:
        handling.set()
        await asyncio.Event().wait()

    async with app:
        await app.start()
        await app.append("s", Ticked())
        async with asyncio.timeout(5):
            await handling.wait()
        agents = [
            one for one in asyncio.all_tasks() if one.get_name() == "strandline:agent stuck:all"
        ]
        agents[0].cancel()
        done, _ = await asyncio.wait(agents, timeout=3)

        assert done
        await app.stop(timeout=0.2)


async def test_a_loop_survives_a_cancellation_that_nobody_asked_of_it() -> None:
    steps = 0

    async def step() -> None:
        nonlocal steps
        steps += 1
        if steps == 1:
            raise asyncio.CancelledError

    loop = Loop("tested", step, Rhythm(interval=0.01))
    loop.start()
    await holds(lambda: steps > 2, timeout=3)

    assert loop.statistics().failures == 1
    assert await loop.stop()


async def test_a_rebuild_that_fails_leaves_the_node_running(database_url: str) -> None:
    app = tally_app(database_url, statement_timeout=1.0)
    async with app, connected(database_url) as operator:
        await app.start()
        await app.wait_for(await fill(app, 10))
        async with operator.transaction():
            await operator.execute("LOCK TABLE strandline.doc_versions_v1 IN SHARE MODE")
            with pytest.raises(Unavailable):
                await app.rebuild(Versions, in_place=True)

        assert app.is_running
        await app.wait_for(await fill(app, 10), timeout=10)


async def test_a_rebuild_starts_only_what_ran_before(database_url: str) -> None:
    app = tally_app(database_url)
    async with app:
        await app.start(Versions)
        await app.wait_for(await fill(app, 10), Versions)
        await app.rebuild(Versions)
        await app.wait_for(10, Versions)

        def shards() -> list[str]:
            statistics = app.statistics()
            return [one.shard for one in statistics.agents] if statistics else []

        await holds(lambda: shards() == ["versions:v1:all"])


# ---- commits without an answer


async def test_a_transaction_whose_commit_got_no_answer_says_so(database_url: str) -> None:
    async with Proxy(database_url) as proxy:
        app = tally_app(proxy.url)
        async with app:
            await fill(app, 10)
            await (
                app.highest_position()
            )  # or the COMMIT of the migrations is still in the words seen
            proxy.swallow_answer_to(b"COMMIT")
            with pytest.raises(OutcomeUnknown):
                await app.append_many([("a", Ticked(1)), ("b", Ticked(1))])

            assert proxy.swallowed == 1
            assert len(await app.read_stream("a")) == 1


# ---- inline projections


@dataclass
class Sum:
    total: int = 0


class Picky(SingleStream[Sum]):
    @apply
    def ticked(self, total: Sum, event: Ticked) -> None:
        if event.number < 0:
            raise ValueError(event.number)
        total.total += event.number


async def test_an_append_refused_inline_is_not_stored_though_its_error_was_caught(
    database_url: str,
) -> None:
    app = App("picky", database_url)
    app.event("ticked")(Ticked)
    app.projection("picky", lifecycle="inline")(Picky)
    async with app:
        async with app.transaction() as tx:
            await tx.append("a", Ticked(1))
            with pytest.raises(ApplyFailed):
                await tx.append("a", Ticked(-1))
            with pytest.raises(ApplyFailed):
                await tx.append_many([("a", Ticked(5)), ("b", Ticked(-1))])
            await tx.append("a", Ticked(2))

        assert [one.data.number for one in await app.read_stream("a")] == [1, 2]
        assert await app.read_stream("b") == []
        assert (await app.get(Picky, "a")).total == 3


async def test_a_transaction_that_a_caught_time_out_has_failed_is_not_called_committed(
    database_url: str,
) -> None:
    app = tally_app(database_url)
    async with app, connected(database_url) as operator:
        await app.append("held", Ticked())
        with pytest.raises(TransactionFailed):
            async with app.transaction() as tx:
                await tx.append("a", Ticked(1))
                async with operator.transaction():
                    await operator.execute("SELECT FROM strandline.streams FOR UPDATE")
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0.3):
                            await tx.append("held", Ticked(1))
                    await holds(lambda: is_cancelled(operator))

        assert await app.read_stream("a") == []


async def is_cancelled(operator: Any) -> bool:
    """Whether the transaction of the app has failed at the server."""
    await operator.execute("SELECT pg_stat_clear_snapshot()")
    states = await operator.fetch(
        "SELECT state FROM pg_stat_activity WHERE datname = current_database()"
        " AND state = 'idle in transaction (aborted)'"
    )
    return bool(states)


# ---- a server that hangs


async def test_a_server_that_hangs_is_told_as_such_and_not_by_the_drivers_error(
    database_url: str,
) -> None:
    async with (
        Proxy(database_url) as proxy,
        opened(
            database_url, through=proxy.url, statement_timeout=0.3, acquire_timeout=0.5
        ) as bench,
    ):
        await bench.append("a", Deposited(0))
        proxy.hold()
        found = await answers([start(bench, f"s{n}", Deposited(1)) for n in range(4)])
        assert all(isinstance(one, Unavailable) for one in found), found
        with pytest.raises(Unavailable):
            await bench.store.stream_state("a")

        proxy.forward()
        found = await answers([start(bench, f"t{n}", Deposited(1)) for n in range(4)])
        assert [one.version for one in found] == [1, 1, 1, 1]


# ---- notices


async def test_a_process_that_ends_at_once_has_told_what_it_appended(database_url: str) -> None:
    heard: list[str] = []
    async with connected(database_url) as listening:
        await listening.add_listener("strandline.appended", lambda *said: heard.append(said[3]))
        async with tally_app(database_url) as app:
            done = await app.append("a", Ticked())
        await holds(lambda: str(done.position) in heard, timeout=3)


async def test_a_wrong_notice_about_the_mark_moves_nothing(database_url: str) -> None:
    """A notice is a hint: any role that may connect can send one."""
    app = tally_app(database_url)
    async with app, connected(database_url) as operator:
        await app.start()
        await app.wait_for(await fill(app, 10))
        await operator.execute("SELECT pg_notify('strandline.mark', '1000000')")
        await operator.execute("SELECT pg_notify('strandline.progress', '')")  # heard after it
        await app.wait_for(await fill(app, 10))

        await assert_applied_exactly_once(app)
        assert await operator.fetchval("SELECT max(position) FROM strandline.shards") == 20


# ---- a database that went back


async def test_a_node_follows_a_database_that_went_back(database_url: str) -> None:
    """As after a fail-over to a standby that lagged: mark, events and checkpoints are older."""
    app = tally_app(database_url)
    async with app, connected(database_url) as operator:
        await app.start()
        await app.wait_for(await fill(app, 10))
        copies = (
            "events",
            "streams",
            "high_water",
            "shards",
            "doc_versions_v1",
            "doc_positions_v1",
        )
        for name in copies:
            await operator.execute(f"CREATE TABLE then_{name} AS TABLE strandline.{name}")
        await app.wait_for(await fill(app, 20))
        went_back = asyncio.create_task(app.signals.wait_for("high_water_went_back", timeout=10))
        async with operator.transaction():
            await operator.execute(
                "TRUNCATE " + ", ".join(f"strandline.{name}" for name in reversed(copies))
            )
            for name in copies:
                columns = ", ".join(await columns_of(operator, f"then_{name}"))
                await operator.execute(
                    f"INSERT INTO strandline.{name} ({columns}) SELECT {columns} FROM then_{name}"
                )
            await operator.execute(
                "SELECT setval(pg_get_serial_sequence('strandline.events', 'position'), 10)"
            )
        await went_back
        await app.wait_for((await app.append("s1", [Ticked(), Ticked()])).position, timeout=10)

        await assert_applied_exactly_once(app)
        assert app.statistics().mark == 12  # type: ignore[union-attr]  # it runs


async def columns_of(operator: Any, table: str) -> list[str]:
    rows = await operator.fetch(
        "SELECT attname::text AS name FROM pg_attribute"
        " WHERE attrelid = $1::text::regclass AND attnum > 0",
        table,
    )
    return [row["name"] for row in rows]


# ---- import, opening


async def test_an_import_tells_the_chunk_that_was_not_written_before_the_bad_event(
    database_url: str,
) -> None:
    async with Proxy(database_url) as proxy:
        app = tally_app(proxy.url)
        async with app:

            async def source() -> AsyncIterator[ImportedEvent]:
                proxy.refuse()
                yield ImportedEvent("a", Ticked(1))
                yield ImportedEvent("a", object())

            with pytest.raises(Unavailable):
                await app.import_events(source(), chunk_events=1)


async def test_an_app_opened_by_two_tasks_at_once_is_open_once(database_url: str) -> None:
    app = tally_app(database_url)
    async with connected(database_url) as operator:
        await asyncio.gather(app.open(), app.open())
        await app.close()
        await holds(lambda: has_no_backend(operator), timeout=5)


async def has_no_backend(operator: Any) -> bool:
    await operator.execute("SELECT pg_stat_clear_snapshot()")
    return not await operator.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name LIKE 'strandline%'"
    )
