"""Dead letters: one bad event parks its stream and nothing else, and comes back in order."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from letterbox import (
    POISON,
    Fragile,
    Shared,
    Spread,
    by_hand,
    folded,
    fragile_app,
    letter_rows,
    no_letter_is_open,
    nothing_is_asked,
    numbers_of,
    shared_fold,
    somebody_waits_for_a_lock,
)
from tally import Dropped, Seen, Ticked, connected, holds

from strandline.app import App
from strandline.daemon import letter_desk, letter_watch, letters, replay
from strandline.daemon.checkpoint import reset
from strandline.daemon.letters import LettersChanged
from strandline.errors import (
    ApplyFailed,
    CheckpointMoved,
    ConflictError,
    InvalidInput,
    NotFound,
    UndecodableEvent,
)
from strandline.projections.failure_policy import Action, ErrorPolicy
from strandline.projections.handlers import apply
from strandline.projections.single_stream import SingleStream


@pytest.fixture(autouse=True)
def poison() -> Iterator[set[int]]:
    POISON.clear()
    yield POISON
    POISON.clear()


def single(url: str, *, shards: int = 1, on_error: Any = None, **settings: Any) -> App:
    app = fragile_app(url, **settings)
    app.projection("fragile", lifecycle="async", shards=shards, on_error=on_error)(Fragile)
    return app


def multi(url: str, *, shards: int = 1, **settings: Any) -> App:
    app = fragile_app(url, **settings)
    app.projection("shared", lifecycle="async", shards=shards)(Shared)
    return app


async def broken(url: str, position: int) -> None:
    """Store what no class can be made of in the place of an event's data."""
    async with connected(url) as other:
        await other.execute(
            """UPDATE strandline.events SET data = '{"number": "none"}' WHERE position = $1""",
            position,
        )


async def test_a_poison_event_parks_its_stream_and_all_others_reach_the_head(
    database_url: str, poison: set[int]
) -> None:
    poison.add(500)
    async with single(database_url) as app:
        for number in range(1000):
            await app.append(f"s{number}", Ticked(number))
        for number in range(1000, 1010):
            await app.append("s500", Ticked(number))
        last = (await app.append("s0", Ticked(5000))).position
        await app.start()
        await app.wait_for(last)

        found = await numbers_of(app, Fragile)
        assert "s500" not in found
        assert len(found) == 999
        assert found["s0"] == [0, 5000]
        letters = await app.letters.list()
        assert [(one.key, one.version, one.category) for one in letters] == [
            ("s500", 1, "apply"),
            *(("s500", version, None) for version in range(2, 12)),
        ]
        assert {one.status for one in letters} == {"parked"}
        assert json.loads(letters[0].error or "")["handler"] == "Fragile.ticked"

        poison.clear()
        assert await app.letters.retry(letters[0].id) == 1
        await holds(lambda: no_letter_is_open(app))

        assert await numbers_of(app, Fragile) == await folded(app)
        last = (await app.append("s500", Ticked(7000))).position
        await app.wait_for(last)
        assert (await numbers_of(app, Fragile))["s500"][-1] == 7000
        assert {row["status"] for row in await letter_rows(database_url)} == {"resolved"}


async def test_an_event_that_fails_for_one_document_is_applied_to_its_others(
    database_url: str, poison: set[int]
) -> None:
    poison.add(2)
    async with multi(database_url) as app:
        await app.append("a", [Spread(1, ("x", "y")), Spread(2, ("x", "y", "z"), bad=("y",))])
        last = (await app.append("a", [Spread(3, ("y", "z")), Spread(4, ("x",))])).position
        await app.start()
        await app.wait_for(last)

        assert await numbers_of(app, Shared) == {"x": [1, 2, 4], "y": [1], "z": [2, 3]}
        found = await app.letters.list("shared")
        assert [(one.key, one.position, one.category) for one in found] == [
            ("y", 2, "apply"),
            ("y", 3, None),
        ]

        poison.clear()
        await app.letters.retry(stream="a")
        await holds(lambda: no_letter_is_open(app))
        assert await numbers_of(app, Shared) == await shared_fold(app)


