"""What a job's function can ask and do about the attempt that runs it: ``sl.current()``."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Awaitable
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from datetime import datetime
from types import TracebackType
from typing import Any, Protocol, TypeVar

from strandline.jobs.row import Claimed

T = TypeVar("T")


class Reach(Protocol):
    """What a running job can reach: the parts of the node that serve its context."""

    def progress(self, job: Claimed, done: float | None, total: float | None, message: str) -> None:
        """Note how far *job* is; returns at once."""
        ...

    async def results(self, job: Claimed) -> dict[str, Any]:
        """The results of the jobs that *job* has waited for."""
        ...

    def completing(self, job: Claimed, result: Any) -> AbstractAsyncContextManager[Any]:
        """A transaction that completes *job* as it commits."""
        ...

    async def enqueue(self, call: Any) -> Any:
        """Enqueue *call* on the app."""
        ...


class JobContext:
    """The job that is being run here. ``sl.current()`` gives it, in an async function or a thread.

    Its facts, ``progress`` and ``is_cancelled`` may be used from any thread; from one, what must be
    awaited goes through ``wait``.
    """

    __slots__ = ("_loop", "_meta", "_reach", "is_settled", "job", "stopped_for")

    def __init__(self, job: Claimed, reach: Reach | None) -> None:
        self.job = job
        self.stopped_for = ""
        self.is_settled = False
        self._reach = reach
        self._loop: asyncio.AbstractEventLoop | None = None
        self._meta: dict[str, Any] | None = None

    @property
    def id(self) -> int:
        """The job's id."""
        return self.job.id

    @property
    def kind(self) -> str:
        """Its kind, as stored."""
        return self.job.kind

    @property
    def queue(self) -> str:
        """The queue it was fetched from."""
        return self.job.queue

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1."""
        return self.job.attempt

    @property
    def max_attempts(self) -> int:
        """How many there are at the most."""
        return self.job.max_attempts

    @property
    def key(self) -> str | None:
        """What it is ordered or limited by."""
        return self.job.key

    @property
    def tenant(self) -> str | None:
        """Whose it is."""
        return self.job.tenant

    @property
    def created_at(self) -> datetime:
        """When it was enqueued, by the server's clock."""
        return self.job.created_at

    @property
    def fencing_token(self) -> int:
        """Grows from attempt to attempt on a node and never repeats: for systems outside."""
        return self.job.claim

    @property
    def meta(self) -> dict[str, Any]:
        """What it was enqueued with beside its arguments: correlation, causation, tags, your own."""
        if self._meta is None:
            self._meta = json.loads(self.job.meta) if self.job.meta else {}
        return self._meta

    @property
    def is_cancelled(self) -> bool:
        """Whether it should end: cancelled, over its time limit, or the node stops.

        An async function is told by ``asyncio.CancelledError``; one in a thread must look.
        """
        return bool(self.stopped_for)

    def raise_if_cancelled(self) -> None:
        """Raise ``asyncio.CancelledError`` if it should end: for functions in a thread.

        Raises:
            asyncio.CancelledError: ``is_cancelled``.
        """
        if self.stopped_for:
            raise asyncio.CancelledError(self.stopped_for)

    def progress(
        self, done: float | None = None, total: float | None = None, message: str = ""
    ) -> None:
        """Tell how far it is. Cheap: what is written, once a second at the most, is the latest.

        Args:
            done: In whatever unit.
            total: In the same unit.
            message: For people; cut after 1,000 characters.
        """
        self._served().progress(self.job, done, total, message)

    async def results(self) -> dict[str, Any]:
        """What the jobs that it has waited for have returned, by their names in the flow."""
        return await self._served().results(self.job)

    def completing(self, result: Any = None) -> AbstractAsyncContextManager[Any]:
        """A transaction that completes this job as it commits: ``async with ... as tx``.

        What is done by ``tx`` and the end of the job are one commit, so it happens exactly once.
        Nothing else is written about the job afterwards; what the function returns is ignored.

        Args:
            result: The job's result.

        Raises:
            ClaimLost: Another attempt has the job; everything is rolled back.
        """
        return _Settling(self, self._served().completing(self.job, result))

    async def enqueue(self, call: Any) -> Any:
        """Enqueue *call* on the same app; this job is noted as its cause. See ``App.enqueue``."""
        return await self._served().enqueue(call)

    def wait(self, awaitable: Awaitable[T]) -> T:
        """Wait in a thread for what must be awaited on the node's event loop.

        Raises:
            RuntimeError: This is not a function in a thread: use ``await``.
        """
        if self._loop is None or _is_on_a_loop():
            if inspect.iscoroutine(awaitable):
                awaitable.close()
            raise RuntimeError("only a function in a thread waits like this: use await")
        waiting = asyncio.run_coroutine_threadsafe(_awaited(awaitable), self._loop)
        while True:
            try:
                return waiting.result(timeout=1.0)
            except TimeoutError:
                if waiting.done():  # its own
                    raise
                if self._loop.is_closed():
                    raise RuntimeError("the node has ended") from None

    def __repr__(self) -> str:
        return f"<job {self.kind!r} {self.id}, attempt {self.attempt} of {self.max_attempts}>"

    def _served(self) -> Reach:
        if self._reach is None:
            raise RuntimeError(f"{self!r} is run by nothing that serves this")
        return self._reach


class _Settling:
    """Lets the job be settled as soon as its own transaction has committed."""

    __slots__ = ("_context", "_within")

    def __init__(self, context: JobContext, within: AbstractAsyncContextManager[Any]) -> None:
        self._context = context
        self._within = within

    async def __aenter__(self) -> Any:
        if self._context.is_settled:
            raise RuntimeError(f"{self._context!r} has been completed already")
        return await self._within.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        swallowed = await self._within.__aexit__(kind, error, trace)
        if error is None:
            self._context.is_settled = True
        return swallowed


CURRENT: ContextVar[JobContext | None] = ContextVar("strandline job", default=None)


def current() -> JobContext:
    """The job that is being run here.

    Raises:
        RuntimeError: None is: the function was called directly. ``strandline.testing.jobs.run``
            calls it as a job.
    """
    found = CURRENT.get()
    if found is None:
        raise RuntimeError(
            "no job is being run here; in a test, strandline.testing.jobs.run(call) runs one"
        )
    return found


def find_current() -> JobContext | None:
    """The job that is being run here, or None."""
    return CURRENT.get()


def _is_on_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _awaited(awaitable: Awaitable[T]) -> T:
    return await awaitable
