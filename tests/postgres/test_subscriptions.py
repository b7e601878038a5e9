"""Subscriptions: exactly once with a transaction, at least once without, and where they begin."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from tally import Dropped, Ticked, committed, connected, end_backends, fill, holds, tally_app

from strandline.app import App, Transaction
from strandline.errors import TransactionFailed
from strandline.events.event import Unknown
from strandline.projections.failure_policy import ErrorPolicy
from strandline.projections.subscription import EventBatch
from strandline.testing.faults import Proxy

CREATE = "CREATE TABLE public.seen (n bigint GENERATED ALWAYS AS IDENTITY, position bigint)"


def following_app(url: str, **settings: Any) -> App:
    """An app whose subscription writes every position to a table of the user's."""
    app = tally_app(url, **settings)

    @app.subscription("follower", batch_events=5)
    async def follow(batch: EventBatch, tx: Transaction) -> None:
        for event in batch:
            await tx.execute("INSERT INTO public.seen (position) VALUES ($1)", event.position)

    return app


async def seen(connection: Any) -> list[int]:
    return [row[0] for row in await connection.fetch("SELECT position FROM public.seen ORDER BY n")]


async def test_what_is_done_by_the_transaction_is_done_exactly_once_while_backends_are_killed(
    database_url: str, impatient: None
) -> None:
    app = following_app(database_url)
    async with app, connected(database_url) as operator:
        await operator.execute(CREATE)
        last = await fill(app, 300)
        batches, killed = committed(app, "follower"), 0
        await app.start()

        for round_ in range(1, 11):
            await batches(round_ * 4)
            killed += await end_backends(operator, "strandline work")
        await app.wait_for(last, "follower")

        assert killed >= 10
        assert sorted(await seen(operator)) == list(range(1, last + 1))
        assert await seen(operator) == sorted(await seen(operator)), "and in order"


async def test_a_commit_whose_outcome_is_unknown_is_not_done_again(
    database_url: str, impatient: None
) -> None:
    async with Proxy(database_url) as proxy, connected(database_url) as operator:
        await operator.execute(CREATE)
        app = following_app(proxy.url)
        async with app:
            last = await fill(app, 100)
            await app.start()

            for round_ in range(1, 6):
                proxy.swallow_answer_to(b"COMMIT")
                await holds(lambda wanted=round_: proxy.swallowed == wanted)
            await app.wait_for(last, "follower")

            assert await seen(operator) == list(range(1, last + 1))


async def test_a_function_that_fails_has_done_nothing(database_url: str, impatient: None) -> None:
    app = tally_app(database_url)
    fails = True

    @app.subscription("follower", on_error=ErrorPolicy(apply="pause"))
    async def follow(batch: EventBatch, tx: Transaction) -> None:
        for event in batch:
            await tx.execute("INSERT INTO public.seen (position) VALUES ($1)", event.position)
        if fails:
            raise RuntimeError("not today")

    async with app, connected(database_url) as operator:
        await operator.execute(CREATE)
        paused = asyncio.create_task(app.signals.wait_for("shard_paused", timeout=10))
        last = await fill(app, 20)
        await app.start()
        told = await paused
        assert await seen(operator) == []
        assert "RuntimeError('not today')" in str(told.facts["error"])

        fails = False
        await app.wait_for(last, "follower")

        assert await seen(operator) == list(range(1, last + 1))


async def test_an_append_in_the_transaction_is_followed_like_any_other(database_url: str) -> None:
    app = tally_app(database_url)

    @app.subscription("echo", types=[Ticked])
    async def echo(batch: EventBatch, tx: Transaction) -> None:
        for event in batch:
            if not event.stream.startswith("echo"):
                await tx.append(f"echo of {event.stream}", event.data)

    async with app:
        await app.start()
        done = await app.append("s", [Ticked(1), Ticked(2)])
        await app.wait_for(done.position, "echo")
        await app.catch_up()

        echoed = await app.read_stream("echo of s")
        assert [event.data for event in echoed] == [Ticked(1), Ticked(2)]


