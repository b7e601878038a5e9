"""More of them: slices that disagree, composites, deferred constraints, builds of a part."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from banking import Accounts, Amounts, Deposited, Opened, Owners, Summary, bank_app
from letterbox import (
    POISON,
    Fragile,
    Shared,
    Spread,
    by_hand,
    fragile_app,
    letter_rows,
    numbers_of,
)
from tally import Seen, Ticked, connected, holds

import strandline as sl
from strandline.app import App
from strandline.projections.slice import Slice


@pytest.fixture(autouse=True)
def poison() -> Iterator[set[int]]:
    POISON.clear()
    yield POISON
    POISON.clear()


def app_of(url: str, definition: Any, *, shards: int = 1, **settings: Any) -> App:
    app = fragile_app(url, **settings)
    app.projection("odd", lifecycle="async", shards=shards)(definition)
    return app


class Panic(BaseException):
    """What extension modules raise when they panic."""


async def broken(url: str, position: int) -> None:
    async with connected(url) as other:
        await other.execute(
            """UPDATE strandline.events SET data = '{"number": "none"}' WHERE position = $1""",
            position,
        )


async def test_a_letter_without_a_key_is_replayed_for_the_slice_that_wrote_it_alone(
    database_url: str,
) -> None:
    class Looked(Shared):
        fails = False

        @sl.enrich
        async def look_up(self, events: Any, look: sl.Lookup) -> dict[int, Any]:
            if type(self).fails:
                raise KeyError("what is looked up is not there yet")
            return {}

    async with app_of(database_url, Looked, shards=2) as app:
        names = tuple(f"n{number}" for number in range(20))
        await app.append("a", Spread(1, names))
        Looked.fails = True
        async with by_hand(app, Looked, Slice(1, 2)) as first:
            await first.through(1)
            Looked.fails = False
            async with by_hand(app, Looked, Slice(2, 2)) as second:
                await second.through(1)  # applied to its documents
                (letter,) = await app.letters.list()
                await app.letters.edit(letter.id, Spread(1, names), reason="the same")
                await first.replay()
                await second.replay()
                await first.replay()

        assert await numbers_of(app, Looked) == {name: [1] for name in names}


async def test_a_build_of_some_documents_ends_though_it_has_letters_without_a_key(
    database_url: str,
) -> None:
    async with app_of(database_url, Shared) as app:
        await app.append("a", [Spread(1, ("x",)), Spread(2, ("x", "y"))])
        await broken(database_url, 2)
        last = (await app.append("a", [Spread(3, ("x", "z"))])).position
        await app.start()
        await app.wait_for(last)
        assert len(await app.letters.list()) == 1

        await app.rebuild(Shared, keys=["x"], on_error="skip", timeout=10)
        assert await numbers_of(app, Shared) == {"x": [1, 3], "z": [3]}


async def test_of_a_composite_letters_without_a_key_do_not_wait_for_each_other(
    database_url: str, poison: set[int]
) -> None:
    class Picky(Amounts):
        @sl.key
        def amount(self, event: Deposited) -> str:
            if event.amount in POISON:
                raise ValueError(f"no key for {event.amount}")
            return str(event.amount)

    class Picking(sl.Composite):
        stages = ({"accounts": Accounts, "amounts": Picky}, {"owners": Owners})

    poison |= {20, 30}
    async with bank_app(database_url, ("picking", Picking)) as app:
        last = await app.append("a", [Opened("Ada"), Deposited(20)])
        last = await app.append("b", [Opened("Bo"), Deposited(30)])
        await app.start()
        await app.wait_for(last.position)
        _, second = await app.letters.list()
        poison.remove(30)
        await app.letters.retry(second.id)
        await holds(lambda: nothing_asked(database_url))
        assert {key for key, _ in await app.query(Picky)} == {"30"}


async def nothing_asked(url: str) -> bool:
    return not [row for row in await letter_rows(url, "retry_at") if row["retry_at"]]


async def test_of_a_composite_a_letter_of_another_document_by_now_is_not_resolved(
    database_url: str, poison: set[int]
) -> None:
    class Picky(Amounts):
        @sl.apply
        def deposited(self, summary: Summary, event: sl.RecordedEvent[Deposited]) -> None:
            if event.data.amount in POISON:
                raise ValueError("not this one")
            summary.balances[event.stream] = event.data.amount

    class Picking(sl.Composite):
        stages = ({"accounts": Accounts, "amounts": Picky}, {"owners": Owners})

    poison.add(20)
    async with bank_app(database_url, ("picking", Picking)) as app:
        last = await app.append("a", [Opened("Ada"), Deposited(20)])
        await app.start()
        await app.wait_for(last.position)
        (letter,) = await app.letters.list()
        assert letter.key == "amounts/20"
        await app.letters.edit(letter.id, Deposited(21), reason="it was 21")
        await holds(lambda: nothing_asked(database_url))
        applied = [key for key, _ in await app.query(Picky)]
        assert applied or await app.letters.list(), "resolved, and applied to no document"


DEFERRED = """
    CREATE TABLE public.owners (id int PRIMARY KEY);
    CREATE TABLE public.pets (owner int REFERENCES public.owners DEFERRABLE INITIALLY DEFERRED)
