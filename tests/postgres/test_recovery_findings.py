"""Failures that nobody expected: odd errors, odd keys, operators side by side, slices that disagree."""

from __future__ import annotations

import asyncio
import random
import string
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
from letterbox import (
    POISON,
    Fragile,
    Part,
    Shared,
    Spread,
    by_hand,
    check,
    fragile_app,
    letter_rows,
    no_letter_is_open,
    numbers_of,
    somebody_waits_for_a_lock,
)
from tally import Seen, Ticked, connected, holds

import strandline as sl
from strandline.app import App
from strandline.daemon import letter_desk, letters
from strandline.errors import NotFound
from strandline.projections.failure_policy import ErrorPolicy
from strandline.projections.slice import Slice


@pytest.fixture(autouse=True)
def poison() -> Iterator[set[int]]:
    POISON.clear()
    yield POISON
    POISON.clear()


def app_of(
    url: str, definition: Any, *, shards: int = 1, on_error: Any = None, **settings: Any
) -> App:
    app = fragile_app(url, **settings)
    app.projection("odd", lifecycle="async", shards=shards, on_error=on_error)(definition)
    return app


async def broken(url: str, position: int) -> None:
    async with connected(url) as other:
        await other.execute(
            """UPDATE strandline.events SET data = '{"number": "none"}' WHERE position = $1""",
            position,
        )


# ---- I9: nothing is lost


async def test_an_event_that_one_slice_alone_fails_to_group_leaves_a_letter(
    database_url: str,
) -> None:
    class Looked(Shared):
        fails = False

        @sl.enrich
        async def look_up(self, events: Any, look: sl.Lookup) -> dict[int, Any]:
            if type(self).fails:
                raise KeyError("what is looked up is not there yet")
            return {}

    app = app_of(database_url, Looked, shards=2)
    async with app:
        names = tuple(f"n{number}" for number in range(20))
        await app.append("a", Spread(1, names))
        async with by_hand(app, Looked, Slice(1, 2)) as first:
            await first.through(1)
        Looked.fails = True
        async with by_hand(app, Looked, Slice(2, 2)) as second:
            await second.through(1)
        Looked.fails = False

        found = await numbers_of(app, Looked)
        assert set(found) == set(names) or await app.letters.list(), "lost without a trace"


async def test_a_letter_whose_event_belongs_to_another_document_by_now_is_not_resolved(
    database_url: str, poison: set[int]
) -> None:
    poison.add(2)
    async with app_of(database_url, Shared) as app:
        await app.append("a", [Spread(1, ("x",)), Spread(2, ("x",), bad=("x",))])
        async with by_hand(app, Shared) as hand:
            await hand.through(2)
            (letter,) = await app.letters.list()
            await app.letters.edit(letter.id, Spread(2, ("y",)), reason="it was meant for y")
            await hand.replay()

        found = await numbers_of(app, Shared)
        applied = any(2 in numbers for numbers in found.values())
        assert applied or await app.letters.list(), "resolved, and applied to no document"


async def test_an_event_for_a_document_with_an_empty_id_is_replayed_once(
    database_url: str,
) -> None:
    async with app_of(database_url, Shared) as app:
        await app.append("a", [Spread(1, ("x",)), Spread(2, ("", "x"))])
        await broken(database_url, 2)
        async with by_hand(app, Shared) as hand:
            await hand.through(2)
            (letter,) = await app.letters.list()
            await app.letters.edit(letter.id, Spread(2, ("", "x")), reason="mended")
            try:
                async with asyncio.timeout(3):
                    await hand.replay()
            except TimeoutError:
                rows = await letter_rows(database_url)
                pytest.fail(f"it goes round: {len(rows)} letters for one event")
        assert await numbers_of(app, Shared) == {"": [2], "x": [1, 2]}


# ---- operators side by side