async def test_an_event_that_cannot_be_decoded_blocks_nothing_in_a_multi_stream_projection(
    database_url: str,
) -> None:
    async with multi(database_url, shards=3) as app:
        await app.append("a", [Spread(1, ("x",)), Spread(2, ("x", "y", "z"))])
        await broken(database_url, 2)
        last = (await app.append("a", [Spread(3, ("x", "y"))])).position
        await app.start()
        await app.wait_for(last)

        assert await numbers_of(app, Shared) == {"x": [1, 3], "y": [3]}
        found = await app.letters.list()
        assert {one.shard for one in found} == {f"shared:v1:{part}/3" for part in (1, 2, 3)}
        assert {(one.key, one.status, one.category) for one in found} == {
            ("", "skipped", "undecodable")
        }
        letter = found[1]  # each slice has its own, of the same event
        with pytest.raises(InvalidInput, match="number"):
            await app.letters.edit(letter.id, {"number": "2", "to": ["x"]}, reason="typo")
        await app.letters.edit(letter.id, Spread(2, ("x", "z", "w")), reason="typo")
        await holds(lambda: no_letter_is_open(app))

        # Applied late: whichever shards have the documents
        assert await numbers_of(app, Shared) == {"x": [1, 3, 2], "y": [3], "z": [2], "w": [2]}


async def test_a_letter_edited_and_tried_again_counts_for_this_projection_alone(
    database_url: str,
) -> None:
    async with single(database_url) as app:
        await app.append("a", [Ticked(1), Ticked(2), Ticked(3)])
        await app.append("b", [Ticked(4)])
        await broken(database_url, 2)
        await app.start()
        await app.wait_for(4)
        assert await numbers_of(app, Fragile) == {"a": [1], "b": [4]}
        first, second = await app.letters.list()
        assert (first.category, second.category) == ("undecodable", None)

        with pytest.raises(InvalidInput, match="say why"):
            await app.letters.edit(first.id, {"number": 20}, reason=" ")
        await app.letters.edit(first.id, {"number": 20}, reason="was lost")
        await holds(lambda: no_letter_is_open(app))

        assert await numbers_of(app, Fragile) == {"a": [1, 20, 3], "b": [4]}
        closed = await app.letters.get(first.id)
        assert (closed.status, closed.reason, closed.data) == (
            "resolved",
            "was lost",
            '{"number": 20}',
        )
        with pytest.raises(ConflictError, match="closed"):
            await app.letters.edit(first.id, {"number": 21}, reason="again")
        with pytest.raises(NotFound):
            await app.letters.get(10**9)


async def test_a_letter_that_fails_again_counts_up_and_keeps_its_key_parked(
    database_url: str, poison: set[int]
) -> None:
    poison |= {2, 12}
    async with single(database_url) as app:
        await app.append("a", [Ticked(1), Ticked(2), Ticked(3)])
        await app.append("b", [Ticked(11), Ticked(12), Ticked(13)])
        await app.start()
        await app.wait_for(6)

        (group,) = await app.letters.groups()
        assert (group.error_class, group.count, group.type) == ("Burst", 2, "ticked")
        assert await app.letters.retry(projection=Fragile) == 2
        await holds(lambda: nothing_is_asked(database_url))

        heads = [one for one in await app.letters.list() if one.category]
        assert [(one.key, one.attempts, one.retry_at) for one in heads] == [
            ("a", 2, None),
            ("b", 2, None),
        ]
        assert {one.fingerprint for one in heads} == {group.fingerprint}
        assert await numbers_of(app, Fragile) == {"a": [1], "b": [11]}

        poison.discard(12)
        assert await app.letters.retry(fingerprint=group.fingerprint) == 2
        await holds(lambda: nothing_is_asked(database_url))
        assert await numbers_of(app, Fragile) == {"a": [1], "b": [11, 12, 13]}
        with pytest.raises(InvalidInput, match="which letters"):
            await app.letters.retry()
        assert await app.letters.retry(all=True) == 1


async def test_what_waits_behind_a_discarded_letter_is_applied_without_it(
    database_url: str, poison: set[int]
) -> None:
    poison |= {2, 4}
    async with single(database_url) as app:
        await app.append("a", [Ticked(number) for number in range(1, 7)])
        await app.start()
        await app.wait_for(6)
        found = await app.letters.list()
        assert [one.position for one in found] == [2, 3, 4, 5, 6]

        assert await app.letters.discard([found[0].id, 10**9], reason="a test order") == 1
        await holds(lambda: numbers_are(app, {"a": [1, 3]}))
        await holds(lambda: nothing_is_asked(database_url))
        waiting = await app.letters.list()
        assert [(one.position, one.category) for one in waiting] == [
            (4, "apply"),
            (5, None),
            (6, None),
        ]
        gone = await app.letters.get(found[0].id)
        assert (gone.status, gone.reason) == ("discarded", "a test order")

        await app.letters.discard([one.id for one in waiting], reason="all of it")
        last = (await app.append("a", Ticked(7))).position
        await app.wait_for(last)
        await holds(lambda: numbers_are(app, {"a": [1, 3, 7]}))
        assert await no_letter_is_open(app)


