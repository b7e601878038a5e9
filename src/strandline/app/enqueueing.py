"""The enqueueing side of an app: single calls, many at once, flows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, overload

from strandline.errors import NotOpen
from strandline.jobs.bulk import Many, enqueue_many
from strandline.jobs.committing import committed
from strandline.jobs.control import Control
from strandline.jobs.enqueuer import Enqueuer
from strandline.jobs.flow import Flow
from strandline.jobs.flow_ref import FlowRef
from strandline.jobs.ids import MOST_TAKEN, Ids, are_taken
from strandline.jobs.intake import Intake, Refs
from strandline.jobs.job import Call, Job, P, R
from strandline.jobs.kinds import Kinds, as_call
from strandline.jobs.results import JobRef, Results
from strandline.jobs.row import Kept, NewJob
from strandline.jobs.spanned import enqueued, enqueued_many, enqueueing
from strandline.jobs.waking import Wakes, Written
from strandline.postgres.operations import AsyncpgSession

if TYPE_CHECKING:
    from strandline.postgres.listener import Listener, Notifier
    from strandline.postgres.pools import Pools
    from strandline.telemetry.signals import Signals


class EnqueueFace:
    """Requests to the queues."""

    if TYPE_CHECKING:

        @property
        def pools(self) -> Pools: ...
        @property
        def enqueuer(self) -> Enqueuer: ...
        @property
        def wakes(self) -> Wakes: ...
        @property
        def results(self) -> Results: ...

    kinds: Kinds
    job_ids: Ids
    _drawing: asyncio.Task[None] | None = None
    signals: Signals

    @property
    def intake(self) -> Intake[JobRef[Any]]:
        """What turns calls into rows."""
        return Intake(self.kinds, self.job_ids, self._job_ref)

    def _job_ref(
        self,
        id: int,  # noqa: A002 - it is one
        kind: str,
        is_new: bool,
        kept: Kept,
    ) -> JobRef[Any]:
        return JobRef(id, kind, self.results, is_new=is_new, kept=kept)

    def _make_results(self, pools: Pools, listener: Listener, notifier: Notifier) -> Results:
        available = self.wakes.enqueued
        control = Control(pools.control, notifier, self.signals, on_available=available)
        return Results(pools.control, listener, self.kinds, control)

    async def _end_enqueueing(self) -> None:
        await self.enqueuer.close()
        if self._drawing is not None:
            await asyncio.wait({self._drawing}, timeout=1.0)
            self._drawing.cancel()
            self._drawing = None

    async def _draw(self) -> int:
        """An id for a single job. Who has to wait for one gets it in turn."""
        while True:
            number = self.job_ids.at_hand()
            if self.job_ids.are_few and (self._drawing is None or self._drawing.done()):
                self._drawing = asyncio.create_task(
                    self.pools.work.run(self.job_ids.refill()), name="strandline:job ids"
                )
                self._drawing.add_done_callback(_seen)
            if number is not None:
                return number
            if (drawing := self._drawing) is not None:
                await asyncio.wait({drawing})
                if drawing.cancelled():
                    raise NotOpen("the app was closed before this job had an id")
                drawing.result()

    def _declared(self, job: Job[..., Any]) -> None:
        job.enqueuer = self.enqueue

    def _enqueued(self, jobs: Sequence[NewJob]) -> None:
        """*jobs* are committed."""
        written = Written()
        written.add(jobs)
        self.wakes.written(written)

    @overload
    async def enqueue(self, call: Call[R], /) -> JobRef[R]: ...
    @overload
    async def enqueue(self, call: Flow, /) -> FlowRef: ...
    @overload
    async def enqueue(self, call: Job[P, R], /, *args: P.args, **kwargs: P.kwargs) -> JobRef[R]: ...

    async def enqueue(self, call: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Enqueue one job, or a flow: ``enqueue(send, to)``, or ``enqueue(send.call(to))``.

        It is stored when this returns. In a transaction of yours use ``tx.enqueue``: then it is
        enqueued if that commits, and never if it rolls back.

        Args:
            call: A job and its arguments, ``job.call(...)`` (with options by ``with_``), or a flow:
                ``sl.chain``, ``sl.batch``, ``sl.dag``.
            args: Of the job.
            kwargs: Of the job.

        Returns:
            A reference: to its state, its result, and to cancel it; of a flow a ``FlowRef``.

        Raises:
            InvalidInput: An argument or option cannot be stored; nothing was enqueued.
            DuplicateJob: Its unique key is taken, and ``on_duplicate`` is ``"raise"``.
            UnknownJob: The job belongs to another app.
            Unavailable: The database cannot be reached now; ``OutcomeUnknown`` if it is not known
                whether the job is enqueued.
        """
        given = as_call(call, args, kwargs)
        intake = self.intake
        if isinstance(given, Flow):
            written = Written()

            async def work(session: AsyncpgSession) -> FlowRef:
                return await session.run(intake.flow(given, written))

            with enqueueing() as span:
                flow = await committed(self.pools.work, work)
                enqueued(span, flow, written)
            self.wakes.written(written)
            return flow
        with enqueueing() as span:
            ref = await self._enqueue_one(given)
            if span.is_recording:
                span.set(kind=ref.kind, job=ref.id, jobs=1)
        return ref

    async def _enqueue_one(self, call: Call[Any]) -> JobRef[Any]:
        intake = self.intake
        intake.kinds.check(call)
        job = intake.kinds.prepare(call, await self._draw())
        for _ in range(MOST_TAKEN):
            try:
                return intake.told(job, await self.enqueuer.enqueue(job))
            except Exception as error:
                if not are_taken(error):
                    raise
            intake.ids.spoiled(job.id)
            job.id = await self._draw()
        with intake.ids.watched():
            return intake.told(job, await self.enqueuer.enqueue(job))

    async def enqueue_many(
        self, calls: Iterable[Call[Any]] | AsyncIterable[Call[Any]]
    ) -> Refs[JobRef[Any]]:
        """Enqueue any number of calls by COPY, all or none.

        Args:
            calls: May be a generator of millions: memory stays small, and it is one transaction.

        Returns:
            Their references, in order.

        Raises:
            StrandlineError: As ``enqueue``; nothing was enqueued.
        """
        intake = self.intake

        async def work(session: AsyncpgSession) -> Many:
            return await enqueue_many(session, calls, kinds=intake.kinds, ids=intake.ids)

        with enqueueing() as span:
            many = await committed(self.pools.work, work, watched=False)  # it may be long
            enqueued_many(span, many.written)
        self.wakes.written(many.written)
        return intake.refs(many)


def _seen(task: asyncio.Task[None]) -> None:
    """Whoever needs an id is told why there is none; if nobody does, nobody has to be."""
    if not task.cancelled():
        task.exception()
