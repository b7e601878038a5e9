"""The leader's duties: declare the silent dead, place work, keep the load even.

The balancer exists on every node and works only while its node leads. One look:

1. ``look`` reads nodes, work and owners in one snapshot, by the server's clock.
2. Nodes that are due are declared dead (``mark_dead``), unless the brake holds that back.
3. ``plan`` computes a target for all work; what differs is published in one statement. Nodes see
   it and act by themselves: there are no commands, and nothing waits for an answer.

It looks at once when anything in the cluster has changed, when the next node would expire, and
every ``rebalance_interval``, beginning at a random moment.

Invariant. A former leader changes nothing. Every write share-locks the lease's row under (holder,
epoch) in the same statement, and a take-over needs that row alone. Trust in the lease, which is
looked at before each statement, only saves the attempt. Deleting what is old is not fenced: it
does no harm, whoever does it.

What can go wrong, what then.
- The database is away: looks fail, and are tried again within a beat. Nobody is declared dead for
  it afterwards: the verdict asks that the leader's own beats have been steady for the node's ttl.
- A beat comes while its node is declared dead: the statement names the count of beats that was
  seen, and judges anew. Either the beat is first and the node lives, or the beat finds no row.
- Most nodes are silent at once: see ``Brake``.
- A row is locked by somebody: it is left out, and looked at again soon.
- The answer to a write is lost: the next look shows what became of it.
- Nobody can run some work: it has no target, and the log tells why, once per change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from uuid import UUID

from strandline.clock import Clock, SystemClock
from strandline.cluster.duties import Counts, Duties, DutyWiring
from strandline.cluster.leading import Term
from strandline.cluster.lease import Leadership
from strandline.cluster.residents import Office
from strandline.loops import LoopStatistics
from strandline.postgres.pools import Pool
from strandline.settings import Settings
from strandline.telemetry.signals import Signals


@dataclass(frozen=True, slots=True)
class BalancerStatistics:
    """How the leader's duties are going on this node; counts are since the process started.

    Attributes:
        epoch: Of the term under way, or None.
        looks: Looks that came to an end.
        changes: Targets published.
        moves: Of these, work moved for balance.
        deaths: Nodes declared dead.
        brakes: Times that a verdict on many nodes was held back.
        refused: Times that the lease's row said that another one leads.
        pruned: Rows deleted from the log and of nodes that are gone.
        unplaced: Work that no node could run, at the last look.
        look_seconds: What the last look took.
        plan_seconds: Of these, computing the plan.
        loop: How the loop of the term under way is doing, or None.
    """

    epoch: int | None
    loop: LoopStatistics | None
    looks: int
    changes: int
    moves: int
    deaths: int
    brakes: int
    refused: int
    pruned: int
    unplaced: int
    look_seconds: float
    plan_seconds: float


class Balancer:
    """The leader's duties on one node; see the page above."""

    def __init__(
        self,
        pool: Pool,
        settings: Settings,
        signals: Signals,
        leadership: Callable[[], Leadership | None],
        me: UUID,
        channel: str,
        *,
        offices: Sequence[Office] = (),
        clock: Clock | None = None,
    ) -> None:
        self._me = me
        self._channel = channel
        self._offices = offices
        self._counts = Counts()
        self._wiring = DutyWiring(
            pool, settings, signals, leadership, clock or SystemClock(), self._counts
        )
        self._duties: Duties | None = None
        self._ending: list[Duties] = []

    def start(self, epoch: int) -> None:
        """Begin the duties of the term *epoch*; those of an earlier term end."""
        if self.serves(epoch):
            return
        term = Term(self._me, epoch, self._channel)
        if not self._balances(epoch):
            self._end()
            self._duties = Duties(term, self._wiring)
            self._duties.start()
        for office in self._offices:
            if not office.serves(epoch):
                office.begin(term)

    def serves(self, epoch: int) -> bool:
        """Whether the duties of the term *epoch* are being done."""
        return self._balances(epoch) and all(office.serves(epoch) for office in self._offices)

    def end(self, epoch: int) -> None:
        """Begin nothing more in the term *epoch*; a later one, begun by now, goes on."""
        if self._duties is not None and self._duties.term.epoch <= epoch:
            self._end()
        for office in self._offices:
            office.end(epoch)

    async def stop(self, *, timeout: float = 1.0) -> None:
        """End the duties: what is under way has *timeout* seconds, and is cut afterwards."""
        self._end()
        await asyncio.gather(
            self.settle(timeout=timeout),
            *(office.stop(timeout=timeout) for office in self._offices),
        )

    async def settle(self, *, timeout: float = 1.0) -> None:
        """Wait for the duties of terms that have ended, at most *timeout* seconds, and cut them."""
        ending, self._ending = self._ending, []
        await asyncio.gather(*(duties.stop(timeout=timeout) for duties in ending))

    def wake(self) -> None:
        """Something in the cluster has changed: look soon. Cheap; many calls are one look."""
        if self._duties is not None:
            self._duties.wake()
        for office in self._offices:
            office.wake()

    def statistics(self) -> BalancerStatistics:
        """A picture of now."""
        duties = self._duties
        return BalancerStatistics(
            epoch=duties.term.epoch if duties is not None else None,
            loop=duties.statistics() if duties is not None else None,
            **asdict(self._counts),
        )

    def _balances(self, epoch: int) -> bool:
        duties = self._duties
        return duties is not None and duties.term.epoch == epoch and duties.is_at_work

    def _end(self) -> None:
        duties, self._duties = self._duties, None
        self._ending = [one for one in self._ending if one.is_running]
        if duties is not None:
            duties.end()
            self._ending.append(duties)
