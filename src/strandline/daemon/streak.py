"""Events that are put aside one after the other while nothing succeeds: it may not be their fault.

What a subscription, a statement or an ``@sl.enrich`` method calls may be away, and every event fails
then. So after ``FEW`` events in a row the agent stops putting aside: their letters are asked for, and
the shard pauses by schedule. Then they are tried first, in order, and after them what comes next.

* What they needed is back: they are applied, and nobody has to do anything.
* It is still away: they stay parked, more events are put aside, twice as many as the last time, and
  the shard pauses again, longer.
* They are poison, all of them: the same, until an event succeeds. Then they are tried once more, and
  stay parked. So a long run of poison takes some pauses, and no longer the longer it is.

With nothing else to process they are tried again by the same schedule, and events that come in
meanwhile do not wait for that. All of this is kept in memory; that they are asked for stands in the
database, so another owner of the shard takes them over.
"""

from __future__ import annotations

from collections.abc import Iterable

from strandline.backoff import Backoff
from strandline.clock import Clock
from strandline.daemon import letter_desk, letters
from strandline.daemon.batch import Batch, Processor
from strandline.daemon.letter_desk import Place
from strandline.daemon.letters import PARKED
from strandline.errors import ApplyFailed, EventFailure
from strandline.postgres.pools import Pool
from strandline.projections.slice import parsed

FEW = 3  # events put aside in a row
MANY = 1_000  # after so many were processed it begins with few again


class NothingSucceeds(ApplyFailed):
    """Several events in a row failed and none succeeded: more than these events is wrong."""


class Streak:
    """What one agent has put aside since anything succeeded.

    Args:
        shard: The agent's.
        pool: For the letters.
        backoff: How long it waits between tries while there is nothing else to do.
        clock: The agent's.

    Attributes:
        is_open: It has given up, and nothing has succeeded since.
    """

    def __init__(self, shard: str, pool: Pool, backoff: Backoff, clock: Clock) -> None:
        self.is_open = False
        self._shard = shard
        self._label = parsed(shard)[0]
        self._pool = pool
        self._backoff = backoff
        self._clock = clock
        self._places: dict[Place, None] = {}
        self._count = 0  # since it gave up the last time
        self._allowed = FEW
        self._processed = 0
        self._rests = 0
        self._asked_until: float | None = None

    async def grown(self, batch: Batch, error: EventFailure) -> None:
        """*batch* has parked an event that failed with *error*.

        Raises:
            NothingSucceeds: It is one too many in a row.
        """
        if not isinstance(error, ApplyFailed):
            return  # what cannot be decoded is wrong in itself
        self._places |= dict.fromkeys(_places(batch))
        self._count += 1
        if self._count < self._allowed:
            return
        self.is_open = True
        await self._ask()
        many, self._count = self._count, 0
        self._allowed = min(2 * self._allowed, MANY)
        raise NothingSucceeds(
            error.projection,
            f"{many} events in a row have failed and none has succeeded; they are tried again after"
            f" a pause. The last one: {error.reason}",
            position=error.position,
        ) from (error.__cause__ or error)

    async def inherited(self, processor: Processor) -> None:
        """Take over what was asked for before the shard was claimed: the reason may last."""
        if processor.is_pure:
            return
        due = await self._pool.run(letters.due_letters(self._label, 0, MANY))
        mine = [one for one in await processor.owned(due) if one.status == PARKED and one.is_due]
        self._places |= dict.fromkeys(Place(one.tenant, one.key) for one in mine)
        self.is_open = bool(self._places)

    async def broken(self, events: int) -> bool:
        """So many events were processed; whether letters are asked for now."""
        self._processed += events
        if self._processed >= MANY:
            self._processed, self._allowed = 0, FEW
        was_open, self.is_open = self.is_open, False
        self._count = self._rests = 0
        some = was_open and await self._ask()
        self._places.clear()
        self._asked_until = None
        return some

    async def rested(self) -> None:
        """Everything else is done: have what is left asked for, to be tried after a while."""
        if not self.is_open or self._asked_until is not None:
            return
        if not await self._ask():
            self.is_open = False  # all of it was applied
            self._places.clear()
            self._rests = 0
            return
        seconds = self._backoff.pause_after(self._rests)
        self._rests += 1
        self._asked_until = self._clock.monotonic() + seconds

    @property
    def left(self) -> float | None:
        """Seconds until it is to be tried again; None if that is not a matter of time."""
        if self._asked_until is None:
            return None
        return max(0.0, self._asked_until - self._clock.monotonic())

    def tried(self) -> None:
        """Its letters are being tried."""
        self._asked_until = None

    async def _ask(self) -> bool:
        op = letter_desk.ask_for_places(self._label, self._shard, list(self._places))
        return await self._pool.run(op) > 0


def _places(batch: Batch) -> Iterable[Place]:
    for letter in batch.letters:
        if letter.category is not None:
            whole_key = letter.status == PARKED  # else its key is not known
            yield Place(letter.tenant, letter.key, 0 if whole_key else letter.position)
