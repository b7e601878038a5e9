"""A picture of the whole database for `doctor` and `top`, and what it says."""

from __future__ import annotations

from dataclasses import dataclass

from strandline.cli.connect import Database
from strandline.daemon.late_events import unhealed_gaps
from strandline.errors import DatabaseUnavailable
from strandline.survey.case import Limits
from strandline.survey.diagnosis import findings
from strandline.survey.facts import Survey
from strandline.survey.finding import Finding
from strandline.survey.survey import take

FIELDS = ("check", "outcome", "finding", "why", "cure", "runbook")


@dataclass(frozen=True, slots=True)
class Picture:
    """A survey, with what is judged besides.

    Attributes:
        unhealed: Events that came late and are left to be healed.
    """

    survey: Survey
    unhealed: int
    limits: Limits

    def judged(self, *, app: str, before: Survey | None = None) -> list[Finding]:
        """What it says in words."""
        return findings(
            self.survey, before=before, limits=self.limits, app=app, unhealed=self.unhealed
        )


async def look(db: Database) -> Picture:
    """Take a picture; with the App named, also of what no node has ever run.

    Raises:
        Unavailable: The database did not answer in time.
    """
    labels = None if db.app is None else db.app.registry.labels()
    try:
        survey = await take(db.pool, stale_after=db.settings.stale_after, labels=labels or ())
        late = 0
        if survey.mark.forced_gaps:
            late = sum(one.events for one in await db.pool.run(unhealed_gaps(labels)))
    except TimeoutError as error:
        raise DatabaseUnavailable("the survey got no answer in time") from error
    return Picture(survey, late, Limits.of(db.settings))


def fields_of(one: Finding) -> dict[str, str]:
    """A finding as ``--json`` writes it."""
    return dict(
        zip(FIELDS, (one.name, one.outcome, one.what, one.why, one.cure, one.runbook), strict=True)
    )
