"""Builds over processes that are killed, frozen, and work side by side."""

from __future__ import annotations

from pathlib import Path

from crowd import Crowd, assert_exactly_once, counting_app, soon, writing
from shadows import left_behind
from tally import fill

SLOWLY = {
    "page_events": 25,
    "rebuild_page_events": 25,
    "rebalance_after": 0.2,
    "rebalance_interval": 0.3,
    "moves_per_round": 1.0,
}


async def positions_of(crowd: Crowd, shadow: str) -> list[int]:
    rows = await crowd.rows(
        "SELECT position FROM strandline.shards WHERE name LIKE $1 || ':%' ORDER BY name", shadow
    )
    return [row[0] for row in rows]


async def reached(crowd: Crowd, shadow: str, position: int) -> bool:
    found = await positions_of(crowd, shadow)
    return bool(found) and min(found) >= position


async def builders(crowd: Crowd, shadow: str) -> set[str | None]:
    """Who runs the shards of a build."""
    owners = await crowd.runners()
    return {owner for name, owner in owners.items() if name.startswith(f"{shadow}:")}


async def is_done(crowd: Crowd, number: int) -> bool:
    found = await crowd.one("SELECT state FROM strandline.rebuilds WHERE number = $1", number)
    assert found not in ("failed", "cancelled")
    return bool(found == "done")


async def test_a_build_goes_on_where_it_was_however_often_its_process_is_killed(
    database_url: str, tmp_path: Path
) -> None:
    async with Crowd(database_url, tmp_path, **SLOWLY) as crowd:
        async with counting_app(database_url) as app:
            last = await fill(app, 8_000, streams=400)
            await crowd.start("a")
            build = await app.request_build("versions:v1")
        seen = 0
        for killed, successor in (("a", "b"), ("b", "c")):
            await soon(lambda seen=seen: reached(crowd, build.shadow, seen + 1000))
            crowd.nodes[killed].kill()
            await crowd.nodes[killed].gone(timeout=5)
            (before,) = await positions_of(crowd, build.shadow)
            assert 0 < before < last
            await crowd.start(successor)
            await soon(lambda one=successor: runs(crowd, build.shadow, one))
            (seen,) = await positions_of(crowd, build.shadow)
            assert seen >= before
        await soon(lambda: is_done(crowd, build.number), timeout=60)
        await assert_exactly_once(crowd)
        assert await soon(lambda: is_clean(database_url))


async def runs(crowd: Crowd, shadow: str, name: str) -> bool:
    return await builders(crowd, shadow) == {name}


async def is_clean(url: str) -> bool:
    return not await left_behind(url)


async def test_two_processes_build_side_by_side_while_appends_go_on(
    database_url: str, tmp_path: Path
) -> None:
    async with Crowd(database_url, tmp_path, **SLOWLY) as crowd:
        async with counting_app(database_url) as app:
            await fill(app, 6_000, streams=400)
            await crowd.start("a", "b")
            async with writing(database_url, streams=5):
                build = await app.request_build("versions:v1", parts=2)
                await soon(lambda: both_at_it(crowd, build.shadow))
                await soon(lambda: is_done(crowd, build.number), timeout=90)
        await assert_exactly_once(crowd)
        assert await soon(lambda: is_clean(database_url))


async def both_at_it(crowd: Crowd, shadow: str) -> bool:
    found = await positions_of(crowd, shadow)
    return await builders(crowd, shadow) == {"a", "b"} and min(found) > 0


async def test_a_frozen_builder_that_wakes_up_after_the_swap_changes_nothing(
    database_url: str, tmp_path: Path
) -> None:
    async with Crowd(database_url, tmp_path, **SLOWLY) as crowd:
        async with counting_app(database_url) as app:
            await fill(app, 3_000, streams=400)
            await crowd.start("a")
            build = await app.request_build("versions:v1")
            await soon(lambda: reached(crowd, build.shadow, 500))
            crowd.nodes["a"].freeze(with_side_process=True)
            await crowd.start("b")
            await soon(lambda: is_done(crowd, build.number), timeout=60)
            crowd.nodes["a"].thaw()
            await fill(app, 200)
        await assert_exactly_once(crowd)
        assert await soon(lambda: is_clean(database_url))
