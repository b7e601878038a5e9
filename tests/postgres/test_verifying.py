"""Read models compared with what their events make of them, while everything goes on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tally import (
    Positions,
    Seen,
    Ticked,
    Versions,
    assert_applied_exactly_once,
    connected,
    fill,
    tally_app,
)

from strandline.app import App
from strandline.daemon import rebuilder
from strandline.errors import ApplyFailed, InvalidDefinition, InvalidInput, RebuildUnderWay
from strandline.postgres.operations import Call
from strandline.postgres.statements import verbatim
from strandline.projections.composite import Composite
from strandline.projections.handlers import apply
from strandline.projections.single_stream import SingleStream

SOLO = {"mode": "solo", "poll_interval": 0.05}
SPOILED = """
    DELETE FROM strandline.doc_versions_v1 WHERE id = 's1';
    UPDATE strandline.doc_versions_v1 SET data = '{"versions": [7]}' WHERE id = 's2';
    INSERT INTO strandline.doc_versions_v1 VALUES ('default', 'nobody', '{"versions": []}', 1, 1);
"""


@asynccontextmanager
async def appending(app: App) -> AsyncIterator[list[int]]:
    """Appends go on inside the block; what has been appended."""
    done: list[int] = []

    async def go_on() -> None:
        while True:
            done.append((await app.append(f"busy{len(done) % 5}", [Ticked()] * 3)).position)
            await asyncio.sleep(0.002)

    task = asyncio.create_task(go_on())
    try:
        yield done
    finally:
        task.cancel()
        await asyncio.wait({task})


async def execute(url: str, text: str) -> None:
    async with connected(url) as connection:
        await connection.execute(text)


async def seals(url: str) -> list[Any]:
    async with connected(url) as connection:
        found = await connection.fetch("SELECT name FROM strandline.shards WHERE seal IS NOT NULL")
    return [row[0] for row in found]


async def test_nothing_is_found_when_nothing_is_wrong(database_url: str) -> None:
    async with tally_app(database_url, **SOLO) as app:
        await app.start()
        await fill(app, 300)
        async with appending(app) as appended:
            single = await app.verify(Versions)
            multi = await app.verify("positions")
            begun = len(appended)

        assert begun > 5
        assert (single.label, single.scope, single.differing) == ("versions:v1", "everything", 0)
        assert single.checked >= 7 + 1
        assert single.differences == ()
        assert single.is_right
        assert (multi.checked, multi.differing) == (3, 0)
        await app.catch_up()
        await assert_applied_exactly_once(app)


async def test_what_is_missing_extra_and_different_is_listed_while_appends_go_on(
    database_url: str,
) -> None:
    async with tally_app(database_url, **SOLO) as app:
        await app.start()
        await fill(app, 300)
        await app.catch_up()
        await execute(database_url, SPOILED)
        async with appending(app):
            found = await app.verify(Versions)

        kinds = {one.key: one.kind for one in found.differences}
        assert kinds == {"nobody": "extra", "s1": "missing", "s2": "differs"}
        assert found.differing == 3
        assert not found.is_right
        assert not found.repaired
        wrong = next(one for one in found.differences if one.key == "s2")
        assert json.loads(wrong.live or "")["data"] == {"versions": [7]}
        assert json.loads(wrong.rebuilt or "")["data"]["versions"] == list(range(1, 41))
        assert [one.key for one in (await app.verify(Versions, limit=1)).differences] == ["nobody"]
        assert (await app.find(Versions, "s1")) is None, "nothing was repaired"


async def test_the_seal_is_open_again_while_the_comparison_still_runs(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare = rebuilder.compare
    begun = asyncio.Event()

    def held_up(*given: Any) -> Any:
        begun.set()
        yield Call(verbatim("SELECT pg_advisory_xact_lock(42)"), ())
        return (yield from compare(*given))

    monkeypatch.setattr(rebuilder, "compare", held_up)
    async with tally_app(database_url, **SOLO) as app, connected(database_url) as other:
        await app.start()
        await fill(app, 100)
        await app.catch_up()
        await other.execute("SELECT pg_advisory_lock(42)")
        verifying = asyncio.create_task(app.verify(Versions))
        async with asyncio.timeout(10):
            await begun.wait()

        last = await fill(app, 20)
        await app.wait_for(last, Versions, timeout=5)
        assert await seals(database_url) == []
        assert not verifying.done(), "it is still being compared"
        await other.execute("SELECT pg_advisory_unlock(42)")

        assert (await verifying).differing == 0


async def test_repair_lets_the_build_take_over_and_readers_see_all_of_it_all_the_time(
    database_url: str,
) -> None:
    async with tally_app(database_url, **SOLO) as app:
        await app.start()
        await fill(app, 300)
        await app.catch_up()
        await execute(database_url, SPOILED)
        counts: set[int] = set()
        async with appending(app), reading(app, counts):
            found = await app.verify(Versions, repair=True)
            assert (found.differing, found.repaired, found.is_right) == (3, True, True)
            again = await app.verify(Versions, repair=True)
            assert (again.differing, again.repaired, again.is_right) == (0, False, True)

        await app.catch_up()
        await assert_applied_exactly_once(app)
        assert min(counts) >= 7, "a reader saw less than there was before"


@asynccontextmanager
async def reading(app: App, counts: set[int]) -> AsyncIterator[None]:
    """Somebody reads the documents of the shop's streams all the time."""

    async def go_on() -> None:
        while True:
            counts.add(
                len([one for one in await app.query(Versions) if not one[0].startswith("b")])
            )
            await asyncio.sleep(0.001)

    task = asyncio.create_task(go_on())
    try:
        yield
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_a_stream_is_verified_and_mended_by_itself(database_url: str) -> None:
    async with tally_app(database_url, **SOLO) as app:
        await app.start()
        await fill(app, 300)
        await app.catch_up()
        await execute(database_url, SPOILED)

        fine = await app.verify(Versions, streams=["s0", "s3"])
        assert (fine.scope, fine.checked, fine.differing) == ("streams s0, s3", 2, 0)
        wrong = await app.verify(Versions, streams=["s2"], repair=True)

        assert (wrong.checked, wrong.differing, wrong.repaired) == (1, 1, True)
        assert (await app.get(Versions, "s2")).versions == list(range(1, 41))
        assert (await app.find(Versions, "s1")) is None, "another stream was not touched"
        assert (await app.find(Versions, "nobody")) is not None


