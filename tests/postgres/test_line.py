"""A line's deadlines fire, whatever stands between it and the server."""

from __future__ import annotations

import asyncio
import time
from urllib.parse import urlsplit, urlunsplit

import pytest
from pulses import watching
from tally import holds

from strandline.errors import (
    AnswerTimedOut,
    DatabaseUnavailable,
    SchemaOutOfDate,
    Unavailable,
)
from strandline.postgres.line import Line
from strandline.postgres.operations import Call, Op, Rows
from strandline.postgres.statements import verbatim
from strandline.testing.faults import Proxy

DEADLINE = 0.5
SLACK = 0.4  # seconds that a busy machine may add


def line(url: str, **options: object) -> Line:
    return Line(
        url,
        "strandline",
        application="strandline line test",
        connect_timeout=DEADLINE,
        deadline=DEADLINE,
        **options,  # type: ignore[arg-type]
    )


async def asked(one: Line, sql: str = "SELECT 1", *arguments: object) -> object:
    rows = await one.run(query(sql, *arguments))
    return rows[0][0] if rows else None


def query(sql: str, *arguments: object) -> Op[Rows]:
    return (yield Call(verbatim(sql), arguments))


async def test_it_connects_by_itself_and_keeps_the_connection(database_url: str) -> None:
    one = line(database_url)

    first = await asked(one, "SELECT pg_backend_pid()")
    second = await asked(one, "SELECT pg_backend_pid()")

    assert first == second
    assert one.is_connected
    await one.close()
    assert not one.is_connected


async def test_an_operation_in_a_transaction_is_done_wholly_or_not_at_all(
    database_url: str,
) -> None:
    one = line(database_url)

    def twice(second: str) -> Op[None]:
        yield from query("CREATE TABLE whole (n integer)")
        yield from query(second)

    with pytest.raises(Exception, match="division by zero"):
        await one.transact(twice("SELECT 1 / 0"))
    assert await asked(one, "SELECT to_regclass('whole')") is None
    with pytest.raises(AnswerTimedOut):
        await one.transact(twice("SELECT pg_sleep(60)"))
    assert await asked(one, "SELECT to_regclass('whole')") is None
    await one.transact(twice("INSERT INTO whole VALUES (1)"))
    assert await asked(one, "SELECT n FROM whole") == 1
    await one.close()


async def test_a_statement_that_takes_too_long_costs_the_connection(database_url: str) -> None:
    one = line(database_url)
    first = await asked(one, "SELECT pg_backend_pid()")
    began = time.monotonic()

    with pytest.raises(Unavailable):
        await asked(one, "SELECT pg_sleep(5)")

    assert time.monotonic() - began < DEADLINE + SLACK
    assert await asked(one, "SELECT pg_backend_pid()") != first
    await one.close()


async def test_a_black_hole_on_an_open_connection_is_found_by_the_deadline(
    database_url: str,
) -> None:
    async with Proxy(database_url) as proxy:
        one = line(proxy.url)
        await asked(one)
        proxy.hold()
        began = time.monotonic()

        with pytest.raises(AnswerTimedOut):
            await asked(one)

        assert DEADLINE <= time.monotonic() - began < DEADLINE + SLACK
        proxy.forward()
        assert await asked(one) == 1
        await one.close()


async def test_a_black_hole_while_connecting_is_found_by_the_deadline(database_url: str) -> None:
    async with Proxy(database_url) as proxy:
        proxy.hold()
        one = line(proxy.url)
        began = time.monotonic()

        with pytest.raises(Unavailable):
            await asked(one)

        assert time.monotonic() - began < DEADLINE + SLACK
        proxy.forward()
        assert await asked(one) == 1
        await one.close()


async def test_what_was_asked_of_a_black_hole_is_not_waited_for_on_the_server(
    database_url: str,
) -> None:
    """Nobody reads the answer: the server's own limit ends the statement, and its locks."""
    one = line(database_url)
    async with watching(database_url) as watcher:
        with pytest.raises(Unavailable):
            await asked(one, "SELECT pg_sleep(60)")

        async def ended() -> bool:
            return not await watcher.backends("strandline line test")

        await holds(ended, timeout=3.0)
    await one.close()


async def test_a_refused_connection_and_a_wrong_password_are_unavailable(
    database_url: str,
) -> None:
    host = urlsplit(database_url).netloc.rpartition("@")[2]
    nobody = line("postgresql://nobody@127.0.0.1:1/none")
    stranger = line(urlunsplit(urlsplit(database_url)._replace(netloc=f"no_such_role@{host}")))

    for one in (nobody, stranger):
        with pytest.raises(DatabaseUnavailable):
            await asked(one)


