"""Functions around every job: compiled once for each kind into one call."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeAlias, TypeVar

from strandline.errors import InvalidDefinition
from strandline.jobs.context import JobContext

Next: TypeAlias = Callable[[Any], Awaitable[Any]]
"""What ``call_next`` is: called with the job, it runs the rest; the answer is the job's result."""

Middleware: TypeAlias = Callable[[Any, Next], Awaitable[Any]]
"""``async def around(job, call_next)``; what it answers is the result, what it raises the outcome."""

M = TypeVar("M", bound=Middleware)


def checked(middleware: M) -> M:
    """*middleware*, if it can be one.

    Raises:
        InvalidDefinition: It is not ``async``, or does not take the job and what comes next.
    """
    title = getattr(middleware, "__qualname__", repr(middleware))
    call = middleware if inspect.isroutine(middleware) else getattr(middleware, "__call__", None)  # noqa: B004 - an object with async __call__ is fine
    if not inspect.iscoroutinefunction(call):
        raise InvalidDefinition(
            f"job middleware {title}: make it `async def {title}(job, call_next)`"
        )
    try:
        inspect.signature(middleware).bind(object(), object())
    except TypeError as error:
        raise InvalidDefinition(
            f"job middleware {title} must take two arguments, (job, call_next): {error}"
        ) from error
    return middleware


def chain(middleware: Iterable[Middleware], innermost: Next) -> Next:
    """*innermost* with *middleware* around it, the first one outermost."""
    call = innermost
    for one in reversed(tuple(middleware)):
        call = functools.partial(_around, one, call)
    return call


def _around(middleware: Middleware, call_next: Next, job: JobContext) -> Awaitable[Any]:
    return middleware(job, call_next)
