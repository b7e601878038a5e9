"""Processes for functions that compute: each job alone in one, killed when its time is up.

One process per slot with a pipe of its own, so that killing one of them, or a crash, touches no
other job: pools that share a queue of jobs between their workers have a lock that dies with one.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import importlib
import math
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from strandline.errors import InvalidDefinition
from strandline.jobs.attempt import Attempt
from strandline.jobs.process_child import BEGUN, Progress, Request, serve
from strandline.jobs.returned import Unstorable
from strandline.jobs.threads import Threads
from strandline.telemetry.trace_context import current_traceparent

KILLED_WITHIN = 5.0  # seconds the kernel may take to end a killed process

_spawning = multiprocessing.get_context("spawn")  # a fork would copy locks that other threads hold


class ProcessDied(Exception):  # noqa: N818 - states the fact, as the names of our errors do
    """The process that ran the job ended before the job did."""

    def __init__(self, exit_code: int | None) -> None:
        super().__init__(f"the process that ran the job {_ended(exit_code)}")
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.exit_code,)


class ProcessTraceback(Exception):  # noqa: N818 - no error of its own
    """Where an error was raised in another process, as the cause of that error."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._text = text

    def __str__(self) -> str:
        return f"\n{self._text}"


class FailedInProcess(Exception):  # noqa: N818 - stands for an error that cannot be carried over
    """A function in another process raised something that cannot be sent: its class and text."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where another process finds a function."""

    module: str
    name: str


def address(function: Callable[..., Any], title: str) -> Address:
    """Where another process finds *function*.

    Raises:
        InvalidDefinition: It cannot be found by name: it is local, a lambda, or was replaced.
    """
    module = getattr(function, "__module__", None)
    name = getattr(function, "__qualname__", None)
    advice = "a job with executor='process' must be a function at the top level of a module"
    if not module or not name or "<" in name:
        raise InvalidDefinition(f"{title}: {name or function!r} cannot be found by name: {advice}")
    found: Any = sys.modules.get(module) or importlib.import_module(module)
    for step in name.split("."):
        found = getattr(found, step, None)
    if found is None or (
        found is not function and getattr(found, "function", None) is not function
    ):
        raise InvalidDefinition(
            f"{title}: {module}.{name} is {found!r}, and not this function: {advice}"
        )
    return Address(module, name)


class Processes:
    """Runs functions in at most *most* processes at once; others wait in line.

    Args:
        most: Processes; as many as there are cores when None.
    """

    def __init__(self, most: int | None = None) -> None:
        self.most = most or os.cpu_count() or 1
        self._threads = Threads(self.most, name="strandline process")
        self._slots = asyncio.Semaphore(self.most)
        self._idle: list[Worker] = []
        self._all: set[Worker] = set()

    async def run(self, where: Address, attempt: Attempt, args: str) -> Any:
        """Run the function at *where* with *args*, JSON; its answer, or what it raised.

        Raises:
            ProcessDied: It ended the process, or the system killed it.
            CancelledError: The attempt was cancelled; the process is gone.
        """
        trace = current_traceparent() or ""
        data = _encode(Request(where.module, where.name, tuple(attempt.job), args, trace))
        deadline, since = attempt.deadline, time.monotonic()
        if deadline is not None:  # its time is for the function, however long the line is
            attempt.deadline = math.inf
        async with self._slots:
            if deadline is not None:
                attempt.deadline = deadline + time.monotonic() - since
            worker = self._idle.pop() if self._idle else Worker()
            self._all.add(worker)
            if len(self._all) == 1:
                atexit.register(self.kill)
            try:
                answer = await self._converse(worker, data, attempt)
            except BaseException:
                self._all.discard(worker)
                raise
            if worker.is_fit:
                self._idle.append(worker)
            else:
                self._all.discard(worker)
        return _opened(answer)

    async def _converse(self, worker: Worker, data: bytes, attempt: Attempt) -> bytes:
        def progress(data: bytes) -> None:
            told = _decode_progress(data)
            attempt.progress(told.done, told.total, told.message)

        work = self._threads.submit(lambda: worker.converse(data, progress))
        try:
            answer: bytes = await asyncio.shield(work.future)
        except asyncio.CancelledError:
            worker.kill()
            # No other attempt begins while this one lives.
            await asyncio.wait({work.future}, timeout=KILLED_WITHIN)
            if work.future.done() and not work.future.cancelled():
                work.future.exception()
            raise
        return answer

    async def stop(self, *, timeout: float = 5.0) -> None:
        """Let idle processes end; kill what has not after *timeout* seconds."""
        atexit.unregister(self.kill)
        workers = list(self._all)
        self._idle.clear()
        self._all.clear()
        self._threads.stop()
        if workers:
            await asyncio.to_thread(_end, workers, timeout)

    def kill(self) -> None:
        """End all of them now."""
        for worker in self._all:
            worker.kill()


