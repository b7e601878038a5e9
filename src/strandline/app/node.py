"""This process as a node: its daemon, its jobs, its part in the cluster, and how they are stopped.

Each part registers how it is stopped as soon as it has started, so a stop in the middle of a start
is the same code. What is registered last is stopped first, so the order below is to be read from
the end: announce, step down, drain shards and jobs, end jobs, hooks, give back, leave, stop the
pulse, close the daemon.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any, Literal, cast
from uuid import UUID, uuid4

from strandline.cluster.cluster import Cluster, ClusterWiring
from strandline.cluster.node import Identity, default_name
from strandline.cluster.residents import Office
from strandline.cluster.shutdown import Shutdown, Step
from strandline.cluster.work import Grant
from strandline.daemon.daemon import Daemon
from strandline.daemon.definitions import DaemonStatistics, Definition, Wiring
from strandline.daemon.feed import Feed
from strandline.errors import NodeEvicted
from strandline.events.codec import EventTypes
from strandline.jobs.part import FLUSH, JobShare, JobsPart, JobTies
from strandline.postgres.listener import Listener, Notifier
from strandline.postgres.pools import Pools
from strandline.settings import Settings
from strandline.survey.office import SurveyOffice
from strandline.telemetry import otlp
from strandline.telemetry.signals import Signals

FLUSH_TELEMETRY = 1.9  # seconds
DRAINING = 2  # the phase of the shutdown in which shards and jobs end side by side


@dataclass(frozen=True, slots=True)
class NodeWiring:
    """What a node takes from its app.

    Attributes:
        app: Its name.
        pools: Open.
        types: Of events.
        on_progress: Called when a checkpoint moved.
        on_out: Told once if the process must end, since the node was evicted for good.
        jobs: What jobs need.
    """

    app: str
    pools: Pools
    settings: Settings
    signals: Signals
    notifier: Notifier
    listener: Listener
    types: EventTypes
    on_progress: Callable[[], None]
    on_out: Callable[[NodeEvicted], None]
    jobs: JobTies


class Node:
    """Runs definitions in this process, alone or as a node of the cluster."""

    def __init__(
        self,
        wiring: NodeWiring,
        definitions: Sequence[Definition],
        hooks: Sequence[Any],
        jobs: JobShare = JobShare.ALL,
    ) -> None:
        self._wiring = wiring
        self._labels = tuple(one.label for one in definitions)
        self._hooks = hooks
        self._id = uuid4()
        self.name = wiring.settings.node_name or default_name(wiring.app)
        self.cluster: Cluster | None = None
        self.daemon = Daemon(
            Wiring(
                pools=wiring.pools,
                settings=wiring.settings,
                signals=wiring.signals,
                notifier=wiring.notifier,
                listener=wiring.listener,
                node_name=self.name,
            ),
            Feed(wiring.pools.work, wiring.types, wiring.settings),
            list(definitions),
            on_progress=wiring.on_progress,
        )
        self.jobs = JobsPart(
            wiring.jobs,
            trusts=lambda: self.cluster is None or self.cluster.trusts(),
            leadership=lambda: self.cluster.leadership if self.cluster else None,
            share=jobs,
        )
        self.survey = SurveyOffice(
            wiring.pools.control_url, wiring.settings, wiring.signals, detects=self._detects
        )

    @property
    def id(self) -> UUID:
        """Of this process start; a new one after an eviction."""
        return self.cluster.identity.id if self.cluster else self._id

    async def start(self, shutdown: Shutdown) -> None:
        """Begin; how each part is stopped is registered with *shutdown*.

        Raises:
            Unavailable: The database did not answer. What has started is registered.
        """
        settings = self._wiring.settings
        shutdown.part(Step("close daemon", self._close_daemon(shutdown), cap=settings.stop_timeout))
        await self.daemon.open()
        shutdown.part(Step("close jobs", self.jobs.close, cap=3.0))
        if settings.mode == "solo":
            await self.daemon.run_everything(self._id)
            await self.jobs.begin_alone()
            self._survey_alone(shutdown)
            self._register_hooks(shutdown)
            self._register_jobs(shutdown)
            return
        self.cluster = Cluster(
            ClusterWiring(
                url=self._wiring.pools.control_url,
                control=self._wiring.pools.control,
                settings=settings,
                signals=self._wiring.signals,
                identity=self._identity,
                kind=cast("Literal['process', 'thread', 'loop']", settings.pulse or "thread"),
                on_out=self._wiring.on_out,
            ),
            self.daemon,
            residents=[self.jobs],
            offices=self._offices(),
        )
        self._register_end(self.cluster, shutdown)
        await self.cluster.join(timeout=settings.connect_timeout)
        self._register_leaving(self.cluster, shutdown)

    def statistics(self) -> DaemonStatistics:
        """How the daemon is doing."""
        return self.daemon.statistics()

    @property
    def grants(self) -> Mapping[str, Grant]:
        """The work it runs as a node of the cluster."""
        return self.cluster.grants if self.cluster else {}

    def _offices(self) -> list[Office]:
        """What this node does besides while it leads."""
        jobs: list[Office] = [self.jobs.office] if self.jobs.share is not JobShare.NONE else []
        return [*jobs, self.survey] if self._wiring.settings.metrics else jobs

    def _survey_alone(self, shutdown: Shutdown) -> None:
        if self._wiring.settings.metrics:
            self.survey.begin_alone()
            stop = partial(self.survey.stop, timeout=0.5)
            shutdown.part(Step("end survey", stop, cap=2.0))

    def _detects(self) -> bool:
        """Whether the mark's detector is at work here, and its loop has not ended."""
        found = self.daemon.statistics()
        loop = found.high_water.loop
        return found.detects and loop is not None and loop.running

    # ---- stopping

    def _register_end(self, cluster: Cluster, shutdown: Shutdown) -> None:
        """What ends a node, also one that has not joined yet; what others wait for is needed."""

        async def leave() -> None:
            report = shutdown.report()
            await cluster.leave(report.reason, report.json())

        shutdown.part(Step("stop pulse", cluster.end, cap=1.5))
        shutdown.part(Step("leave", leave, cap=1.0, needed=True))

    def _register_leaving(self, cluster: Cluster, shutdown: Shutdown) -> None:
        """What a node that works does before it leaves."""
        limit = self._wiring.settings.stop_timeout

        async def drain() -> None:
            held = set(cluster.grants)
            try:
                await cluster.release_work(timeout=limit)
            finally:  # also if it was cut off
                left = set(cluster.grants)
                shutdown.note(released=sorted(held - left), abandoned=sorted(left))

        part = shutdown.part
        part(Step("give back", cluster.give_back, cap=1.5, needed=True))
        self._register_hooks(shutdown)
        self._register_jobs(shutdown)
        part(Step("drain", drain, cap=limit, phase=DRAINING))
        part(Step("step down", lambda: cluster.step_down("stopping"), cap=2.0, needed=True))
        part(Step("announce", cluster.announce, cap=1.0, needed=True))

    def _register_jobs(self, shutdown: Shutdown) -> None:
        """Beside the shards jobs may end by themselves; then what is left is cancelled."""
        if not self.jobs.has_work:
            return
        settings = self._wiring.settings
        finished = 0

        async def drain() -> None:
            nonlocal finished
            finished = await self.jobs.drain(limit=settings.job_drain_timeout)

        async def end() -> None:
            stop = await self.jobs.end(cancel=settings.job_cancel_timeout)
            shutdown.note_jobs(
                finished=finished + stop.finished,
                interrupted=stop.interrupted,
                abandoned=stop.abandoned,
            )

        cap = settings.job_cancel_timeout + FLUSH + 1.0
        shutdown.part(Step("end jobs", end, cap=cap, needed=True))
        cap = settings.job_drain_timeout + 0.5
        shutdown.part(Step("drain jobs", drain, cap=cap, phase=DRAINING))

    def _register_hooks(self, shutdown: Shutdown) -> None:
        exporting = otlp.installed()
        if exporting is not None:
            flush = partial(asyncio.to_thread, exporting.flush, FLUSH_TELEMETRY)
            shutdown.part(Step("flush telemetry", flush, cap=FLUSH_TELEMETRY + 0.1))
        for hook in reversed(self._hooks):
            name = getattr(hook, "__name__", repr(hook))
            shutdown.part(Step(f"hook {name}", _called(hook), cap=2.0, phase=1))

    def _close_daemon(self, shutdown: Shutdown) -> Callable[[], Any]:
        async def close() -> None:
            ended = await self.daemon.close(timeout=self._wiring.settings.stop_timeout)
            shutdown.note(
                released=[shard for shard, clean in ended.items() if clean],
                abandoned=[shard for shard, clean in ended.items() if not clean],
            )

        return close

    def _identity(self) -> Identity:
        settings = self._wiring.settings
        own = [label for part in settings.node_labels.split(",") if (label := part.strip())]
        return Identity(
            id=uuid4(),
            name=self.name,
            labels=tuple(dict.fromkeys([*self._labels, *own])),
            capacity=settings.node_capacity,
            priority=settings.leader_priority,
            mode=settings.mode,
            version=version("strandline"),
            host=socket.gethostname(),
            pid=os.getpid(),
        )


def _called(hook: Any) -> Callable[[], Any]:
    async def call() -> None:
        made = hook()
        if inspect.isawaitable(made):
            await made

    return call
