"""Threads for functions that block: bounded, and none of them can keep the process from ending.

``concurrent.futures`` joins its threads at the end of the process, so that one stuck function would
hold a node for ever. These are daemon threads, and one whose function is given up is replaced.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Any


class Work:
    """A function on its way through a thread.

    Attributes:
        future: What became of it.
    """

    __slots__ = ("_function", "_loop", "_threads", "future", "is_begun", "is_ended", "is_given_up")

    def __init__(
        self, threads: Threads, function: Callable[[], Any], loop: asyncio.AbstractEventLoop
    ) -> None:
        self.future: asyncio.Future[Any] = loop.create_future()
        self.is_begun = False
        self.is_ended = False
        self.is_given_up = False
        self._threads = threads
        self._function = function
        self._loop = loop

    async def ended(self) -> Any:
        """Wait for its answer; the first cancellation only asks it to end.

        A function that has not begun is taken back. One that runs is waited for until it agrees, by
        returning or raising. The second cancellation gives it up: its thread does no other work.
        """
        try:
            return await asyncio.shield(self.future)
        except asyncio.CancelledError:
            if self.future.done() or self._threads._withdraw(self):
                raise
        try:
            return await asyncio.shield(self.future)
        except asyncio.CancelledError:
            if not self.future.done():
                self._threads._give_up(self)
            raise

    def _run(self) -> None:
        answer: Any = None
        failure: BaseException | None = None
        try:
            answer = self._function()
        except StopIteration as error:  # which no future takes
            failure = RuntimeError(f"the function raised {error!r}")
            failure.__cause__ = error
        except BaseException as error:  # whatever it is, the waiting task gets it
            failure = error
        try:
            self._loop.call_soon_threadsafe(_settle, self.future, answer, failure)
        except RuntimeError:  # the loop is closed, and nobody waits
            pass
        finally:
            del answer, failure


class Threads:
    """Runs functions in at most *most* threads at once; others wait in line.

    Args:
        most: Threads.
        name: Of the threads.
    """

    def __init__(self, most: int, *, name: str = "strandline job") -> None:
        self.most = most
        self._name = name
        self._changed = threading.Condition()
        self._line: deque[Work] = deque()
        self._idle = 0
        self._alive = 0
        self._given_up = 0
        self._stopping = False

    def submit(self, function: Callable[[], Any]) -> Work:
        """Run *function* as soon as a thread is free. Call it from the event loop."""
        work = Work(self, function, asyncio.get_running_loop())
        with self._changed:
            if self._stopping:
                raise RuntimeError("the threads of this node are stopped")
            self._line.append(work)
            if self._idle >= len(self._line):
                self._changed.notify()
            elif self._alive - self._given_up < self.most:
                self._alive += 1
                threading.Thread(target=self._serve, name=self._name, daemon=True).start()
        return work

    @property
    def running(self) -> int:
        """Functions being run, those given up included."""
        return self._alive - self._idle

    @property
    def given_up(self) -> int:
        """Functions that run on though nobody waits for them any more."""
        return self._given_up

    def stop(self) -> None:
        """Let idle threads end, and busy ones after their function. Waits for nobody."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def _serve(self) -> None:
        while (work := self._next()) is not None:
            work._run()
            with self._changed:
                work.is_ended = True
                if work.is_given_up:
                    self._given_up -= 1
                    self._alive -= 1
                    return
            del work  # or an idle thread keeps the last function's arguments
        with self._changed:
            self._alive -= 1

    def _next(self) -> Work | None:
        with self._changed:
            self._idle += 1
            try:
                while not self._line and not self._stopping:
                    self._changed.wait()
                if not self._line:
                    return None
                work = self._line.popleft()
                work.is_begun = True
                return work
            finally:
                self._idle -= 1

    def _withdraw(self, work: Work) -> bool:
        with self._changed:
            if work.is_begun:
                return False
            self._line.remove(work)
            return True

    def _give_up(self, work: Work) -> None:
        work.future.add_done_callback(_forget)
        with self._changed:
            if work.is_ended:
                return
            work.is_given_up = True
            self._given_up += 1
            if self._line and not self._idle:
                self._alive += 1
                threading.Thread(target=self._serve, name=self._name, daemon=True).start()


def _settle(future: asyncio.Future[Any], answer: Any, failure: BaseException | None) -> None:
    if future.done():
        return
    if failure is None:
        future.set_result(answer)
    else:
        future.set_exception(failure)


def _forget(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()  # seen: nobody is to be told about it
