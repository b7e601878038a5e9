"""Runs one call in a test as a job: with a context, middleware and injections, and no database."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Any, TypeVar

from strandline.app import App
from strandline.jobs import executing
from strandline.jobs.attempt import Attempt
from strandline.jobs.inject import sources
from strandline.jobs.job import Call, Job
from strandline.jobs.kinds import Kinds
from strandline.jobs.row import Claimed
from strandline.testing.job_drain import in_task

R = TypeVar("R")

Told = tuple[float | None, float | None, str]


async def run(
    call: Call[R],
    *,
    app: App | None = None,
    id: int = 1,  # noqa: A002 - what it is called in the context
    attempt: int = 1,
    max_attempts: int | None = None,
    key: str | None = None,
    tenant: str | None = None,
    meta: Mapping[str, Any] | None = None,
    results: Mapping[str, Any] | None = None,
    provide: Mapping[str, Any] | None = None,
    progress: list[Told] | None = None,
) -> R:
    """Run *call* as a job would run: its arguments through JSON, ``sl.current()`` there.

    Nothing is enqueued or written about the job itself, and whatever it raises comes out, verdicts
    too. A job with ``executor="process"`` runs in a thread here.

    Args:
        call: ``job.call(...)``.
        app: Its middleware stands around the job, and ``completing()`` is a transaction of it.
        id: As the context tells it; likewise what follows.
        attempt: From 1.
        max_attempts: Those of the job when None.
        key: What it is ordered or limited by.
        tenant: Whose it is.
        meta: What it was enqueued with.
        results: What ``current().results()`` answers.
        provide: Values for injected parameters, instead of their providers'.
        progress: Gets (done, total, message) of every ``progress()``.

    Returns:
        What the function returned.
    """
    job = _provided(call.job, provide or {})
    executors = executing.Executors(threads=1)
    runnable = executing.compile(
        job,
        app.kinds if app is not None else Kinds({job.kind: call.job}),
        app.job_middlewares if app is not None else (),
        app.job_hooks if app is not None else None,
        executors,
        reach=_Reach(app, results or {}, progress if progress is not None else []),
    )
    claimed = _claimed(
        call,
        id=id,
        attempt=attempt,
        max_attempts=job.retry.max_attempts if max_attempts is None else max_attempts,
        key=key if key is not None else call.options.key,
        tenant=tenant if tenant is not None else call.options.tenant,
    )
    begun = Attempt(claimed, runnable)
    begun._meta = {**call.options.meta, **(meta or {})}
    if call.options.tags:
        begun._meta.setdefault("tags", list(call.options.tags))
    try:
        answer: R = await in_task(begun)
    finally:
        await executors.stop()
    return answer


def _provided(job: Job[..., Any], provide: Mapping[str, Any]) -> Job[..., Any]:
    """*job* with these values for injected parameters, on this side of any process."""
    job = copy.copy(job)
    if job.executor == "process":
        job.executor = "thread"
    if provide:
        injected = sources(job.function, f"job {job.kind!r}")
        names = {one.name for one in (*injected.on_loop, *injected.blocking)}
        unknown = sorted(set(provide) - names)
        if unknown:
            raise ValueError(
                f"job {job.kind!r} has no injected parameter {', '.join(unknown)}"
                f" (there are: {', '.join(sorted(names)) or 'none'})"
            )
        job.function = functools.partial(job.function, **provide)
    return job


def _claimed(call: Call[Any], **facts: Any) -> Claimed:
    job, options = call.job, call.options
    return Claimed(
        claim=1,
        kind=job.kind,
        args=job.arguments.encode(call.args, call.kwargs).decode(),
        flags=0,
        queue=options.queue or job.queue,
        batch=None,
        meta=None,
        seq=1,
        priority=options.priority or job.priority,
        created_at=datetime.now(UTC),
        **facts,
    )


class _Reach:
    """What ``sl.current()`` reaches in ``run``."""

    def __init__(self, app: App | None, results: Mapping[str, Any], told: list[Told]) -> None:
        self._app = app
        self._results = results
        self._told = told

    def progress(self, job: Claimed, done: float | None, total: float | None, message: str) -> None:
        self._told.append((done, total, message))

    async def results(self, job: Claimed) -> dict[str, Any]:
        return dict(self._results)

    def completing(self, job: Claimed, result: Any) -> AbstractAsyncContextManager[Any]:
        if self._app is None:
            raise RuntimeError("completing() needs a database here: run(call, app=app)")
        return self._app.transaction()

    async def enqueue(self, call: Call[Any]) -> Any:
        return await (call.enqueue() if self._app is None else self._app.enqueue(call))
