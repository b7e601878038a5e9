"""What it means that how jobs ended could not be written: each kind of trouble wants something else."""

from __future__ import annotations

from typing import Literal

from strandline.errors import AnswerTimedOut, StrandlineError
from strandline.postgres.faults import sqlstate

Trouble = Literal["away", "late", "conflict", "data", "row", "setup"]
"""``away``: the server is; everything waits. ``late``: no answer in time. ``conflict``: with somebody
else's transaction, so that the same may go well the next time. ``data``: a value is not taken.
``row``: a row is not taken, whatever the values. ``setup``: the tables are not as they should be, for
a moment perhaps."""

AWAY = ("08", "28", "3D", "53", "57", "58")  # classes of SQLSTATE
SETUP = ("0A", "25", "26", "3F", "42", "55")
DATA = ("21", "22", "54")
CHECK = "23514"  # of somebody's own
LATE = ("57014", "25P04")
CONFLICTS = ("40001", "40P01", "53200", "55P03", "XX000")
READ_ONLY = "25006"


def trouble(error: Exception) -> Trouble:  # noqa: PLR0911 - a list of cases
    """What *error*, which may hide the driver's, says."""
    cause = error.__cause__ or error
    state = sqlstate(cause)
    if state in LATE or (not state and isinstance(error, AnswerTimedOut)):
        return "late"
    if not state:
        if isinstance(cause, ValueError):
            return "data"
        return "away" if isinstance(error, StrandlineError) else "row"
    if state in CONFLICTS or "partition constraint" in str(cause):  # a day was attached meanwhile
        return "conflict"
    if state == READ_ONLY or state[:2] in AWAY:
        return "away"
    if state[:2] in DATA or state == CHECK:
        return "data"
    return "setup" if state[:2] in SETUP else "row"
