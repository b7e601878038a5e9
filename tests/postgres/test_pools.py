"""Pools: who waits in vain is told why and by whom; every wait ends; control never waits for work."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
import pytest

from strandline import sync
from strandline.errors import (
    AnswerTimedOut,
    DatabaseUnavailable,
    InvalidSetting,
    PoolExhausted,
)
from strandline.postgres.checkouts import callers, places
from strandline.postgres.connections import only_primary
from strandline.postgres.diagnosis import Needs, Room, room, shortage
from strandline.postgres.operations import AsyncpgSession, none
from strandline.postgres.pools import Pool, Pools
from strandline.postgres.statements import verbatim
from strandline.settings import Settings
from strandline.testing.database import fresh_database
from strandline.testing.faults import Proxy
from strandline.testing.leaks import no_leaks
from tests.tally import Ticked, connected, holds, tally_app

APPEND = verbatim("UPDATE strandline.high_water SET position = position")


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[Pools]:
    pools = Pools.to(url, Settings(database_url=url, **{"acquire_timeout": 0.2, **options}))
    await pools.open()
    try:
        yield pools
    finally:
        await pools.close(timeout=1.0)


async def ask(session: AsyncpgSession, sql: str) -> Any:
    return await session.connection.fetchval(sql)


# ---- exhaustion


async def careless_checkout(stack: AsyncExitStack, pool: Pool) -> AsyncpgSession:
    return await stack.enter_async_context(pool.transaction())


async def test_an_empty_pool_names_who_holds_it_since_when_and_with_which_query(
    database_url: str,
) -> None:
    async with opened(database_url, work_connections=2) as pools, AsyncExitStack() as stack:
        first = await careless_checkout(stack, pools.work)
        await ask(first, "SELECT 'first of\n   all'")
        await asyncio.sleep(0.1)  # so that the ages differ
        await stack.enter_async_context(pools.work.session())

        with pytest.raises(PoolExhausted) as caught:
            async with pools.work.session():
                pass

    text = str(caught.value)
    assert re.match(
        r"pool 'work' gave no connection within \d\.\d s \(2 of 2 in use, 1 waiting; held", text
    )
    assert "raise work_connections" in text
    oldest, youngest = text.split("; held longest: ")[1].split("; ")
    assert float(oldest.removeprefix("a transaction for ").split()[0]) >= 0.3
    assert "test_pools.py:" in oldest and "in careless_checkout" in oldest
    assert """last query "SELECT 'first of all'\"""" in oldest
    assert float(youngest.removeprefix("a connection for ").split()[0]) >= 0.2
    assert "no query yet" in youngest


async def test_only_the_oldest_three_are_named(database_url: str) -> None:
    async with opened(database_url, work_connections=5) as pools, AsyncExitStack() as stack:
        for number in range(5):
            session = await stack.enter_async_context(pools.work.session())
            await ask(session, f"SELECT {number}")

        with pytest.raises(PoolExhausted) as caught:
            await stack.enter_async_context(pools.work.session())

        assert [f"SELECT {number}'" in str(caught.value) for number in range(5)] == [
            True,
            True,
            True,
            False,
            False,
        ]
        assert [one.query for one in pools.work.holders()] == [f"SELECT {n}" for n in range(5)]


async def test_the_place_is_where_the_user_opened_the_transaction(database_url: str) -> None:
    app = tally_app(database_url, work_connections=2)
    async with app, app.transaction() as tx:
        await tx.append("s", Ticked())

        (holder,) = app.pools.work.holders()

    assert holder.places[0].file == __file__
    assert holder.places[0].function.endswith(
        "test_the_place_is_where_the_user_opened_the_transaction"
    )
    line = Path(__file__).read_text().splitlines()[holder.places[0].line - 1]
    assert "app.transaction()" in line
    assert not any("/strandline/" in one.file or "asyncio" in one.file for one in holder.places)