async def numbers_are(app: App, wanted: dict[str, list[int]]) -> bool:
    return await numbers_of(app, Fragile) == wanted


async def test_an_event_that_is_met_again_has_one_letter_and_counts_up(
    database_url: str, poison: set[int]
) -> None:
    poison.add(1)
    async with single(database_url) as app, by_hand(app, Fragile) as hand:
        last = (await app.append("a", [Ticked(1), Ticked(2)])).position
        await hand.through(last, Action.SKIP)
        await app.pools.work.run(reset("fragile:v1:all"))
        async with by_hand(app, Fragile) as again:
            await again.through(last, Action.SKIP)

        rows = await letter_rows(database_url)
        assert [(row["position"], row["attempts"], row["status"]) for row in rows] == [
            (1, 2, "skipped")
        ]


# ---- letters and checkpoint are one transaction (I9)


async def test_whoever_lost_the_shard_writes_no_letter_and_replays_none(
    database_url: str, poison: set[int]
) -> None:
    poison.add(2)
    async with single(database_url) as app, by_hand(app, Fragile) as hand:
        last = (await app.append("a", [Ticked(1), Ticked(2), Ticked(3)])).position
        await hand.through(1)
        page = await hand.page(2)
        with pytest.raises(ApplyFailed) as failed:
            await hand.processor.prepare(page)
        batch = await hand.processor.aside(page, failed.value, lambda _: Action.PARK)
        async with by_hand(app, Fragile) as successor:
            with pytest.raises(CheckpointMoved):
                await hand.commit(batch)
            assert await letter_rows(database_url) == []

            await successor.through(last)
            poison.clear()
            await app.letters.retry(all=True)
            hand.checkpoint = hand.checkpoint.at(last)
            with pytest.raises(CheckpointMoved):
                await hand.replay()
            assert len(await app.letters.list()) == 2
            await successor.replay()
            assert await numbers_of(app, Fragile) == {"a": [1, 2, 3]}


async def test_a_batch_whose_letters_cannot_be_written_moves_nothing(
    database_url: str, poison: set[int]
) -> None:
    poison.add(1)
    async with (
        single(database_url) as app,
        by_hand(app, Fragile) as hand,
        connected(database_url) as other,
    ):
        await app.append("a", [Ticked(1)])
        await other.execute("ALTER TABLE strandline.dead_letters ADD CHECK (position > 1)")
        with pytest.raises(Exception, match="check constraint"):
            await hand.through(1)

        position = await other.fetchval("SELECT position FROM strandline.shards")
        assert position == 0


# ---- operators beside the agent


@pytest.mark.parametrize("discards_first", [True, False])
async def test_a_letter_written_behind_one_that_is_being_discarded_is_not_forgotten(
    database_url: str, poison: set[int], *, discards_first: bool
) -> None:
    poison.add(1)
    async with single(database_url) as app, by_hand(app, Fragile) as hand:
        last = (await app.append("a", [Ticked(1), Ticked(2), Ticked(3)])).position
        await hand.through(1)
        (letter,) = await app.letters.list()
        page = await hand.page(last)
        behind = await hand.processor.prepare(page)
        assert len(behind.letters) == 2

        if discards_first:
            async with app.pools.work.transaction() as session:
                await session.run(letter_desk.discard([letter.id], "gone"))
                writing = asyncio.create_task(hand.commit(behind))
                await holds(lambda: somebody_waits_for_a_lock(database_url))
            await writing
        else:
            async with app.pools.work.transaction() as session:
                await session.run(letters.write("fragile:v1:all", behind.letters))
                discarding = asyncio.create_task(app.letters.discard(letter.id, reason="gone"))
                await holds(lambda: somebody_waits_for_a_lock(database_url))
            await discarding

        assert await app.pools.work.run(letters.due(["fragile:v1"])) == ["fragile:v1"]
        await hand.replay()
        assert await numbers_of(app, Fragile) == {"a": [2, 3]}
        assert hand.processor.parking.keys == set()


