"""Unique jobs: one of a key, whoever enqueues it at the same moment, and what becomes of the others."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from tally import connected, holds

from strandline.app import App
from strandline.errors import DuplicateJob
from strandline.jobs.job import Unique


class Shop:
    def __init__(self, url: str) -> None:
        self.app = App("shop", url, work_connections=6)

        @self.app.job(unique=Unique(by=("to",)))
        async def send(to: str, text: str = "") -> None: ...

        @self.app.job
        async def plain() -> None: ...

        self.send, self.plain = send, plain


async def fetch(url: str, query: str, *arguments: Any) -> list[tuple[Any, ...]]:
    async with connected(url) as connection:
        return [tuple(one) for one in await connection.fetch(query, *arguments)]


JOBS = "SELECT id, state, args FROM strandline.jobs ORDER BY id"


async def test_of_many_at_once_one_is_stored_and_all_get_its_id(database_url: str) -> None:
    here, there = Shop(database_url), Shop(database_url)
    async with here.app, there.app:
        refs = await asyncio.gather(
            *(shop.app.enqueue(shop.send, "a", str(n)) for n in range(8) for shop in (here, there))
        )

    (job,) = await fetch(database_url, JOBS)
    assert {one.id for one in refs} == {job[0]}
    assert sum(one.is_new for one in refs) == 1


async def test_transactions_at_once_wait_for_each_other(database_url: str) -> None:
    shop = Shop(database_url)
    async with shop.app as app:

        async def enqueue(number: int) -> Any:
            async with app.transaction() as tx:
                return await tx.enqueue(shop.send, "a", str(number))

        async with app.transaction() as tx:
            first = await tx.enqueue(shop.send, "a")
            others = [asyncio.create_task(enqueue(number)) for number in range(4)]
            waiting = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = $1"

            async def is_waiting() -> bool:
                name = database_url.rpartition("/")[2]
                return len(await fetch(database_url, waiting, name)) == 4

            await holds(is_waiting, 30)
        assert {one.id for one in await asyncio.gather(*others)} == {first.id}

        with pytest.raises(ZeroDivisionError):
            async with app.transaction() as tx:
                await tx.enqueue(shop.send, "b")
                other = asyncio.create_task(enqueue_b(app, shop))
                raise ZeroDivisionError
        assert (await other).is_new


async def enqueue_b(app: App, shop: Shop) -> Any:
    return await app.enqueue(shop.send, "b")


async def test_one_that_waits_for_a_transaction_keeps_no_others_waiting(database_url: str) -> None:
    shop = Shop(database_url)
    async with shop.app as app:
        async with app.transaction() as tx:
            for name in "abc":
                await tx.enqueue(shop.send, name)
            waiting = [asyncio.create_task(app.enqueue(shop.send, name)) for name in "abc"]
            async with asyncio.timeout(30):
                for _ in range(5):
                    await asyncio.gather(*(app.enqueue(shop.plain) for _ in range(3)))
            assert not any(one.done() for one in waiting)
        assert not any(one.is_new for one in await asyncio.gather(*waiting))


async def test_a_key_is_free_again_when_its_job_is_gone(database_url: str) -> None:
    shop = Shop(database_url)
    async with shop.app as app, connected(database_url) as connection:
        first = await app.enqueue(shop.send, "a")
        await connection.execute("DELETE FROM strandline.jobs")
        second = await app.enqueue(shop.send, "a")
        await connection.execute("UPDATE strandline.jobs SET state = 2, claim = 1, attempt = 1")
        third = await app.enqueue(shop.send, "a")

    assert second.id != first.id
    assert (third.id, third.is_new) == (second.id, False)


async def test_debounce_replaces_one_that_has_not_started(database_url: str) -> None:
    shop = Shop(database_url)
    replace = Unique(by=("to",), on_duplicate="replace")
    async with shop.app as app, connected(database_url) as connection:
        first = await app.enqueue(shop.send.call("a", "1").with_(unique=replace, delay=60))
        before = await connection.fetchrow("SELECT run_at, seq FROM strandline.jobs")
        later = await app.enqueue(
            shop.send.call("a", "2").with_(unique=replace, delay=90, priority=2, meta={"n": 2})
        )
        after = await connection.fetchrow("SELECT * FROM strandline.jobs")
        at_once = await app.enqueue(shop.send.call("a", "3").with_(unique=replace))
        now = await connection.fetchrow("SELECT * FROM strandline.jobs")
        await connection.execute("UPDATE strandline.jobs SET state = 2, claim = 1, attempt = 1")
        running = await app.enqueue(shop.send.call("a", "4").with_(unique=replace))

    assert first.id == later.id == at_once.id == running.id
    assert (first.is_new, later.is_new, running.is_new) == (True, False, False)
    assert 29 < (after["run_at"] - before["run_at"]).total_seconds() < 60
    assert (after["state"], after["priority"], json.loads(after["meta"])) == (1, 2, {"n": 2})
    assert (now["state"], now["run_at"]) == (0, None)
    assert now["seq"] > before["seq"]
    assert [one[2] for one in await fetch(database_url, JOBS)] == ['{"to":"a","text":"3"}']


async def test_the_last_of_those_that_replace_at_once_stays(database_url: str) -> None:
    shop = Shop(database_url)
    unique = Unique(by=("to",), on_duplicate="replace")
    async with shop.app as app:
        await asyncio.gather(
            *(app.enqueue(shop.send.call("a", str(n)).with_(unique=unique)) for n in range(50))
        )

    (job,) = await fetch(database_url, JOBS)
    assert json.loads(job[2])["text"] == "49"


async def test_within_a_period_there_is_one_also_once_it_has_ended(database_url: str) -> None:
    shop = Shop(database_url)
    hourly = Unique(by=("to",), within=3_600)
    replace = Unique(by=("to",), within=3_600, on_duplicate="replace")
    async with shop.app as app, connected(database_url) as connection:
        first = await app.enqueue(shop.send.call("a", "1").with_(unique=hourly))
        other = await app.enqueue(shop.send.call("b").with_(unique=hourly))
        again = await app.enqueue(shop.send.call("a", "2").with_(unique=replace))
        assert [one[2] for one in await fetch(database_url, JOBS)][0] == '{"to":"a","text":"2"}'
        await connection.execute("DELETE FROM strandline.jobs")
        gone = await app.enqueue(shop.send.call("a", "3").with_(unique=replace))
        assert await fetch(database_url, JOBS) == []
        await connection.execute(  # the next hour
            "UPDATE strandline.job_periods SET unique_key = unique_key || ' before'"
        )
        new = await app.enqueue(shop.send.call("a", "4").with_(unique=hourly))
        ends = await connection.fetch("SELECT expires_at FROM strandline.job_periods")

    assert first.id == again.id == gone.id != new.id
    assert (other.is_new, again.is_new, gone.is_new, new.is_new) == (True, False, False, True)
    assert {(one[0].minute, one[0].second) for one in ends} == {(0, 0)}


async def test_until_it_starts_is_told_by_a_flag(database_url: str) -> None:
    shop = Shop(database_url)
    async with shop.app as app:
        await app.enqueue(shop.send.call("a").with_(unique=Unique(by=("to",), until="started")))

    assert await fetch(database_url, "SELECT flags FROM strandline.jobs") == [(32,)]


async def test_a_refused_one_names_the_one_there_is(database_url: str) -> None:
    shop = Shop(database_url)
    refuse = Unique(by=("to",), on_duplicate="raise")
    async with shop.app as app:
        first = await app.enqueue(shop.send.call("a").with_(unique=refuse))
        with pytest.raises(DuplicateJob, match=str(first.id)) as told:
            await app.enqueue(shop.send.call("a", "2").with_(unique=refuse))

    assert told.value.job == first.id
    assert told.value.kind == "send"


async def test_keys_in_any_order_never_lock_each_other_out(database_url: str) -> None:
    shop = Shop(database_url)
    names = [f"{number:02}" for number in range(40)]
    async with shop.app as app:
        done = await asyncio.gather(
            *(
                app.enqueue_many([shop.send.call(name) for name in names[:: (-1) ** n]])
                for n in range(6)
            )
        )

    assert len({tuple(sorted(one.ids)) for one in done}) == 1
    assert len(await fetch(database_url, JOBS)) == 40
