"""A job is a decorated function; a call is that function with arguments, waiting to be enqueued."""

from __future__ import annotations

import functools
import inspect
import reprlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, TypeVar

import msgspec

from strandline.errors import InvalidDefinition
from strandline.jobs.arguments import Arguments
from strandline.jobs.retry import Retry
from strandline.jobs.row import DEFAULT_PRIORITY, DEFAULT_QUEUE, Flag, Kept
from strandline.jobs.words import checked_job_option, checked_seconds, checked_tags, checked_word

if TYPE_CHECKING:
    from strandline.jobs.ref import JobRef

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

Executor = Literal["async", "thread", "process"]
Until = Literal["done", "started"]
OnDuplicate = Literal["ignore", "replace", "raise"]
Upcast = Callable[[dict[str, Any]], Mapping[str, Any]]
NO_META: Mapping[str, Any] = MappingProxyType({})
SHOWN = 200  # characters of the arguments of a call, in messages

_reprs = reprlib.Repr()
_reprs.maxstring = _reprs.maxother = _reprs.maxlong = 60
_repr = _reprs.repr


@dataclass(frozen=True, slots=True)
class Unique:
    """What makes a job the same as another one.

    Attributes:
        by: ``args``, ``queue``, ``key``, or names of arguments; with the kind and the tenant, always.
        within: Seconds (or a timedelta) for which there is one, also after it has ended; counted in
            whole periods of the server's clock. None: as long as it lives.
        until: ``done``: while it lives; ``started``: only until a node fetches it. One that is given
            back unstarted is not unique again: its key may be another's by then.
        on_duplicate: ``ignore``: the reference of the one there is comes back; ``replace``: one that
            has not started gets the new arguments and time; ``raise``: ``DuplicateJob``.
    """

    by: tuple[str, ...] = ("args",)
    within: float | timedelta | None = None
    until: Until = "done"
    on_duplicate: OnDuplicate = "ignore"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How a call is enqueued; None: as the job says.

    Attributes:
        delay: Seconds (or a timedelta) from now.
        run_at: Aware; not before this.
        priority: 1 (first) to 9; 5 when nobody says.
        key: What it is ordered by, or limited by.
        ordered: One job of its key at a time, in the order of enqueueing.
        unique: See ``Unique``; a text is the key itself.
        tags: Words to find it by.
    """

    delay: float | timedelta | None = None
    run_at: datetime | None = None
    priority: int | None = None
    queue: str | None = None
    key: str | None = None
    ordered: bool | None = None
    unique: Unique | str | None = None
    max_attempts: int | None = None
    timeout: float | None = None
    keep: Kept | None = None
    tenant: str | None = None
    tags: tuple[str, ...] = ()
    meta: Any = NO_META


NO_OPTIONS = Options()


class Call(msgspec.Struct, Generic[R_co], frozen=True):
    """A job with its arguments and options: what is enqueued, chained, scheduled. Changes nothing by itself."""

    job: Any
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = NO_META
    options: Options = NO_OPTIONS

    def with_(
        self,
        *,
        delay: float | timedelta | None = None,
        run_at: datetime | None = None,
        priority: int | None = None,
        queue: str | None = None,
        key: str | None = None,
        ordered: bool | None = None,
        unique: Unique | str | None = None,
        max_attempts: int | None = None,
        timeout: float | None = None,
        keep: Kept | None = None,
        tenant: str | None = None,
        tags: Sequence[str] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> Call[R_co]:
        """The same call with other options; those that are None stay. See ``Options``."""
        given = {
            "delay": delay,
            "run_at": run_at,
            "priority": priority,
            "queue": queue,
            "key": key,
            "ordered": ordered,
            "unique": unique,
            "max_attempts": max_attempts,
            "timeout": timeout,
            "keep": keep,
            "tenant": tenant,
            "tags": None if tags is None else checked_tags(tags),
            "meta": meta,
        }
        chosen: dict[str, Any] = {name: one for name, one in given.items() if one is not None}
        if "delay" in chosen:
            chosen["run_at"] = None
        elif "run_at" in chosen:
            chosen["delay"] = None
        options = msgspec.structs.replace(self.options, **chosen)
        return msgspec.structs.replace(self, options=options)

    def __repr__(self) -> str:
        given = [_short(one) for one in self.args]
        given += [f"{name}={_short(one)}" for name, one in self.kwargs.items()]
        if getattr(self.job, "encrypted", False):
            given = ["..."] if given else []  # messages and logs show it
        words = ", ".join(given)
        words = words if len(words) <= SHOWN else f"{words[: SHOWN - 3]}..."
        return f"<call {getattr(self.job, 'kind', self.job)}({words})>"

    async def enqueue(self) -> JobRef[R_co]:
        """Enqueue it on the app that declared the job; see ``App.enqueue``."""
        ref: JobRef[R_co] = await self.job.enqueuer(self)
        return ref


class Job(Generic[P, R]):
    """A function that can run later, elsewhere. Called directly it just runs.

    Attributes:
        kind: Its name in the database; never change it, or give the old one as an alias.
        function: As it was decorated.
        executor: Where it runs: on the event loop, in a thread, in a process of its own.
        timeout: Seconds one attempt may take; None: as long as it likes.
        keep: What stays in the history.
        aliases: Older kinds; jobs stored under them run as this one.
        flags: What every job of this kind has in its column ``flags``.
        is_usual: Calls without options differ in their arguments alone.
        arguments: What the function takes.
        upcasters: What brings stored arguments up to date, by the kind they are stored under.
        enqueuer: Enqueues a call on the app that declared the job.
    """

    def __init__(
        self,
        function: Callable[P, Any],
        kind: str,
        *,
        queue: str = DEFAULT_QUEUE,
        priority: int = DEFAULT_PRIORITY,
        retry: Retry | None = None,
        timeout: float | None = None,
        executor: Executor | None = None,
        keep: Kept = "failed",
        key: Callable[..., str] | None = None,
        ordered: bool = False,
        unique: Unique | None = None,
        encrypted: bool = False,
        aliases: tuple[str, ...] = (),
        names: Mapping[str, Any] | None = None,
    ) -> None:
        for one in (kind, *aliases):
            checked_word(one, "kind", error=InvalidDefinition)
        self.kind = kind
        self.function = function
        self.is_async = inspect.iscoroutinefunction(inspect.unwrap(function))
        self.queue = checked_word(queue, "queue", error=InvalidDefinition)
        self.priority = checked_job_option("priority", priority, error=InvalidDefinition)
        self.retry = _checked_retry(Retry() if retry is None else retry)
        self.timeout = checked_job_option("timeout", timeout, error=InvalidDefinition)
        self.executor: Executor = executor or ("async" if self.is_async else "thread")
        self.keep: Kept = checked_job_option("keep", keep, error=InvalidDefinition)
        self.key = key
        self.ordered = ordered
        self.unique = unique
        self.encrypted = encrypted
        self.aliases = aliases
        self.arguments = Arguments(function, kind, names)
        self.upcasters: dict[str, Upcast] = {}
        self.enqueuer: Callable[[Call[Any]], Any] = _not_bound
        self.flags = int(_flags(self))
        self.is_usual = not (key or ordered or unique or encrypted)
        self._refuse_what_cannot_run()
        functools.update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function, here and now."""
        answer: R = self.function(*args, **kwargs)
        return answer

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """The call with these arguments, to be enqueued."""
        return Call(self, args, kwargs)

    async def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> JobRef[R]:
        """Enqueue a call with these arguments on the app that declared the job."""
        return await Call[R](self, args, kwargs).enqueue()

    def __repr__(self) -> str:
        return f"<job {self.kind!r}>"

    def _refuse_what_cannot_run(self) -> None:
        why = ""
        if inspect.isasyncgenfunction(self.function) or inspect.isgeneratorfunction(self.function):
            why = "it is a generator, which answers nothing by itself"
        elif self.key is not None and not callable(self.key):
            why = f"key={self.key!r} is not a function that makes a key of the arguments"
        elif self.executor not in ("async", "thread", "process"):
            why = f"executor={self.executor!r} is not 'async', 'thread' or 'process'"
        elif self.is_async != (self.executor == "async"):
            kind = "a coroutine function" if self.is_async else "not a coroutine function"
            why = f"executor={self.executor!r} does not fit: it is {kind}"
        if why:
            raise InvalidDefinition(f"job {self.kind!r} cannot run: {why}")


