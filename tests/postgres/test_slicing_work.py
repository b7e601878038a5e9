"""The cluster's work follows the shards when these are cut into another number."""

from __future__ import annotations

from cut import CHANNEL, LABEL, names, opened

from strandline.daemon.slicing import Stage


async def test_work_becomes_what_the_shards_are_and_keeps_what_was_said_of_it(
    database_url: str,
) -> None:
    async with opened(database_url) as cut:
        await cut.declare(2)
        await cut.offered(names(2), pinned_to="node-3")
        version = await cut.operator.fetchval("SELECT version FROM strandline.cluster")
        heard: list[str] = []
        await cut.operator.add_listener(CHANNEL, lambda *told: heard.append(told[3]))
        await cut.declare(3)

        await cut.settle()

        rows = await cut.operator.fetch(
            "SELECT name, needs, apart, weight, pinned_to, paused_at FROM strandline.work ORDER BY 1"
        )
        same = ([LABEL], LABEL, 2.0, "node-3", None)
        assert [tuple(row) for row in rows] == [(name, *same) for name in names(3)]
        epochs = await cut.operator.fetch("SELECT epoch, owner, target FROM strandline.assignments")
        assert [tuple(row) for row in epochs] == [(8, None, None)] * 3, "7 was granted once"
        assert await cut.operator.fetchval("SELECT version FROM strandline.cluster") == version + 1
        assert heard == ["work"]


async def test_paused_work_stays_as_it_is_until_it_is_resumed(database_url: str) -> None:
    """Who paused it will resume it by its name, as a rebuild does."""
    async with opened(database_url) as cut:
        await cut.declare(2)
        await cut.offered(names(2)[:1])
        await cut.offered(names(2)[1:], paused=True)
        await cut.append(3, 3)
        await cut.drain()
        await cut.declare(3)

        assert await cut.step() is Stage.SEALED
        await cut.drain()
        assert await cut.step() is Stage.DRAINING
        assert await cut.shards() == names(2)

        await cut.operator.execute("UPDATE strandline.work SET paused_at = NULL")
        assert await cut.step() is Stage.SWITCHED
        assert await cut.work() == names(3)


async def test_work_that_is_paused_just_after_the_switch_is_resumed_by_its_old_name(
    database_url: str,
) -> None:
    async with opened(database_url) as cut:
        await cut.declare(2)
        await cut.offered(names(2))
        await cut.declare(3)
        assert await cut.some_of_a_step(3) == 3
        assert await cut.shards() == names(3)

        await cut.operator.execute("UPDATE strandline.work SET paused_at = now()")
        assert await cut.step() is Stage.SETTLED
        assert await cut.work() == names(2)
        assert await cut.pending() == [LABEL]
        await cut.operator.execute("UPDATE strandline.work SET paused_at = NULL")

        assert await cut.step() is Stage.FITTED
        assert await cut.work() == names(3)


async def test_a_pin_of_one_slice_is_none_of_the_new_ones(database_url: str) -> None:
    async with opened(database_url) as cut:
        await cut.declare(2)
        await cut.offered(names(2)[:1], pinned_to="node-3")
        await cut.offered(names(2)[1:])
        await cut.declare(3)

        await cut.settle()

        assert await cut.operator.fetch("SELECT pinned_to FROM strandline.work") == [(None,)] * 3


async def test_work_offered_by_a_node_that_missed_the_switch_is_put_right(
    database_url: str,
) -> None:
    async with opened(database_url) as cut:
        await cut.declare(4)
        await cut.declare(2)
        await cut.settle()
        assert await cut.work() == []
        await cut.offered(names(4))

        assert await cut.pending() == [LABEL]
        assert await cut.step() is Stage.FITTED

        assert await cut.work() == names(2)
        assert await cut.pending() == []


async def test_nobody_spreads_what_was_never_offered(database_url: str) -> None:
    async with opened(database_url) as cut:
        await cut.declare(4)
        await cut.declare(2)

        assert await cut.step() is Stage.SWITCHED

        assert await cut.work() == []
        assert await cut.pending() == []
