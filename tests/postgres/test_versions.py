"""Several versions of a projection side by side, and retiring the old ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from tally import Dropped, Seen, Ticked, Versions, connected, fill, holds

import strandline as sl
from strandline.app import App
from strandline.daemon import slicing
from strandline.errors import (
    AnswerTimedOut,
    ConflictError,
    InvalidDefinition,
    UnknownProjection,
)
from strandline.projections.handlers import apply
from strandline.projections.single_stream import SingleStream

SOLO: dict[str, Any] = {"mode": "solo", "poll_interval": 0.1, "failure_pause": 0.1}


@dataclass
class Numbers:
    numbers: list[int] = field(default_factory=list)


class VersionsToo(SingleStream[Numbers]):
    """The next version of ``Versions``: the numbers instead."""

    @apply
    def ticked(self, seen: Numbers, event: Ticked) -> None:
        seen.numbers.append(event.number)


def app_of(url: str, *versions: int, lifecycle: str = "async", **settings: Any) -> App:
    app = App("versions", url, **{**SOLO, **settings})
    app.event("ticked")(Ticked)
    app.event("dropped")(Dropped)
    for version in versions:
        kind = Versions if version == 1 else VersionsToo
        app.projection("versions", version=version, lifecycle=lifecycle)(kind)
    return app


async def labels_there(url: str) -> dict[str, list[str]]:
    """What the database has of the projection, by kind of thing."""
    async with connected(url) as connection:

        async def column(sql: str) -> list[str]:
            return [row[0] for row in await connection.fetch(sql)]

        return {
            "slicings": await column("SELECT label FROM strandline.slicings ORDER BY 1"),
            "shards": await column("SELECT name FROM strandline.shards ORDER BY 1"),
            "status": await column("SELECT name FROM strandline.shard_status ORDER BY 1"),
            "work": await column(
                "SELECT name FROM strandline.work WHERE name LIKE 'versions%' ORDER BY 1"
            ),
            "letters": await column("SELECT label FROM strandline.dead_letters ORDER BY 1"),
            "tables": await column(
                "SELECT tablename::text FROM pg_tables WHERE tablename LIKE 'doc_versions%' ORDER BY 1"
            ),
        }


async def effects_after(url: str) -> dict[str, int | None]:
    async with connected(url) as connection:
        return dict(await connection.fetch("SELECT label, effects_after FROM strandline.slicings"))


# ---- side by side


async def test_a_name_means_the_highest_version_and_a_class_or_a_label_that_one(
    database_url: str,
) -> None:
    async with app_of(database_url, 1, 2) as app:
        await app.append("s", [Ticked(5), Ticked(7)])
        await app.catch_up()

        assert await app.get("versions", "s") == Numbers([5, 7])
        assert await app.get("versions:v1", "s") == Seen([1, 2])
        assert await app.get(Versions, "s") == Seen([1, 2])
        assert await app.get(VersionsToo, "s") == Numbers([5, 7])
        assert app.registry.labels() == ["versions:v1", "versions:v2"]
        assert {one.label for one in await app.progress()} == {"versions:v1", "versions:v2"}


async def test_both_versions_can_be_kept_by_appends(database_url: str) -> None:
    async with app_of(database_url, 1, 2, lifecycle="inline") as app:
        await app.append("s", [Ticked(5)])

        assert await app.get("versions:v1", "s") == Seen([1])
        assert await app.get("versions:v2", "s") == Numbers([5])


def test_a_version_is_registered_once_and_a_name_is_not_shared_with_a_subscription() -> None:
    app = app_of("postgresql:///nowhere", 1, 2)

    with pytest.raises(InvalidDefinition, match="versions:v2 is registered already.*version=3"):
        app.projection("versions", version=2)(VersionsToo)
    with pytest.raises(InvalidDefinition, match="the name 'versions' is taken"):

        @app.subscription("versions")
        async def taken(batch: sl.EventBatch) -> None: ...

    @app.subscription("notify")
    async def notify(batch: sl.EventBatch) -> None: ...

    with pytest.raises(InvalidDefinition, match="the name 'notify' is taken by a subscription"):
        app.projection("notify")(VersionsToo)
    with pytest.raises(UnknownProjection, match=r"registered: versions:v1, versions:v2\)"):
        app.registry.projection("versions:v3")


async def test_a_class_registered_in_two_versions_means_the_higher(database_url: str) -> None:
    app = app_of(database_url)
    app.projection("versions", version=1)(Versions)
    app.projection("versions", version=2)(Versions)

    assert app.registry.projection(Versions).label == "versions:v2"


# ---- retiring


async def test_an_old_version_is_retired_while_nodes_of_both_deployments_run(
    database_url: str,
) -> None:
    async with app_of(database_url, 1) as old, app_of(database_url, 2) as new:
        withdrawn: list[str] = []
        old.signals.listen(
            lambda notice: (
                withdrawn.append(notice.facts["shard"])
                if notice.name == "shard_withdrawn"
                else None
            )
        )
        await old.start()
        await new.start()
        last = await fill(new, 200)
        await old.wait_for(last)
        await new.wait_for(last)
        assert dict(await old.query(Versions))["s0"] == Seen(list(range(1, 31)))

        await new.retire("versions:v1")
        last = await fill(old, 50)
        await new.wait_for(last)

        await holds(lambda: withdrawn == ["versions:v1:all"])
        there = await labels_there(database_url)
        assert there["slicings"] == ["versions:v2"]
        assert there["shards"] == there["status"] == ["versions:v2:all"]
        assert there["tables"] == ["doc_versions_v2"]
        assert len((await new.get("versions", "s0")).numbers) == 40


async def test_old_code_that_is_started_again_leaves_out_what_was_retired(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with app_of(database_url, 1) as old:
        await fill(old, 20)
        await old.catch_up()
    async with app_of(database_url, 2) as new:
        await new.catch_up()
        await new.retire("versions:v1")

    async with app_of(database_url, 1) as old:
        await old.start()
        await old.append("s0", Ticked(1))  # whatever else it does goes on
        assert await old.catch_up() > 0

        with pytest.raises(UnknownProjection, match="versions:v1 was retired in this database"):
            await old.get(Versions, "s0")
        assert await old.pools.control.run(slicing.declare("versions:v1", 1)) is None
    assert (await labels_there(database_url))["tables"] == ["doc_versions_v2"]
    assert (await labels_there(database_url))["shards"] == ["versions:v2:all"]


async def test_other_processes_with_the_same_code_wait_for_it_no_more(database_url: str) -> None:
    async with app_of(database_url, 1, 2) as one, app_of(database_url, 1, 2) as other:
        await one.start()
        await one.retire("versions:v1")
        last = await fill(other, 10)

        await other.wait_for(last)
        assert {shard.label for shard in await other.progress()} == {"versions:v2"}


async def test_old_inline_code_leaves_what_was_retired_alone(database_url: str) -> None:
    async with (
        app_of(database_url, 1, lifecycle="inline") as old,
        app_of(database_url, 2, lifecycle="inline") as new,
    ):
        await old.append("s", Ticked(1))
        await new.retire("versions:v1")

        await old.append("s", Ticked(2))
        await new.append("s", Ticked(3))

        assert await new.get("versions", "s") == Numbers([3])
        assert (await labels_there(database_url))["tables"] == ["doc_versions_v2"]


async def test_what_the_code_has_is_not_retired_and_neither_is_what_nobody_knows(
    database_url: str,
) -> None:
    async with app_of(database_url, 1, 2) as app:
        for what in ("versions", "versions:v2", VersionsToo):
            with pytest.raises(InvalidDefinition, match="versions:v2 is what this code has"):
                await app.retire(what)
        with pytest.raises(UnknownProjection, match="nothing is known of 'others:v1'"):
            await app.retire("others:v1")
        with pytest.raises(InvalidDefinition, match="is not a version of a projection"):
            await app.retire("versions:1")
        await app.retire(Versions)
        await app.retire("versions:v1")  # again: nothing is left to do
        with pytest.raises(UnknownProjection, match="was retired"):
            await app.retire(Versions)

        assert app.registry.labels() == ["versions:v2"]
        last = await fill(app, 10)
        await app.catch_up()
        await app.wait_for(last, timeout=1.0)


async def test_a_retired_version_takes_its_work_and_its_letters_with_it(database_url: str) -> None:
    async with app_of(database_url, 1) as old:
        await old.catch_up()
    async with app_of(database_url, 2) as new, connected(database_url) as connection:
        await connection.execute(
            """INSERT INTO strandline.dead_letters
                 (label, shard, tenant, key, position, stream, version, type, status)
               VALUES ('versions:v1', 'versions:v1:all', 'default', 's', 1, 's', 1, 'ticked', 'parked');
               INSERT INTO strandline.work (name) VALUES ('versions:v1:all'), ('versions:v2:all');
               INSERT INTO strandline.assignments (work) VALUES ('versions:v1:all'), ('versions:v2:all')"""
        )
        await new.retire("versions:v1")

    there = await labels_there(database_url)
    assert there["letters"] == []
    assert there["work"] == ["versions:v2:all"]


async def test_a_version_that_is_being_rebuilt_is_not_retired(database_url: str) -> None:
    async with app_of(database_url, 1, 2) as app, connected(database_url) as connection:
        await app.catch_up()
        await connection.execute(
            "INSERT INTO strandline.rebuilds (label, purpose, parts) VALUES ('versions:v1', 'rebuild', 1)"
        )

        with pytest.raises(ConflictError, match="is being rebuilt"):
            await app.retire("versions:v1")


async def test_retiring_waits_for_readers_and_tells_whom_it_waited_for(database_url: str) -> None:
    async with app_of(database_url, 1, 2) as app, connected(database_url) as reader:
        await app.append("s", Ticked(1))
        await app.catch_up()
        async with reader.transaction():
            await reader.fetch("SELECT * FROM strandline.doc_versions_v1")

            with pytest.raises(AnswerTimedOut, match="the tables of versions:v1 were not dropped"):
                await app.retire("versions:v1", timeout=0.2)
        await app.retire("versions:v1")

    assert (await labels_there(database_url))["tables"] == ["doc_versions_v2"]


# ---- who raises the side effects


async def test_a_new_version_is_silent_until_the_old_one_is_retired(database_url: str) -> None:
    async with app_of(database_url, 1) as old:
        last = await fill(old, 30)
        await old.catch_up()
    async with app_of(database_url, 2) as new:
        await new.catch_up()
        assert await effects_after(database_url) == {"versions:v1": 0, "versions:v2": None}

        await new.retire("versions:v1")

        assert await effects_after(database_url) == {"versions:v2": last}
    async with app_of(database_url, 2, 3) as newer:
        await newer.catch_up()
        assert await effects_after(database_url) == {"versions:v2": last, "versions:v3": None}


async def test_what_a_retired_version_has_raised_is_not_raised_again_by_one_declared_later(
    database_url: str,
) -> None:
    async with app_of(database_url, 1) as old:
        last = await fill(old, 30)
        await old.catch_up()
    async with app_of(database_url) as nobody:
        await nobody.retire("versions:v1")
    async with app_of(database_url, 2) as new:
        await new.catch_up()

        assert await effects_after(database_url) == {"versions:v2": last}
        assert len(await new.query("versions")) == 3


async def test_one_version_speaks_also_when_an_inline_one_becomes_async(database_url: str) -> None:
    async with app_of(database_url, 1, lifecycle="inline") as app:
        await app.append("s", Ticked(1))
    async with app_of(database_url, 2) as app:
        await app.catch_up()
    async with app_of(database_url, 1) as app:
        await app.append("s", Ticked(2))
        await app.catch_up()

        assert await app.get(Versions, "s") == Seen([1, 2])
        assert await effects_after(database_url) == {"versions:v1": None, "versions:v2": 0}
