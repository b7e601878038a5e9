"""Steering jobs: cancel, retry, discard; what each does to a job is one transaction.

The operations are portions: at most so many jobs, inside a transaction that the caller commits.
After the commit the caller promotes ``Portion.keys``, outside of any transaction, wakes
``Portion.queues``, and tells ``CANCEL_CHANNEL`` if something was ``asked``. ``Control`` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from strandline.errors import InvalidInput, Unavailable
from strandline.jobs import flows, order
from strandline.jobs.completer import CHANNEL
from strandline.jobs.completion import WAITED_FOR
from strandline.jobs.flows import EndedAs, Followed
from strandline.jobs.looking import LAST, Which, counts, find, find_many, listed, meaning, texts
from strandline.jobs.refusals import trouble
from strandline.jobs.row import Flag, JobState, State
from strandline.jobs.storable import clean
from strandline.postgres.listener import Notifier
from strandline.postgres.operations import Op, many
from strandline.postgres.pools import Pool
from strandline.postgres.statements import SqlFile
from strandline.telemetry.signals import Signals

__all__ = [
    "Changed",
    "Control",
    "Portion",
    "Which",
    "cancel",
    "cancel_lost",
    "counts",
    "discard",
    "find",
    "find_many",
    "listed",
    "retry",
]

PORTION = 1_000  # jobs of one transaction
TRIES = 5  # of one that others are in the way of
MOST_ATTEMPTS = 10_000
LONGEST_REASON = 2_000  # characters
CANCEL_CHANNEL = "job_cancel"


@dataclass(frozen=True, slots=True)
class Chosen:
    """A job that something is to be done with."""

    id: int
    flags: int


@dataclass(frozen=True, slots=True)
class Steered:
    """A job that something was done with. *is_ended*: it runs no more."""

    id: int
    queue: str
    key: str | None
    flags: int
    batch: int | None
    is_ended: bool


@dataclass(frozen=True, slots=True)
class Locked:
    """A dead letter that is held."""

    id: int


@dataclass(slots=True)
class Portion:
    """What one transaction did.

    Attributes:
        done: Jobs that were cancelled, made available, or discarded.
        asked: Running jobs whose end was asked for.
        queues: With jobs that are available now.
        keys: To be promoted once it is committed.
        after: Where the next portion begins; None: that was the last.
    """

    done: int = 0
    asked: int = 0
    queues: set[str] = field(default_factory=set)
    keys: set[tuple[str, str]] = field(default_factory=set)
    after: int | None = None


@dataclass(frozen=True, slots=True)
class Changed:
    """What a command did.

    Attributes:
        done: Jobs that were cancelled, made available, or discarded.
        asked: Running jobs that were told to end.
    """

    done: int
    asked: int = 0


_sql = SqlFile(__name__)
CHOOSE_LIVE = _sql.many("choose_live", Chosen)
CHOOSE_DEAD = _sql.many("choose_dead", Chosen)
CANCEL = _sql.many("cancel_jobs", Steered)
CANCEL_LOST = _sql.many("cancel_lost", Steered)
DISCARD = _sql.many("discard_jobs", Steered)
LOCK_DEAD = _sql.many("lock_dead", Locked)
REVIVE = _sql.many("revive_jobs", Steered)
HASTEN = _sql.many("hasten_jobs", Steered)


def cancel(which: Which, reason: str = "", *, after: int = -LAST) -> Op[Portion]:
    """Cancel live jobs: those that wait are in the history then, those that run are told to end.

    Dead letters are not touched: they run no more anyway, see ``discard``.
    """
    state, attempted, _ = meaning(which.state)
    if which.fingerprint is not None or (which.state is not None and state is None):
        return Portion()
    chosen = yield from many(
        CHOOSE_LIVE, state, attempted, *texts(which), _ids(which), after, PORTION
    )
    yield from _hold(chosen)
    done = yield from many(CANCEL, [one.id for one in chosen], _reason(reason))
    return (yield from _ended(done, "cancelled", _after(chosen)))


def discard(which: Which, reason: str = "", *, after: int = -LAST) -> Op[Portion]:
    """Give dead letters up: they are in the history then, and whoever waits for them goes on.

    That is: children are cancelled, the next one of the key may begin, a batch counts a failure.
    """
    chosen = yield from _dead(which, after)
    yield from _hold(chosen)
    done = yield from many(DISCARD, [one.id for one in chosen], _reason(reason))
    return (yield from _ended(done, "discarded", _after(chosen)))


def retry(which: Which, *, attempts: int = 1, after: int = -LAST) -> Op[Portion]:
    """Make dead letters available again, or jobs that wait for their time.

    A dead letter stays where a live job has taken its unique key.

    Args:
        which: Dead letters, unless its state is ``retryable`` or ``scheduled``; with ids, both.
        attempts: How many more a dead letter has at least; those before still count.
        after: The last id of the portion before.
    """
    if not 1 <= attempts <= MOST_ATTEMPTS:
        raise InvalidInput(f"1 to {MOST_ATTEMPTS} more attempts, not {attempts}")
    dead = yield from _dead(which, after)
    # Held first: a statement that began before another operator's commit would see them dead still.
    yield from many(LOCK_DEAD, [one.id for one in dead])
    steered = yield from many(REVIVE, [one.id for one in dead], attempts)
    waiting = yield from _waiting(which, after)
    steered += yield from many(HASTEN, [one.id for one in waiting])
    nexts = [one for one in (_after(dead), _after(waiting)) if one is not None]
    return Portion(
        done=len(steered),
        queues={one.queue for one in steered},
        after=min(nexts, default=None),
    )


def cancel_lost(ids: Sequence[int], claims: Sequence[int]) -> Op[Portion]:
    """End running jobs that are to be cancelled and whose node is gone, held under these claims.

    Until that is committed they are as they were, so that whoever looks next finds them again.
    """
    yield from flows.hold([(one, False) for one in ids])
    done = yield from many(CANCEL_LOST, list(ids), list(claims))
    return (yield from _ended(done, "cancelled", None))


def _dead(which: Which, after: int) -> Op[list[Chosen]]:
    if which.state not in (None, JobState.DEAD):
        return []
    return (
        yield from many(CHOOSE_DEAD, which.fingerprint, *texts(which), _ids(which), after, PORTION)
    )


def _waiting(which: Which, after: int) -> Op[list[Chosen]]:
    state, attempted, _ = meaning(which.state)
    by_id = which.state is None and which.ids is not None
    if which.fingerprint is not None or not (state is State.SCHEDULED or by_id):
        return []
    given = (State.SCHEDULED, attempted, *texts(which), _ids(which), after, PORTION)
    return (yield from many(CHOOSE_LIVE, *given))


def _hold(chosen: Sequence[Chosen]) -> Op[None]:
    yield from flows.hold([(one.id, False) for one in chosen if one.flags & WAITED_FOR])


def _ended(steered: Sequence[Steered], how: EndedAs, after: int | None) -> Op[Portion]:
    ended = [one for one in steered if one.is_ended]
    freed = yield from flows.follow(
        [Followed(one.id, how, None, one.batch) for one in ended if one.flags & WAITED_FOR]
    )
    keys = {(one.queue, one.key) for one in ended if one.flags & Flag.ORDERED and one.key}
    return Portion(len(ended), len(steered) - len(ended), freed.queues, keys | freed.keys, after)


def _after(chosen: Sequence[Chosen]) -> int | None:
    return chosen[-1].id if len(chosen) == PORTION else None


def _ids(which: Which) -> list[int] | None:
    return None if which.ids is None else list(which.ids)


def _reason(reason: str) -> str:
    return clean(reason)[:LONGEST_REASON]


class Control:
    """The same, portion after portion, with all that follows each commit.

    Args:
        pool: Of the database.
        notifier: Tells other processes.
        signals: Of the app.
        on_available: Told of queues in which jobs became available.
    """

    def __init__(
        self,
        pool: Pool,
        notifier: Notifier,
        signals: Signals,
        *,
        on_available: Callable[[Iterable[str]], None],
    ) -> None:
        self._pool = pool
        self._notifier = notifier
        self._signals = signals
        self._on_available = on_available

    async def cancel(self, which: Which, reason: str = "") -> Changed:
        """See ``cancel``. A portion that is committed stays so, whatever becomes of the next."""
        return await self._all("jobs_cancelled", lambda after: cancel(which, reason, after=after))

    async def cancel_lost(self, ids: Sequence[int], claims: Sequence[int]) -> Changed:
        """See ``cancel_lost``; what is there at once."""
        return await self._all("jobs_cancelled", lambda _: cancel_lost(ids, claims))

    async def discard(self, which: Which, reason: str = "") -> Changed:
        """See ``discard``."""
        return await self._all("jobs_discarded", lambda after: discard(which, reason, after=after))

    async def retry(self, which: Which, *, attempts: int = 1) -> Changed:
        """See ``retry``."""
        return await self._all(
            "jobs_retried", lambda after: retry(which, attempts=attempts, after=after)
        )

    async def _all(self, signal: str, portion_after: Callable[[int], Op[Portion]]) -> Changed:
        done = asked = 0
        after: int | None = -LAST
        while after is not None:
            portion = await self._portion(portion_after, after)
            done += portion.done
            asked += portion.asked
            await self._committed(portion)
            after = portion.after
        self._signals.tell(signal, done=done, asked=asked)
        return Changed(done, asked)

    async def _portion(self, portion_after: Callable[[int], Op[Portion]], after: int) -> Portion:
        """One portion, again if it met somebody who locks the same jobs in another order."""
        tries = 0
        while True:
            tries += 1
            try:
                async with self._pool.transaction() as session:
                    return await session.run(portion_after(after))
            except Unavailable as error:
                if tries == TRIES or trouble(error) != "conflict":
                    raise

    async def _committed(self, portion: Portion) -> None:
        if portion.asked:
            self._notifier.notify(CANCEL_CHANNEL)
        if portion.done:
            self._notifier.notify(CHANNEL)
        queues = portion.queues
        if portion.keys:
            queues = queues | await self._pool.run(order.promote(portion.keys))
        if queues:
            self._on_available(queues)
