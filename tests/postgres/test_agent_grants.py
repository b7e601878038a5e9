"""Agents under grants: refused when stale, loud when lost, going on when nobody took the shard."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from crew import Crew, Member, crew, manned
from tally import Ticked, assert_applied_exactly_once, connected, fill, holds, tally_app

import strandline as sl
from strandline.app import App
from strandline.cluster.work import Grant
from strandline.daemon import breaker, slicing
from strandline.daemon.checkpoint import claim, is_locked, reread
from strandline.errors import DatabaseUnavailable, InvalidDefinition, LeaseLost
from strandline.postgres.pools import Pool
from strandline.settings import Settings

SHARD = "versions:v1:all"
OTHER = "positions:v1:all"
A, B = UUID(int=10), UUID(int=11)
QUIET = {
    "pulse_interval": 60.0,
    "node_ttl": 200.0,
    "leader_ttl": 200.0,
}  # looks only when it is told to


@asynccontextmanager
async def bench(url: str) -> AsyncIterator[tuple[Pool, Any]]:
    """A pool and an operator's connection; A holds SHARD under epoch 3."""
    pool = Pool("work", url, 3, Settings(database_url=url))
    await pool.open()
    async with connected(url) as operator:
        await operator.execute(
            """INSERT INTO strandline.work (name) VALUES ('versions:v1:all'), ('positions:v1:all');
               INSERT INTO strandline.assignments (work) SELECT name FROM strandline.work"""
        )
        await assign(operator, SHARD, A, 3)
        try:
            yield pool, operator
        finally:
            await pool.close()


async def assign(operator: Any, work: str, owner: UUID | None, epoch: int) -> None:
    await operator.execute(
        "UPDATE strandline.assignments SET owner = $2, epoch = $3 WHERE work = $1",
        work,
        owner,
        epoch,
    )


async def shards(operator: Any) -> list[tuple[Any, ...]]:
    query = "SELECT name, position, epoch, owner FROM strandline.shards ORDER BY name"
    return [tuple(row) for row in await operator.fetch(query)]


# ---- the claim of a shard


async def test_a_shard_is_claimed_under_the_grant_that_holds(database_url: str) -> None:
    async with bench(database_url) as (pool, operator):
        found = await pool.run(claim(SHARD, A, start=5, granted=3))
        again = await pool.run(claim(SHARD, A, granted=3))

        assert (found.epoch, found.position) == (1, 5)
        assert (again.epoch, again.position) == (2, 5), "a new start of the same grant"
        assert await shards(operator) == [(SHARD, 5, 2, A)]


@pytest.mark.parametrize(
    ("shard", "owner", "granted"),
    [(SHARD, A, 2), (SHARD, A, 4), (SHARD, B, 3), (OTHER, A, 3), ("new:v1:all", A, 3)],
    ids=["older epoch", "later epoch", "another owner", "of other work", "no such work"],
)
async def test_a_claim_under_a_stale_grant_is_refused_and_changes_nothing(
    database_url: str, shard: str, owner: UUID, granted: int
) -> None:
    async with bench(database_url) as (pool, operator):
        for name in (SHARD, OTHER):
            await pool.run(claim(name, B))  # by somebody, some time ago
        before = await shards(operator)

        with pytest.raises(LeaseLost, match="another node has it"):
            await pool.run(claim(shard, owner, granted=granted))

        assert await shards(operator) == before


async def test_a_claim_waits_for_a_grant_that_is_just_being_taken_away(database_url: str) -> None:
    async with bench(database_url) as (pool, operator):
        async with operator.transaction():
            await assign(operator, SHARD, B, 4)
            claiming = asyncio.create_task(pool.run(claim(SHARD, A, granted=3)))
            await asyncio.wait({claiming}, timeout=0.2)
            assert not claiming.done()

        with pytest.raises(LeaseLost):
            await claiming
        assert await shards(operator) == []


async def test_nobody_takes_a_grant_away_in_the_middle_of_a_claim(database_url: str) -> None:
    """The claim has seen its grant, and waits for the shard's row."""
    async with bench(database_url) as (pool, operator), connected(database_url) as leader:
        before = await pool.run(claim(SHARD, B))
        async with operator.transaction():
            await operator.execute("UPDATE strandline.shards SET position = 7")
            claiming = asyncio.create_task(pool.run(claim(SHARD, A, granted=3)))
            await holds(lambda: is_waiting(leader))
            taking = asyncio.create_task(assign(leader, SHARD, B, 4))
            await asyncio.wait({taking}, timeout=0.2)
            assert not taking.done()

        found = await claiming
        await taking
        assert (found.epoch, found.position) == (before.epoch + 1, 7)


