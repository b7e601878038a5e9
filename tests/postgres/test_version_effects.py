"""Side effects over a change of versions: every event's exactly once, under load."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tally import Seen, Ticked, connected, holds

import strandline as sl
from strandline.app import App
from strandline.errors import AnswerTimedOut, ConflictError
from strandline.events.event import RecordedEvent

TABLE = "CREATE TABLE IF NOT EXISTS spoken (position bigint, version integer)"


def spoken_by(version: int) -> type[Any]:
    class Spoken(sl.SingleStream[Seen]):
        @sl.apply
        def ticked(self, seen: Seen, event: RecordedEvent[Ticked]) -> None:
            seen.versions.append(event.version)

        @sl.effects
        async def raised(self, changes: sl.Changes[Seen], tx: sl.Transaction) -> None:
            for change in changes:
                for event in change.events:
                    await tx.execute("INSERT INTO spoken VALUES ($1, $2)", event.position, version)

    return Spoken


def app_of(url: str, *versions: int, shards: int = 1) -> App:
    app = App("effects", url, mode="solo", poll_interval=0.1, failure_pause=0.1, page_events=20)
    app.event("ticked")(Ticked)
    for version in versions:
        app.projection("spoken", version=version, shards=shards)(spoken_by(version))
    return app


async def spoken(url: str) -> list[tuple[int, int]]:
    async with connected(url) as connection:
        rows = await connection.fetch("SELECT position, version FROM spoken ORDER BY position")
        return [(row["position"], row["version"]) for row in rows]


@pytest.fixture(autouse=True)
def table(database_url: str) -> None:
    async def create() -> None:
        async with connected(database_url) as connection:
            await connection.execute(TABLE)

    asyncio.run(create())


@pytest.mark.parametrize("shards", [1, 2])
async def test_effects_are_raised_once_per_event_over_a_change_of_versions(
    database_url: str, shards: int
) -> None:
    async with (
        app_of(database_url, 1, shards=shards) as old,
        app_of(database_url, 2, shards=2) as new,
    ):
        over = asyncio.Event()

        async def load(number: int) -> int:
            last = 0
            while not over.is_set():
                last = (await new.append(f"s{number}", [Ticked(1), Ticked(2)])).position
                await asyncio.sleep(0.05)  # no more than the old one can take on any machine
            return last

        await old.start()
        await new.append("s0", [Ticked(1)] * 50)
        await old.catch_up()
        await new.start()  # it comes from the beginning, silently
        writers = [asyncio.ensure_future(load(number)) for number in range(3)]
        await old.wait_for(await more(new))

        await new.retire("spoken:v1", timeout=20.0)

        await new.wait_for(await more(new))
        over.set()
        last = max([await one for one in writers])
        await new.wait_for(last)
        found = await spoken(database_url)
        log = [event.position async for event in new.read_all()]
    assert [position for position, _ in found] == log
    versions = [version for _, version in found]
    assert versions == sorted(versions), "the old one up to a position, the new one beyond it"
    assert set(versions) == {1, 2}


async def more(app: App) -> int:
    """Wait until a good deal more is appended; the last position."""
    wanted = await app.highest_position() + 60

    async def is_there() -> bool:
        return await app.highest_position() >= wanted

    await holds(is_there)
    return wanted


async def test_the_old_one_has_still_to_raise_what_the_new_one_has_passed(
    database_url: str,
) -> None:
    async with app_of(database_url, 1) as old:
        first = (await old.append("s", [Ticked(1)] * 3)).position
        await old.catch_up()
    async with app_of(database_url, 2) as new:
        last = (await new.append("s", [Ticked(1)] * 3)).position
        await new.catch_up()

        with pytest.raises(
            AnswerTimedOut,
            match=f"spoken:v1 was not retired within 0.2 s: spoken:v1 has come to position {first},"
            f" and has still to raise side effects .* up to {last}",
        ):
            await new.retire("spoken:v1", timeout=0.2)
        async with app_of(database_url, 1) as old:  # nothing was changed: the old one catches up
            await old.catch_up()
        await new.retire("spoken:v1")
        assert await spoken(database_url) == [(position, 1) for position in range(1, 7)]


async def test_by_force_what_is_missing_is_raised_by_nobody(database_url: str) -> None:
    async with app_of(database_url, 1) as old:
        await old.append("s", [Ticked(1)] * 3)
        await old.catch_up()
    async with app_of(database_url, 2) as new:
        await new.append("s", [Ticked(1)] * 3)
        await new.catch_up()
        await new.retire("spoken:v1", force=True)
        await new.append("s", Ticked(1))
        await new.catch_up()

        assert await spoken(database_url) == [(1, 1), (2, 1), (3, 1), (7, 2)]


async def test_open_letters_of_the_old_one_are_decided_on_first(database_url: str) -> None:
    async with app_of(database_url, 1) as old:
        await old.append("s", Ticked(1))
        await old.catch_up()
    async with app_of(database_url, 2) as new, connected(database_url) as operator:
        await new.catch_up()
        await operator.execute(
            """INSERT INTO strandline.dead_letters
                 (label, shard, tenant, key, position, stream, version, type, status)
               VALUES ('spoken:v1', 'spoken:v1:all', 'd', 's', 1, 's', 1, 'ticked', 'parked')"""
        )
        with pytest.raises(ConflictError, match="1 open dead letters, whose side effects nobody"):
            await new.retire("spoken:v1")
