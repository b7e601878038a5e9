"""``completing``: what a job does and its end are one commit, or nothing of it happened (I8)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from ended import Desk, desk, holds

from strandline.errors import ClaimLost, OutcomeUnknown, Unavailable
from strandline.jobs.completing import STATUS, completing
from strandline.jobs.row import Claimed, Flag
from strandline.postgres.operations import one

EVENT = """SELECT position FROM strandline.append($1, '[{"type": "paid", "data": {}}]')"""
EVENTS = "SELECT count(*) FROM strandline.events"
EFFECTS = "SELECT count(*) FROM effects"
LIVE = "SELECT count(*) FROM strandline.jobs"


@asynccontextmanager
async def shop(url: str, **settings: Any) -> AsyncIterator[Desk]:
    """A desk beside the table of its user."""
    async with desk(url, **settings) as here:
        await here.fetch("CREATE TABLE effects (job bigint)")
        yield here


def together(here: Desk, job: Claimed, result: str | None = None) -> Any:
    return completing(here.wiring, job, result, on_available=here.woken.extend)


async def act(tx: Any, job: Claimed) -> None:
    """An effect, and an event."""
    await tx.connection.execute("INSERT INTO effects VALUES ($1)", job.id)
    await tx.connection.fetch(EVENT, f"order-{job.id}")


async def seen(here: Desk) -> tuple[int, int, int]:
    """Effects, events, live jobs."""
    return (await here.value(EFFECTS), await here.value(EVENTS), await here.value(LIVE))


async def test_the_effect_the_event_and_the_end_are_one_commit(database_url: str) -> None:
    async with shop(database_url) as here:
        (job,) = await here.running()
        async with together(here, job, '"done"') as tx:
            await act(tx, job)
            assert await seen(here) == (0, 0, 1), "nobody else sees any of it yet"

        assert await seen(here) == (1, 1, 0)
        (row,) = await here.fetch("SELECT id, outcome, result FROM strandline.job_history")
        assert tuple(row) == (job.id, "completed", '"done"')


async def test_another_attempt_that_has_the_job_by_then_undoes_everything(
    database_url: str,
) -> None:
    async with shop(database_url) as here:
        (job,) = await here.running()
        with pytest.raises(ClaimLost) as lost:
            async with together(here, job) as tx:
                await act(tx, job)
                (again,) = await here.claimed([job.id], node=78)
        assert (lost.value.job, lost.value.claim) == (job.id, job.claim)
        assert await seen(here) == (0, 0, 1)

        async with together(here, again) as tx:
            await act(tx, again)
        assert await seen(here) == (1, 1, 0)
        with pytest.raises(ClaimLost):
            async with together(here, again) as tx:
                await act(tx, again)
        assert await seen(here) == (1, 1, 0)


async def test_an_error_in_the_block_leaves_the_job_to_its_runner(database_url: str) -> None:
    async with shop(database_url) as here:
        (job,) = await here.running()
        with pytest.raises(KeyError):
            async with together(here, job) as tx:
                await act(tx, job)
                raise KeyError
        assert await seen(here) == (0, 0, 1)
        await here.ended(job, "retry", error={"attempt": 1})
        assert here.completer.statistics().settled == 1


async def test_a_crash_between_effect_and_end_leaves_neither(database_url: str) -> None:
    async with shop(database_url) as here:
        (job,) = await here.running()
        with pytest.raises(Unavailable):
            async with together(here, job) as tx:
                await act(tx, job)
                pid = await tx.connection.fetchval("SELECT pg_backend_pid()")
                await here.fetch("SELECT pg_terminate_backend($1)", pid)
                gone = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)"
                await holds(lambda: here.value(gone, pid))
        assert await seen(here) == (0, 0, 1)

        (again,) = await here.claimed([job.id], node=78)
        async with together(here, again) as tx:
            await act(tx, again)
        assert await seen(here) == (1, 1, 0)


@pytest.mark.parametrize("was_committed", [True, False])
async def test_a_lost_answer_to_the_commit_is_looked_up(
    database_url: str, was_committed: bool
) -> None:
    async with shop(database_url) as here:
        (job,) = await here.running()
        pool: Any = here.wiring.pools.work
        real = pool._committed

        async def lossy(held: Any, session: Any, transaction: Any) -> None:
            if was_committed:
                await real(held, session, transaction)
            else:
                await transaction.rollback()
            raise OutcomeUnknown("the answer was lost")

        pool._committed = lossy
        if was_committed:
            async with together(here, job) as tx:
                await act(tx, job)
        else:
            with pytest.raises(OutcomeUnknown):
                async with together(here, job) as tx:
                    await act(tx, job)

        assert await seen(here) == ((1, 1, 0) if was_committed else (0, 0, 1))


async def test_after_a_fail_over_the_number_of_the_transaction_may_be_somebody_elses(
    database_url: str,
) -> None:
    """The new primary has the job as it was, and a transaction of that number that was committed."""
    async with shop(database_url) as here:
        (job,) = await here.running()
        pool: Any = here.wiring.pools.work
        real = pool._committed

        async def elsewhere(held: Any, session: Any, transaction: Any) -> None:
            await session.connection.execute(
                """INSERT INTO strandline.jobs (id, kind, state, claim, attempt, claimed_at)
                   VALUES ($1, 'note', 2, $2, 1, now())""",
                *(job.id, job.claim),
            )
            await real(held, session, transaction)
            raise OutcomeUnknown("the answer was lost")

        pool._committed = elsewhere
        with pytest.raises(OutcomeUnknown):
            async with together(here, job):
                pass


async def test_a_number_that_the_new_primary_has_not_come_to_tells_nothing(
    database_url: str,
) -> None:
    async with shop(database_url) as here:
        ahead = await here.value(
            "SELECT (pg_snapshot_xmax(pg_current_snapshot())::text::bigint + 1000)::text"
        )

        found = await here.wiring.pools.control.run(one(STATUS, ahead, 1))

        assert found is not None
        assert found.status == "in progress"


async def test_an_unknown_outcome_of_something_else_in_the_block_is_not_mistaken(
    database_url: str,
) -> None:
    async with shop(database_url) as here:
        (job,) = await here.running()
        with pytest.raises(OutcomeUnknown, match="of a payment"):
            async with together(here, job) as tx:
                await act(tx, job)
                raise OutcomeUnknown("of a payment")
        assert await seen(here) == (0, 0, 1)


async def test_what_waits_for_the_job_goes_on_with_that_commit(database_url: str) -> None:
    async with shop(database_url) as here:
        (job,) = await here.running(flags=int(Flag.HAS_CHILDREN | Flag.ORDERED), key="k")
        (child,) = await here.enqueued(state=3, flags=int(Flag.HAS_PARENTS), queue="later")
        (behind,) = await here.enqueued(state=3, flags=int(Flag.ORDERED), key="k")
        await here.fetch(
            "INSERT INTO strandline.job_edges (child, parent) VALUES ($1, $2)", child, job.id
        )
        async with together(here, job) as tx:
            await act(tx, job)
        assert sorted(here.woken) == ["default", "later"]
        rows = await here.fetch("SELECT id, state FROM strandline.jobs ORDER BY id")
        assert [tuple(row) for row in rows] == [(child, 0), (behind, 0)]