async def test_a_shard_of_another_cut_is_not_claimed(database_url: str) -> None:
    async with bench(database_url) as (pool, operator):
        await pool.run(slicing.declare("versions:v1", 4))

        for granted in (None, 3):
            with pytest.raises(LeaseLost, match="cut otherwise"):
                await pool.run(claim(SHARD, A, granted=granted))

        assert SHARD not in [row[0] for row in await shards(operator)]
        assert (await pool.run(claim("versions:v1:2/4", A))).epoch == 1


async def test_a_claim_waits_for_a_cut_that_is_just_being_made(database_url: str) -> None:
    async with bench(database_url) as (pool, operator):
        await pool.run(slicing.declare("versions:v1", 1))
        async with operator.transaction():
            await operator.execute("UPDATE strandline.slicings SET parts = 2")
            await operator.execute("DELETE FROM strandline.shards")
            claiming = asyncio.create_task(pool.run(claim(SHARD, A, granted=3)))
            await asyncio.wait({claiming}, timeout=0.2)

        with pytest.raises(LeaseLost):
            await claiming
        assert await shards(operator) == []


async def test_a_shard_that_somebody_has_is_not_free(database_url: str) -> None:
    async with bench(database_url) as (pool, operator):
        await pool.run(claim(SHARD, B))

        with pytest.raises(LeaseLost):
            await pool.run(claim(SHARD, A, only_free=True))
        await operator.execute("UPDATE strandline.shards SET owner = NULL")

        assert (await pool.run(claim(SHARD, A, only_free=True))).epoch == 2


async def test_a_claim_tells_the_seal(database_url: str) -> None:
    async with bench(database_url) as (pool, operator):
        assert (await pool.run(claim(SHARD, A))).seal is None
        await operator.execute("UPDATE strandline.shards SET seal = 70")

        found = await pool.run(claim(SHARD, A))

        assert found.seal == 70
        await operator.execute("UPDATE strandline.shards SET seal = NULL")
        assert (await pool.run(reread(found))).seal is None


async def test_a_claim_does_not_wait_long_for_a_transaction_that_holds_the_row(
    database_url: str,
) -> None:
    async with bench(database_url) as (pool, operator):
        await pool.run(claim(SHARD, B))
        async with operator.transaction():
            await operator.execute("UPDATE strandline.shards SET position = 7")

            begun = time.monotonic()
            with pytest.raises(DatabaseUnavailable) as raised:
                await pool.run(claim(SHARD, A, granted=3))

        assert is_locked(raised.value)
        assert 0.5 < time.monotonic() - begun < 2.5
        async with pool.session() as session:
            timeout = await session.connection.fetchval("SHOW lock_timeout")
            assert timeout == "0", "only of the claim"


# ---- transactions that a frozen owner left open


@asynccontextmanager
async def holding(
    url: str, shard: str, application: str = "strandline work", *, within: str = ""
) -> AsyncIterator[Any]:
    """A session that holds *shard*'s row in a transaction, and does nothing more.

    Args:
        url: The database.
        shard: The shard.
        application: Whose session it is.
        within: A statement that it lets the server parse, and does not ask it to run.
    """
    zombie = await asyncpg.connect(url, server_settings={"application_name": application})
    await zombie.execute("BEGIN")
    await zombie.execute(
        "UPDATE strandline.shards SET position = position + 1 WHERE name = $1", shard
    )
    if within:
        await zombie.prepare(within)
    try:
        yield zombie
    finally:
        zombie.terminate()


async def test_a_transaction_left_open_is_ended_if_it_holds_the_shard(database_url: str) -> None:
    async with bench(database_url) as (pool, operator):
        await pool.run(claim(SHARD, A))
        async with holding(database_url, SHARD) as zombie:
            pid = zombie.get_server_pid()
            assert await pool.run(breaker.end_zombies(SHARD)) == [], "not idle for long enough"

            (found,) = await holds(lambda: pool.run(breaker.end_zombies(SHARD, idle=0.3)))

            assert (found.pid, found.application, found.ended) == (pid, "strandline work", True)
            assert found.idle >= 0.3
            assert "UPDATE strandline.shards" in found.query
            await holds(zombie.is_closed)
        assert (await pool.run(claim(SHARD, B))).position == 0, "what it did is undone"


