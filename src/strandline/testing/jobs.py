"""Jobs in tests: run what is enqueued, here and now, without a node; look at what is.

    async with app:
        await place_order(app, "order-1")
        await jobs.assert_enqueued(app, send_receipt, order="order-1")
        drained = await jobs.drain(app)
        assert drained.completed == 1

Everything happens in the real tables: claims, retries, flows, ordered keys, results. Limits of
queues are not looked at, since one job runs at a time; paused queues rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec

from strandline.app import App
from strandline.jobs.job import Call, Job
from strandline.jobs.row import Flag, JobState, State
from strandline.testing import job_drain
from strandline.testing.job_drain import Drain, Drained, Ran, Waiting, waiting
from strandline.testing.job_inline import Inline, inline
from strandline.testing.job_run import run

__all__ = [
    "Drained",
    "Enqueued",
    "Inline",
    "Ran",
    "advance",
    "assert_enqueued",
    "assert_not_enqueued",
    "drain",
    "enqueued",
    "inline",
    "run",
]


@dataclass(frozen=True, slots=True)
class Enqueued:
    """A job that has not ended.

    Attributes:
        args: By name, as JSON values; defaults are filled in.
        state: In words.
        attempt: How many there have been.
    """

    id: int
    kind: str
    args: dict[str, Any]
    queue: str
    state: JobState
    priority: int
    attempt: int
    max_attempts: int
    run_at: datetime | None
    key: str | None
    unique_key: str | None
    tenant: str | None
    meta: dict[str, Any]


async def drain(
    app: App,
    *,
    queue: str | Iterable[str] = (),
    with_scheduled: bool = False,
    until: Callable[[Ran], Any] | None = None,
    most: int = 1_000,
) -> Drained:
    """Run all jobs that are available, and those that they make available, one after the other.

    What fails is retried as its job says: the next attempt is scheduled, and runs in this drain
    only with *with_scheduled*. Errors do not leave the drain; see ``Drained.raise_errors``.

    Args:
        app: An open one.
        queue: Only of this one, or these.
        with_scheduled: Also run what is scheduled, retries included, as if its time had come.
        until: Called after each attempt; true ends the drain.
        most: Attempts, before it is taken for a job that enqueues itself for ever.

    Returns:
        Every attempt, in order.

    Raises:
        AssertionError: There were more than *most*.
    """
    queues = [queue] if isinstance(queue, str) else list(queue)
    return await Drain(app, queues).run(with_scheduled=with_scheduled, until=until, most=most)


async def advance(app: App, seconds: float | timedelta) -> int:
    """Let time pass for jobs: what is due by then is available, schedules that are due have fired.

    The clocks of the server and of this process stay as they are; what waits for a moment is moved
    back instead: scheduled jobs, retries, schedules, unique keys for a time, rates. Jobs run with
    the next ``drain``.

    Returns:
        How many jobs schedules have enqueued.
    """
    by = seconds.total_seconds() if isinstance(seconds, timedelta) else float(seconds)
    if not by >= 0:
        raise ValueError(f"time cannot go back by {-by} s")
    await app.pools.work.run(job_drain.advance(by))
    return await Drain(app).fire()


async def enqueued(app: App, job: Any = None, /, **args: Any) -> list[Enqueued]:
    """Jobs that have not ended, in the order of enqueueing.

    Args:
        app: An open one; what a transaction has not committed yet is not there.
        job: Only of this job (or kind), or only calls like this ``job.call(...)``; all when None.
        args: Only those with these arguments, others may be any; ``unittest.mock.ANY`` works.
    """
    kinds, wanted = _wanted(job, args)
    rows = await app.pools.work.run(waiting(kinds))
    found = [_enqueued(app, row) for row in rows]
    return [one for one in found if _fits(one.args, wanted)]


async def assert_enqueued(app: App, job: Any, /, **args: Any) -> Enqueued:
    """Fail if no such job waits; the first that does. See ``enqueued``."""
    __tracebackhide__ = True
    found = await enqueued(app, job, **args)
    if not found:
        raise AssertionError(await _what_there_is(app, job, args))
    return found[0]


async def assert_not_enqueued(app: App, job: Any, /, **args: Any) -> None:
    """Fail if such a job waits. See ``enqueued``."""
    __tracebackhide__ = True
    found = await enqueued(app, job, **args)
    if found:
        lines = "\n".join(f"  {_words(one)}" for one in found)
        raise AssertionError(f"{_title(job, args)} is enqueued:\n{lines}")


def _wanted(job: Any, args: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    if job is None:
        return [], args
    if isinstance(job, Call):
        data = job.job.arguments.encode(job.args, job.kwargs)
        return _kinds(job.job), {**job.job.arguments.whole(data), **args}
    if isinstance(job, Job):
        unknown = sorted(set(args) - set(job.arguments.names))
        if unknown:
            raise ValueError(
                f"job {job.kind!r} has no argument {', '.join(unknown)}"
                f" (it takes: {', '.join(job.arguments.names) or 'nothing'})"
            )
        return _kinds(job), args
    return [str(job)], args


def _kinds(job: Job[..., Any]) -> list[str]:
    return [job.kind, *job.aliases]


def _enqueued(app: App, row: Waiting) -> Enqueued:
    return Enqueued(
        id=row.id,
        kind=row.kind,
        args=_arguments(app, row),
        queue=row.queue,
        state=_state(row),
        priority=row.priority,
        attempt=row.attempt,
        max_attempts=row.max_attempts,
        run_at=row.run_at,
        key=row.key,
        unique_key=row.unique_key,
        tenant=row.tenant,
        meta=json.loads(row.meta) if row.meta else {},
    )


def _state(row: Waiting) -> JobState:
    if row.state == State.SCHEDULED:
        return JobState.RETRYABLE if row.attempt else JobState.SCHEDULED
    return JobState[State(row.state).name]


def _arguments(app: App, row: Waiting) -> dict[str, Any]:
    """By name, as today's function would get them."""
    if row.kind not in app.kinds.jobs:
        return dict(json.loads(row.args)) if row.args.startswith("{") else {}
    is_encrypted = bool(row.flags & Flag.ENCRYPTED)
    args, kwargs = app.kinds.decode(row.kind, row.args, encrypted=is_encrypted)
    arguments = app.kinds.get(row.kind).arguments
    return arguments.whole(arguments.encode(args, kwargs))


