"""What a broken connection leaves of an append: nothing lost, nothing stored twice."""

from __future__ import annotations

import asyncio
import time

import asyncpg
import pytest
from stores import Deposited, answers, is_waiting, locked, opened, start, until

from strandline.errors import OutcomeUnknown, Unavailable, WrongVersion
from strandline.events.event import Appended
from strandline.testing.faults import Proxy


@pytest.mark.parametrize("tasks", [1, 8])
async def test_a_commit_whose_answer_is_lost_is_found_and_not_doubled(
    database_url: str, tasks: int
) -> None:
    async with Proxy(database_url) as proxy, opened(database_url, through=proxy.url) as bench:
        await asyncio.gather(*(bench.append(f"s{n}", Deposited(0)) for n in range(tasks)))
        proxy.swallow_answer_to(b'"amount":1')
        found = await answers(
            [start(bench, f"s{n}", Deposited(1), expected=1) for n in range(tasks)]
        )

        assert proxy.swallowed == 1
        assert [one.version for one in found] == [2] * tasks
        assert any(one.stored_before for one in found)
        for number in range(tasks):
            assert await bench.stored(f"s{number}") == [(1, 0), (2, 1)]


@pytest.mark.parametrize("expected", [-1, 1])
@pytest.mark.parametrize("tasks", [1, 8])
async def test_a_backend_that_dies_before_its_commit_loses_nothing(
    database_url: str, tasks: int, expected: int
) -> None:
    """The request is at the server, waiting for a lock; its backend is ended there."""
    options = {"expected": expected} if expected > 0 else {}
    async with Proxy(database_url) as proxy, opened(database_url, through=proxy.url) as bench:
        for number in range(tasks):
            await bench.append(f"s{number}", Deposited(0))
        async with locked(bench, "s0"):
            waiting = [start(bench, f"s{n}", Deposited(1), **options) for n in range(tasks)]
            await until(lambda: is_waiting(bench, 1))
            await bench.rows(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE"
                " datname = current_database() AND application_name = 'strandline work'"
            )
        found = await answers(waiting)

        assert [one.version for one in found] == [2] * tasks
        for number in range(tasks):
            assert await bench.stored(f"s{number}") == [(1, 0), (2, 1)]


@pytest.mark.parametrize("tasks", [1, 8])
async def test_a_lost_call_that_is_still_under_way_is_waited_for(
    database_url: str, tasks: int
) -> None:
    """The connection is cut while the server works on; it commits after the second try began."""
    async with Proxy(database_url) as proxy, opened(database_url, through=proxy.url) as bench:
        for number in range(tasks):
            await bench.append(f"s{number}", Deposited(0))
        async with locked(bench, "s0"):
            waiting = [start(bench, f"s{n}", Deposited(1), expected=1) for n in range(tasks)]
            await until(lambda: is_waiting(bench, 1))
            proxy.cut()
            await until(lambda: is_waiting(bench, 2))  # the lost call, and the one that resolves
        found = await answers(waiting)

        assert [one.version for one in found] == [2] * tasks
        for number in range(tasks):
            assert await bench.stored(f"s{number}") == [(1, 0), (2, 1)]


@pytest.mark.parametrize("tasks", [1, 8])
async def test_an_append_that_never_gets_an_answer_says_so(database_url: str, tasks: int) -> None:
    async with Proxy(database_url) as proxy, opened(database_url, through=proxy.url) as bench:
        for number in range(tasks):
            await bench.append(f"s{number}", Deposited(0))
        made = [bench.prepare(f"s{n}", Deposited(1)) for n in range(tasks)]
        async with locked(bench, "s0"):
            waiting = [asyncio.create_task(bench.store.append_prepared(item)) for item in made]
            await until(lambda: is_waiting(bench, 1))
            proxy.refuse()
            found = await answers(waiting)

        assert isinstance(found[0], OutcomeUnknown)
        assert made[0].events[0][0] in str(found[0])
        assert found[0].__cause__ is not None
        assert all(isinstance(one, OutcomeUnknown | Appended | Unavailable) for one in found)

        proxy.forward()
        for item, one in zip(made, found, strict=True):
            ids = [event[0] for event in item.events]
            done = await bench.append(item.stream, Deposited(1), ids=ids)
            assert done.version == 2
            assert done.stored_before or not isinstance(one, Appended)


