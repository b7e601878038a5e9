"""Events are counted once they are committed, whichever way they came, and never twice."""

from __future__ import annotations

import asyncio
import time
from uuid import uuid4

import asyncpg
import psycopg
import pytest
from tally import Ticked, tally_app

import strandline as sl
from strandline import sync
from strandline.app import App
from strandline.telemetry.metrics import Metrics

APPENDED = "strandline_events_appended_total"


def counted(metrics: Metrics) -> float:
    ((value, labels),) = metrics.readings(APPENDED)
    assert set(labels) == {"node"}
    return value


def of(app: App) -> float:
    return counted(app._metrics)


async def test_every_way_of_appending_counts_its_events(database_url: str) -> None:
    async with tally_app(database_url) as app:
        assert of(app) == 0

        await app.append("s1", [Ticked(1), Ticked(2)])
        assert of(app) == 2
        await asyncio.gather(*(app.append(f"g{one}", Ticked(one)) for one in range(40)))
        assert of(app) == 42
        await app.append_many([("m1", [Ticked(1)]), ("m2", [Ticked(2), Ticked(3)])])
        assert of(app) == 45
        async with app.transaction() as tx:
            await tx.append("t1", Ticked(1))
            await tx.append_many([("t2", [Ticked(1), Ticked(2)])])
            assert of(app) == 45, "not committed yet"
        assert of(app) == 48
        connection = await asyncpg.connect(database_url)
        async with connection.transaction():
            await app.join(connection).append("j1", Ticked(1))
        await connection.close()
        assert of(app) == 49
        await app.import_events(
            [sl.ImportedEvent("i1", Ticked(one)) for one in range(5)], chunk_events=2
        )
        assert of(app) == 54


async def test_appends_with_inline_projections_are_counted_too(database_url: str) -> None:
    async with tally_app(database_url, lifecycle="inline") as app:
        await app.append("s1", [Ticked(1), Ticked(2)])

        assert of(app) == 2


async def test_what_is_refused_rolled_back_or_stored_before_is_not_counted(
    database_url: str,
) -> None:
    async with tally_app(database_url) as app:
        await app.append("s1", Ticked(1))
        mine = uuid4()
        await app.append("s2", Ticked(1), ids=[mine])
        assert of(app) == 2

        with pytest.raises(sl.WrongVersion):
            await app.append("s1", Ticked(2), expected=7)
        again = await app.append("s2", Ticked(1), ids=[mine])
        with pytest.raises(ZeroDivisionError):
            async with app.transaction() as tx:
                await tx.append("s3", Ticked(1))
                raise ZeroDivisionError
        many = await asyncio.gather(
            *(app.append("s4", Ticked(one), expected=0) for one in range(20)),
            return_exceptions=True,
        )

        assert again.stored_before
        assert sum(isinstance(one, sl.WrongVersion) for one in many) == 19
        assert of(app) == 3


def test_a_blocking_app_counts_what_its_threads_append_and_enqueue(database_url: str) -> None:
    pytest.importorskip("prometheus_client")
    app = sync.App("shop", database_url, node_name="web-1", work_connections=3)
    app.event("ticked")(Ticked)

    @app.job(queue="mail")
    def send(number: int) -> None: ...

    with app:
        metrics = app._counting.metrics
        app.append("s1", [Ticked(1), Ticked(2)])
        with app.transaction() as tx:
            tx.append("s2", Ticked(1))
            tx.enqueue(send, 1)
            assert counted(metrics) == 2
        with pytest.raises(ZeroDivisionError), app.transaction() as tx:
            tx.append_many([("s3", [Ticked(1)])])
            raise ZeroDivisionError
        with psycopg.connect(database_url) as connection:
            app.join(connection).append("s4", Ticked(1))
        app.enqueue(send, 2)
        app.enqueue_many([send.call(3), send.call(4)])

        page = app.metrics_page()[0].decode()
        assert counted(metrics) == 4
        assert 'strandline_jobs_enqueued_total{node="web-1",queue="mail"} 4.0' in page
        assert 'strandline_pool_limit_connections{node="web-1",pool="sync"} 3.0' in page
        assert 'strandline_pool_exhausted_total{node="web-1",pool="sync"} 0.0' in page

    assert metrics.readings(APPENDED) == []


def test_a_blocking_pool_tells_of_its_leaks(database_url: str) -> None:
    app = sync.App("shop", database_url, leak_after=0.01, leak_rollback_after=0.0)
    app.event("ticked")(Ticked)

    with app, app.transaction() as tx:
        tx.append("s1", Ticked(1))
        deadline = time.monotonic() + 30
        tally, leaks = app._counting.metrics.tally, "strandline_leaked_transactions_total"
        while not tally.counts(leaks)[("sync",)] and time.monotonic() < deadline:
            app.stream_state("s2")  # looks, as everybody does who takes a connection
        (pool,) = app._counting._readings()["pools"]

    assert tally.counts(leaks)[("sync",)] == 1
    assert (pool.leaked, pool.in_use) == (1, 1)
    assert pool.oldest_transaction > 0
