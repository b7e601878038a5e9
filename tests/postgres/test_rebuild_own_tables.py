"""Builds of the user's own tables: what a review has found."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any
from uuid import uuid4

import pytest
from build_steps import SOLO, builder_of, built, state_of
from shadows import ledger, move, rebuilder, until_state
from tally import Dropped, Ticked, connected, fill, tally_app

from strandline.app import App
from strandline.cluster.membership import channel
from strandline.daemon import rebuilds
from strandline.daemon.feed import Feed
from strandline.daemon.sweeping import sweep
from strandline.errors import (
    InvalidInput,
    StrandlineError,
)
from strandline.events.event import RecordedEvent
from strandline.projections.sql_projection import Sql, Statements, execute


def telling(app: App, *statements: str) -> None:
    """A table with how often each event was told; and *statements* for every drop."""

    @app.projection("told")
    class Told(Sql):
        setup = "CREATE TABLE IF NOT EXISTS told (position bigint PRIMARY KEY, times int NOT NULL)"
        reset = "TRUNCATE told"
        tables = ("told",)

        @execute
        def ticked(self, event: RecordedEvent[Ticked], sql: Statements) -> None:
            sql(
                """INSERT INTO told VALUES ($1, 1)
                       ON CONFLICT (position) DO UPDATE SET times = told.times + 1""",
                event.position,
            )

        @execute
        def dropped(self, event: Dropped, sql: Statements) -> None:
            for one in statements:
                sql(one)


async def test_the_batch_of_a_cancelled_build_does_not_fall_through_to_what_serves(
    database_url: str,
) -> None:
    """Its process is frozen behind the fence; when it wakes up its schema is gone."""
    app = tally_app(database_url, **SOLO)
    telling(app)
    async with app, connected(database_url) as other:
        mark = await fill(app, 20)
        await app.catch_up()
        await app.rebuild("told", wait=False)
        build = await until_state(app, rebuilder(app), "building", "told:v1")
        processor, at = await builder_of(app, build)
        feed = Feed(app.pools.work, app.registry.types, app.settings)
        feed.move(mark)
        batch = await processor.prepare(await feed.page(0, processor.appetite))
        tables: Any = processor._tables  # type: ignore[attr-defined]
        frozen, wakes, apply = asyncio.Event(), asyncio.Event(), tables.apply_in_runs

        async def freeze(*given: Any) -> None:
            frozen.set()
            await wakes.wait()
            await apply(*given)

        tables.apply_in_runs = freeze
        async with app.pools.control.transaction() as session:
            assert await session.run(rebuilds.cancel("told:v1"))
        committing = asyncio.create_task(processor.commit(batch, at))
        await frozen.wait()
        await sweep(app.pools.control, "strandline", channel=channel("strandline"))
        schema = f"SELECT to_regnamespace('\"strandline~{build.number}\"')"
        assert await other.fetchval(schema) is not None, "its tables are there as long as it is"
        wakes.set()
        with contextlib.suppress(StrandlineError):
            await committing

        assert await other.fetchval("SELECT max(times) FROM told") == 1, "applied twice"


async def test_a_batch_whose_schema_was_dropped_by_hand_is_refused(database_url: str) -> None:
    app = tally_app(database_url, **SOLO)
    telling(app)
    async with app, connected(database_url) as other:
        mark = await fill(app, 20)
        await app.catch_up()
        await app.rebuild("told", wait=False)
        build = await until_state(app, rebuilder(app), "building", "told:v1")
        await other.execute(f'DROP SCHEMA "strandline~{build.number}" CASCADE')
        with pytest.raises(StrandlineError, match="leave alone what serves"):
            await built(app, build, mark)

        assert await other.fetchval("SELECT max(times) FROM told") == 1, "applied twice"


@pytest.mark.parametrize("statement", ["TRUNCATE elsewhere", "SELECT nextval('numbers')"])
async def test_a_build_refuses_to_change_what_is_not_the_projections(
    database_url: str, statement: str
) -> None:
    app = tally_app(database_url, **SOLO)
    telling(app, statement)
    async with app, connected(database_url) as other:
        await other.execute("CREATE TABLE elsewhere (x int); CREATE SEQUENCE numbers")
        await app.append("s", [Ticked(1), Dropped()])
        await app.catch_up("told")
        await other.execute("INSERT INTO elsewhere VALUES (1)")
        with pytest.raises(StrandlineError):
            await app.rebuild("told", timeout=5)

        assert await other.fetchval("SELECT count(*) FROM elsewhere") == 1


HANGING = {
    "a function of its rows": (
        "CREATE FUNCTION shown(told) RETURNS text LANGUAGE sql AS 'SELECT $1.position::text'",
        "SELECT to_regproc('shown')",
    ),
    "a column of its rows": (
        "CREATE TABLE kept (one told)",
        "SELECT 1 FROM pg_attribute WHERE attrelid = 'kept'::regclass AND attname = 'one'",
    ),
    "a column by hand": (
        "ALTER TABLE told ADD COLUMN note text DEFAULT 'x'",
        "SELECT 1 FROM pg_attribute WHERE attrelid = 'told'::regclass AND attname = 'note'",
    ),
    "a constraint by hand": (
        "ALTER TABLE told ADD CONSTRAINT few CHECK (times < 9)",
        "SELECT 1 FROM pg_constraint WHERE conrelid = 'told'::regclass AND conname = 'few'",
    ),
    "a table that inherits": (
        "CREATE TABLE heir () INHERITS (told)",
        "SELECT 1 FROM pg_inherits WHERE inhrelid = 'heir'::regclass",
    ),
    "an array of its rows": (
        "CREATE TABLE kept (many told[])",
        "SELECT 1 FROM pg_attribute WHERE attrelid = 'kept'::regclass AND attname = 'many'",
    ),
    "a foreign key by hand": (
        """CREATE TABLE others (position bigint PRIMARY KEY);
           ALTER TABLE told ADD CONSTRAINT known FOREIGN KEY (position) REFERENCES others NOT VALID""",
        "SELECT 1 FROM pg_constraint WHERE conrelid = 'told'::regclass AND conname = 'known'",
    ),
    "a default from its sequence": (
        """CREATE SEQUENCE numbers OWNED BY told.times;
           CREATE TABLE counted (n bigint DEFAULT nextval('numbers'))""",
        "SELECT 1 FROM pg_attrdef WHERE adrelid = 'counted'::regclass",
    ),
    "row security": (
        "ALTER TABLE told ENABLE ROW LEVEL SECURITY",
        "SELECT 1 FROM pg_class WHERE oid = 'told'::regclass AND relrowsecurity",
    ),
    "what nobody was granted": (
        "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC",
        """SELECT 1 WHERE NOT EXISTS (
               SELECT FROM pg_class c, aclexplode(c.relacl) a
                WHERE c.oid = 'told'::regclass AND a.grantee = 0)""",
    ),
}


@pytest.mark.parametrize("what", HANGING)
async def test_nothing_goes_with_the_old_table_without_a_word(database_url: str, what: str) -> None:
    statement, look = HANGING[what]
    app = tally_app(database_url, **SOLO)
    telling(app)
    async with app, connected(database_url) as other:
        await fill(app, 10)
        await app.catch_up()
        await other.execute(statement)
        with contextlib.suppress(StrandlineError):
            await app.rebuild("told", timeout=5)

        assert await other.fetchval(look) is not None


async def test_partitions_that_handlers_make_are_not_dropped_with_the_shadow(
    database_url: str,
) -> None:
    app = tally_app(database_url, **SOLO)

    @app.projection("parted")
    class Parted(Sql):
        setup = """CREATE TABLE IF NOT EXISTS parted (position bigint, stream text)
                       PARTITION BY LIST (stream)"""
        reset = "TRUNCATE parted"
        tables = ("parted",)

        @execute
        def ticked(self, event: RecordedEvent[Ticked], sql: Statements) -> None:
            name = event.stream
            sql(f"CREATE TABLE IF NOT EXISTS p_{name} PARTITION OF parted FOR VALUES IN ('{name}')")
            sql("INSERT INTO parted VALUES ($1, $2)", event.position, name)

    async with app, connected(database_url) as other:
        await fill(app, 20)
        await app.catch_up()
        with contextlib.suppress(StrandlineError):
            await app.rebuild("parted", timeout=8)

        assert await other.fetchval("SELECT count(*) FROM parted") == 20


async def test_a_column_that_setup_makes_wider_is_wider_for_the_build(database_url: str) -> None:
    """Its statements have been prepared on the same connections, for the tables that serve."""
    app = App("wide", database_url, work_connections=2, failure_pause=0.1, **SOLO)
    app.event("ticked")(Ticked)

    @app.projection("numbers")
    class Numbers(Sql):
        setup = "CREATE TABLE IF NOT EXISTS numbers (position bigint PRIMARY KEY, n int NOT NULL)"
        reset = "TRUNCATE numbers"
        tables = ("numbers",)

        @execute
        def ticked(self, event: RecordedEvent[Ticked], sql: Statements) -> None:
            sql("INSERT INTO numbers VALUES ($1, $2)", event.position, event.data.number)

    async with app, connected(database_url) as other:
        await app.start()
        for number in (1, 2, 2**40, 3):
            last = (await app.append(f"s{number}", Ticked(number))).position
            await app.wait_for(last)
        assert await other.fetchval("SELECT count(*) FROM numbers") == 3, "one is parked"

        Numbers.setup = "CREATE TABLE IF NOT EXISTS numbers (position bigint PRIMARY KEY, n bigint)"
        await app.rebuild("numbers", timeout=10)

        assert await other.fetchval("SELECT max(n) FROM numbers") == 2**40
        await app.wait_for((await app.append("s1", Ticked(2**41))).position)
        assert await other.fetchval("SELECT max(n) FROM numbers") == 2**41


async def test_a_table_that_cannot_be_put_back_into_its_schema_is_refused_at_the_beginning(
    database_url: str,
) -> None:
    """Not after hours of building, and then every minute."""
    async with connected(database_url) as other:
        role = f"writer_{uuid4().hex[:8]}"
        name = await other.fetchval("SELECT current_database()")
        await other.execute(
            f"""CREATE ROLE "{role}" LOGIN PASSWORD 'poor'; GRANT CREATE ON DATABASE "{name}" TO "{role}";
                DROP SCHEMA strandline CASCADE; GRANT CREATE ON SCHEMA public TO "{role}\""""
        )
        url = f"postgresql://{role}:poor@{database_url.rpartition('@')[2]}"
        app = tally_app(url, **SOLO)
        telling(app)
        try:
            async with app:
                await app.start()
                await app.wait_for(await fill(app, 20))
                await other.execute(f'REVOKE CREATE ON SCHEMA public FROM "{role}"')
                with pytest.raises(StrandlineError):
                    await app.rebuild("told", timeout=4)
                assert await state_of(app) == "failed"
        finally:
            await other.execute(f'DROP OWNED BY "{role}" CASCADE; DROP ROLE "{role}"')