async def test_one_is_ended_too_whose_owner_is_frozen_within_a_statement(database_url: str) -> None:
    """The server calls it active, and lets no time-out end it."""
    async with bench(database_url) as (pool, _):
        await pool.run(claim(SHARD, A))
        async with holding(database_url, SHARD, within="SELECT 1") as zombie:
            (found,) = await holds(lambda: pool.run(breaker.end_zombies(SHARD, idle=0.1)))
            assert (found.pid, found.query) == (zombie.get_server_pid(), "SELECT 1")
        assert (await pool.run(claim(SHARD, B))).position == 0, "what it did is undone"


async def test_other_transactions_are_left_alone(database_url: str) -> None:
    async with bench(database_url) as (pool, operator):
        await pool.run(claim(SHARD, A))
        await pool.run(claim(OTHER, A))
        async with (
            holding(database_url, OTHER) as of_another_shard,
            holding(database_url, SHARD, "psql") as of_a_person,
        ):
            await asyncio.sleep(0.1)
            assert await pool.run(breaker.end_zombies(SHARD, idle=0.0)) == []
            assert not of_another_shard.is_closed()
            assert not of_a_person.is_closed()

        async with holding(database_url, SHARD) as at_work:
            working = asyncio.create_task(at_work.execute("SELECT pg_sleep(0.5)"))
            await holds(lambda: is_active(operator, at_work.get_server_pid()))
            assert await pool.run(breaker.end_zombies(SHARD, idle=0.0)) == []
            await working


async def test_a_shard_is_taken_over_though_its_frozen_owner_holds_its_row(
    database_url: str, caplog: Any
) -> None:
    """The owner is stopped in the middle of a batch, with its transaction open."""
    async with crew(database_url) as nodes, manned(nodes, tally_app(database_url)) as a:
        await nodes.give(a, "high-water", SHARD, OTHER)
        await nodes.runs(a, "high-water", SHARD, OTHER)
        await fill_and_wait(nodes, database_url, 50)
        await freeze(nodes, a)
        async with (
            holding(database_url, SHARD),
            manned(nodes, tally_app(database_url), "b") as b,
        ):
            begun = time.monotonic()
            with caplog.at_level(logging.ERROR, "strandline.breaker"):
                await nodes.give(b, "high-water", SHARD, OTHER)
                await nodes.runs(b, "high-water", OTHER)
                await nodes.runs(b, SHARD)
            seconds = time.monotonic() - begun
            await fill_and_wait(nodes, database_url, 50)

            assert seconds < 5.0
            (told,) = b.told("zombie_ended")
            assert told["shard"] == SHARD
            (entry,) = await nodes.log("zombie_ended")
            assert (entry["name"], entry["work"], entry["detail"]["ended"]) == ("b", SHARD, True)
            assert "held shard versions:v1:all in a transaction idle for" in caplog.text


# ---- agents


async def test_an_agent_whose_grant_is_stale_takes_nothing_and_tells(
    database_url: str, caplog: Any
) -> None:
    async with crew(database_url) as nodes, manned(nodes, tally_app(database_url)) as a:
        ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        await nodes.operator.execute(
            "UPDATE strandline.assignments SET owner = $1, epoch = 6 WHERE work = $2", B, SHARD
        )

        with caplog.at_level(logging.ERROR, "strandline.agent"):
            grant = Grant(SHARD, a.id, 5)
            await a.worker.run(grant, lambda work, error: ended.set_result((work, error)))
            work, error = await asyncio.wait_for(ended, 5)
            await holds(lambda: nodes.log("ownership_lost"))

        assert work == SHARD
        assert isinstance(error, LeaseLost)
        assert a.worker.agents[SHARD].statistics().state == "stopped"
        assert len(a.told("ownership_lost")) == 1
        assert (await shard_row(nodes, SHARD))[2:] == (0, None)