async def test_the_place_of_background_work_is_our_own(database_url: str) -> None:
    app = tally_app(database_url, mode="solo")
    async with app, connected(database_url) as other:
        await app.start()
        await app.catch_up()
        async with other.transaction():
            await other.execute("LOCK TABLE strandline.shards IN ACCESS EXCLUSIVE MODE")
            await app.append("s", Ticked())
            holder = await holds(lambda: next(iter(app.pools.work.holders()), None))
        await app.stop()

    assert "/strandline/daemon/" in holder.place
    assert all("/strandline/" in one.file for one in holder.places)


def test_the_callers_are_the_innermost_without_the_plumbing() -> None:
    def deep(number: int) -> Any:
        return callers() if number == 0 else deep(number - 1)

    found = places(deep(20))

    assert len(found) == 8
    assert {one.function.rpartition(".")[2] for one in found} == {"deep"}


async def test_a_server_that_gives_no_connection_is_not_called_an_empty_pool(
    database_url: str,
) -> None:
    async with Proxy(database_url) as proxy, opened(proxy.url) as pools:
        async with pools.work.session():
            proxy.hold()
            with pytest.raises(DatabaseUnavailable, match="gave no new connection") as caught:
                async with pools.work.session():
                    pass
            proxy.forward()

    assert "1 of 8 in use" in str(caught.value)


async def test_a_begin_without_an_answer_ends_in_time_and_says_who_else_holds_the_pool(
    database_url: str,
) -> None:
    async with Proxy(database_url) as proxy, opened(proxy.url) as pools:
        async with pools.work.session() as other:
            async with pools.work.session():
                pass  # now there are two connections
            await ask(other, "SELECT 'other'")
            proxy.hold()
            begun = time.monotonic()

            with pytest.raises(AnswerTimedOut, match="begin: no answer within") as caught:
                async with pools.work.transaction():
                    pass

            seconds = time.monotonic() - begun
            proxy.forward()
        assert seconds < 3.0
        assert "SELECT 'other'" in str(caught.value)
        assert (await holds(lambda: pools.work.statistics().in_use == 0)) is True
        async with pools.work.transaction() as session:
            assert await ask(session, "SELECT 1") == 1


async def test_a_rollback_without_an_answer_keeps_nobody_waiting(database_url: str) -> None:
    async with Proxy(database_url) as proxy, opened(proxy.url) as pools:
        begun = 0.0
        with pytest.raises(ZeroDivisionError):
            async with pools.work.transaction():
                proxy.hold()
                begun = time.monotonic()
                raise ZeroDivisionError
        assert time.monotonic() - begun < 3.0
        proxy.forward()


async def test_statistics_count_waits_and_refusals(database_url: str) -> None:
    async with opened(database_url, work_connections=2) as pools:
        before = pools.work.statistics()
        async with pools.work.transaction(), pools.work.session():
            with pytest.raises(PoolExhausted):
                async with pools.work.session(timeout=0.1):
                    pass
            during = pools.work.statistics()
        after = pools.work.statistics()

    assert (during.in_use, during.most, during.waiting) == (2, 2, 0)
    assert during.exhausted == before.exhausted + 1
    assert during.taken == before.taken + 2
    assert during.longest_wait >= 0.1 and during.waited >= 0.1
    assert during.oldest_transaction > 0.0
    assert after.oldest_transaction == 0.0 and after.in_use == 0


async def test_control_answers_while_every_connection_for_work_is_held(database_url: str) -> None:
    app = tally_app(database_url, work_connections=2, acquire_timeout=0.2)
    async with app, AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(app.transaction())
        with pytest.raises(PoolExhausted, match="2 of 2 in use"):
            await app.append("s", Ticked())

        assert await app.progress()  # asks control
        async with app.pools.control.transaction() as session:
            assert await ask(session, "SELECT 1") == 1


