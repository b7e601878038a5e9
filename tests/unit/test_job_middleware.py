"""What stands around a job: middleware, injections, hooks, and what one job leaves to the next."""

from __future__ import annotations

import asyncio
import decimal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Any

import pytest
from attempts import Bench, in_one_runner

from strandline.errors import InvalidDefinition
from strandline.jobs.attempt import Attempt
from strandline.jobs.context import current, find_current
from strandline.jobs.hooks import JobEvent
from strandline.jobs.inject import Inject
from strandline.jobs.middleware import checked
from strandline.jobs.verdicts import Cancel, Snooze

# ---- middleware


def noting(name: str, seen: list[str]) -> Any:
    async def around(job: Any, call_next: Any) -> Any:
        seen.append(f"{name} before")
        try:
            return await call_next(job)
        except Exception as error:
            seen.append(f"{name} saw {type(error).__name__}")
            raise
        finally:
            seen.append(f"{name} after")

    return around


async def test_the_first_middleware_is_outermost() -> None:
    seen: list[str] = []

    async def work(number: int) -> int:
        seen.append(f"work {number}")
        return number + 1

    bench = Bench(noting("a", seen), noting("b", seen))

    assert await bench.run(bench.declare(work), '{"number":4}') == 5
    assert seen == ["a before", "b before", "work 4", "b after", "a after"]


@pytest.mark.parametrize("raised", [ValueError("no"), Snooze(3), Cancel("never")])
async def test_errors_and_verdicts_pass_through_middleware(raised: Exception) -> None:
    seen: list[str] = []

    async def work() -> None:
        raise raised

    bench = Bench(noting("a", seen), noting("b", seen))

    with pytest.raises(type(raised)) as caught:
        await bench.run(bench.declare(work))
    assert caught.value is raised
    name = type(raised).__name__
    assert seen == ["a before", "b before", f"b saw {name}", "b after", f"a saw {name}", "a after"]


async def test_middleware_may_answer_by_itself_and_hears_of_bad_arguments() -> None:
    async def forgiving(job: Any, call_next: Any) -> Any:
        assert current() is job
        try:
            return await call_next(job)
        except Exception as error:
            return str(error)

    async def work(number: int) -> int:
        raise AssertionError("not reached")

    bench = Bench(forgiving)

    assert "number" in await bench.run(bench.declare(work), '{"number":"four"}')


async def test_what_cannot_be_middleware_is_refused() -> None:
    def plain(job: Any, call_next: Any) -> None: ...
    async def short(job: Any) -> None: ...

    class Object:
        async def __call__(self, job: Any, call_next: Any) -> Any:
            return await call_next(job)

    with pytest.raises(InvalidDefinition, match="async def"):
        checked(plain)
    with pytest.raises(InvalidDefinition, match="two arguments"):
        checked(short)
    assert checked(Object())


# ---- the short way


async def test_a_plain_async_job_is_its_own_coroutine() -> None:
    async def work(number: int) -> int:
        return number

    bench = Bench()
    runnable = bench.declare(work)

    running = runnable.run(bench.attempt(runnable, '{"number":1}'))

    assert running.cr_code is work.__code__  # type: ignore[attr-defined]
    assert await running == 1


async def test_concurrent_jobs_have_their_own_context() -> None:
    both = asyncio.Barrier(2)
    later: dict[int, asyncio.Task[int]] = {}

    async def told_later() -> int:
        await asyncio.sleep(0)
        return current().id

    async def work() -> tuple[int, int]:
        before = current().id
        later[before] = asyncio.create_task(told_later())
        async with asyncio.timeout(20):
            await both.wait()
        return before, current().id

    bench = Bench()
    runnable = bench.declare(work)

    assert await asyncio.gather(bench.run(runnable), bench.run(runnable)) == [(1, 1), (2, 2)]
    assert {number: await task for number, task in later.items()} == {1: 1, 2: 2}
    assert find_current() is None
    with pytest.raises(RuntimeError, match="no job is being run"):
        current()


USER: ContextVar[str] = ContextVar("user", default="nobody")


async def test_what_a_job_leaves_in_context_variables_is_not_seen_by_the_next() -> None:
    async def leaves() -> str:
        before = USER.get()
        USER.set(f"user of {current().id}")
        return before

    async def looks() -> tuple[str, int]:
        return USER.get(), current().id

    bench = Bench()
    leaving, looking = bench.declare(leaves), bench.declare(looks)
    USER.set("the node's")

    def one(runnable: Any) -> Any:
        return lambda: runnable.run(bench.attempt(runnable))

    answers = await in_one_runner(
        [one(looking), one(leaving), one(looking), one(leaving), one(looking), one(looking)]
    )

    assert answers == [
        ("the node's", 1),
        "the node's",
        ("the node's", 3),
        "the node's",
        ("the node's", 5),
        ("the node's", 6),
    ]


async def test_a_job_that_left_nothing_costs_the_next_no_task() -> None:
    tasks: list[Any] = []

    async def tidy() -> None:
        token = USER.set("mine")
        USER.reset(token)
        tasks.append(asyncio.current_task())

    async def untidy() -> None:
        decimal.getcontext()
        USER.set("mine")

    bench = Bench()
    tidying, untidying = bench.declare(tidy), bench.declare(untidy)

    def one(runnable: Any) -> Any:
        return lambda: runnable.run(bench.attempt(runnable))

    await in_one_runner([one(tidying), one(tidying), one(untidying), one(tidying)])

    assert tasks[0] is tasks[1]
    assert tasks[2] is not tasks[0]


