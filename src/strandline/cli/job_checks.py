"""What `strandline doctor` examines about jobs besides what a survey says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from strandline.cli import output
from strandline.cli.connect import Database
from strandline.jobs import bloat, cron
from strandline.jobs.cron import ScheduleRow
from strandline.survey.case import APP, last_word
from strandline.survey.finding import FAIL, WARN, Finding

OVERDUE = 60.0  # seconds after its moment at which a schedule should have been fired


async def examine_jobs(db: Database, *, app: str = APP) -> AsyncIterator[Finding]:
    """Schedules, and what keeps the tables from staying small."""
    for schedule in await db.pool.run(cron.list_schedules()):
        for finding in _schedule(schedule, app):
            yield finding
    tables, holders = await db.pool.run(bloat.look())
    for sentence in bloat.advice(tables, holders):
        reason, _, cure = sentence.partition("; " if "; " in sentence else ": ")
        yield Finding("job tables", WARN, reason, cure=cure, runbook="old-snapshot")


def _schedule(one: ScheduleRow, app: str) -> Iterator[Finding]:
    late = (one.now - one.next_at).total_seconds()
    if one.error:
        yield Finding(
            "schedules",
            FAIL,
            f"{one.name} cannot be fired: {one.error}",
            "correct its declaration and start a node, if it is still wanted",
            f"strandline cron forget {last_word(one.name)}",
            "schedule-missed",
        )
    elif one.paused_at is None and late > OVERDUE:
        yield Finding(
            "schedules",
            WARN,
            f"{one.name} is {output.duration(late)} overdue: no node leads",
            cure=f"strandline node {app}",
            runbook="schedule-missed",
        )
