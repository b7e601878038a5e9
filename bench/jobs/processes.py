"""Starts the systems' clients, and speaks with them; see ``clients/client.py``."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.jobs import cpu
from bench.jobs.systems import HERE, System

LIMIT = 300.0  # seconds for one producer, and for one drain
READY = 60.0  # seconds for a worker to be ready
LAST = 20.0  # seconds for a worker to end


class Failed(Exception):
    """A client failed, hung, or did something else than it should."""


@dataclass(frozen=True, slots=True)
class Place:
    """A system and the database it has to itself."""

    system: System
    url: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def environment(self, command: str, **order: Any) -> dict[str, str]:
        """What a client is given."""
        settings = {**self.system.settings, **self.settings}
        whole = {"command": command, "url": self.url, "settings": settings, **order}
        return {**os.environ, "BENCH_JOB": json.dumps(whole)}

    def run(self, command: str, **order: Any) -> dict[str, Any]:
        """Run a client to its end; what it said last."""
        try:
            done = subprocess.run(
                self.system.command,
                env=self.environment(command, **order),
                stdout=subprocess.PIPE,
                text=True,
                cwd=HERE.parents[1],
                timeout=LIMIT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"{command} took more than {LIMIT:.0f} s") from None
        if done.returncode:
            raise Failed(f"{command} ended with code {done.returncode}")
        said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return said


class Worker:
    """A process that runs jobs."""

    def __init__(self, place: Place, progress: Path) -> None:
        self._progress = progress
        self._process = subprocess.Popen(
            place.system.command,
            env=place.environment("work", progress=str(progress)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=HERE.parents[1],
        )

    def wait_until_ready(self) -> None:
        """It is connected, and knows its job."""
        assert self._process.stdout
        readable, _, _ = select.select([self._process.stdout], [], [], READY)
        if not readable or self._process.stdout.readline().strip() != "ready":
            raise Failed("a worker did not get ready")

    def tell(self) -> None:
        """Send the line that it waits for."""
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def executed(self) -> int:
        """Jobs that it has run, as of at most some 10 ms ago.

        Raises:
            Failed: It has ended.
        """
        if self._process.poll() is not None:
            raise Failed(f"a worker ended with code {self._process.returncode}")
        try:
            return int(self._progress.read_text() or 0)
        except FileNotFoundError:
            return 0

    def cpu(self) -> float:
        """Seconds of processor time, with its children."""
        return cpu.of_tree(self._process.pid)

    def stop(self) -> dict[str, Any]:
        """Let it end; its tally."""
        try:
            said, _ = self._process.communicate("\n", timeout=LAST)
        except subprocess.TimeoutExpired:
            raise Failed(f"a worker did not end within {LAST:.0f} s") from None
        if self._process.returncode:
            raise Failed(f"a worker ended with code {self._process.returncode}")
        tally: dict[str, Any] = json.loads(said.splitlines()[-1])
        return tally

    def kill(self) -> None:
        """End it now, if it has not ended."""
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def workers(place: Place, number: int) -> Iterator[list[Worker]]:
    """So many of them, all ready and none begun; gone at the end."""
    started: list[Worker] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            started += [Worker(place, Path(folder) / str(one)) for one in range(number)]
            for worker in started:
                worker.wait_until_ready()
            time.sleep(0.3)  # what starting them set going on the machine has come to rest
            yield started
        finally:
            for worker in started:
                worker.kill()
