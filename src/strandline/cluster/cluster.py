"""One node's part in the cluster: its pulse, its balancer, its reconciler, and what joins them.

The pulse speaks for the node and tells news; here is decided what follows from each:

* *leading*: the balancer starts. *not leading*: it stops. It is stopped before the lease is given
  up, and where that is not possible, the lease's row refuses its writes.
* *changed*: somebody changed nodes, work or owners: reconciler and balancer look.
* *drain requested*: the node steps down and gives its work away, and stays, doing nothing.
* *evicted*: the node was declared dead, so its work is others' already. Everything stops within
  two seconds, and the process joins again under a new id; or ends, where that is set, or where it
  has been evicted too often.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from strandline.cluster.balancer import Balancer
from strandline.cluster.lease import Leadership
from strandline.cluster.membership import number_of
from strandline.cluster.node import Identity
from strandline.cluster.pulse import News, Pulse, PulseOptions
from strandline.cluster.reconciler import Reconciler
from strandline.cluster.residents import Office, Resident
from strandline.cluster.work import Grant, Worker
from strandline.errors import NodeEvicted, Unavailable
from strandline.postgres.pools import Pool
from strandline.settings import Settings
from strandline.telemetry.journal import Journal
from strandline.telemetry.signals import Signals

log = Journal("strandline.cluster")

STOP_WITHIN = 2.0  # seconds in which an evicted node has stopped all its work
TOO_OFTEN = 4  # evictions within TOO_OFTEN_SECONDS with which the process gives up
TOO_OFTEN_SECONDS = 600.0
CHANNEL = "cluster"

Kind = Literal["process", "thread", "loop"]
Facts = Mapping[str, Any]

_NOTICES = {"ticked": "tick", "blocked": "loop_blocked"}  # news whose notice has another name


@dataclass(frozen=True, slots=True)
class ClusterWiring:
    """What a node's part in the cluster shares with the rest of the app.

    Attributes:
        url: The database, past any pooler where that is possible.
        control: The pool of control operations.
        identity: A new identity, with a new id, each time it is called.
        kind: What hosts the pulse.
        on_out: Told once when the process must end, since it was evicted for good.
    """

    url: str
    control: Pool
    settings: Settings
    signals: Signals
    identity: Callable[[], Identity]
    kind: Kind
    on_out: Callable[[NodeEvicted], None]


class Cluster:
    """A node in the cluster, from joining to leaving."""

    def __init__(
        self,
        wiring: ClusterWiring,
        worker: Worker,
        residents: Sequence[Resident] = (),
        offices: Sequence[Office] = (),
    ) -> None:
        self._wiring = wiring
        self._worker = worker
        self._residents = residents
        self._offices = offices
        self._tasks: set[asyncio.Task[None]] = set()
        self._evictions: deque[float] = deque(maxlen=TOO_OFTEN)
        self._leaving = False
        self._draining = False
        self._out = False  # evicted for good
        self._stepping_down = False  # its duties as leader must not begin again
        self._acts: dict[str, Callable[[Facts], None]] = {
            "changed": lambda facts: self.wake(),
            "ticked": lambda facts: self._has_ticked(),
            "leading": self._leads,
            "not_leading": self._leads_no_more,
            "resign_requested": lambda facts: self._soon(self._resign(facts["reason"]), "resigns"),
            "drain_requested": self._is_asked_to_drain,
            "evicted": lambda facts: self._soon(self._evicted(facts["reason"]), "is evicted"),
        }
        self._take_new_identity()

    def _take_new_identity(self) -> None:
        wiring = self._wiring
        settings = wiring.settings
        channel = f"{settings.schema}.{CHANNEL}"
        self.identity = wiring.identity()
        self.pulse = Pulse(
            self.identity,
            PulseOptions.of(settings, wiring.url),
            wiring.kind,
            self._hears(self.identity.id),
        )
        self.reconciler = Reconciler(
            self.identity, self._worker, wiring.control, settings, wiring.signals, channel
        )
        self.balancer = Balancer(
            wiring.control,
            settings,
            wiring.signals,
            lambda: self.leadership,
            self.identity.id,
            channel,
            offices=self._offices,
        )

    # ---- joining

    async def join(self, *, timeout: float) -> None:
        """Become a node of the cluster and take work.

        Raises:
            Unavailable: The database did not answer within *timeout* seconds.
        """
        await self.pulse.start(timeout=timeout)
        await self._tell_residents()
        await self.reconciler.start()
        if self._draining:  # before an eviction: it stays what an operator made it
            await self._stop_taking(timeout=timeout)
        else:
            self.pulse.ready()
        log.tell("node_joined", node=self.identity.name, node_id=self.identity.id)

    async def _tell_residents(self) -> None:
        if not self._residents:
            return
        number = await self._wiring.control.run(number_of(self.identity.id))
        if number is None:
            raise Unavailable(f"node {self.identity.name} has no row: it was evicted meanwhile")
        for resident in self._residents:
            await resident.joined(self.identity, number)

    def trusts(self) -> bool:
        """Whether this node may take work: its last good beat is younger than its ttl, less a beat."""
        settings = self._wiring.settings
        return self.pulse.silence < settings.node_ttl - settings.pulse_interval

    @property
    def leadership(self) -> Leadership | None:
        """The leader's epoch, while this node may trust that it leads."""
        return self.pulse.leadership

    @property
    def grants(self) -> Mapping[str, Grant]:
        """The work this node runs, by name."""
        return self.reconciler.grants()

    def wake(self) -> None:
        """Something changed in the cluster: look."""
        self.reconciler.wake()
        self.balancer.wake()

    def statistics(self) -> Mapping[str, Any]:
        """A picture of now, for metrics and screens."""
        return {
            "identity": self.identity,
            "leadership": self.leadership,
            "pulse": self.pulse.statistics(),
            "balancer": self.balancer.statistics(),
            "reconciler": self.reconciler.statistics(),
        }

    # ---- leaving: the steps of a shutdown, in their order

    async def announce(self, *, timeout: float = 1.0) -> None:
        """Tell the others that this node takes nothing new and is about to go."""
        self._leaving = True
        if not self._out:
            await self._stop_taking(timeout=timeout)

    async def _stop_taking(self, *, timeout: float) -> None:
        self._stepping_down = True
        for resident in self._residents:
            resident.draining()
        await self.balancer.stop(timeout=timeout / 2)  # a draining node gives the lease up at once
        if not await self.pulse.drain(timeout=timeout / 2):
            raise Unavailable("could not tell the cluster that this node is draining")

    async def step_down(self, reason: str, *, timeout: float = 2.0) -> None:
        """Stop leading, if this node leads, and then give the lease up."""
        if self._out:
            return
        self._stepping_down = True
        try:
            await self.balancer.stop(timeout=timeout / 2)
            given = await self.pulse.resign(reason, timeout=timeout / 2, for_good=self._leaving)
        finally:
            self._stepping_down = self._leaving or self._draining
        if not given:
            raise Unavailable("the leader's lease could not be given up: it runs out by itself")

    async def release_work(self, *, timeout: float) -> tuple[list[str], list[str]]:
        """Stop all work in parallel, each released as it ends; what was, and what was not."""
        return await self.reconciler.release_all(timeout=timeout)

    async def give_back(self) -> int:
        """Release whatever is still this node's; how much that was."""
        return await self.reconciler.give_back()

    async def leave(self, reason: str, report: str, *, timeout: float = 1.0) -> None:
        """Write down that this node has left, with its report. It does not beat afterwards."""
        if self._out:
            return
        if not await self.pulse.leave(reason, report, timeout=timeout):
            raise Unavailable("the node's row could not be written: others wait for its ttl")

    async def end(self, *, timeout: float = 1.0) -> None:
        """End everything that runs for the cluster in this process. Never raises."""
        self._leaving = True
        for task in self._tasks:
            task.cancel()
        await self.balancer.stop(timeout=timeout / 2)
        await self.reconciler.stop(timeout=timeout / 2)
        await self.pulse.stop(timeout=timeout)

    # ---- news

    def _hears(self, node: UUID) -> Callable[[News], None]:
        def hear(news: News) -> None:
            if node == self.identity.id:  # else it comes late, from before an eviction
                self._heard(news)

        return hear

    def _heard(self, news: News) -> None:
        facts, act = news.facts, self._acts.get(news.kind)
        self._wiring.signals.tell(_NOTICES.get(news.kind, news.kind), **facts)
        if act is not None:
            act(facts)

    def _leads(self, facts: Facts) -> None:
        log.tell("leadership_won", node=self.identity.name, epoch=facts["epoch"])
        self.balancer.start(facts["epoch"])

    def _leads_no_more(self, facts: Facts) -> None:
        log.tell("leadership_ended", node=self.identity.name, reason=facts["reason"])
        self.balancer.end(facts["epoch"])  # now: the next term may be the next news
        self._soon(self.balancer.settle(), "stops leading")

    def _has_ticked(self) -> None:
        self.pulse.vouch(self._worker.progress())
        leadership = self.leadership
        if leadership is None or self._stepping_down or self.balancer.serves(leadership.epoch):
            return
        log.tell("duties_taken_up_again", node=self.identity.name)
        self.balancer.start(leadership.epoch)  # they had ended by a fault of their own

    def _is_asked_to_drain(self, facts: Facts) -> None:
        if not self._draining:
            self._draining = True
            self._soon(self._drain(facts["reason"]), "drains")

    async def _resign(self, reason: str) -> None:
        log.tell("resign_asked", node=self.identity.name, reason=reason)
        await self.step_down(reason)

    async def _drain(self, reason: str) -> None:
        log.tell("drain_asked", node=self.identity.name, reason=reason)
        await self._stop_taking(timeout=2.0)
        await self.step_down(f"draining: {reason}")
        released, abandoned = await self.release_work(timeout=self._wiring.settings.revoke_timeout)
        log.tell("node_drained", node=self.identity.name, count=len(released))
        self._wiring.signals.tell("drained", released=released, abandoned=abandoned)

    # ---- eviction

    async def _evicted(self, reason: str) -> None:
        error = NodeEvicted(self.identity.name, reason=reason)
        log.tell("node_evicted", node=self.identity.name, reason=reason, error=error)
        leaving = [resident.out(timeout=STOP_WITHIN) for resident in self._residents]
        await asyncio.gather(self._stop_evicted(), *leaving)
        await self.reconciler.stop(timeout=0.5)
        await self.pulse.stop(timeout=1.0)
        if self._leaving:
            return
        self._evictions.append(time.monotonic())
        often = (
            len(self._evictions) == TOO_OFTEN
            and self._evictions[-1] - self._evictions[0] < TOO_OFTEN_SECONDS
        )
        if often or self._wiring.settings.on_evicted == "exit":
            self._out = True  # there is nothing to leave, and nobody to tell
            self._wiring.on_out(error)
            return
        self._take_new_identity()
        await self._join_again()

    async def _stop_evicted(self) -> None:
        await self.balancer.stop(timeout=0.5)
        await self.reconciler.abandon_all(timeout=STOP_WITHIN)

    async def _join_again(self) -> None:
        while not self._leaving:
            try:
                await self.join(timeout=self._wiring.settings.connect_timeout)
            except Exception as error:  # also a schema that is being restored: it may be back
                log.tell("join_failed", node=self.identity.name, error=error)
                await asyncio.sleep(self._wiring.settings.pulse_interval)
            else:
                self._wiring.signals.tell("rejoined", node=self.identity.id)
                return

    def _soon(self, step: Awaitable[Any], what: str) -> None:
        async def guarded() -> None:
            try:
                await step
            except Unavailable as error:
                log.tell("news_delayed", node=self.identity.name, task=what, error=error)
            except Exception as error:  # news must never go unheard for the next time
                log.tell("news_failed", node=self.identity.name, task=what, trace=error)

        task = asyncio.create_task(guarded(), name=f"strandline:{what}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
