"""What the leader does for jobs: each duty by itself, what refuses it, and what it does not wait for."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any

import asyncpg
import pytest
from duties import AVAILABLE, RUNNING, SCHEDULED, Tables, tables
from tally import holds

from strandline.app import App
from strandline.cluster.leading import Term
from strandline.cluster.lease import Leadership, boot_time
from strandline.errors import LeaseLost
from strandline.jobs import bloat, cron, days, pruning
from strandline.jobs.bloat import Health, Holder
from strandline.jobs.control import cancel_lost
from strandline.jobs.days import Day
from strandline.jobs.maintenance import Maintenance
from strandline.jobs.part import JobsPart
from strandline.jobs.rescue import end_sessions, rescue
from strandline.jobs.right import Right
from strandline.jobs.scheduling import promote_due
from strandline.postgres.operations import Op

ALONE = Right()
MOMENT = datetime(2026, 1, 1, tzinfo=UTC)
DUE = cron.DueSchedule("s", "* * * * *", "UTC", "once", "{}", MOMENT, MOMENT)
QUICK = {
    "pulse_interval": 0.1,
    "pulse_deadline": 1.0,
    "node_ttl": 5.0,
    "leader_ttl": 3.0,
    "leader_margin": 0.5,
    "poll_interval": 0.1,
}


# ---- the scheduler


async def test_what_is_due_becomes_available_in_the_order_in_which_it_was_due(
    database_url: str,
) -> None:
    async with tables(database_url) as t:
        late = await t.job(SCHEDULED, run_at="now() - interval '1 second'", queue="'a'")
        later = await t.job(SCHEDULED, run_at="now() + interval '1 hour'")
        first = await t.job(SCHEDULED, run_at="now() - interval '1 minute'", queue="'b'")
        newest = await t.job(AVAILABLE)

        done = await t.run(promote_due(ALONE))

        assert (done.moved, sorted(done.queues)) == (2, ["a", "b"])
        assert 3500 < done.next_in <= 3600
        assert await t.state(later) == SCHEDULED
        order = await t.rows("SELECT id FROM strandline.jobs WHERE state = 0 ORDER BY seq")
        assert [row["id"] for row in order] == [newest, first, late]


async def test_a_scheduled_job_that_somebody_has_locked_keeps_no_other_waiting(
    database_url: str,
) -> None:
    async with tables(database_url) as t, tables(database_url) as other:
        locked = await t.job(SCHEDULED, run_at="now() - interval '1 minute'")
        free = await t.job(SCHEDULED, run_at="now() - interval '1 second'")
        async with other.connection.transaction():
            await other.rows("SELECT FROM strandline.jobs WHERE id = $1 FOR UPDATE", locked)

            assert (await t.run(promote_due(ALONE))).moved == 1

            assert await t.state(free) == AVAILABLE
        assert (await t.run(promote_due(ALONE))).moved == 1


async def test_a_job_that_is_never_due_does_not_keep_the_others_from_their_time(
    database_url: str,
) -> None:
    async with tables(database_url) as t:
        await t.job(SCHEDULED, run_at="'infinity'")
        due = await t.job(SCHEDULED, run_at="now() - interval '1 second'")

        assert (await t.run(promote_due(ALONE))).next_in is None
        assert await t.state(due) == AVAILABLE


# ---- the rescuer


async def test_running_jobs_of_nodes_that_are_gone_are_available_again(database_url: str) -> None:
    async with tables(database_url) as t:
        there, dead, left = await t.node(), await t.node("dead"), await t.node("left")
        kept = await t.running(there, claimed_at="now() - interval '30 days'")
        of_the_dead = await t.running(dead, queue="'mail'", progress="'{}'")
        of_who_left = await t.running(left)
        of_nobody = await t.running(999_999)
        before = await t.one("SELECT max(seq) FROM strandline.jobs")

        done = await t.run(rescue(ALONE))

        assert (done.seen, done.freed, done.dead) == (3, 3, [])
        assert sorted(done.nodes) == sorted([dead, left, 999_999])
        assert sorted(done.queues) == ["default", "mail"]
        assert await t.state(kept) == RUNNING  # whatever its age
        for job in (of_the_dead, of_who_left, of_nobody):
            row = (await t.rows("SELECT * FROM strandline.jobs WHERE id = $1", job))[0]
            assert (row["state"], row["claim"], row["attempt"]) == (AVAILABLE, None, 1)
            assert row["seq"] > before
            (error,) = json.loads(row["errors"])
            assert (error["class"], error["attempt"]) == ("NodeLost", 1)


async def test_a_node_that_is_there_in_any_way_keeps_its_jobs(database_url: str) -> None:
    async with tables(database_url) as t:
        states = ("joining", "active", "stalled", "draining")
        jobs = [await t.running(await t.node(state)) for state in states]

        assert (await t.run(rescue(ALONE))).seen == 0
        assert [await t.state(job) for job in jobs] == [RUNNING] * 4


async def test_a_job_that_was_lost_with_three_nodes_is_a_dead_letter_once_its_attempts_are_used_up(
    database_url: str,
) -> None:
    async with tables(database_url) as t:
        number = await t.node("dead")
        job = await t.running(number, attempt=1, max_attempts=1, args="'{\"a\":1}'")
        for _ in range(2):  # it may not have begun there
            assert (await t.run(rescue(ALONE))).dead == []
            assert await t.state(job) == AVAILABLE
            await t.rows(
                "UPDATE strandline.jobs SET state = 2, attempt = attempt + 1, claim = $1",
                (number << 32) + 1,
            )

        done = await t.run(rescue(ALONE))

        assert (done.freed, done.dead, done.queues) == (0, [job], [])
        assert await t.state(job) is None
        (row,) = await t.rows("SELECT * FROM strandline.dead_jobs")
        assert (row["id"], row["attempt"], row["args"]) == (job, 3, '{"a":1}')
        assert [error["class"] for error in json.loads(row["errors"])] == ["NodeLost"] * 3


async def test_a_job_with_attempts_left_is_never_given_up_for_the_nodes_that_it_was_lost_with(
    database_url: str,
) -> None:
    async with tables(database_url) as t:
        lost = json.dumps([{"class": "NodeLost"}] * 60)
        job = await t.running(await t.node("dead"), attempt=19, max_attempts=20, errors=f"'{lost}'")

        assert (await t.run(rescue(ALONE))).freed == 1

        errors = json.loads(
            await t.one("SELECT errors::text FROM strandline.jobs WHERE id = $1", job)
        )
        assert errors[-1]["attempt"] == 19
        assert len(errors) == 60  # no more than before


async def test_many_jobs_are_rescued_in_portions(database_url: str) -> None:
    async with tables(database_url) as t:
        number = await t.node("dead")
        jobs = [await t.running(number, fetch=fetch) for fetch in range(5)]

        taken = [await t.run(rescue(ALONE, most=2)) for _ in range(3)]

        assert [done.freed for done in taken] == [2, 2, 1]
        assert [await t.state(job) for job in jobs] == [AVAILABLE] * 5


async def test_a_job_that_was_claimed_anew_meanwhile_is_not_taken_from_its_new_node(
    database_url: str,
) -> None:
    """The rescuer sees the claim of a dead node, and has to wait; then another node has the job."""
    async with tables(database_url) as t, tables(database_url) as other:
        right = await t.lead()
        dead, new = await t.node("dead"), await t.node()
        job = await t.running(dead)
        holding = other.connection.transaction()
        await holding.start()
        await other.rows("SELECT FROM strandline.leases FOR UPDATE")
        rescuing = asyncio.create_task(t.run(rescue(right)))
        async with tables(database_url) as third:
            await holds(lambda: third.one("SELECT count(*) FROM pg_locks WHERE NOT granted"))
            claim = (new << 32) + 7
            await third.rows("UPDATE strandline.jobs SET claim = $2 WHERE id = $1", job, claim)
        await holding.rollback()

        assert (await rescuing).freed == 0

        row = (await t.rows("SELECT state, claim FROM strandline.jobs WHERE id = $1", job))[0]
        assert (row["state"], row["claim"]) == (RUNNING, claim)


async def test_jobs_that_somebody_has_locked_keep_no_others_from_being_rescued(
    database_url: str,
) -> None:
    async with tables(database_url) as t, tables(database_url) as other:
        number = await t.node("dead")
        locked = [await t.running(number, fetch=1) for _ in range(2)]
        free = await t.running(number, fetch=2)
        async with other.connection.transaction():
            await other.rows("SELECT FROM strandline.jobs WHERE id = ANY ($1) FOR UPDATE", locked)

            async with asyncio.timeout(30):
                assert (await t.run(rescue(ALONE, most=2))).seen == 1

            assert await t.state(free) == AVAILABLE


async def test_a_dead_letter_whose_place_is_taken_keeps_no_others_from_being_rescued(
    database_url: str,
) -> None:
    async with tables(database_url) as t:
        number = await t.node("dead")
        lost = """'[{"class": "NodeLost"}, {"class": "NodeLost"}]'"""
        last: dict[str, Any] = {"attempt": 3, "max_attempts": 1, "errors": lost}
        bad = await t.running(number, flags=1, key="'k'", **last)
        await t.rows(
            """INSERT INTO strandline.dead_jobs
                      (id, created_at, priority, attempt, max_attempts, flags, queue, kind, key, args)
               VALUES (999, now(), 5, 1, 1, 1, 'default', 'test', 'k', '{}')"""
        )
        spent, free = await t.running(number, **last), await t.running(number)

        done = await t.run(rescue(ALONE))

        assert (done.freed, done.dead, done.stuck) == (1, [spent], 1)
        assert (await t.state(free), await t.state(bad)) == (AVAILABLE, RUNNING)
        await t.rows("DELETE FROM strandline.dead_jobs WHERE id = 999")
        assert (await t.run(rescue(ALONE))).dead == [bad]


async def test_a_lost_job_that_was_to_be_cancelled_is_at_no_moment_available(
    database_url: str,
) -> None:
    async with tables(database_url) as t:
        job = await t.running(
            *(await t.node("dead"),), cancel_at="now()", cancel_reason="'enough'", flags=2
        )
        child = await t.job(3, flags=4 | 512)
        await t.rows("INSERT INTO strandline.job_edges (child, parent) VALUES ($1, $2)", child, job)

        for _ in range(2):  # whoever found it the first time has died
            done = await t.run(rescue(ALONE))
            assert (done.freed, done.to_cancel, done.took) == (0, [job], True)
            assert await t.state(job) == RUNNING
        async with t.connection.transaction():
            portion = await t.run(cancel_lost(done.to_cancel, done.claims))

        assert portion.done == 1
        found = await t.rows("SELECT id, outcome, reason FROM strandline.job_history ORDER BY id")
        assert [tuple(row)[:2] for row in found] == [(job, "cancelled"), (child, "cancelled")]
        assert found[0]["reason"] == "enough"
        assert (await t.run(rescue(ALONE))).seen == 0


async def test_a_lost_job_is_cancelled_under_its_claim_alone(database_url: str) -> None:
    async with tables(database_url) as t:
        job = await t.running(await t.node("dead"), cancel_at="now()")
        done = await t.run(rescue(ALONE))
        await t.rows("UPDATE strandline.jobs SET claim = claim + 1")

        assert (await t.run(cancel_lost(done.to_cancel, done.claims))).done == 0
        assert await t.state(job) == RUNNING


async def test_of_two_processes_that_think_they_are_alone_the_later_one_takes_the_jobs(
    database_url: str,
) -> None:
    async with tables(database_url) as t:
        of_the_later = await t.running(90)
        await t.rows("SELECT setval(pg_get_serial_sequence('strandline.nodes', 'number'), 94)")
        of_a_dead_node = await t.running(await t.node("dead"))

        assert (await t.run(rescue(ALONE, own=77))).nodes == [95]

        assert await t.state(of_a_dead_node) == AVAILABLE
        assert await t.state(of_the_later) == RUNNING
        assert (await t.run(rescue(ALONE, own=91))).nodes == [90]


async def test_sessions_of_nodes_that_are_gone_are_ended_if_they_hold_rows_of_ours(
    database_url: str,
) -> None:
    async with tables(database_url) as t:
        gone, there = await t.node("dead"), await t.node()
        names = {
            "holds": f"strandline jobs {gone}",
            "completes": f"strandline jobs done {gone}",
            "idle": f"strandline jobs {gone}",
            "alive": f"strandline jobs {there}",
            "other": f"strandline jobs of {gone}",
        }
        sessions = {
            what: await asyncpg.connect(database_url, server_settings={"application_name": name})
            for what, name in names.items()
        }
        try:
            for what, session in sessions.items():
                if what != "idle":
                    await session.execute("BEGIN; LOCK TABLE strandline.jobs IN ROW SHARE MODE")

            ended = await t.run(end_sessions())

            assert sorted(one.application for one in ended) == sorted(
                [names["holds"], names["completes"]]
            )
            await holds(lambda: sessions["holds"].is_closed() and sessions["completes"].is_closed())
            for what in ("idle", "alive", "other"):
                await sessions[what].execute("SELECT 1")
        finally:
            for session in sessions.values():
                session.terminate()


async def test_alone_a_process_takes_the_jobs_of_all_others(database_url: str) -> None:
    async with tables(database_url) as t:
        theirs, mine = await t.running(await t.node()), await t.running(77)

        assert (await t.run(rescue(ALONE, own=77))).freed == 1

        assert await t.state(theirs) == AVAILABLE
        assert await t.state(mine) == RUNNING


# ---- the fence

TODAY = Day("job_history_20010101", date(2001, 1, 1), False, False)


def _nothing(jobs: Any) -> Op[Any]:
    yield from ()


WRITES: dict[str, Callable[[Right], Op[Any]]] = {
    "promote_due": promote_due,
    "rescue": rescue,
    "prune_history": lambda right: pruning.prune_history(right, days=1),
    "prune_periods": pruning.prune_periods,
    "prune_senders": lambda right: pruning.prune_senders(right, age=0.0),
    "prune_edges": lambda right: pruning.prune_edges(right, beyond=0),
    "prune_batches": lambda right: pruning.prune_batches(right, days=1, beyond=0),
    "make_day": lambda right: days.make(right, TODAY),
    "fire": lambda right: cron.fire(right, DUE, [], MOMENT.replace(year=2027), [], _nothing),
    "fail_schedule": lambda right: cron.fail(right, DUE, "no"),
}
SEVERAL = {"make_day", "fire"}  # statements, which their caller runs in a transaction
CONTENTS = """
    SELECT (SELECT json_agg(j ORDER BY id) FROM strandline.jobs j)::text,
           (SELECT count(*) FROM strandline.dead_jobs), (SELECT count(*) FROM strandline.job_history),
           (SELECT count(*) FROM strandline.job_periods), (SELECT count(*) FROM strandline.job_edges),
           (SELECT count(*) FROM strandline.job_batches), (SELECT count(*) FROM strandline.job_senders),
           (SELECT json_agg(s) FROM strandline.schedules s)::text,
           (SELECT count(*) FROM pg_inherits WHERE inhparent = 'strandline.job_history'::regclass)"""


async def _something_for_everybody(t: Tables) -> None:
    await t.job(SCHEDULED, run_at="now() - interval '1 second'")
    await t.running(999_999)
    await t.connection.execute("""
        INSERT INTO strandline.job_history (id, finished_at, outcome, created_at, priority, attempt, queue, kind, args)
        VALUES (1, now() - interval '90 days', 'completed', now(), 5, 1, 'default', 'test', '{}');
        INSERT INTO strandline.job_periods VALUES ('k', 1, now() - interval '1 second');
        INSERT INTO strandline.job_edges (child, parent) VALUES (100, 101);
        INSERT INTO strandline.job_senders (id, number, sent_at) VALUES (1, 1, now() - interval '1 day');
        INSERT INTO strandline.job_batches (id, members, ended_at) VALUES (9, 1, now() - interval '90 days');
        INSERT INTO strandline.schedules (name, spec, job, next_at) VALUES ('s', '* * * * *', '{}', '2026-01-01 00:00Z');
        """)


async def test_a_former_leader_changes_nothing(database_url: str) -> None:
    async with tables(database_url) as t:
        former = await t.lead()
        await t.lead()
        await _something_for_everybody(t)
        before = await t.rows(CONTENTS)

        for name, write in WRITES.items():
            in_one = t.connection.transaction() if name in SEVERAL else contextlib.nullcontext()
            with pytest.raises(LeaseLost):
                async with in_one:
                    await t.run(write(former))

            assert await t.rows(CONTENTS) == before, name


async def test_the_leader_does_what_a_former_one_may_not(database_url: str) -> None:
    async with tables(database_url) as t:
        right = await t.lead()
        await _something_for_everybody(t)
        before = await t.rows(CONTENTS)

        for name, write in WRITES.items():
            doing = t.connection.transaction()
            await doing.start()
            await t.run(write(right))

            assert await t.rows(CONTENTS) != before, name
            await doing.rollback()


# ---- the pruner


async def test_the_pruner_keeps_what_somebody_still_needs(database_url: str) -> None:
    async with tables(database_url) as t:
        await _something_for_everybody(t)
        live = await t.job()
        await t.connection.execute(f"""
            INSERT INTO strandline.job_edges (child, parent) VALUES ({live}, 101);
            INSERT INTO strandline.job_periods VALUES ('fresh', 1, now() + interval '1 hour');
            INSERT INTO strandline.job_senders (id, number) VALUES (2, 1);
            INSERT INTO strandline.job_batches (id, members) VALUES (10, 1);
            UPDATE strandline.jobs SET batch = 9 WHERE id = {live};
            """)

        done = [
            await t.run(op(ALONE))
            for name, op in WRITES.items()
            if name.startswith("prune") and name != "prune_senders"
        ]
        done.append(await t.run(pruning.prune_senders(ALONE)))

        assert [one.rows for one in done] == [1, 1, 1, 0, 1]
        assert await t.one("SELECT count(*) FROM strandline.job_batches") == 2
        assert await t.one("SELECT child FROM strandline.job_edges") == live
        assert await t.one("SELECT unique_key FROM strandline.job_periods") == "fresh"
        assert await t.one("SELECT id FROM strandline.job_senders") == 2


# ---- what keeps tables from staying small


async def test_the_watch_names_the_session_that_holds_the_horizon(database_url: str) -> None:
    async with tables(database_url) as t, tables(database_url) as other:
        await other.rows("SET application_name = 'forgotten'")
        async with other.connection.transaction(isolation="repeatable_read"):
            pid = await other.one(
                "SELECT pg_backend_pid() FROM strandline.jobs RIGHT JOIN (SELECT 1) o ON true"
            )

            found, holders = await t.run(bloat.look())

        assert [table.name for table in found] == ["job_edges", "job_periods", "jobs"]
        mine = next(holder for holder in holders if holder.pid == pid)
        assert (mine.kind, mine.who) == ("session", "forgotten")
        assert "forgotten" in str(mine)
        assert not mine.is_old


def test_the_advice_says_what_holds_the_dead_rows_or_that_vacuum_lags() -> None:
    full = Health("jobs", 10, 500_000, 1, "strandline.jobs_ready_idx", 500_000_000, 5.0)
    well = Health("jobs", 10_000, 20_000, 1, "strandline.jobs_ready_idx", 1_000_000, 5.0)
    old = Holder("session", "forgotten", 4711, "idle in transaction", 900.0, 10)
    fresh = Holder("session", "short", 1, "active", 1.0, 1)

    held, index = bloat.advice([full], [old])

    assert "forgotten" in held and "4711" in held
    assert "REINDEX INDEX CONCURRENTLY strandline.jobs_ready_idx" in index
    assert "VACUUM" in bloat.advice([full], [fresh])[0]
    assert bloat.advice([well], [old]) == []


# ---- together, on a node


async def test_a_delayed_job_runs_soon_after_its_time_and_not_before(database_url: str) -> None:
    app = App("duties", database_url, pulse="loop", **QUICK)
    ran: list[float] = []

    @app.job
    async def later() -> None:
        ran.append(asyncio.get_running_loop().time())

    async with app, tables(database_url) as t:
        await app.start()
        await holds(lambda: app._node.jobs.office.statistics(), 30)  # type: ignore[union-attr]
        begun = asyncio.get_running_loop().time()
        await t.job(SCHEDULED, kind="'later'", run_at="clock_timestamp() + interval '1 second'")

        await holds(lambda: ran, 30)

        assert 0.95 < ran[0] - begun < 10


async def test_a_duty_that_hangs_keeps_no_other_from_its_work(database_url: str) -> None:
    app = App("duties", database_url, pulse="loop", **QUICK)
    ran: list[int] = []
    failed: list[str] = []

    @app.job
    async def later() -> None:
        ran.append(1)

    def hear(notice: Any) -> None:
        if notice.name == "duty_failed":
            failed.append(notice.facts["duty"])

    app.signals.listen(hear)
    async with app, tables(database_url) as t, tables(database_url) as other:
        async with other.connection.transaction():
            await other.rows("LOCK TABLE strandline.job_history IN ACCESS EXCLUSIVE MODE")
            await app.start()
            await holds(lambda: _waits(t, "strandline job duties slow"), 30)
            await t.job(SCHEDULED, kind="'later'", run_at="clock_timestamp()")

            await holds(lambda: ran, 30)
            assert "pruner" not in failed  # it still waits

        days_there = (
            "SELECT count(*) FROM pg_inherits WHERE inhparent = 'strandline.job_history'::regclass"
        )
        await holds(lambda: _is(t, days_there, 5), 30)


async def _waits(t: Tables, application: str) -> bool:
    """Whether a statement of *application* waits for a lock."""
    return bool(
        await t.one(
            """SELECT count(*) FROM pg_stat_activity
                WHERE application_name = $1 AND wait_event_type = 'Lock'
                  AND datname = current_database()""",
            application,
        )
    )


async def _is(t: Tables, sql: str, wanted: int) -> bool:
    return bool(await t.one(sql) == wanted)


async def test_duties_of_a_term_that_is_over_are_refused_and_end(database_url: str) -> None:
    """The node still believes that it leads: only the lease's row knows better."""
    app = App("duties", database_url, **QUICK)

    @app.job
    async def later() -> None: ...

    async with app, tables(database_url) as t:
        right = await t.lead()
        assert right.me is not None and right.epoch is not None
        believed = Leadership(right.epoch, boot_time() + 3600)
        part = JobsPart(app._job_ties(), trusts=lambda: True, leadership=lambda: believed)
        office: Maintenance = part.office
        office.begin(Term(right.me, right.epoch, "c"))
        await holds(lambda: office.statistics()["scheduler"].steps)
        assert office.serves(right.epoch)

        async with t.connection.transaction():
            await t.lead()
            job = await t.job(SCHEDULED, run_at="now()")

        await holds(lambda: not office.serves(right.epoch), 30)
        await office.stop(timeout=1.0)
        assert await t.state(job) == SCHEDULED