async def test_a_cancelled_transaction_gives_its_connection_back(database_url: str) -> None:
    async with no_leaks(), opened(database_url, work_connections=2) as pools:

        async def hang() -> None:
            async with pools.work.transaction() as session:
                await ask(session, "SELECT pg_sleep(60)")

        task = asyncio.create_task(hang())
        await holds(lambda: pools.work.statistics().oldest_transaction > 0)
        task.cancel()
        await asyncio.wait({task}, timeout=5)

        assert task.cancelled()
        assert pools.work.statistics().in_use == 0
        assert pools.work.holders() == []


async def test_closing_waits_for_who_still_has_a_connection(database_url: str) -> None:
    pools = Pools.to(database_url, Settings(database_url=database_url))
    await pools.open()
    async with pools.work.transaction() as session:
        closing = asyncio.create_task(pools.close())
        await asyncio.sleep(0)
        assert await ask(session, "SELECT 1") == 1
        with pytest.raises(DatabaseUnavailable, match="closed"):
            async with pools.work.session():
                pass
    async with asyncio.timeout(2):
        await closing


# ---- what the server and the settings allow


@asynccontextmanager
async def role_with(url: str, connections: int) -> AsyncIterator[str]:
    """URL of the database for a role with so many connections."""
    name = f"sl_limited_{uuid4().hex[:8]}"
    async with connected(url) as admin:
        await admin.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'x' CONNECTION LIMIT {connections}")
        await admin.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA strandline TO {name}")
        await admin.execute(f"GRANT ALL ON SCHEMA strandline TO {name}")
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        try:
            yield urlunsplit(parts._replace(netloc=f"{name}:x@{host}"))
        finally:
            await admin.execute(f"DROP OWNED BY {name}")
            await admin.execute(f"DROP ROLE {name}")


async def test_a_full_server_says_so_and_what_to_do(database_url: str) -> None:
    async with role_with(database_url, 3) as url:
        async with opened(url, work_connections=4) as pools, AsyncExitStack() as stack:
            for _ in range(2):
                await stack.enter_async_context(pools.work.session())

            with pytest.raises(DatabaseUnavailable, match="takes no more connections") as caught:
                await stack.enter_async_context(pools.work.session())

            assert "lower work_connections" in str(caught.value)
            with pytest.raises(DatabaseUnavailable, match="takes no more connections"):
                sync.App("full", url, migrate_at_start=False).open()