@pytest.mark.parametrize("what", ["discard", "edit"])
async def test_a_letter_changed_during_its_replay_ends_as_the_operator_wants_it(
    database_url: str, poison: set[int], what: str
) -> None:
    poison.add(1)
    async with single(database_url) as app, by_hand(app, Fragile) as hand:
        last = (await app.append("a", [Ticked(1), Ticked(2)])).position
        await hand.through(last)
        first = (await app.letters.list())[0]
        poison.clear()
        await app.letters.retry(first.id)

        async with app.pools.work.transaction() as session:
            if what == "discard":
                await session.run(letter_desk.discard([first.id], "gone"))
            else:
                await session.run(letter_desk.edit(first.id, '{"number": 10}', "typo"))
            replaying = asyncio.create_task(hand.replay())
            await holds(lambda: somebody_waits_for_a_lock(database_url))
        await replaying

        wanted = [2] if what == "discard" else [10, 2]
        assert await numbers_of(app, Fragile) == {"a": wanted}
        assert await no_letter_is_open(app)


async def test_a_request_made_while_a_letter_fails_again_is_not_forgotten(
    database_url: str, poison: set[int]
) -> None:
    poison.add(1)
    async with single(database_url) as app, by_hand(app, Fragile) as hand:
        await app.append("a", [Ticked(1)])
        await hand.through(1)
        run = app.pools.work.run
        (first,) = await app.letters.list()
        await app.letters.retry(first.id)
        (read,) = await run(letters.to_replay([first.id], 1_000))
        await app.letters.retry(first.id)
        await run(letters.fail(read, ApplyFailed("fragile:v1", "again", position=1)))

        (now,) = await app.letters.list()
        assert now.attempts == 2
        assert now.retry_at is not None
        with pytest.raises(LettersChanged):
            await run(letters.close([read.closed, read.closed._replace(id=10**9)]))


async def test_asking_twice_applies_once(database_url: str, poison: set[int]) -> None:
    poison.add(1)
    async with single(database_url) as app:
        await app.append("a", [Ticked(1), Ticked(2)])
        await app.start()
        await app.wait_for(2)
        poison.clear()
        found = [one.id for one in await app.letters.list()]
        await asyncio.gather(*(app.letters.retry(found) for _ in range(5)))
        await holds(lambda: no_letter_is_open(app))

        assert await numbers_of(app, Fragile) == {"a": [1, 2]}


# ---- many letters, many shards


async def test_a_long_queue_is_drained_page_by_page_while_other_streams_go_on(
    database_url: str, poison: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "PAGE", 50)
    monkeypatch.setattr(replay, "TURN", 0.01)
    poison.add(0)
    async with single(database_url) as app:
        await app.append("long", [Ticked(number) for number in range(2_000)])
        pages: list[int] = []
        app.signals.listen(
            lambda one: pages.append(one.facts["count"]) if one.name == "letters_replayed" else None
        )
        await app.start()
        await app.wait_for(2_000)
        assert len(await app.letters.list(limit=5_000)) == 2_000

        poison.clear()
        await app.letters.retry(all=True)
        seen_between = False
        number = 10_000
        while not await no_letter_is_open(app):
            number += 1
            last = (await app.append("other", Ticked(number))).position
            await app.wait_for(last, Fragile, timeout=10)
            seen_between = seen_between or (0 < sum(pages) < 2_000)

        assert seen_between
        assert max(pages) <= 50
        assert await numbers_of(app, Fragile) == await folded(app)


async def test_a_page_of_large_events_is_cut_by_its_size(
    database_url: str, poison: set[int]
) -> None:
    poison.add(1)
    async with single(database_url) as app, by_hand(app, Fragile) as hand:
        await app.append("a", [Ticked(number) for number in range(1, 11)])
        await hand.through(10)
        ids = [one.id for one in await app.letters.list()]

        some = await app.pools.work.run(letters.to_replay(ids, 30))

        assert [one.position for one in some] == [1, 2, 3]  # each of 13 bytes


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 1)])
async def test_letters_are_replayed_by_whoever_has_the_stream_after_another_cut(
    database_url: str, poison: set[int], before: int, after: int
) -> None:
    poison |= set(range(0, 40, 4))
    async with single(database_url, shards=before) as app:
        for number in range(40):
            await app.append(f"s{number % 20}", Ticked(number))
        await app.start()
        await app.wait_for(40)
        assert len(await app.letters.list()) >= 10

    poison.clear()
    async with single(database_url, shards=after) as app:
        await app.start()
        last = (await app.append("s0", Ticked(100))).position
        await app.wait_for(last)
        await app.letters.retry(all=True)
        await holds(lambda: no_letter_is_open(app))

        assert await numbers_of(app, Fragile) == await folded(app)


