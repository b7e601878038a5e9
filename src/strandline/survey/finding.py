"""What was looked at, how it is, and what cures it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

OK, WARN, FAIL = "ok", "warn", "fail"
OUTCOMES = (FAIL, WARN, OK)
"""The worst first."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What it is about, such as ``shards``.
        outcome: ``ok``; ``warn``, somebody should look; ``fail``, something does not work.
        what: The fact, with its number.
        why: What it comes from, or leads to; empty where *what* says it all.
        cure: What ends it: a command or statement that can be typed, else words; empty when nothing
            is to be done.
        runbook: Name of the page in ``docs/operate/runbooks``; empty: none.
    """

    name: str
    outcome: str
    what: str
    why: str = ""
    cure: str = ""
    runbook: str = ""


def troubles(found: Iterable[Finding]) -> list[Finding]:
    """Those that somebody should look at, the worst first, otherwise as they come."""
    bad = [one for one in found if one.outcome != OK]
    return sorted(bad, key=lambda one: OUTCOMES.index(one.outcome))


def counted(number: int, noun: str, nouns: str = "") -> str:
    """*number* with its noun: ``1 event``, ``1,200 events``."""
    return f"{number:,} {noun if number == 1 else nouns or f'{noun}s'}"


def named(names: Iterable[str], most: int = 3) -> str:
    """The *names*, at most so many of them, and how many more there are."""
    known = list(names)
    shown = ", ".join(known[:most])
    return shown if len(known) <= most else f"{shown} and {len(known) - most:,} more"
