"""How jobs end: once, under their claim, and as their attempt said (I8)."""

from __future__ import annotations

import json

import pytest
from ended import desk

from strandline.jobs import completion
from strandline.jobs.completion import Trace
from strandline.jobs.row import Ended, Flag

LIVE = "SELECT count(*) FROM strandline.jobs"
HISTORY = (
    "SELECT id, outcome, node, attempt, result, reason FROM strandline.job_history ORDER BY id"
)
ROW = "SELECT state, attempt, claim, run_at, seq, errors::text, progress FROM strandline.jobs WHERE id = $1"
ERROR = {"attempt": 1, "class": "ValueError", "message": "no", "stack": "..."}


async def test_completed_jobs_leave_nothing_behind_unless_they_are_kept(database_url: str) -> None:
    async with desk(database_url) as here:
        plain = await here.running(3)
        kept = await here.running(2, flags=int(Flag.KEEP_ALL))
        nothing = await here.running(1, flags=int(Flag.KEEP_NOTHING))

        here.completer.done(plain[0])
        here.completer.done(plain[1], '"a result"')
        here.completer.done(plain[2], None)
        here.completer.done(kept[0])
        here.completer.done(kept[1], "[1]")
        here.completer.done(nothing[0], '"not wanted"')
        await here.written()

        assert await here.value(LIVE) == 0
        assert [tuple(row) for row in await here.fetch(HISTORY)] == [
            (plain[1].id, "completed", 77, 1, '"a result"', None),
            (kept[0].id, "completed", 77, 1, None, None),
            (kept[1].id, "completed", 77, 1, "[1]", None),
        ]
        found = here.completer.statistics()
        assert (found.completed, found.settled, found.fenced) == (6, 0, 0)


async def test_a_job_that_has_moved_on_is_not_completed_by_its_former_claim(
    database_url: str,
) -> None:
    async with desk(database_url) as here:
        zombies = await here.running(4)
        kept = await here.running(1, flags=int(Flag.KEEP_ALL))
        mine = await here.running(1)
        again = await here.claimed([zombies[0].id, kept[0].id], node=78)
        await here.fetch(
            "UPDATE strandline.jobs SET state = 0, claim = NULL WHERE id = $1", zombies[1].id
        )
        await here.fetch("DELETE FROM strandline.jobs WHERE id = $1", zombies[2].id)

        for job in (*zombies[:3], *kept, *mine):
            here.completer.done(job)
        await here.ended(zombies[3], "retry", error=ERROR, delay=60)
        await here.ended(zombies[3], "dead", error=ERROR)  # it is not running any more
        await here.written()

        found = here.completer.statistics()
        assert (found.completed, found.settled, found.fenced) == (1, 1, 5)
        assert sum(one["count"] for one in here.told("jobs_fenced")) == 5
        named = {job for one in here.told("jobs_fenced") for job in one["ids"]}
        assert named == {zombies[0].id, zombies[1].id, zombies[3].id, kept[0].id}
        rows = await here.fetch("SELECT id, state, claim FROM strandline.jobs ORDER BY id")
        assert [tuple(row) for row in rows] == [
            (zombies[0].id, 2, again[0].claim),
            (zombies[1].id, 0, None),
            (zombies[3].id, 1, None),
            (kept[0].id, 2, again[1].claim),
        ]
        assert await here.fetch(HISTORY) == []
        assert await here.value("SELECT count(*) FROM strandline.dead_jobs") == 0


async def test_a_stale_completion_is_refused_beside_one_under_the_new_claim_of_the_same_node(
    database_url: str,
) -> None:
    async with desk(database_url, start=False) as here:
        (stale,) = await here.running(1)
        others = await here.claimed(await here.enqueued(2), fetch=1)
        (now,) = await here.claimed([stale.id], fetch=2)
        fresh = await here.claimed(await here.enqueued(2), fetch=2)
        for job in (*fresh, stale, *others):
            here.completer.done(job)
        here.completer.start()
        await here.written()

        assert here.completer.statistics().completed == 4
        assert here.completer.statistics().fenced == 1
        assert await here.value("SELECT claim FROM strandline.jobs") == now.claim


