"""Group commit: concurrent appends of one process go to the server together.

While one call is at the server the next appends queue; then they go as one call: one round trip,
one flush, each append with its own outcome. An append that finds nobody at the server goes
straight. Two calls may be at the server at once, never with the same stream in both: every stream
has a line in which its appends take turns, so they keep the order in which they were asked for.

What can go wrong, and what then:

* A refused append (another version) fails alone; the others of its batch are stored.
* Bad data or a duplicate id fails the whole call: its appends are sent again one by one.
* The connection breaks: nobody knows what was stored. Every append of the batch is sent again with
  its event ids, which the server stores once (``append_again``), until it answers; an append that
  never gets an answer ends in ``OutcomeUnknown``.
* The caller is cancelled while its append waits in line: it is not sent. Once it is on its way it
  cannot be called back.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextvars import copy_context

from strandline.backoff import QUICK
from strandline.errors import (
    AnswerTimedOut,
    ConflictError,
    NotOpen,
    OutcomeUnknown,
    PoolExhausted,
    Unavailable,
)
from strandline.events.append import (
    APPEND_BATCH,
    Append,
    Outcome,
    append,
    append_again,
    batch,
    find_each,
    find_stored,
    refusals,
)
from strandline.events.event import Appended
from strandline.postgres.faults import is_connection_loss
from strandline.postgres.operations import AsyncpgSession, many
from strandline.postgres.pools import Pool
from strandline.settings import Settings

SENDERS = 2  # calls at the server at once: one is worked on there while the next is encoded
SHARED_FROM = (
    32  # appends; a longer line is shared by two calls: 8 % faster at 64 tasks, 18 % at 256
)
MOST_WAITING_BYTES = 268_435_456  # JSON in line; beyond it the server is too far behind to help
CLOSED = "the event store was closed before this append was sent"

Key = tuple[str, str]


class Waiting:
    """An append whose caller waits. *sent* once the server may have stored it."""

    __slots__ = ("future", "item", "sent")

    def __init__(self, item: Append, future: asyncio.Future[Appended]) -> None:
        self.item = item
        self.future = future
        self.sent = False

    def answer(self, done: Appended) -> None:
        """Tell the caller, if it still waits."""
        if not self.future.done():
            self.future.set_result(done)

    def fail(self, error: BaseException) -> None:
        """Tell the caller, if it still waits."""
        if self.future.done():
            return
        if self.sent and (isinstance(error, Unavailable) or not isinstance(error, Exception)):
            unknown = OutcomeUnknown(
                f"the append to {self.item.stream!r} may or may not be stored: {error};"
                f" its event ids are {', '.join(one[0] for one in self.item.events[:3])}:"
                " trying again with ids= is safe"
            )
            unknown.__cause__ = error
            error = unknown
        self.future.set_exception(error)


class AppendGroup:
    """Appends of one process that have no transaction of their own."""

    def __init__(
        self, pool: Pool, settings: Settings, *, on_appended: Callable[[int, int], None]
    ) -> None:
        self._pool = pool
        self._context = copy_context()  # a sender works for all, and in nobody's span
        self._most = settings.group_appends
        self._bytes = settings.group_bytes
        self._on_appended = on_appended
        self._ready: deque[Waiting] = deque()  # first of their streams' lines
        self._lines: dict[Key, deque[Waiting] | None] = {}  # per stream: who waits behind
        self._waiting_bytes = 0
        self._senders: set[asyncio.Task[None]] = set()
        self._straight = 0
        self._closed = False
        self._idle = asyncio.Event()

    async def append(self, item: Append) -> Appended:
        """Append *item*, alone or with others. See ``App.append`` for what it raises."""
        if self._closed:
            raise NotOpen("the event store is closed: nothing can be appended")
        if not self._lines:
            return await self._alone(item)
        if self._waiting_bytes > MOST_WAITING_BYTES:
            raise PoolExhausted(
                f"{self._waiting_bytes} bytes of appends wait for the server already: append"
                " more slowly, or with fewer tasks at once"
            )
        one = Waiting(item, asyncio.get_running_loop().create_future())
        self._waiting_bytes += item.size
        key = (item.tenant, item.stream)
        if key not in self._lines:
            self._lines[key] = None
            self._ready.append(one)
            self._send()
        elif (line := self._lines[key]) is None:
            self._lines[key] = deque((one,))
        else:
            line.append(one)
        return await one.future

    async def close(self, *, timeout: float = 10.0) -> None:
        """Refuse new appends; wait for those under way, for *timeout* seconds at the most."""
        self._closed = True
        if self._lines:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._idle.wait()
        for sender in self._senders:
            sender.cancel()
        if self._senders:
            await asyncio.wait(self._senders, timeout=1.0)
        lines = (line for line in self._lines.values() if line)
        for one in [*self._ready, *(one for line in lines for one in line)]:
            one.fail(NotOpen(CLOSED))

    async def _alone(self, item: Append) -> Appended:
        key = (item.tenant, item.stream)
        self._lines[key] = None
        self._straight += 1
        try:
            try:
                async with self._pool.session() as session:
                    op = append_again if item.has_own_ids else append
                    done = await session.run(op(item))
            except Unavailable as error:
                if isinstance(error, PoolExhausted):
                    raise
                one = Waiting(item, asyncio.get_running_loop().create_future())
                one.sent = is_connection_loss(error)
                await self._one_by_one([one])
                return one.future.result()
        finally:
            self._straight -= 1
            self._release(key)
            self._send()
        self._on_appended(done.position, done.written)
        return done

    # ---- lines

    def _release(self, key: Key) -> None:
        """The append of this stream has its answer: the next in its line is ready."""
        line = self._lines[key]
        while line:
            one = line.popleft()
            if not one.future.done():
                self._ready.append(one)
                return
            self._waiting_bytes -= one.item.size
        del self._lines[key]
        if self._closed and not self._lines:
            self._idle.set()

    def _take(self) -> list[Waiting]:
        """The next batch, each stream in it once."""
        taken: list[Waiting] = []
        size = 0
        ready = self._ready
        most = min(self._most, max(SHARED_FROM, (len(ready) + 1) // 2))
        while ready and len(taken) < most and size < self._bytes:
            one = ready.popleft()
            self._waiting_bytes -= one.item.size
            if one.future.done():  # its caller was cancelled
                self._release((one.item.tenant, one.item.stream))
                continue
            taken.append(one)
            size += one.item.size
        return taken

    # ---- sending

    def _send(self) -> None:
        """Start a sender if there is work for one more."""
        if self._ready and len(self._senders) + self._straight < SENDERS:
            sender = asyncio.create_task(
                self._sender(), name="strandline:append sender", context=self._context.copy()
            )
            self._senders.add(sender)
            sender.add_done_callback(self._senders.discard)

    async def _sender(self) -> None:
        """Send batch after batch while there is something that may go."""
        await asyncio.sleep(0)  # whoever is ready to append in this round comes along
        while taken := self._take():
            self._send()
            try:
                await self._together(taken)
            except Exception as error:  # told to whom it concerns; others wait for this sender
                for one in taken:
                    one.fail(error)
            except BaseException as error:
                for one in taken:
                    one.fail(error if one.sent else NotOpen(CLOSED))
                raise
            finally:
                for one in taken:
                    self._release((one.item.tenant, one.item.stream))
            await asyncio.sleep(0)
        current = asyncio.current_task()
        if current is not None:  # now, not when the loop comes round to it: the next append counts
            self._senders.discard(current)

    async def _together(self, taken: list[Waiting]) -> None:
        """Get each of *taken* its answer, in one call if possible."""
        try:
            async with self._pool.session() as session:
                left = await self._not_stored(session, taken)
                if left:
                    for one in left:
                        one.sent = True
                    outcomes = await session.run(
                        many(APPEND_BATCH, batch([one.item for one in left]))
                    )
                    await self._settle(session, left, outcomes)
            return
        except PoolExhausted as error:
            for one in taken:
                one.fail(error)
            return
        except Exception as error:
            left = [one for one in taken if not one.future.done()]
            lost = is_connection_loss(error)
            for one in left:
                one.sent = one.sent and lost  # any other error tells that nothing was stored
            if len(left) == 1 and not isinstance(error, Unavailable | ConflictError):
                left[0].fail(error)
                return
        await self._one_by_one(left)

    async def _not_stored(self, session: AsyncpgSession, taken: list[Waiting]) -> list[Waiting]:
        """Answer those with their own ids whose events are stored already; the others."""
        own = [one for one in taken if one.item.has_own_ids]
        if not own:
            return taken
        found = await session.run(find_each([one.item for one in own]))
        for one, answer in zip(own, found, strict=True):
            if isinstance(answer, Appended):
                one.answer(answer)
            elif answer is not None:
                one.fail(answer)
        return [one for one in taken if not one.future.done()]

    async def _settle(
        self, session: AsyncpgSession, sent: list[Waiting], outcomes: list[Outcome]
    ) -> None:
        highest = events = 0
        refused: list[Waiting] = []
        for one, outcome in zip(sent, outcomes, strict=True):
            if outcome.outcome == "appended":
                highest = max(highest, outcome.position)
                events += len(one.item.events)
                one.answer(one.item.done(outcome))
            else:
                one.sent = False
                refused.append(one)
        if highest:
            self._on_appended(highest, events)
        if refused:
            await self._refuse(session, refused)

    async def _refuse(self, session: AsyncpgSession, refused: list[Waiting]) -> None:
        for one in refused:
            if one.item.has_own_ids:  # a twin from another process may have been under way
                found = await session.run(find_stored(one.item))
                if found is not None:
                    one.answer(found)
        left = [one for one in refused if not one.future.done()]
        errors = await session.run(refusals([one.item for one in left]))
        for one, error in zip(left, errors, strict=True):
            one.fail(error)

    async def _one_by_one(self, waiting: Sequence[Waiting]) -> None:
        """Send each again by itself, with its ids: what is stored already is not stored twice."""
        try:
            async for attempt in QUICK.retrying(_may_pass):
                with attempt:
                    async with self._pool.session() as session:
                        await self._try_each(session, _unanswered(waiting))
        except Unavailable as error:
            for one in waiting:
                one.fail(error)

    async def _try_each(self, session: AsyncpgSession, waiting: list[Waiting]) -> None:
        trouble: Unavailable | None = None
        for one in waiting:
            try:
                done = await session.run(append_again(one.item))
            except Unavailable as error:
                trouble = error
                if is_connection_loss(error):
                    one.sent = True
                    break
            except Exception as error:
                one.fail(error)
            else:
                self._on_appended(done.position, done.written)
                one.answer(done)
        if trouble is not None:
            raise trouble


def _unanswered(waiting: Iterable[Waiting]) -> list[Waiting]:
    return [one for one in waiting if not one.future.done()]


def _may_pass(error: Exception) -> bool:
    """Whether another try soon may help; the wait for a connection or an answer was long enough."""
    return isinstance(error, Unavailable) and not isinstance(error, PoolExhausted | AnswerTimedOut)
