"""Tries dead letters again that somebody has asked for, on the agent that owns their shard.

A parked key is drained from its first letter on, in the order of positions, page by page; events of it
that arrive meanwhile have become letters and are drained too. When none is left, the key goes on like
any other. What the letters hold is applied, and they are closed, in one transaction behind the fence:
the checkpoint is "moved" to where it stands. So whatever ends the process in between loses and
doubles nothing, and a frozen owner's replay is refused like its batches.

A letter that fails again counts up and is no longer asked for; its key stays parked behind it. Which
of several letters fails is found as in ``isolation``. Nothing of this agent is in flight meanwhile,
so it takes turns with the events that are to be processed: ``TURN`` seconds each time.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from strandline.daemon import letters
from strandline.daemon.batch import Batch, Processor
from strandline.daemon.checkpoint import Checkpoint, move
from strandline.daemon.described import plain
from strandline.daemon.feed import Page
from strandline.daemon.letters import PARKED, Due, Letter, LettersChanged, Replayed
from strandline.errors import UndecodableEvent
from strandline.postgres.pools import Pool
from strandline.projections.documents import Key
from strandline.projections.failure_policy import Category, category_of
from strandline.projections.slice import parsed
from strandline.telemetry.journal import Journal
from strandline.telemetry.signals import Signals

log = Journal("strandline.agent")

PAGE = 1_000  # letters in one transaction
PAGE_BYTES = 8_388_608  # JSON of their events, about
KEYS = 100  # streams drained together
TURN = 1.0  # seconds, then events have their turn


class Replay:
    """The replay of one shard's dead letters.

    Args:
        shard: Its name.
        processor: The agent's.
        pool: For the letters.
        signals: Told ``letters_replayed`` and ``letter_failed_again``.
        is_over: Whether the agent was told to stop.
        on_progress: Called after each transaction.
    """

    def __init__(
        self,
        shard: str,
        processor: Processor,
        pool: Pool,
        signals: Signals,
        *,
        is_over: Callable[[], bool],
        on_progress: Callable[[], None],
    ) -> None:
        self._shard = shard
        self._label = parsed(shard)[0]
        self._processor = processor
        self._pool = pool
        self._signals = signals
        self._is_over = is_over
        self._on_progress = on_progress
        self._most = min(PAGE, processor.appetite.most)
        self._until = 0.0

    async def read_parking(self) -> bool:
        """Tell the processor which keys wait; whether any do."""
        parked = await self._pool.run(letters.parked_keys(self._label))
        self._processor.parking.replace(parked)
        return bool(parked)

    def tell_written(self, written: Iterable[Letter]) -> None:
        """Tell ``letters_written``: *written* were committed."""
        kinds = Counter((one.category or "waiting", one.status) for one in written)
        for (category, status), count in kinds.items():
            self._signals.tell(
                "letters_written",
                label=self._label,
                shard=self._shard,
                category=category,
                status=status,
                count=count,
            )

    async def run(self, checkpoint: Checkpoint) -> bool:
        """Replay what is due, for a while; whether something may be left.

        Raises:
            OwnershipLost: The shard is another's; what was not committed is undone.
            Unavailable: The database did not answer.
        """
        self._until = time.monotonic() + TURN
        await self.read_parking()  # what was discarded waits no longer
        after = 0
        while found := await self._pool.run(letters.due_letters(self._label, after, PAGE)):
            after = found[-1].id
            mine = await self._processor.owned(found)
            await self._calm(mine)
            alone = [one for one in mine if one.is_due and _is_alone(one)]
            waiting = [(one.tenant, one.key) for one in mine if one.is_due and not _is_alone(one)]
            if not await self._all_drained(checkpoint, dict.fromkeys(waiting)):
                return True
            if not await self._each_alone(checkpoint, [one.id for one in alone]):
                return True
        return False

    async def _calm(self, mine: Sequence[Due]) -> None:
        stale = [one.id for one in mine if not one.is_due]
        if stale:
            await self._pool.run(letters.calm(stale))

    async def _all_drained(self, checkpoint: Checkpoint, keys: Iterable[Key]) -> bool:
        """Drain parked *keys*; whether there was time for all."""
        left = list(keys)
        together = KEYS if self._processor.keys_are_streams else 1
        while left:
            some, left = left[:together], left[together:]
            if not await self._drained(checkpoint, some):
                return False
        return True

    async def _drained(self, checkpoint: Checkpoint, keys: list[Key]) -> bool:
        stuck: set[Key] = set()
        while keys:
            if self._is_time_up():
                return False
            first = await self._pool.run(letters.first_letters(self._label, keys, self._most))
            there = {(one.tenant, one.key) for one in first}
            if len(first) < self._most:  # all there is: the others have none left
                for key in keys:
                    if key not in there:
                        self._processor.parking.remove(key)
                keys = [key for key in keys if key in there]
            if first:
                await self._replayed(checkpoint, [one.id for one in first], stuck)
                keys = [key for key in keys if key not in stuck]
        return True

    async def _each_alone(self, checkpoint: Checkpoint, ids: list[int]) -> bool:
        """Try letters that nothing waits for; whether there was time for all."""
        together = self._most if self._processor.keys_are_streams else 1
        while ids:
            if self._is_time_up():
                return False
            some, ids = ids[:together], ids[together:]
            await self._replayed(checkpoint, some, None)
        return True

    async def _replayed(
        self, checkpoint: Checkpoint, ids: Sequence[int], stuck: set[Key] | None
    ) -> None:
        """Replay letters in order; a key that fails is added to *stuck*, and its others wait."""
        some = await self._pool.run(letters.to_replay(ids, PAGE_BYTES))
        parts = [some]
        while parts and not self._is_over():
            part = parts.pop()
            if stuck:
                part = [one for one in part if (one.tenant, one.key) not in stuck]
            if not part:
                continue
            try:
                await self._tried(checkpoint, part)
            except LettersChanged:
                self._processor.forget()
                return  # whoever calls reads them again
            except Exception as error:  # the user's code raises anything
                self._processor.forget()
                if category_of(error) in (Category.OWNERSHIP, Category.DATABASE):
                    raise
                if len(part) > 1:
                    parts += reversed(_split(part, getattr(error, "position", 0)))
                    continue
                await self._failed(checkpoint, part[0], error)
                if stuck is not None:
                    stuck.add((part[0].tenant, part[0].key))

    async def _tried(self, checkpoint: Checkpoint, some: Sequence[Replayed]) -> None:
        for one in some:
            if one.data is None:
                reason = "it is in the log no longer"
                raise UndecodableEvent(one.type, reason, position=one.position)
        at = checkpoint.position
        page = Page(at, at, [one.row for one in some])
        keys = frozenset((one.tenant, one.key) for one in some)
        within = parsed(some[0].shard)[1]  # without a key a letter is replayed alone
        batch = await self._processor.prepare(page, only=keys, within=within)
        await self._processor.commit(_closing(batch, some), checkpoint)
        self._on_progress()
        if batch.letters:
            self.tell_written(batch.letters)
        self._tell("letters_replayed", count=len(some))

    async def _failed(self, checkpoint: Checkpoint, letter: Replayed, error: Exception) -> None:
        log.tell(
            "replay_failed",
            shard=self._shard,
            letter=letter.id,
            position=letter.position,
            reason=plain(str(error)),
            error=type(error).__name__,
        )
        async with self._pool.transaction() as session:
            await session.run(move(checkpoint, checkpoint.position))
            await session.run(letters.fail(letter, error))
        self._on_progress()
        self._tell("letter_failed_again", error=error)

    def _tell(self, name: str, **facts: Any) -> None:
        self._signals.tell(name, label=self._label, shard=self._shard, **facts)

    def _is_time_up(self) -> bool:
        return self._is_over() or time.monotonic() > self._until


def _is_alone(letter: Due) -> bool:
    """Whether nothing waits for it: it is skipped, or nobody knows its key."""
    return letter.status != PARKED or not letter.key


def _closing(batch: Batch, some: Sequence[Replayed]) -> Batch:
    """*batch* with the letters it resolves; those it writes have the data of an edited one."""
    closed = tuple(one.closed for one in some)
    edited = {one.position: one.edited for one in some if one.edited is not None}
    if not (batch.letters and edited):
        return replace(batch, closed=closed)
    written = tuple(replace(one, data=edited.get(one.position)) for one in batch.letters)
    return replace(batch, closed=closed, letters=written)


def _split(part: list[Replayed], position: int) -> list[list[Replayed]]:
    """At the letter of *position* if there is one, else in halves; in order."""
    at = next((i for i, one in enumerate(part) if one.position == position), None)
    if at is None:
        middle = len(part) // 2
        return [part[:middle], part[middle:]]
    return [some for some in (part[:at], part[at : at + 1], part[at + 1 :]) if some]
