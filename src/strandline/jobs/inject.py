"""Parameters that the caller of a job does not give: each attempt gets them from a provider."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from strandline.errors import InvalidDefinition
from strandline.jobs.context import JobContext

Provider = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Injected:
    """The default of a parameter that a provider gives."""

    provider: Provider

    def __repr__(self) -> str:
        return f"sl.Inject({getattr(self.provider, '__qualname__', self.provider)})"


def Inject(provider: Provider) -> Any:  # noqa: N802 - reads as what it stands for, like a class
    """Let *provider* give this parameter, for every attempt: ``mailer: Mailer = sl.Inject(mailer)``.

    It is a function, plain or ``async``, and its answer is given as it is. A function that yields
    (also under ``contextlib.asynccontextmanager``) and a class with ``async with`` or ``with`` are
    opened for the attempt and closed after it, whatever became of it. It may take one argument, the
    ``sl.JobContext``. The parameter is not enqueued; who calls the function directly passes it.
    """
    return Injected(provider)


@dataclass(frozen=True, slots=True)
class Source:
    """A provider, as it was found out once: how it is called, and what is done with its answer."""

    name: str
    make: Callable[[JobContext], Any]
    is_async: bool
    is_opened: bool

    async def open(self, job: JobContext, stack: AsyncExitStack) -> Any:
        """What it gives, on the event loop."""
        made = self.make(job)
        if self.is_async:
            return await (stack.enter_async_context(made) if self.is_opened else made)
        return stack.enter_context(made) if self.is_opened else made

    def open_blocking(self, job: JobContext, stack: ExitStack) -> Any:
        """What it gives, in a thread; only for one that is not async."""
        made = self.make(job)
        return stack.enter_context(made) if self.is_opened else made


@dataclass(frozen=True, slots=True)
class Sources:
    """The injected parameters of one function."""

    on_loop: tuple[Source, ...] = ()
    blocking: tuple[Source, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.on_loop or self.blocking)


def sources(function: Callable[..., Any], title: str) -> Sources:
    """The injected parameters of *function*.

    Raises:
        InvalidDefinition: A provider cannot be called.
    """
    found = [
        _source(name, parameter.default.provider, title)
        for name, parameter in inspect.signature(function).parameters.items()
        if isinstance(parameter.default, Injected)
    ]
    return Sources(
        tuple(one for one in found if one.is_async), tuple(one for one in found if not one.is_async)
    )


def inject(
    function: Callable[..., Any], job: JobContext, blocking: tuple[Source, ...]
) -> Callable[..., Any]:
    """*function* with its blocking resources around it, to be called in a thread or process."""

    def injected(*args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            for one in blocking:
                kwargs[one.name] = one.open_blocking(job, stack)
            return function(*args, **kwargs)

    return injected


def _source(name: str, provider: Any, title: str) -> Source:
    where = f"{title}: the provider of {name!r}"
    if not callable(provider):
        raise InvalidDefinition(
            f"{where} is no function but {provider!r}: pass the function itself"
        )
    inner = inspect.unwrap(getattr(provider, "func", provider))  # what contextmanager() wraps
    make = provider
    is_opened = True
    if inspect.isasyncgenfunction(inner):
        make = asynccontextmanager(provider) if inner is provider else provider
        is_async = True
    elif inspect.isgeneratorfunction(inner):
        make = contextmanager(provider) if inner is provider else provider
        is_async = False
    elif isinstance(provider, type):
        is_async = hasattr(provider, "__aenter__")
        is_opened = is_async or hasattr(provider, "__enter__")
    else:
        is_async = inspect.iscoroutinefunction(inner)
        is_opened = False
    return Source(name, _called(make, _takes_job(provider, where)), is_async, is_opened)


def _called(make: Callable[..., Any], takes_job: bool) -> Callable[[JobContext], Any]:
    if takes_job:
        return make

    @functools.wraps(make, updated=())
    def without(job: JobContext) -> Any:
        return make()

    return without


def _takes_job(provider: Any, where: str) -> bool:
    try:
        parameters: Mapping[str, inspect.Parameter] = inspect.signature(provider).parameters
    except (TypeError, ValueError):  # written in C
        return False
    needed = [
        one
        for one in parameters.values()
        if one.default is one.empty and one.kind not in {one.VAR_POSITIONAL, one.VAR_KEYWORD}
    ]
    if len(needed) > 1 or any(one.kind is one.KEYWORD_ONLY for one in needed):
        names = ", ".join(one.name for one in needed)
        raise InvalidDefinition(f"{where} needs ({names}): it may take the job's context alone")
    return bool(needed)