"""


async def test_a_deferred_constraint_that_a_subscription_breaks_parks_its_stream(
    database_url: str, impatient: None
) -> None:
    app = fragile_app(database_url)

    @app.subscription("keeping")
    async def keeping(batch: sl.EventBatch, tx: sl.Transaction) -> None:
        for event in batch.of(Ticked):
            await tx.execute("INSERT INTO public.pets VALUES ($1)", event.data.number)

    async with app, connected(database_url) as other:
        await other.execute(DEFERRED + "; INSERT INTO public.owners VALUES (1), (3)")
        await app.append("a", [Ticked(1), Ticked(2)])
        last = (await app.append("b", Ticked(3))).position
        await app.start()
        await app.wait_for(last, timeout=10)
        assert [one.position for one in await app.letters.list()] == [2]


@pytest.mark.parametrize("kind", ["stream", "document"])
async def test_a_deferred_constraint_that_effects_break_parks_their_document(
    database_url: str, impatient: None, kind: str
) -> None:
    async def keep(self: Any, changes: sl.Changes[Seen], tx: sl.Transaction) -> None:
        for change in changes:
            for event in change.of(Ticked):
                await tx.execute("INSERT INTO public.pets VALUES ($1)", event.data.number)

    class Streams(sl.SingleStream[Seen]):
        @sl.apply
        def ticked(self, seen: Seen, event: Ticked) -> None:
            seen.versions.append(event.number)

        @sl.effects
        async def keep(self, changes: sl.Changes[Seen], tx: sl.Transaction) -> None:
            await keep(self, changes, tx)

    class Documents(sl.MultiStream[Seen]):
        @sl.key
        def of(self, event: sl.RecordedEvent[Ticked]) -> str:
            return event.stream

        @sl.apply
        def ticked(self, seen: Seen, event: Ticked) -> None:
            seen.versions.append(event.number)

        @sl.effects
        async def keep(self, changes: sl.Changes[Seen], tx: sl.Transaction) -> None:
            await keep(self, changes, tx)

    definition = Streams if kind == "stream" else Documents
    async with app_of(database_url, definition) as app, connected(database_url) as other:
        await other.execute(DEFERRED + "; INSERT INTO public.owners VALUES (1), (3)")
        await app.append("a", [Ticked(1), Ticked(2)])
        last = (await app.append("b", Ticked(3))).position
        await app.start()
        await app.wait_for(last, timeout=10)
        assert [one.position for one in await app.letters.list()] == [2]


async def test_a_skipped_letter_that_fails_again_is_told_to_whoever_asked(
    database_url: str, poison: set[int]
) -> None:
    poison.add(2)
    app = fragile_app(database_url)
    app.projection("odd", lifecycle="async", on_error=sl.ErrorPolicy(apply="skip"))(Fragile)
    async with app:
        last = await app.append("a", [Ticked(1), Ticked(2), Ticked(3)])
        await app.start()
        await app.wait_for(last.position)
        (letter,) = await app.letters.list()
        try:
            async with asyncio.timeout(12):
                with pytest.raises(sl.StrandlineError):
                    await app.letters.retry(letter.id)
        except TimeoutError:
            left = [(one.state, one.reason) for one in await app.rebuilds()]
            pytest.fail(f"it waits for ever, and nobody may rebuild meanwhile: {left}")


async def test_a_lease_that_a_subscription_lost_itself_does_not_end_its_shard(
    database_url: str, impatient: None
) -> None:
    app = fragile_app(database_url)
    seen: list[int] = []

    @app.subscription("keeping")
    async def keeping(batch: sl.EventBatch) -> None:
        for event in batch.of(Ticked):
            if event.data.number == 2:
                raise sl.LeaseLost("of another app of the handler's", epoch=1, reason="late")
            seen.append(event.data.number)

    async with app:
        await app.append("a", [Ticked(1), Ticked(2)])
        last = (await app.append("b", Ticked(3))).position
        await app.start()
        await app.wait_for(last, timeout=8)
        assert set(seen) == {1, 3}


@pytest.mark.parametrize("error", [KeyError("rate"), asyncio.CancelledError(), Panic("x")])
@pytest.mark.parametrize("where", ["look_up", "effects"])
async def test_in_a_composite_whatever_a_method_raises_its_event_is_put_aside(
    database_url: str, impatient: None, where: str, error: BaseException
) -> None:
    class Odd(Amounts):
        @sl.enrich
        async def look_up(self, events: Any, look: sl.Lookup) -> dict[int, Any]:
            if where == "look_up" and any(event.data.amount == 2 for event in events):
                raise error
            return {}

        @sl.effects
        async def tell(self, changes: sl.Changes[Summary], tx: sl.Transaction) -> None:
            if where == "effects" and any(
                event.data.amount == 2 for change in changes for event in change.of(Deposited)
            ):
                raise error

    class Odds(sl.Composite):
        stages = ({"accounts": Accounts, "odd": Odd}, {"owners": Owners})

    async with bank_app(database_url, ("odds", Odds)) as app:
        last = await app.append("a", [Opened("Ada"), Deposited(1), Deposited(2), Deposited(3)])
        await app.start()
        await app.wait_for(last.position, timeout=8)
        assert {key for key, _ in await app.query(Odd)} == {"1", "3"}
        assert await app.get(Owners, "Ada") == Summary({"a": 6})
