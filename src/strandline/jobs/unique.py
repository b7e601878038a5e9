"""Keys of unique jobs: what makes one the same as another."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import msgspec

from strandline.errors import InvalidInput, StrandlineError
from strandline.jobs.job import Job, Unique
from strandline.jobs.row import Flag, NewJob
from strandline.jobs.words import checked_seconds, checked_word

_encode = msgspec.json.Encoder(order="sorted").encode
_OF_THE_JOB = ("queue", "tenant", "key")


def unique_key(
    new: NewJob, unique: Unique | str, job: Job[..., Any], data: bytes, secret: str = ""
) -> None:
    """Write into *new* what is unique about it.

    Args:
        new: Complete but for that.
        unique: A text is the key itself, whatever the kind; of its tenant, as all are.
        job: Its job.
        data: Its arguments, not encrypted.
        secret: Of encrypted ones: without it nobody can try which arguments make this key.

    Raises:
        InvalidInput: *unique* is none.
    """
    if isinstance(unique, str):
        new.unique_key = _of_tenant(new.tenant) + checked_word(unique, "unique key")
        return
    checked_unique(unique, job)
    new.unique_key = f"{job.kind}:{_digest(new, unique, job, data, secret)}"
    new.on_duplicate = unique.on_duplicate
    if unique.within is not None:
        new.unique_seconds = checked_seconds("within", unique.within, above=0.0)
    elif unique.until == "started":
        new.flags |= Flag.UNIQUE_UNTIL_STARTED


def checked_unique(
    unique: Any, job: Job[..., Any], *, error: type[StrandlineError] = InvalidInput
) -> None:
    """Raise *error* if *unique* cannot make a key for *job*."""
    if not isinstance(unique, Unique):
        raise error(f"unique={unique!r} is not a text or an sl.Unique")
    if unique.until not in ("done", "started"):
        raise error(f"until={unique.until!r} is not 'done' or 'started'")
    if unique.on_duplicate not in ("ignore", "replace", "raise"):
        raise error(f"on_duplicate={unique.on_duplicate!r} is not 'ignore', 'replace' or 'raise'")
    if unique.within is not None:
        checked_seconds("within", unique.within, above=0.0, error=error)
    if not isinstance(unique.by, str | tuple | list):
        raise error(f"unique by={unique.by!r} is not a number of names")
    for one in _by(unique):
        if one not in ("args", *_OF_THE_JOB, *job.arguments.names):
            raise error(
                f"unique by {one!r}: job {job.kind!r} has no such argument (args, queue, tenant, key,"
                f" or {', '.join(job.arguments.names) or 'nothing else'})"
            )


def _digest(new: NewJob, unique: Unique, job: Job[..., Any], data: bytes, secret: str) -> str:
    by = _by(unique)
    whole = job.arguments.whole(data, None if "args" in by else by)
    facts: dict[str, Any] = {"tenant": new.tenant}  # no tenant is told of another one's job
    for one in by:
        if one == "args":
            facts["args"] = whole
        elif one in whole:  # an argument may be called as a column is: it is meant then
            facts[f"args.{one}"] = whole[one]
        else:
            facts[one] = getattr(new, one)
    return blake2b(_encode(facts), digest_size=16, key=secret.encode()[:64]).hexdigest()


def _of_tenant(tenant: str | None) -> str:
    """Before a key; ``enqueue`` in SQL writes the same."""
    return "" if tenant is None else f"{len(tenant.encode())}:{tenant}:"


def _by(unique: Unique) -> tuple[str, ...]:
    return (unique.by,) if isinstance(unique.by, str) else tuple(unique.by)
