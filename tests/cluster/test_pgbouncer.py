"""Everything works through a real PgBouncer in transaction mode, with its default configuration."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from typer.testing import CliRunner

from strandline import sync
from strandline.app import App
from strandline.cli.main import app as commands
from strandline.errors import (
    AnswerTimedOut,
    DatabaseUnavailable,
    InvalidSetting,
    TransactionFailed,
    WrongVersion,
)
from strandline.events.event import NO_STREAM
from strandline.postgres.pooler import UNDECLARED_WARNING, lends_backends
from strandline.postgres.pools import Pools
from strandline.settings import Settings
from strandline.testing.database import fresh_database
from strandline.testing.leaks import no_leaks
from tests.bouncer import bouncer, needs_pgbouncer
from tests.commands import SHOP, started, until
from tests.tally import (
    Positions,
    Ticked,
    Versions,
    assert_applied_exactly_once,
    connected,
    fill,
    holds,
    tally_app,
)

pytestmark = needs_pgbouncer

POOLED = {"pooler": "transaction", "mode": "solo"}


@asynccontextmanager
async def pooled_app(url: str, **settings: Any) -> AsyncIterator[App]:
    """An open app on the PgBouncer at *url*."""
    app = tally_app(url, **{**POOLED, **settings})
    async with no_leaks(app), app:
        yield app


async def backends(url: str) -> int:
    """How many server connections PgBouncer has."""
    async with connected(url) as other:
        found: int = await other.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND pid <> pg_backend_pid()"
        )
        return found


# ---- what goes over the wire


async def test_nothing_that_we_send_by_ourselves_is_refused(database_url: str) -> None:
    async with bouncer(database_url) as url, pooled_app(url) as app:
        async with app.pools.work.session() as session:
            zone = await session.connection.fetchval("SHOW timezone")
            name = await session.connection.fetchval("SHOW application_name")

    assert zone == "UTC"
    assert name.startswith("strandline work")


async def test_a_transaction_has_its_limits_from_begin_and_leaves_none_behind(
    database_url: str,
) -> None:
    asked = "SHOW idle_in_transaction_session_timeout"
    async with bouncer(database_url, default_pool_size=1) as url:
        async with pooled_app(url, idle_transaction_timeout=7.5) as app:
            async with app.transaction() as tx:
                inside = (await tx.fetch(asked))[0][0], (await tx.fetch("SHOW jit"))[0][0]
            async with app.pools.work.session() as session:
                outside = await session.connection.fetchval(asked)

    assert inside == ("7500ms", "off")
    assert outside == "0"


async def test_the_server_ends_a_transaction_in_which_nothing_happens(database_url: str) -> None:
    async with bouncer(database_url) as url:
        async with pooled_app(url, idle_transaction_timeout=1.0) as app:
            with pytest.raises(DatabaseUnavailable):
                async with app.transaction() as tx:
                    await tx.append("s", Ticked())
                    await asyncio.wait_for(_until_no_transaction(database_url), 5)
                    await tx.append("s", Ticked())
            assert await app.highest_position() == 0


async def _until_no_transaction(url: str) -> None:
    async with connected(url) as other:
        query = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
        query += " AND datname = current_database()"

        async def none() -> bool:
            return await other.fetchval(query) == 0

        await holds(none)


async def test_statements_of_many_tasks_share_two_backends_and_never_mix(database_url: str) -> None:
    async with bouncer(database_url, default_pool_size=2) as url:
        async with pooled_app(url, work_connections=12) as app:

            async def ask(number: int) -> None:
                generator = random.Random(number)
                for _ in range(25):
                    value, columns = generator.randrange(1_000_000), generator.randrange(1, 6)
                    sql = f"SELECT {', '.join(f'$1::bigint + {n}' for n in range(columns))}"
                    async with app.pools.work.session() as session:
                        row = await session.connection.fetchrow(sql, value)
                        assert list(row) == [value + n for n in range(columns)]
                    if generator.random() < 0.1:
                        with pytest.raises(asyncpg.UndefinedColumnError):
                            async with app.pools.work.session() as session:
                                await session.connection.fetch("SELECT nothing + $1::int", 1)

            async with asyncio.timeout(60):
                await asyncio.gather(*(ask(number) for number in range(24)))
            assert await backends(database_url) <= 2


# ---- the event store


async def test_appends_reads_and_transactions_work(database_url: str) -> None:
    async with bouncer(database_url) as url, pooled_app(url) as app:
        done = await app.append("s", [Ticked(1), Ticked(2)], expected=NO_STREAM)
        with pytest.raises(WrongVersion):
            await app.append("s", Ticked(3), expected=1)
        await asyncio.gather(*(app.append(f"g{n % 5}", Ticked(n)) for n in range(200)))
        async with app.transaction() as tx:
            await tx.append("t", Ticked(1))
            await tx.execute("CREATE TABLE mine (one int)")
            await tx.execute("INSERT INTO mine VALUES ($1)", 5)
        with pytest.raises(ZeroDivisionError):
            async with app.transaction() as tx:
                await tx.append("t", Ticked(2))
                raise ZeroDivisionError
        with pytest.raises(TransactionFailed):
            async with app.transaction() as tx:
                with pytest.raises(asyncpg.UndefinedTableError):
                    await tx.fetch("SELECT FROM nowhere")
        async with app.transaction() as tx, tx.connection.transaction():  # a savepoint
            await tx.append("t", Ticked(3))
        read = [event.data.number for event in await app.read_stream("t")]

    assert done.version == 2
    assert read == [1, 3]


async def test_bulk_import_works(database_url: str) -> None:
    async with bouncer(database_url, default_pool_size=2) as url, pooled_app(url) as app:
        rows = [(f"s{n % 10}", Ticked(n)) for n in range(3000)]
        await app.append_many([(stream, event) for stream, event in rows[:10]])
        await asyncio.gather(*(app.append_many([(f"m{n}", [Ticked(n)] * 50)]) for n in range(40)))
        assert len([one async for one in app.read_all(settled=False)]) == 10 + 40 * 50


async def test_projections_run_without_any_notice_in_bounded_time(database_url: str) -> None:
    async with bouncer(database_url) as url:
        async with pooled_app(url, poll_interval=0.2) as writer:
            async with pooled_app(url, poll_interval=0.2) as node:
                await node.start()
                await fill(node, 30)
                await node.catch_up()
                assert not node._listener.statistics().connected
                waits = []
                for number in range(5):
                    done = await writer.append("late", Ticked(number))
                    begun = time.monotonic()
                    await writer.wait_for(done.position, Versions, Positions, timeout=5)
                    waits.append(time.monotonic() - begun)
                await assert_applied_exactly_once(node)
                await node.stop()

    assert max(waits) < 5.0, waits


async def test_with_a_direct_url_listen_works_and_a_long_poll_does_not_matter(
    database_url: str,
) -> None:
    options = {"direct_url": database_url, "poll_interval": 30.0}
    async with bouncer(database_url) as url:
        async with pooled_app(url, **options) as writer, pooled_app(url, **options) as node:
            await node.start()
            await holds(lambda: node._listener.statistics().connected)
            await writer.append("s", Ticked(0))
            done = await writer.append("s", Ticked(1))
            await writer.wait_for(done.position, Versions, timeout=5)
            await node.stop()


async def test_inline_projections_and_live_reads_work(database_url: str) -> None:
    async with bouncer(database_url, default_pool_size=2) as url:
        app = tally_app(url, lifecycle="inline", **POOLED)
        async with app:
            await asyncio.gather(*(app.append(f"s{n % 3}", Ticked(n)) for n in range(30)))
            await assert_applied_exactly_once(app)
            assert (await app.live(Versions, "s1")).versions == list(range(1, 11))


async def test_two_apps_run_their_projections_over_four_backends(database_url: str) -> None:
    async with bouncer(database_url) as url:
        async with pooled_app(url, poll_interval=0.1) as one, pooled_app(url) as other:
            await one.start()
            await asyncio.gather(
                *(app.append(f"s{n % 7}", Ticked(n)) for n in range(300) for app in (one, other))
            )
            done = await other.append("s0", Ticked())
            await other.wait_for(done.position, Versions, Positions, timeout=20)
            await assert_applied_exactly_once(other)
            assert await backends(database_url) <= 4
            await one.stop()


def test_the_blocking_twin_works(database_url: str) -> None:
    async def run() -> None:
        async with bouncer(database_url, default_pool_size=2) as url:
            await asyncio.to_thread(_blocking, url)

    asyncio.run(run())


def _blocking(url: str) -> None:
    app = sync.App("tally", url, pooler="transaction", idle_transaction_timeout=7.5)
    app.event("ticked")(Ticked)
    with app:
        for number in range(20):  # often enough for psycopg to prepare a statement
            app.append("s", Ticked(number))
        with app.transaction() as tx:
            limit = tx.fetch("SHOW idle_in_transaction_session_timeout")[0][0]
            tx.append("s", Ticked(20))
        assert len(app.read_stream("s")) == 21
    assert limit == "7500ms"


async def test_session_mode_needs_no_setting_but_ignored_parameters(database_url: str) -> None:
    taken = "idle_in_transaction_session_timeout,jit,options"
    async with bouncer(
        database_url, pool_mode="session", default_pool_size=20, ignore_startup_parameters=taken
    ) as url:
        async with tally_app(url, mode="solo", poll_interval=30.0) as app:
            await app.start()
            await holds(lambda: app._listener.statistics().connected)
            last = await fill(app, 30)
            await app.wait_for(last, Versions, Positions, timeout=10)
            await assert_applied_exactly_once(app)
            await app.stop()
        with sync.App("tally", url) as blocking:
            assert len(blocking.read_stream("s1", unknown="keep")) == 10


# ---- trouble


async def test_a_pooler_that_was_not_declared_is_named_at_once(database_url: str) -> None:
    async with bouncer(database_url) as url:
        with pytest.raises(InvalidSetting, match="unsupported startup parameter") as caught:
            await tally_app(url).open()
        with pytest.raises(InvalidSetting, match="pooler"):
            await asyncio.to_thread(sync.App("tally", url).open)

    assert 'set pooler="transaction"' in str(caught.value)


async def test_an_undeclared_pooler_that_takes_everything_is_warned_of(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    taken = "idle_in_transaction_session_timeout,jit"
    async with bouncer(database_url, ignore_startup_parameters=taken) as url:
        pools = Pools.to(url, Settings(database_url=url, prepared_statements=False))
        with caplog.at_level(logging.WARNING, "strandline.pools"):
            await pools.open()
            await pools.close()

    assert UNDECLARED_WARNING in caplog.text


async def test_a_direct_url_that_is_a_pooler_is_warned_of(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    taken = "idle_in_transaction_session_timeout,jit"
    async with (
        bouncer(database_url) as url,
        bouncer(database_url, ignore_startup_parameters=taken) as another,
    ):
        settings = Settings(database_url=url, pooler="transaction", direct_url=another)
        with caplog.at_level(logging.WARNING, "strandline.pools"):
            pools = Pools.to(url, settings)
            await pools.open()
            await pools.close()

    assert "direct_url leads to a pooler" in caplog.text


async def test_only_poolers_that_lend_backends_are_found(database_url: str) -> None:
    found = []
    async with (
        bouncer(database_url) as shared,
        bouncer(database_url, default_pool_size=1) as single,
        bouncer(database_url, server_round_robin=1) as turning,
        bouncer(database_url, pool_mode="session") as session,
    ):
        for url in (shared, single, turning, session, database_url):
            found.append(await lends_backends(url, timeout=5))

    assert found == [True, True, True, False, False]


async def test_a_pooler_without_a_free_backend_ends_begin_in_time(database_url: str) -> None:
    async with bouncer(database_url, default_pool_size=1) as url:
        options = {"acquire_timeout": 0.3, "direct_url": database_url}
        async with pooled_app(url, **options) as app, app.transaction() as tx:
            await tx.fetch("SELECT 'the only one'")
            begun = time.monotonic()
            with pytest.raises(
                AnswerTimedOut, match="has the pooler a server connection free"
            ) as e:
                async with app.transaction():
                    pass
            assert time.monotonic() - begun < 3.0
            async with app.pools.control.transaction():  # goes past it
                pass

    assert "SELECT 'the only one'" in str(e.value)


async def test_a_pooler_that_takes_no_more_clients_says_so(database_url: str) -> None:
    async with bouncer(database_url, max_client_conn=3) as url:
        async with pooled_app(url, work_connections=4, control_connections=1) as app:
            with pytest.raises(DatabaseUnavailable, match="raise its max_client_conn"):
                async with app.transaction(), app.transaction(), app.transaction():
                    pass


async def test_a_forced_rollback_reaches_the_server_through_the_pooler(database_url: str) -> None:
    async with bouncer(database_url) as url:
        async with pooled_app(url, leak_after=0.1, leak_rollback_after=0.3) as app:
            ended = False
            with pytest.raises(TransactionFailed, match="leak_rollback_after"):
                async with app.transaction() as tx:
                    await tx.append("s", Ticked())
                    await app.signals.wait_for("transaction_rolled_back", timeout=5)
                    await asyncio.wait_for(_until_no_transaction(database_url), 5)
                    ended = True
                    await tx.append("s", Ticked())
            assert ended


async def test_a_restarted_pooler_is_found_again(database_url: str) -> None:
    async with bouncer(database_url) as url:
        port = urlsplit(url).port or 0
        app = tally_app(url, **POOLED, poll_interval=0.1)
        await app.open()
        await app.start()
        await app.append("s", Ticked())
    async with bouncer(database_url, port=port):

        async def appended() -> Any:
            try:
                return await app.append("s", Ticked())
            except DatabaseUnavailable:
                return None

        done = await holds(appended)
        await app.wait_for(done.position, Versions, Positions, timeout=15)
        await assert_applied_exactly_once(app)
        await app.close()


# ---- doctor


def diagnosed(url: str, *, code: int = 0, **settings: str) -> dict[str, dict[str, str]]:
    """What the doctor finds, by check."""
    environment = {f"STRANDLINE_{name.upper()}": value for name, value in settings.items()}
    done = CliRunner().invoke(
        commands, ["doctor", "--json"], env={"STRANDLINE_DATABASE_URL": url, **environment}
    )
    assert done.exit_code == code, (done.stdout, done.stderr)
    return {one["check"]: one for one in json.loads(done.stdout)}


async def test_the_doctor_knows_poolers(database_url: str, server_url: str) -> None:
    taken = "idle_in_transaction_session_timeout,jit"
    async with (
        bouncer(database_url) as url,
        bouncer(database_url, ignore_startup_parameters=taken) as lax,
        fresh_database(server_url) as elsewhere,
    ):

        async def ask(at: str, **options: Any) -> dict[str, dict[str, str]]:
            return await asyncio.to_thread(lambda: diagnosed(at, **options))

        nothing = await ask(database_url)
        refused = await ask(url, code=1)
        undeclared = await ask(lax, prepared_statements="false", code=1)
        needless = await ask(database_url, pooler="transaction")
        polling = await ask(url, pooler="transaction")
        direct = await ask(url, pooler="transaction", direct_url=database_url)
        wrong = await ask(url, pooler="transaction", direct_url=elsewhere, code=1)
        gone = await ask(url, pooler="transaction", direct_url="postgresql://127.0.0.1:1/x", code=1)
        indirect = await ask(url, pooler="transaction", direct_url=lax, code=1)

    assert nothing["pooler"]["finding"] == "none on the way"
    assert "12 (8 work, 2 control, 1 listen, 1 beats, 1 more" in nothing["connections"]["finding"]
    assert "unsupported startup parameter" in refused["pooler"]["finding"]
    assert undeclared["pooler"]["outcome"] == "fail"
    assert "lends backends" in undeclared["pooler"]["finding"]
    assert needless["pooler"]["cure"] == "unset pooler"
    assert (polling["pooler"]["outcome"], polling["pooler"]["cure"]) == (
        "warn",
        "set direct_url to a way past it",
    )
    assert direct["pooler"]["outcome"] == direct["direct way"]["outcome"] == "ok"
    assert "4 (2 control, 1 listen, 1 beats, 1 more" in direct["connections"]["finding"]
    assert "another server or database" in wrong["direct way"]["finding"]
    assert gone["direct way"]["outcome"] == "fail"
    assert "let it lead to the server itself" in indirect["direct way"]["cure"]


# ---- a cluster

QUICK: dict[str, Any] = {
    "pooler": "transaction",
    "mode": "cluster",
    "pulse": "thread",
    "pulse_interval": 0.15,
    "pulse_deadline": 2.0,
    "node_ttl": 3.0,
    "leader_ttl": 3.0,
    "leader_margin": 0.5,
    "rebalance_interval": 0.2,
    "rebalance_after": 0.1,
    "poll_interval": 0.1,
}


async def owners(url: str) -> list[str]:
    """Names of the nodes that own work, past the pooler; empty as long as some is not owned."""
    async with connected(url) as other:
        rows = await other.fetch(
            "SELECT n.name FROM strandline.assignments a"
            " LEFT JOIN strandline.nodes n ON n.id = a.owner GROUP BY 1"
        )
        names = [row["name"] for row in rows]
        return [] if None in names else sorted(names)


async def test_two_nodes_share_the_work_and_hand_it_over_with_no_way_past_the_pooler(
    database_url: str,
) -> None:
    async with bouncer(database_url) as url:
        async with pooled_app(url, **QUICK, node_name="a") as a:
            async with pooled_app(url, **QUICK, node_name="b") as b:
                await a.start()
                await b.start()
                await holds(lambda: _is(owners(database_url), ["a", "b"]), timeout=20)
                appended = [await fill(app, 60) for app in (a, b)]
                await b.wait_for(max(appended), Versions, Positions, timeout=20)

                await a.stop()
                await holds(lambda: _is(owners(database_url), ["b"]), timeout=20)
                last = await fill(a, 60)
                await b.wait_for(last, Versions, Positions, timeout=20)
                await assert_applied_exactly_once(b)
                await b.stop()


async def _is(found: Any, wanted: list[str]) -> bool:
    return bool(await found == wanted)


def test_a_killed_node_is_replaced_through_the_pooler(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SHOP))
    sys.modules.pop("cli_shop", None)

    async def run() -> float:
        async with bouncer(database_url, default_pool_size=8) as url:
            return await asyncio.to_thread(_killed, database_url, url)

    assert asyncio.run(run()) < 5.0


def _killed(direct: str, url: str) -> float:
    given = {"STRANDLINE_POOLER": "transaction", "STRANDLINE_POLL_INTERVAL": "0.1"}
    given["STRANDLINE_PULSE_INTERVAL"] = "0.5"
    nodes = []
    try:
        for name in ("first", "second"):
            nodes.append(started(url, "node", "cli_shop:app", **given, STRANDLINE_NODE_NAME=name))
            until(lambda: "first" in asyncio.run(owners(direct)), timeout=60)
        until(lambda: asyncio.run(owners(direct)) == ["first", "second"], timeout=60)
        nodes[0].kill()
        begun = time.monotonic()
        until(lambda: asyncio.run(owners(direct)) == ["second"], timeout=60)
        return time.monotonic() - begun
    finally:
        for node in nodes:
            node.kill()
            node.communicate()
