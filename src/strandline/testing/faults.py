"""A TCP proxy before PostgreSQL that cuts connections, swallows answers, or forwards nothing."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit

_CHUNK = 65_536


class Proxy:
    """Forwards to the server of *url* until told otherwise; ``url`` is its own.

        async with Proxy(database_url) as proxy:
            async with App("shop", proxy.url): ...

    Args:
        url: ``postgresql://`` over TCP.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or "127.0.0.1"
        self._port = parts.port or 5432
        self._parts = parts
        self._server: asyncio.Server | None = None
        self._lines: set[_Line] = set()
        self._open = asyncio.Event()
        self._open.set()
        self._refusing = False
        self._fatal: bytes | None = None
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

    def cut(self) -> None:
        """Cut every connection, as when a cable is pulled or a server's host dies."""
        for line in list(self._lines):
            line.cut()

    def refuse(self) -> None:
        """Cut every connection, and close new ones at once, until ``forward``."""
        self._refusing = True
        self.cut()

    def hold(self) -> None:
        """Forward nothing in either direction, and say nothing about it, until ``forward``."""
        self._open.clear()

    def forward(self) -> None:
        """Forward again."""
        self._refusing = False
        self._open.set()

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
        try:
            upstream = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.transport.abort()
            return
        line = _Line(self, reader, writer, *upstream)
        self._lines.add(line)
        try:
            await line.carry()
        finally:
            self._lines.discard(line)

    async def _passes(self) -> None:
        await self._open.wait()

    def _is_fatal(self, request: bytes) -> bool:
        if self._fatal is None or self._fatal not in request:
            return False
        self._fatal = None
        return True


class _Line:
    """One connection through the proxy."""

    def __init__(
        self,
        proxy: Proxy,
        client: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
        server: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
    ) -> None:
        self._proxy = proxy
        self._client, self._to_client = client, to_client
        self._server, self._to_server = server, to_server
        self._doomed = False
        current = asyncio.current_task()
        assert current is not None
        self.task: asyncio.Task[None] = current

    async def carry(self) -> None:
        """Carry bytes both ways until one side ends."""
        ways = {
            asyncio.create_task(self._requests(), name="proxy: requests"),
            asyncio.create_task(self._answers(), name="proxy: answers"),
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
        self._to_server.transport.abort()

    async def _requests(self) -> None:
        before = b""
        while data := await self._client.read(_CHUNK):
            await self._proxy._passes()
            if self._proxy._is_fatal(before + data):
                self._doomed = True
            before = data[-200:]  # words may be split over two reads
            self._to_server.write(data)
            await self._to_server.drain()

    async def _answers(self) -> None:
        while data := await self._server.read(_CHUNK):
            await self._proxy._passes()
            if self._doomed:
                self._proxy.swallowed += 1
                return  # the server has answered, so it is done
            self._to_client.write(data)
            await self._to_client.drain()
