"""Makes a kind runnable: its arguments decoded, injections and middleware around it, and where it runs.

The short way is taken by a plain async function: ``run`` answers the function's own coroutine, and
nothing stands between it and its runner.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from contextvars import Context, copy_context
from typing import Any, Literal, Protocol, TypeAlias

from strandline.errors import InvalidDefinition
from strandline.jobs.arguments import Arguments
from strandline.jobs.attempt import Attempt, Runnable
from strandline.jobs.context import Reach
from strandline.jobs.hooks import Hooks, JobEvent
from strandline.jobs.inject import Source, Sources, inject, sources
from strandline.jobs.job import Job
from strandline.jobs.middleware import Middleware, chain
from strandline.jobs.processes import Address, Processes, address
from strandline.jobs.row import Claimed, Flag
from strandline.jobs.spanned import spanned
from strandline.jobs.threads import Threads
from strandline.telemetry import tracing

ENCRYPTED = int(Flag.ENCRYPTED)

Bound: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
Inner: TypeAlias = Callable[[Attempt, tuple[Any, ...], dict[str, Any]], Awaitable[Any]]


class Decoding(Protocol):
    """What is needed of ``Kinds``."""

    def decode(self, kind: str, args: str, *, encrypted: bool = False) -> Bound:
        """What the function of *kind* is to be called with."""
        ...


class Executors:
    """The threads and processes of one node; made when the first job needs them.

    Args:
        threads: At once, for all its queues.
        processes: At once; as many as there are cores when None.
    """

    def __init__(self, *, threads: int = 100, processes: int | None = None) -> None:
        self.threads = Threads(threads)
        self.processes = Processes(processes)

    async def stop(self, *, timeout: float = 5.0) -> None:
        """End the idle threads, and all processes. Call it when no job runs any more."""
        self.threads.stop()
        await self.processes.stop(timeout=timeout)


def compile(  # noqa: A001 - that is what it does
    job: Job[..., Any],
    kinds: Decoding,
    middleware: Sequence[Middleware] = (),
    hooks: Hooks | None = None,
    executors: Executors | None = None,
    *,
    reach: Reach | None = None,
) -> Runnable:
    """*job*, ready to be run.

    Args:
        job: As it was declared.
        kinds: Decode its arguments.
        middleware: Around it, the first outermost.
        hooks: Hear that an attempt has started, if anybody listens.
        executors: Needed for jobs in threads and processes.
        reach: What ``sl.current()`` can do.

    Raises:
        InvalidDefinition: It cannot run where it says: see the message.
    """
    title = f"job {job.kind!r}"
    function = job.function
    injected = sources(function, title)
    _check(job, injected, title)
    decode = _decoder(job, kinds)
    if job.executor == "async" and job.is_async and not (middleware or injected):
        return Runnable(job, _plain(function, decode, hooks), reach)
    inner = _inner(job, injected, executors or Executors(), title)

    async def innermost(attempt: Attempt) -> Any:
        args, kwargs = decode(attempt.job)
        return await inner(attempt, args, kwargs)

    call = chain(middleware, innermost)

    def run(attempt: Attempt) -> Awaitable[Any]:
        own = attempt.enter()
        running = spanned(call, attempt) if tracing.is_on() else call(attempt)
        if own is not None or (hooks is not None and hooks.each):
            return _aside(running, own, attempt, hooks)
        return running

    return Runnable(job, run, reach)


def _plain(
    function: Callable[..., Awaitable[Any]],
    decode: Callable[[Claimed], Bound],
    hooks: Hooks | None,
) -> Callable[[Attempt], Awaitable[Any]]:
    def begin(attempt: Attempt) -> Awaitable[Any]:
        args, kwargs = decode(attempt.job)
        return function(*args, **kwargs)

    def run(attempt: Attempt) -> Awaitable[Any]:
        if tracing.is_on():
            own = attempt.enter()
            running: Awaitable[Any] = spanned(begin, attempt)
        else:
            args, kwargs = decode(attempt.job)
            own = attempt.enter()
            running = function(*args, **kwargs)
        if own is not None or (hooks is not None and hooks.each):
            return _aside(running, own, attempt, hooks)
        return running

    return run


def _decoder(job: Job[..., Any], kinds: Decoding) -> Callable[[Claimed], Bound]:
    """What decodes the arguments of *job*, by the short way where they are as they were stored."""
    own, decode, upcasters = job.kind, job.arguments.decode, job.upcasters

    def arguments(claimed: Claimed) -> Bound:
        kind, flags = claimed.kind, claimed.flags
        if kind == own and not flags & ENCRYPTED and kind not in upcasters:
            return decode(claimed.args)
        return kinds.decode(kind, claimed.args, encrypted=bool(flags & ENCRYPTED))

    return arguments


async def _aside(
    running: Awaitable[Any], own: Context | None, attempt: Attempt, hooks: Hooks | None
) -> Any:
    """Run it the long way: heard by hooks, in a context and thus a task of its own."""
    begun = time.monotonic()
    if hooks is not None and hooks.each:
        hooks.tell(_event("started", attempt.job, 0.0))
    if own is None:
        answer = await running
    else:  # a cancellation reaches it
        answer = await asyncio.get_running_loop().create_task(_coroutine(running), context=own)
    if hooks is not None and hooks.each:
        hooks.tell(_event("completed", attempt.job, time.monotonic() - begun))
    return answer


def _event(happened: Literal["started", "completed"], job: Claimed, seconds: float) -> JobEvent:
    return JobEvent(happened, job.id, job.kind, job.queue, job.attempt, seconds)


async def _coroutine(running: Awaitable[Any]) -> Any:
    return await running


def _inner(job: Job[..., Any], injected: Sources, executors: Executors, title: str) -> Inner:
    """What runs the function with its arguments, where the job says."""
    function = job.function
    if job.executor == "process":
        return _in_process(
            executors.processes, address(function, title), Arguments(function, job.kind)
        )
    if job.executor == "thread":
        inner = _in_thread(executors.threads, function, injected.blocking)
        return _opened(injected.on_loop, inner) if injected.on_loop else inner
    return _opened(injected.on_loop + injected.blocking, functools.partial(_on_loop, function))


async def _on_loop(
    function: Callable[..., Any], attempt: Attempt, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    answer = function(*args, **kwargs)
    return await answer if inspect.isawaitable(answer) else answer


def _in_thread(
    threads: Threads, function: Callable[..., Any], blocking: tuple[Source, ...]
) -> Inner:
    async def run(attempt: Attempt, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        attempt._loop = asyncio.get_running_loop()
        called = inject(function, attempt, blocking) if blocking else function
        context = copy_context()
        return await threads.submit(
            functools.partial(context.run, functools.partial(called, *args, **kwargs))
        ).ended()

    return run


def _in_process(processes: Processes, where: Address, arguments: Arguments) -> Inner:
    async def run(attempt: Attempt, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Decrypted and of today's shape: the child has neither keys nor upcasters.
        return await processes.run(where, attempt, arguments.encode(args, kwargs).decode())

    return run


def _opened(needed: tuple[Source, ...], inner: Inner) -> Inner:
    """*inner* with *needed* opened on the event loop before it and closed after it."""
    if not needed:
        return inner

    async def run(attempt: Attempt, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        async with AsyncExitStack() as stack:
            for one in needed:
                kwargs[one.name] = await one.open(attempt, stack)
            return await inner(attempt, args, kwargs)

    return run


def _check(job: Job[..., Any], injected: Sources, title: str) -> None:
    function = inspect.unwrap(job.function)
    if job.executor == "async":
        return
    if inspect.iscoroutinefunction(function):
        raise InvalidDefinition(
            f"{title} is async, so it runs on the event loop: leave out executor={job.executor!r},"
            " or make it a plain function"
        )
    if job.executor == "process" and injected.on_loop:
        names = ", ".join(one.name for one in injected.on_loop)
        raise InvalidDefinition(
            f"{title} runs in another process, where nothing can be awaited: give {names} by a"
            " function that is not async"
        )