async def test_a_part_that_does_not_exist_is_refused_before_anything_is_begun(
    database_url: str,
) -> None:
    app = tally_app(database_url, **SOLO)
    app.projection("inlined", lifecycle="inline")(type("Inlined", (Versions,), {}))
    async with app:
        with pytest.raises(InvalidDefinition):
            await app.verify("inlined")
        with pytest.raises(InvalidInput):
            await app.verify(Positions, streams=["s1"])
        with pytest.raises(InvalidInput):
            await app.verify(Versions, limit=1001)
        assert await app.rebuilds() == []


async def test_two_at_a_time_are_not_mixed_up(database_url: str) -> None:
    async with tally_app(database_url, **SOLO) as app:
        await app.start()
        await fill(app, 100)

        done = await asyncio.gather(
            app.verify(Versions), app.verify(Versions), return_exceptions=True
        )

        assert sorted(type(one).__name__ for one in done) == ["RebuildUnderWay", "Verified"]
        assert RebuildUnderWay in {type(one) for one in done}


async def test_what_waits_in_dead_letters_is_lacking_on_both_sides(database_url: str) -> None:
    app = tally_app(database_url, **SOLO)

    @app.projection("careful")
    class Careful(SingleStream[Seen]):
        @apply
        def ticked(self, seen: Seen, event: Ticked) -> None:
            if event.number == 13:
                raise ValueError("thirteen")
            seen.versions.append(event.number)

    async with app:
        await app.start()
        await fill(app, 60)
        await app.catch_up(Careful)
        assert len(await app.letters.list(Careful)) > 0

        found = await app.verify(Careful)
        mended = await app.verify(Careful, repair=True)

        assert (found.differing, mended.differing, mended.repaired) == (0, 0, False)
        with pytest.raises(ApplyFailed, match="thirteen"):
            await app.verify(Careful, on_error="pause")
        assert await app.rebuilds(Careful, ended=0) == [], "it was given up"
        assert len(await app.letters.list(Careful)) > 0