async def test_what_handlers_make_besides_the_tables_is_refused_at_their_batch(
    database_url: str,
) -> None:
    app = tally_app(database_url, **SOLO)
    telling(app, "CREATE TABLE IF NOT EXISTS extra (x int)")
    async with app, connected(database_url) as other:
        await app.append("s", [Ticked(1), Dropped()])
        await app.catch_up("told")
        with pytest.raises(StrandlineError):
            await app.rebuild("told", timeout=2)

        paused = "SELECT string_agg(reason, ';') FROM strandline.shard_status WHERE name LIKE '%~%'"
        assert "makes table" in str(await other.fetchval(paused))


async def test_a_swap_is_refused_while_something_else_is_in_the_schema_of_the_build(
    database_url: str,
) -> None:
    async with ledger(database_url, mode="solo") as app, connected(database_url) as other:
        mark = await move(app, 20)
        await app.catch_up()
        await app.rebuild("balances", wait=False)
        steps = rebuilder(app)
        build = await until_state(app, steps, "building")
        await built(app, build, mark)
        await other.execute(f'CREATE TABLE "strandline~{build.number}".note (x int)')
        await until_state(app, steps, "sealed")
        while await state_of(app) == "sealed":
            await steps.step()

        found = (await app.rebuilds())[-1]
        assert (found.state, "note" in found.reason) == ("building", True)
        assert await other.fetchval("SELECT count(*) FROM strandline.doc_balances_v1") > 0


async def test_own_statements_are_not_run_in_more_shards_than_live(database_url: str) -> None:
    """Their order across streams would be another."""
    app = tally_app(database_url, **SOLO)
    telling(app)
    async with app:
        with pytest.raises(InvalidInput, match="1 shards"):
            await app.rebuild("told", parts=2)