@pytest.mark.parametrize("after", [1, 4])
async def test_documents_are_replayed_by_whoever_has_them_after_another_cut(
    database_url: str, poison: set[int], after: int
) -> None:
    poison |= set(range(0, 30, 3))
    names = [f"d{number}" for number in range(10)]
    async with multi(database_url, shards=2) as app:
        for number in range(30):
            to = tuple(names[(number * 7 + step) % 10] for step in range(3))
            await app.append("a", Spread(number, to, bad=to[:2]))
        await app.start()
        await app.wait_for(30)

    poison.clear()
    async with multi(database_url, shards=after) as app:
        await app.start()
        await app.letters.retry(all=True)
        await holds(lambda: no_letter_is_open(app))

        assert await numbers_of(app, Shared) == await shared_fold(app)


# ---- states that cannot be stored


class Noted(SingleStream[Seen]):
    """Its state gets a number that is none."""

    @apply
    def ticked(self, seen: Seen, event: Ticked) -> None:
        seen.versions.append(event.number if event.number not in POISON else "\0")  # type: ignore[arg-type]  # what PostgreSQL cannot store


async def test_a_state_that_cannot_be_stored_parks_the_event_that_made_it(
    database_url: str, poison: set[int]
) -> None:
    poison.add(2)
    app = fragile_app(database_url)
    app.projection("noted", lifecycle="async")(Noted)
    async with app:
        await app.append("a", [Ticked(1), Ticked(2), Ticked(3)])
        await app.append("b", [Ticked(4)])
        await app.start()
        await app.wait_for(4)

        assert await numbers_of(app, Noted) == {"a": [1], "b": [4]}
        assert [(one.position, one.category) for one in await app.letters.list()] == [
            (2, "apply"),
            (3, None),
        ]


# ---- skipped, closed, forgotten


async def test_a_skipped_event_leaves_a_letter_and_its_stream_goes_on(
    database_url: str, poison: set[int]
) -> None:
    poison.add(2)
    async with single(database_url, on_error=ErrorPolicy(apply="skip")) as app:
        await app.append("a", [Ticked(1), Ticked(2), Ticked(3)])
        await app.start()
        await app.wait_for(3)

        assert await numbers_of(app, Fragile) == {"a": [1, 3]}
        (letter,) = await app.letters.list(status=["skipped"])
        with pytest.raises(InvalidInput, match="rebuild from the log"):
            await app.letters.edit(letter.id, {"number": 5}, reason="no")
        (count,) = await app.letters.counts()
        assert (count.label, count.status, count.count) == ("fragile:v1", "skipped", 1)
        with pytest.raises(InvalidInput, match="not one of"):
            await app.letters.list(status="lost")


async def test_closed_letters_are_forgotten_after_their_time(
    database_url: str, poison: set[int]
) -> None:
    poison |= {1, 3}
    async with single(database_url) as app, by_hand(app, Fragile) as hand:
        await app.append("a", [Ticked(1)])
        await app.append("b", [Ticked(3)])
        await hand.through(2)
        first, second = await app.letters.list()
        await app.letters.discard(first.id, reason="old")
        async with connected(database_url) as other:
            await other.execute(
                "UPDATE strandline.dead_letters SET closed_at = closed_at - interval '31 days'"
            )
        await app.pools.work.run(letters.prune(30.0))

        assert [
            row["id"] for row in await letter_rows(database_url, "id, label, tenant, key, position")
        ] == [second.id]


# ---- what only a rebuild can bring back


async def test_a_skipped_event_comes_back_by_a_rebuild_of_its_document(
    database_url: str, poison: set[int]
) -> None:
    poison |= {2, 12}
    async with single(database_url, on_error=ErrorPolicy(apply="skip")) as app:
        await app.append("a", [Ticked(1), Ticked(2), Ticked(3)])
        await app.append("b", [Ticked(11), Ticked(12), Ticked(13)])
        await app.start()
        await app.wait_for(6)
        first, _ = await app.letters.list()

        poison.clear()
        assert await app.letters.retry(first.id) == 1
        assert await numbers_of(app, Fragile) == {"a": [1, 2, 3], "b": [11, 13]}
        assert [one.key for one in await app.letters.list()] == ["b"]


