"""The kit for tests of jobs: run what is enqueued without a node, look at it, let time pass."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import ANY

import asyncpg
import pytest

import strandline as sl
from strandline.jobs.context import current
from strandline.jobs.inject import Inject
from strandline.jobs.retry import Retry
from strandline.jobs.verdicts import Cancel, Snooze
from strandline.testing import jobs


@dataclass
class Order:
    id: str
    items: list[int]


class Shop:
    """An app with a few jobs, and what they have done."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.app = app = sl.App("shop", url, **settings)
        self.done: list[Any] = []

        @app.job(keep="all")
        async def send(to: str, copies: int = 1) -> str:
            self.done.append(("send", to, copies))
            return f"sent to {to}"

        @app.job
        async def place(order: Order) -> None:
            self.done.append(("place", order))
            for item in order.items:
                await app.enqueue(send, f"item {item}")

        @app.job(retry=Retry(max_attempts=3, first=60, jitter=0))
        async def flaky(fails: int) -> int:
            if current().attempt <= fails:
                raise ConnectionError(f"attempt {current().attempt}")
            return current().attempt

        @app.job(retry=Retry(first=60, jitter=0))
        async def decides(what: str) -> None:
            if what == "cancel":
                raise Cancel("no such order")
            if what == "snooze" and "snoozed" not in self.done:
                self.done.append("snoozed")
                raise Snooze(3600)

        self.send, self.place, self.flaky, self.decides = send, place, flaky, decides


async def test_a_drain_runs_what_is_enqueued_and_what_that_enqueues(database_url: str) -> None:
    shop = Shop(database_url)
    async with shop.app as app:
        assert (await jobs.drain(app)).runs == ()
        async with app.transaction() as tx:
            await tx.enqueue(shop.place, Order("o1", [1, 2]))
        ref = await app.enqueue(shop.send.call("first").with_(priority=1))

        drained = await jobs.drain(app)

        assert drained.completed == 4
        assert [run.kind for run in drained.runs] == ["send", "place", "send", "send"]
        assert drained.of(shop.send)[0].result == "sent to first"
        assert await ref.result(timeout=10) == "sent to first"
        assert shop.done == [
            ("send", "first", 1),
            ("place", Order("o1", [1, 2])),
            ("send", "item 1", 1),
            ("send", "item 2", 1),
        ]
        assert await jobs.enqueued(app) == []


async def test_a_drain_sees_what_users_commit_in_their_own_transactions(database_url: str) -> None:
    shop = Shop(database_url)
    async with shop.app as app:
        connection = await asyncpg.connect(database_url)
        try:
            async with connection.transaction():
                await app.join(connection).enqueue(shop.send, "Ada")
                await jobs.assert_not_enqueued(app, shop.send)
                assert (await jobs.drain(app)).runs == ()
            transaction = connection.transaction()
            await transaction.start()
            await app.join(connection).enqueue(shop.send, "nobody")
            await transaction.rollback()
        finally:
            await connection.close()

        await jobs.assert_enqueued(app, shop.send, to="Ada")
        assert [run.result for run in (await jobs.drain(app)).runs] == ["sent to Ada"]


async def test_failures_are_retried_when_their_time_is_taken_to_have_come(
    database_url: str,
) -> None:
    shop = Shop(database_url)
    async with shop.app as app:
        await app.enqueue(shop.flaky, 2)

        once = await jobs.drain(app)
        waits = await jobs.assert_enqueued(app, shop.flaky, fails=2)
        rest = await jobs.drain(app, with_scheduled=True)

        assert (once.retried, len(once.runs), once.runs[0].delay) == (1, 1, 60)
        assert (waits.state, waits.attempt) == ("retryable", 1)
        assert [(run.attempt, run.outcome) for run in rest.runs] == [
            (2, "retried"),
            (3, "completed"),
        ]
        await app.enqueue(shop.flaky, 3)
        dead = await jobs.drain(app, with_scheduled=True)
        assert (dead.retried, dead.dead, dead.completed) == (2, 1, 0)
        assert [str(error) for error in dead.errors] == ["attempt 1", "attempt 2", "attempt 3"]
        with pytest.raises(ExceptionGroup, match="3 attempts failed"):
            dead.raise_errors()
        with pytest.raises(ConnectionError, match="attempt 1"):
            once.raise_errors()