async def test_what_waits_behind_two_letters_that_two_operators_discard_is_due(
    database_url: str, poison: set[int]
) -> None:
    poison.add(1)
    async with app_of(database_url, Fragile) as app, by_hand(app, Fragile) as hand:
        await app.append("a", [Ticked(1), Ticked(2), Ticked(3)])
        await hand.through(3)
        one, two, _ = await app.letters.list()
        async with app.pools.work.transaction() as session:
            await session.run(letter_desk.discard([two.id], "of no use"))
            other = asyncio.create_task(app.letters.discard(one.id, reason="of no use either"))
            await holds(lambda: somebody_waits_for_a_lock(database_url))
        await other

        assert await app.pools.work.run(letters.due(["odd:v1"])) == ["odd:v1"]


async def test_letters_are_replayed_though_there_are_always_more_events(
    database_url: str, poison: set[int]
) -> None:
    poison.add(0)
    order: list[tuple[str, int]] = []
    app = app_of(database_url, Fragile, page_events=10)
    async with app:
        await app.append("bad", Ticked(0))
        for begun in range(0, 20_000, 1_000):
            await app.append("good", [Ticked(1 + begun + one) for one in range(1_000)])
        written = asyncio.Event()

        def hear(notice: Any) -> None:
            order.append((notice.name, notice.facts.get("ceiling", 0)))
            if notice.name == "letters_written":
                written.set()

        app.signals.listen(hear)
        await app.start()
        async with asyncio.timeout(10):
            await written.wait()
        poison.clear()
        await app.letters.retry(all=True)
        await holds(lambda: no_letter_is_open(app), timeout=60)

        replayed = [name for name, _ in order].index("letters_replayed")
        passed = max(at for name, at in order[:replayed] if name == "batch_committed")
        assert passed < 20_000, "it was tried only when the shard had nothing else to do"


# ---- odd errors


class Mute(Exception):
    """Cannot say what it is."""

    def __repr__(self) -> str:
        raise RuntimeError("no words")

    __str__ = __repr__


class Panic(BaseException):
    """What extension modules raise when they panic."""


def raising(error: BaseException) -> type[sl.SingleStream[Seen]]:
    class Odd(sl.SingleStream[Seen]):
        @sl.apply
        def ticked(self, seen: Seen, event: Ticked) -> None:
            if event.number in POISON:
                raise error
            seen.versions.append(event.number)

    return Odd


@pytest.mark.parametrize("error", [Mute(), Panic("at the disco"), GeneratorExit("over")])
async def test_whatever_a_handler_raises_its_event_is_put_aside(
    database_url: str, poison: set[int], error: BaseException
) -> None:
    poison.add(2)
    odd = raising(error)
    async with app_of(database_url, odd) as app:
        await app.append("a", [Ticked(1), Ticked(2)])
        last = (await app.append("b", Ticked(3))).position
        await app.start()
        await app.wait_for(last, timeout=8)
        assert await numbers_of(app, odd) == {"a": [1], "b": [3]}


@pytest.mark.parametrize("error", [NotFound("no such rate"), asyncio.CancelledError(), Panic("x")])
async def test_whatever_a_look_up_raises_its_event_is_put_aside_where_keys_are_documents(
    database_url: str, poison: set[int], error: BaseException
) -> None:
    poison.add(2)

    class Looked(sl.MultiStream[Seen]):
        @sl.enrich
        async def look_up(self, events: Any, look: sl.Lookup) -> dict[int, Any]:
            if any(event.data.number in POISON for event in events):
                raise error
            return {}

        @sl.key
        def of(self, event: sl.RecordedEvent[Ticked]) -> str:
            return event.stream

        @sl.apply
        def ticked(self, seen: Seen, event: Ticked) -> None:
            seen.versions.append(event.number)

    async with app_of(database_url, Looked) as app:
        await app.append("a", [Ticked(1), Ticked(2)])
        last = (await app.append("b", Ticked(3))).position
        await app.start()
        await app.wait_for(last, timeout=10)
        assert await numbers_of(app, Looked) == {"a": [1], "b": [3]}