def _fits(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return all(name in found and _same(found[name], value) for name, value in wanted.items())


def _same(found: Any, wanted: Any) -> bool:
    if wanted == found:
        return True
    try:
        plain = msgspec.json.decode(msgspec.json.encode(wanted, enc_hook=_dumped))
    except (TypeError, ValueError):
        return False
    return bool(plain == found)


def _dumped(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    if dump is None:
        raise TypeError
    return dump(mode="json")


async def _what_there_is(app: App, job: Any, args: dict[str, Any]) -> str:
    kinds, wanted = _wanted(job, args)
    alike = [_enqueued(app, row) for row in await app.pools.work.run(waiting(kinds))]
    lines = [f"{_title(job, args)} is not enqueued."]
    if alike:
        lines.append("There are, of this kind:")
        lines += [f"  {_words(one)}{_differences(one, wanted)}" for one in alike[:10]]
        return "\n".join([*lines, *_more(alike)])
    others = [_enqueued(app, row) for row in await app.pools.work.run(waiting([]))]
    if not others:
        return f"{lines[0]} Nothing is; jobs that have run are gone."
    lines.append("There are, of other kinds:")
    lines += [f"  {_words(one)}" for one in others[:10]]
    return "\n".join([*lines, *_more(others)])


def _more(found: list[Enqueued]) -> list[str]:
    return [f"  and {len(found) - 10} more"] if len(found) > 10 else []


def _differences(found: Enqueued, wanted: dict[str, Any]) -> str:
    differing = [
        f"{name} is {found.args.get(name)!r}, not {value!r}"
        for name, value in wanted.items()
        if not _fits(found.args, {name: value})
    ]
    return f"  <- {', '.join(differing)}" if differing else ""


def _words(one: Enqueued) -> str:
    args = ", ".join(f"{name}={value!r}" for name, value in one.args.items())
    due = f" at {one.run_at:%Y-%m-%d %H:%M:%S}" if one.run_at and one.state != "available" else ""
    return f"{one.kind}({args}) {one.state}{due} in {one.queue!r}"


def _title(job: Any, args: dict[str, Any]) -> str:
    if isinstance(job, Call):
        args = _wanted(job, args)[1]
        job = job.job
    given = ", ".join(f"{name}={value!r}" for name, value in args.items())
    return f"{getattr(job, 'kind', job)}({given})"
