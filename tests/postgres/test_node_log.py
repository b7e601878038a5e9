"""The node log: written, read by what it is about, and kept small."""

from __future__ import annotations

import json
from uuid import uuid4

from clusters import tables

from strandline.cluster.log import prune, read, write


async def test_entries_are_read_newest_first(database_url: str) -> None:
    async with tables(database_url) as found:
        node = uuid4()
        await found.run(write("node_joined", node=node, name="a", detail={"host": "h"}))
        await found.run(write("work_failed", work="w", epoch=3))

        newest, oldest = await found.run(read())

        assert (newest.kind, newest.work, newest.epoch, newest.detail) == (
            "work_failed",
            "w",
            3,
            "{}",
        )
        assert (newest.node, newest.name) == (None, "")
        assert (oldest.node, oldest.name, json.loads(oldest.detail)) == (node, "a", {"host": "h"})
        assert newest.id > oldest.id
        assert newest.at >= oldest.at


async def test_entries_are_chosen_by_what_they_are_about(database_url: str) -> None:
    async with tables(database_url) as found:
        first, second = uuid4(), uuid4()
        await found.run(write("node_joined", node=first, name="a"))
        await found.run(write("node_joined", node=second, name="a"))
        await found.run(write("work_claimed", node=second, name="a", detail={"work": {"w": 4}}))
        await found.run(write("work_paused", detail={"work": ["v", "w"]}))
        await found.run(write("work_failed", node=first, name="a", work="w"))

        async def kinds(**about: object) -> list[str]:
            return [one.kind for one in await found.run(read(**about))]  # type: ignore[arg-type]

        assert await kinds(node=first) == ["work_failed", "node_joined"]
        assert await kinds(name="a", limit=2) == ["work_failed", "work_claimed"]
        assert await kinds(work="w") == ["work_failed", "work_paused", "work_claimed"]
        assert await kinds(work="v") == ["work_paused"]
        assert await kinds(kinds=["node_joined", "plan"]) == ["node_joined", "node_joined"]
        assert await kinds(kinds=[]) == []
        last = (await found.run(read(1)))[0].id
        assert await kinds(after=last - 1) == ["work_failed"]
        assert await kinds(after=last) == []


async def test_the_log_is_kept_short_by_age_and_by_rows(database_url: str) -> None:
    async with tables(database_url) as found:
        await found.one(
            """INSERT INTO strandline.node_log (kind, at)
               SELECT 'plan', clock_timestamp() - make_interval(days => greatest(0, 10 - n))
                 FROM generate_series(1, 30) n"""
        )

        assert await found.run(prune(age=5 * 86_400.0, rows=100)) == 5
        assert await found.run(prune(rows=20)) == 5
        assert await found.run(prune(rows=0, most=15)) == 15
        assert await found.run(prune(rows=0, most=15)) == 5
        assert await found.run(prune(rows=0)) == 0


async def test_of_a_long_log_a_portion_is_deleted_at_a_time(database_url: str) -> None:
    async with tables(database_url) as found:
        await found.one(
            """INSERT INTO strandline.node_log (kind) SELECT 'plan' FROM generate_series(1, 12000)"""
        )

        assert [await found.run(prune()) for _ in range(3)] == [1000, 1000, 0]
        assert await found.one("SELECT min(id) FROM strandline.node_log") == 2001