async def test_a_completion_that_is_given_twice_counts_once(database_url: str) -> None:
    async with desk(database_url, start=False) as here:
        (plain,), (kept,) = await here.running(), await here.running(flags=int(Flag.KEEP_ALL))
        (dead,) = await here.running()
        for _ in range(2):
            here.completer.done(plain)
            here.completer.done(kept)
            here.completer.put(Ended(dead, "dead", error=ERROR))
        here.completer.start()
        await here.written()

        found = here.completer.statistics()
        assert (found.completed, found.settled, found.fenced) == (2, 1, 3)
        assert len(await here.fetch(HISTORY)) == 1
        assert await here.value("SELECT count(*) FROM strandline.dead_jobs") == 1


async def test_an_attempt_ends_as_it_says(database_url: str) -> None:
    async with desk(database_url) as here:
        later, at_once, snoozed, released, cancelled, dead = await here.running(6)
        seqs = {row[0]: row[1] for row in await here.fetch("SELECT id, seq FROM strandline.jobs")}
        now = await here.value("SELECT clock_timestamp()")
        await here.ended(later, "retry", delay=60.0, error=ERROR)
        await here.ended(at_once, "retry", delay=0.0, error=ERROR)
        await here.ended(snoozed, "snoozed", delay=30.0)
        await here.ended(released, "released", reason="the node stopped")
        await here.ended(cancelled, "cancelled", reason="no such order")
        await here.ended(dead, "dead", error=ERROR, fingerprint="f")

        found = {job: (await here.fetch(ROW, job.id))[0] for job in (later, at_once)}
        state, attempt, claim, run_at, _, errors, _ = found[later]
        assert (state, attempt, claim) == (1, 1, None)
        assert 59 <= (run_at - now).total_seconds() <= 90
        assert json.loads(errors) == [{**ERROR, "claim": later.claim}]
        state, attempt, claim, run_at, seq, _, _ = found[at_once]
        assert (state, attempt, claim, run_at) == (0, 1, None, None)
        assert seq > max(seqs.values()), "behind those that were available before"

        (row,) = await here.fetch(ROW, snoozed.id)
        assert (row[0], row[1], row[2], row[5]) == (1, 0, None, None)
        (row,) = await here.fetch(ROW, released.id)
        assert (row[0], row[1], row[3], row[4]) == (0, 0, None, seqs[released.id])
        assert [tuple(row) for row in await here.fetch(HISTORY)] == [
            (cancelled.id, "cancelled", 77, 1, None, "no such order")
        ]
        (letter,) = await here.fetch(
            "SELECT id, attempt, errors::text, fingerprint FROM strandline.dead_jobs"
        )
        assert (letter[0], letter[1], letter[3]) == (dead.id, 1, "f")
        assert json.loads(letter[2]) == [{**ERROR, "claim": dead.claim}]
        assert here.woken == ["default", "default"], "for what is available at once"


async def test_nothing_is_kept_of_a_kind_that_says_so_but_its_dead_letters(
    database_url: str,
) -> None:
    async with desk(database_url) as here:
        first, second = await here.running(2, flags=int(Flag.KEEP_NOTHING))
        await here.ended(first, "cancelled", reason="never mind")
        await here.ended(second, "dead", error=ERROR)

        assert await here.fetch(HISTORY) == []
        assert await here.value("SELECT id FROM strandline.dead_jobs") == second.id


@pytest.mark.parametrize("ending", ["retry", "snoozed", "released", "dead"])
async def test_a_job_that_is_to_be_cancelled_is_not_tried_again(
    database_url: str, ending: str
) -> None:
    async with desk(database_url) as here:
        (job,) = await here.running()
        await here.fetch(
            "UPDATE strandline.jobs SET cancel_at = now(), cancel_reason = 'an operator'"
        )
        await here.ended(job, ending, error=ERROR, reason="the node stopped")

        assert await here.value(LIVE) == 0
        (row,) = await here.fetch(HISTORY)
        assert (row["outcome"], row["reason"]) == ("cancelled", "an operator")


async def test_a_job_that_completes_though_it_is_to_be_cancelled_has_completed(
    database_url: str,
) -> None:
    async with desk(database_url) as here:
        plain, kept = await here.running(1), await here.running(1, flags=int(Flag.KEEP_ALL))
        await here.fetch("UPDATE strandline.jobs SET cancel_at = now(), cancel_reason = 'x'")
        here.completer.done(plain[0])
        here.completer.done(kept[0], "1")
        await here.written()

        assert await here.value(LIVE) == 0
        assert [row["outcome"] for row in await here.fetch(HISTORY)] == ["completed"]
        assert here.completer.statistics().completed == 2


