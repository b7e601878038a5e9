"""Parts of a projection: what a build of one reads, and which parts there are."""

from __future__ import annotations

from typing import Any

import pytest
from tally import (
    Positions,
    Ticked,
    Versions,
    assert_applied_exactly_once,
    connected,
    fill,
    tally_app,
)

from strandline.app import App
from strandline.daemon.feed import Appetite, Feed, Page
from strandline.daemon.scope import EVERYTHING, Kept, Scope, scope_of
from strandline.errors import InvalidInput
from strandline.projections.fold import POSITION, STREAM, TENANT, VERSION
from strandline.projections.projection import Projection
from strandline.projections.slice import Slice, slices
from strandline.projections.table_declaration import Table
from strandline.projections.table_rules import column, count, on

LEAN = Appetite(("ticked",), False, 10)


async def everything(app: App, appetite: Appetite) -> list[tuple[str, str, int]]:
    """Page after page to the end: tenant, stream and version of each event."""
    feed = Feed(app.pools.work, app.registry.types, app.settings)
    feed.mark = await app.highest_position()
    found, after = [], 0
    while True:
        page = await feed.page(after, appetite)
        assert [row[POSITION] for row in page.rows] == sorted({row[POSITION] for row in page.rows})
        found += [(row[TENANT], row[STREAM], row[VERSION]) for row in page.rows]
        if page.ceiling == after:
            return found
        after = page.ceiling


async def test_a_scope_of_streams_reads_these_streams_and_nothing_else(database_url: str) -> None:
    async with tally_app(database_url) as app:
        await fill(app, 300)
        await app.append("s1", [Ticked()] * 5, tenant="other")

        narrow = Scope("default", streams=("s1", "s4", "none")).narrowed(LEAN)
        found = await everything(app, narrow)

    assert sorted(found) == sorted(
        [("default", "s1", n) for n in range(1, 51)] + [("default", "s4", n) for n in range(1, 41)]
    )


async def test_a_stream_is_found_by_its_index_however_long_the_log(database_url: str) -> None:
    async with tally_app(database_url) as app:
        await fill(app, 3000, streams=300)
        feed = Feed(app.pools.work, app.registry.types, app.settings)
        feed.mark = await app.highest_position()
        async with connected(database_url) as connection:
            await connection.execute("ANALYZE strandline.events")
            before = await touched(connection)
            await feed.page(0, Scope("default", streams=("s7",)).narrowed(LEAN))
            await app.pools.work.close()  # so that its backends tell what they did
            after = await touched(connection)

    assert after - before <= 60, "rows of events that were looked at"


async def touched(connection: object) -> int:
    """Rows of events read so far by any backend that has ended, or told."""
    found: int = await connection.fetchval(  # type: ignore[attr-defined]  # asyncpg's
        """SELECT pg_stat_force_next_flush() IS NULL OR true, pg_stat_clear_snapshot() IS NULL OR true,
                  coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)
             FROM pg_stat_user_tables WHERE relid = 'strandline.events'::regclass""",
        column=2,
    )
    return found


async def test_a_scope_of_a_tenant_gets_no_event_of_others(database_url: str) -> None:
    async with tally_app(database_url) as app:
        await fill(app, 100)
        for _ in range(3):
            await app.append("s1", [Ticked()] * 5, tenant="other")

        whole = await everything(app, Scope("other").narrowed(LEAN))
        cut = [
            await everything(app, Scope("other").narrowed(Appetite(None, True, 4, part)))
            for part in slices(3)
        ]

    assert whole == [("other", "s1", n) for n in range(1, 16)]
    assert sorted(one for part in cut for one in part) == whole


async def test_a_narrowed_appetite_takes_no_page_that_was_read_before(database_url: str) -> None:
    many = Appetite(("ticked",), False, 100)
    async with tally_app(database_url) as app:
        await fill(app, 20)
        feed = Feed(app.pools.work, app.registry.types, app.settings)
        feed.mark, feed.agents = 20, 2
        assert len((await feed.page(0, many)).rows) == 20
        async with connected(database_url) as connection:
            await connection.execute("DELETE FROM strandline.events WHERE position = 5")

        assert len((await feed.page(0, many)).rows) == 20, "a shared page, kept for others"
        assert len((await feed.page(0, EVERYTHING.narrowed(many))).rows) == 19
        feed.forget_pages()
        assert len((await feed.page(0, many)).rows) == 19


# ---- rebuilds of parts


