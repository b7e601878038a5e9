"""Group commit: concurrent appends of one process go to the server together.

While one call is at the server the next appends queue; then they go as one call: one round trip,
one flush, each append with its own outcome. An append that finds nobody at the server goes
straight. Two calls may be at the server at once, never with the same stream in both, so the
appends to one stream keep the order in which they were asked for.

What can go wrong, and what then:

* A refused append (another version) fails alone; the others of its batch are stored.
* Bad data or a duplicate id fails the whole call: its appends are sent again one by one.
* The connection breaks: nobody knows what was stored. Every append of the batch is sent again with
  its event ids, which the server stores once (``append_again``), until it answers.
* The caller is cancelled while its append waits in the queue: it is not sent. Once it is on its
  way it cannot be called back.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from strandline.backoff import QUICK
from strandline.errors import NotOpen, OutcomeUnknown, PoolExhausted, StrandlineError, Unavailable
from strandline.events.append import (
    APPEND_BATCH,
    Append,
    Outcome,
    append,
    append_again,
    batch,
    refusal,
)
from strandline.events.event import Appended
from strandline.postgres.operations import AsyncpgSession, many
from strandline.postgres.pools import Pool
from strandline.settings import Settings

SENDERS = 2  # calls at the server at once: one is folded by the server while the next is encoded

Waiting = tuple[Append, "asyncio.Future[Appended]"]


class AppendGroup:
    """Appends of one process that have no transaction of their own."""

    def __init__(
        self, pool: Pool, settings: Settings, *, on_appended: Callable[[int], None]
    ) -> None:
        self._pool = pool
        self._most = settings.group_appends
        self._bytes = settings.group_bytes
        self._on_appended = on_appended
        self._queue: deque[Waiting] = deque()
        self._busy: set[tuple[str, str]] = set()  # streams that are at the server
        self._senders: set[asyncio.Task[None]] = set()
        self._straight = 0
        self._closed = False

    async def append(self, item: Append) -> Appended:
        """Append *item*, alone or with others. See ``App.append`` for what it raises."""
        if self._closed:
            raise NotOpen("the event store is closed: nothing can be appended")
        if not self._busy and not self._queue:
            return await self._alone(item)
        future: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
        self._queue.append((item, future))
        self._send()
        return await future

    async def close(self, *, timeout: float = 10.0) -> None:
        """Refuse new appends; wait for those under way."""
        self._closed = True
        deadline = asyncio.get_running_loop().time() + timeout
        while self._senders or self._straight:
            if asyncio.get_running_loop().time() > deadline:
                for sender in self._senders:
                    sender.cancel()
                break
            if self._senders:
                await asyncio.wait(self._senders, timeout=0.05)
            else:
                await asyncio.sleep(0.005)

    async def _alone(self, item: Append) -> Appended:
        key = (item.tenant, item.stream)
        self._busy.add(key)
        self._straight += 1
        try:
            try:
                async with self._pool.session() as session:
                    op = append_again if item.has_own_ids else append
                    done = await session.run(op(item))
            except Unavailable as error:
                done = await self._again(item, error)
        finally:
            self._straight -= 1
            self._busy.discard(key)
            self._send()
        self._on_appended(done.position)
        return done

    # ---- sending

    def _send(self) -> None:
        """Start a sender if there is work for one more."""
        at_the_server = len(self._senders) + self._straight
        if self._queue and at_the_server < SENDERS:
            sender = asyncio.create_task(self._sender(), name="strandline:append sender")
            self._senders.add(sender)
            sender.add_done_callback(self._ended)

    def _ended(self, sender: asyncio.Task[None]) -> None:
        self._senders.discard(sender)
        if not sender.cancelled() and sender.exception() is None:
            self._send()

    async def _sender(self) -> None:
        """Send batch after batch while there is something that may go."""
        await asyncio.sleep(0)  # whoever is ready to append in this round comes along
        taken = self._take()
        while taken:
            try:
                await self._sent(taken)
            except BaseException as error:
                _fail(taken, error)
                raise
            finally:
                self._busy.difference_update((one.tenant, one.stream) for one, _ in taken)
            await asyncio.sleep(0)
            taken = self._take()

    def _take(self) -> list[Waiting]:
        """The next batch: a stream once, none that is at the server, order kept per stream."""
        taken: list[Waiting] = []
        left: list[Waiting] = []
        size = 0
        busy, queue = self._busy, self._queue
        behind: set[tuple[str, str]] = set()
        while queue and len(taken) < self._most and size < self._bytes:
            one = queue.popleft()
            item, future = one
            if future.done():
                continue  # its caller was cancelled
            key = (item.tenant, item.stream)
            if key in busy or key in behind:
                behind.add(key)
                left.append(one)
                continue
            busy.add(key)
            taken.append(one)
            size += item.size
        queue.extendleft(reversed(left))
        return taken

    async def _sent(self, taken: list[Waiting]) -> None:
        plain = [one for one in taken if not one[0].has_own_ids]
        if plain:
            await self._together(plain)
        for item, future in taken:
            if item.has_own_ids:
                await self._one_by_one([(item, future)])

    async def _together(self, taken: list[Waiting]) -> None:
        try:
            async with self._pool.session() as session:
                items = [item for item, _ in taken]
                outcomes = await session.run(many(APPEND_BATCH, batch(items)))
                await self._settled(session, taken, outcomes)
        except Exception as error:
            waiting = [one for one in taken if not one[1].done()]
            if len(waiting) == 1 and not isinstance(error, Unavailable):
                _fail(waiting, error)
            else:
                await self._one_by_one(waiting)

    async def _settled(
        self, session: AsyncpgSession, taken: list[Waiting], outcomes: list[Outcome]
    ) -> None:
        highest = 0
        for (item, future), outcome in zip(taken, outcomes, strict=True):
            if outcome.outcome == "appended":
                highest = max(highest, outcome.position)
                if not future.done():
                    future.set_result(item.done(outcome))
        if highest:
            self._on_appended(highest)
        for (item, future), outcome in zip(taken, outcomes, strict=True):
            if outcome.outcome != "appended" and not future.done():
                future.set_exception(await session.run(refusal(item)))

    async def _one_by_one(self, taken: list[Waiting]) -> None:
        """Send each again by itself, with its ids: what is stored already is not stored twice."""
        for item, future in taken:
            try:
                done = await self._again(item, None)
            except Exception as error:
                if not future.done():
                    future.set_exception(error)
            else:
                self._on_appended(done.position)
                if not future.done():
                    future.set_result(done)

    async def _again(self, item: Append, first: Unavailable | None) -> Appended:
        unknown = first is not None and not isinstance(first, PoolExhausted)
        try:
            async for attempt in QUICK.retrying(Unavailable):
                with attempt:
                    async with self._pool.session() as session:
                        return await session.run(append_again(item))
        except Unavailable as error:
            if not unknown:
                raise
            raise OutcomeUnknown(
                f"the append to {item.stream!r} may or may not be stored: {error};"
                f" its event ids are {', '.join(one[0] for one in item.events[:3])}:"
                " trying again with ids= is safe"
            ) from error
        raise AssertionError("a retry loop ends by an answer or an error")


def _fail(taken: list[Waiting], error: BaseException) -> None:
    for item, future in taken:
        if not future.done():
            if isinstance(error, StrandlineError):
                future.set_exception(error)
            else:
                told = OutcomeUnknown(f"the append to {item.stream!r} was broken off: {error!r}")
                told.__cause__ = error
                future.set_exception(told)