@pytest.mark.parametrize("tasks", [1, 8])
async def test_a_server_that_takes_no_new_connections_leaves_it_unknown(
    database_url: str, server_url: str, tasks: int
) -> None:
    """As while it starts up again: the refusal is an answer, but not to the append."""
    admin = await asyncpg.connect(server_url)
    name = database_url.rpartition("/")[2]
    async with Proxy(database_url) as proxy, opened(database_url, through=proxy.url) as bench:
        for number in range(tasks):
            await bench.append(f"s{number}", Deposited(0))
        async with locked(bench, "s0"):
            waiting = [start(bench, f"s{n}", Deposited(1), expected=1) for n in range(tasks)]
            await until(lambda: is_waiting(bench, 1))
            await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
            proxy.cut()
            await asyncio.wait(waiting, timeout=20)
        await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        await admin.close()
        found = await answers(waiting)

        assert isinstance(found[0], OutcomeUnknown)
        for number, one in enumerate(found):
            told = isinstance(one, OutcomeUnknown | Appended)
            assert told or await bench.stored(f"s{number}") == [(1, 0)]


async def test_an_append_that_was_never_sent_is_not_called_unknown(database_url: str) -> None:
    async with Proxy(database_url) as proxy, opened(database_url, through=proxy.url) as bench:
        await bench.append("a", Deposited(0))
        await bench.pools.work.close()
        found = await answers([start(bench, f"s{n}", Deposited(1)) for n in range(5)])

        assert all(isinstance(one, Unavailable) for one in found)
        assert not any(isinstance(one, OutcomeUnknown) for one in found)


async def test_an_outage_fails_all_that_wait_in_bounded_time(database_url: str) -> None:
    async with Proxy(database_url) as proxy, opened(database_url, through=proxy.url) as bench:
        await bench.append("a", Deposited(0))
        proxy.refuse()
        begun = asyncio.get_running_loop().time()
        found = await answers([start(bench, f"s{n}", Deposited(1)) for n in range(200)])

        assert all(isinstance(one, Unavailable) for one in found)
        assert asyncio.get_running_loop().time() - begun < 15


async def test_appends_under_repeated_cuts_are_neither_lost_nor_doubled(database_url: str) -> None:
    async with Proxy(database_url) as proxy, opened(database_url, through=proxy.url) as bench:
        stopping = False
        done = 0

        async def cutter() -> None:
            cuts = seen = 0
            while not stopping:
                cuts += 1
                until = time.monotonic() + 1.0  # on a busy machine nobody could connect in between
                while done == seen and not stopping and time.monotonic() < until:
                    await asyncio.sleep(0.005)
                seen = done
                if cuts % 3 == 0:
                    proxy.swallow_answer_to(b'"amount"')
                await asyncio.sleep(0.03)
                if cuts % 3 == 1:
                    proxy.cut()

        async def writer(number: int) -> int:
            nonlocal done
            stored, doubtful = 0, False
            while stored < 40:
                try:
                    await bench.append(f"w{number}", Deposited(stored), expected=stored)
                except WrongVersion as error:
                    assert doubtful
                    assert error.actual == stored + 1
                except OutcomeUnknown:
                    doubtful = True
                    continue
                except Unavailable:
                    continue
                stored, doubtful = stored + 1, False
                done += 1
            return stored

        cutting = asyncio.create_task(cutter())
        async with asyncio.timeout(60):
            await asyncio.gather(*(writer(number) for number in range(12)))
        stopping = True
        await cutting

        for number in range(12):
            assert await bench.stored(f"w{number}") == [(n + 1, float(n)) for n in range(40)]