async def test_of_several_hosts_the_next_is_asked_when_one_gives_no_answer(
    database_url: str,
) -> None:
    """A fail-over: the old primary's host is a black hole, so it would use up all the time."""
    async with Proxy(database_url) as old:
        hosts = [urlsplit(one).netloc.rpartition("@")[2] for one in (old.url, database_url)]
        who, at, _ = urlsplit(database_url).netloc.rpartition("@")
        both = urlsplit(database_url)._replace(netloc=f"{who}{at}{','.join(hosts)}")
        one = line(urlunsplit(both))
        assert await asked(one) == 1
        assert old.connections == 1
        old.hold()

        for _ in range(2):  # the statement on the old connection, and one try to connect again
            with pytest.raises(Unavailable):
                await asked(one)

        assert await asked(one) == 1
        await one.close()


async def test_a_mistake_of_ours_is_told_as_what_it_is(database_url: str) -> None:
    one = line(database_url)

    with pytest.raises(SchemaOutOfDate):
        await asked(one, "SELECT * FROM strandline.no_such_table")

    assert await asked(one) == 1
    await one.close()


async def test_a_server_that_only_reads_is_no_server(database_url: str) -> None:
    """As after a fail-over: the connection is ended, since the next one may reach the primary."""
    one = line(database_url)
    await asked(one)
    async with watching(database_url) as operator:
        name = await operator.run("SELECT current_database()")
        await operator.run(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        one.cut()

        with pytest.raises(DatabaseUnavailable):
            await asked(one)

        await operator.run("SET default_transaction_read_only = off")
        await operator.run(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
        assert await asked(one) == 1
    await one.close()


async def test_a_write_refused_as_read_only_costs_the_connection(database_url: str) -> None:
    one = line(database_url)
    first = await asked(one, "SELECT pg_backend_pid()")
    await asked(one, "SET default_transaction_read_only = on")

    with pytest.raises(DatabaseUnavailable, match="takes no writes"):
        await asked(one, "UPDATE strandline.cluster SET version = version")

    assert await asked(one, "SELECT pg_backend_pid()") != first
    await one.close()


async def test_a_connection_that_ends_between_two_statements_is_told_at_once(
    database_url: str,
) -> None:
    lost = asyncio.Event()
    one = line(database_url, on_lost=lost.set)
    pid = await asked(one, "SELECT pg_backend_pid()")
    async with watching(database_url) as operator:
        await operator.run("SELECT pg_terminate_backend($1)", pid)

        async with asyncio.timeout(2.0):
            await lost.wait()

    assert not one.is_connected
    assert await asked(one) == 1
    await one.close()


async def test_to_cut_it_ends_what_is_under_way(database_url: str) -> None:
    lost: list[bool] = []
    one = line(database_url, on_lost=lambda: lost.append(True))
    await asked(one)
    under_way = asyncio.create_task(asked(one, "SELECT pg_sleep(0.4)"))
    await holds(lambda: one.is_connected)
    await asyncio.sleep(0)

    one.cut()

    began = time.monotonic()
    with pytest.raises(Unavailable):
        await under_way
    assert time.monotonic() - began < 0.3
    assert lost == [], "who cuts it knows"
    await one.close()


async def test_notices_are_heard_and_a_reconnect_says_that_some_may_be_missed(
    database_url: str,
) -> None:
    heard: list[str] = []
    one = line(database_url, on_notice={"strandline.cluster": heard.append})
    await asked(one)
    async with watching(database_url) as operator:
        await operator.run("SELECT pg_notify('strandline.cluster', 'left')")
        await holds(lambda: heard == ["left"])

        one.cut()
        await asked(one)
        await operator.run("SELECT pg_notify('strandline.cluster', 'plan')")

        await holds(lambda: heard == ["left", "", "plan"])
    await one.close()


async def test_a_cancelled_statement_leaves_no_task_and_no_connection(database_url: str) -> None:
    one = line(database_url)
    await asked(one)
    before = asyncio.all_tasks()
    under_way = asyncio.create_task(asked(one, "SELECT pg_sleep(0.4)"))
    await asyncio.sleep(0.05)

    under_way.cancel()
    with pytest.raises(asyncio.CancelledError):
        await under_way

    assert not one.is_connected
    await holds(lambda: asyncio.all_tasks() == before)
    assert await asked(one) == 1
    await one.close()


async def test_two_operations_take_turns(database_url: str) -> None:
    one = line(database_url)

    both = await asyncio.gather(asked(one, "SELECT pg_sleep(0.05)"), asked(one))

    assert both[1] == 1
    assert one.connects == 1
    await one.close()