async def test_attempts_are_not_kept_by_their_successors() -> None:
    import gc
    import weakref

    class Tracked(Attempt):
        __slots__ = ("__weakref__",)

    async def work() -> None: ...

    bench = Bench()
    runnable = bench.declare(work)
    seen: list[weakref.ref[Any]] = []

    async def one() -> None:
        attempt = Tracked(bench.attempt(runnable).job, runnable)
        seen.append(weakref.ref(attempt))
        await runnable.run(attempt)

    gc.disable()
    try:
        await in_one_runner([one, one, one])
        alive = [reference() is not None for reference in seen]
    finally:
        gc.enable()

    assert alive[:2] == [False, False]


# ---- injections


@pytest.mark.parametrize("fails", [False, True])
async def test_resources_are_opened_and_closed_for_each_attempt(fails: bool) -> None:
    seen: list[str] = []

    @asynccontextmanager
    async def connection() -> AsyncIterator[str]:
        seen.append("open connection")
        try:
            yield "connection"
        except ValueError:
            seen.append("roll back")
            raise
        finally:
            seen.append("close connection")

    def cursor(job: Any) -> Iterator[str]:
        seen.append("open cursor")
        try:
            yield f"cursor of {job.id}"
        finally:
            seen.append("close cursor")

    async def token() -> str:
        return "token"

    class Session:
        def __enter__(self) -> str:
            seen.append("open session")
            return "session"

        def __exit__(self, *error: Any) -> None:
            seen.append("close session")

    async def work(
        number: int,
        *,
        connection: str = Inject(connection),
        cursor: str = Inject(cursor),
        token: str = Inject(token),
        plain: str = Inject(lambda: "plain"),
        session: str = Inject(Session),
    ) -> list[Any]:
        if fails:
            raise ValueError
        return [number, connection, cursor, token, plain, session]

    bench = Bench()
    runnable = bench.declare(work)

    if fails:
        with pytest.raises(ValueError):
            await bench.run(runnable, '{"number":1}')
        assert "roll back" in seen
    else:
        given = [1, "connection", "cursor of 1", "token", "plain", "session"]
        assert await bench.run(runnable, '{"number":1}') == given
        assert await bench.run(runnable, '{"number":1}') == [*given[:2], "cursor of 2", *given[3:]]
    assert [seen.count(one) for one in ("open connection", "open cursor", "open session")] == [
        seen.count(one) for one in ("close connection", "close cursor", "close session")
    ]


async def test_what_was_opened_is_closed_when_a_later_provider_fails() -> None:
    seen: list[str] = []

    @contextmanager
    def first() -> Iterator[int]:
        seen.append("open")
        yield 1
        seen.append("close")

    @contextmanager
    def tidy() -> Iterator[int]:
        try:
            yield 1
        finally:
            seen.append("tidied")

    def broken() -> int:
        raise OSError("away")

    async def work(
        a: int = Inject(first), b: int = Inject(tidy), c: int = Inject(broken)
    ) -> None: ...

    bench = Bench()

    with pytest.raises(OSError, match="away"):
        await bench.run(bench.declare(work))
    assert seen == ["open", "tidied"]


async def test_a_provider_that_cannot_be_called_is_refused() -> None:
    async def named(client: str = Inject("client")) -> None: ...  # type: ignore[arg-type]
    async def greedy(client: str = Inject(lambda a, b: 1)) -> None: ...

    with pytest.raises(InvalidDefinition, match="pass the function itself"):
        Bench().declare(named)
    with pytest.raises(InvalidDefinition, match="context alone"):
        Bench().declare(greedy)


# ---- hooks


async def test_hooks_hear_of_starts_and_completions_only_while_somebody_listens() -> None:
    async def work() -> None: ...

    bench = Bench()
    runnable = bench.declare(work)
    heard: list[JobEvent] = []

    await bench.run(runnable)
    ends = [bench.hooks.on(one, heard.append) for one in ("started", "completed")]
    await bench.run(runnable)
    for end in ends:
        end()
        end()
    await bench.run(runnable)

    assert [(one.happened, one.job, one.kind) for one in heard] == [
        ("started", 2, "work"),
        ("completed", 2, "work"),
    ]
    assert not bench.hooks.each
    assert not bench.hooks._signals.listeners


async def test_hooks_cannot_break_a_job() -> None:
    heard: list[str] = []

    def broken(event: JobEvent) -> None:
        raise ValueError("hook")

    async def slow(event: JobEvent) -> None:
        heard.append("slow")
        raise ValueError("hook")

    async def work() -> str:
        return "done"

    bench = Bench()
    bench.hooks.on("started", broken)
    bench.hooks.on("completed", broken)
    bench.hooks.on("completed", slow)
    bench.hooks.on("failed", broken)
    bench.hooks.on("failed", lambda event: heard.append(f"failed {event.job} {event.error!r}"))

    assert await bench.run(bench.declare(work)) == "done"
    bench.hooks._signals.tell(
        "job_failed", id=3, kind="work", queue="q", attempt=1, error=OSError()
    )
    bench.hooks._signals.tell("jobs_claimed", queue="q")
    await bench.hooks.settle()

    assert sorted(heard) == ["failed 3 OSError()", "slow"]
    with pytest.raises(InvalidDefinition, match="exploded"):
        bench.hooks.on("exploded", broken)  # type: ignore[arg-type]
