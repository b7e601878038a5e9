"""The end of a job and what follows from it are one commit: children, batches, the next of a key."""

from __future__ import annotations

from typing import Any

import pytest
from ended import Desk, desk, holds
from tally import connected

from strandline.errors import DatabaseUnavailable
from strandline.jobs.row import Claimed, Ended, Flag

PARENT = int(Flag.HAS_CHILDREN)
CHILD = int(Flag.HAS_PARENTS)
ORDERED = int(Flag.ORDERED)
IN_BATCH = int(Flag.IN_BATCH)
LIVE = "SELECT id, state FROM strandline.jobs ORDER BY id"
EDGES = "SELECT child, parent, ended, result FROM strandline.job_edges ORDER BY 1, 2"


async def family(here: Desk, parents: int = 2) -> tuple[list[Claimed], int]:
    """Running parents of a blocked child."""
    running = await here.running(parents, flags=PARENT)
    (child,) = await here.enqueued(state=3, flags=CHILD, queue="later")
    for job in running:
        await here.fetch(
            "INSERT INTO strandline.job_edges (child, parent, name) VALUES ($1, $2, $3)",
            child,
            job.id,
            f"p{job.id}",
        )
    return running, child


async def batch(here: Desk, members: int) -> list[Claimed]:
    """Running members of batch 5."""
    await here.fetch("INSERT INTO strandline.job_batches (id, members) VALUES (5, $1)", members)
    return await here.running(members, flags=IN_BATCH, batch=5)


async def tallied(here: Desk) -> tuple[int, int]:
    """What batch 5 has counted."""
    (row,) = await here.fetch("SELECT completed, failed FROM strandline.job_batches WHERE id = 5")
    return row[0], row[1]


def lose_answers_of(here: Desk) -> None:
    """The first answer to each flush is lost after its commit."""
    line: Any = here.completer._line
    real = line.run

    async def lossy(op: Any) -> Any:
        answer = await real(op)
        flushes = here.completer._flushes
        if flushes and not flushes[0].is_doubtful:
            raise DatabaseUnavailable("the answer was lost")
        return answer

    line.run = lossy


async def test_a_child_goes_on_once_all_its_parents_have_completed(database_url: str) -> None:
    async with desk(database_url) as here:
        (first, second), child = await family(here)
        here.completer.done(first, '"1"')
        await here.written()
        assert (await here.fetch(LIVE))[-1]["state"] == 3
        here.completer.done(second)
        await here.written()

        assert [tuple(row) for row in await here.fetch(LIVE)] == [(child, 0)]
        assert here.woken == ["later"]
        results = {row["parent"]: row["result"] for row in await here.fetch(EDGES)}
        assert results == {first.id: '"1"', second.id: None}


async def test_a_cancelled_parent_takes_its_children_along(database_url: str) -> None:
    async with desk(database_url) as here:
        (first, _), child = await family(here)
        await here.ended(first, "cancelled", reason="never mind")

        rows = await here.fetch("SELECT id, outcome FROM strandline.job_history ORDER BY id")
        assert [tuple(row) for row in rows] == [(first.id, "cancelled"), (child, "cancelled")]


async def test_a_parent_that_is_tried_again_or_dies_keeps_its_children_waiting(
    database_url: str,
) -> None:
    async with desk(database_url) as here:
        (first, second), child = await family(here)
        await here.ended(first, "retry", delay=60.0, error={"attempt": 1})
        await here.ended(second, "dead", error={"attempt": 1})

        assert [tuple(row) for row in await here.fetch(LIVE)] == [(first.id, 1), (child, 3)]


async def test_the_next_job_of_a_key_begins_when_the_one_before_has_ended(
    database_url: str,
) -> None:
    async with desk(database_url) as here:
        (head,) = await here.running(key="k", flags=ORDERED)
        second, third = await here.enqueued(2, key="k", flags=ORDERED, state=3)
        await here.ended(head, "retry", error={"attempt": 1})
        assert [row["state"] for row in await here.fetch(LIVE)] == [0, 3, 3]
        (again,) = await here.claimed([head.id], fetch=2)
        here.completer.done(again)

        await holds(lambda: here.woken[1:])
        assert [tuple(row) for row in await here.fetch(LIVE)] == [(second, 0), (third, 3)]


