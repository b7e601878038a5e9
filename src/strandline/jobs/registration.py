"""The declaring side of an app: jobs and their upcasters."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace
from typing import Any, Protocol, TypeVar, overload

from strandline.errors import InvalidDefinition
from strandline.jobs.job import AsyncJob, Executor, Job, P, R, Unique, Upcast
from strandline.jobs.kinds import Kinds
from strandline.jobs.retry import Retry
from strandline.jobs.row import DEFAULT_PRIORITY, DEFAULT_QUEUE, Kept

U = TypeVar("U", bound=Upcast)


class JobDecorator(Protocol):
    """What ``@app.job(...)`` is: makes a job of a function."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]]) -> AsyncJob[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R]) -> Job[P, R]: ...


class JobRegistration:
    """Decorators that declare jobs."""

    kinds: Kinds

    @overload
    def job(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncJob[P, R]: ...
    @overload
    def job(self, function: Callable[P, R], /) -> Job[P, R]: ...
    @overload
    def job(
        self,
        /,
        *,
        name: str | None = None,
        queue: str = DEFAULT_QUEUE,
        priority: int = DEFAULT_PRIORITY,
        retry: Retry | None = None,
        max_attempts: int | None = None,
        timeout: float | None = None,
        executor: Executor | None = None,
        keep: Kept = "failed",
        key: Callable[..., str] | None = None,
        ordered: bool = False,
        unique: Unique | None = None,
        encrypted: bool = False,
        aliases: Iterable[str] = (),
    ) -> JobDecorator: ...

    def job(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        queue: str = DEFAULT_QUEUE,
        priority: int = DEFAULT_PRIORITY,
        retry: Retry | None = None,
        max_attempts: int | None = None,
        timeout: float | None = None,
        executor: Executor | None = None,
        keep: Kept = "failed",
        key: Callable[..., str] | None = None,
        ordered: bool = False,
        unique: Unique | None = None,
        encrypted: bool = False,
        aliases: Iterable[str] = (),
    ) -> Any:
        """Make a job of the decorated function: ``@app.job``, or ``@app.job(queue="mail")``.

        It can still be called directly; ``app.enqueue(function, ...)`` and ``function.call(...)``
        let a node run it. Its arguments are stored as JSON, by name.

        Args:
            function: What runs; named arguments only, no ``*args``.
            name: Its kind in the database, 1 to 200 bytes; the function's name when None. Never
                change it, or give the old one as an alias.
            queue: Where its calls wait unless they say otherwise.
            priority: 1 (first) to 9.
            retry: When a failed attempt is followed by another.
            max_attempts: In all; overrides that of *retry*.
            timeout: Seconds one attempt may take; None: as long as it likes.
            executor: ``"async"`` (coroutine functions), ``"thread"`` (all others), ``"process"``.
            keep: What stays in the history: ``"failed"`` jobs, ``"all"``, or ``"none"``.
            key: Makes the key of a call from its arguments, e.g. ``lambda order: str(order.id)``.
            ordered: One job of a key at a time, in the order of enqueueing.
            unique: What makes a call the same as one there is already.
            encrypted: Store the arguments under the setting ``job_keys``.
            aliases: Older kinds; jobs stored under them run as this one.

        Raises:
            InvalidDefinition: The function cannot be a job; the message says why.
        """
        names = sys._getframe(1).f_locals  # types may be local to the function that declares it

        def register(function: Callable[..., Any]) -> Job[..., Any]:
            if isinstance(aliases, str):
                raise InvalidDefinition(f"aliases={aliases!r} is a text: give a list of them")
            policy = Retry() if retry is None else retry
            if max_attempts is not None and isinstance(policy, Retry):
                policy = replace(policy, max_attempts=max_attempts)
            cls = AsyncJob if inspect.iscoroutinefunction(inspect.unwrap(function)) else Job
            made: Job[..., Any] = cls(
                function,
                name or _name_of(function),
                queue=queue,
                priority=priority,
                retry=policy,
                timeout=timeout,
                executor=executor,
                keep=keep,
                key=key,
                ordered=ordered,
                unique=unique,
                encrypted=encrypted,
                aliases=tuple(aliases),
                names=names,
            )
            self.kinds.add(made)
            self._declared(made)
            return made

        return register if function is None else register(function)

    def upcast_job(self, kind: str, *, to: Job[..., Any]) -> Callable[[U], U]:
        """Bring arguments stored under *kind* up to date by the decorated function.

        It gets the stored arguments as a dict and answers those of today. *kind* is the old name of
        a renamed job, or today's name when its arguments have changed.
        """

        def register(change: U) -> U:
            self.kinds.upcast(kind, to, change)
            return change

        return register

    def _declared(self, job: Job[..., Any]) -> None:
        """Hook for apps that can enqueue by themselves what they declare."""


def _name_of(function: Any) -> str:
    name: str = getattr(function, "__name__", "")
    if not name.isidentifier():
        raise InvalidDefinition(
            f"{function!r} has no name of its own: @app.job(name=...) gives it one"
        )
    return name
