"""How a job is shown: in a line, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from strandline.jobs.looking import JobRow

FIELDS = (
    *("id", "kind", "queue", "state", "priority", "attempt", "max_attempts", "key", "unique_key"),
    *("tenant", "batch", "args", "meta", "errors", "progress", "result", "reason", "fingerprint"),
    *("node", "created_at", "run_at", "claimed_at", "cancel_at", "finished_at"),
)
STYLES = {
    "available": "green",
    "running": "green",
    "scheduled": "cyan",
    "blocked": "cyan",
    "retryable": "yellow",
    "dead": "red",
    "cancelled": "dim",
    "discarded": "dim",
}


def write_table(jobs: Sequence[JobRow]) -> None:
    """Jobs, one a line."""
    from strandline.cli import output

    output.table(
        [">id", "kind", "queue", "state", ">tries", "when (UTC)", "notes"],
        [
            (
                str(one.id),
                one.kind,
                one.queue,
                output.styled(one.state, STYLES.get(one.state, "")),
                output.number(one.attempt),
                output.moment(when(one)),
                notes(one),
            )
            for one in jobs
        ],
        cut=True,
    )


def when(job: JobRow) -> datetime:
    """The moment that says most of it: its end, its start, its time, or its enqueueing."""
    return job.finished_at or job.claimed_at or job.run_at or job.created_at


def notes(job: JobRow) -> str:
    """What there is to say about it in a line."""
    parts = [job.reason] if job.reason else []
    if job.cancel_at is not None:
        parts.append("told to end")
    failed = errors(job)
    if failed and job.state in ("dead", "retryable", "available", "running"):
        last = failed[-1]
        parts.append(f"{last.get('class')}: {last.get('message')}")
    if job.key is not None:
        parts.append(f"key {job.key}")
    return "; ".join(parts)


def errors(job: JobRow) -> list[dict[str, Any]]:
    """The records of its failed attempts."""
    import msgspec

    found: Any = msgspec.json.decode(job.errors) if job.errors else []
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def fields(job: JobRow) -> dict[str, Any]:
    """As ``--json`` writes it."""
    from strandline.cli import output

    told = {
        name: output.raw(getattr(job, name)) for name in ("meta", "errors", "progress", "result")
    }
    return output.fields_of(job, FIELDS) | told | {"args": _json(job.args)}


def _json(text: str) -> Any:
    """JSON as it is; encrypted arguments as a text."""
    import msgspec

    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
