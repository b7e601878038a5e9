"""A TCP proxy before PostgreSQL: cuts, delays, swallows answers, or lets bytes vanish."""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit, urlunsplit

_CHUNK = 65_536
_AHEAD = 64  # chunks that may be on their way in a delayed direction

Way = Literal["requests", "answers"]


class Proxy:
    """Forwards to the server of *url* until told otherwise; ``url`` is its own.

        async with Proxy(database_url) as proxy:
            async with App("shop", proxy.url): ...

    Args:
        url: ``postgresql://`` over TCP.
    """

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self._upstream = _address(url)
        self._server: asyncio.Server | None = None
        self._lines: set[_Line] = set()
        self._open: dict[Way, asyncio.Event] = {"requests": asyncio.Event()}
        self._open["answers"] = asyncio.Event()
        for gate in self._open.values():
            gate.set()
        self._refusing = False
        self._fatal: bytes | None = None
        self.seconds_late = 0.0
        self.is_black_hole = False
        self.swallowed = 0

    async def __aenter__(self) -> Self:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop listening and cut every connection."""
        if self._server is not None:
            self._server.close()
        tasks = [line.task for line in self._lines]
        self.cut()
        if tasks:
            await asyncio.wait(tasks, timeout=5.0)

    @property
    def url(self) -> str:
        """The database's URL through the proxy."""
        if self._server is None:
            raise RuntimeError("the proxy is not open: use `async with Proxy(url)`")
        port = self._server.sockets[0].getsockname()[1]
        head, at, _ = self._parts.netloc.rpartition("@")
        return urlunsplit(self._parts._replace(netloc=f"{head}{at}127.0.0.1:{port}"))

    @property
    def connections(self) -> int:
        """How many connections go through it now."""
        return len(self._lines)

    @property
    def ports(self) -> list[int]:
        """The client ports of its connections, as ``pg_stat_activity`` shows them."""
        return [line.port for line in self._lines if line.port]

    def cut(self) -> None:
        """Cut every connection, as when a cable is pulled or a server's host dies."""
        for line in list(self._lines):
            line.cut()

    def refuse(self) -> None:
        """Cut every connection, and close new ones at once, until ``forward``."""
        self._refusing = True
        self.cut()

    def hold(self, way: Way | Literal["both"] = "both") -> None:
        """Forward nothing, and say nothing about it, until ``forward``; then all of it arrives.

        Args:
            way: ``requests`` or ``answers`` holds up that direction only: the server does what it
                is asked for, and nobody hears of it.
        """
        for name, gate in self._open.items():
            if way in ("both", name):
                gate.clear()

    def delay(self, seconds: float) -> None:
        """Let every byte arrive *seconds* later, both ways, until ``forward``."""
        self.seconds_late = seconds

    def black_hole(self) -> None:
        """Acknowledge whatever is sent, and forward none of it, until ``forward``.

        So TCP finds nothing wrong. New connections are accepted, and hear nothing. Afterwards the
        connections that have lost bytes are cut.
        """
        self.is_black_hole = True

    def forward(self) -> None:
        """Forward again."""
        self._refusing = False
        self.is_black_hole = False
        self.seconds_late = 0.0
        for line in list(self._lines):
            if line.has_lost_bytes:
                line.cut()
        for gate in self._open.values():
            gate.set()

    def lead_to(self, url: str) -> None:
        """Let new connections lead to the server of *url*, as after a fail-over."""
        self._upstream = _address(url)

    def swallow_answer_to(self, words: bytes) -> None:
        """Let the next request with *words* in it reach the server, and cut instead of its answer.

        So the server does what it was asked for, and the client cannot know. Happens once; then
        ``swallowed`` is one higher.
        """
        self._fatal = words

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        line = _Line(self, reader, writer)
        self._lines.add(line)
        try:
            await line.carry(*self._upstream)
        finally:
            self._lines.discard(line)

    async def passes(self, way: Way) -> None:
        """Wait until *way* is open."""
        await self._open[way].wait()

    def is_fatal(self, request: bytes) -> bool:
        """Whether the answer to *request* is to be swallowed; told once."""
        if self._fatal is None or self._fatal not in request:
            return False
        self._fatal = None
        return True


