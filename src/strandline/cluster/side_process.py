"""The side process of a node: a heart in a process of its own, tied to the app's by two pipes.

    app ──commands──▶ stdin   │ heart ── one connection ──▶ PostgreSQL
        ◀────news──── stdout  │
        ◀───board of 128 bytes, shared───▶

End of file on stdin, or the end of the app's process itself, means that the app is gone: the node's
row says so within milliseconds, its leases are free, and the others are told. Signals that a
terminal or a service manager sends to a whole group do not end this process: it has to speak until
the app has left. It ends when the app ends, whatever happens, and within ``LAST_WORDS`` seconds.

An app whose event loop is blocked for ``stall_kill_after`` is ended from here: SIGABRT first, by
which Python's fault handler prints the stacks of all threads, then SIGKILL.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import os
import signal
import sys
from contextlib import suppress
from typing import Any

from strandline.cluster.board import Board
from strandline.cluster.heart import Heart
from strandline.cluster.hosts import LAST_WORDS
from strandline.cluster.vigil import Vigil
from strandline.cluster.vitals import Chest, Command, News, unpacked
from strandline.postgres.line import calm

KILL_AFTER = 2.0  # seconds from SIGABRT to SIGKILL
LOOK_EVERY = 0.1  # seconds between looks whether the app still is the parent
ALIVE_EVERY = 1.0  # seconds between words to the app, which ends a side process that says nothing
LONGEST_BACKLOG = 65_536  # bytes of news that a frozen app may leave unread

# News that the next one makes up for: they are dropped while the app reads nothing.
PASSING = frozenset({"alive", "ticked", "tick_failed", "changed", "election"})
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP)


class Pipes:
    """Lines of JSON from one file descriptor and to another; neither way ever waits."""

    def __init__(self, source: int = 0, sink: int = 1) -> None:
        self._source, self._sink = source, sink
        self.commands: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._read = b""
        self._unwritten = b""
        for fd in (source, sink):
            os.set_blocking(fd, False)
        self._loop.add_reader(source, self._readable)

    def write(self, line: dict[str, Any]) -> None:
        """Send *line* to the app, or drop it if it is passing news and the app does not read."""
        if len(self._unwritten) > LONGEST_BACKLOG and line.get("news") in PASSING:
            return
        self._unwritten += json.dumps(line, default=str).encode() + b"\n"
        self._writable()

    def _writable(self) -> None:
        try:
            written = os.write(self._sink, self._unwritten)
        except BlockingIOError:
            written = 0
        except OSError:  # nobody reads any more: the end of stdin tells the rest
            self._unwritten = b""
            self._loop.remove_writer(self._sink)
            return
        self._unwritten = self._unwritten[written:]
        if self._unwritten:
            self._loop.add_writer(self._sink, self._writable)
        else:
            self._loop.remove_writer(self._sink)

    def _readable(self) -> None:
        try:
            data = os.read(self._source, 65_536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._source)
            self.ended.set()
            return
        *lines, self._read = (self._read + data).split(b"\n")
        for line in lines:
            self.commands.put_nowait(json.loads(line))


class SideProcess:
    """Carries a heart, and watches the app."""

    def __init__(self, board: Board, parent: int) -> None:
        self._board = board
        self._parent = parent
        self._pipes = Pipes()
        self._gone = asyncio.Event()
        self._reason = "process died"
        self._heart: Heart | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self) -> None:
        """Beat until the app says that it is enough, or is gone."""
        self._watch_parent()
        hearing = self._spawn(self._hear())
        gone = self._spawn(self._gone.wait())
        ended = self._spawn(self._pipes.ended.wait())
        await asyncio.wait({hearing, gone, ended}, return_when=asyncio.FIRST_COMPLETED)
        if self._heart is None:
            return
        if (
            hearing.done()
        ):  # it was told to stop; or does not understand: then the app starts another
            await self._heart.stop()
            hearing.result()
            return
        faulthandler.dump_traceback_later(LAST_WORDS + 2.0, exit=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS):
                await self._heart.die(self._reason)

    async def _hear(self) -> None:
        while True:
            told = await self._pipes.commands.get()
            match told["do"]:
                case "begin":
                    self._begin(told)
                case "stop":
                    return
                case "reason":
                    self._reason = told["reason"]
                case kind:
                    self._spawn(self._obey(Command(kind, told["facts"]), told["call"]))

    def _begin(self, told: dict[str, Any]) -> None:
        identity, options = unpacked(told)
        chest = Chest("process", self._board, self._tell, joined=told["joined"])
        self._heart = Heart(identity, options, chest)
        for wish in told["wishes"]:  # before the first tick tells anything else
            self._heart.wish(Command(**wish))
        self._heart.start()
        self._spawn(self._say_that_it_runs())
        if options.stall_kill_after > 0:
            self._spawn(self._kill_when_stalled(options.stall_kill_after))

    async def _say_that_it_runs(self) -> None:
        while True:
            self._pipes.write({"news": "alive", "facts": {}})
            await asyncio.sleep(ALIVE_EVERY)

    async def _obey(self, command: Command, call: int) -> None:
        assert self._heart is not None
        done = await self._heart.obey(command)
        self._pipes.write({"answer": call, "done": done})

    def _tell(self, news: News) -> None:
        self._pipes.write({"news": news.kind, "facts": news.facts})

    # ---- the app's process

    def _watch_parent(self) -> None:
        """Its end, by the kernel's word where there is one: a fork of it may keep our pipe open."""
        loop = asyncio.get_running_loop()
        try:
            fd = os.pidfd_open(self._parent)
        except (AttributeError, OSError):
            self._spawn(self._ask_for_parent())
            return
        loop.add_reader(fd, self._parent_ended, fd)
        if os.getppid() != self._parent:  # it ended before we looked, and the number is another's
            self._gone.set()

    def _parent_ended(self, fd: int) -> None:
        asyncio.get_running_loop().remove_reader(fd)
        self._gone.set()

    async def _ask_for_parent(self) -> None:
        while os.getppid() == self._parent:  # noqa: ASYNC110 - nothing tells it here
            await asyncio.sleep(LOOK_EVERY)
        self._gone.set()

    async def _kill_when_stalled(self, after: float) -> None:
        stalled = asyncio.Event()
        vigil = Vigil(self._board, (after,), stalled.set)
        vigil.start()
        while vigil.age <= after:
            stalled.clear()
            await stalled.wait()
        self._reason = f"killed: its event loop had been blocked for {vigil.age:.0f} s"
        self._kill(signal.SIGABRT)
        await asyncio.sleep(KILL_AFTER)
        self._kill(signal.SIGKILL)

    def _kill(self, number: signal.Signals) -> None:
        if os.getppid() == self._parent:
            with suppress(ProcessLookupError):
                os.kill(self._parent, number)

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _beside(board: int, parent: int) -> None:
    await SideProcess(Board(board), parent).run()


def main() -> None:
    """Run as ``python -m strandline.cluster.side_process BOARD PARENT``, started by the app only."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    faulthandler.enable()
    board, parent = (int(word) for word in sys.argv[1:3])
    loop = asyncio.SelectorEventLoop()
    calm(loop)
    asyncio.set_event_loop(loop)
    loop.run_until_complete(_beside(board, parent))
    os._exit(0)  # a resolver's thread that hangs must not keep this process


if __name__ == "__main__":
    main()
