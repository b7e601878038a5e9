"""Enqueueing: alone, in a transaction, in the caller's own, many at once."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import psycopg
import pytest
from tally import connected, holds

from strandline import sync
from strandline.app import App
from strandline.errors import DuplicateJob, InvalidInput, NotOpen, UnknownJob
from strandline.events.causes import caused_by
from strandline.jobs import bulk
from strandline.jobs.flow import batch, chain
from strandline.jobs.job import Call, Unique
from strandline.jobs.row import NewJob


class Shop:
    """An app with jobs, none of which is ever run here."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.app = App("shop", url, **settings)

        @self.app.job(queue="mail")
        async def send(to: str, copies: int = 1) -> str:
            return to * copies

        @self.app.job
        def count(number: int) -> int:
            return number

        @self.app.job(ordered=True, key=lambda account, amount: account)
        async def book(account: str, amount: int) -> None: ...

        @self.app.job(unique=Unique(on_duplicate="raise"))
        async def once(number: int) -> None: ...

        self.send, self.count, self.book, self.once = send, count, book, once


async def rows(url: str, columns: str = "*") -> list[tuple[Any, ...]]:
    async with connected(url) as connection:
        found = await connection.fetch(f"SELECT {columns} FROM strandline.jobs ORDER BY seq")  # noqa: S608
    return [tuple(one) for one in found]


async def test_a_job_is_stored_when_enqueue_returns(database_url: str) -> None:
    shop = Shop(database_url)
    async with shop.app as app:
        refs = [
            await app.enqueue(shop.send, "a", copies=2),
            await app.enqueue(shop.send.call("b")),
            await shop.send.call("c").with_(priority=1).enqueue(),
            await shop.count.enqueue(3),
        ]

    assert await rows(database_url, "id, kind, args, queue, priority, state, max_attempts") == [
        (refs[0].id, "send", '{"to":"a","copies":2}', "mail", 5, 0, 20),
        (refs[1].id, "send", '{"to":"b"}', "mail", 5, 0, 20),
        (refs[2].id, "send", '{"to":"c"}', "mail", 1, 0, 20),
        (refs[3].id, "count", '{"number":3}', "default", 5, 0, 20),
    ]
    assert all(one.is_new for one in refs)


async def test_a_job_of_a_transaction_that_rolls_back_never_was(database_url: str) -> None:
    shop = Shop(database_url)
    async with shop.app as app:
        with pytest.raises(ZeroDivisionError):
            async with app.transaction() as tx:
                await tx.enqueue(shop.send, "a")
                await tx.enqueue(chain(shop.send.call("b"), shop.send.call("c")))
                await tx.enqueue_many(shop.count.call(n) for n in range(3))
                raise ZeroDivisionError
        async with app.transaction() as tx:
            kept = await tx.enqueue(shop.send, "d")

    assert await rows(database_url, "id") == [(kept.id,)]


async def test_what_is_refused_leaves_the_transaction_usable(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "CHUNK", 1)
    monkeypatch.setattr(bulk, "PIECE", 1)
    shop = Shop(database_url)
    async with shop.app as app, app.transaction() as tx:
        first = await tx.enqueue(shop.once, 1)
        with pytest.raises(DuplicateJob) as told:
            await tx.enqueue(shop.once, 1)
        with pytest.raises(DuplicateJob):
            await tx.enqueue_many([shop.count.call(1), shop.once.call(2), shop.once.call(1)])
        with pytest.raises(DuplicateJob):
            await tx.enqueue(batch([shop.count.call(1), shop.once.call(1)]))
        with pytest.raises(InvalidInput):
            await tx.enqueue_many([shop.count.call(1), shop.count.call("x")])  # type: ignore[arg-type]

    assert told.value.job == first.id
    assert await rows(database_url, "id") == [(first.id,)]
    async with connected(database_url) as connection:
        assert await connection.fetchval("SELECT count(*) FROM strandline.job_batches") == 0


