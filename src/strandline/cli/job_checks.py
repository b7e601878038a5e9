"""What `strandline doctor` examines about jobs."""

from __future__ import annotations

from collections.abc import Iterator

from strandline.cli import output
from strandline.cli.connect import Database
from strandline.cli.finding import FAIL, OK, WARN, Finding, Findings
from strandline.cli.node_choice import GONE, known_nodes
from strandline.jobs import bloat, cron, looking, queues
from strandline.jobs.cron import ScheduleRow
from strandline.jobs.queues import QueueState
from strandline.jobs.row import JobState

WAITING = 60.0  # seconds that a job which could run waits, worth a word
OVERDUE = 60.0  # seconds after its moment at which a schedule should have been fired


async def examine_jobs(db: Database) -> Findings:
    """Jobs that wait or are dead, schedules, and what keeps the tables from staying small."""
    known = await db.pool.run(queues.list_queues())
    has_node = any(one.state not in GONE for one in await known_nodes(db))
    waits = list(_waiting(known, has_node=has_node))
    dead = [one async for one in _dead(db)]
    for finding in (*waits, *dead):
        yield finding
    if not waits and not dead:
        counts = (sum(one.available for one in known), sum(one.running for one in known))
        yield Finding("jobs", OK, "{:,} may run, {:,} run, none is dead".format(*counts))
    for schedule in await db.pool.run(cron.list_schedules()):
        for finding in _schedule(schedule):
            yield finding
    tables, holders = await db.pool.run(bloat.look())
    for sentence in bloat.advice(tables, holders):
        reason, _, cure = sentence.partition("; " if "; " in sentence else ": ")
        yield Finding("job tables", WARN, reason, cure)


def _waiting(known: list[QueueState], *, has_node: bool) -> Iterator[Finding]:
    for one in known:
        many = f"{one.available:,}{'+' if one.available >= queues.COUNTED else ''} jobs"
        if one.is_paused and one.available:
            text = f"queue {one.name!r} is paused ({one.paused_reason}), and {many} wait in it"
            yield Finding("jobs", WARN, text, f"strandline queues resume {one.name}")
        elif (one.oldest or 0) > WAITING and not one.is_paused:
            text = f"{many} wait in queue {one.name!r}, the next for {output.duration(one.oldest)}"
            cure = "strandline node MODULE:APP"
            if has_node:
                cure = "is there a node whose code has these kinds? Add nodes, or concurrency"
            yield Finding("jobs", WARN, text, cure)


async def _dead(db: Database) -> Findings:
    for one in await db.pool.run(looking.counts()):
        if one.state == JobState.DEAD:
            text = f"{one.count:,} dead in queue {one.queue!r}"
            cure = f"strandline jobs list --state dead --queue {one.queue}"
            yield Finding("jobs", WARN, text, cure)


def _schedule(one: ScheduleRow) -> Iterator[Finding]:
    late = (one.now - one.next_at).total_seconds()
    if one.error:
        cure = "correct its declaration and start a node, or `strandline cron forget` it"
        yield Finding("schedules", FAIL, f"{one.name} cannot be fired: {one.error}", cure)
    elif one.paused_at is None and late > OVERDUE:
        text = f"{one.name} is {output.duration(late)} overdue: no node leads"
        yield Finding("schedules", WARN, text, "strandline node MODULE:APP")