async def test_without_a_transaction_events_come_at_least_once_and_in_order(
    database_url: str, impatient: None
) -> None:
    app = tally_app(database_url)
    handled: list[tuple[int, int]] = []
    fails = iter([False, True, False, True, False])

    @app.subscription("caller", batch_events=10)
    async def call(batch: EventBatch) -> None:
        handled.extend((batch.epoch, event.position) for event in batch)
        if next(fails, False):
            raise RuntimeError("the other side hung up")

    async with app:
        last = await fill(app, 50)
        await app.start()
        await app.wait_for(last, "caller")

        positions = [position for _, position in handled]
        assert sorted(set(positions)) == list(range(1, last + 1))
        assert len(positions) == last + 20, "the two batches that failed came twice"
        firsts = list(dict.fromkeys(positions))
        assert firsts == sorted(firsts)
        assert {epoch for epoch, _ in handled} == {1}, "the fencing token for outside systems"


async def test_a_batch_is_as_small_as_asked_for_also_at_the_head(database_url: str) -> None:
    app = tally_app(database_url)
    sizes: list[int] = []

    @app.subscription("nibbler", batch_events=3)
    async def nibble(batch: EventBatch) -> None:
        sizes.append(len(batch))

    async with app:
        await fill(app, 20)
        await app.catch_up()

    assert sum(sizes) == 20
    assert max(sizes) <= 3


async def test_a_subscription_begins_at_the_present_a_position_or_the_beginning(
    database_url: str,
) -> None:
    got: dict[str, list[int]] = {"present": [], "position": [], "beginning": []}

    app = tally_app(database_url)
    for name, start in (("present", "present"), ("position", 5), ("beginning", "beginning")):
        app.subscription(name, start=start)(_taker(got[name]))
    async with app:
        last = await fill(app, 10)
        await app.catch_up()
        more = await fill(app, 10)
        await app.catch_up()

    assert got["beginning"] == list(range(1, more + 1))
    assert got["position"] == list(range(6, more + 1))
    assert got["present"] == list(range(last + 1, more + 1))


def _taker(into: list[int]) -> Any:
    async def take(batch: EventBatch) -> None:
        into.extend(event.position for event in batch)

    return take


async def test_a_subscription_gets_the_types_it_asks_for_and_everything_by_default(
    database_url: str,
) -> None:
    app = tally_app(database_url)
    every: list[Any] = []
    some: list[Any] = []

    @app.subscription("every")
    async def all_of_them(batch: EventBatch) -> None:
        every.extend(event.data for event in batch)

    @app.subscription("some", types=[Dropped])
    async def some_of_them(batch: EventBatch) -> None:
        some.extend(event.data for event in batch)

    async with app, connected(database_url) as other:
        await app.append("s", [Ticked(1), Dropped()])
        await other.execute("""SELECT strandline.append('t', '[{"type": "alien", "data": {}}]')""")
        await app.catch_up()

    assert every == [Ticked(1), Dropped(), Unknown("alien", "{}")]
    assert some == [Dropped()]


async def test_an_error_of_the_database_that_the_function_hides_is_not_taken_for_success(
    database_url: str, impatient: None
) -> None:
    """PostgreSQL answers COMMIT of a failed transaction with ROLLBACK, and no error."""
    app = tally_app(database_url)
    hides = True

    @app.subscription("careless", on_error=ErrorPolicy(apply="pause"))
    async def follow(batch: EventBatch, tx: Transaction) -> None:
        for event in batch:
            await tx.execute("INSERT INTO public.seen (position) VALUES ($1)", event.position)
        if hides:
            with contextlib.suppress(Exception):
                await tx.execute("INSERT INTO public.nowhere VALUES (1)")

    async with app, connected(database_url) as operator:
        await operator.execute(CREATE)
        last = await fill(app, 5)
        paused = asyncio.create_task(app.signals.wait_for("shard_paused", timeout=10))
        await app.start()
        await paused
        hides = False
        await app.wait_for(last, "careless", timeout=10)

        assert await seen(operator) == list(range(1, last + 1))


async def test_a_transaction_block_that_hides_a_database_error_does_not_end_as_if_committed(
    database_url: str,
) -> None:
    async with tally_app(database_url) as app:
        with pytest.raises(TransactionFailed, match="all of it was rolled back"):
            async with app.transaction() as tx:
                await tx.append("s", Ticked())
                with contextlib.suppress(Exception):
                    await tx.execute("INSERT INTO public.nowhere VALUES (1)")

        assert await app.stream_state("s") is None