async def test_in_the_callers_own_transactions_workers_are_told_by_the_commit(
    database_url: str,
) -> None:
    shop = Shop(database_url)
    async with shop.app as app, connected(database_url) as ear:
        heard: list[str] = []
        await ear.add_listener("strandline.jobs", lambda *facts: heard.append(facts[3]))
        connection = await asyncpg.connect(database_url)
        transaction = connection.transaction()
        await transaction.start()
        first = await app.join(connection).enqueue(shop.send, "a")
        await app.join(connection).enqueue_many([shop.count.call(n) for n in range(2)])
        assert await rows(database_url) == []
        await transaction.commit()
        await connection.close()
        async with await psycopg.AsyncConnection.connect(database_url) as other:
            second = await app.join(other).enqueue(shop.send, "b")
            many = await app.join(other).enqueue_many([shop.send.call("c"), shop.once.call(1)])
        async with await psycopg.AsyncConnection.connect(database_url) as other:
            await app.join(other).enqueue(shop.send, "never")
            await other.rollback()
        await holds(lambda: heard.count("mail") >= 2 and "default" in heard)

    ids = [one[0] for one in await rows(database_url, "id")]
    assert (ids[0], ids[3]) == (first.id, second.id)
    assert set(ids[4:]) == set(many.ids)


async def test_blocking_callers_enqueue_alike(database_url: str) -> None:
    shop = Shop(database_url)

    def use() -> list[int]:
        with sync.App("shop", database_url, registry=shop.app.registry) as app:
            found = [app.enqueue(shop.send, "a"), app.enqueue(shop.count.call(1))]
            with app.transaction() as tx:
                found.append(tx.enqueue(shop.send, "b"))
                found.extend(tx.enqueue_many(shop.count.call(n) for n in range(3)))
            with pytest.raises(ZeroDivisionError), app.transaction() as tx:
                tx.enqueue(shop.send, "c")
                raise ZeroDivisionError
            found.append(app.enqueue(chain(shop.send.call("d"), shop.send.call("e"))).last)
            with psycopg.connect(database_url) as connection:
                found.append(app.join(connection).enqueue(shop.send, "f"))
            first = app.enqueue(shop.once, 1)
            with pytest.raises(DuplicateJob) as told:
                app.enqueue(shop.once, 1)
            assert told.value.job == first.id
            assert found[0].status().state == "available"
            assert found[0].cancel("no more")
            return [one.id for one in found]

    ids = await asyncio.to_thread(use)

    stored = {one[0] for one in await rows(database_url, "id")}
    assert set(ids[1:]) < stored
    assert ids[0] not in stored
    assert len(stored) == len(ids) + 1  # the first of the chain, and the unique one


async def test_plain_sql_enqueues_and_tells(database_url: str) -> None:
    shop = Shop(database_url)
    async with shop.app, connected(database_url) as connection:
        heard: list[str] = []
        await connection.add_listener("strandline.jobs", lambda *facts: heard.append(facts[3]))
        ids = [
            await connection.fetchval(f"SELECT strandline.enqueue({arguments})")  # noqa: S608
            for arguments in (
                """'send', '{"to": "a"}', 'mail'""",
                "'count', unique_key => 'k'",
                "'count', unique_key => 'k'",
                "'count', run_at => now() + interval '1 hour', priority => 2",
            )
        ]
        await holds(lambda: heard == ["mail", "default", "default"])
        for bad in ("''", "'k', '[]'", "'k', priority => 0", "'k', queue => ''", "'k', key => ''"):
            with pytest.raises(asyncpg.PostgresError) as told:
                await connection.fetchval(f"SELECT strandline.enqueue({bad})")  # noqa: S608
            assert told.value.sqlstate == "SL004"

    assert ids[1] == ids[2]
    assert await rows(database_url, "id, kind, args, queue, state, priority, unique_key") == [
        (ids[0], "send", '{"to": "a"}', "mail", 0, 5, None),
        (ids[1], "count", "{}", "default", 0, 5, "k"),
        (ids[3], "count", "{}", "default", 1, 2, None),
    ]


