"""One term of the duties: loops beside each other, of which none keeps another from its work.

Quick duties share one connection and slow ones another, so that a table which is locked for long
keeps no scheduled job waiting. A duty that fails is told, and tried again after a growing pause; one
that the lease's row refuses ends its loop, for the term is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from strandline.cluster.lease import LEADER
from strandline.errors import LeaseLost, Unavailable
from strandline.jobs.right import Right
from strandline.jobs.wiring import JobWiring
from strandline.loops import Loop, LoopStatistics, Rhythm
from strandline.postgres.line import FRESH_PLANS, Line
from strandline.postgres.operations import Answer, Op
from strandline.telemetry.journal import Journal

log = Journal("strandline.jobs.duties")

AT_ONCE = 0.0  # what a step answers that has more to do
DEADLINE = 10.0  # seconds one statement of a duty may take
BREATH = 0.01  # seconds between two steps, however often woken

Step = Callable[[], Awaitable[float | None]]
"""One look; answers seconds until there may be more to do, None for the duty's usual interval."""


class Desk:
    """What the duties of one term ask the database through.

    Args:
        wiring: The app's parts.
        right: Under which they write.
        leads: Whether this node may believe in it; that saves the attempt, the database decides.
    """

    def __init__(self, wiring: JobWiring, right: Right, leads: Callable[[], bool]) -> None:
        settings, url = wiring.settings, wiring.pools.control_url
        is_pooled = settings.pooler == "transaction" and url != settings.direct_url
        self.wiring = wiring
        self.right = right
        self.is_over = False
        self._leads = leads
        self._lines = [
            Line(
                url,
                settings.schema,
                application=f"strandline job duties {kind}",
                connect_timeout=settings.connect_timeout,
                deadline=DEADLINE,
                prepared=settings.prepared_statements and not is_pooled,
                parameters=FRESH_PLANS,
            )
            for kind in ("quick", "slow")
        ]

    @property
    def may_act(self) -> bool:
        """Whether a duty should look at all. False: perhaps it may in a moment.

        Raises:
            LeaseLost: The term is over.
        """
        if self.is_over:
            raise LeaseLost(LEADER, epoch=self.right.epoch or 0, reason="the term is over")
        return self._leads()

    async def ask(self, op: Op[Answer], *, slow: bool = False) -> Answer:
        """Run one statement on a connection of the duties' own."""
        self._check()
        return await self._fenced(self._lines[slow].run(op))

    async def transact(self, op: Op[Answer]) -> Answer:
        """Run *op* in one transaction; an error rolls it back."""
        self._check()

        async def run() -> Answer:
            async with self.wiring.pools.control.transaction() as session:
                return await session.run(op)

        return await self._fenced(run())

    async def close(self) -> None:
        """Cut what is still under way."""
        for line in self._lines:
            await line.close()

    def _check(self) -> None:
        if not self.may_act:
            raise Unavailable("the leader's lease cannot be trusted at the moment")

    async def _fenced(self, answer: Awaitable[Answer]) -> Answer:
        try:
            return await answer
        except LeaseLost as error:
            self.wiring.signals.tell("leader_refused", epoch=error.epoch, reason=error.reason)
            log.tell("job_leader_refused", error=error, epoch=error.epoch)
            raise


@dataclass(frozen=True, slots=True)
class Duty:
    """Something to do again and again.

    Attributes:
        interval: Seconds between looks, unless it says otherwise or is woken.
        limit: Seconds one look may take.
        hears: Whether it looks at once when something in the cluster has changed.
    """

    name: str
    step: Step
    interval: float
    limit: float = 30.0
    hears: bool = False


class _Running:
    """A duty and its loop."""

    def __init__(self, duty: Duty, desk: Desk) -> None:
        self.duty = duty
        self.is_refused = False
        self._desk = desk
        self._timer: asyncio.TimerHandle | None = None
        self.loop = Loop(
            f"job duty {duty.name}",
            self._look,
            Rhythm(duty.interval, limit=duty.limit, gap=BREATH),
            ends_on=(LeaseLost,),
        )

    async def _look(self) -> bool:
        if not self._desk.may_act:
            return False
        try:
            rest = await self.duty.step()
        except LeaseLost:
            self.is_refused = True
            raise
        except Exception as error:
            self._desk.wiring.signals.tell("duty_failed", duty=self.duty.name, error=repr(error))
            raise
        if rest == AT_ONCE:
            return True
        if rest is not None and rest < self.duty.interval:
            self.cancel_timer()
            self._timer = asyncio.get_running_loop().call_later(max(rest, BREATH), self.loop.wake)
        return False

    def cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


class Shift:
    """The duties of one term."""

    def __init__(self, desk: Desk, duties: Sequence[Duty]) -> None:
        self.desk = desk
        self._running = [_Running(duty, desk) for duty in duties]

    def start(self) -> None:
        """Begin; the first look of each is due at once."""
        for one in self._running:
            one.loop.start()

    def wake(self) -> None:
        """Something in the cluster has changed."""
        for one in self._running:
            if one.duty.hears:
                one.loop.wake()

    def end(self) -> None:
        """Begin nothing more."""
        self.desk.is_over = True
        for one in self._running:
            one.cancel_timer()
            one.loop.wake()  # it finds that the term is over, and ends

    async def stop(self, *, timeout: float) -> None:
        """End; what is under way has *timeout* seconds, and is cut then."""
        self.end()
        await asyncio.gather(*(one.loop.stop(timeout=timeout) for one in self._running))
        await self.desk.close()

    @property
    def is_at_work(self) -> bool:
        """Whether it goes on with all of its duties."""
        return not self.desk.is_over and all(
            one.loop.running and not one.is_refused for one in self._running
        )

    @property
    def is_running(self) -> bool:
        """Whether anything of it is still under way."""
        return any(one.loop.running for one in self._running)

    def statistics(self) -> dict[str, LoopStatistics]:
        """How each duty is doing, by name."""
        return {one.duty.name: one.loop.statistics() for one in self._running}
