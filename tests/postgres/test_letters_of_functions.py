"""Dead letters of subscriptions and SQL projections: the stream waits, and comes back in order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from letterbox import POISON, Burst, by_hand, fragile_app, letter_rows, no_letter_is_open
from tally import Dropped, Ticked, connected, holds

from strandline.app import App, Transaction
from strandline.daemon import letter_desk
from strandline.errors import ApplyFailed, EventFailure
from strandline.projections.failure_policy import Action, ErrorPolicy
from strandline.projections.sql_projection import Sql, Statements, execute
from strandline.projections.subscription import EventBatch

SETUP = "CREATE TABLE IF NOT EXISTS seen (at serial, number bigint NOT NULL CHECK (number <> 13))"


@pytest.fixture(autouse=True)
def poison() -> Iterator[set[int]]:
    POISON.clear()
    yield POISON
    POISON.clear()


class Numbers(Sql):
    """One row for each event, in the order in which they were handled."""

    setup = SETUP
    reset = "TRUNCATE seen"

    @execute
    def ticked(self, event: Ticked, sql: Statements) -> None:
        if event.number in POISON:
            raise Burst(event.number)
        sql("INSERT INTO seen (number) VALUES ($1)", event.number)


def sql_app(url: str, **settings: Any) -> App:
    app = fragile_app(url, **settings)
    app.projection("numbers", lifecycle="async", on_error=settings.pop("on_error", None))(Numbers)
    return app


def subscribed(url: str, *, exactly_once: bool, **options: Any) -> tuple[App, list[list[int]]]:
    """An app whose subscription writes to ``seen``, and what it was called with."""
    app = fragile_app(url)
    calls: list[list[int]] = []

    async def with_transaction(batch: EventBatch, tx: Transaction) -> None:
        calls.append([event.data.number for event in batch])
        for event in batch:
            await tx.execute("INSERT INTO seen (number) VALUES ($1)", event.data.number)
        fail(batch)

    async def alone(batch: EventBatch) -> None:
        calls.append([event.data.number for event in batch])
        fail(batch)

    def fail(batch: EventBatch) -> None:
        for event in batch:
            if event.data.number in POISON:
                raise Burst(event.data.number)

    function = with_transaction if exactly_once else alone
    app.subscription("listener", types=[Ticked], **options)(function)
    return app, calls


async def made(url: str) -> None:
    async with connected(url) as other:
        await other.execute(SETUP)


async def seen(url: str) -> list[int]:
    async with connected(url) as other:
        return [row["number"] for row in await other.fetch("SELECT number FROM seen ORDER BY at")]


async def test_a_failing_statement_parks_its_stream_alone(database_url: str) -> None:
    async with sql_app(database_url) as app, by_hand(app, Numbers) as hand:
        await app.append("a", [Ticked(1), Ticked(13), Ticked(3)])
        last = (await app.append("b", Ticked(4))).position
        await hand.through(last)

        assert await seen(database_url) == [1, 4]
        first, second = await app.letters.list()
        assert (first.key, first.category, second.category) == ("a", "apply", None)
        assert "seen_number_check" in str(first.error)

        async with connected(database_url) as other:
            await other.execute("ALTER TABLE seen DROP CONSTRAINT seen_number_check")
        await app.letters.retry(first.id)
        await hand.replay()
        assert await seen(database_url) == [1, 4, 13, 3]


async def test_a_whole_node_brings_an_sql_projection_past_its_poison_and_back(
    database_url: str, poison: set[int]
) -> None:
    poison.add(2)
    async with sql_app(database_url) as app:
        await app.append("a", [Ticked(1), Ticked(2), Ticked(3)])
        await app.append("b", Ticked(4))
        await app.start()
        await app.wait_for(4)
        assert sorted(await seen(database_url)) == [1, 4]

        poison.clear()
        await app.letters.retry(projection="numbers")
        await holds(lambda: no_letter_is_open(app))
        found = await seen(database_url)
        assert [one for one in found if one != 4] == [1, 2, 3]


@pytest.mark.parametrize("exactly_once", [True, False])
async def test_a_subscription_gets_a_parked_stream_in_order_once_it_can(
    database_url: str, poison: set[int], *, exactly_once: bool
) -> None:
    await made(database_url)
    poison.add(2)
    app, calls = subscribed(database_url, exactly_once=exactly_once)
    async with app, by_hand(app, "listener") as hand:
        await app.append("a", [Ticked(1), Ticked(2), Ticked(3), Ticked(5)])
        last = (await app.append("b", [Ticked(4), Ticked(6)])).position
        await hand.through(last)
        assert [call for call in calls if 2 not in call] == [[1], [4], [6]]

        calls.clear()
        await app.letters.retry(all=True)
        await hand.replay()
        assert calls == [[2, 3, 5], [2], [2]][:1] + [[2]] * (len(calls) - 1)  # in halves, to 2
        assert [one.attempts for one in await app.letters.list()] == [2, 0, 0]

        poison.clear()
        calls.clear()
        await app.letters.retry(all=True)
        await hand.replay()
        assert calls == [[2, 3, 5]]
        if exactly_once:
            assert await seen(database_url) == [1, 4, 6, 2, 3, 5]
        assert await no_letter_is_open(app)


@pytest.mark.parametrize("exactly_once", [True, False])
async def test_a_skipped_event_is_handed_to_its_subscription_alone(
    database_url: str, poison: set[int], *, exactly_once: bool
) -> None:
    await made(database_url)
    poison.add(2)
    app, calls = subscribed(
        database_url, exactly_once=exactly_once, on_error=ErrorPolicy(apply="skip")
    )
    async with app:
        await app.append("a", [Ticked(1), Ticked(2), Ticked(3)])
        await app.start()
        await app.wait_for(3)
        assert sum(calls, [])[-1] == 3  # noqa: RUF017 - a few
        (letter,) = await app.letters.list(status="skipped")

        poison.clear()
        calls.clear()
        await app.letters.retry(letter.id)
        await holds(lambda: no_letter_is_open(app))
        assert calls == [[2]]
        if exactly_once:
            assert await seen(database_url) == [1, 3, 2]


async def test_exactly_once_means_that_a_discarded_letter_left_nothing_behind(
    database_url: str, poison: set[int]
) -> None:
    await made(database_url)
    poison.add(2)
    app, calls = subscribed(database_url, exactly_once=True)
    async with app, by_hand(app, "listener") as hand:
        await app.append("a", [Ticked(1), Ticked(2), Ticked(3)])
        await hand.through(3)
        poison.clear()
        first = (await app.letters.list())[0]
        await app.letters.retry(first.id)
        read = await app.pools.work.run(letter_desk.letter(first.id))
        calls.clear()

        # Discarded between the reading of the letter and the transaction of its replay
        commit = hand.processor.commit

        async def discarded_first(batch: Any, checkpoint: Any) -> None:
            if batch.closed and (await app.letters.get(read.id)).is_open:
                await app.letters.discard(read.id, reason="not wanted")
            await commit(batch, checkpoint)

        hand.processor.commit = discarded_first
        await hand.replay()

        assert calls == [[3]]
        assert await seen(database_url) == [1, 3]


async def test_what_a_function_raises_is_its_own_fault_whatever_it_is(database_url: str) -> None:
    app = fragile_app(database_url)

    async def caught(batch: EventBatch, tx: Transaction) -> None:
        with suppress(Exception):
            await tx.execute("SELECT 1 / 0")

    async def looks(batch: EventBatch) -> None:
        await app.get("there is none", "x")

    async def asks(batch: EventBatch) -> None:
        raise EventFailure("of another event")

    for name, function in {"caught": caught, "looks": looks, "asks": asks}.items():
        app.subscription(name)(function)
    async with app:
        await app.append("a", [Ticked(1), Dropped()])
        for name in ("caught", "looks", "asks"):
            async with by_hand(app, name) as hand:
                page = await hand.page(2)
                batch = await hand.processor.prepare(page)
                with pytest.raises(ApplyFailed) as failed:
                    await hand.commit(batch)
                assert failed.value.position == 0  # which of the two nobody knows
                single = await hand.page(1)
                with pytest.raises(ApplyFailed) as failed:
                    await hand.commit(await hand.processor.prepare(single))
                assert failed.value.position == 1
                parked = await hand.processor.aside(single, failed.value, lambda _: Action.PARK)
                await hand.commit(parked)
        assert [row["key"] for row in await letter_rows(database_url)] == ["a", "a", "a"]