async def test_time_passes_for_jobs_when_it_is_told_to(database_url: str) -> None:
    shop = Shop(database_url)
    async with shop.app as app:
        await app.enqueue(shop.send.call("later").with_(delay=3600))
        await app.enqueue(shop.decides, "snooze")
        await app.enqueue(shop.decides, "cancel")

        first = await jobs.drain(app)
        await jobs.advance(app, 3000)
        nothing = await jobs.drain(app)
        await jobs.advance(app, timedelta(minutes=11))
        rest = await jobs.drain(app)

        assert (first.snoozed, first.cancelled, nothing.runs) == (1, 1, ())
        assert sorted(run.kind for run in rest.runs) == ["decides", "send"]
        assert (rest.completed, first.errors) == (2, [])
        with pytest.raises(ValueError, match="go back"):
            await jobs.advance(app, -1)


async def test_schedules_fire_as_time_passes(database_url: str) -> None:
    shop = Shop(database_url)
    shop.app.schedule("morning", "0 9 * * *", shop.send.call("everybody"))
    async with shop.app as app:
        assert await jobs.advance(app, 0) == 0
        assert await jobs.advance(app, 86_400) == 1
        assert (await jobs.drain(app)).completed == 1
        assert shop.done == [("send", "everybody", 1)]


async def test_flows_and_ordered_jobs_drain_in_their_order(database_url: str) -> None:
    app = sl.App("flows", database_url)
    done: list[Any] = []

    @app.job(keep="all")
    async def step(number: int) -> int:
        done.append(number)
        return number * 10

    @app.job
    async def gather() -> None:
        done.append(await current().results())

    @app.job(key=lambda number: "one key", ordered=True)
    async def in_order(number: int) -> None:
        done.append(("ordered", number))

    from strandline.jobs.flow import chain, dag

    async with app:
        await app.enqueue(chain(step.call(1), step.call(2), step.call(3)))
        assert (await jobs.drain(app)).completed == 3
        await app.enqueue(
            dag({"a": step.call(4), "b": step.call(5), "end": (gather.call(), ["a", "b"])})
        )
        assert (await jobs.drain(app)).completed == 3
        for number in range(4):
            await app.enqueue(in_order, number)
        assert (await jobs.drain(app)).completed == 4

    assert done == [1, 2, 3, 4, 5, {"a": 40, "b": 50}, *(("ordered", n) for n in range(4))]


async def test_a_drain_can_be_narrowed_and_ended(database_url: str) -> None:
    shop = Shop(database_url)
    async with shop.app as app:
        await app.enqueue(shop.send.call("mail").with_(queue="mail"))
        await app.enqueue_many(shop.send.call(f"{n}") for n in range(3))

        mail = await jobs.drain(app, queue="mail")
        one = await jobs.drain(app, until=lambda run: run.result == "sent to 0")
        rest = await jobs.drain(app, queue=["mail", "default"])

        assert [len(one.runs) for one in (mail, one, rest)] == [1, 1, 2]

        @app.job
        async def again() -> None:
            await app.enqueue(again)

        await app.enqueue(again)
        with pytest.raises(AssertionError, match=r"10 of 'again'"):
            await jobs.drain(app, most=10)


async def test_a_drain_keeps_time_limits_and_runs_threads_and_signals(database_url: str) -> None:
    app = sl.App("limits", database_url)
    told: list[str] = []
    seen: list[int] = []

    @app.job(timeout=0.05, retry=Retry(max_attempts=1))
    async def slow() -> None:
        await asyncio.sleep(60)

    @app.job
    def blocking(number: int) -> None:
        seen.append(current().id * 0 + number)

    async with app:
        end = app.on_job("dead", lambda event: told.append(f"{event.kind} {event.attempt}"))
        await app.enqueue(slow)
        await app.enqueue(blocking, 4)

        drained = await jobs.drain(app)
        end()

        assert (drained.dead, drained.completed) == (1, 1)
        assert isinstance(drained.errors[0], TimeoutError)
        assert (told, seen) == (["slow 1"], [4])


async def test_what_is_enqueued_is_matched_by_its_arguments(database_url: str) -> None:
    shop = Shop(database_url)
    async with shop.app as app:
        due = datetime(2100, 1, 1, tzinfo=UTC)
        await app.enqueue(shop.send.call("Ada").with_(run_at=due, queue="mail", tags=("a",)))
        await app.enqueue(shop.place, Order("o1", [1]))

        found = await jobs.assert_enqueued(app, shop.send, to="Ada", copies=1)
        assert (found.queue, found.run_at, found.state) == ("mail", due, "scheduled")
        assert found.meta["tags"] == ["a"]
        await jobs.assert_enqueued(app, shop.send.call("Ada"))
        await jobs.assert_enqueued(app, shop.send, to=ANY)
        await jobs.assert_enqueued(app, "place")
        await jobs.assert_enqueued(app, shop.place, order=Order("o1", [1]))
        await jobs.assert_not_enqueued(app, shop.send.call("Ada", copies=2))
        await jobs.assert_not_enqueued(app, shop.flaky)
        assert len(await jobs.enqueued(app)) == 2