async def test_delays_are_by_the_servers_clock(database_url: str) -> None:
    shop = Shop(database_url)
    at = datetime.now(UTC) + timedelta(days=1)
    async with shop.app as app:
        call = shop.send.call("a")
        await app.enqueue(call.with_(delay=3600))
        await app.enqueue(call.with_(run_at=at))
        await app.enqueue(call.with_(run_at=datetime(2020, 1, 1, tzinfo=UTC)))
        await app.enqueue(call.with_(delay=0))
        await app.enqueue_many([call.with_(delay=3600), call, call.with_(run_at=at)])
        await app.enqueue(call.with_(delay=3600, unique="k"))

    found = await rows(
        database_url,
        "state, extract(epoch FROM run_at - created_at)::float8, run_at",
    )
    assert [one[0] for one in found] == [1, 1, 0, 0, 1, 0, 1, 1]
    assert [found[place][1] for place in (0, 4, 7)] == pytest.approx([3600] * 3, abs=1.0)
    assert found[1][2] == found[6][2] == at


async def test_ordered_jobs_are_inserted_behind_each_other_and_the_first_is_let_go(
    database_url: str,
) -> None:
    shop = Shop(database_url)
    async with shop.app as app:
        refs = [await app.enqueue(shop.book, "ada", amount) for amount in range(3)]
        refs += await app.enqueue_many([shop.book.call("bob", 1), shop.count.call(1)])

        async def is_one_a_key() -> bool:
            states = dict(await rows(database_url, "id, state"))
            return [states[one.id] for one in refs] == [0, 3, 3, 0, 0]

        await holds(is_one_a_key)


async def test_many_at_once_keep_their_order_and_answer_their_references(
    database_url: str,
) -> None:
    shop = Shop(database_url)

    async def calls() -> AsyncIterator[Call[Any]]:
        for number in range(25_003):
            yield shop.count.call(number) if number % 5_000 else shop.send.call(f"{number}")

    async with shop.app as app:
        refs = await app.enqueue_many(calls())
        none = await app.enqueue_many([])
        mixed = await app.enqueue_many(
            [
                shop.send.call("x").with_(delay=60),
                shop.count.call(1).with_(unique="k"),
                shop.count.call(2).with_(unique="k"),
                shop.send.call("y"),
            ]
        )

    found = await rows(database_url, "id, kind, args")
    assert [one[0] for one in found[:25_003]] == refs.ids
    assert [one[1] for one in found[:25_003]] == [ref.kind for ref in refs]
    assert found[20_001][2] == '{"number":20001}'
    assert (len(none), list(none)) == (0, [])
    assert [one.is_new for one in mixed] == [True, True, False, True]
    assert mixed[1].id == mixed[2].id
    assert [one.id for one in mixed[2:]] == mixed.ids[2:]
    with pytest.raises(IndexError):
        none[0]


async def test_many_at_once_are_all_or_none(database_url: str) -> None:
    shop = Shop(database_url)

    def broken() -> Iterator[Call[Any]]:
        for number in range(12_000):
            yield shop.count.call(number)
        raise ZeroDivisionError

    async with shop.app as app:
        with pytest.raises(ZeroDivisionError):
            await app.enqueue_many(broken())
        with pytest.raises(InvalidInput):
            await app.enqueue_many([shop.count.call(1)] * 11_000 + [shop.count.call("x")])  # type: ignore[arg-type]
        with pytest.raises(DuplicateJob):
            await app.enqueue_many([shop.count.call(1), shop.once.call(1), shop.once.call(1)])
        for wrong in (shop.count.call(1), "text", 5, [shop.count], [5]):
            with pytest.raises(InvalidInput):
                await app.enqueue_many(wrong)  # type: ignore[arg-type]

    assert await rows(database_url) == []


