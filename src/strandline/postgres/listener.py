"""LISTEN with reconnect, and coalesced NOTIFY after commit; polling covers what was missed.

A notice is a hint: whoever waits for one also polls. NOTIFY inside a transaction takes a
server-wide lock at commit, so notices go out after commit, at most one per interval and channel.

PgBouncer in transaction mode takes LISTEN and forgets it: there the listener stays silent unless
``direct_url`` leads past it, and everybody polls. A session that lost its LISTEN in some other way
is found by a look at ``pg_listening_channels()``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import asyncpg

from strandline.errors import Unavailable
from strandline.loops import Loop, Rhythm
from strandline.postgres.connections import only_primary
from strandline.postgres.faults import driver_errors, translated
from strandline.postgres.operations import none
from strandline.postgres.pools import Pool
from strandline.postgres.statements import SqlFile
from strandline.settings import Settings
from strandline.telemetry.journal import Journal

log = Journal("strandline.listener")


LOOK_EVERY = 5.0  # seconds between looks whether the session still listens
PATIENCE = 5.0  # seconds the server has for an answer to that


@dataclass(frozen=True, slots=True)
class ListenerStatistics:
    """How the listening connection is doing.

    Attributes:
        connected: Whether it is there now.
        notices: Heard so far.
        reconnects: Times it had to be made anew.
        is_polling: There is no way to LISTEN: only polling is left.
    """

    connected: bool
    notices: int
    reconnects: int
    is_polling: bool = False


@dataclass(frozen=True, slots=True)
class Channel:
    """A channel that the session listens to."""

    name: str


_sql = SqlFile(__name__)
NOTIFY = _sql.none("notify")
LISTENING = _sql.many("listening", Channel)


class Listener:
    """Hears notices of one database on a connection of its own.

    Args:
        url: The server itself, not a pooler: ``Pools.control_url``.
        settings: Limits, and whether *url* is a pooler after all.
        application: Stands in ``application_name`` behind ``strandline listen``.
    """

    def __init__(self, url: str, settings: Settings, *, application: str = "") -> None:
        self._url = url
        self._settings = settings
        self._application = f"strandline listen {application}".rstrip()
        self._is_polling = settings.pooler == "transaction" and url != settings.direct_url
        self._hears: dict[str, list[Callable[[str], None]]] = {}
        self._connection: Any = None
        self._connection_channels: set[str] = set()
        self._notices = self._connects = 0
        self._loop = Loop("listener", self._connected, Rhythm(interval=LOOK_EVERY, limit=30.0))

    def on(self, channel: str, call: Callable[[str], None]) -> Callable[[], None]:
        """Call *call* with the payload of every notice on *channel*. The answer ends that.

        After a reconnect it is called with ``""``, since notices may have been missed.
        """
        calls = self._hears.setdefault(self._full(channel), [])
        calls.append(call)
        self._loop.wake()
        return lambda: calls.remove(call)

    def start(self) -> None:
        """Begin listening, in the background; do nothing where that cannot work."""
        if self._is_polling:
            log.tell("listener_polls", seconds=self._settings.poll_interval)
        else:
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
        reconnects = max(0, self._connects - 1)
        return ListenerStatistics(alive, self._notices, reconnects, self._is_polling)

    async def _connected(self) -> None:
        """Keep the connection alive and every channel listened to."""
        connection = self._connection
        try:
            async with asyncio.timeout(PATIENCE + self._settings.connect_timeout):
                is_new = connection is None or connection.is_closed()
                if is_new:
                    connection = await self._open()
                else:
                    await self._still_listening(connection)
                for channel in set(self._hears) - self._connection_channels:
                    await connection.add_listener(channel, self._heard)
                    self._connection_channels.add(channel)
            if is_new:
                self._connects += 1
                self._tell_what_was_missed()
        except driver_errors() as error:
            self._connection = None
            if connection is not None:
                connection.terminate()
            raise translated(error, "listen") from error

    async def _still_listening(self, connection: Any) -> None:
        """Find a dead peer, and a session that is another than it was."""
        async with asyncio.timeout(PATIENCE):
            rows = await connection.fetch(LISTENING.sql(self._settings.schema))
        lost = self._connection_channels - {row["name"] for row in rows}
        if lost:
            raise asyncpg.InterfaceError(
                f"the connection no longer listens to {', '.join(sorted(lost))}:"
                " is there a pooler on the way (settings pooler and direct_url)?"
            )

    async def _open(self) -> Any:
        connection = await asyncpg.connect(
            self._url,
            timeout=self._settings.connect_timeout,
            statement_cache_size=0,  # it asks one question, now and then
            server_settings={"application_name": self._application},
            **only_primary(self._url),
        )
        self._connection = connection
        self._connection_channels = set()
        connection.add_termination_listener(lambda _: self._loop.wake())
        return connection

    def _tell_what_was_missed(self) -> None:
        if self._connects > 1:
            for channel in list(self._hears):
                self._tell(channel, "")

    def _heard(self, _: Any, __: int, channel: str, payload: str) -> None:
        self._notices += 1
        self._tell(channel, payload)

    def _tell(self, channel: str, payload: str) -> None:
        for call in list(self._hears.get(channel, ())):
            try:
                call(payload)
            except Exception as error:  # one that fails must not keep it from the others
                log.tell("notice_failed", channel=channel, trace=error)

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
                log.tell("notice_not_sent", channel=channel, error=error)  # polling covers it
