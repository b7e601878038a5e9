"""Schedules: written down, fired once each, made up for after a time without a leader."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from duties import Tables, tables
from tally import holds

from strandline.app import App
from strandline.errors import InvalidDefinition, NotFound
from strandline.events.causes import caused_by
from strandline.jobs import cron, enqueue
from strandline.jobs.cron import FiredAlready
from strandline.jobs.flow import batch
from strandline.jobs.job import Unique
from strandline.jobs.right import Right
from strandline.jobs.templates import made

ALONE = Right()
QUICK = {
    "pulse_interval": 0.1,
    "pulse_deadline": 1.0,
    "node_ttl": 5.0,
    "leader_ttl": 3.0,
    "leader_margin": 0.5,
    "poll_interval": 0.1,
    "pulse": "loop",
}


def daily(spec: str = "0 9 * * *", **options: Any) -> App:
    """An app that declares one job and its schedule."""
    app = App("cron", "postgresql://unused")

    @app.cron(spec, **options)
    @app.job(queue="reports")
    async def report(fire_time: datetime, kind: str = "daily") -> None: ...

    app.kinds.bind()
    return app


async def declared(t: Tables, app: App) -> list[str]:
    schedules = app.declared_schedules.bind(app.kinds)
    left: list[str] = await t.run(cron.declare(schedules, app.kinds.prepare))
    return left


async def fire_all(t: Tables, **options: Any) -> list[str]:
    """Fire what is due as a leader does, until nothing is; the moments that jobs were told."""
    while due := await t.run(cron.due_schedules()):
        for schedule in due:
            await fired(t, schedule)
    rows = await t.rows("SELECT args FROM strandline.jobs ORDER BY id")
    return [json.loads(row["args"])["fire_time"] for row in rows]


async def fired(t: Tables, schedule: cron.DueSchedule) -> None:
    moments, next_at, _ = cron.plan(schedule)
    first = await t.one("SELECT 1024 * nextval('strandline.job_ids')")
    jobs = [made(schedule.job, first + place, one) for place, one in enumerate(moments)]
    async with t.connection.transaction():
        await t.run(cron.fire(ALONE, schedule, moments, next_at, jobs, enqueue.insert))


async def set_back(t: Tables, by: str) -> datetime:
    """Make it so that nobody has looked at schedules for *by*; when the first was due then."""
    found: datetime = await t.one(
        """UPDATE strandline.schedules SET next_at = date_trunc('hour', now() - $1::text::interval)
           RETURNING next_at""",
        by,
    )
    return found


# ---- declaring


async def test_a_declared_schedule_stays_due_over_restarts(database_url: str) -> None:
    async with tables(database_url) as t:
        assert await declared(t, daily()) == []
        was = await set_back(t, "3 days")

        await declared(t, daily())

        row = await t.run(cron.find_schedule("report"))
        assert (row.next_at, row.spec, row.set_by) == (was, "0 9 * * *", "code")


async def test_other_times_count_from_now(database_url: str) -> None:
    async with tables(database_url) as t:
        for app in (daily("0 10 * * *"), daily(zone="Asia/Tokyo")):
            await declared(t, daily())
            await set_back(t, "3 days")

            await declared(t, app)

            row = await t.run(cron.find_schedule("report"))
            assert row.now < row.next_at <= row.now + timedelta(days=1)


async def test_what_an_operator_has_set_is_not_changed_by_code(database_url: str) -> None:
    async with tables(database_url) as t:
        await declared(t, daily())
        await t.rows("UPDATE strandline.schedules SET set_by = 'operator', spec = '0 1 * * *'")

        await declared(t, daily("0 12 * * *"))

        assert (await t.run(cron.find_schedule("report"))).spec == "0 1 * * *"


async def test_a_schedule_that_code_declares_no_more_is_told_and_goes_on(database_url: str) -> None:
    async with tables(database_url) as t:
        await declared(t, daily(name="old"))

        assert await declared(t, daily()) == ["old"]

        assert [row.name for row in await t.run(cron.list_schedules())] == ["old", "report"]


def test_the_decorator_may_stand_above_or_below_the_job() -> None:
    app = App("cron", "postgresql://unused")

    @app.job
    @app.cron("@daily")
    async def below() -> None: ...

    @app.cron("@daily", zone="Europe/Berlin", missed="all", name="another")
    @app.job
    async def above() -> None: ...

    app.schedule("third", "*/5 * * * *", below.call().with_(priority=1))

    found = {one.name: one for one in app.declared_schedules.bind(app.kinds)}
    assert sorted(found) == ["another", "below", "third"]
    assert found["another"].missed == "all"
    assert found["third"].call.job is below


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        ("0 0 30 2 *", {}),
        ("often", {}),
        ("@daily", {"zone": "Mars"}),
        ("@daily", {"missed": "some"}),
        ("@daily", {"name": "x" * 201}),
    ],
)
def test_what_cannot_work_is_refused_where_it_is_declared(
    spec: str, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidDefinition):
        daily(spec, **options)


def test_a_name_is_declared_once_and_only_jobs_have_schedules() -> None:
    app = daily()
    with pytest.raises(InvalidDefinition, match="declared already"):
        app.schedule("report", "@daily", app.kinds.get("report").call())

    @app.cron("@daily")
    async def no_job() -> None: ...

    with pytest.raises(InvalidDefinition, match="is no job"):
        app.declared_schedules.bind(app.kinds)


# ---- firing


async def test_a_moment_is_fired_with_its_time_into_its_queue(database_url: str) -> None:
    async with tables(database_url) as t:
        await declared(t, daily("0 * * * *"))
        was = await set_back(t, "0 seconds")

        assert await fire_all(t) == [was.isoformat().replace("+00:00", "Z")]

        (job,) = await t.rows("SELECT * FROM strandline.jobs")
        assert (job["queue"], job["kind"], job["state"]) == ("reports", "report", 0)
        assert json.loads(job["meta"])["schedule"] == "report"
        row = await t.run(cron.find_schedule("report"))
        assert (row.fired, row.last_at, row.last_job) == (1, was, job["id"])
        assert row.next_at == was + timedelta(hours=1)


async def test_hours_without_a_leader_are_skipped_or_made_up_for(database_url: str) -> None:
    async with tables(database_url) as t:
        for missed in ("skip", "once", "all"):
            await declared(t, daily("0 * * * *", missed=missed, name=missed))
        await set_back(t, "4 hours")
        before = datetime.now(UTC)

        await fire_all(t)

        rows = {row.name: row for row in await t.run(cron.list_schedules())}
        if before.minute > 1 and before.hour == datetime.now(UTC).hour:  # else one is on time
            assert {name: row.fired for name, row in rows.items()} == {
                "skip": 0,
                "once": 1,
                "all": 5,
            }
        for row in rows.values():
            assert row.now < row.next_at <= row.now + timedelta(hours=1)


async def test_two_leaders_never_fire_a_moment_twice(database_url: str) -> None:
    """Both have seen that it is due; the second waits for the first, and is rolled back."""
    async with tables(database_url) as one, tables(database_url) as two:
        await declared(one, daily("0 * * * *"))
        await set_back(one, "2 hours")
        (seen,) = await one.run(cron.due_schedules())

        outcomes = await asyncio.gather(fired(one, seen), fired(two, seen), return_exceptions=True)

        assert sorted(map(type, outcomes), key=str) == sorted([type(None), FiredAlready], key=str)
        assert await one.one("SELECT count(*) FROM strandline.jobs") == 1
        assert (await one.run(cron.find_schedule("report"))).fired == 1


async def test_a_paused_schedule_rests_and_makes_up_for_nothing(database_url: str) -> None:
    async with tables(database_url) as t:
        await declared(t, daily("0 * * * *"))
        await t.run(cron.pause("report"))
        await set_back(t, "5 hours")

        assert await fire_all(t) == []
        assert await t.run(cron.next_due_in()) is None

        row = await t.run(cron.resume("report"))

        assert row.paused_at is None
        assert row.now < row.next_at <= row.now + timedelta(hours=1)
        assert await fire_all(t) == []


async def test_it_can_be_run_out_of_turn_also_while_it_is_paused(database_url: str) -> None:
    async with tables(database_url) as t:
        await declared(t, daily())
        paused = await t.run(cron.pause("report"))

        assert await t.run(cron.run_now("report", 17, enqueue.insert)) == 17

        row = await t.run(cron.find_schedule("report"))
        assert (row.fired, row.last_job, row.next_at) == (1, 17, paused.next_at)
        assert await t.state(17) == 0


async def test_a_schedule_that_is_not_there_is_told(database_url: str) -> None:
    async with tables(database_url) as t:
        for op in (cron.pause("x"), cron.resume("x"), cron.find_schedule("x"), cron.forget("x")):
            with pytest.raises(NotFound):
                await t.run(op)


async def test_a_call_with_a_unique_key_is_not_enqueued_while_the_last_one_lives(
    database_url: str,
) -> None:
    async with tables(database_url) as t:
        app = App("cron", "postgresql://unused")

        @app.job
        async def slow(fire_time: datetime) -> None: ...

        app.schedule(
            "slow", "0 * * * *", slow.call(datetime.now(UTC)).with_(unique="one"), missed="all"
        )
        app.kinds.bind()
        await declared(t, app)
        await set_back(t, "3 hours")

        await fire_all(t)

        assert await t.one("SELECT count(*) FROM strandline.jobs") == 1


async def test_a_job_that_is_unique_by_its_moment_is_fired_for_each(database_url: str) -> None:
    async with tables(database_url) as t:
        app = App("cron", "postgresql://unused")

        @app.cron("0 * * * *", missed="all")
        @app.job(unique=Unique(on_duplicate="raise"))
        async def report(fire_time: datetime) -> None: ...

        app.kinds.bind()
        await declared(t, app)
        await set_back(t, "2 hours")

        told = await fire_all(t)

        assert len(told) == len(set(told)) >= 2
        assert (await t.run(cron.find_schedule("report"))).fired == len(told)


async def test_what_is_counted_and_named_is_what_was_enqueued(database_url: str) -> None:
    async with tables(database_url) as t:
        app = App("cron", "postgresql://unused")

        @app.cron("0 * * * *", missed="all")
        @app.job(unique=Unique(by=(), on_duplicate="raise"))
        async def report(fire_time: datetime) -> None: ...

        app.kinds.bind()
        await declared(t, app)
        await set_back(t, "3 hours")

        assert len(await fire_all(t)) == 1
        (job,) = await t.rows("SELECT id FROM strandline.jobs")
        row = await t.run(cron.find_schedule("report"))
        assert (row.fired, row.last_job) == (1, job["id"])

        async with t.connection.transaction():
            assert await t.run(cron.run_now("report", 17, enqueue.insert)) == job["id"]
        row = await t.run(cron.find_schedule("report"))
        assert (row.fired, row.last_job) == (1, job["id"])


async def test_a_key_that_is_made_of_the_moment_is_refused(database_url: str) -> None:
    async with tables(database_url) as t:
        app = App("cron", "postgresql://unused")

        @app.cron("@daily")
        @app.job(key=lambda fire_time: f"{fire_time:%d}")
        async def report(fire_time: datetime) -> None: ...

        app.kinds.bind()
        with pytest.raises(InvalidDefinition, match="'report'.*key"):
            await declared(t, app)


def test_a_call_that_its_function_cannot_take_is_refused_where_it_is_declared() -> None:
    app = App("cron", "postgresql://unused")

    @app.job
    async def send(to: str, fire_time: datetime) -> None: ...

    for call in (send.call(), send.call("ada", wrong=1)):  # type: ignore[call-arg]
        with pytest.raises(InvalidDefinition, match="schedule 'letter'.*'send'"):
            app.schedule("letter", "@daily", call)
    with pytest.raises(InvalidDefinition, match="schedule 'send'.*'to'"):
        app.cron("@daily")(send)
    for given in (send, batch([send.call("ada")]), print):
        what: Any = given
        with pytest.raises(InvalidDefinition, match=r"job\.call"):
            app.schedule("letter", "@daily", what)
    app.schedule("letter", "@daily", send.call("ada"))


async def test_jobs_do_not_name_what_led_to_their_declaration_as_their_cause(
    database_url: str,
) -> None:
    async with tables(database_url) as t:
        with caused_by(17):
            await declared(t, daily())
        row = await t.run(cron.find_schedule("report"))

        meta = json.loads(row.job)["job"]["meta"]
        assert json.loads(meta) == {"schedule": "report"}


# ---- on nodes


async def test_a_leader_fires_what_it_cannot_run_and_what_cannot_be_fired_stops_nobody(
    database_url: str,
) -> None:
    told: list[Any] = []
    async with tables(database_url) as t:
        await declared(t, daily("0 * * * *", name="a sound one"))
        await declared(t, daily("0 * * * *", name="another"))
        await set_back(t, "1 minute")
        await t.rows("UPDATE strandline.schedules SET zone = 'Mars' WHERE name = 'another'")
        app = App("leader", database_url, **QUICK)
        app.signals.listen(lambda notice: told.append(notice))
        async with app:
            await app.start()

            await holds(lambda: _named(told, "schedule_fired"), 30)
            await holds(lambda: _named(told, "schedule_failed"), 30)

        jobs = await t.rows("SELECT meta FROM strandline.jobs")
        assert [json.loads(row["meta"])["schedule"] for row in jobs] == ["a sound one"]
        failed = await t.run(cron.find_schedule("another"))
        assert "Mars" in (failed.error or "")


@pytest.mark.parametrize(
    "change", ['{"priority": 100000}', '{"queue": null}', '{"args": 5}', '{"queue": "refused"}']
)
async def test_a_row_that_cannot_be_stored_stops_nobody(database_url: str, change: str) -> None:
    async with tables(database_url) as t:
        await declared(t, daily("0 * * * *", name="a sound one"))
        await declared(t, daily("0 * * * *", name="another"))
        await set_back(t, "1 minute")
        await t.connection.execute(
            """CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS
               $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = 'QQ001'; END $$;
               CREATE TRIGGER no BEFORE INSERT ON strandline.jobs FOR EACH ROW
               WHEN (NEW.queue = 'refused') EXECUTE FUNCTION no()"""
        )
        await t.rows(
            """UPDATE strandline.schedules
                  SET job = jsonb_set(job::jsonb, '{job}', job::jsonb->'job' || $1::jsonb)::text,
                      next_at = next_at - interval '1 minute'
                WHERE name = 'another'""",
            change,
        )
        app = App("leader", database_url, **QUICK)
        async with app:
            await app.start()

            await holds(lambda: t.one("SELECT count(*) FROM strandline.jobs"), 30)
            await holds(
                lambda: t.one("SELECT error FROM strandline.schedules WHERE name = 'another'"), 30
            )


async def test_a_schedule_that_has_to_wait_keeps_no_others_from_being_fired(
    database_url: str,
) -> None:
    """Somebody's transaction has its unique key, and does not end."""
    async with tables(database_url) as t, tables(database_url) as other:
        app = App("leader", database_url, **QUICK, statement_timeout=0.5)

        @app.job
        async def report(number: int) -> None: ...

        app.schedule("held", "0 0 1 1 *", report.call(1).with_(unique="held"))
        app.schedule("sound", "0 0 1 1 *", report.call(2))
        async with app, other.connection.transaction():
            await other.rows(
                "INSERT INTO strandline.jobs (id, kind, unique_key) VALUES (1, 'k', 'held')"
            )
            await t.rows(
                """UPDATE strandline.schedules SET next_at = now() -
                          CASE name WHEN 'held' THEN 30 ELSE 10 END * interval '1 second'"""
            )
            await app.start()

            sound = "SELECT fired FROM strandline.schedules WHERE name = 'sound'"
            await holds(lambda: t.one(sound), 30)


async def test_two_nodes_fire_every_second_once(database_url: str) -> None:
    moments: list[datetime] = []

    def app_of(name: str) -> App:
        app = App(name, database_url, **QUICK)

        @app.cron("* * * * * *", missed="all")
        @app.job
        async def tick(fire_time: datetime) -> None:
            moments.append(fire_time)

        return app

    first, second = app_of("one"), app_of("two")
    async with first, second:
        await first.start()
        await second.start()
        await holds(lambda: len(moments) >= 2, 30)
        await first.stop()  # the other one leads from now on
        seen = len(moments)
        await holds(lambda: len(moments) > seen, 30)

    assert len(set(moments)) == len(moments)
    assert max(moments) - min(moments) == timedelta(seconds=len(moments) - 1)


def _named(told: list[Any], name: str) -> bool:
    return any(notice.name == name for notice in told)
