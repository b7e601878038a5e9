"""Nodes as processes of their own, to be killed, frozen, woken and told to stop.

    async with NodeProcess("shop:app", url, name="a") as node:
        await node.until("active", timeout=10)
        node.kill()

What is asked of the database goes over a connection of the test's own, never through the node.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import asyncpg

from strandline.postgres.operations import AsyncpgSession, many
from strandline.postgres.statements import SqlFile
from strandline.settings import PREFIX
from strandline.testing.guard import Guard

SIDE_PROCESS = b"strandline.cluster.side_process"
LOOK_EVERY = 0.02  # seconds between looks at a row that is waited for
LAST_LINES = 20  # of a node's log, in an error


@dataclass(frozen=True, slots=True)
class NodeRow:
    """A node as the database knows it."""

    id: UUID
    number: int
    name: str
    state: str
    pid: int
    left_reason: str
    beats: int
    expires_in: float
    work: int
    is_leader: bool


_sql = SqlFile(__name__)
ROWS = _sql.many("nodes_of_process", NodeRow)


class NodeProcess:
    """``strandline node APP`` in a process of its own. It ends with this process at the latest.

    Args:
        app: ``module:name`` of the App.
        url: The database.
        name: The node's stable name (setting ``node_name``).
        settings: Further settings, given to it as environment.
        environment: Further environment, as it is.
        log: File for what it says; None drops it.
        folder: Where it runs, and looks for *app*; None is here.
        schema: Of strandline's tables.
    """

    def __init__(
        self,
        app: str,
        url: str,
        *,
        name: str,
        settings: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
        folder: Path | None = None,
        schema: str = "strandline",
    ) -> None:
        self.app = app
        self.url = url
        self.name = name
        self.log = log
        self._folder = folder
        self._schema = schema
        given = {"database_url": url, "node_name": name, "schema": schema, **(settings or {})}
        named = {PREFIX + key.upper(): str(value) for key, value in given.items()}
        self._environment = {**os.environ, **named, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: Guard | None = None
        self._side: int | None = None

    async def __aenter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Kill it, if it is still there."""
        self.kill()
        await self.gone(timeout=10.0)

    def start(self) -> None:
        """Start it; returns at once."""
        with contextlib.ExitStack() as closing:
            where: Any = subprocess.DEVNULL
            if self.log is not None:
                where = closing.enter_context(self.log.open("ab"))
            self._process = subprocess.Popen(
                [sys.executable, "-m", "strandline", "node", self.app],
                stdin=subprocess.DEVNULL,
                stdout=where,
                stderr=where,
                cwd=self._folder,
                env=self._environment,
                start_new_session=True,
            )
        self._guard = Guard(self._process.pid)

    @property
    def pid(self) -> int:
        """Its process id.

        Raises:
            RuntimeError: It was not started.
        """
        if self._process is None:
            raise RuntimeError(f"node {self.name} was not started")
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs. Negative: the signal that ended it."""
        return None if self._process is None else self._process.poll()

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self.code is None

    def find_side_process(self) -> int | None:
        """The process id of what beats for it, if that is a process."""
        if self._side is None or not Path(f"/proc/{self._side}").exists():
            self._side = _find_child(self.pid, SIDE_PROCESS) if self.is_running else None
        return self._side

    # ---- harm

    def kill(self) -> None:
        """SIGKILL: it is gone without a word."""
        self._send(signal.SIGKILL)

    def kill_side_process(self) -> bool:
        """SIGKILL for what beats for it; whether there was such a process."""
        side = self.find_side_process()
        return side is not None and _sent(side, signal.SIGKILL)

    def freeze(self, *, with_side_process: bool = False) -> None:
        """SIGSTOP; *with_side_process* as when the whole machine is paused."""
        side = self.find_side_process() if with_side_process else None
        if side is not None:
            _sent(side, signal.SIGSTOP)
        self._send(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT for both: it goes on, and does not know that time has passed."""
        side = self.find_side_process()
        if side is not None:
            _sent(side, signal.SIGCONT)
        self._send(signal.SIGCONT)

    def terminate(self) -> None:
        """SIGTERM: it is told to stop."""
        self._send(signal.SIGTERM)

    async def gone(self, *, timeout: float) -> int:
        """Wait until it has ended; its exit code.

        Raises:
            TimeoutError: It had not within *timeout* seconds.
        """
        deadline = time.monotonic() + timeout
        while (code := self.code) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"node {self.name} (pid {self.pid}) is there after {timeout} s")
            await asyncio.sleep(0.005)
        if self._guard is not None:
            self._guard.dismiss()
            self._guard = None
        return code

    # ---- what the database says

    async def rows(self, *, url: str | None = None) -> list[NodeRow]:
        """Its rows in the database, the newest last; *url* is another way to the database."""
        connection: Any = await asyncpg.connect(url or self.url)
        try:
            return await AsyncpgSession(connection, self._schema).run(
                many(ROWS, self.pid, self.name)
            )
        finally:
            await connection.close()

    async def until(
        self, *states: str, timeout: float, url: str | None = None, newer_than: int = 0
    ) -> NodeRow:
        """Wait until its newest row has one of *states*.

        Args:
            states: Such as ``active`` or ``dead``.
            timeout: Seconds to wait.
            url: Another way to the database than the node's.
            newer_than: The ``number`` of a row of which it is to have a successor.

        Raises:
            TimeoutError: It had not, or it has ended and never will; the message tells what it has,
                and how its log ends.
        """
        deadline = time.monotonic() + timeout
        is_of_the_living = not {"left", "dead"} & set(states)
        while True:
            rows = await self.rows(url=url)
            if rows and rows[-1].state in states and rows[-1].number > newer_than:
                return rows[-1]
            has_ended = is_of_the_living and self.code is not None
            if has_ended or time.monotonic() > deadline:
                has = rows[-1].state if rows else "no row"
                raise TimeoutError(
                    f"node {self.name} is not {' or '.join(states)} within {timeout} s, but {has}"
                    f" (exit code {self.code}){self._last_lines()}"
                )
            await asyncio.sleep(LOOK_EVERY)

    def _send(self, number: int) -> None:
        if self.is_running:
            _sent(self.pid, number)

    def _last_lines(self) -> str:
        if self.log is None or not self.log.exists():
            return ""
        lines = self.log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        return "".join(f"\n  {line}" for line in lines)


def _sent(pid: int, number: int) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _find_child(parent: int, marker: bytes) -> int | None:
    """The child of *parent* with *marker* in its command line (read from /proc: Linux)."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError, ValueError):
            after_name = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(after_name[1]) == parent and marker in (entry / "cmdline").read_bytes():
                return int(entry.name)
    return None
