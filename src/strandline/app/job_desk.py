"""``app.jobs``: the jobs of a database, wherever they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from strandline.errors import InvalidInput, JobNotFound
from strandline.jobs import looking
from strandline.jobs.control import Changed, Control
from strandline.jobs.job import Job
from strandline.jobs.looking import Count, JobRow, Which
from strandline.postgres.operations import Op, one
from strandline.postgres.statements import SqlFile

if TYPE_CHECKING:
    from strandline.jobs.waking import Wakes
    from strandline.postgres.listener import Notifier
    from strandline.postgres.pools import Pool, Pools
    from strandline.telemetry.signals import Signals


@dataclass(frozen=True, slots=True)
class Id:
    """Of a job."""

    id: int


_sql = SqlFile(__name__)
ENQUEUE_BY_NAME = _sql.one("enqueue_by_name", Id)


class JobFace:
    """Jobs of an app."""

    if TYPE_CHECKING:
        signals: Signals
        _notifier: Notifier | None

        @property
        def pools(self) -> Pools: ...

        @property
        def wakes(self) -> Wakes: ...

    @property
    def jobs(self) -> Jobs:
        """Jobs that wait, run, are dead, or have ended: look, try again, cancel, discard."""
        pools = self.pools
        assert self._notifier is not None  # the app is open
        control = Control(
            pools.control, self._notifier, self.signals, on_available=self.wakes.enqueued
        )
        return Jobs(pools.work, control)


class Jobs:
    """The jobs of one database.

    Args:
        pool: To look.
        control: To steer.
    """

    def __init__(self, pool: Pool, control: Control) -> None:
        self._pool = pool
        self._control = control

    async def list(
        self,
        *,
        state: str | None = None,
        queue: str | None = None,
        kind: str | Job[..., Any] | None = None,
        tag: str | None = None,
        tenant: str | None = None,
        key: str | None = None,
        fingerprint: str | None = None,
        after: int | None = None,
        limit: int = 100,
        newest_first: bool = False,
    ) -> list[JobRow]:
        """Jobs in the order of their ids, which is about that of enqueueing.

        Args:
            state: In words: ``available``, ``scheduled``, ``retryable``, ``running``, ``blocked``,
                ``dead``, ``completed``, ``cancelled``, ``discarded``; None: all.
            queue: Only of this one.
            kind: A job, or its kind.
            tag: One of its tags.
            tenant: Only of this one.
            key: What it is ordered or limited by.
            fingerprint: Dead jobs that failed alike.
            after: The last id of the page before.
            limit: At the most.
            newest_first: The other way round.

        Raises:
            InvalidInput: There is no such state, or *limit* is not between 1 and 10,000.
        """
        which = _which(state, queue, kind, tag, tenant, key, fingerprint)
        return await self._pool.run(
            looking.listed(which, after=after, limit=limit, newest_first=newest_first)
        )

    async def get(self, number: int, /) -> JobRow:
        """One job, wherever it is.

        Raises:
            JobNotFound: It never was, or has ended and was not kept.
        """
        found = await self._pool.run(looking.find(number))
        if found is None:
            raise JobNotFound(
                f"there is no job {number}: it never was, or has ended and was not kept"
            )
        return found

    async def counts(self) -> Sequence[Count]:
        """How many jobs are in which queue and state; estimated where there are very many."""
        return await self._pool.run(looking.counts())

    async def retry(
        self,
        ids: int | Iterable[int] | None = None,
        *,
        state: str | None = None,
        queue: str | None = None,
        kind: str | Job[..., Any] | None = None,
        tag: str | None = None,
        tenant: str | None = None,
        key: str | None = None,
        fingerprint: str | None = None,
        attempts: int = 1,
        all: bool = False,  # noqa: A002 - what one would type
    ) -> int:
        """Have dead jobs tried again; with ids or a state also those that wait for their time.

        Args:
            ids: Of jobs; None for those that the rest chooses.
            state: ``dead`` if none is given; ``retryable`` or ``scheduled`` jobs run now.
            queue: See ``list``, as all the others.
            kind: A job, or its kind.
            tag: One of its tags.
            tenant: Only of this one.
            key: What it is ordered or limited by.
            fingerprint: Dead jobs that failed alike.
            attempts: How many a dead job has from now on, at least.
            all: Nothing is chosen: every dead job.

        Returns:
            How many may run now. A dead job whose unique key a live one has stays.

        Raises:
            InvalidInput: Nothing is chosen.
        """
        which = _which(state, queue, kind, tag, tenant, key, fingerprint, ids)
        _refuse_everything(which, all=all)
        return (await self._control.retry(which, attempts=attempts)).done

    async def cancel(
        self,
        ids: int | Iterable[int] | None = None,
        *,
        reason: str = "",
        state: str | None = None,
        queue: str | None = None,
        kind: str | Job[..., Any] | None = None,
        tag: str | None = None,
        tenant: str | None = None,
        key: str | None = None,
        all: bool = False,  # noqa: A002 - what one would type
    ) -> Changed:
        """Cancel live jobs: those that wait at once, those that run are told to end.

        Args:
            ids: Of jobs; None for those that the rest chooses.
            reason: Kept with them.
            state: Only those in this one.
            queue: See ``list``, as all the others.
            kind: A job, or its kind.
            tag: One of its tags.
            tenant: Only of this one.
            key: What it is ordered or limited by.
            all: Nothing is chosen: every live job.

        Raises:
            InvalidInput: Nothing is chosen.
        """
        which = _which(state, queue, kind, tag, tenant, key, None, ids)
        _refuse_everything(which, all=all)
        return await self._control.cancel(which, reason)

    async def discard(
        self,
        ids: int | Iterable[int] | None = None,
        *,
        reason: str = "",
        queue: str | None = None,
        kind: str | Job[..., Any] | None = None,
        tag: str | None = None,
        tenant: str | None = None,
        key: str | None = None,
        fingerprint: str | None = None,
        all: bool = False,  # noqa: A002 - what one would type
    ) -> int:
        """Give dead jobs up for good. What waits for them in a flow is cancelled.

        Args:
            ids: Of dead jobs; None for those that the rest chooses.
            reason: Kept with them.
            queue: See ``list``, as all the others.
            kind: A job, or its kind.
            tag: One of its tags.
            tenant: Only of this one.
            key: What it is ordered or limited by.
            fingerprint: Those that failed alike.
            all: Nothing is chosen: every dead job.

        Returns:
            How many were dead.

        Raises:
            InvalidInput: Nothing is chosen.
        """
        which = _which(None, queue, kind, tag, tenant, key, fingerprint, ids)
        _refuse_everything(which, all=all)
        return (await self._control.discard(which, reason)).done


def enqueue_by_name(
    kind: str,
    args: str,
    *,
    queue: str | None = None,
    priority: int | None = None,
    delay: float | None = None,
    key: str | None = None,
    unique_key: str | None = None,
    max_attempts: int | None = None,
    tenant: str | None = None,
) -> Op[int]:
    """Enqueue by the SQL function, where no declaration is at hand; the job's id.

    *delay* is in seconds from the server's now.

    Raises:
        InvalidInput: It cannot be stored.
    """
    found = yield from one(
        ENQUEUE_BY_NAME,
        *(kind, args, queue, priority, delay, key, unique_key, max_attempts, tenant),
    )
    assert found is not None  # it always answers
    return found.id


def _which(
    state: str | None,
    queue: str | None,
    kind: str | Job[..., Any] | None,
    tag: str | None,
    tenant: str | None,
    key: str | None,
    fingerprint: str | None,
    ids: int | Iterable[int] | None = None,
) -> Which:
    chosen = (ids,) if isinstance(ids, int) else None if ids is None else tuple(ids)
    word = kind.kind if isinstance(kind, Job) else kind
    return Which(state, queue, word, tag, tenant, key, chosen, fingerprint)


def _refuse_everything(which: Which, *, all: bool) -> None:  # noqa: A002 - as above
    if which.is_everything and not all:
        raise InvalidInput("which jobs? Give ids, a queue, a kind, or all=True")