async def test_an_event_without_a_key_comes_back_by_a_rebuild_of_its_documents(
    database_url: str,
) -> None:
    async with multi(database_url) as app:
        await app.append("a", [Spread(1, ("x",)), Spread(2, ("x", "y"))])
        await broken(database_url, 2)
        last = (await app.append("a", [Spread(3, ("x", "z"))])).position
        await app.start()
        await app.wait_for(last)
        (letter,) = await app.letters.list()
        with pytest.raises(UndecodableEvent):
            await app.letters.retry(letter.id)

        async with connected(database_url) as other:  # as an upcaster would make of it
            await other.execute(
                """UPDATE strandline.events SET data = '{"number": 2, "to": ["x", "y"]}'
                    WHERE position = 2"""
            )
        assert await app.letters.retry(letter.id) == 1
        assert await numbers_of(app, Shared) == await shared_fold(app)
        assert await no_letter_is_open(app)


async def test_an_event_of_a_type_that_nobody_knows_waits_until_somebody_does(
    database_url: str,
) -> None:
    policy = ErrorPolicy(unknown_type="park")
    async with single(database_url, on_error=policy) as app:
        await app.append("a", [Ticked(1), Dropped(), Ticked(3)])
        last = (await app.append("b", Ticked(4))).position
        async with connected(database_url) as other:
            await other.execute("UPDATE strandline.events SET type = 'odd' WHERE position = 2")
        await app.start()
        await app.wait_for(last)

        assert await numbers_of(app, Fragile) == {"a": [1], "b": [4]}
        found = await app.letters.list()
        assert [(one.position, one.category) for one in found] == [(2, "unknown_type"), (3, None)]
        await app.letters.retry(all=True)
        await holds(lambda: nothing_is_asked(database_url))
        assert [one.attempts for one in await app.letters.list()] == [2, 0]

    app = single(database_url, on_error=policy)
    app.upcast("odd", Dropped)(lambda old: old)
    async with app:
        await app.start()
        await app.letters.retry(all=True)
        await holds(lambda: no_letter_is_open(app))
        assert await numbers_of(app, Fragile) == {"a": [3], "b": [4]}


# ---- the watch


async def test_what_is_asked_without_a_notice_is_found_and_open_letters_are_counted(
    database_url: str, poison: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(letter_watch, "LOOK_EVERY", 0.05)
    monkeypatch.setattr(letter_watch, "TIDY_EVERY", 0.0)
    poison.add(1)
    async with single(database_url) as app, connected(database_url) as other:
        await app.append("a", [Ticked(1), Ticked(2)])
        await app.start()
        await app.wait_for(2)
        await holds(lambda: counted(app) == [("fragile:v1", "parked", 2)])

        poison.clear()
        await other.execute(
            "UPDATE strandline.dead_letters SET retry_at = now() WHERE position = 1"
        )
        await holds(lambda: no_letter_is_open(app))
        await holds(lambda: counted(app) == [])
        assert await numbers_of(app, Fragile) == {"a": [1, 2]}


def counted(app: App) -> list[tuple[str, str, int]]:
    statistics = app.statistics()
    assert statistics is not None
    return [(one.label, one.status, one.count) for one in statistics.letters]


async def test_nodes_replay_the_letters_of_the_shards_that_they_run(
    database_url: str, poison: set[int]
) -> None:
    quick = {"mode": "cluster", "pulse": "loop", "pulse_interval": 0.1, "node_ttl": 0.6}
    poison |= {3, 7, 11}
    async with (
        single(database_url, shards=4, node_name="one", **quick) as one,
        single(database_url, shards=4, node_name="two", **quick) as two,
    ):
        await asyncio.gather(one.start(), two.start())
        for number in range(40):
            last = (await one.append(f"s{number % 13}", Ticked(number))).position
        await one.wait_for(last)
        await holds(lambda: all(app.statistics().agents for app in (one, two)))  # type: ignore[union-attr]  # they run
        assert len({letter.key for letter in await one.letters.list()}) == 3

        poison.clear()
        assert await two.letters.retry(all=True) == 3
        await holds(lambda: no_letter_is_open(one))
        assert await numbers_of(one, Fragile) == await folded(one)
