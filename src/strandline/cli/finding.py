"""What a check of `strandline doctor` answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was examined. ``cure`` is empty when nothing is to be done."""

    check: str
    outcome: str
    finding: str
    cure: str = ""


Findings = AsyncIterator[Finding]
