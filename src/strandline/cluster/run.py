"""One piece of work on this node: started, resting after a failure, stopped. Never two at once.

States: *starting* → *running* → *stopping* → *ended*; from *starting* and *running* also to
*resting*, when it ended by itself, could not be started, or was stuck, and from there to *starting*.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from strandline.cluster.work import Grant, Worker
from strandline.errors import OwnershipLost

START_WITHIN = 30.0  # seconds for the worker to start something
GRACE = 2.0  # seconds a worker may need beyond the time-out that it was given
REST = 0.25  # seconds before the first new start; doubles
LONGEST_REST = 30.0
LONGEST_REST_LOST = 1.0  # where somebody else had it: no reason to think that it fails here


class Run:
    """Runs what *grant* allows, by *worker*, until told to stop.

    Args:
        grant: The right to run it.
        worker: Who knows how.
        healthy_after: Seconds that it runs before earlier failures are forgotten.
        on_ended: Called whenever it came to rest or could not be started, with the error.
    """

    def __init__(
        self,
        grant: Grant,
        worker: Worker,
        *,
        healthy_after: float,
        on_ended: Callable[[Run, BaseException | None], None],
    ) -> None:
        self.grant = grant
        self.state = "starting"
        self.failures = 0  # starts that failed, and times it got nowhere, in a row
        self.starts = 0
        self.due = 0.0
        self.has_told = False  # it has found out by itself that it is another's, and said so
        self._lost = 0
        self._worker = worker
        self._healthy_after = healthy_after
        self._on_ended = on_ended
        self._began = 0.0
        self._task: asyncio.Task[Any] | None = None

    @property
    def work(self) -> str:
        """Its name."""
        return self.grant.work

    def start(self, slots: asyncio.Semaphore) -> None:
        """Start it, now or again, as soon as one of *slots* is free."""
        self.state = "starting"
        self.has_told = False
        self.starts += 1
        self._task = self._spawn(self._start(slots, self.starts))

    def restart(self, reason: BaseException, *, timeout: float) -> None:
        """It gets nowhere: stop it, and let it rest before it is started again."""
        self.state = "resting"
        self.due = float("inf")
        self._task = self._spawn(self._restart(reason, timeout))

    def stop(self, *, timeout: float) -> asyncio.Task[bool]:
        """Stop it for good; the answer tells whether it ended by itself within *timeout* seconds.

        However badly the work behaves, the answer comes in *timeout* seconds and a little.
        """
        self.state = "stopping"
        task: asyncio.Task[bool] = self._spawn(self._stop(self._task, timeout))
        self._task = task
        return task

    def is_due(self) -> bool:
        """Whether it has rested long enough to be started again."""
        return self.state == "resting" and time.monotonic() >= self.due

    def _spawn(self, step: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return asyncio.create_task(step, name=f"strandline:{self.state} {self.work}")

    async def _start(self, slots: asyncio.Semaphore, number: int) -> None:
        def ended(_: str, error: BaseException | None) -> None:
            if self.starts != number:
                return
            self.has_told = isinstance(error, OwnershipLost)
            if self.state in ("starting", "running"):
                self._rest(error, failed=not isinstance(error, OwnershipLost))

        self._began = time.monotonic()
        async with slots:
            try:
                async with asyncio.timeout(START_WITHIN):
                    await self._worker.run(self.grant, ended)
            except Exception as error:  # a worker's code, and the user's below it
                if self.state == "starting":
                    self._rest(error, failed=True)
                return
        if self.state == "starting":
            self.state = "running"

    async def _restart(self, reason: BaseException, timeout: float) -> None:
        await self._stop(None, timeout)
        if self.state == "resting":
            self._rest(reason, failed=True)

    async def _stop(self, before: asyncio.Task[Any] | None, timeout: float) -> bool:
        if before is not None and not before.done():
            before.cancel()
            await asyncio.wait({before}, timeout=GRACE)
        stopping = asyncio.create_task(
            self._worker.stop(self.work, timeout=timeout), name=f"strandline:stop of {self.work}"
        )
        done, _ = await asyncio.wait({stopping}, timeout=timeout + GRACE)
        if not done:
            stopping.cancel()  # and it is left alone: what it still writes is refused
        return well(stopping)

    def _rest(self, error: BaseException | None, *, failed: bool) -> None:
        if time.monotonic() - self._began >= self._healthy_after:
            self.failures = self._lost = 0
        if failed:
            self.failures += 1
            seconds = min(LONGEST_REST, REST * 2.0 ** (self.failures - 1))
        else:
            self._lost += 1
            seconds = min(LONGEST_REST_LOST, REST * 2.0 ** (self._lost - 1))
        self.state = "resting"
        self.due = time.monotonic() + seconds
        self._on_ended(self, error)


def well(task: asyncio.Task[bool]) -> bool:
    """Whether it is done, and answered True."""
    return task.done() and not task.cancelled() and task.exception() is None and task.result()
