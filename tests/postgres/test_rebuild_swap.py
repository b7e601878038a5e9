"""The swap: what it waits for, what it keeps, what it refuses; and a crash anywhere in it."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from shadows import (
    BALANCES,
    QUICK,
    SNAPSHOT,
    Moved,
    Moves,
    assert_equals_the_fold,
    ledger,
    left_behind,
    move,
    rebuilder,
    sealed,
    until_state,
)
from tally import connected, holds

from strandline.app import App
from strandline.daemon import exchange, rebuilds, slicing
from strandline.daemon import rebuilder as rebuilding
from strandline.daemon.checkpoint import claim, owner_of
from strandline.daemon.checkpoint import move as moved
from strandline.daemon.exchange import Names, filled_in
from strandline.daemon.scope import Scope
from strandline.daemon.slicing import Stage
from strandline.errors import CheckpointMoved, OwnershipLost, RebuildFailed

LABEL = "balances:v1"


async def state_of(app: App) -> Any:
    return (await app.rebuilds())[-1]


async def has_come_to(app: App, state: str) -> bool:
    return bool((await state_of(app)).state == state)


async def test_a_reader_that_takes_long_is_waited_for_and_others_do_not_queue_behind_the_swap(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuilding, "SEALED_AT_MOST", 1.5)
    monkeypatch.setattr(rebuilding, "SEALED_AGAIN", 2.0)
    async with ledger(database_url, mode="solo") as app, connected(database_url) as slow:
        await move(app, 100)
        await app.start()
        await app.catch_up()
        transaction = slow.transaction()
        await transaction.start()
        await slow.fetch(SNAPSHOT)

        waiting = asyncio.create_task(app.rebuild("balances", timeout=30))
        told = await holds(lambda: reason_of(app), timeout=15)
        assert "reads a table" in told
        last = await move(app, 20)
        await app.wait_for(last, "balances", timeout=10)  # the seal was taken away
        async with connected(database_url) as reader:
            for _ in range(20):
                async with asyncio.timeout(exchange.PATIENCE + 0.5):
                    await reader.fetch(SNAPSHOT)
                await asyncio.sleep(0.02)
        assert not waiting.done()

        await transaction.rollback()
        assert (await waiting).state == "done"
        await assert_equals_the_fold(app)


async def reason_of(app: App) -> str:
    return "".join(one.reason for one in await app.rebuilds())


async def test_what_a_transaction_sees_that_began_before_the_swap(database_url: str) -> None:
    async with sealed(database_url) as app, connected(database_url) as old:
        prepared = await old.prepare(SNAPSHOT)
        before = tuple(await prepared.fetchrow())
        repeatable = old.transaction(isolation="repeatable_read")
        await repeatable.start()
        await old.fetchval("SELECT count(*) FROM strandline.events")  # its snapshot is taken
        await rebuilder(app).step()
        assert await has_come_to(app, "done")

        assert tuple(await prepared.fetchrow()) == before  # filled before it began
        await repeatable.rollback()
        assert tuple(await prepared.fetchrow()) == before


async def test_grants_and_the_owner_stay_with_the_table(database_url: str) -> None:
    async with sealed(database_url) as app, connected(database_url) as operator:
        one, other = (f"{word}_{uuid4().hex[:8]}" for word in ("reader", "owner"))
        await operator.execute(f'CREATE ROLE "{one}"; CREATE ROLE "{other}"')
        try:
            await operator.execute(
                f"""GRANT SELECT ON {BALANCES} TO "{one}" WITH GRANT OPTION;
                    GRANT UPDATE (data) ON {BALANCES} TO "{one}";
                    GRANT SELECT ON {BALANCES} TO PUBLIC;
                    ALTER TABLE {BALANCES} OWNER TO "{other}";"""
            )
            rights = f"""SELECT c.relowner, array(SELECT a::text FROM unnest(c.relacl) AS a ORDER BY 1),
                                (SELECT attacl::text FROM pg_attribute
                                  WHERE attrelid = c.oid AND attname = 'data')
                           FROM pg_class c WHERE c.oid = '{BALANCES}'::regclass"""
            indexes = """SELECT indexname FROM pg_indexes WHERE schemaname = 'strandline'
                           AND tablename = 'doc_balances_v1'"""
            before, had = await operator.fetchrow(rights), await operator.fetch(indexes)
            oid = await operator.fetchval(f"SELECT '{BALANCES}'::regclass::oid")

            await rebuilder(app).step()

            assert await has_come_to(app, "done")
            assert tuple(await operator.fetchrow(rights)) == tuple(before)
            assert await operator.fetch(indexes) == had
            assert await operator.fetchval(f"SELECT '{BALANCES}'::regclass::oid") != oid
        finally:
            for role in (one, other):
                await operator.execute(f'DROP OWNED BY "{role}" CASCADE; DROP ROLE "{role}"')


HANGING = {
    "a view": f"CREATE VIEW rich AS SELECT * FROM {BALANCES}",
    "a materialized view": f"CREATE MATERIALIZED VIEW rich AS SELECT * FROM {BALANCES}",
    "a foreign key": f"CREATE TABLE other (t text, i text, FOREIGN KEY (t, i) REFERENCES {BALANCES})",
    "a trigger": f"""CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
                     CREATE TRIGGER told AFTER INSERT ON {BALANCES} EXECUTE FUNCTION f()""",
    "an index": f"CREATE INDEX by_hand ON {BALANCES} (position)",
    "a policy": f"CREATE POLICY mine ON {BALANCES} USING (true)",
    "a function": f"CREATE FUNCTION c() RETURNS bigint BEGIN ATOMIC SELECT count(*) FROM {BALANCES}; END",
    "a publication": f"CREATE PUBLICATION told FOR TABLE {BALANCES}",
}


@pytest.mark.parametrize("what", HANGING)
async def test_what_would_be_lost_with_the_old_table_is_refused_with_words(
    database_url: str, what: str
) -> None:
    async with ledger(database_url, mode="solo") as app, connected(database_url) as operator:
        await move(app, 20)
        await operator.execute(HANGING[what])
        with pytest.raises(RebuildFailed, match="with the old table would go") as refused:
            await app.rebuild("balances", timeout=10)
        assert "in_place=True" in str(refused.value)
        assert await left_behind(database_url) == {}
        await app.catch_up()
        await assert_equals_the_fold(app)


async def test_a_view_made_meanwhile_keeps_the_swap_waiting(database_url: str) -> None:
    async with sealed(database_url) as app, connected(database_url) as operator:
        await operator.execute(HANGING["a view"])
        await rebuilder(app).step()

        found = await state_of(app)
        assert found.state == "building"
        assert "view rich" in found.reason
        assert await operator.fetchval("SELECT count(*) FROM rich") == 7
        assert (await left_behind(database_url)).get("seals") is None


async def test_a_role_that_may_make_no_schema_is_told_so(database_url: str) -> None:
    async with ledger(database_url, mode="solo") as app, connected(database_url) as operator:
        await app.catch_up()
        role, database = (
            f"poor_{uuid4().hex[:8]}",
            await operator.fetchval("SELECT current_database()"),
        )
        await operator.execute(
            f"""CREATE ROLE "{role}" LOGIN PASSWORD 'poor';
                GRANT ALL ON SCHEMA strandline TO "{role}";
                GRANT ALL ON ALL TABLES IN SCHEMA strandline TO "{role}"; REVOKE CREATE ON DATABASE
                "{database}" FROM PUBLIC"""
        )
        try:
            host = database_url.rpartition("@")[2]
            poor = f"postgresql://{role}:poor@{host}"
            async with ledger(poor, mode="solo", migrate_at_start=False) as builder:
                with pytest.raises(RebuildFailed, match="GRANT CREATE ON DATABASE"):
                    await builder.rebuild("balances", timeout=10)
        finally:
            await operator.execute(f'DROP OWNED BY "{role}" CASCADE; DROP ROLE "{role}"')


@pytest.mark.parametrize("schema", ['Odd "name"; so ~', "s" * 48, "x~1"])
async def test_schemas_with_odd_and_long_names_are_built_beside(
    database_url: str, schema: str
) -> None:
    async with ledger(database_url, mode="solo", schema=schema) as app:
        await move(app, 60)
        for _ in range(2):
            await app.rebuild("balances", timeout=10)
        await app.catch_up()
        await assert_equals_the_fold(app)
    async with connected(database_url) as operator:
        found = await operator.fetchval(
            "SELECT count(*) FROM pg_namespace WHERE nspname LIKE '%~%' AND nspname <> $1", schema
        )
        assert found == 0


def test_names_fit_and_differ() -> None:
    made = [Names("s" * 62 + one, number) for one in "ab" for number in (7, 123_456)]
    names = [name for one in made for name in (one.shadow, one.trash)]

    assert len(set(names)) == len(names)
    assert all(len(name.encode()) <= 63 for name in names)
    assert Names("strandline", 7).shadow == "strandline~7"


async def test_a_schema_that_is_not_ours_is_left_alone(database_url: str) -> None:
    async with ledger(database_url, mode="solo") as app, connected(database_url) as operator:
        await app.catch_up()
        await operator.execute('CREATE SCHEMA "strandline~1"; CREATE TABLE "strandline~1".kept ()')
        with pytest.raises(RebuildFailed, match="has not made"):
            await app.rebuild("balances", timeout=10)
        await operator.execute('SELECT * FROM "strandline~1".kept')
        assert (await app.rebuild("balances", timeout=10)).number == 2
        await operator.execute('SELECT * FROM "strandline~1".kept')


# ---- crashes, zombies


async def everything(operator: Any) -> list[Any]:
    queries = [
        "SELECT * FROM strandline.shards ORDER BY name",
        "SELECT * FROM strandline.slicings ORDER BY label",
        "SELECT * FROM strandline.rebuilds ORDER BY number",
        "SELECT * FROM strandline.work ORDER BY name",
        "SELECT * FROM strandline.cluster",
        f"SELECT tableoid, * FROM {BALANCES} ORDER BY id",
        "SELECT oid, nspname FROM pg_namespace WHERE nspname LIKE 'strandline%' ORDER BY oid",
    ]
    return [await operator.fetch(query) for query in queries]


async def test_a_crash_after_any_statement_of_the_swap_changes_nothing(database_url: str) -> None:
    async with sealed(database_url) as app, connected(database_url) as operator:
        before = await everything(operator)
        build = (await app.pools.control.run(rebuilds.open_rebuilds([LABEL])))[0]
        names = Names("strandline", build.number)
        model = app.requests.model_in(names.place, "balances")
        statements = 0
        while True:
            statements += 1
            crashing = await asyncpg.connect(database_url)
            await crashing.execute("BEGIN")
            op = exchange.swap(
                build,
                filled_in(model.tables(), "strandline"),
                names,
                speaks=False,
                channel="strandline.cluster",
            )
            made, is_over = 0, False
            try:
                call = next(op)
                while made < statements:
                    made += 1
                    sql = call.statement.sql("strandline")
                    call = op.send(await crashing.fetch(sql, *call.arguments))
            except StopIteration:
                is_over = True
            crashing.terminate()
            await holds(lambda: is_gone(operator))
            assert await everything(operator) == before
            if is_over:
                break
        assert statements > 20
        await rebuilder(app).step()
        assert await has_come_to(app, "done")
        assert await left_behind(database_url) == {}
        await app.catch_up()
        await assert_equals_the_fold(app)


async def is_gone(operator: Any) -> bool:
    return not await operator.fetchval(
        """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
            AND state LIKE 'idle in transaction%'"""
    )


async def test_owners_of_both_sides_from_before_the_swap_are_refused(database_url: str) -> None:
    async with sealed(database_url) as app:
        pool = app.pools.work
        build = (await pool.run(rebuilds.open_rebuilds([LABEL])))[0]
        zombies = [
            await pool.run(claim(name, uuid4())) for name in (f"{LABEL}:all", f"{build.shadow}:all")
        ]
        await rebuilder(app).step()
        assert await has_come_to(app, "done")

        for zombie in zombies:
            for position in range(zombie.position - 1, zombie.position + 2):
                with pytest.raises(CheckpointMoved):
                    await pool.run(moved(zombie.at(position), position + 1))
        live = await pool.run(owner_of(f"{LABEL}:all"))
        assert live is not None
        assert (live.owner, live.position) == (None, 100)
        with pytest.raises(OwnershipLost):  # a solo node that has not heard of the end
            await pool.run(claim(f"{build.shadow}:all", uuid4()))
        assert await left_behind(database_url) == {}


async def test_a_sealed_label_is_not_cut_and_one_that_is_cut_is_not_sealed(
    database_url: str,
) -> None:
    async with sealed(database_url) as app:
        control = app.pools.control
        await control.run(slicing.declare(LABEL, 3))
        assert await control.run(slicing.pending()) == []
        assert await control.run(slicing.step(LABEL, channel="c")) is Stage.DRAINING  # nothing done
        build = (await control.run(rebuilds.open_rebuilds([LABEL])))[0]
        assert await control.run(slicing.step(build.shadow, channel="c")) is Stage.SETTLED
        standing = await control.run(rebuilds.weigh(build))
        assert standing is not None
        assert standing.seal == 100

        await app.cancel_rebuild("balances")
        assert await control.run(slicing.pending()) == [LABEL]
        await app.rebuild("balances", wait=False)
        steps = rebuilder(app)
        await until_state(app, steps, "building")
        for _ in range(3):
            await steps.step()
        assert await has_come_to(app, "building")
        while await control.run(slicing.pending()):
            await control.run(slicing.step(LABEL, channel="c"))
        await until_state(app, steps, "sealed")


async def test_positions_never_go_back_for_those_who_wait(database_url: str) -> None:
    async with ledger(database_url, mode="solo") as app, connected(database_url) as operator:
        await move(app, 300)
        await app.start()
        await app.catch_up()
        over, low = asyncio.Event(), 0

        async def watch() -> None:
            nonlocal low
            while not over.is_set():
                found = await operator.fetchval(
                    "SELECT min(position) FROM strandline.shards WHERE name LIKE 'balances:v1:%'"
                )
                assert found >= low, f"{found} after {low}"
                low = found

        watching = asyncio.create_task(watch())
        for _ in range(4):
            last = await move(app, 30)
            rebuilt = asyncio.create_task(app.rebuild("balances", timeout=20))
            await app.wait_for(last, "balances", timeout=10)
            assert sum(one.moves for _, one in await app.query("balances")) >= 2 * last
            await rebuilt
        over.set()
        await watching


# ---- what serves stands still


async def test_what_serves_may_be_paused_and_is_put_at_the_seal(database_url: str) -> None:
    async with ledger(database_url, mode="cluster") as app, connected(database_url) as operator:
        await move(app, 50)
        await app.start()
        await app.catch_up()
        await operator.execute(
            "UPDATE strandline.work SET paused_at = now() WHERE name = 'balances:v1:all'"
        )
        await operator.execute("UPDATE strandline.cluster SET version = version + 1")
        last = await move(app, 150)
        await app.rebuild("balances", timeout=20)

        assert sum(one.moves for _, one in await app.query("balances")) == 2 * last
        await app.wait_for(last, "balances", timeout=1)


# ---- a part, and verification


async def test_a_part_is_exchanged_and_the_rest_stays(database_url: str) -> None:
    async with ledger(database_url, mode="solo", page_events=1000) as app:
        await move(app, 100)
        await app.catch_up()
        async with connected(database_url) as operator:
            await operator.execute(f"""UPDATE {BALANCES} SET data = data || '{{"moves": 1000}}'""")
            build = await app.request_build(LABEL, scope=Scope("default", keys=("a1", "a2")))
            steps = rebuilder(app)
            await until_state(app, steps, "sealed")
            await operator.execute(
                f"""INSERT INTO "strandline~1".doc_balances_v1
                    SELECT tenant, id, data || '{{"moves": 3}}', version, position FROM {BALANCES}
                     WHERE id IN ('a1', 'a3')"""
            )
            await operator.execute("UPDATE strandline.shards SET position = seal WHERE seal > 0")
            oid = await operator.fetchval(f"SELECT '{BALANCES}'::regclass::oid")
            await steps.step()
            assert await has_come_to(app, "done")
            assert build.number == 1
            assert await operator.fetchval(f"SELECT '{BALANCES}'::regclass::oid") == oid
        found = {name: one.moves for name, one in await app.query("balances")}
        assert found == {"a0": 1000, "a1": 3, **{f"a{n}": 1000 for n in (3, 4, 5, 6)}}
        assert await left_behind(database_url) == {}


@pytest.mark.parametrize("purpose", ["verify", "repair"])
@pytest.mark.parametrize("is_wrong", [False, True], ids=["right", "wrong"])
async def test_a_comparison_finds_what_differs_and_repairs_it_if_asked(
    database_url: str, purpose: str, is_wrong: bool
) -> None:
    from strandline.daemon.comparing import Compared

    async with ledger(database_url, mode="solo") as app, connected(database_url) as operator:
        await move(app, 100)
        await app.start()
        await app.catch_up()
        if is_wrong:
            await operator.execute(
                f"""UPDATE {BALANCES} SET data = data || '{{"moves": 9}}' WHERE id = 'a1'"""
            )
        done = await app.ended_build(await app.request_build(LABEL, purpose=purpose), timeout=20)

        found = Compared.parsed(done.outcome or "")
        assert (done.state, found.checked, found.differing) == ("done", 7, int(is_wrong))
        await holds(lambda: is_clean(database_url))
        if purpose == "repair" or not is_wrong:
            await assert_equals_the_fold(app)
        await app.wait_for(await move(app, 20), timeout=5)


async def is_clean(url: str) -> bool:
    return not await left_behind(url)


# ---- side effects, and what is gone


async def test_side_effects_are_raised_once_each_though_the_tables_are_exchanged(
    database_url: str,
) -> None:
    import strandline as sl

    app = sl.App("speaking", database_url, **{**QUICK, "mode": "solo"})
    app.event("moved")(Moved)

    @app.projection("speaking")
    class Speaking(sl.SingleStream[Moves]):
        @sl.apply
        def moved(self, moves: Moves, event: sl.RecordedEvent[Moved]) -> None:
            moves.versions.append(event.version)

        @sl.effects
        async def told(self, changes: sl.Changes[Moves], tx: sl.Transaction) -> None:
            for change in changes:
                for event in change.events:
                    await tx.execute("INSERT INTO told VALUES ($1)", event.position)

    async with app, connected(database_url) as operator:
        await operator.execute("CREATE TABLE told (position bigint)")
        await move(app, 200)
        await app.start()
        over = asyncio.Event()

        async def write() -> int:
            last = 0
            while not over.is_set():
                last = await move(app, 10)
                await asyncio.sleep(0.03)  # the rate at which a slow projection can follow
            return last

        writing = asyncio.create_task(write())
        for _ in range(4):
            await app.rebuild(Speaking, timeout=30)
        over.set()
        last = await writing
        await app.wait_for(last)
        found = await operator.fetch("SELECT position FROM told ORDER BY 1")
        assert [row[0] for row in found] == list(range(1, last + 1))


async def test_a_build_whose_projection_was_deleted_by_hand_has_failed(database_url: str) -> None:
    async with sealed(database_url) as app, connected(database_url) as operator:
        await operator.execute(
            "DELETE FROM strandline.slicings WHERE label = 'balances:v1';"
            "DELETE FROM strandline.shards WHERE name = 'balances:v1:all'"
        )
        await rebuilder(app).step()
        found = await state_of(app)
        assert (found.state, found.reason) == ("failed", "balances:v1 has no shards any more")
        await app.start("moves")
        await holds(lambda: is_clean(database_url))