async def test_an_agent_whose_shard_was_taken_stops_itself_and_tells_the_numbers(
    database_url: str, caplog: Any
) -> None:
    """Its node hears of nothing: the agent finds out by the refusal of its next batch."""
    async with (
        crew(database_url, **QUIET) as nodes,
        manned(nodes, tally_app(database_url), hears=False) as a,
        manned(nodes, tally_app(database_url), "b") as b,
    ):
        await nodes.give(a, SHARD, OTHER)
        await nodes.give(b, "high-water")
        a.reconciler.wake()
        await nodes.runs(a, SHARD, OTHER)
        last = await fill_and_wait(nodes, database_url, 50)
        await nodes.state(a, "dead")

        with caplog.at_level(logging.ERROR, "strandline.agent"):
            await nodes.give(b, SHARD)
            await nodes.runs(b, SHARD)
            more = await fill_and_wait(nodes, database_url, 50)
            await holds(lambda: a.told("ownership_lost"))
            (entry,) = await holds(lambda: nodes.log("ownership_lost"))

        assert (entry["node"], entry["name"], entry["epoch"]) == (a.id, "a", 1)
        assert entry["work"] == SHARD
        assert entry["detail"]["held"] == {"epoch": 1, "position": last}
        now = entry["detail"]["now"]
        assert (now["owner"], now["node"], now["epoch"]) == (str(b.id), "b", 2)
        assert last <= now["position"] <= more
        assert (
            f"held epoch 1 at position {last}, now it is of node b ({b.id}), epoch 2" in caplog.text
        )
        await holds(lambda: set(a.reconciler.grants()) == set(a.worker.agents) == {OTHER})
        assert [one["shard"] for one in a.told("ownership_lost")] == [SHARD], "told once"


@pytest.mark.parametrize("force", [False, True], ids=["in good order", "by force"])
async def test_every_event_is_applied_once_while_shards_go_from_node_to_node(
    database_url: str, force: bool
) -> None:
    """By force: each is taken before its owner has given it up, or knows that it should."""
    small = {"page_events": 3, "cached_documents": 4}
    async with (
        crew(database_url, **(QUIET if force else {})) as nodes,
        manned(nodes, tally_app(database_url, **small), hears=not force) as a,
        manned(nodes, tally_app(database_url, **small), "b", hears=not force) as b,
        manned(nodes, tally_app(database_url, **small), "c", hears=not force) as c,
        tally_app(database_url) as outside,
    ):
        await nodes.give(a, "high-water", SHARD, OTHER)
        a.reconciler.wake()
        await nodes.runs(a, "high-water", SHARD, OTHER)
        filling = asyncio.create_task(fill(outside, 400))
        for turn in range(15):
            target, other = (b, c, a)[turn % 3], (c, a, b)[turn % 3]
            await nodes.give(target, SHARD)
            await nodes.give(other, OTHER)
            if force:
                await nodes.operator.execute(
                    "UPDATE strandline.assignments SET target_at = clock_timestamp() - interval '1 h'"
                )
                target.reconciler.wake()
                other.reconciler.wake()
            await holds(lambda: nodes_of(nodes, {SHARD: target, OTHER: other}))
            await asyncio.sleep(0.03)

        last = await filling
        await outside.wait_for(last, timeout=20)
        await assert_applied_exactly_once(outside)
        epochs = [await nodes.epoch(work) for work in (SHARD, OTHER)]
        assert epochs == [16, 16]
        losses = len(await nodes.log("ownership_lost"))
        assert losses <= 30 if force else losses == 0


async def test_a_shard_that_was_reset_goes_on_under_the_same_grant_without_an_alarm(
    database_url: str,
) -> None:
    async with crew(database_url) as nodes, manned(nodes, tally_app(database_url)) as a:
        await nodes.give(a, "high-water", SHARD, OTHER)
        await fill_and_wait(nodes, database_url, 50)
        async with nodes.operator.transaction():
            await nodes.operator.execute(
                """UPDATE strandline.shards SET position = 0, epoch = epoch + 1, owner = NULL
                    WHERE name = $1""",
                SHARD,
            )
            await nodes.operator.execute("DELETE FROM strandline.doc_versions_v1")

        await fill_and_wait(nodes, database_url, 50)

        assert (await shard_row(nodes, SHARD))[2:] == (3, a.id)
        assert a.told("ownership_lost") == []
        assert a.reconciler.statistics().restarted == 0
        assert await nodes.epoch(SHARD) == 1


