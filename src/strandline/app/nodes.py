"""The app as a node: start, stop, run until a signal, and nobody at work meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

from strandline import termination
from strandline.app.belonging import begun_for
from strandline.app.health_checks import Life
from strandline.app.node import Node
from strandline.cluster.node import default_name
from strandline.cluster.resting import resting
from strandline.cluster.shutdown import Shutdown, Step
from strandline.cluster.shutdown_report import ShutdownReport
from strandline.cluster.until_told import until_told
from strandline.daemon.definitions import DaemonStatistics
from strandline.errors import NodeEvicted
from strandline.jobs.part import JobShare
from strandline.projections.registry import Registry
from strandline.telemetry.journal import current_node

if TYPE_CHECKING:
    from strandline.loops import Loops
    from strandline.postgres.pools import Pools
    from strandline.settings import Settings
    from strandline.telemetry.signals import Signals


EVICTED = "evicted"  # the reason in the report of a process that must not join again


@dataclass(slots=True)
class Running:
    """What an app keeps while it is a node, and what it was told to do at its end."""

    turning: asyncio.Lock = field(default_factory=asyncio.Lock)  # start and stop take turns
    stopping: Shutdown | None = None
    life: Life = Life.NONE
    hooks: list[Callable[[], Any]] = field(default_factory=list)
    out: asyncio.Future[NodeEvicted] | None = None  # while ``run`` runs
    over: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)


class NodeFace:
    """An app as a node of the cluster."""

    if TYPE_CHECKING:
        name: str
        registry: Registry
        settings: Settings
        signals: Signals
        loops: Loops
        _node: Node | None
        _running: Running

        @property
        def pools(self) -> Pools: ...
        async def open(self) -> None: ...
        async def _close_rest(self) -> None: ...
        def _end_being_seen(self) -> None: ...
        def _make_node(
            self, labels: set[str], on_out: Callable[[NodeEvicted], None], jobs: JobShare
        ) -> Node: ...

    async def start(self, *projections: Any) -> None:
        """Be a node in this process until ``stop``: run projections, subscriptions and jobs.

        Which projections run here, and which on other nodes, the cluster decides. In mode ``solo``
        all run here, whoever had them.

        Args:
            projections: Only these, by class, function or name, and no jobs; all when none is named.

        Raises:
            Unavailable: The database did not answer; nothing was started.
        """
        await self._be_node(projections)

    async def stop(self, *, timeout: float | None = None) -> ShutdownReport | None:
        """Stop being a node, in bounded steps: leave the cluster, each shard after its batch.

        Args:
            timeout: Seconds for all of it (default: ``stop_timeout``).

        Returns:
            What was done; None if this process was no node.
        """
        running = self._running
        current_node.set(self.node_name)
        async with running.turning:
            if self._node is None or running.stopping is None:
                return None
            if timeout is not None:
                running.stopping.limit(timeout)
            report = await running.stopping.run("stop")
            self._node = running.stopping = None
            running.life = Life.STOPPED
            running.over.set()
            return report

    async def run(self, *projections: Any) -> ShutdownReport:
        """Be a node until SIGTERM or SIGINT, then stop in bounded steps, and close.

        The second signal leaves ``stop_fast`` seconds, the third none. Whatever hangs, the process
        is gone ``stop_hard`` seconds after the first. Outside the main thread no signals are heard:
        cancel the task that runs this, or call ``stop``.

        Returns:
            What the stop did; its ``exit_code`` is the process's. After a signal and a stop that
            was not clean the deadline stays: the process is about to end.

        Raises:
            Unavailable: The database did not answer at the start. What had started was stopped.
        """
        settings, running = self.settings, self._running
        signals = termination.install(hard=settings.stop_hard, fast=settings.stop_fast)
        stopping = self._shutdown(hurry=lambda: signals.count)
        signals.last_words = stopping.last_words
        stopping.part(Step("close", self._close_rest, cap=3.0))
        running.out = asyncio.get_running_loop().create_future()
        running.over = asyncio.Event()
        running.stopping, running.life = stopping, Life.STARTING
        report = None
        try:
            report = await until_told(
                lambda: self._open_and_start(projections, stopping),
                lambda: self._told(signals),
                stopping,
                began=lambda: signals.told_at,
            )
            return report
        finally:
            self._node = running.stopping = running.out = None
            self._end_being_seen()  # last, so that probes see the whole stop
            # After a bad end the deadlines stay: a thread left behind could keep the process
            is_clean = report is not None and report.result == "clean"
            termination.uninstall(goes_on=is_clean or not signals.count)

    def on_stop(self, function: Callable[[], Any]) -> Callable[[], Any]:
        """Call *function* (plain or async) when the node stops, after its work has ended.

        It has two seconds; what it raises is told in the report and keeps nothing else from ending.
        Register it before ``start``.
        """
        self._running.hooks.append(function)
        return function

    @property
    def node_id(self) -> UUID | None:
        """Of this process as a node: one per start, a new one after an eviction; None before."""
        return self._node.id if self._node else None

    @property
    def node_name(self) -> str:
        """The node's name: stable over restarts if the setting ``node_name`` is there."""
        return self.settings.node_name or default_name(self.name)

    @property
    def is_running(self) -> bool:
        """Whether this process is a node."""
        return self._node is not None

    def statistics(self) -> DaemonStatistics | None:
        """How the node's projections are doing; None while this process is no node."""
        return self._node.statistics() if self._node else None

    def at_rest(self, shards: Sequence[str]) -> AbstractAsyncContextManager[None]:
        """Nobody in the cluster runs *shards* inside the block; afterwards whoever should goes on.

        Raises:
            AnswerTimedOut: A node did not give one up within ``revoke_timeout`` seconds.
        """
        if self.settings.mode == "solo":
            return self._without(shards)
        return resting(self.pools.control, shards, self.settings)

    # ---- inside

    @asynccontextmanager
    async def _without(self, shards: Sequence[str]) -> AsyncIterator[None]:
        if self._node is None:
            yield
            return
        async with self._node.daemon.without(shards):
            yield

    async def _be_node(self, projections: tuple[Any, ...], jobs: JobShare | None = None) -> None:
        """Be a node, unless this process is one; *jobs* when None: all of them, if none is named."""
        async with self._running.turning:
            if self._node is None:
                await self._start(projections, self._shutdown(), jobs)

    async def _open_and_start(self, projections: tuple[Any, ...], stopping: Shutdown) -> None:
        await self.open()
        async with self._running.turning:
            await self._start(projections, stopping)

    async def _start(
        self, projections: tuple[Any, ...], stopping: Shutdown, jobs: JobShare | None = None
    ) -> None:
        running = self._running
        labels = {self.registry.label(one) for one in projections}
        share = jobs or (JobShare.DUTIES if labels else JobShare.ALL)
        self._node = self._make_node(labels, self._is_out, share)
        running.stopping, running.life = stopping, Life.STARTING
        try:
            with begun_for(self.node_name, self.loops):
                await self._node.start(stopping)
        except BaseException:
            if not stopping.is_running:  # else it is being stopped because it was told to
                await stopping.run("could not start")
                running.stopping, running.life = None, Life.STOPPED
            self._node = None
            raise
        running.life = Life.UP
        self.signals.tell("started", node=self.node_id, name=self.node_name)

    def _shutdown(self, *, hurry: Callable[[], int] = lambda: 0) -> Shutdown:
        settings = self.settings
        return Shutdown(
            total=settings.stop_timeout,
            reserve=settings.stop_reserve,
            fast=settings.stop_fast,
            signals=self.signals,
            hurry=hurry,
        )

    def _is_out(self, error: NodeEvicted) -> None:
        """The node was evicted and does not join again."""
        running = self._running
        if running.out is not None:
            if not running.out.done():
                running.out.set_result(error)
            return
        task = asyncio.create_task(self.stop(), name="strandline:evicted for good")
        running.tasks.add(task)
        task.add_done_callback(running.tasks.discard)

    async def _told(self, signals: termination.Termination) -> str:
        """Wait for a reason to end: a signal, ``stop``, an eviction for good."""
        running = self._running
        assert running.out is not None
        signalled = asyncio.create_task(signals.wait(), name="strandline:signals")
        over = asyncio.create_task(running.over.wait(), name="strandline:stopped")
        try:
            ends: set[asyncio.Future[Any]] = {signalled, over, running.out}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            signalled.cancel()
            over.cancel()
        if signals.reason:
            return signals.reason
        signals.arm()  # no signal has begun this end: the deadlines run from now
        return EVICTED if running.out.done() else "stop"
