"""What a schedule enqueues: a job without its id, as JSON, made into one job for each moment."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

import msgspec

from strandline.errors import InvalidDefinition, InvalidInput
from strandline.jobs.job import Call
from strandline.jobs.row import Flag, NewJob
from strandline.jobs.words import checked_job_option, checked_word

FIRE_TIME = "fire_time"  # the argument that is filled in with the moment
PLACEHOLDERS = (  # for the moment; they have nothing in common
    datetime(1970, 1, 1, tzinfo=UTC),
    datetime(2021, 8, 15, 17, 38, 59, tzinfo=UTC),
)
_FIELDS = frozenset(one.name for one in fields(NewJob)) - {"id"}
_WORDS = {
    **{one: one for one in ("kind", "queue", "key", "tenant")},
    "unique_key": "unique key",
}

Prepare = Callable[[Call[Any], int, Mapping[str, Any]], NewJob]


class Template(msgspec.Struct, omit_defaults=True):
    """A job without its id.

    Attributes:
        with_fire_time: It is told the moment.
        unique_by_moment: And its unique key is made of that: the moment is part of it.
    """

    job: dict[str, Any]
    with_fire_time: bool = False
    unique_by_moment: bool = False


def check_call(name: str, call: Call[Any]) -> None:
    """Refuse a call of the schedule *name* that its function could not take.

    Raises:
        InvalidDefinition: An argument is missing, or there is one too many.
    """
    kwargs = dict(call.kwargs)
    if _takes_fire_time(call):
        kwargs[FIRE_TIME] = PLACEHOLDERS[0]
    try:
        inspect.signature(call.job.function).bind(*call.args, **kwargs)
    except TypeError as error:
        raise InvalidDefinition(
            f"schedule {name!r}: job {call.job.kind!r} cannot be called like this: {error} (only"
            f" {FIRE_TIME} is filled in; use app.schedule(name, spec, job.call(...)) for the others)"
        ) from error


def template(name: str, call: Call[Any], prepare: Prepare) -> str:
    """What the schedule *name* enqueues, as JSON.

    A job that is to be the only one of its unique key, or an error, is the only one without an error:
    there is nobody to be told.

    Raises:
        InvalidDefinition: It cannot be stored, or not for any moment.
    """
    told = _takes_fire_time(call)
    made = [
        _prepared(name, _at(call, moment) if told else call, prepare)
        for moment in PLACEHOLDERS[: 2 if told else 1]
    ]
    job = made[0]
    if told and job.flags & Flag.ENCRYPTED:
        raise InvalidDefinition(
            f"schedule {name!r}: {FIRE_TIME} cannot be passed to a job whose arguments are encrypted"
        )
    if any(one.key != job.key for one in made):
        raise InvalidDefinition(
            f"schedule {name!r}: the key of job {job.kind!r} is made of {FIRE_TIME}, and whoever fires"
            " it may not have that code: give it another one, with call.with_(key=...)"
        )
    if job.on_duplicate == "raise":
        job.on_duplicate = "ignore"
    meta = {**(msgspec.json.decode(job.meta) if job.meta else {}), "schedule": name}
    job.meta = msgspec.json.encode(meta).decode()
    return msgspec.json.encode(
        Template(
            {one: getattr(job, one) for one in sorted(_FIELDS)},
            told,
            any(one.unique_key != job.unique_key for one in made),
        )
    ).decode()


def made(text: str, job_id: int, moment: datetime) -> NewJob:
    """The job with *job_id* that a schedule enqueues for *moment*.

    Raises:
        InvalidInput: *text* is nothing that ``template`` made.
    """
    try:
        found = msgspec.json.decode(text, type=Template)
        if unknown := found.job.keys() - _FIELDS:
            raise TypeError(f"{', '.join(sorted(unknown))} is not known here")
        job = msgspec.convert({**found.job, "id": job_id}, NewJob)
        arguments = msgspec.json.decode(job.args, type=dict[str, Any])
        if found.with_fire_time:
            job.args = msgspec.json.encode({**arguments, FIRE_TIME: moment}).decode()
    except (msgspec.MsgspecError, TypeError) as error:
        raise InvalidInput(f"what the schedule enqueues cannot be read: {error}") from error
    for name, what in _WORDS.items():
        if (value := getattr(job, name)) is not None:
            checked_word(value, what)
    checked_job_option("priority", job.priority)
    checked_job_option("max_attempts", job.max_attempts)
    if found.unique_by_moment and job.unique_key is not None:
        job.unique_key = f"{job.unique_key}@{moment.astimezone(UTC).isoformat()}"
    return job


def _prepared(name: str, call: Call[Any], prepare: Prepare) -> NewJob:
    try:
        return prepare(call, 0, {})  # what led to the declaration did not lead to its jobs
    except InvalidInput as error:
        raise InvalidDefinition(f"schedule {name!r}: {error}") from error


def _at(call: Call[Any], moment: datetime) -> Call[Any]:
    return Call(call.job, call.args, {**call.kwargs, FIRE_TIME: moment}, call.options)


def _takes_fire_time(call: Call[Any]) -> bool:
    names = list(inspect.signature(call.job.function).parameters)
    return (
        FIRE_TIME in names
        and FIRE_TIME not in call.kwargs
        and names.index(FIRE_TIME) >= len(call.args)
    )