async def test_a_sealed_shard_is_processed_up_to_the_seal_exactly(database_url: str) -> None:
    async with (
        crew(database_url) as nodes,
        tally_app(database_url) as outside,
        manned(nodes, table_app(database_url)) as a,
    ):
        names = [SHARD, OTHER, "counted:v1:all"]
        await nodes.give(a, "high-water")
        last = await fill(outside, 200)
        await holds(lambda: a.worker.statistics().mark == last)
        seals = dict(zip(names, (37, 100, 73), strict=True))
        for name, seal in seals.items():
            await nodes.operator.execute(
                "UPDATE strandline.shards SET seal = $2 WHERE name = $1", name, seal
            )

        await nodes.give(a, *names)
        await holds(lambda: stands_at(nodes, seals))
        more = await fill(outside, 20)
        await holds(lambda: a.worker.statistics().mark == more)
        await asyncio.sleep(1.2)  # longer than its looks at the seal

        assert await stands_at(nodes, seals)
        assert set(running_states(a)) == {"running"}
        assert a.worker.stuck() == [], "there is nothing that it may do"
        counted = await nodes.operator.fetchval(
            "SELECT sum(events) FROM strandline.table_counted_v1"
        )
        assert counted == 73
        async with nodes.operator.transaction():
            await nodes.operator.execute(
                "UPDATE strandline.shards SET seal = NULL, epoch = epoch + 1, owner = NULL"
            )
        await holds(lambda: stands_at(nodes, dict.fromkeys(names, more)))
        await assert_applied_exactly_once(outside)
        assert a.told("ownership_lost") == []


async def test_code_that_does_not_know_a_shard_does_not_run_it(database_url: str) -> None:
    async with crew(database_url) as nodes, manned(nodes, tally_app(database_url)) as a:
        for work in ("strangers:v1:all", "something else"):
            with pytest.raises(InvalidDefinition, match="no projection or subscription"):
                await a.worker.run(Grant(work, a.id, 1), print)


# ---- agents that do not end


class Handler:
    """A subscription's function that returns when it is told to, if ever."""

    def __init__(self, *, deaf: bool) -> None:
        self.inside = asyncio.Event()
        self.may_end = asyncio.Event()
        self.deaf = deaf

    async def __call__(self, batch: Any, tx: Any) -> None:
        self.inside.set()
        while not self.may_end.is_set():
            try:
                await self.may_end.wait()
            except asyncio.CancelledError:
                if not self.deaf:
                    raise


def hanging_app(url: str, handler: Handler, **settings: Any) -> App:
    app = tally_app(url, **settings)

    @app.subscription("hanging")
    async def hang(batch: Any, tx: Any) -> None:
        await handler(batch, tx)

    return app


@pytest.mark.parametrize("deaf", [False, True], ids=["hangs", "swallows cancellation"])
async def test_an_agent_that_never_returns_is_abandoned_in_time_and_its_shard_goes_on(
    database_url: str, deaf: bool
) -> None:
    handler, well = Handler(deaf=deaf), Handler(deaf=False)
    well.may_end.set()
    async with (
        crew(database_url, revoke_timeout=0.5) as nodes,
        manned(nodes, hanging_app(database_url, handler)) as a,
        manned(nodes, hanging_app(database_url, well), "b") as b,
    ):
        await nodes.give(a, "high-water", "hanging:all", SHARD, OTHER)
        await nodes.runs(a, "hanging:all", SHARD)
        async with tally_app(database_url) as outside:
            last = await fill(outside, 5)
            await asyncio.wait_for(handler.inside.wait(), 5)

            begun = time.monotonic()
            clean = await a.worker.stop(SHARD, timeout=1.0)
            assert clean
            assert not await a.worker.stop("hanging:all", timeout=0.2)
            assert time.monotonic() - begun < 2.5

            await nodes.give(b, "high-water", "hanging:all", SHARD, OTHER)
            await holds(lambda: stands_at(nodes, {"hanging:all": last}))
            handler.may_end.set()  # the old one wakes up: too late
            await asyncio.sleep(0.1)
            more = await fill(outside, 5)
            await holds(lambda: stands_at(nodes, {"hanging:all": more}))
        assert bool(b.told("zombie_ended")) == deaf, "its transaction is still open"