class Spied:
    """Events that builds have read, in pages of their own."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.rows: list[Any] = []
        page = Feed.page

        async def spied(feed: Feed, after: int, appetite: Appetite) -> Page:
            found = await page(feed, after, appetite)
            if not appetite.shares:
                self.rows += found.rows
            return found

        patch.setattr(Feed, "page", spied)


async def spoil(url: str, table: str) -> dict[tuple[str, str], str]:
    """Make every document wrong, as only a rebuild mends; what they are then."""
    async with connected(url) as connection:
        await connection.execute(f"""UPDATE strandline.{table} SET data = '{{"versions": [0]}}'""")
    return await documents(url, table)


async def documents(url: str, table: str) -> dict[tuple[str, str], str]:
    async with connected(url) as connection:
        found = await connection.fetch(f"SELECT tenant, id, data, xmin FROM strandline.{table}")
    return {(row["tenant"], row["id"]): f"{row['data']} {row['xmin']}" for row in found}


@pytest.mark.parametrize(
    ("table", "projection", "part", "read", "mended"),
    [
        ("doc_versions_v1", Versions, {"streams": ["s1"]}, 50, {("default", "s1")}),
        ("doc_versions_v1", Versions, {"keys": ["s1"], "tenant": "b"}, 5, {("b", "s1")}),
        ("doc_versions_v1", Versions, {"tenant": "b"}, 10, {("b", "s1"), ("b", "s2")}),
        ("doc_positions_v1", Positions, {"keys": ["1"]}, 300, {("default", "1")}),
        ("doc_positions_v1", Positions, {"keys": ["1"], "tenant": "b"}, 10, {("b", "1")}),
        ("doc_positions_v1", Positions, {"tenant": "b"}, 10, {("b", "0"), ("b", "1"), ("b", "2")}),
    ],
)
async def test_a_rebuild_of_a_part_mends_that_alone_and_reads_no_more_than_it_must(
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    table: str,
    projection: Any,
    part: dict[str, Any],
    read: int,
    mended: set[tuple[str, str]],
) -> None:
    async with tally_app(database_url, mode="solo", poll_interval=0.05) as app:
        await app.start()
        await fill(app, 300)
        for stream in ("s1", "s2"):
            await app.append(stream, [Ticked()] * 5, tenant="b")
        await app.catch_up()
        right = await documents(database_url, table)
        wrong = await spoil(database_url, table)
        spied = Spied(monkeypatch)

        await app.rebuild(projection, **part)

        now = await documents(database_url, table)
        assert {key for key in now if now[key] != wrong[key]} == mended
        for key in mended:
            assert now[key].rpartition(" ")[0] == right[key].rpartition(" ")[0]
        assert len({row[POSITION] for row in spied.rows}) == read
        assert len(spied.rows) <= 2 * read, "what it had in hand when it was sealed is read again"
        assert await app.rebuilds(ended=0) == []


async def test_a_part_goes_on_like_the_rest_after_its_rebuild(database_url: str) -> None:
    async with tally_app(database_url, mode="solo", poll_interval=0.05) as app:
        await app.start()
        await fill(app, 100)
        await app.catch_up()

        for _ in range(2):
            await app.rebuild(Versions, streams=["s1", "s2", "none"])
            await app.rebuild(Positions, keys=["2"])
            await fill(app, 70)

        await app.catch_up()
        await assert_applied_exactly_once(app)


async def test_rows_of_a_table_are_rebuilt_by_key_and_by_tenant(database_url: str) -> None:
    app = tally_app(database_url, mode="solo", poll_interval=0.05)

    @app.projection("sums")
    class Sums(Table):
        number = column(int, key="number")
        times = column(int, default=0)
        rules = (on(Ticked, times=count()),)

    async with app:
        await app.start()
        await fill(app, 100)
        await app.append("s1", [Ticked(1)] * 3, tenant="b")
        await app.catch_up()
        right = {row.number: row.times for row in await app.rows(Sums)}
        async with connected(database_url) as connection:
            await connection.execute("UPDATE strandline.table_sums_v1 SET times = -1")

        await app.rebuild(Sums, keys=["[1]", "[5]"])
        rows = {row.number: row.times for row in await app.rows(Sums)}
        assert {number for number, times in rows.items() if times != -1} == {1, 5}
        assert (rows[1], rows[5]) == (right[1], right[5])
        assert (await app.row(Sums, 1, tenant="b")).times == -1

        assert (await app.verify(Sums, keys=["[1]"])).differing == 0
        assert (await app.verify(Sums, keys=["[2]"])).differing == 1
        await app.rebuild(Sums, tenant="b")
        assert (await app.row(Sums, 1, tenant="b")).times == 3
        with pytest.raises(InvalidInput, match="JSON array"):
            await app.rebuild(Sums, keys=["1"])


def test_a_shard_keeps_what_is_in_its_slice_and_in_the_scope() -> None:
    scope = Scope("default", keys=("a", "b"))

    parts = [Kept(part, scope) for part in slices(4)]

    assert all(one.parts > 1 for one in [*parts, Kept(Slice(), scope)])
    assert [sum(one.holds("default", key) for one in parts) for key in "abc"] == [1, 1, 0]
    assert not any(one.holds("other", "a") for one in parts)
    assert Kept(Slice(), EVERYTHING).parts == 1


def test_a_scope_is_stored_and_read_back() -> None:
    for scope in (EVERYTHING, Scope("t"), Scope("t", streams=("a", "b")), Scope("t", keys=("k",))):
        assert Scope.parsed(scope.json()) == scope
    assert EVERYTHING.json() == "{}"
    assert str(EVERYTHING) == "everything"
    assert str(Scope("default", streams=("a", "b"))) == "streams a, b"
    assert str(Scope("t", keys=("a",))) == "key a of tenant t"
    assert str(Scope("default")) == "tenant default"


def test_names_are_of_the_default_tenant_and_fit_the_kind_of_projection() -> None:
    single, multi, other = Versions(), Positions(), Projection()

    assert scope_of(single) == EVERYTHING
    assert scope_of(single, streams=["a", "a"]) == Scope("default", streams=("a",))
    assert scope_of(single, keys=["a"], tenant="t") == Scope("t", streams=("a",))
    assert scope_of(multi, keys=["a"]) == Scope("default", keys=("a",))
    assert scope_of(multi, tenant="t") == Scope("t")
    for projection, given in (
        (multi, {"streams": ["a"]}),
        (other, {"tenant": "t"}),
        (single, {"streams": "a"}),
        (single, {"streams": []}),
        (single, {"streams": [""]}),
    ):
        with pytest.raises(InvalidInput):
            scope_of(projection, **given)