async def test_opening_warns_when_the_connections_do_not_fit(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with role_with(database_url, 6) as url:
        with caplog.at_level(logging.WARNING, "strandline.pools"):
            async with opened(url, work_connections=8, control_connections=2):
                pass

    assert "one app on this database may open 12 connections (8 work, 2 control, 1 listen" in (
        caplog.text
    )
    assert "CONNECTION LIMIT 6 of the role" in caplog.text


def test_needs_are_counted_for_every_app_against_what_others_leave() -> None:
    needs = Needs(work=8, control=2, listen=1, pulse=1)
    enough = Room(100, 3, None, None, connections=49, ours=24, apps=6)

    assert shortage(enough, needs) == ""  # 6 x 12 = 72 = 100 - 3 - 25
    more = shortage(Room(100, 3, None, None, connections=49, ours=24, apps=7), needs)
    assert "7 apps on this database may open 12 connections each, 84 in all" in more
    assert "there is room for 72 (max_connections 100, 3 reserved, 25 used by others)" in more
    assert "CONNECTION LIMIT 10 of the database" in shortage(
        Room(100, 3, 10, None, connections=0, ours=0, apps=0), needs
    )


def test_behind_a_pooler_only_the_direct_connections_are_counted() -> None:
    pooled = Settings(pooler="transaction")
    direct = Settings(pooler="transaction", direct_url="postgresql://x/y")
    alone = Settings(mode="solo")

    assert Needs.of(pooled).total == 0
    assert str(Needs.of(direct)) == "2 control, 1 listen, 1 beats, 1 more while it leads"
    assert str(Needs.of(alone)) == "8 work, 2 control, 1 listen, 1 more while it leads"
    assert Needs.of(Settings(metrics=False)).survey == 0


async def test_connections_are_named_after_their_use_and_node(database_url: str) -> None:
    settings = Settings(database_url=database_url)
    pools = Pools.to(database_url, settings, application="0a1b2c3d")
    await pools.open()
    try:
        async with pools.work.session() as work, pools.control.session() as control:
            names = [await ask(one, "SHOW application_name") for one in (work, control)]
    finally:
        await pools.close()

    assert names == ["strandline work 0a1b2c3d", "strandline control 0a1b2c3d"]


async def test_a_direct_url_to_another_database_is_refused(
    database_url: str, server_url: str
) -> None:
    async with fresh_database(server_url) as elsewhere:
        pools = Pools.to(database_url, Settings(database_url=database_url, direct_url=elsewhere))

        with pytest.raises(InvalidSetting, match="another server or database"):
            await pools.open()

    assert pools.work.statistics().size == pools.control.statistics().size == 0


async def test_control_goes_the_direct_way(database_url: str) -> None:
    async with Proxy(database_url) as proxy:
        async with opened(proxy.url, direct_url=database_url) as pools:
            assert pools.control_url == database_url
            proxy.refuse()
            with pytest.raises(DatabaseUnavailable):
                async with pools.work.transaction():
                    pass
            async with pools.control.transaction() as session:
                assert await ask(session, "SELECT 1") == 1


async def test_a_server_that_takes_no_writes_any_more_is_left(database_url: str) -> None:
    async with opened(database_url, control_connections=2) as pools:
        pids = set()
        for _ in range(2):  # two connections to what has become a standby
            async with pools.work.session() as one, pools.work.session() as other:
                for session in (one, other):
                    await session.connection.execute("SET default_transaction_read_only = on")
                    pids.add(await ask(session, "SELECT pg_backend_pid()"))

        with pytest.raises(DatabaseUnavailable, match="read-only transaction"):
            await pools.work.run(none(APPEND))
        async with pools.work.session() as one, pools.work.session() as other:
            after = {await ask(session, "SELECT pg_backend_pid()") for session in (one, other)}
        await pools.work.run(none(APPEND))

    assert len(pids) == 2 and not pids & after


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("postgresql://u@one/db", {}),
        ("postgresql://u@one:1,two:2/db", {"target_session_attrs": "read-write"}),
        ("postgresql:///db?host=one,two", {"target_session_attrs": "read-write"}),
        ("postgresql://one,two/db?target_session_attrs=any", {}),
    ],
)
def test_of_several_hosts_the_one_that_takes_writes_is_used(
    url: str, wanted: dict[str, str]
) -> None:
    assert only_primary(url) == wanted


async def test_a_cluster_of_standbys_says_so(database_url: str) -> None:
    parts = urlsplit(database_url)
    host = f"{parts.hostname}:{parts.port}"
    several = urlunsplit(parts._replace(netloc=parts.netloc.replace(host, f"{host},{host}")))
    async with connected(database_url) as admin:
        name = parts.path[1:]
        await admin.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")

        with pytest.raises(DatabaseUnavailable, match="none of the servers takes writes"):
            async with opened(several):
                pass
        await admin.execute("SET default_transaction_read_only = off")
        await admin.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = off")

    async with opened(several) as pools, pools.work.transaction() as session:
        assert await ask(session, "SELECT 1") == 1


async def test_apps_without_a_pulse_or_listener_are_counted_by_their_names(
    database_url: str,
) -> None:
    async with AsyncExitStack() as stack:
        for name in ("work a", "control a", "work b", "listen", "listen", "sync", "pulse b"):
            connection = await asyncpg.connect(
                database_url, server_settings={"application_name": f"strandline {name}"}
            )
            stack.push_async_callback(connection.close)
        looking = await stack.enter_async_context(connected(database_url))
        found = await AsyncpgSession(looking, "strandline").run(room())

    assert found.apps == 4  # a, b, and two without a name
    assert found.ours == 6
