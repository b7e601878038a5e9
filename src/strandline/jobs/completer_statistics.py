"""How the completions of a node are doing."""

from __future__ import annotations

from dataclasses import dataclass

from strandline.loops import LoopStatistics


@dataclass(frozen=True, slots=True)
class CompleterStatistics:
    """How the completions are doing.

    Attributes:
        pending: Attempts that have ended and are not written yet.
        aside: Of these, those that the server refuses.
        completed: Written as completed.
        settled: Written as something else.
        fenced: Not written, since another attempt has the job.
        untold: After a lost answer: they have ended, and nothing is left to tell by whom.
        flushes: Statements so far.
        failures: Tries in a row that failed.
    """

    pending: int
    aside: int
    completed: int
    settled: int
    fenced: int
    untold: int
    flushes: int
    failures: int
    loop: LoopStatistics
