"""What a job's function returns, as JSON."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from strandline.errors import InvalidInput, shown
from strandline.jobs.row import Claimed, Ended
from strandline.telemetry.journal import Journal

log = Journal("strandline.jobs")

MOST = 1_000_000  # bytes of one result; what is larger belongs in a table of its own


def encoded(result: Any, kind: str) -> str:
    """*result* as JSON text.

    Raises:
        InvalidInput: It has no JSON form, or a longer one than is kept.
    """
    try:
        text = _encode(result)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidInput(f"the result of job {kind!r} has no JSON form: {error}") from error
    if len(text) > MOST:
        raise InvalidInput(
            f"the result of job {kind!r} has {len(text):,} bytes of JSON, more than {MOST:,}:"
            " store it yourself and return where it is"
        )
    return text.decode()


class Unstorable:
    """Stands for a result that another process could not write as JSON."""

    def __init__(self, why: str) -> None:
        self.why = why


def completed(job: Claimed, result: Any) -> Ended:
    """The end of *job*, whose function has returned *result*.

    Whether that can be kept changes nothing: its work is done, and to do it again would be worse.
    """
    try:
        return Ended(job, "completed", encoded(result, job.kind))
    except Exception as error:  # what it holds is the user's
        why = f"its result is not kept: {shown(error)}"
    log.tell("result_not_kept", job=job.id, kind=job.kind, reason=why)
    return Ended(job, "completed", error=not_stored(job, why), reason=why)


def not_stored(job: Claimed, why: str) -> dict[str, Any]:
    """The record of a job that has completed, but for its result."""
    at = datetime.now(UTC).isoformat()
    return {"attempt": job.attempt, "at": at, "class": "ResultNotStored", "message": why}


def _written(value: Any) -> Any:
    """What msgspec does not know: pydantic models."""
    if isinstance(value, Unstorable):
        raise TypeError(value.why)
    dump = getattr(value, "model_dump", None)
    if dump is None:
        raise TypeError(f"objects of {type(value).__name__} have no JSON form")
    return dump(mode="json")


_encode = msgspec.json.Encoder(enc_hook=_written).encode
