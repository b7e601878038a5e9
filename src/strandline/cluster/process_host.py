"""A heart in a side process, seen from the app: started, spoken with, started again, ended.

One thread does all of it, so that neither a blocked event loop nor a frozen side process can hold
the other up: what it writes never waits, and what it reads it hands on.
"""

from __future__ import annotations

import asyncio
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from strandline.cluster.board import Board
from strandline.cluster.hosts import LAST_WORDS, LOOK_EVERY
from strandline.cluster.node import Identity
from strandline.cluster.vitals import Command, News, PulseOptions, packed
from strandline.telemetry.journal import Journal

log = Journal("strandline.pulse")

MODULE = "strandline.cluster.side_process"
SILENT_FOR = 5.0  # seconds without a word after which a side process is replaced: it hangs
START_WITHIN = 30.0  # seconds until its first word
QUICK_DEATH = 2.0  # seconds; who dies sooner is started again after a growing pause
FIRST_PAUSE = 0.05
LONGEST_TAIL = 4096  # bytes of its stderr kept for the report of its death


class ProcessHost:
    """Keeps a side process running until ``stop``.

    Args:
        identity: The node.
        options: How to beat.
        post: Called with news, in the host's thread.
    """

    def __init__(
        self, identity: Identity, options: PulseOptions, post: Callable[[News], None]
    ) -> None:
        self.board, self._board_fd = Board.shared()
        self.restarts = 0
        self._facts = packed(identity, options)
        self._interval = options.interval
        self._post = post
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._lock = threading.Lock()
        self._calls = 0
        self._asked: dict[int, tuple[Command, asyncio.Future[bool]]] = {}
        self._lasting: dict[str, Command] = {}  # what a new side process must be told again
        self._joined = False
        self._stopping = False
        self._deadline = float("inf")
        self._outbox = self._unread = b""
        self._wake_read, self._wake_write = os.pipe()
        for fd in (self._wake_read, self._wake_write):
            os.set_blocking(fd, False)
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr = b""
        self._thread = threading.Thread(target=self._run, name="strandline-pulse", daemon=True)

    # ---- the app's event loop

    def start(self) -> None:
        """See ``Host``."""
        self._thread.start()

    def ask(self, command: Command) -> Awaitable[bool]:
        """See ``Host``."""
        answer: asyncio.Future[bool] = self._loop.create_future()
        with self._lock:
            self._calls += 1
            call = self._calls
            self._asked[call] = (command, answer)
            if command.kind in {"ready", "drain"} or command.facts.get("for_good"):
                self._lasting[command.kind] = command
            self._outbox += _line(command, call)
        answer.add_done_callback(lambda _: self._asked.pop(call, None))
        self._wake()
        return answer

    async def stop(self, *, timeout: float) -> None:
        """See ``Host``."""
        with self._lock:
            self._stopping = True
            self._deadline = time.monotonic() + timeout
            self._outbox += b'{"do": "stop"}\n'
        self._wake()
        if self._thread.is_alive():
            await asyncio.wait({self._ended}, timeout=timeout + 1.0)

    # ---- the host's thread

    def _run(self) -> None:
        pause = 0.0
        try:
            while not self._stopping:
                began = time.monotonic()
                code = self._one_life()
                if self._stopping or self._loop.is_closed():
                    break
                quick = time.monotonic() - began < QUICK_DEATH
                pause = min(self._interval, max(FIRST_PAUSE, 2 * pause)) if quick else 0.0
                self.restarts += 1
                last = self._stderr.decode(errors="replace").strip()
                self._post(News("side_process_died", {"code": code, "error": last}))
                self._pause(pause)
        except Exception as error:
            log.tell("side_process_unkept", trace=error)
        finally:
            self._close()

    def _one_life(self) -> int | None:
        """Start a side process and serve it until it ends; its exit code."""
        try:
            process = self._start()
        except OSError as error:  # no memory, or too many processes
            self._stderr = f"could not be started: {error}".encode()
            return None
        self._process = process
        try:
            self._serve(process)
        finally:
            for pipe in (process.stdin, process.stdout, process.stderr):
                with suppress(OSError):
                    assert pipe is not None
                    pipe.close()
            code = _reaped(process, within=self._patience())
        return code

    def _start(self) -> subprocess.Popen[bytes]:
        self._stderr = b""
        if not sys.executable or getattr(sys, "frozen", False):
            raise OSError('this program is no Python that could run a module: set pulse="thread"')
        with self._lock:
            wishes = [asdict(one) for one in self._lasting.values()]
            begin = {"do": "begin", "joined": self._joined, "wishes": wishes, **self._facts}
            self._outbox = json.dumps(begin).encode() + b"\n"
            asked = list(self._asked.items())
            self._outbox += b"".join(_line(one, call) for call, (one, _) in asked)
        return subprocess.Popen(
            [sys.executable, "-P", "-m", MODULE, str(self._board_fd), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            pass_fds=(self._board_fd,),
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": _path()},
        )

    def _serve(self, process: subprocess.Popen[bytes]) -> None:
        """Carry lines both ways until its stdout ends, or it says nothing for too long."""
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        for pipe in (process.stdin, process.stdout, process.stderr):
            os.set_blocking(pipe.fileno(), False)
        self._unread = b""
        silent, patience = 0.0, START_WITHIN
        # poll, not epoll: that needs a descriptor of its own, and these may have run out
        with selectors.PollSelector() as selector:
            for source in (process.stdout, process.stderr, self._wake_read):
                selector.register(source, selectors.EVENT_READ)
            while time.monotonic() < self._deadline and silent < patience:
                self._write(process.stdin, selector)
                looked = time.monotonic()
                ready = self._ready(selector)
                # time in which this process was frozen is not the other's silence
                silent += min(time.monotonic() - looked, 2 * LOOK_EVERY)
                if process.stderr.fileno() in ready:
                    self._hear_stderr(process.stderr, selector)
                if process.stdout.fileno() in ready:
                    if not self._hear(process.stdout):
                        return
                    silent, patience = 0.0, SILENT_FOR
                if self._loop.is_closed() and not self._stopping:
                    self._say_that_the_loop_is_closed(process.stdin)
                    return
        if not self._stopping:
            log.tell("side_process_silent", seconds=silent)
        process.kill()

    def _ready(self, selector: selectors.BaseSelector) -> set[int]:
        wait = min(LOOK_EVERY, max(0.0, self._deadline - time.monotonic()))
        ready = {key.fd for key, _ in selector.select(wait)}
        if self._wake_read in ready:
            _read(self._wake_read)
        return ready

    def _hear(self, pipe: Any) -> bool:
        """Take in what it wrote; whether more can come."""
        data = _read(pipe.fileno())
        if data:
            *lines, self._unread = (self._unread + data).split(b"\n")
            for line in lines:
                self._heard(json.loads(line))
        return data != b""

    def _write(self, pipe: Any, selector: selectors.BaseSelector) -> None:
        with self._lock:
            try:
                written = os.write(pipe.fileno(), self._outbox) if self._outbox else 0
            except BlockingIOError:
                written = 0
            except OSError:  # it has ended; its stdout will say so
                written = len(self._outbox)
            self._outbox = self._outbox[written:]
            waits = bool(self._outbox)
        if waits and pipe not in selector.get_map():
            selector.register(pipe, selectors.EVENT_WRITE)
        elif not waits and pipe in selector.get_map():
            selector.unregister(pipe)

    def _heard(self, line: dict[str, Any]) -> None:
        if "answer" in line:
            self._answer(line["answer"], line["done"])
            return
        if line["news"] == "alive":
            return
        if line["news"] == "joined":
            self._joined = True
        self._post(News(line["news"], line["facts"]))

    def _answer(self, call: int, done: bool) -> None:
        def settle() -> None:
            found = self._asked.get(call)
            if found is not None and not found[1].done():
                found[1].set_result(done)

        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(settle)

    def _hear_stderr(self, pipe: Any, selector: selectors.BaseSelector) -> None:
        data = _read(pipe.fileno())
        if data == b"":
            selector.unregister(pipe)
        elif data:
            self._stderr = (self._stderr + data)[-LONGEST_TAIL:]
            for line in data.decode(errors="replace").splitlines():
                log.tell("side_process_said", line=line)

    def _say_that_the_loop_is_closed(self, pipe: Any) -> None:
        with suppress(OSError):
            os.write(pipe.fileno(), b'{"do": "reason", "reason": "its event loop was closed"}\n')

    def _patience(self) -> float:
        """Seconds that a side process has to end by itself: it may have something to write."""
        if not self._stopping:
            return 1.0 + LAST_WORDS if self._loop.is_closed() else 1.0
        return max(0.0, min(1.0, self._deadline - time.monotonic()))

    def _pause(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        with selectors.PollSelector() as selector:
            selector.register(self._wake_read, selectors.EVENT_READ)
            while not self._stopping and (left := ends - time.monotonic()) > 0:
                selector.select(left)
                _read(self._wake_read)

    def _wake(self) -> None:
        with self._lock, suppress(OSError):  # full: it wakes anyway; closed: it has ended
            os.write(self._wake_write, b"!")

    def _close(self) -> None:
        with self._lock:
            for fd in (self._board_fd, self._wake_read, self._wake_write):
                os.close(fd)
            self._wake_write = -1  # its number may be another file's from now on
        with suppress(RuntimeError):  # the app's loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._ended.set_result, None)


def _line(command: Command, call: int) -> bytes:
    told = {"do": command.kind, "call": call, "facts": command.facts}
    return json.dumps(told).encode() + b"\n"


def _read(fd: int) -> bytes | None:
    """What is there; None: nothing now; empty: never again."""
    try:
        return os.read(fd, 65_536)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _reaped(process: subprocess.Popen[bytes], *, within: float) -> int | None:
    try:
        return process.wait(within)
    except subprocess.TimeoutExpired:
        process.kill()
    try:
        return process.wait(1.0)
    except subprocess.TimeoutExpired:  # it hangs in the kernel
        return None


def _path() -> str:
    """Where this process finds its modules, in its order; also if it changed ``sys.path``."""
    ours = str(Path(__file__).parents[2])
    found = [one for one in sys.path if one]
    return os.pathsep.join(found if ours in found else [ours, *found])