async def test_a_cancellation_out_of_a_replayed_letter_does_not_keep_others_waiting(
    database_url: str, poison: set[int]
) -> None:
    odd = raising(asyncio.CancelledError("of a task of the handler's"))
    poison |= {1, 2}
    async with app_of(database_url, odd) as app:
        await app.append("a", Ticked(1))
        await app.append("b", Ticked(2))
        last = (await app.append("c", Ticked(3))).position
        await app.start()
        await app.wait_for(last, timeout=10)
        assert len(await app.letters.list()) == 2
        poison.remove(2)
        await app.letters.retry(all=True)
        await holds(lambda: counted(app, "a"), timeout=8)
        await holds(lambda: applied(app, odd), timeout=8)


async def applied(app: App, odd: Any) -> bool:
    """Whether the letter of b was replayed."""
    return (await numbers_of(app, odd)).get("b") == [2]


async def counted(app: App, key: str) -> bool:
    """Whether the letter of *key* has failed twice."""
    return any(one.key == key and one.attempts == 2 for one in await app.letters.list())


async def test_effects_that_swallow_an_error_of_the_database_are_put_aside(
    database_url: str, poison: set[int]
) -> None:
    poison.add(2)

    class Careless(Shared):
        @sl.effects
        async def raised(self, changes: sl.Changes[Seen], tx: sl.Transaction) -> None:
            for change in changes:
                for event in change.events:
                    if event.data.number in POISON:
                        with suppress(Exception):
                            await tx.execute("SELECT 1 / 0")

    async with app_of(database_url, Careless) as app:
        await app.append("a", [Spread(1, ("x",)), Spread(2, ("x",))])
        last = (await app.append("b", Spread(3, ("y",)))).position
        await app.start()
        await app.wait_for(last, timeout=10)
        assert await numbers_of(app, Careless) == {"x": [1], "y": [3]}


# ---- odd keys


@dataclass(frozen=True)
class Case:
    name: str
    key: str


LONG = "".join(random.Random(1).choices(string.ascii_letters + string.digits, k=20_000))


@pytest.mark.parametrize(
    "case",
    [Case("NUL", "a\0b"), Case("half a pair", "a\ud800b"), Case("long", LONG), Case("empty", "")],
    ids=lambda case: case.name,
)
async def test_an_event_whose_document_cannot_have_its_id_stops_no_other(
    database_url: str, poison: set[int], case: Case
) -> None:
    poison.add(2)

    class Odd(sl.MultiStream[Seen]):
        @sl.key
        def of(self, event: Ticked) -> str:
            return case.key if event.number == 2 else f"n{event.number}"

        @sl.apply
        def ticked(self, seen: Seen, event: Ticked) -> None:
            if case.key == "":
                check(event.number)
            seen.versions.append(event.number)

    async with app_of(database_url, Odd) as app:
        last = (await app.append("a", [Ticked(1), Ticked(2), Ticked(3)])).position
        await app.start()
        await app.wait_for(last, timeout=8)
        assert await numbers_of(app, Odd) == {"n1": [1], "n3": [3]}


# ---- mixed policies


async def test_of_one_event_each_document_is_dealt_with_by_the_policy_for_its_own_error(
    database_url: str, poison: set[int]
) -> None:
    class Mixed(Shared):
        @sl.apply
        def arrived(self, seen: Seen, part: Part) -> None:
            if part.number in POISON:
                raise ValueError("small") if part.to == "x" else KeyError("large")
            seen.versions.append(part.number)

    policy = ErrorPolicy(exceptions={ValueError: "skip", KeyError: "park"})
    poison.add(2)
    async with app_of(database_url, Mixed, on_error=policy) as app:
        events = [Spread(number, ("x", "y")) for number in (1, 2, 3)]
        last = (await app.append("a", events)).position
        await app.start()
        await app.wait_for(last, timeout=8)
        assert {(one.key, one.position, one.status) for one in await app.letters.list()} == {
            ("x", 2, "skipped"),
            ("y", 2, "parked"),
            ("y", 3, "parked"),
        }
        assert await numbers_of(app, Mixed) == {"x": [1, 3], "y": [1]}
