"""Changing the number of shards: seal, drain, switch; whoever crashes, wakes up or changes its mind."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest
from cut import LABEL, Cut, names, opened

from strandline.daemon import slicing
from strandline.daemon.checkpoint import move
from strandline.daemon.progress import all_shards
from strandline.daemon.slicing import Stage
from strandline.errors import CheckpointMoved, LeaseLost, OwnershipLost, Unavailable
from strandline.postgres.operations import Op, one
from strandline.testing.database import fresh_database

ME = UUID(int=7)


async def test_a_new_label_is_cut_at_once_and_begins_where_it_is_told(database_url: str) -> None:
    async with opened(database_url) as cut:
        found = await cut.declare(4, start=42)

        assert (found.parts, found.wanted) == (4, 4)
        assert await cut.rows() == [(name, 42, 0, None, None) for name in names(4)]
        assert await cut.pending() == []
        assert await cut.step() is Stage.SETTLED


async def test_nodes_that_declare_a_new_label_differently_at_once_agree(database_url: str) -> None:
    async with opened(database_url) as cut:
        found = await asyncio.gather(*(cut.declare(wanted) for wanted in (3, 5, 3, 5)))

        (parts,) = {one.parts for one in found}
        assert await cut.shards() == names(parts)


async def test_a_label_from_before_there_were_slices_keeps_its_shard_until_it_is_cut(
    database_url: str,
) -> None:
    async with opened(database_url) as cut:
        await cut.append(5, 4)
        old = await cut.claim(f"{LABEL}:all", ME)
        await cut.apply(old, most=7)

        found = await cut.declare(8)

        assert (found.parts, found.wanted) == (1, 8)
        assert await cut.shards() == names(1)
        await cut.settle()
        assert [row[:2] for row in await cut.rows()] == [(name, 7) for name in names(8)]
        await cut.append(5, 4)
        await cut.drain()
        await cut.declare(1)
        await cut.settle()
        assert await cut.shards() == names(1)
        await cut.append(5, 4)
        await cut.drain()
        await cut.assert_applied_once()
        await cut.assert_zombies_are_refused()


async def test_the_seal_is_as_far_as_the_first_shard_has_come(database_url: str) -> None:
    async with opened(database_url) as cut:
        await cut.declare(3)
        await cut.append(6, 5)
        one, other, _ = await cut.claim_all(ME)
        await cut.apply(one, most=5)
        await cut.apply(other, most=20)
        await cut.declare(2)

        assert await cut.pending() == [LABEL]
        assert await cut.step() is Stage.SEALED

        assert await cut.rows() == [
            (names(3)[0], 5, 2, None, 20),
            (names(3)[1], 20, 2, None, 20),
            (names(3)[2], 0, 2, None, 20),
        ]
        assert await cut.step() is Stage.DRAINING
        for refused in cut.held:
            with pytest.raises(CheckpointMoved):
                await cut.apply(refused)
        assert (await cut.claim(names(3)[2])).seal == 20


async def test_a_seal_waits_for_the_batch_under_way_and_does_not_lie_below_it(
    database_url: str,
) -> None:
    async with opened(database_url) as cut:
        await cut.declare(2)
        last = await cut.append(4, 5)
        one, other = await cut.claim_all(ME)
        await cut.apply(other, most=3)
        await cut.declare(4)

        async with cut.pool.transaction() as session:
            await session.run(move(one, last))
            sealing = asyncio.create_task(cut.step())
            await _until_blocked(cut)

        assert await sealing is Stage.SEALED
        assert [(row[1], row[4]) for row in await cut.rows()] == [(last, last), (3, last)]


async def test_shards_that_all_stand_at_one_position_are_switched_in_one_step(
    database_url: str,
) -> None:
    async with opened(database_url) as cut:
        await cut.declare(2)
        last = await cut.append(4, 5)
        await cut.drain()
        await cut.declare(5)

        assert await cut.step() is Stage.SWITCHED

        (epoch,) = {row[2] for row in await cut.rows()}
        assert await cut.rows() == [(name, last, epoch, None, None) for name in names(5)]
        assert epoch > max(one.epoch for one in cut.held)
        assert await cut.pending() == []


async def test_a_shard_that_has_not_come_to_the_seal_keeps_the_others_from_being_switched(
    database_url: str,
) -> None:
    async with opened(database_url) as cut:
        await cut.declare(2)
        last = await cut.append(4, 5)
        (one, _) = await cut.claim_all()
        await cut.apply(one)
        await cut.declare(3)
        await cut.step()

        for position in (1, last - 1):
            slow = await cut.claim(names(2)[1])
            await cut.apply(slow, most=position - slow.position)
            assert await cut.step() is Stage.DRAINING
            assert await cut.shards() == names(2)
        await cut.apply(await cut.claim(names(2)[1]))

        assert await cut.step() is Stage.SWITCHED


async def test_a_shard_that_is_missing_keeps_the_others_from_being_switched(
    database_url: str,
) -> None:
    async with opened(database_url) as cut:
        await cut.declare(3)
        await cut.append(3, 3)
        await cut.drain()
        await cut.declare(2)
        await cut.pool.run(_sealed())
        await cut.operator.execute("DELETE FROM strandline.shards WHERE name LIKE '%1/3'")

        assert await cut.step() is Stage.DRAINING

        assert await cut.shards() == names(3)[1:]


async def test_a_frozen_owner_of_an_old_slice_is_refused_for_ever(database_url: str) -> None:
    """Also after 8 → 4 → 8, when there is a shard of its name again."""
    async with opened(database_url) as cut:
        await cut.declare(8)
        await cut.append(10, 2)
        frozen = await cut.claim(names(8)[0], ME)
        await cut.drain()
        for wanted in (4, 8):
            await cut.declare(wanted)
            await cut.settle()
            await cut.assert_zombies_are_refused()
        assert frozen.shard in await cut.shards()

        again = await cut.claim(frozen.shard, ME)

        assert again.epoch > frozen.epoch
        await cut.append(10, 2)
        await cut.drain()
        await cut.assert_applied_once()


async def test_a_shard_of_another_cut_cannot_be_claimed(database_url: str) -> None:
    async with opened(database_url) as cut:
        await cut.declare(4)
        await cut.append(3, 3)
        await cut.drain()
        await cut.declare(8)
        await cut.settle()

        for gone in [*names(4), *names(1), f"{LABEL}:1/2"]:
            with pytest.raises(LeaseLost, match="cut otherwise"):
                await cut.claim(gone)
        assert await cut.shards() == names(8)


@pytest.mark.parametrize("again", [3, 4, 6])
async def test_the_mind_may_be_changed_while_shards_are_sealed(
    database_url: str, again: int
) -> None:
    async with opened(database_url) as cut:
        await cut.declare(4)
        await cut.append(6, 4)
        for part, checkpoint in enumerate(await cut.claim_all(ME)):
            await cut.apply(checkpoint, most=5 * part)
        await cut.declare(2)
        await cut.step()
        sealed = await cut.claim(names(4)[0])
        await cut.apply(sealed, most=1)
        await cut.append(6, 4)

        await cut.declare(again)

        assert await cut.pending() == [LABEL]
        assert await cut.step() is (Stage.OPENED if again == 4 else Stage.DRAINING)
        await cut.settle()
        await cut.drain()
        assert await cut.shards() == names(again)
        assert {row[4] for row in await cut.rows()} == {None}
        await cut.assert_applied_once()
        await cut.assert_zombies_are_refused()


async def test_a_crash_between_any_two_statements_of_a_step_is_gone_on_from(
    database_url: str, server_url: str
) -> None:
    statements = 0
    for survived in range(10):
        async with fresh_database(server_url) as url, opened(url) as cut:
            await cut.declare(2)
            await cut.append(4, 3)
            await cut.drain()
            await cut.offered(names(2))
            await cut.declare(3)

            made = await cut.some_of_a_step(survived)

            statements = max(statements, made)
            await cut.settle()
            assert await cut.shards() == names(3)
            assert await cut.work() == names(3)
            await cut.append(4, 3)
            await cut.drain()
            await cut.assert_applied_once()
            await cut.assert_zombies_are_refused()
        if made < survived:
            break
    assert statements == 4, "read, seal, switch, fit"


async def test_steps_on_many_nodes_at_once_do_it_once(database_url: str) -> None:
    async with opened(database_url) as cut:
        await cut.declare(2)
        await cut.append(9, 3)
        for wanted in (5, 1, 3, 2):
            await cut.drain()
            await cut.declare(wanted)
            before = max(row[2] for row in await cut.rows())

            done = await asyncio.gather(*(cut.step() for _ in range(8)))

            assert done.count(Stage.SWITCHED) == 1
            assert {row[2] for row in await cut.rows()} == {before + 2}, (
                "sealed once, then switched"
            )
            assert await cut.shards() == names(wanted)
            await cut.append(9, 3)
        await cut.drain()
        await cut.assert_applied_once()


async def test_a_reset_in_the_middle_of_a_change_begins_anew(database_url: str) -> None:
    async with opened(database_url) as cut:
        await cut.declare(3)
        await cut.append(6, 4)
        await cut.apply((await cut.claim_all())[0], most=9)
        await cut.declare(2)
        await cut.step()

        assert await cut.pool.run(slicing.reset(LABEL)) == names(3)
        await cut.operator.execute("TRUNCATE ledger")

        await cut.assert_zombies_are_refused()
        assert {(row[1], row[3], row[4]) for row in await cut.rows()} == {(0, None, None)}
        await cut.settle()
        await cut.drain()
        await cut.assert_applied_once()


async def test_other_labels_are_left_alone(database_url: str) -> None:
    """A subscription may be called like a projection; a version like the beginning of another."""
    others = ["orders", "orders:v22", "orders:v1", "reorders:v2"]
    async with opened(database_url) as cut:
        for label in others:
            await cut.pool.run(slicing.declare(label, 2, start=5))
        await cut.offered([f"{label}:{part}/2" for label in others for part in (1, 2)])
        untouched = await cut.rows()
        await cut.declare(2)
        await cut.offered(names(2))
        await cut.append(3, 3)
        await cut.drain()

        await cut.declare(3)
        await cut.settle()
        await cut.pool.run(slicing.reset(LABEL))

        assert [row for row in await cut.rows() if not row[0].startswith(LABEL + ":")] == untouched
        assert len(await cut.work()) == 8 + 3


async def test_many_claim_apply_and_cut_at_once(database_url: str) -> None:
    """Real concurrency: every claim takes a shard from somebody who is at work on it."""
    async with opened(database_url) as cut:
        await cut.declare(3)
        await cut.append(7, 2)
        over = asyncio.get_running_loop().time() + 2.0

        async def until_over(act: Callable[[random.Random], Awaitable[None]], seed: int) -> None:
            chance = random.Random(seed)  # noqa: S311 - a schedule that can be repeated
            while asyncio.get_running_loop().time() < over:
                try:
                    await act(chance)
                except (OwnershipLost, Unavailable):
                    await asyncio.sleep(0)

        async def work(chance: random.Random) -> None:
            shards = [row.name for row in await cut.pool.run(all_shards())]
            checkpoint = await cut.claim(chance.choice(shards))
            for _ in range(chance.randrange(6)):
                checkpoint = await cut.apply(checkpoint, most=chance.randrange(1, 9))

        async def step(_: random.Random) -> None:
            await cut.step()

        async def wish(chance: random.Random) -> None:
            await cut.declare(chance.randrange(1, 6))
            await asyncio.sleep(0.05)

        async def write(chance: random.Random) -> None:
            await cut.append(chance.randrange(1, 9), 1)

        jobs = [work, work, work, step, step, wish, write]
        await asyncio.gather(*(until_over(one, seed) for seed, one in enumerate(jobs)))

        await cut.settle()
        await cut.drain()
        await cut.assert_applied_once()
        assert len({one.shard for one in cut.held}) > 6, "it was cut otherwise several times"


def _sealed() -> Op[Any]:
    return (yield from one(slicing.SEAL, LABEL))


async def _until_blocked(cut: Cut) -> None:
    query = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"
    async with asyncio.timeout(5):
        while not await cut.operator.fetchval(query):
            await asyncio.sleep(0.005)
