"""A survey: one picture of the whole database, whoever asks for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from clusters import Tables, tables
from tally import holds, tally_app

from strandline.app import App
from strandline.cluster.node import Identity
from strandline.errors import DatabaseUnavailable, SchemaOutOfDate
from strandline.postgres.pools import Pool
from strandline.survey.facts import NODE_STATES, SHARD_STATES, ShardFacts, Survey
from strandline.survey.survey import take

NODE = {"pulse": "loop", "pulse_interval": 0.1, "node_ttl": 5.0, "survey_interval": 0.1}


async def append(connection: Any, stream: str, events: int = 1) -> int:
    """Append *events* to *stream*; the last position."""
    body = json.dumps([{"type": "ticked", "data": {"number": 1}}] * events)
    return int(
        await connection.fetchval("SELECT position FROM strandline.append($1, $2)", stream, body)
    )


async def declared(found: Tables, label: str, *, at: int | None = 0, parts: int = 1) -> None:
    """The shards of *label*, which have run up to *at*; None: never."""
    await found.one(
        "INSERT INTO strandline.slicings (label, parts, wanted) VALUES ($1, $2, $2)", label, parts
    )
    await found.one(
        """INSERT INTO strandline.shards (name, position, claimed_at, epoch)
           SELECT $1 || CASE WHEN $2 = 1 THEN ':all' ELSE ':' || n || '/' || $2 END,
                  coalesce($3, 0), CASE WHEN $3::bigint IS NULL THEN NULL ELSE clock_timestamp() END, 1
             FROM generate_series(1, $2::integer) AS n""",
        label,
        parts,
        at,
    )


async def said(found: Tables, shard: str, state: str, node: str, reason: str = "") -> None:
    """The last word of the agent of *shard*."""
    await found.one(
        """INSERT INTO strandline.shard_status (name, state, node, reason, attempts, next_at, category)
           VALUES ($1, $2, $3, $4, 3, clock_timestamp() + interval '10 s', 'apply')""",
        shard,
        state,
        node,
        reason,
    )


def shard(survey: Survey, name: str) -> ShardFacts:
    return next(one for one in survey.shards if one.name == name)


@asynccontextmanager
async def cluster(url: str) -> AsyncIterator[tuple[Tables, Identity, Identity]]:
    """Tables with two nodes, of which the first leads and detects."""
    async with tables(url, node_ttl=60.0) as found:
        first = await found.node("first", "orders:v1", "mails")
        second = await found.node("second", "orders:v1")
        await found.leads(first)
        await found.work("high-water", owner=first)
        yield found, first, second


# ---- what there is


async def test_an_empty_database_is_a_picture_too(database_url: str) -> None:
    async with tables(database_url) as found:
        survey = await take(found.pool)

    assert (survey.mode, survey.shards, survey.nodes, survey.leader) == ("solo", (), (), None)
    assert (survey.mark.position, survey.mark.highest, survey.mark.difference) == (0, 0, 0)
    assert (survey.mark.age, survey.mark.is_stale) == (0.0, False)
    assert survey.mark.detector_state == "missing"  # no app is open on the database
    assert survey.missing == ()
    assert survey.server is not None
    assert survey.server.connections > 0
    assert (survey.letters, survey.queues, survey.builds, survey.work.rows) == ((), (), (), ())


async def test_a_cluster_is_told_with_its_leader_nodes_and_work(database_url: str) -> None:
    async with cluster(database_url) as (found, first, second):
        await declared(found, "orders:v1", parts=2)
        await found.work("orders:v1:1/2", owner=first)
        await found.work("orders:v1:2/2", owner=second)
        for name, node in (("orders:v1:1/2", "first"), ("orders:v1:2/2", "second")):
            await said(found, name, "running", node)
        survey = await take(found.pool)

    assert survey.mode == "cluster"
    assert survey.leader is not None
    assert (survey.leader.name, survey.leaderless, survey.leader_changes) == ("first", None, 1)
    told = {one.name: (one.state, one.work, one.shards, one.is_leader) for one in survey.nodes}
    assert told == {"first": ("active", 2, 1, True), "second": ("active", 1, 1, False)}
    assert (survey.mark.detector, survey.mark.detector_state) == ("first", "alive")
    states = {one.name: (one.state, one.node, one.parts) for one in survey.shards}
    assert states == {
        "orders:v1:1/2": ("running", "first", 2),
        "orders:v1:2/2": ("running", "second", 2),
    }
    assert survey.work.counts["running"] == 3
    assert [one.name for one in survey.candidates] == ["first", "second"]


# ---- the states of shards


async def test_every_way_a_shard_can_be_down_has_its_own_word(database_url: str) -> None:
    async with cluster(database_url) as (found, first, second):
        gone = await found.node("gone", "orders:v1", state="active", silent=100.0)
        for label, at in {
            "orders:v1": 1,
            "mails": 1,
            "unknown:v1": 1,
            "never:v1": None,
            "dead": 1,
        }.items():
            await declared(found, label, at=at)
        await found.one("UPDATE strandline.nodes SET labels = labels || '{never:v1,dead}'::text[]")
        await found.work("orders:v1:all", owner=gone)  # it does not beat any more
        await found.work("mails:all", owner=None)
        await found.work("unknown:v1:all", "never:v1:all", owner=None)
        await found.work("dead:all", owner=second)
        await found.leave(second.id, state="dead")
        survey = await take(found.pool)

    states = {one.name: one.state for one in survey.shards}
    assert states == {
        "orders:v1:all": "silent",
        "mails:all": "unassigned",
        "unknown:v1:all": "orphaned",
        "never:v1:all": "never_started",
        "dead:all": "silent",
    }
    assert all(one.is_down and one.reason for one in survey.shards)
    assert set(states.values()) <= set(SHARD_STATES)
    kinds = {one.name: (one.projection, one.kind) for one in survey.shards}
    assert kinds["mails:all"] == ("mails", "subscription")
    assert kinds["orders:v1:all"] == ("orders:v1", "projection")
    here = {one.name: one.state for one in survey.nodes_here}
    assert here == {"first": "active", "gone": "silent"}
    assert set(here.values()) <= set(NODE_STATES)
    assert {one.name: one.result for one in survey.nodes if not one.is_here} == {"second": "dead"}


async def test_what_fails_is_paused_and_what_an_operator_stopped_is_held(
    database_url: str,
) -> None:
    async with cluster(database_url) as (found, first, _):
        await declared(found, "orders:v1")
        await declared(found, "mails")
        await found.work("orders:v1:all", owner=first)
        await found.work("mails:all", owner=None)
        await found.one(
            "UPDATE strandline.work SET paused_at = clock_timestamp(), reason = 'mail server moves'"
            " WHERE name = 'mails:all'"
        )
        await said(found, "orders:v1:all", "paused", "first", "boom")
        survey = await take(found.pool)

    failing, held = shard(survey, "orders:v1:all"), shard(survey, "mails:all")
    assert (failing.state, failing.paused_by, failing.reason) == ("paused", "failure", "boom")
    assert (failing.category, failing.attempts) == ("apply", 3)
    assert failing.next_at is not None
    assert failing.next_at > survey.taken_at
    assert (held.state, held.paused_by, held.reason) == ("held", "operator", "mail server moves")
    assert not failing.is_down
    assert not held.is_down
    assert survey.work.counts["held"] == 1


async def test_the_word_of_a_former_owner_is_not_that_of_the_new_one(database_url: str) -> None:
    async with cluster(database_url) as (found, first, second):
        await declared(found, "orders:v1")
        await declared(found, "mails")
        await found.work("orders:v1:all", owner=second)
        await said(found, "orders:v1:all", "paused", "first", "boom")  # before it was moved
        await found.work("mails:all", owner=None)
        await found.one(
            "UPDATE strandline.assignments SET target = $1 WHERE work = 'mails:all'", first.id
        )
        survey = await take(found.pool)

    claiming = {one.name: (one.state, one.node) for one in survey.shards}
    assert claiming == {"orders:v1:all": ("claiming", "second"), "mails:all": ("claiming", "first")}


async def test_work_that_the_leader_cannot_place_says_why(database_url: str) -> None:
    async with cluster(database_url) as (found, first, _):
        await declared(found, "mails")
        await found.work("mails:all", owner=None)
        await found.one(
            """INSERT INTO strandline.node_log (kind, node, name, detail)
               VALUES ('plan', $1, 'first', '{"unplaced": {"no room": ["mails:all"]}}')""",
            first.id,
        )
        survey = await take(found.pool)

    told = shard(survey, "mails:all")
    assert (told.state, told.reason) == ("unplaced", "no room")
    assert [one.name for one in survey.work.unplaced] == ["mails:all"]


async def test_a_projection_that_no_node_ever_declared_is_told_to_who_names_it(
    database_url: str,
) -> None:
    async with cluster(database_url) as (found, *_):
        await found.one(
            "INSERT INTO strandline.lifecycles (label, lifecycle) VALUES ('old:v1', 'retired'),"
            " ('now:v1', 'inline')"
        )
        await found.one("UPDATE strandline.nodes SET labels = labels || '{new:v1}'::text[]")
        survey = await take(found.pool, labels=["new:v1", "old:v1", "now:v1"])
        unasked = await take(found.pool)

    assert [(one.name, one.state) for one in survey.shards] == [("new:v1:all", "never_started")]
    assert unasked.shards == ()


async def test_a_cluster_without_nodes_has_stopped_and_is_leaderless(database_url: str) -> None:
    async with cluster(database_url) as (found, first, second):
        await declared(found, "orders:v1")
        await found.work("orders:v1:all", owner=None)
        await said(found, "orders:v1:all", "stopped", "second")
        await found.one(
            "UPDATE strandline.leases SET holder = NULL, expires_at = '-infinity',"
            " renewed_at = clock_timestamp() - interval '1 minute'"
        )
        await found.one("UPDATE strandline.assignments SET owner = NULL, target = NULL")
        for node in (first, second):
            await found.leave(node.id)
        await found.one(
            """UPDATE strandline.nodes SET report = '{"result": "forced", "seconds": 25.0}'
                WHERE id = $1""",
            first.id,
        )
        survey = await take(found.pool)

    assert survey.mode == "cluster"
    assert shard(survey, "orders:v1:all").state == "stopped"
    assert survey.leader is None
    assert survey.leaderless == pytest.approx(60.0, abs=30.0)
    assert {one.name: one.result for one in survey.nodes} == {"first": "forced", "second": "clean"}
    assert survey.mark.detector_state == "missing"


# ---- lag and the mark


async def test_lag_is_measured_against_what_is_visible_and_not_against_the_mark(
    database_url: str,
) -> None:
    async with cluster(database_url) as (found, first, _):
        await declared(found, "orders:v1", at=2)
        await found.work("orders:v1:all", owner=first)
        await said(found, "orders:v1:all", "running", "first")
        await append(await found.connect(), "s", 10)  # nobody moves the mark
        await found.one(
            "UPDATE strandline.events SET recorded_at = clock_timestamp() - interval '1 minute'"
        )
        survey = await take(found.pool, stale_after=600.0)

    assert (survey.mark.position, survey.mark.highest, survey.mark.difference) == (0, 10, 10)
    told = shard(survey, "orders:v1:all")
    assert (told.position, told.lag_events) == (2, 8)
    assert told.lag_seconds == pytest.approx(60.0, abs=30.0)


async def test_a_mark_that_is_held_names_who_holds_it(database_url: str) -> None:
    async with cluster(database_url) as (found, *_):
        slow = await asyncpg.connect(
            database_url, server_settings={"application_name": "nightly report"}
        )
        found.opened.append(slow)
        await slow.execute("BEGIN")
        await append(slow, "held")
        writer = await found.connect()
        await append(writer, "s", 3)
        await found.one(
            "UPDATE strandline.high_water SET settled_at = clock_timestamp() - interval '1 minute'"
        )
        await asyncio.sleep(0.3)  # what is asserted below is an age
        bystander = await found.connect()
        await bystander.execute("BEGIN")
        await append(bystander, "innocent")
        survey = await take(found.pool, stale_after=0.2)
        level = await take(found.pool, stale_after=60.0)

    mark = survey.mark
    assert mark.is_stale
    assert mark.age >= 0.2
    assert [holder.application for holder in mark.holders] == ["nightly report"]
    assert "strandline gaps cancel" in mark.holders[0].cure
    assert mark.detector_state == "alive"  # it does its duty: somebody holds the mark
    assert not level.mark.is_stale
    server = survey.server
    assert server is not None
    assert server.oldest_idle is not None
    assert server.oldest_idle.application == "nightly report"
    assert server.oldest_idle.holds_mark
    assert not server.oldest_idle.is_ours


async def test_a_mark_that_nobody_holds_and_nobody_moves_has_a_silent_detector(
    database_url: str,
) -> None:
    async with cluster(database_url) as (found, *_):
        await append(await found.connect(), "s", 3)
        await found.one(
            "UPDATE strandline.events SET recorded_at = clock_timestamp() - interval '1 minute'"
        )
        await found.one(
            "UPDATE strandline.high_water SET settled_at = clock_timestamp() - interval '1 minute'"
        )
        survey = await take(found.pool, second_look=0.05)

    assert (survey.mark.detector, survey.mark.detector_state) == ("first", "silent")
    assert survey.mark.holders == ()


async def test_a_detector_whose_node_is_not_there_is_told(database_url: str) -> None:
    async with cluster(database_url) as (found, first, second):

        async def state(me: Identity = second, *, detects: bool = True) -> str:
            return (await take(found.pool, detects=detects, me=me.id)).mark.detector_state

        assert await state() == "alive"
        # A node knows of its own detector what the database does not.
        assert await state(first, detects=False) == "silent"
        await found.age(first.id, 100.0)
        assert await state() == "silent"
        await found.leave(first.id, state="dead")
        assert await state() == "missing"
        await found.one("UPDATE strandline.assignments SET owner = NULL")
        assert await state() == "missing"


# ---- gaps, letters, jobs, builds


async def test_gaps_letters_and_dead_jobs_are_counted_by_kind(database_url: str) -> None:
    async with cluster(database_url) as (found, *_):
        await found.one(
            """INSERT INTO strandline.gaps (first, last, kind, proof)
               VALUES (1, 3, 'rolled_back', '{}'), (5, 5, 'forced', '{"late": {"events": 1}}'),
                      (7, 8, 'forced', '{}')"""
        )
        await found.one(
            """INSERT INTO strandline.dead_letters
                      (label, shard, tenant, key, position, stream, version, type, status, category,
                       error, fingerprint)
               SELECT 'orders:v1', 'orders:v1:all', 't', 'k', n, 's', n, 'x',
                      CASE WHEN n < 4 THEN 'parked' WHEN n < 6 THEN 'skipped' ELSE 'resolved' END,
                      CASE WHEN n IN (1, 4) THEN 'apply' END,
                      CASE WHEN n IN (1, 4) THEN '{"class": "ValueError", "message": "no"}'::jsonb END,
                      CASE WHEN n IN (1, 4) THEN 'abc' ELSE '' END
                 FROM generate_series(1, 7) AS n"""
        )
        await found.one(
            """INSERT INTO strandline.dead_jobs (id, created_at, priority, attempt, max_attempts,
                                                 flags, queue, kind, args)
               SELECT n, clock_timestamp(), 5, 1, 1, 0, 'mails', 'send', '{}'
                 FROM generate_series(1, 3) AS n"""
        )
        await found.one("INSERT INTO strandline.jobs (id, queue, kind) VALUES (10, 'default', 'x')")
        survey = await take(found.pool)

    mark = survey.mark
    assert (mark.rolled_back_numbers, mark.forced_gaps, mark.forced_numbers) == (3, 2, 3)
    assert mark.late_events == 1
    letters = {one.status: (one.count, one.failed, one.error) for one in survey.letters}
    assert letters == {
        "parked": (3, 1, "ValueError: no"),
        "skipped": (2, 1, "ValueError: no"),
    }
    assert {one.fingerprint for one in survey.letters} == {"abc"}
    queues = {one.name: (one.state.available, one.dead) for one in survey.queues}
    assert queues == {"default": (1, 0), "mails": (0, 3)}


async def test_a_build_under_way_is_told_with_its_shards(database_url: str) -> None:
    async with cluster(database_url) as (found, first, _):
        await declared(found, "orders:v1", at=100)
        await declared(found, "orders:v1~1", at=25)
        await found.one(
            """INSERT INTO strandline.rebuilds (label, purpose, parts, state, target, started_at)
               VALUES ('orders:v1', 'rebuild', 1, 'building', 100, clock_timestamp())"""
        )
        await found.work("orders:v1~1:all", owner=first)
        await said(found, "orders:v1~1:all", "running", "first")
        survey = await take(found.pool)

    (build,) = survey.builds
    assert (build.projection, build.state, build.shards) == ("orders:v1", "building", 1)
    assert (build.position, build.target, build.done, build.known_by) == (25, 100, 0.25, 2)
    assert build.idle is not None
    told = shard(survey, "orders:v1~1:all")
    assert (told.state, told.kind, told.projection) == ("rebuilding", "build", "orders:v1")


# ---- when not everything answers


async def test_what_cannot_be_answered_is_an_error_and_no_picture(database_url: str) -> None:
    async with tables(database_url) as found:
        await found.one("DELETE FROM strandline.high_water")
        with pytest.raises(SchemaOutOfDate, match="high_water"):
            await take(found.pool)
    found.pool.fails = DatabaseUnavailable("gone")
    with pytest.raises(Exception, match=r"."):
        await take(found.pool)


async def test_a_survey_reads_one_snapshot_and_leaves_no_transaction_open(
    database_url: str,
) -> None:
    async with cluster(database_url) as (found, *_):
        pool = Pool("survey", database_url, 1, found.settings)
        await pool.open()
        try:
            await take(pool)
            async with pool.session() as session:
                open_ones = await session.connection.fetchval(
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                    " AND state LIKE 'idle in transaction%'"
                )
                level = await session.connection.fetchval("SHOW transaction_isolation")
        finally:
            await pool.close()

    assert open_ones == 0
    assert level == "read committed"


# ---- of real nodes


@pytest.mark.parametrize("mode", ["solo", "cluster"])
async def test_a_real_node_is_seen_at_work_and_after_it_has_gone(
    database_url: str, mode: str
) -> None:
    options: dict[str, Any] = {"mode": mode} if mode == "solo" else NODE
    async with tables(database_url) as found:
        app: App = tally_app(database_url, **options)
        async with app:
            await app.start()

            async def runs() -> Survey | None:
                survey = await take(found.pool)
                states = {one.state for one in survey.shards}
                done = states == {"running"} and survey.mark.detector_state == "alive"
                return survey if done else None

            survey = await holds(runs, timeout=30.0)
            assert survey.mode == mode
            assert {one.name for one in survey.shards} == {"versions:v1:all", "positions:v1:all"}
            assert (survey.leader is None) == (mode == "solo")
            assert survey.server is not None
            assert survey.server.apps == 1
        after = await take(found.pool)

    assert {one.state for one in after.shards} == {"stopped"}
    assert after.mark.detector_state == "missing"


async def test_a_solo_app_on_the_tables_of_a_cluster_that_has_crashed(database_url: str) -> None:
    async with tables(database_url) as found:
        crashed = await found.node("crashed", "versions:v1", silent=100.0)
        await found.work("high-water", "versions:v1:all", "positions:v1:all", owner=crashed)
        async with tally_app(database_url, mode="solo", survey_interval=0.05) as app:
            await app.start()

            async def runs() -> Survey | None:
                survey = await take(found.pool)
                return survey if {one.state for one in survey.shards} == {"running"} else None

            from_outside = await holds(runs, timeout=30.0)
            own = await holds(lambda: app._readings()["survey"].last, timeout=30.0)

    assert (from_outside.mode, own.mode) == ("solo", "solo")
    assert from_outside.mark.detector_state == "alive"
    assert from_outside.leaderless is None


async def test_a_node_behind_a_pooler_knows_that_it_is_there(database_url: str) -> None:
    async with tables(database_url) as found:
        await declared(found, "versions:v1")
        await said(found, "versions:v1:all", "running", "me")
        seen = await take(found.pool, detects=True)
        stranger = await take(found.pool)

    assert [one.state for one in seen.shards] == ["running"]
    assert [one.state for one in stranger.shards] == ["silent"]  # no app is connected
