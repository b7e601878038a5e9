"""What a survey says in words: each thing that is wrong, why, and what cures it."""

from __future__ import annotations

from collections.abc import Iterator

from strandline.survey.case import APP, Case, Limits
from strandline.survey.cluster_findings import cluster_findings
from strandline.survey.facts import Survey
from strandline.survey.finding import Finding
from strandline.survey.mark_findings import mark_findings
from strandline.survey.server_findings import server_findings
from strandline.survey.shard_findings import shard_findings
from strandline.survey.work_findings import work_findings

PARTS = (mark_findings, cluster_findings, shard_findings, work_findings, server_findings)


def findings(
    survey: Survey,
    *,
    before: Survey | None = None,
    limits: Limits | None = None,
    app: str = APP,
    unhealed: int | None = None,
) -> list[Finding]:
    """Judge *survey*; what is well has a finding too.

    Args:
        survey: The picture.
        before: An earlier one, by which something can be said to grow or to stand still.
        limits: From when on something is worth a word.
        app: Where the App is declared, for cures that need it; ``MODULE:APP`` is for the reader to
            fill in.
        unhealed: Events that came late and are left to be healed (``late_events.unhealed_gaps``);
            None: nobody has looked, so all that ever came late are told.
    """
    case = Case(survey, before, limits or Limits(), app, unhealed)
    return list(_all(case))


def _all(case: Case) -> Iterator[Finding]:
    for part in PARTS:
        yield from part(case)