async def test_a_job_that_is_missing_is_told_with_what_there_is(database_url: str) -> None:
    shop = Shop(database_url)
    async with shop.app as app:
        with pytest.raises(AssertionError, match="Nothing is; jobs that have run are gone"):
            await jobs.assert_enqueued(app, shop.send, to="Ada")
        await app.enqueue(shop.send, "Bo")

        with pytest.raises(AssertionError) as missing:
            await jobs.assert_enqueued(app, shop.send, to="Ada", copies=1)
        with pytest.raises(AssertionError, match=r"of other kinds:\n  send\(to='Bo', copies=1\)"):
            await jobs.assert_enqueued(app, shop.flaky)
        with pytest.raises(AssertionError, match=r"send\(to='Bo'\) is enqueued"):
            await jobs.assert_not_enqueued(app, shop.send, to="Bo")
        with pytest.raises(ValueError, match=r"no argument too \(it takes: to, copies\)"):
            await jobs.assert_enqueued(app, shop.send, too="Ada")

    assert str(missing.value) == (
        "send(to='Ada', copies=1) is not enqueued.\nThere are, of this kind:\n"
        "  send(to='Bo', copies=1) available in 'default'  <- to is 'Bo', not 'Ada'"
    )


async def test_inline_jobs_run_where_they_are_enqueued(database_url: str) -> None:
    shop = Shop(database_url)
    async with shop.app as app:
        async with jobs.inline(app) as running:
            await app.enqueue(shop.place, Order("o1", [1, 2]))
            assert len(shop.done) == 3
            async with app.transaction() as tx:
                await tx.enqueue(shop.send, "in a transaction")
                assert len(shop.done) == 3
            assert shop.done[-1] == ("send", "in a transaction", 1)
            await shop.send.enqueue("by the job")
            await app.enqueue_many([shop.send.call("many")])
            assert shop.done[-2:] == [("send", "by the job", 1), ("send", "many", 1)]
            with pytest.raises(ConnectionError, match="attempt 1"):
                await app.enqueue(shop.flaky, 1)
            with pytest.raises(RuntimeError, match="rolled back"):
                async with app.transaction() as tx:
                    await tx.enqueue(shop.send, "never")
                    raise RuntimeError("rolled back")
        assert running.drained.completed == 6
        assert running.drained.retried == 1

        await app.enqueue(shop.send, "after")
        await shop.send.enqueue("after")
        assert len(running.runs) == 7
        assert len(await jobs.enqueued(app, shop.send)) == 2


async def test_a_call_runs_with_a_context_and_no_database() -> None:
    app = sl.App("nowhere", "postgresql://nowhere.invalid/none")
    told: list[Any] = []

    @app.job_middleware
    async def around(job: Any, call_next: Any) -> Any:
        return [await call_next(job), "around"]

    def mailer() -> str:
        raise AssertionError("a real mailer")

    @app.job
    async def send(order: Order, mailer: str = Inject(mailer)) -> list[Any]:
        job = current()
        job.progress(1, 2, "half")
        return [order, mailer, job.attempt, job.key, job.meta, await job.results()]

    @app.job(executor="process")
    def compute(number: int) -> int:
        return number + current().id

    answer = await jobs.run(
        send.call(Order("o", [1])).with_(key="k", tags=("t",)),
        attempt=2,
        provide={"mailer": "fake"},
        results={"a": 1},
        progress=told,
    )

    assert answer == [Order("o", [1]), "fake", 2, "k", {"tags": ["t"]}, {"a": 1}]
    assert told == [(1, 2, "half")]
    assert await jobs.run(compute.call(4)) == 5
    assert (await jobs.run(compute.call(4), app=app)) == [5, "around"]
    with pytest.raises(ValueError, match="no injected parameter sender"):
        await jobs.run(send.call(Order("o", [])), provide={"sender": 1})
    with pytest.raises(sl.InvalidInput):
        await jobs.run(send.call("no order"))  # type: ignore[arg-type]
