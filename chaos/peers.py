"""What surrounds the nodes, each in a process of its own: the proxies, and those who append."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

LOOK = 20.0  # seconds for a writer to read its streams
ROOT = Path(__file__).resolve().parents[1]


class Relay:
    """The proxies' process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._turn = asyncio.Lock()

    @classmethod
    async def start(cls) -> Relay:
        """Start it."""
        return cls(
            await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "chaos.relay",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                cwd=ROOT,
            )
        )

    async def order(self, do: str, name: str, **facts: Any) -> Any:
        """Give an order to the proxy *name*; its answer.

        Raises:
            RuntimeError: It could not be done.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        async with self._turn:
            line = json.dumps({"do": do, "name": name, **facts})
            self._process.stdin.write(line.encode() + b"\n")
            answer = json.loads(await self._process.stdout.readline())
        if "error" in answer:
            raise RuntimeError(f"{do} {name}: {answer['error']}")
        return answer["answer"]

    async def stop(self) -> None:
        """End it."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


class Writer:
    """A process that appends."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, journal: Path) -> None:
        self.name = name
        self.journal = journal
        self.process = process
        self.forgiven: set[bytes] = set()  # lines of the journal

    def go(self) -> None:
        """Append from now on."""
        self._order(b"go\n")

    async def rest(self, *, timeout: float) -> bool:
        """Finish what is under way, then rest; whether it does within *timeout* seconds."""
        return await self._answer(b"rest\n", timeout=timeout) == b"resting\n"

    async def look_again(self) -> None:
        """Go on behind what is stored now; it rests.

        Raises:
            RuntimeError: It cannot.
        """
        if await self._answer(b"look\n", timeout=LOOK) != b"looked\n":
            raise RuntimeError(f"writer {self.name} cannot read its streams")

    async def _answer(self, order: bytes, *, timeout: float) -> bytes:
        assert self.process.stdout is not None
        self._order(order)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                return await self.process.stdout.readline()
        return b""

    def _order(self, order: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(order)