class AsyncJob(Job[P, R]):
    """A job whose function is a coroutine function: called directly it has to be awaited."""

    def __call__(  # type: ignore[override]  # what a call of the function itself answers
        self, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, R]:
        """Run the function, here and now."""
        answer: Coroutine[Any, Any, R] = self.function(*args, **kwargs)
        return answer


def _flags(job: Job[..., Any]) -> Flag:
    flags = Flag.NONE
    if job.ordered:
        flags |= Flag.ORDERED
    if job.encrypted:
        flags |= Flag.ENCRYPTED
    return flags | kept_flag(job.keep)


def kept_flag(keep: Kept) -> Flag:
    """What column ``flags`` says about the history."""
    return {"all": Flag.KEEP_ALL, "none": Flag.KEEP_NOTHING}.get(keep, Flag.NONE)


def kept_of(flags: int) -> Kept:
    """What stays in the history of a job with these *flags*."""
    if flags & Flag.KEEP_ALL:
        return "all"
    return "none" if flags & Flag.KEEP_NOTHING else "failed"


def _checked_retry(retry: Any) -> Retry:
    if not isinstance(retry, Retry):
        raise InvalidDefinition(f"retry={retry!r} is not an sl.Retry")
    for name in ("first", "longest", "factor"):
        checked_seconds(f"Retry {name}", getattr(retry, name), error=InvalidDefinition)
    if checked_seconds("Retry jitter", retry.jitter, error=InvalidDefinition) > 1:
        raise InvalidDefinition(f"Retry jitter={retry.jitter!r} is a share, from 0 to 1")
    checked_job_option("max_attempts", retry.max_attempts, error=InvalidDefinition)
    for name in ("on", "never"):
        given = getattr(retry, name)
        kinds = given if isinstance(given, tuple) else (given,)
        if not all(isinstance(one, type) and issubclass(one, BaseException) for one in kinds):
            raise InvalidDefinition(f"Retry {name}={given!r} are not classes of exceptions")
    if retry.delay is not None and not callable(retry.delay):
        raise InvalidDefinition(f"Retry delay={retry.delay!r} is not a function: see Retry.first")
    return retry


def _short(value: Any) -> str:
    """*value* for a message, whatever its own ``repr`` does."""
    try:
        return _repr(value)
    except Exception:
        return f"<{type(value).__name__}>"


async def _not_bound(call: Call[Any]) -> Any:
    raise InvalidDefinition(
        f"job {call.job.kind!r} cannot enqueue itself: no asynchronous app has declared it; use"
        " app.enqueue(call)"
    )