async def test_what_follows_happens_once_though_the_answer_was_lost(database_url: str) -> None:
    async with desk(database_url, start=False) as here:
        node = await here.joined()
        members = await batch(here, 4)
        (parent,), child = await family(here, 1)
        (head,) = await here.running(key="k", flags=ORDERED)
        (behind,) = await here.enqueued(key="k", flags=ORDERED, state=3)
        await here.fetch(
            "UPDATE strandline.jobs SET claim = $1::bigint << 32 WHERE state = 2", node
        )
        jobs = [one._replace(claim=node << 32) for one in (*members[:2], parent, head, members[2])]
        lose_answers_of(here)
        for job in jobs[:-1]:
            here.completer.done(job)
        here.completer.put(Ended(jobs[-1], "cancelled"))
        here.completer.start()
        await here.written()
        await holds(lambda: "" in here.woken and here.woken[1:])  # all of them: who knows which

        assert await tallied(here) == (2, 1)
        found = here.completer.statistics()
        assert (found.completed, found.settled, found.fenced, found.untold) == (4, 1, 0, 0)
        live = [tuple(row) for row in await here.fetch(LIVE)]
        assert live == [(members[3].id, 2), (child, 0), (behind, 0)]


async def test_what_follows_is_undone_with_the_end_when_the_commit_fails(
    database_url: str,
) -> None:
    async with desk(database_url) as here, connected(database_url) as other:
        members = await batch(here, 2)
        await other.execute("BEGIN")
        await other.execute("SELECT FROM strandline.job_batches FOR UPDATE")
        here.completer.done(members[0])
        waits = """SELECT max(pid) FROM pg_stat_activity WHERE datname = current_database()
                      AND application_name = 'strandline jobs done' AND wait_event_type = 'Lock'"""
        pid = await holds(lambda: here.value(waits))
        await here.fetch("SELECT pg_terminate_backend($1)", pid)
        await holds(lambda: here.completer.statistics().failures)
        await other.execute("ROLLBACK")
        await here.written()

        assert await tallied(here) == (1, 0)
        assert here.completer.statistics().completed == 1


async def test_a_zombie_frees_nobody(database_url: str) -> None:
    async with desk(database_url) as here:
        (first,), child = await family(here, 1)
        members = await batch(here, 1)
        (head,) = await here.running(key="k", flags=ORDERED)
        (behind,) = await here.enqueued(key="k", flags=ORDERED, state=3)
        jobs = (first, *members, head)
        await here.claimed([job.id for job in jobs], node=78)
        for job in jobs:
            here.completer.done(job)
        await here.written()

        assert here.completer.statistics().fenced == 3
        states = dict(tuple(row) for row in await here.fetch(LIVE))
        assert (states[child], states[behind]) == (3, 3)
        assert await tallied(here) == (0, 0)


@pytest.mark.parametrize("bad", [0, 30])
async def test_a_result_that_cannot_be_stored_does_not_keep_children_waiting(
    database_url: str, bad: int
) -> None:
    async with desk(database_url, start=False) as here:
        await here.fetch("ALTER TABLE strandline.job_edges ADD CHECK (result <> '\"bad\"')")
        parents, child = await family(here, 31)
        for number, job in enumerate(parents):
            here.completer.done(job, '"bad"' if number == bad else '"good"')
        here.completer.start()
        await here.written()

        assert [tuple(row) for row in await here.fetch(LIVE)] == [(child, 0)]
        edges = {row["parent"]: row["result"] for row in await here.fetch(EDGES)}
        assert edges[parents[bad].id] is None
        assert len(set(edges.values())) == 2