async def test_a_generator_of_many_takes_constant_memory(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "CHUNK", 500)
    monkeypatch.setattr(bulk, "PIECE", 100)
    shop = Shop(database_url)
    alive = []

    def calls() -> Iterator[Call[Any]]:
        for number in range(5_000):
            if number % 500 == 0:
                alive.append(sum(type(one) is NewJob for one in gc.get_objects()))
            yield shop.count.call(number)

    async with shop.app as app:
        refs = await app.enqueue_many(calls())

    assert len(refs) == len(await rows(database_url)) == 5_000
    assert max(alive) <= 1_100  # a chunk at the server, and one that is prepared


SLOW = """
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_sleep(0.2);
    RETURN NEW;
END $$;
CREATE TRIGGER slow BEFORE INSERT ON strandline.jobs
   FOR EACH ROW WHEN (NEW.args LIKE '%"amount":5}') EXECUTE FUNCTION slow();
"""


async def test_many_tasks_that_enqueue_go_together_and_in_the_order_of_a_key(
    database_url: str,
) -> None:
    """One insert is slow, so that another call to the server could overtake those behind it."""
    shop = Shop(database_url, group_jobs=10)
    async with connected(database_url) as connection:
        await connection.execute(SLOW)
    async with shop.app as app:
        refs = await asyncio.gather(
            *(app.enqueue(shop.book, "ada", number) for number in range(100)),
            *(app.enqueue(shop.count, number) for number in range(300)),
        )

    found = await rows(database_url, "id, kind, args, state")
    behind = [json.loads(one[2])["amount"] for one in found if one[1] == "book" and one[3] == 3]
    assert behind == list(range(100))[-len(behind) :]
    assert len(behind) >= 99
    assert {one[0] for one in found} == {one.id for one in refs}
    async with connected(database_url) as connection:
        calls = await connection.fetchval("SELECT sum(number) FROM strandline.job_senders")
    assert calls < 100


async def test_one_that_is_refused_in_a_group_fails_alone(database_url: str) -> None:
    shop = Shop(database_url)
    async with shop.app as app:
        found = await asyncio.gather(
            *(app.enqueue(shop.once, number % 10) for number in range(40)),
            *(app.enqueue(shop.count, number) for number in range(40)),
            return_exceptions=True,
        )

    assert sum(isinstance(one, DuplicateJob) for one in found[:40]) == 30
    assert not any(isinstance(one, BaseException) for one in found[40:])
    assert len(await rows(database_url)) == 50


async def test_what_led_to_a_job_stands_in_its_meta(database_url: str) -> None:
    shop = Shop(database_url)
    async with shop.app as app:
        await app.enqueue(shop.count, 1)
        with caused_by(12):
            await app.enqueue(shop.count, 2)
            await app.enqueue(shop.count.call(3).with_(meta={"correlation": "mine"}))
            await app.enqueue_many([shop.count.call(4)])

    found = [one[0] and json.loads(one[0]) for one in await rows(database_url, "meta")]
    caused = {"causation": "event:12", "correlation": "event:12"}
    assert found == [None, caused, caused | {"correlation": "mine"}, caused]


async def test_a_closed_app_and_a_strangers_job_are_refused(database_url: str) -> None:
    shop, other = Shop(database_url), Shop(database_url)
    async with shop.app as app:
        with pytest.raises(UnknownJob):
            await app.enqueue(other.send, "a")
        with pytest.raises(InvalidInput, match="arguments already"):
            await app.enqueue(shop.send.call("a"), "b")  # type: ignore[call-overload]
        with pytest.raises(InvalidInput, match="cannot be enqueued"):
            await app.enqueue("send", "a")  # type: ignore[call-overload]
    with pytest.raises(NotOpen):
        await shop.app.enqueue(shop.send, "a")

    assert await rows(database_url) == []
