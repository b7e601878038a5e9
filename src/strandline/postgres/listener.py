"""LISTEN with reconnect, and coalesced NOTIFY after commit; polling covers what was missed.

A notice is a hint: whoever waits for one also polls. NOTIFY inside a transaction takes a
server-wide lock at commit, so notices go out after commit, at most one per interval and channel.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import asyncpg

from strandline.errors import Unavailable
from strandline.loops import Loop, Rhythm
from strandline.postgres.faults import driver_errors, translated
from strandline.postgres.operations import none
from strandline.postgres.pools import Pool
from strandline.postgres.statements import SqlFile
from strandline.settings import Settings

log = logging.getLogger("strandline.listener")

_sql = SqlFile(__name__)
NOTIFY = _sql.none("notify")


@dataclass(frozen=True, slots=True)
class ListenerStatistics:
    """How the listening connection is doing."""

    connected: bool
    notices: int
    reconnects: int


class Listener:
    """Hears notices of one database on a connection of its own."""

    def __init__(self, url: str, settings: Settings) -> None:
        self._url = url
        self._settings = settings
        self._hears: dict[str, list[Callable[[str], None]]] = {}
        self._connection: Any = None
        self._connection_channels: set[str] = set()
        self._notices = self._connects = 0
        self._loop = Loop("listener", self._connected, Rhythm(interval=5.0, limit=30.0))

    def on(self, channel: str, call: Callable[[str], None]) -> Callable[[], None]:
        """Call *call* with the payload of every notice on *channel*. The answer ends that.

        After a reconnect it is called with ``""``, since notices may have been missed.
        """
        calls = self._hears.setdefault(self._full(channel), [])
        calls.append(call)
        self._loop.wake()
        return lambda: calls.remove(call)

    def start(self) -> None:
        """Begin listening, in the background."""
        self._loop.start()

    async def stop(self) -> None:
        """End listening and close the connection."""
        await self._loop.stop(timeout=2.0)
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                await connection.close(timeout=2.0)
            except driver_errors():
                connection.terminate()

    def statistics(self) -> ListenerStatistics:
        """A picture of now."""
        alive = self._connection is not None and not self._connection.is_closed()
        return ListenerStatistics(alive, self._notices, max(0, self._connects - 1))

    async def _connected(self) -> None:
        """Keep the connection alive and every channel listened to."""
        connection = self._connection
        try:
            if connection is not None and not connection.is_closed():
                await connection.execute("SELECT", timeout=5.0)  # a dead peer is found out here
            else:
                connection = await self._open()
            for channel in set(self._hears) - self._connection_channels:
                await connection.add_listener(channel, self._heard)
                self._connection_channels.add(channel)
        except driver_errors() as error:
            self._connection = None
            if connection is not None:
                connection.terminate()
            raise translated(error, "listen") from error

    async def _open(self) -> Any:
        connection = await asyncpg.connect(
            self._url,
            timeout=self._settings.connect_timeout,
            server_settings={"application_name": "strandline listen"},
        )
        self._connection = connection
        self._connection_channels = set()
        connection.add_termination_listener(lambda _: self._loop.wake())
        self._connects += 1
        if self._connects > 1:
            for calls in self._hears.values():
                for call in list(calls):
                    call("")
        return connection

    def _heard(self, _: Any, __: int, channel: str, payload: str) -> None:
        self._notices += 1
        for call in list(self._hears.get(channel, ())):
            call(payload)

    def _full(self, channel: str) -> str:
        return f"{self._settings.schema}.{channel}"


class Notifier:
    """Sends notices after commit: the first at once, then at most one per interval a channel."""

    def __init__(self, pool: Pool, settings: Settings) -> None:
        self._pool = pool
        self._schema = settings.schema
        self._due: dict[str, str] = {}
        self._loop = Loop(
            "notifier",
            self._sent,
            Rhythm(interval=3600.0, limit=10.0, gap=settings.notify_interval),
        )

    def start(self) -> None:
        """Begin sending."""
        self._loop.start()

    async def stop(self) -> None:
        """Send what is due, and end."""
        await self._loop.stop(timeout=2.0)
        with suppress(TimeoutError):
            async with asyncio.timeout(2.0):
                await self._sent()

    def notify(self, channel: str, payload: str = "") -> None:
        """Tell *channel* soon. A later payload replaces one not yet sent."""
        self._due[channel] = payload
        self._loop.wake()

    async def _sent(self) -> None:
        due, self._due = self._due, {}
        for channel, payload in due.items():
            try:
                await self._pool.run(none(NOTIFY, f"{self._schema}.{channel}", payload))
            except Unavailable as error:
                log.debug("notice on %s not sent: %s", channel, error)  # polling covers it
