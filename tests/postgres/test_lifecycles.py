"""Who keeps a projection, its appends or nodes, and changing that."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import pytest
from kept import assert_kept_exactly_once, kept_app, kept_sync_app
from kinds import Closed, Paid
from tally import Dropped, Ticked, Versions, assert_applied_exactly_once, connected, tally_app

from strandline.app import App, versions
from strandline.daemon import slicing
from strandline.errors import AnswerTimedOut, InvalidDefinition, StrandlineError

SOLO: dict[str, Any] = {"mode": "solo", "poll_interval": 0.1}
PAID = Paid("Ada", "Bo", 7)


async def kept(operator: Any) -> dict[str, tuple[str, int | None]]:
    rows = await operator.fetch("SELECT label, lifecycle, until FROM strandline.lifecycles")
    return {row["label"]: (row["lifecycle"], row["until"]) for row in rows}


def old(url: str, **settings: Any) -> App:
    return tally_app(url, lifecycle="inline", **{**SOLO, **settings})


def new(url: str, **settings: Any) -> App:
    return tally_app(url, lifecycle="async", **{**SOLO, **settings})


@dataclass(frozen=True)
class Noted:
    pass


# ---- inline to async


async def test_nodes_go_on_where_appends_have_ended(database_url: str) -> None:
    async with old(database_url) as app:
        await app.append("s", [Ticked(1), Ticked(2)])
        await app.append("gone", [Ticked(1), Dropped()])
        last = (await app.append("again", [Ticked(1), Dropped(), Ticked(2)])).position

    async with new(database_url) as app, connected(database_url) as operator:
        assert await kept(operator) == {
            "versions:v1": ("async", last),
            "positions:v1": ("async", last),
        }
        assert {one.position for one in await app.progress()} <= {last, None}
        await app.append("s", Ticked(3))
        await app.append("gone", Ticked(2))
        await app.append("again", Dropped())
        await app.catch_up()

        await assert_applied_exactly_once(app)
        after = await operator.fetchval("SELECT min(effects_after) FROM strandline.slicings")
        assert after == last, "what was kept by appends raises no side effects later"


async def test_every_kind_goes_on_cut_as_the_code_wants(database_url: str) -> None:
    async with kept_app(database_url, "inline") as app:
        for number in range(12):
            await app.append(f"s{number % 3}", [PAID, Closed(), PAID])

    async with (
        kept_app(database_url, "async", shards=3, mode="solo") as app,
        connected(database_url) as operator,
    ):
        await app.append("s1", [Closed(), PAID])
        await app.catch_up()

        assert await assert_kept_exactly_once(app, operator) == 38
        assert len(await app.progress()) == 12


async def test_old_code_that_is_open_leaves_its_appends_to_the_nodes(database_url: str) -> None:
    async with old(database_url) as before:
        await before.append("s", Ticked(1))
        async with new(database_url) as after:
            await before.append("s", Ticked(2))
            assert (await before.get(Versions, "s")).versions == [1], "not in the append any more"

            await after.catch_up()
            await assert_applied_exactly_once(before)


async def test_old_code_that_is_opened_again_leaves_them_too_and_says_so(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with old(database_url) as app:
        await app.append("s", Ticked(1))
    async with new(database_url):
        pass

    async with old(database_url) as app:
        await app.append("s", Ticked(2))
        assert "versions:v1 is inline in this code, but nodes keep it since position 1" in (
            caplog.text
        )
    async with new(database_url) as app:
        await app.catch_up()
        await assert_applied_exactly_once(app)


async def test_a_blocking_app_follows_and_changes_by_the_same_rules(database_url: str) -> None:
    def inline() -> None:
        with kept_sync_app(database_url, "inline") as app:
            app.append("s", [PAID, PAID])

    def change() -> None:
        with kept_sync_app(database_url, "inline") as before:
            with kept_sync_app(database_url, "async") as after:
                before.append("s", PAID)
                after.append("s", PAID)
            before.append("s", Closed())

    await asyncio.to_thread(inline)
    await asyncio.to_thread(change)

    async with (
        kept_app(database_url, "async", mode="solo") as app,
        connected(database_url) as operator,
    ):
        await app.catch_up()
        assert await assert_kept_exactly_once(app, operator) == 5
        assert {one[1] for one in (await kept(operator)).values()} == {2}


def single(url: str, lifecycle: str) -> App:
    """Only what takes no turns: appends of others go on beside a transaction."""
    app = App("single", url, **SOLO)
    app.event("ticked")(Ticked)
    app.event("dropped")(Dropped)
    app.event("noted")(Noted)
    app.projection("versions", lifecycle=lifecycle)(Versions)
    return app


async def assert_single_exactly_once(app: App, stream: str) -> None:
    ticked = [one for one in await app.read_stream(stream) if isinstance(one.data, Ticked)]
    assert (await app.get(Versions, stream)).versions == [one.version for one in ticked]


async def test_the_change_waits_for_an_append_under_way(database_url: str) -> None:
    after = single(database_url, "async")
    async with single(database_url, "inline") as before:
        async with before.transaction() as tx:
            await tx.append("s", Ticked(1))
            opening = asyncio.ensure_future(after.open())
            done, _ = await asyncio.wait({opening}, timeout=0.6)
            assert not done

            begun = time.monotonic()  # meanwhile others do not queue behind the change for long
            await asyncio.gather(*(before.append(f"t{number}", Ticked()) for number in range(3)))
            assert time.monotonic() - begun < 2.0
            await tx.append("s", Ticked(2))
        await opening
        try:
            await before.append("s", Ticked(3))
            await after.catch_up()
            for stream in ("s", "t0", "t1", "t2"):
                await assert_single_exactly_once(after, stream)
        finally:
            await after.close()


async def test_an_append_that_does_not_end_is_told_of_and_nothing_changes(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "SETTLED_WITHIN", 0.3)
    async with old(database_url) as before, connected(database_url) as operator:
        async with before.transaction() as tx:
            await tx.append("s", Ticked(1))
            with pytest.raises(AnswerTimedOut, match="a change of lifecycle was not made"):
                await new(database_url).open()

        assert {one[0] for one in (await kept(operator)).values()} == {"inline"}
        await assert_applied_exactly_once(before)


async def test_a_transaction_with_an_older_snapshot_fails_instead_of_applying_twice(
    database_url: str,
) -> None:
    async with old(database_url) as before, connected(database_url) as connection:
        async with connection.transaction(isolation="repeatable_read"):
            await connection.fetch("SELECT 1 FROM strandline.lifecycles")  # its snapshot
            async with new(database_url) as after:
                with pytest.raises(StrandlineError, match="could not serialize"):
                    await before.join(connection).append("s", Ticked(1))
                await connection.execute("ROLLBACK; BEGIN")
        async with new(database_url) as after:
            await after.append("s", Ticked(1))
            await after.catch_up()
            await assert_applied_exactly_once(after)


async def test_no_append_is_the_victim_when_it_holds_what_another_waits_for(
    database_url: str,
) -> None:
    """The change waits for one append, that for another, and that for the change."""
    before, after = single(database_url, "inline"), single(database_url, "async")
    async with before, connected(database_url) as operator:
        async with before.transaction() as first:
            await first.append("shared", Noted())  # no projection: it does not ask yet

            async def second() -> None:
                async with before.transaction() as tx:
                    await tx.append("own", Ticked(1))
                    await tx.append("shared", Noted())  # waits for the first

            waiting = asyncio.ensure_future(second())
            await waited_for(operator, "transactionid")
            opening = asyncio.ensure_future(after.open())  # waits for the second
            await waited_for(operator, "relation")
            await first.append("third", Ticked(1))  # waits for the change
        await waiting
        await opening
        try:
            await before.append("own", Ticked(2))
            await after.catch_up()
            for stream in ("own", "third"):
                await assert_single_exactly_once(after, stream)
        finally:
            await after.close()


async def waited_for(operator: Any, kind: str) -> None:
    """Wait until somebody waits for a lock of that kind."""
    async with asyncio.timeout(5.0):
        while not await operator.fetchval(
            "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = $1", kind
        ):
            await asyncio.sleep(0.005)


# ---- what was never recorded


async def test_what_has_rows_and_no_shards_was_kept_by_appends(database_url: str) -> None:
    async with old(database_url) as app:
        await app.append("s", [Ticked(1), Ticked(2)])
    async with connected(database_url) as operator:
        await operator.execute("DELETE FROM strandline.lifecycles")
        async with new(database_url) as app:
            await app.append("s", Ticked(3))
            await app.catch_up()

            await assert_applied_exactly_once(app)
            assert set((await kept(operator)).values()) == {("async", 2)}


async def test_what_has_shards_was_kept_by_nodes(database_url: str) -> None:
    async with new(database_url) as app:
        await app.append("s", Ticked(1))
        await app.catch_up()
    async with connected(database_url) as operator:
        await operator.execute("DELETE FROM strandline.lifecycles")
        async with new(database_url) as app:
            await app.catch_up()
            await assert_applied_exactly_once(app)
            assert set((await kept(operator)).values()) == {("async", None)}
        await operator.execute("DELETE FROM strandline.lifecycles")
        async with old(database_url) as app:
            await app.append("s", Ticked(2))
            await assert_applied_exactly_once(app)


async def test_what_is_new_begins_as_its_code_says(database_url: str) -> None:
    async with old(database_url) as app, connected(database_url) as operator:
        assert set((await kept(operator)).values()) == {("inline", None)}
        assert await app.progress() == []
        assert await operator.fetchval("SELECT count(*) FROM strandline.slicings") == 0


# ---- async to inline


async def test_appends_go_on_where_nodes_have_ended(database_url: str) -> None:
    async with new(database_url) as app:
        await app.append("s", [Ticked(1), Ticked(2)])
        await app.catch_up()

    async with old(database_url) as app, connected(database_url) as operator:
        await app.append("s", Ticked(3))

        await assert_applied_exactly_once(app)
        assert set((await kept(operator)).values()) == {("inline", None)}
        for table in ("shards", "slicings", "shard_status", "work"):
            left = await operator.fetchval(f"SELECT count(*) FROM strandline.{table}")
            assert left == 0, table


async def test_nodes_that_are_behind_refuse_it_in_words(database_url: str) -> None:
    async with new(database_url) as app:
        await app.append("s", Ticked(1))
        await app.catch_up()
        await app.append("s", Ticked(2))

    with pytest.raises(
        InvalidDefinition,
        match="positions:v1 is kept by nodes and cannot become inline now: the log ends at"
        " position 2, positions:v1:all is at 1; let a node with the code of before",
    ):
        await old(database_url).open()
    async with new(database_url) as app:
        await app.catch_up()
        await assert_applied_exactly_once(app)
    async with old(database_url) as app:
        await app.append("s", Ticked(3))
        await assert_applied_exactly_once(app)


async def test_a_node_that_runs_it_refuses_it_in_words(database_url: str) -> None:
    running = new(database_url, mode="cluster", pulse="loop", node_name="runner")
    async with running:
        await running.start()
        await running.append("s", Ticked(1))
        await running.catch_up()

        with pytest.raises(InvalidDefinition, match="nodes still run it: runner; stop them first"):
            await old(database_url).open()


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        (
            """INSERT INTO strandline.dead_letters
                 (label, shard, tenant, key, position, stream, version, type, status)
               VALUES ('versions:v1', 'versions:v1:all', 'd', 's', 1, 's', 1, 'ticked', 'parked')""",
            "1 dead letters of it are open",
        ),
        (
            """INSERT INTO strandline.rebuilds (label, purpose, parts)
               VALUES ('versions:v1', 'rebuild', 1)""",
            "a rebuild of it is under way",
        ),
    ],
)
async def test_what_is_still_open_refuses_it_in_words(
    database_url: str, sql: str, words: str
) -> None:
    async with new(database_url) as app:
        await app.append("s", Ticked(1))
        await app.catch_up()
    async with connected(database_url) as operator:
        await operator.execute(sql)

        with pytest.raises(InvalidDefinition, match=words):
            await old(database_url).open()
        assert await operator.fetchval("SELECT count(*) FROM strandline.shards") == 2


async def test_a_node_does_not_declare_what_is_inline(database_url: str) -> None:
    async with old(database_url) as app, connected(database_url) as operator:
        found = await app.pools.control.run(slicing.declare("versions:v1", 1))

        assert found is None
        assert await operator.fetchval("SELECT count(*) FROM strandline.shards") == 0