# ---- plans


async def test_a_plan_counts_what_there_is_and_changes_nothing(database_url: str) -> None:
    async with tally_app(database_url, **SOLO) as app:
        await app.start()
        await fill(app, 300)
        await app.append("s1", [Ticked()] * 5, tenant="other")
        async with connected(database_url) as other:
            await other.execute(
                """SELECT strandline.append('alien', '[{"type": "alien", "data": {}}]')"""
            )
        last = await app.catch_up()
        before = await picture(database_url)

        whole = await app.plan_rebuild(Versions)
        stream = await app.plan_rebuild(Versions, streams=["s1", "none"])
        tenant = await app.plan_rebuild(Positions, tenant="other", parts=3)

        assert (whole.label, whole.scope, whole.position) == ("versions:v1", "everything", last)
        assert (whole.events, whole.documents, whole.parts, whole.letters) == (305, 8, 1, 0)
        assert whole.bytes > 8192
        assert whole.seconds is None
        assert whole.suppressed == ()
        assert (stream.events, stream.documents) == (50, 1)
        assert (tenant.events, tenant.documents, tenant.parts) == (5, 3, 3)
        assert await picture(database_url) == before

        await app.rebuild(Versions)
        assert ((await app.plan_rebuild(Versions)).seconds or 0) > 0


async def picture(url: str) -> list[Any]:
    """What a plan must not change."""
    async with connected(url) as connection:
        found: list[Any] = await connection.fetchrow(
            """SELECT (SELECT count(*) FROM strandline.rebuilds), (SELECT count(*) FROM pg_namespace),
                      (SELECT jsonb_agg(to_jsonb(s) ORDER BY name) FROM strandline.shards s),
                      (SELECT jsonb_agg(to_jsonb(d) ORDER BY id) FROM strandline.doc_versions_v1 d)"""
        )
    return list(found)


async def test_a_node_that_stops_right_after_a_build_leaves_nothing_running(
    database_url: str,
) -> None:
    for _ in range(3):
        async with tally_app(database_url, **SOLO) as app:
            await fill(app, 30)
            await app.verify(Versions)
        async with connected(database_url) as other:
            found = await other.fetch("SELECT name, state FROM strandline.shard_status")
        assert {row["state"] for row in found} == {"stopped"}, found


# ---- composites


async def test_a_composite_is_verified_mended_and_planned_as_a_whole(database_url: str) -> None:
    app = tally_app(database_url, **SOLO)

    @app.projection("both")
    class Both(Composite):
        stages = ({"by_stream": Versions, "by_third": Positions},)

    async with app:
        await app.start()
        await fill(app, 100)
        await app.catch_up()
        assert (await app.verify(Both)).differing == 0
        plan = await app.plan_rebuild(Both)
        async with connected(database_url) as other:
            tables = await other.fetch(
                """SELECT relname FROM pg_class WHERE relkind = 'r' AND relname ~ 'by_stream|by_third'
                    AND relnamespace = 'strandline'::regnamespace"""
            )
            for (table,) in tables:
                await other.execute(
                    f"DELETE FROM strandline.{table} WHERE id IN (SELECT min(id) FROM strandline.{table})"
                )

        found = await app.verify(Both, repair=True)

        assert (plan.events, plan.documents) == (100, 10)
        assert (found.checked, found.differing, found.repaired) == (10, 2, True)
        assert {one.table for one in found.differences} == {name for (name,) in tables}
        assert (await app.verify(Both)).differing == 0
        with pytest.raises(InvalidInput, match="as a whole"):
            await app.verify(Both, tenant="default")