class Worker:
    """One process, which runs one function at a time."""

    _starting = threading.Lock()  # multiprocessing keeps its list of children without one

    def __init__(self) -> None:
        self.is_fit = True
        self._killed = False
        self._begin()

    def _begin(self) -> None:
        self._pipe, self._theirs = _spawning.Pipe()
        self._process = _spawning.Process(target=serve, args=(self._theirs,), name="strandline job")

    def converse(self, request: bytes, progress: Callable[[bytes], None]) -> bytes:
        """Send *request* and wait for the answer; in a thread."""
        try:
            if self._process.pid is None or not self._begun(request):
                # New, or it has died idle, e.g. for the want of memory: no job has to notice.
                self._start()
                if not self._begun(request):
                    raise self._died()
            return self._answer(progress)
        except BaseException:
            self.is_fit = False
            self._pipe.close()
            raise

    def _start(self) -> None:
        if self._process.pid is not None:
            self._pipe.close()
            self._begin()
        with self._starting:
            if self._killed:
                raise ProcessDied(-signal.SIGKILL)
            self._process.start()
        self._theirs.close()

    def _begun(self, request: bytes) -> bool:
        """Send it; whether the process has it now."""
        try:
            self._pipe.send_bytes(request)
            return self._received() == BEGUN
        except (EOFError, OSError):
            return False

    def _answer(self, progress: Callable[[bytes], None]) -> bytes:
        try:
            while (data := self._received())[:1] == b"p":
                with contextlib.suppress(Exception):  # what cannot be told must not end the job
                    progress(data[1:])
        except (EOFError, OSError) as error:
            raise self._died() from error
        return data

    def _received(self) -> bytes:
        # The end of a process also closes its pipe, unless a child of its own holds it.
        while not self._pipe.poll(1.0):
            if not self._process.is_alive() and not self._pipe.poll():
                raise EOFError
        return self._pipe.recv_bytes()

    def _died(self) -> ProcessDied:
        self._process.join(1.0)
        if self._process.is_alive():  # its pipe is broken: it is of no use any more
            self._process.kill()
            self._process.join(1.0)
        return ProcessDied(self._process.exitcode)

    def kill(self) -> None:
        """End it, whatever it does."""
        self.is_fit = False
        with self._starting:
            self._killed = True
            if self._process.pid is not None:
                self._process.kill()

    def end(self, timeout: float) -> None:
        """Tell it to end, and see to it."""
        with contextlib.suppress(OSError):
            self._pipe.close()
        if self._process.pid is None:
            return
        self._process.join(timeout)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(KILLED_WITHIN)


def _end(workers: list[Worker], timeout: float) -> None:
    for worker in workers:
        worker.end(timeout / len(workers))


def _opened(answer: bytes) -> Any:
    """The result, or the error raised as it was, with where that happened as its cause."""
    kind, data = answer[:1], answer[1:]
    if kind == b"r":
        return msgspec.json.decode(data)
    if kind == b"u":
        return Unstorable(data.decode())
    name, text, trace, pickled = msgspec.msgpack.decode(data, type=tuple[str, str, str, bytes])
    error: BaseException | None = None
    if pickled:
        with contextlib.suppress(Exception):  # e.g. its class is known there and not here
            error = pickle.loads(pickled)  # noqa: S301 - from our own child, through its own pipe
    if not isinstance(
        error, Exception
    ):  # sys.exit() has ended that job, and must not end this node
        error = FailedInProcess(f"{name}: {text}")
    error.__cause__ = ProcessTraceback(trace)
    raise error


def _ended(exit_code: int | None) -> str:
    if exit_code is None:
        return "has gone"
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    try:
        return f"was killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"was killed by signal {-exit_code}"


_decode_progress = msgspec.msgpack.Decoder(Progress).decode


def _encode(request: Request) -> bytes:
    return msgspec.msgpack.encode(request)