class _Line:
    """One connection through the proxy."""

    def __init__(
        self, proxy: Proxy, client: asyncio.StreamReader, to_client: asyncio.StreamWriter
    ) -> None:
        self._proxy = proxy
        self._client, self._to_client = client, to_client
        self._to_server: asyncio.StreamWriter | None = None
        self._doomed = False
        self.has_lost_bytes = False
        self.port = 0
        current = asyncio.current_task()
        assert current is not None
        self.task: asyncio.Task[None] = current

    async def carry(self, host: str, port: int) -> None:
        """Carry bytes both ways until one side ends."""
        if self._proxy.is_black_hole:
            self.has_lost_bytes = True
            await self._vanish()
            return
        try:
            server, self._to_server = await asyncio.open_connection(host, port)
        except OSError:
            self.cut()
            return
        self.port = self._to_server.get_extra_info("sockname")[1]
        ways = {
            asyncio.create_task(self._requests(self._to_server), name="proxy: requests"),
            asyncio.create_task(self._answers(server), name="proxy: answers"),
        }
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.cut()
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    def cut(self) -> None:
        """End both sides at once."""
        self._to_client.transport.abort()
        if self._to_server is not None:
            self._to_server.transport.abort()

    async def _vanish(self) -> None:
        while await self._client.read(_CHUNK):
            pass

    async def _requests(self, to_server: asyncio.StreamWriter) -> None:
        before = b""
        late = _Late(to_server)
        try:
            while data := await self._client.read(_CHUNK):
                if not await self._passes("requests"):
                    continue
                if self._proxy.is_fatal(before + data):
                    self._doomed = True
                before = data[-200:]  # words may be split over two reads
                await late.write(data, self._proxy.seconds_late)
        finally:
            late.end()

    async def _answers(self, server: asyncio.StreamReader) -> None:
        late = _Late(self._to_client)
        try:
            while data := await server.read(_CHUNK):
                if not await self._passes("answers"):
                    continue
                if self._doomed:
                    self._proxy.swallowed += 1
                    return  # the server has answered, so it is done
                await late.write(data, self._proxy.seconds_late)
        finally:
            late.end()

    async def _passes(self, way: Way) -> bool:
        """Wait until bytes may pass; False if they are lost instead."""
        if not self._proxy.is_black_hole:
            await self._proxy.passes(way)
        if self._proxy.is_black_hole:
            self.has_lost_bytes = True
        return not self.has_lost_bytes


class _Late:
    """Writes in order, some of it later."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._due: deque[tuple[float, bytes]] = deque()
        self._room = asyncio.Semaphore(_AHEAD)
        self._pumping: asyncio.Task[None] | None = None

    async def write(self, data: bytes, seconds: float) -> None:
        """Write *data* in *seconds*, but not before what was given earlier."""
        if not seconds and self._pumping is None:
            self._writer.write(data)
            await self._writer.drain()
            return
        await self._room.acquire()
        self._due.append((asyncio.get_running_loop().time() + seconds, data))
        if self._pumping is None:
            self._pumping = asyncio.create_task(self._pump(), name="proxy: late bytes")

    def end(self) -> None:
        """Drop what is still on its way."""
        if self._pumping is not None:
            self._pumping.cancel()

    async def _pump(self) -> None:
        clock = asyncio.get_running_loop().time
        try:
            while self._due:
                due, data = self._due[0]
                await asyncio.sleep(max(0.0, due - clock()))
                self._due.popleft()
                self._room.release()
                self._writer.write(data)
                await self._writer.drain()
        except OSError:
            pass  # its reader finds the end
        finally:
            self._pumping = None


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or 5432