async def test_records_of_many_failures_keep_the_first_and_the_last(database_url: str) -> None:
    async with desk(database_url) as here:
        records = [{"attempt": number} for number in range(1, 51)]
        (job,) = await here.running(errors=json.dumps(records), attempt=50, max_attempts=100)
        await here.ended(job, "retry", delay=1.0, error={"attempt": 51})

        kept = json.loads(await here.value("SELECT errors::text FROM strandline.jobs"))
        assert [one["attempt"] for one in kept] == [1, *range(3, 52)]


async def test_bad_data_of_one_job_in_a_thousand_hurts_no_other(database_url: str) -> None:
    async with desk(database_url, start=False) as here:
        jobs = await here.running(1_000, flags=int(Flag.KEEP_ALL))
        failing = await here.running(1_000)
        for number, job in enumerate(jobs):
            here.completer.done(job, '"\ud800 \0"' if number == 500 else f"{number}")
        bad = {"attempt": 1, "message": "\0 \udfff" + "x" * 5_000_000, "stack": {"\0": "\0"}}
        for number, job in enumerate(failing):
            here.completer.put(Ended(job, "retry", delay=9.0, error=bad if number == 3 else ERROR))
        here.completer.start()
        await here.written()

        found = here.completer.statistics()
        assert (found.completed, found.settled, found.fenced, found.failures) == (1000, 1000, 0, 0)
        results = {row["id"]: row["result"] for row in await here.fetch(HISTORY)}
        assert results[jobs[500].id] == '"? \N{SYMBOL FOR NULL}"'
        assert results[jobs[501].id] == "501"
        (record,) = json.loads((await here.fetch(ROW, failing[3].id))[0]["errors"])
        assert len(record["message"]) < 21_000
        assert "\0" not in record["message"]


async def test_data_that_only_the_server_refuses_is_left_out_for_that_job_alone(
    database_url: str,
) -> None:
    async with desk(database_url, start=False) as here:
        await here.fetch("ALTER TABLE strandline.job_history ADD CHECK (result <> '\"bad\"')")
        await here.fetch("ALTER TABLE strandline.dead_jobs ADD CHECK (errors::text !~ 'bad')")
        jobs = await here.running(300, flags=int(Flag.KEEP_ALL))
        dead = await here.running(300)
        for number, job in enumerate(jobs):
            here.completer.done(job, '"bad"' if number in (7, 299) else '"good"')
        for number, job in enumerate(dead):
            error = {"attempt": 1, "message": "bad" if number == 100 else "good"}
            here.completer.put(Ended(job, "dead", error=error))
        here.completer.start()
        await here.written()

        assert await here.value(LIVE) == 0
        rows = {row["id"]: row for row in await here.fetch(HISTORY)}
        assert len(rows) == 300
        assert [one for one, row in rows.items() if row["result"] is None] == [
            jobs[7].id,
            jobs[299].id,
        ]
        assert rows[jobs[7].id]["reason"] == completion.NOT_STORABLE
        letters = await here.fetch("SELECT id, errors::text FROM strandline.dead_jobs ORDER BY id")
        assert len(letters) == 300
        assert json.loads(letters[100][1])[0]["class"] == "?"
        assert here.completer.statistics().completed == 300


@pytest.mark.parametrize(
    ("ending", "trace", "ours"),
    [
        ("completed", Trace(1, 7, False, False, True), True),  # gone, and nobody else could take it
        ("completed", Trace(1, 7, True, True, False), True),  # the history names node and attempt
        ("completed", Trace(1, 7, False, True, True), False),  # it lives on
        ("completed", Trace(1, 7, False, False, False), None),
        ("retry", Trace(1, 7, True, True, False), True),  # the record names the claim
        ("retry", Trace(1, 7, False, True, False), False),
        ("snoozed", Trace(1, 7, False, True, True), True),  # leaves no trace
        ("released", Trace(1, 7, False, True, False), None),
        ("released", Trace(1, 7, False, False, False), None),
    ],
)
def test_what_shows_after_a_lost_answer_tells_whose_write_it_was(
    ending: str, trace: Trace, ours: bool | None
) -> None:
    assert completion.was_ours(ending, trace) is ours  # type: ignore[arg-type]
