"""Dead letters of events whose documents cannot be told: each slice has its own, for its documents alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from banking import Account, Accounts, Deposited, Opened, Summary, bank_app
from letterbox import POISON, Part, Shared, Spread, by_hand, fragile_app, numbers_of
from tally import Seen

import strandline as sl
from strandline.app import App
from strandline.daemon import slicing
from strandline.daemon.slicing import Stage
from strandline.errors import ApplyFailed
from strandline.projections.failure_policy import ErrorPolicy
from strandline.projections.slice import slices

NAMES = tuple(f"n{number}" for number in range(20))


@pytest.fixture(autouse=True)
def poison() -> Iterator[set[int]]:
    POISON.clear()
    yield POISON
    POISON.clear()


class Looked(Shared):
    """Fails before its keys are known while ``fails`` is set."""

    fails = False

    @sl.enrich
    async def look_up(self, events: Any, look: sl.Lookup) -> dict[int, Any]:
        if type(self).fails:
            raise KeyError("what is looked up is not there yet")
        return {}


def app_of(url: str, definition: Any, *, shards: int = 1, **options: Any) -> App:
    app = fragile_app(url)
    app.projection("odd", lifecycle="async", shards=shards, **options)(definition)
    return app


async def cut(app: App, parts: int) -> None:
    """Cut the label otherwise; all its shards stand at the same position."""
    run = app.pools.work.run
    await run(slicing.declare("odd:v1", parts))
    while await run(slicing.step("odd:v1", channel="c")) is not Stage.SETTLED:
        pass


async def replayed(app: App, definition: Any, parts: int) -> None:
    """Let each shard replay what is due, until nothing is."""
    for _ in range(2):
        for part in slices(parts):
            async with by_hand(app, definition, part) as hand:
                await hand.replay()


@pytest.mark.parametrize("failing", [1, 2])
@pytest.mark.parametrize("parts", [1, 2, 3])
async def test_it_is_replayed_for_the_slice_that_wrote_it_however_the_label_is_cut_since(
    database_url: str, failing: int, parts: int
) -> None:
    async with app_of(database_url, Looked, shards=2) as app:
        await app.append("a", Spread(1, NAMES))
        for part in slices(2):
            Looked.fails = part.part == failing
            async with by_hand(app, Looked, part) as hand:
                await hand.through(1)
        Looked.fails = False
        (letter,) = await app.letters.list()
        assert letter.shard == f"odd:v1:{failing}/2"
        await cut(app, parts)
        await app.letters.edit(letter.id, Spread(1, NAMES), reason="the same")
        await replayed(app, Looked, parts)

        assert await numbers_of(app, Looked) == {name: [1] for name in NAMES}
        assert await app.letters.list() == []


async def test_slices_that_fail_alike_have_a_letter_each_and_are_edited_together(
    database_url: str,
) -> None:
    async with app_of(database_url, Looked, shards=2) as app:
        await app.append("a", [Spread(1, NAMES), Spread(2, NAMES)])
        Looked.fails = True
        for part in slices(2):
            async with by_hand(app, Looked, part) as hand:
                await hand.through(1)
        Looked.fails = False
        for part in slices(2):
            async with by_hand(app, Looked, part) as hand:
                await hand.through(2)
        one, two = await app.letters.list()
        await app.letters.edit(one.id, Spread(9, NAMES), reason="it was 9")
        assert (await app.letters.get(two.id)).data == (await app.letters.get(one.id)).data
        await replayed(app, Looked, 2)

        assert await numbers_of(app, Looked) == {name: [2, 9] for name in NAMES}
        assert await app.letters.list() == []


async def test_an_event_that_fails_for_the_document_with_the_empty_id_is_put_aside_whole(
    database_url: str, poison: set[int]
) -> None:
    everyone = ("", *NAMES)
    async with app_of(database_url, Shared, shards=5) as app:
        await app.append("a", [Spread(1, everyone), Spread(2, everyone, bad=("", "n3"))])
        await app.append("a", Spread(3, everyone))
        poison.add(2)
        for part in slices(5):
            async with by_hand(app, Shared, part) as hand:
                await hand.through(3)
        mine = next(part for part in slices(5) if part.holds("default", ""))
        assert mine.part > 1
        other = next(part for part in slices(5) if part.holds("default", "n3"))
        assert {(one.key, one.shard, one.status) for one in await app.letters.list()} == {
            ("", mine.shard("odd:v1"), "skipped"),
        } | (
            set()
            if other == mine
            else {
                ("n3", other.shard("odd:v1"), "parked"),
            }
        )

        poison.clear()
        letter = next(one for one in await app.letters.list() if not one.key)
        with pytest.raises(sl.InvalidInput, match="document ''"):
            await app.letters.retry(letter.id)
        await app.letters.edit(letter.id, Spread(2, everyone), reason="it is as it is")
        await app.letters.retry(projection=Shared)
        await replayed(app, Shared, 5)

        found = await numbers_of(app, Shared)
        assert {name: sorted(numbers) for name, numbers in found.items()} == {
            name: [1, 2, 3] for name in everyone
        }
        assert await app.letters.list() == []


async def test_documents_that_wait_get_the_event_once_where_the_one_with_the_empty_id_fails(
    database_url: str, poison: set[int]
) -> None:
    async with app_of(database_url, Shared) as app, by_hand(app, Shared) as hand:
        poison |= {1, 2}
        await app.append("a", [Spread(1, ("x",), bad=("x",)), Spread(2, ("", "x"), bad=("",))])
        await hand.through(2)
        poison.clear()
        parked, letter = await app.letters.list()
        assert (parked.key, letter.key) == ("x", "")
        await app.letters.retry(parked.id)
        await hand.replay()
        await app.letters.edit(letter.id, Spread(2, ("", "x")), reason="as it is")
        await hand.replay()

        assert await numbers_of(app, Shared) == {"": [2], "x": [1, 2]}


async def test_a_replayed_event_without_a_document_fails_though_others_of_its_page_go_on(
    database_url: str, poison: set[int]
) -> None:
    async with app_of(database_url, Shared) as app, by_hand(app, Shared) as hand:
        poison.add(1)
        await app.append("a", [Spread(1, ("x",), bad=("x",)), *(Spread(n, ("x",)) for n in (2, 3))])
        await hand.through(3)
        first, second, _ = await app.letters.list()
        await app.letters.edit(second.id, Spread(2, ("y",)), reason="typo", retry=False)
        poison.clear()
        await app.letters.retry(first.id)
        await hand.replay()

        assert await numbers_of(app, Shared) == {"x": [1]}
        second, third = await app.letters.list()
        assert (second.attempts, third.category) == (1, None)
        assert "another document by now" in str(second.error)
        await app.letters.discard(second.id, reason="y has it")
        await hand.replay()
        assert await numbers_of(app, Shared) == {"x": [1, 3]}


async def test_a_policy_that_pauses_at_one_of_an_events_documents_pauses(
    database_url: str, poison: set[int]
) -> None:
    class Mixed(Shared):
        @sl.apply
        def arrived(self, seen: Seen, part: Part) -> None:
            raise ValueError("park it") if part.to == "x" else KeyError("pause")

    policy = ErrorPolicy(exceptions={KeyError: "pause"})

    def decide(error: Exception) -> Any:
        found = policy.action(error)
        if found == "pause":
            raise error
        return found

    async with app_of(database_url, Mixed, on_error=policy) as app:
        await app.append("a", Spread(1, ("x", "y")))
        async with by_hand(app, Mixed) as hand:
            page = await hand.page(1)
            with pytest.raises(ApplyFailed) as failed:
                await hand.processor.prepare(page)
            with pytest.raises(ApplyFailed, match="pause"):
                await hand.processor.aside(page, failed.value, decide)


# ---- composites


class Twice(sl.MultiStream[Summary]):
    """Of each amount and of the empty id how often; fails before it knows while ``fails`` is set."""

    fails = False

    @sl.key
    def amount(self, event: Deposited) -> list[str]:
        if type(self).fails:
            raise KeyError("no key yet")
        return ["", *NAMES]

    @sl.apply
    def deposited(self, summary: Summary, event: sl.RecordedEvent[Deposited]) -> None:
        if event.data.amount in POISON:
            raise ValueError("not this one")
        summary.balances[event.stream] = summary.balances.get(event.stream, 0) + 1


class Sliced(sl.Composite):
    stages = ({"accounts": Accounts, "twice": Twice},)


async def passed(app: App, last: int, parts: int, failing: int) -> None:
    for part in slices(parts):
        Twice.fails = part.part == failing
        async with by_hand(app, Sliced, part) as hand:
            await hand.through(last)
    Twice.fails = False


def composite(url: str, shards: int = 2) -> App:
    app = bank_app(url)
    app.projection("sliced", shards=shards)(Sliced)
    return app


@pytest.mark.parametrize("failing", [1, 2])
async def test_a_members_letter_is_replayed_for_the_slice_that_wrote_it(
    database_url: str, failing: int
) -> None:
    async with composite(database_url) as app:
        await app.append("a", [Opened("Ada"), Deposited(20)])
        await passed(app, 2, 2, failing)
        (letter,) = await app.letters.list()
        assert (letter.key, letter.shard) == ("twice/", f"sliced:v1:{failing}/2")
        assert await app.letters.retry(letter.id) == 1
        await replayed(app, Sliced, 2)

        assert dict(await app.query(Twice)) == {name: Summary({"a": 1}) for name in ("", *NAMES)}
        assert await app.get(Accounts, "a") == Account("Ada", 20, [2])
        assert await app.letters.list() == []


async def test_a_members_event_that_fails_for_its_empty_id_is_put_aside_whole(
    database_url: str, poison: set[int]
) -> None:
    poison.add(20)
    async with composite(database_url, 5) as app:
        await app.append("a", [Opened("Ada"), Deposited(20)])
        await passed(app, 2, 5, failing=0)
        mine = next(part for part in slices(5) if part.holds("default", ""))
        found = {(one.key, one.status) for one in await app.letters.list()}
        assert found == {("twice/", "skipped")} | {
            (f"twice/{name}", "parked") for name in NAMES if not mine.holds("default", name)
        }
        poison.clear()
        await app.letters.retry(all=True)
        await replayed(app, Sliced, 5)

        assert dict(await app.query(Twice)) == {name: Summary({"a": 1}) for name in ("", *NAMES)}
        assert await app.letters.list() == []
