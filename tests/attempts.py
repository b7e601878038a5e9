"""Attempts without a queue, and functions that another process can find."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from strandline.jobs import executing
from strandline.jobs.attempt import Attempt, Runnable
from strandline.jobs.context import current
from strandline.jobs.hooks import Hooks
from strandline.jobs.inject import Inject
from strandline.jobs.job import AsyncJob, Job
from strandline.jobs.kinds import Kinds
from strandline.jobs.row import Claimed
from strandline.jobs.verdicts import Snooze
from strandline.telemetry.signals import Signals


class Bench:
    """Declares functions as jobs and runs attempts of them, as a runner would.

    Attributes:
        told: What was told as progress.
    """

    def __init__(self, *middleware: Any, threads: int = 4, processes: int = 1) -> None:
        self.kinds = Kinds()
        self.hooks = Hooks(Signals())
        self.executors = executing.Executors(threads=threads, processes=processes)
        self.middleware = middleware
        self.told: list[tuple[Any, ...]] = []
        self._number = 0

    def declare(self, function: Any, **options: Any) -> Runnable:
        made: Job[..., Any] = function
        if not isinstance(function, Job):
            cls = AsyncJob if asyncio.iscoroutinefunction(function) else Job
            made = cls(function, options.pop("kind", function.__name__), **options)
        self.kinds.add(made)
        return executing.compile(
            made, self.kinds, self.middleware, self.hooks, self.executors, reach=self
        )

    def attempt(self, runnable: Runnable, args: str = "{}", **facts: Any) -> Attempt:
        self._number += 1
        return Attempt(claimed(self._number, runnable.kind, args, **facts), runnable)

    def begin(self, runnable: Runnable, args: str = "{}") -> tuple[Attempt, asyncio.Task[Any]]:
        """An attempt in a task of its own."""
        attempt = self.attempt(runnable, args)

        async def run() -> Any:
            return await runnable.run(attempt)

        attempt.task = asyncio.create_task(run())
        return attempt, attempt.task

    async def run(self, runnable: Runnable, args: str = "{}") -> Any:
        return await self.begin(runnable, args)[1]

    async def stop(self) -> None:
        await self.executors.stop()

    # ---- as Reach

    def progress(self, job: Claimed, *told: Any) -> None:
        self.told.append((job.id, *told))

    async def results(self, job: Claimed) -> dict[str, Any]:
        return {}

    def completing(self, job: Claimed, result: Any) -> Any:
        raise NotImplementedError

    async def enqueue(self, call: Any) -> Any:
        return call


def claimed(number: int, kind: str, args: str = "{}", **facts: Any) -> Claimed:
    usual: dict[str, Any] = {
        "id": number,
        "claim": (7 << 32) + number,
        "kind": kind,
        "args": args,
        "attempt": 1,
        "max_attempts": 3,
        "flags": 0,
        "queue": "default",
        "key": None,
        "tenant": None,
        "batch": None,
        "meta": None,
        "seq": number,
        "priority": 5,
        "created_at": datetime.now(UTC),
    }
    return Claimed(**{**usual, **facts})


async def in_one_runner(runs: list[Callable[[], Awaitable[Any]]]) -> list[Any]:
    """Await them one after the other in one task, as a runner does."""

    async def runner() -> list[Any]:
        return [await run() for run in runs]

    return await asyncio.create_task(runner())


@dataclass
class Moved:
    amount: int = 0


# ---- what runs in processes


@functools.partial(Job, kind="squared", executor="process")
def squared(number: int) -> int:
    return number * number


def whereabouts() -> list[Any]:
    job = current()
    return [os.getpid(), job.id, job.kind, job.attempt, job.meta]


def spin(pid_file: str) -> None:
    with Path(pid_file).open("w") as file:
        file.write(str(os.getpid()))
    while True:
        pass


def leave(code: int) -> None:
    os._exit(code)


def crash() -> None:
    import signal

    os.kill(os.getpid(), signal.SIGSEGV)


class Refused(Exception):
    def __init__(self, *, number: int) -> None:
        super().__init__(f"number {number} is refused")
        self.number = number


def refuse(number: int) -> None:
    raise Refused(number=number)


def put_off() -> None:
    raise Snooze(3, "not yet")


def unsendable() -> None:
    class Local(Exception):
        pass

    raise Local("cannot be sent")


def answer_with_a_lock() -> Any:
    import threading

    return threading.Lock()


def count_to(number: int) -> int:
    for one in range(number):
        current().progress(one + 1, number, "counting")
        time.sleep(0.002)
    return number


opened: list[str] = []


@contextlib.contextmanager
def ledger() -> Iterator[list[str]]:
    opened.append("opened")
    yield opened
    opened.append("closed")


def books(ledger: list[str] = Inject(ledger)) -> list[str]:
    return list(ledger)
