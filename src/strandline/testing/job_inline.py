"""Runs jobs as soon as they are committed, while a block of a test lasts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from strandline.app import App
from strandline.jobs.context import find_current
from strandline.testing.job_drain import Drain, Drained, Ran


class Inline:
    """What has been run inline.

    Attributes:
        runs: So far, in order.
    """

    def __init__(self, app: App, *, most: int, raises: bool) -> None:
        self.runs: list[Ran] = []
        self._app = app
        self._most = most
        self._raises = raises
        self._raised = 0
        self._is_due = False
        self._task: asyncio.Task[None] | None = None

    @property
    def drained(self) -> Drained:
        """The same, as ``drain`` answers it."""
        return Drained(tuple(self.runs))

    async def settled(self) -> None:
        """Wait until everything that was enqueued has run.

        Raises:
            Exception: What a job has raised, unless ``raises=False``.
        """
        while self._task is not None:
            task = self._task
            await asyncio.wait({task})
            if task.done():
                self._task = None if self._task is task else self._task
                task.result()
        before, self._raised = self._raised, len(self.runs)
        if self._raises:
            Drained(tuple(self.runs[before:])).raise_errors()

    def wake(self, queue: str = "") -> None:
        """Something was committed."""
        self._is_due = True
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        drain = Drain(self._app)
        while self._is_due:
            self._is_due = False
            done = await drain.run(with_scheduled=False, until=None, most=self._most)
            self.runs += done.runs
        self._task = None


@asynccontextmanager
async def inline(app: App, *, raises: bool = True, most: int = 1_000) -> AsyncIterator[Inline]:
    """Run jobs at once while the block lasts: ``app.enqueue`` returns when its job has run.

    Likewise at the end of ``app.transaction()``, after its commit. What is enqueued elsewhere (by a
    subscription, by SQL) runs as soon as this process hears of it; at the end of the block nothing
    is left. Not for jobs enqueued in the transaction of a connection of yours: when that commits is
    not known here, so call ``drain`` then. Scheduled jobs and retries wait for ``drain`` as well.

    Args:
        app: An open one.
        raises: An attempt that fails raises where its job was enqueued; else it is only recorded.
        most: Attempts at once, before it is taken for a job that enqueues itself for ever.

    Yields:
        What has been run.
    """
    running = Inline(app, most=most, raises=raises)
    end = app.wakes.on(running.wake)
    restore = _patch(app, running)
    try:
        yield running
        await _final(app, running)
    finally:
        restore()
        end()
        if running._task is not None:
            running._task.cancel()
            await asyncio.wait({running._task})


async def _final(app: App, running: Inline) -> None:
    running.wake()  # ordered jobs are told of a moment after their commit
    await running.settled()


def _patch(app: App, running: Inline) -> Callable[[], None]:
    """Let the ways in wait for what they have enqueued; the answer undoes that."""
    enqueue, enqueue_many, transaction = app.enqueue, app.enqueue_many, app.transaction

    async def waits() -> None:
        if find_current() is None:  # a job that enqueues must end before the next one runs
            running.wake()
            await running.settled()

    async def enqueued(*args: Any, **kwargs: Any) -> Any:
        answer = await enqueue(*args, **kwargs)
        await waits()
        return answer

    async def enqueued_many(*args: Any, **kwargs: Any) -> Any:
        answer = await enqueue_many(*args, **kwargs)
        await waits()
        return answer

    @asynccontextmanager
    async def committed(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        async with transaction(*args, **kwargs) as tx:
            yield tx
        await waits()

    changed = {"enqueue": enqueued, "enqueue_many": enqueued_many, "transaction": committed}
    enqueuers = [(job, job.enqueuer) for job in set(app.kinds.jobs.values())]
    vars(app).update(changed)
    for job, _ in enqueuers:
        job.enqueuer = enqueued

    def restore() -> None:
        for name in changed:
            vars(app).pop(name, None)
        for job, before in enqueuers:
            job.enqueuer = before

    return restore