async def test_many_agents_stop_in_parallel(database_url: str) -> None:
    app = tally_app(database_url)
    handlers = [Handler(deaf=False) for _ in range(6)]
    for number, handler in enumerate(handlers):
        app.subscription(f"s{number}")(taker(handler))
    names = [f"s{number}:all" for number in range(6)]
    async with crew(database_url) as nodes, manned(nodes, app) as a:
        await nodes.give(a, "high-water", *names)
        await nodes.runs(a, *names)
        async with tally_app(database_url) as outside:
            await fill(outside, 5)
            await asyncio.gather(*(one.inside.wait() for one in handlers))

            begun = time.monotonic()
            released, abandoned = await a.reconciler.release_all(timeout=2.0)

            assert time.monotonic() - begun < 3.5
            assert (released, abandoned) == (["high-water"], names)


async def test_an_agent_that_gets_nowhere_is_stuck_and_one_without_work_is_not(
    database_url: str,
) -> None:
    handler = Handler(deaf=False)
    app = hanging_app(database_url, handler, work_stall_after=0.2)
    async with crew(database_url, **QUIET) as nodes, manned(nodes, app, hears=False) as a:
        await nodes.give(a, "high-water", "hanging:all", SHARD, OTHER)
        a.reconciler.wake()
        await nodes.runs(a, "hanging:all", SHARD, OTHER)
        assert a.worker.stuck() == []
        await asyncio.sleep(0.3)
        assert a.worker.stuck() == [], "there is nothing to do"

        async with tally_app(database_url) as outside:
            await fill(outside, 5)
            await asyncio.wait_for(handler.inside.wait(), 5)
            before = a.worker.progress()
            await holds(lambda: a.worker.stuck() == ["hanging:all"])
            handler.may_end.set()
            await holds(lambda: a.worker.stuck() == [])
            assert a.worker.progress() > before


# ---- parts


def taker(handler: Handler) -> Any:
    async def take(batch: Any) -> None:
        await handler(batch, None)

    return take


def table_app(url: str) -> App:
    """The tally, and a table of how many events there were."""
    app = tally_app(url, table_page_events=30, page_events=40)

    @app.projection("counted")
    class Counted(sl.Table):
        number = sl.column(int, key="number")
        events = sl.column(int, default=0)
        rules = (sl.on(Ticked, events=sl.count()),)

    return app


def running_states(member: Member) -> list[str]:
    return [one.state for one in member.worker.statistics().agents]


async def shard_row(nodes: Crew, shard: str) -> tuple[Any, ...]:
    row = await nodes.operator.fetchrow(
        "SELECT name, position, epoch, owner FROM strandline.shards WHERE name = $1", shard
    )
    return tuple(row)


async def stands_at(nodes: Crew, positions: dict[str, int]) -> bool:
    rows = await nodes.operator.fetch("SELECT name, position FROM strandline.shards")
    known = {row["name"]: row["position"] for row in rows}
    for name, position in positions.items():
        assert known[name] <= position, f"{name} has gone too far"
    return all(known[name] == position for name, position in positions.items())


async def nodes_of(nodes: Crew, owners: dict[str, Member]) -> bool:
    """Whether the shards themselves are theirs, and not only the right to run them."""
    rows = await nodes.operator.fetch("SELECT name, owner FROM strandline.shards")
    known = {row["name"]: row["owner"] for row in rows}
    return all(known[name] == member.id for name, member in owners.items())


async def fill_and_wait(nodes: Crew, url: str, events: int) -> int:
    """Append, wait until both read models have it, and check them; the last position."""
    async with tally_app(url) as outside:
        last = await fill(outside, events)
        await outside.wait_for(last, timeout=20)
        await assert_applied_exactly_once(outside)
        return last


async def freeze(nodes: Crew, member: Member) -> None:
    """Its process is stopped: nothing in it runs any more, and others find that out."""
    member.worker._deaf = []
    for agent in member.worker.agents.values():
        agent._loop._task.cancel()
    await member.reconciler._loop.stop(timeout=1.0)
    await nodes.state(member, "dead")


async def is_waiting(operator: Any) -> bool:
    return await operator.fetchval(
        """SELECT count(*) > 0 FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event_type = 'Lock'"""
    )


async def is_active(operator: Any, pid: int) -> bool:
    return await operator.fetchval(
        "SELECT state = 'active' FROM pg_stat_activity WHERE pid = $1", pid
    )
