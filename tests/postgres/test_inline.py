"""Inline projections: in the append's transaction, and no update is lost."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from tally import Positions, Ticked, Versions, assert_applied_exactly_once, tally_app

from strandline.app import App
from strandline.errors import ApplyFailed, ConflictError, InvalidDefinition, WrongVersion
from strandline.projections.handlers import apply, key
from strandline.projections.multi_stream import MultiStream


async def test_documents_are_there_when_the_append_returns(database_url: str) -> None:
    async with tally_app(database_url, lifecycle="inline") as app:
        done = await app.append("s", [Ticked(1), Ticked(2)])

        assert (await app.get(Versions, "s")).versions == [1, 2]
        assert (await app.get(Positions, str(done.position % 3))).versions == [done.position]
        assert await app.progress() == [], "an inline projection has no shard"


async def test_no_update_is_lost_when_many_append_to_one_key(database_url: str) -> None:
    async with tally_app(database_url, lifecycle="inline", work_connections=16) as app:

        async def write(number: int) -> None:
            for _ in range(6):
                await app.append(f"s{number % 5}", Ticked(number))

        async with asyncio.TaskGroup() as group:
            for number in range(16):
                group.create_task(write(number))

        await assert_applied_exactly_once(app)


async def test_appends_to_many_streams_in_any_order_lose_nothing_and_do_not_deadlock(
    database_url: str,
) -> None:
    async with tally_app(database_url, lifecycle="inline", work_connections=16) as app:
        streams = [f"s{number}" for number in range(6)]

        async def write(number: int) -> None:
            for turn in range(3):
                order = streams[(number + turn) % 6 :] + streams[: (number + turn) % 6]
                await app.append_many([(stream, Ticked(number)) for stream in order])

        async with asyncio.TaskGroup() as group:
            for number in range(8):
                group.create_task(write(number))

        await assert_applied_exactly_once(app)


async def test_several_processes_lose_nothing_either(database_url: str) -> None:
    apps = [tally_app(database_url, lifecycle="inline") for _ in range(3)]
    async with apps[0], apps[1], apps[2]:

        async def write(app: App) -> None:
            for number in range(8):
                await app.append("shared", Ticked(number))

        async with asyncio.TaskGroup() as group:
            for app in apps * 3:
                group.create_task(write(app))

        await assert_applied_exactly_once(apps[0])


@dataclass
class Sum:
    numbers: list[int] = field(default_factory=list)


class Picky(MultiStream[Sum]):
    @key
    def one(self, event: Ticked) -> str:
        return "sum"

    @apply
    def add(self, total: Sum, event: Ticked) -> None:
        if event.number < 0:
            raise ValueError("only upwards")
        total.numbers.append(event.number)


async def test_a_handler_that_fails_makes_the_append_fail_and_writes_nothing(
    database_url: str,
) -> None:
    app = tally_app(database_url, lifecycle="inline")
    app.projection("picky", lifecycle="inline")(Picky)
    async with app:
        await app.append("s", Ticked(1))

        with pytest.raises(
            ApplyFailed, match=r"picky:v1 at position \d+: ValueError\('only upwards"
        ):
            await app.append("s", [Ticked(2), Ticked(-1)])

        assert [event.data for event in await app.read_stream("s")] == [Ticked(1)]
        assert (await app.get(Picky, "sum")).numbers == [1]
        assert (await app.get(Versions, "s")).versions == [1]
        await app.append("s", Ticked(3))
        assert (await app.get(Picky, "sum")).numbers == [1, 3]
        await assert_applied_exactly_once(app)


async def test_a_refused_append_leaves_the_documents_alone(database_url: str) -> None:
    async with tally_app(database_url, lifecycle="inline") as app:
        await app.append("s", Ticked(1))

        with pytest.raises(WrongVersion):
            await app.append("s", Ticked(2), expected=5)

        await assert_applied_exactly_once(app)


async def test_an_append_tried_again_is_followed_once(database_url: str) -> None:
    async with tally_app(database_url, lifecycle="inline") as app:
        ids = ["00000000-0000-7000-8000-000000000001"]
        first = await app.append("s", Ticked(1), ids=ids)

        again = await app.append("s", Ticked(1), ids=ids)

        assert again.stored_before
        assert again.position == first.position
        await assert_applied_exactly_once(app)


async def test_a_transaction_that_rolls_back_takes_the_documents_with_it(database_url: str) -> None:
    async with tally_app(database_url, lifecycle="inline") as app:
        with pytest.raises(RuntimeError):
            async with app.transaction() as tx:
                await tx.append("s", Ticked(1))
                await tx.append("s", Ticked(2))
                assert (await tx.get(Versions, "s")).versions == [1, 2], "seen inside"
                raise RuntimeError

        assert await app.find(Versions, "s") is None


async def test_deciding_on_an_inline_document_is_checked_by_version(database_url: str) -> None:
    async with tally_app(database_url, lifecycle="inline") as app:
        await app.append("s", Ticked(1))

        async def decide() -> bool:
            try:
                async with app.writing(Versions, "s") as stream:
                    if len(stream.state.versions) < 2:
                        stream.append(Ticked(2))
            except ConflictError:
                return False
            return stream.appended is not None

        won = await asyncio.gather(*(decide() for _ in range(8)))

        assert sum(won) == 1
        assert (await app.get(Versions, "s")).versions == [1, 2]


async def test_an_inline_projection_cannot_be_rebuilt_and_keeps_its_documents(
    database_url: str,
) -> None:
    async with tally_app(database_url, lifecycle="inline") as app:
        await app.append("s", Ticked(1))

        with pytest.raises(InvalidDefinition, match="versions:v1 is inline: only asynchronous"):
            await app.rebuild(Versions)

        await assert_applied_exactly_once(app)
