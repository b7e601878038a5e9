"""What a shutdown did, step by step: for the log, the node's row, the exit code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

CLEAN, DEGRADED, FORCED, OUT = 0, 3, 70, 75  # exit codes
EVICTED = "evicted"  # the reason of a node that was declared dead and may not join again
NAMED = 100  # names of work that are written out; the rest is counted

Status = Literal["ok", "timeout", "error", "skipped", "running"]
Result = Literal["clean", "degraded", "forced"]


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """How one step went.

    Attributes:
        name: Of the step.
        status: ``ok``; ``timeout``, it was cut off; ``error``, it raised; ``skipped``, no time was
            left to begin it; ``running``, the report was made meanwhile.
        seconds: How long it took.
        error: What it raised, or where it hung; empty if it went well.
    """

    name: str
    status: Status
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True)
class ShutdownReport:
    """What a shutdown did.

    Attributes:
        reason: What began it: a signal's name, ``stop``, ``evicted`` ...
        signals: How many stop signals came.
        steps: Their outcomes, in the order of their ends.
        seconds: From the beginning until now or the end.
        released: Work given back in the database.
        abandoned: Work that did not end in time; its fence protects what it writes to.
        jobs: How attempts of jobs ended: ``finished``, ``interrupted`` (they do not count) and
            ``abandoned`` (they did not end); empty for a node without jobs.
        forced: The time in all was too short for a step, by itself or by a second signal.
        is_complete: Whether every step is through; not so in the report stored with the node, which
            is written before the last steps.
    """

    reason: str
    signals: int = 0
    steps: tuple[StepOutcome, ...] = ()
    seconds: float = 0.0
    released: tuple[str, ...] = ()
    abandoned: tuple[str, ...] = ()
    jobs: Mapping[str, int] = field(default_factory=dict)
    forced: bool = False
    is_complete: bool = True

    @property
    def result(self) -> Result:
        """``clean``, ``degraded`` (something failed or was left) or ``forced``."""
        if self.forced:
            return "forced"
        is_degraded = self.failed or self.abandoned or self.jobs.get("abandoned")
        return "degraded" if is_degraded else "clean"

    @property
    def exit_code(self) -> int:
        """0 clean, 3 degraded, 70 forced; 75 if the node was evicted, unless forced."""
        if self.reason == EVICTED and not self.forced:
            return OUT
        return {"clean": CLEAN, "degraded": DEGRADED, "forced": FORCED}[self.result]

    @property
    def failed(self) -> tuple[StepOutcome, ...]:
        """The steps that did not go well."""
        return tuple(step for step in self.steps if step.status not in ("ok", "running"))

    def json(self) -> str:
        """One line of JSON; names of work beyond 100 are only counted."""
        facts: dict[str, Any] = {
            "reason": self.reason,
            "result": self.result,
            "exit_code": self.exit_code,
            "signals": self.signals,
            "seconds": round(self.seconds, 3),
            "forced": self.forced,
            "is_complete": self.is_complete,
            "released_count": len(self.released),
            "released": self.released[:NAMED],
            "abandoned_count": len(self.abandoned),
            "abandoned": self.abandoned[:NAMED],
            "jobs": dict(self.jobs),
            "steps": [
                {
                    "name": step.name,
                    "status": step.status,
                    "seconds": round(step.seconds, 3),
                    "error": step.error,
                }
                for step in self.steps
            ],
        }
        return json.dumps(facts)

    def summary(self) -> str:
        """One line for people."""
        words = [f"{self.result} after {self.seconds:.2f} s ({self.reason})"]
        words += [f"{len(self.released)} released" if self.released else ""]
        words += [f"{len(self.abandoned)} abandoned" if self.abandoned else ""]
        words += [f"jobs {what}: {count}" for what, count in self.jobs.items() if count]
        words += [
            f"{step.name}: {step.status}{f', {step.error}' if step.error else ''}"
            for step in self.failed
        ]
        return "; ".join(word for word in words if word)
