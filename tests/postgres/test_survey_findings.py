"""What a reviewer found in the survey and the telemetry of the mark, each as a test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import asyncpg
from bouncer import bouncer, needs_pgbouncer
from clusters import Tables, tables
from tally import fill, holds, tally_app

from strandline.cluster import work_control
from strandline.errors import DatabaseUnavailable
from strandline.postgres.pools import Pool
from strandline.survey.office import SurveyOffice
from strandline.survey.survey import take
from strandline.telemetry.survey_readings import SURVEY_READERS


async def append(connection: Any, stream: str) -> None:
    """Append one event to *stream*."""
    body = json.dumps([{"type": "ticked", "data": {"number": 1}}])
    await connection.execute("SELECT strandline.append($1, $2)", stream, body)


async def declared(found: Tables, *labels: str) -> None:
    """Each of *labels* has one shard, which has run."""
    for label in labels:
        await found.one(
            "INSERT INTO strandline.slicings (label, parts, wanted) VALUES ($1, 1, 1)", label
        )
        await found.one(
            "INSERT INTO strandline.shards (name, position, claimed_at, epoch)"
            " VALUES ($1 || ':all', 1, clock_timestamp(), 1)",
            label,
        )


def reading(survey: Any, name: str) -> float:
    """The one value of the gauge ``strandline_NAME``."""
    facts = {"survey": type("Statistics", (), {"last": survey})}
    ((value, _),) = SURVEY_READERS[f"strandline_{name}"](facts)
    return value


# ---- states of shards


async def test_work_of_a_dead_node_is_told_by_what_is_known_of_the_work(database_url: str) -> None:
    async with tables(database_url, node_ttl=60.0) as found:
        first = await found.node("first", "paused", "moved", "stuck", "waits")
        dead = await found.node("dead", "paused", "moved", "stuck", "waits", "gone")
        await found.leads(first)
        labels = ("paused", "moved", "stuck", "waits", "gone")
        await declared(found, *labels)
        await found.work(*(f"{label}:all" for label in labels), owner=dead)
        await found.leave(dead.id, state="dead")  # it still owns all of that: nobody took it over
        await found.one("UPDATE strandline.assignments SET target = NULL")
        await found.one(
            "UPDATE strandline.work SET paused_at = clock_timestamp(), reason = 'mail server moves'"
            " WHERE name = 'paused:all'"
        )
        await found.one(
            "UPDATE strandline.assignments SET target = $1 WHERE work = 'moved:all'", first.id
        )
        await found.one(
            """INSERT INTO strandline.node_log (kind, node, name, detail)
               VALUES ('plan', $1, 'first', '{"unplaced": {"no room": ["stuck:all"]}}')""",
            first.id,
        )
        survey = await take(found.pool)

    told = {one.name: (one.state, one.node) for one in survey.shards}
    assert told == {
        "paused:all": ("held", ""),
        "moved:all": ("claiming", "first"),
        "stuck:all": ("unplaced", ""),
        "waits:all": ("silent", "dead"),
        "gone:all": ("orphaned", ""),
    }
    counts = survey.work.counts  # the same words as those of the work
    assert (counts["held"], counts["unplaced"], counts["running"]) == (1, 1, 0)


async def test_the_log_is_read_once_and_not_for_each_work_without_a_target(
    database_url: str,
) -> None:
    async with tables(database_url) as found:
        await found.work(*(f"orders:v1:{part}/5" for part in range(1, 6)))
        await found.one("INSERT INTO strandline.node_log (kind) VALUES ('work_released')")
        sql = work_control.LIST.sql("strandline")
        plan = json.loads(await found.one(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}"))

    looks = [one["Actual Loops"] for one in _nodes(plan[0]["Plan"]) if _reads(one, "node_log")]
    assert looks == [1]


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from _nodes(part)


def _reads(node: dict[str, Any], table: str) -> bool:
    return node.get("Relation Name") == table


# ---- when not everything answers


async def test_a_part_that_the_role_may_not_read_is_named_and_the_rest_is_told(
    database_url: str,
) -> None:
    async with tables(database_url) as found:
        role = f"reader_{database_url.rpartition('/')[2]}"
        admin = await found.connect()
        await admin.execute(
            f"CREATE ROLE {role} LOGIN PASSWORD 'reader'; GRANT USAGE ON SCHEMA strandline TO {role};"
            f" GRANT SELECT ON ALL TABLES IN SCHEMA strandline TO {role};"
            f" REVOKE SELECT ON strandline.dead_letters FROM {role}"
        )
        place = urlsplit(database_url)
        url = place._replace(netloc=f"{role}:reader@{place.hostname}:{place.port}").geturl()
        pool = Pool("survey", url, 1, found.settings)
        try:
            await pool.open()
            survey = await take(pool)
        finally:
            await pool.close()
            await admin.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")

    assert survey.missing == ("letters",)
    assert survey.server is not None


async def test_a_table_that_is_locked_is_not_waited_for_on_a_connection_of_the_mark(
    database_url: str,
) -> None:
    async with tables(database_url) as found:
        blocker = await found.connect()
        for table in ("slicings", "dead_letters"):
            async with blocker.transaction():
                await blocker.execute(f"LOCK TABLE strandline.{table} IN ACCESS EXCLUSIVE MODE")
                if table == "slicings":
                    error: Exception = await _failed(take(found.pool))
                    # Not that its time was over: the server gave up on the lock, much earlier.
                    assert isinstance(error.__cause__, asyncpg.LockNotAvailableError)
                else:
                    survey = await take(found.pool)
                    assert survey.missing == ("letters",)
                    assert survey.server is not None
                    assert survey.seconds < 2.0
        assert (await take(found.pool)).missing == ()
        async with found.pool.session() as session:
            left = await session.connection.fetchval("SHOW lock_timeout")
    assert left == "0"


async def _failed(survey: Any) -> Exception:
    try:
        await survey
    except DatabaseUnavailable as error:
        return error
    raise AssertionError("it did not fail")


# ---- the mark


async def test_a_mark_that_moves_while_it_is_looked_at_again_is_not_stale(
    database_url: str,
) -> None:
    async with tables(database_url, node_ttl=60.0) as found:
        node = await found.node("first")
        await found.work("high-water", owner=node)
        writer = await found.connect()
        await append(writer, "s")
        minute = "clock_timestamp() - interval '1 minute'"
        await found.one(f"UPDATE strandline.events SET recorded_at = {minute}")
        await found.one(f"UPDATE strandline.high_water SET settled_at = {minute}")
        before = found.pool.statistics().taken
        looking = asyncio.create_task(take(found.pool, second_look=1.0))
        await holds(lambda: found.pool.statistics().taken == before + 4, timeout=30.0)
        await holds(lambda: found.pool.statistics().in_use == 0, timeout=30.0)  # all but the second
        await writer.execute(
            "UPDATE strandline.high_water SET position = 1, settled_at = clock_timestamp()"
        )
        mark = (await looking).mark

    assert mark.detector_state == "alive"
    assert (mark.is_stale, mark.position, mark.age) == (False, 1, 0.0)


async def test_forced_numbers_are_counted_for_projections_that_other_nodes_run(
    database_url: str,
) -> None:
    app = tally_app(database_url, mode="solo", force_after=0.2, stale_after=0.1, poll_interval=0.05)
    async with tables(database_url) as found, app:
        await declared(found, "elsewhere:v1", "old:v1", "elsewhere:v1~7")
        await found.one("UPDATE strandline.slicings SET build = 7 WHERE label = 'elsewhere:v1~7'")
        await found.one("INSERT INTO strandline.lifecycles VALUES ('old:v1', 'retired')")
        await app.start()
        slow, writer = await found.connect(), await found.connect()
        await slow.execute("BEGIN")
        await append(slow, "late")
        await append(writer, "s")
        told: dict[str, int] = {}

        def passed(notice: Any) -> None:
            if notice.name == "forced_gap_passed":
                label = notice.facts["projection"]
                told[label] = told.get(label, 0) + notice.facts["numbers"]

        app.signals.listen(passed)
        await app.signals.wait_for("high_water_forced", timeout=30.0)
        assert told == {"versions:v1": 1, "positions:v1": 1, "elsewhere:v1": 1}
        await slow.execute("ROLLBACK")


# ---- the office


async def test_a_stop_does_not_wait_for_the_second_opinion_on_the_detector(
    database_url: str,
) -> None:
    async with tables(database_url, survey_interval=60.0) as found:
        office = SurveyOffice(found.url, found.settings, found.signals, detects=lambda: False)
        office.begin_alone()
        await found.signals.wait_for("surveyed", timeout=30.0)
        begun = asyncio.get_running_loop().time()
        await office.stop(timeout=30.0)
        assert asyncio.get_running_loop().time() - begun < 1.0  # SECOND_LOOK is longer


@needs_pgbouncer
async def test_a_solo_node_behind_a_pooler_surveys_with_one_control_connection(
    database_url: str,
) -> None:
    async with bouncer(database_url) as pooled:
        app = tally_app(
            pooled,
            mode="solo",
            pooler="transaction",
            control_connections=1,
            survey_interval=0.05,
            stale_after=60.0,
        )
        async with app:
            await app.start()
            await fill(app, 20)

            def level() -> Any:
                last = app._readings()["survey"].last
                runs = last and {one.state for one in last.shards} == {"running"}
                return last if runs and last.mark.position == 20 else None

            survey = await holds(level, timeout=30.0)

    assert survey.missing == ()


# ---- the server


async def test_what_is_told_of_the_server_can_be_compared(database_url: str) -> None:
    async with tables(database_url) as found:
        busy = await found.connect()
        await busy.execute("BEGIN")
        await busy.execute("SELECT pg_sleep(0.3)")
        idle = await found.connect()
        await idle.execute("BEGIN")
        await asyncio.sleep(0.2)  # what is asserted below is an age
        await busy.execute("SELECT 1")  # old, but in use: not the one that somebody has forgotten
        database = database_url.rpartition("/")[2]
        await idle.execute("SAVEPOINT s")  # in use as well, so that both ages are small
        await found.one(f"ALTER DATABASE {database} CONNECTION LIMIT 1")
        survey = await take(found.pool)
        await found.one(f"ALTER DATABASE {database} CONNECTION LIMIT -1")

    server = survey.server
    assert server is not None
    longest = max(one.idle for one in server.transactions if one.is_idle)
    assert reading(survey, "oldest_idle_transaction_seconds") == longest
    assert server.oldest_transaction is not None
    assert reading(survey, "oldest_transaction_seconds") >= 0.5
    # Clients of all databases are counted, so a limit of this one is no measure for them.
    room = server.room
    assert reading(survey, "server_connections") == room.connections
    limit = reading(survey, "server_connections_limit")
    assert limit == room.max_connections - room.reserved
