"""What jobs take from their app, put together for a node."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from strandline.jobs import cron
from strandline.jobs.completing import completing
from strandline.jobs.control import Control, counts
from strandline.jobs.cron_registration import Schedules
from strandline.jobs.hooks import Hooks
from strandline.jobs.ids import Ids
from strandline.jobs.kinds import Kinds
from strandline.jobs.middleware import Middleware
from strandline.jobs.part import JobTies
from strandline.jobs.returned import encoded
from strandline.jobs.row import Claimed
from strandline.jobs.waking import Wakes
from strandline.jobs.wiring import JobWiring
from strandline.postgres.pools import Pool
from strandline.telemetry.journal import Journal

log = Journal("strandline.jobs")


def job_ties(
    wiring: JobWiring, wakes: Wakes, ids: Ids, hooks: Hooks, middlewares: Sequence[Middleware]
) -> JobTies:
    """What the jobs of a node need."""
    control = Control(
        wiring.pools.control, wiring.notifier, wiring.signals, on_available=wakes.enqueued
    )

    def complete(job: Claimed, result: Any) -> AbstractAsyncContextManager[Any]:
        text = None if result is None else encoded(result, job.kind)
        return completing(wiring, job, text, on_available=wakes.enqueued)

    return JobTies(
        wiring=wiring,
        wakes=wakes,
        ids=ids,
        hooks=hooks,
        middlewares=middlewares,
        complete=complete,
        cancel_lost=control.cancel_lost,
        counts=counts,
    )


async def declare_schedules(declared: Schedules, kinds: Kinds, pool: Pool) -> None:
    """Write down the schedules that an app has *declared*, and tell which it declares no more."""
    schedules = declared.bind(kinds)
    if not kinds.names:
        return
    left = await pool.run(cron.declare(schedules, kinds.prepare))
    if left:
        log.tell("schedules_left", schedules=tuple(left))
