"""Where jobs run: in threads that are bounded and can be left, in processes that can be killed."""

from __future__ import annotations

import asyncio
import math
import os
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import attempts
import pytest
from attempts import Bench
from tally import holds

from strandline.errors import InvalidDefinition, InvalidInput
from strandline.jobs.context import current, find_current
from strandline.jobs.inject import Inject
from strandline.jobs.processes import FailedInProcess, ProcessDied
from strandline.jobs.returned import encoded
from strandline.jobs.verdicts import Snooze

# ---- threads


class Gate:
    """Functions wait at it in their threads, and are counted."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.inside = self.most = 0
        self._lock = threading.Lock()

    def pass_through(self) -> int:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        assert self.opened.wait(30)
        with self._lock:
            self.inside -= 1
        return current().id


async def test_functions_in_threads_are_bounded_and_know_their_job() -> None:
    gate = Gate()
    bench = Bench(threads=3)
    runnable = bench.declare(gate.pass_through, kind="pass")

    running = [bench.begin(runnable)[1] for _ in range(8)]
    await holds(lambda: gate.inside == 3)
    gate.opened.set()

    assert await asyncio.gather(*running) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert gate.most == 3
    assert find_current() is None
    await bench.stop()


TRACE: ContextVar[str] = ContextVar("trace", default="")


async def test_context_variables_reach_a_thread_and_what_it_sets_stays_there() -> None:
    async def tracing(job: Any, call_next: Any) -> Any:
        TRACE.set(f"trace of {job.id}")
        return await call_next(job)

    def work() -> str:
        seen = TRACE.get()
        TRACE.set("changed in the thread")
        return seen

    bench = Bench(tracing)
    runnable = bench.declare(work)

    assert await asyncio.gather(*(bench.run(runnable) for _ in range(3))) == [
        "trace of 1",
        "trace of 2",
        "trace of 3",
    ]
    assert TRACE.get() == ""


async def test_a_function_in_a_thread_agrees_to_its_cancellation() -> None:
    begun = threading.Event()

    def obliging() -> None:
        begun.set()
        while True:
            current().raise_if_cancelled()

    def finishing() -> str:
        begun.set()
        while not current().is_cancelled:
            pass
        return "done after all"

    bench = Bench()
    attempt, running = bench.begin(bench.declare(obliging))
    await holds(begun.is_set)
    attempt.stop("cancelled")
    with pytest.raises(asyncio.CancelledError):
        await running

    begun.clear()
    attempt, running = bench.begin(bench.declare(finishing))
    await holds(begun.is_set)
    attempt.stop("time")
    attempt.stop("stop")
    assert await running == "done after all"
    assert attempt.stopped_for == "time"
    assert bench.executors.threads.given_up == 0
    await bench.stop()


async def test_a_function_that_waits_for_a_thread_is_taken_back() -> None:
    gate = Gate()
    bench = Bench(threads=1)
    runnable = bench.declare(gate.pass_through, kind="pass")
    _, first = bench.begin(runnable)
    await holds(lambda: gate.inside == 1)
    attempt, second = bench.begin(runnable)
    await asyncio.sleep(0)

    attempt.stop("cancelled")
    with pytest.raises(asyncio.CancelledError):
        await second
    gate.opened.set()

    assert await first == 1
    assert gate.most == 1
    await bench.stop()


async def test_a_stuck_thread_is_left_to_itself_by_the_second_cancellation_and_replaced() -> None:
    gate = Gate()
    bench = Bench(threads=1)
    stuck = bench.declare(gate.pass_through, kind="stuck")
    quick = bench.declare(lambda: "quick", kind="quick")
    attempt, running = bench.begin(stuck)
    await holds(lambda: gate.inside == 1)
    _, waiting = bench.begin(quick)

    attempt.stop("time")
    await asyncio.wait({running}, timeout=0.05)
    assert not running.done()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert await waiting == "quick"
    assert await bench.run(quick) == "quick"
    assert bench.executors.threads.given_up == 1
    gate.opened.set()
    await holds(lambda: bench.executors.threads.given_up == 0)
    await bench.stop()


@pytest.mark.parametrize("raised", [ValueError, StopIteration, SystemExit, KeyboardInterrupt])
async def test_whatever_a_function_in_a_thread_raises_arrives(raised: type[BaseException]) -> None:
    def work() -> None:
        raise raised("no")

    bench = Bench()
    runnable = bench.declare(work)
    caught: list[BaseException] = []

    async def run() -> None:
        try:
            await runnable.run(bench.attempt(runnable))
        except BaseException as error:
            caught.append(error)

    async with asyncio.timeout(20):
        await run()

    expected = RuntimeError if raised is StopIteration else raised
    assert [type(error) for error in caught] == [expected]
    await bench.stop()


async def test_a_function_in_a_thread_waits_for_what_must_be_awaited() -> None:
    home = threading.get_ident()

    async def on_the_loop() -> tuple[bool, int]:
        await asyncio.sleep(0)
        return threading.get_ident() == home, current().id

    def work() -> tuple[bool, int]:
        return current().wait(on_the_loop())

    bench = Bench()

    assert await bench.run(bench.declare(work)) == (True, 1)
    with pytest.raises(RuntimeError, match="use await"):
        attempt = bench.attempt(bench.declare(on_the_loop))
        attempt.wait(asyncio.sleep(0))
    await bench.stop()


async def test_resources_of_a_thread_are_opened_where_they_are_used() -> None:
    seen: list[tuple[str, bool]] = []
    home = threading.get_ident()

    def note(what: str) -> None:
        seen.append((what, threading.get_ident() == home))

    @contextmanager
    def file() -> Iterator[str]:
        note("open file")
        yield "file"
        note("close file")

    @asynccontextmanager
    async def session() -> AsyncIterator[str]:
        note("open session")
        yield "session"
        note("close session")

    def work(file: str = Inject(file), session: str = Inject(session)) -> list[str]:
        note("work")
        return [file, session]

    bench = Bench()

    assert await bench.run(bench.declare(work)) == ["file", "session"]
    assert seen == [
        ("open session", True),
        ("open file", False),
        ("work", False),
        ("close file", False),
        ("close session", True),
    ]
    await bench.stop()


# ---- processes


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench(processes=1)
    yield made
    made.executors.processes.kill()


async def test_a_process_gets_arguments_and_context_and_answers(bench: Bench) -> None:
    squares = bench.declare(attempts.squared)
    where = bench.declare(attempts.whereabouts, executor="process")

    assert await asyncio.gather(*(bench.run(squares, f'{{"number":{n}}}') for n in range(4))) == [
        0,
        1,
        4,
        9,
    ]
    attempt = bench.attempt(where, meta='{"tags":["a"]}', attempt=2)
    pid, *context = await where.run(attempt)
    assert pid != os.getpid()
    assert context == [attempt.id, "whereabouts", 2, {"tags": ["a"]}]
    await bench.stop()
    assert not _lives(pid)


async def test_a_process_is_killed_with_its_attempt_and_the_next_job_has_another(
    bench: Bench, tmp_path: Path
) -> None:
    file = tmp_path / "pid"
    spins = bench.declare(attempts.spin, executor="process")
    squares = bench.declare(attempts.squared)

    attempt, running = bench.begin(spins, f'{{"pid_file":"{file}"}}')
    pid = int(await holds(lambda: file.exists() and file.read_text(), timeout=30))
    attempt.stop("time")
    with pytest.raises(asyncio.CancelledError):
        await running

    assert not _lives(pid)
    assert await bench.run(squares, '{"number":5}') == 25
    await bench.stop()


@pytest.mark.parametrize(
    ("declared", "args", "told"),
    [
        (attempts.leave, '{"code":0}', "exit code 0"),
        (attempts.leave, '{"code":3}', "exit code 3"),
        (attempts.crash, "{}", "SIGSEGV"),
    ],
)
async def test_a_process_that_dies_fails_its_own_job_alone(
    bench: Bench, declared: Any, args: str, told: str
) -> None:
    dies = bench.declare(declared, executor="process")
    squares = bench.declare(attempts.squared)

    died, *squared = await asyncio.gather(
        bench.run(dies, args),
        bench.run(squares, '{"number":2}'),
        bench.run(squares, '{"number":3}'),
        return_exceptions=True,
    )

    assert isinstance(died, ProcessDied)
    assert told in str(died)
    assert squared == [4, 9]
    await bench.stop()


async def test_waiting_for_a_process_is_no_part_of_the_time_limit(
    bench: Bench, tmp_path: Path
) -> None:
    spins = bench.declare(attempts.spin, executor="process")
    squares = bench.declare(attempts.squared)
    pid_file = tmp_path / "pid"
    _, spinning = bench.begin(spins, f'{{"pid_file":"{pid_file}"}}')
    await holds(lambda: pid_file.exists() and pid_file.read_text(), 30)
    waiting = bench.attempt(squares, '{"number":2}')
    waiting.deadline = 100.0  # by a clock of the runner's
    task = asyncio.ensure_future(squares.run(waiting))
    await holds(lambda: waiting.deadline == math.inf, 30)
    await asyncio.sleep(0.05)

    spinning.cancel()

    assert await task == 4
    assert waiting.deadline is not None
    assert 100.05 <= waiting.deadline < 200.0
    await bench.stop()


async def test_a_function_in_a_process_that_exits_has_failed_and_ends_nobody_else(
    bench: Bench,
) -> None:
    exits = bench.declare(sys.exit, kind="exits", executor="process")

    with pytest.raises(FailedInProcess, match="SystemExit"):
        await bench.run(exits, "{}")
    await bench.stop()


async def test_a_process_that_was_killed_between_two_jobs_is_replaced_unnoticed(
    bench: Bench,
) -> None:
    where = bench.declare(attempts.whereabouts, executor="process")
    pid = (await bench.run(where))[0]

    os.kill(pid, 9)

    assert (await bench.run(where))[0] != pid
    await bench.stop()


async def test_errors_and_verdicts_of_a_process_arrive_as_they_are(bench: Bench) -> None:
    refuses = bench.declare(attempts.refuse, executor="process")
    puts_off = bench.declare(attempts.put_off, executor="process")
    unsendable = bench.declare(attempts.unsendable, executor="process")
    locked = bench.declare(attempts.answer_with_a_lock, executor="process")

    with pytest.raises(attempts.Refused, match="number 3 is refused") as refused:
        await bench.run(refuses, '{"number":3}')
    assert refused.value.number == 3
    assert "in refuse" in str(refused.value.__cause__)
    with pytest.raises(Snooze) as snoozed:
        await bench.run(puts_off)
    assert (snoozed.value.delay, snoozed.value.reason) == (3, "not yet")
    with pytest.raises(FailedInProcess, match="Local: cannot be sent"):
        await bench.run(unsendable)
    with pytest.raises(InvalidInput, match="no JSON form"):  # it has completed all the same
        encoded(await bench.run(locked), "locked")
    await bench.stop()


async def test_a_process_tells_progress_and_opens_resources_on_its_side(bench: Bench) -> None:
    counts = bench.declare(attempts.count_to, executor="process")
    books = bench.declare(attempts.books, executor="process")

    assert await bench.run(counts, '{"number":300}') == 300
    await holds(lambda: bench.told and bench.told[-1] == (1, 300.0, 300.0, "counting"))
    assert 1 < len(bench.told) < 300
    assert await bench.run(books) == ["opened"]
    assert await bench.run(books) == ["opened", "closed", "opened"]
    assert attempts.opened == []
    await bench.stop()


async def test_a_function_that_a_process_cannot_find_is_refused() -> None:
    def local() -> None: ...
    async def awaits() -> None: ...
    async def client() -> int:
        return 1

    def needs(client: int = Inject(client)) -> None: ...

    bench = Bench()
    with pytest.raises(InvalidDefinition, match=r"local.*top level of a module"):
        bench.declare(local, executor="process")
    with pytest.raises(InvalidDefinition, match="top level of a module"):
        bench.declare(lambda: 1, kind="anonymous", executor="process")
    with pytest.raises(InvalidDefinition, match="coroutine"):
        bench.declare(awaits, executor="process")
    with pytest.raises(InvalidDefinition, match="give client by a function that is not async"):
        bench.declare(needs, executor="process")
    replaced = type(attempts.spin)(attempts.spin.__code__, {}, "spin")
    replaced.__module__, replaced.__qualname__ = "attempts", "spin"
    with pytest.raises(InvalidDefinition, match="not this function"):
        bench.declare(replaced, executor="process")


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
