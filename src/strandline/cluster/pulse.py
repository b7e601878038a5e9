"""The pulse of a node, as the app holds it: one face, whichever host beats.

``process`` is the default of ``strandline node``: nothing that the app does can starve it, and the
death of the app is known at once. ``thread`` is for apps that are somebody else's process; a single
call in C that holds the interpreter for longer than ``node_ttl`` stops it. ``loop`` is for tests.

News arrive in the event loop in which ``start`` was called. ``leadership`` needs no running loop:
it is a function of the moment in which it is asked for.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import os
from collections.abc import Callable
from typing import Any

from strandline.cluster.board import Board
from strandline.cluster.heart import STAMP_EVERY
from strandline.cluster.hosts import Host, LoopHost, ThreadHost
from strandline.cluster.lease import Leadership, boot_time
from strandline.cluster.loop_watch import LoopWatch
from strandline.cluster.node import Identity
from strandline.cluster.vitals import Chest, Command, Kind, News, PulseOptions, PulseStatistics
from strandline.errors import SchemaOutOfDate, Unavailable
from strandline.telemetry.journal import Journal

__all__ = ["Leadership", "News", "Pulse", "PulseOptions", "PulseStatistics"]

log = Journal("strandline.pulse")


class Pulse:
    """Beats for one node from ``start`` to ``leave`` and ``stop``. Used once.

    Args:
        identity: The node.
        options: How to beat.
        kind: What hosts it.
        on_news: Called with every news, in the event loop of ``start``.
    """

    def __init__(
        self,
        identity: Identity,
        options: PulseOptions,
        kind: Kind,
        on_news: Callable[[News], None],
    ) -> None:
        self._identity = identity
        self._options = options
        self._kind = kind
        self._on_news = on_news
        self._pid = os.getpid()
        self._began = boot_time()
        self._board = Board()
        self._host: Host | None = None
        self._watch: LoopWatch | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # What news begin belongs to the app that began this, whichever thread brings them.
        self._context = contextvars.Context()
        self._joined = asyncio.Event()
        self._last_error = ""
        self._refusal = ""
        self._led: int | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False
        self._tasks: set[asyncio.Task[bool]] = set()

    async def start(self, *, timeout: float) -> None:
        """Begin beating; return when the node has a row and the first tick was answered.

        May be called again after it raised: the pulse has gone on trying.

        Raises:
            Unavailable: Not within *timeout* seconds.
            SchemaOutOfDate: The database has no tables for a cluster.
        """
        if self._host is None:
            self._begin()
        elif self._refusal:  # it may have been migrated meanwhile
            self._refusal = ""
            self._joined.clear()
        try:
            async with asyncio.timeout(timeout):
                await self._joined.wait()
        except TimeoutError:
            reason = self._last_error or "no answer"
            raise Unavailable(
                f"node {self._identity.name} could not join within {timeout} s: {reason}"
            ) from None
        if self._refusal:
            raise SchemaOutOfDate(self._refusal)

    def ready(self) -> None:
        """Take part: the node is *active* from the next tick on, which is made at once."""
        self._send(Command("ready"))

    async def drain(self, *, timeout: float) -> bool:
        """Make the node *draining*; whether that was written within *timeout* seconds."""
        return await self._ask(Command("drain"), timeout)

    async def resign(self, reason: str, *, timeout: float, for_good: bool = False) -> bool:
        """Give up leading, if this node leads; its duties must have ended before.

        It stands again after one ``leader_ttl``, unless it drains or this is *for_good*. Whether
        the lease is known to be given up; if not, that is tried on, and the lease runs out.
        """
        return await self._ask(Command("resign", {"reason": reason, "for_good": for_good}), timeout)

    async def leave(self, reason: str, report: str, *, timeout: float) -> bool:
        """Write down that the node has left, with *report* (JSON); it does not beat afterwards."""
        return await self._ask(Command("leave", {"reason": reason, "report": report}), timeout)

    async def stop(self, *, timeout: float) -> None:
        """End what beats. The node's row stays as it is. Never raises and never hangs."""
        self._stopped = True
        self._board.lead(None)
        if self._timer is not None:
            self._timer.cancel()
        try:
            if self._host is not None:
                await self._host.stop(timeout=timeout)
        except Exception as error:  # what ends a node must not end for a reason of ours
            log.tell("pulse_stop_failed", node=self._identity.name, trace=error)
        if self._watch is not None:
            self._watch.stop()

    @property
    def leadership(self) -> Leadership | None:
        """The epoch under which this node leads, if it may trust that in this very moment."""
        if self._stopped or os.getpid() != self._pid:  # a forked child is not the node
            return None
        return self._board.leadership(boot_time())

    @property
    def silence(self) -> float:
        """Seconds since the last good beat began; infinite before the first, and once it is over."""
        if self._stopped or not self._board.tick_at or os.getpid() != self._pid:
            return math.inf
        return boot_time() - self._board.tick_at

    def vouch(self, progress: int) -> None:
        """Tell how far the app's work has come: a number that grows while anything gets on."""
        self._board.progress = progress

    def statistics(self) -> PulseStatistics:
        """A picture of now."""
        board, now = self._board, boot_time()
        leadership = self.leadership
        return PulseStatistics(
            kind=self._kind,
            state=board.state,
            ticks=board.ticks,
            failures=board.failures,
            last_tick_seconds=board.tick_seconds,
            seconds_since_tick=now - (board.tick_at or self._began),
            loop_lag=max(0.0, now - board.stamp - STAMP_EVERY) if board.stamp else 0.0,
            epoch=leadership.epoch if leadership else 0,
            attempts=board.attempts,
            wins=board.wins,
            losses=board.losses,
            timeouts=board.timeouts,
            election_seconds=board.election_seconds,
            seconds_since_leader_seen=now - (board.leader_seen_at or self._began),
            restarts=self._host.restarts if self._host else 0,
        )

    # ---- the host

    def _begin(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._began = boot_time()
        if self._kind == "process":
            from strandline.cluster.process_host import ProcessHost

            host = ProcessHost(self._identity, self._options, self._post)
            self._board, self._host = host.board, host
        else:
            chest = Chest(self._kind, self._board, self._post)
            make = ThreadHost if self._kind == "thread" else LoopHost
            self._host = make(self._identity, self._options, chest)
        self._watch = LoopWatch(self._board, self._post)
        self._watch.start()
        self._host.start()

    def _send(self, command: Command) -> None:
        task = asyncio.ensure_future(self._ask(command, self._options.ttl))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, command: Command, timeout: float) -> bool:
        if self._host is None or self._stopped:
            return False
        try:
            async with asyncio.timeout(timeout):
                return await self._host.ask(command)
        except (TimeoutError, RuntimeError):  # no answer in time, or what should answer has ended
            return False

    # ---- news

    def _post(self, news: News) -> None:
        """Hand *news* from whichever thread to the app's event loop."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._hear, news, context=self._context)
        except RuntimeError:
            log.tell("news_too_late", news=news)

    def _hear(self, news: News) -> None:
        if not self._stopped and self._is_news(news.kind, news.facts):
            self._tell(news)

    def _is_news(self, kind: str, facts: dict[str, Any]) -> bool:
        """Take it in; False for what the app knows already."""
        match kind:
            case "joined":
                return self._has_joined()
            case "leading":
                return self._begins_to_lead(facts["epoch"])
            case "not_leading":
                return self._leads_no_more(facts["epoch"])
            case "refused":
                self._refusal = facts["error"]
                self._joined.set()
            case "tick_failed":
                self._last_error = facts["error"]
            case "side_process_died":
                code = facts["code"]
                self._last_error = facts["error"] or f"the side process ended with {code}"
        return True

    def _has_joined(self) -> bool:
        again = self._joined.is_set() and not self._refusal  # a new side process found the node
        self._refusal = ""
        self._joined.set()
        return not again

    def _leads_no_more(self, epoch: int) -> bool:
        if epoch != self._led:
            return False
        self._led = None
        return True

    def _begins_to_lead(self, epoch: int) -> bool:
        leadership = self.leadership
        if epoch == self._led or leadership is None or leadership.epoch != epoch:
            return False  # told already, or over again by now
        if self._led is not None:
            self._tell(News("not_leading", {"epoch": self._led, "reason": "a later epoch began"}))
        self._led = epoch
        self._watch_trust()
        return True

    def _watch_trust(self) -> None:
        """Tell the end of trust from here: what beats may be dead and tell nothing."""
        leadership = self.leadership
        if self._led is None or self._loop is None or self._stopped:
            return
        if leadership is None or leadership.epoch != self._led:
            epoch, self._led = self._led, None
            facts = {"epoch": epoch, "reason": "its pulse has not renewed it in time"}
            self._tell(News("not_leading", facts))
            return
        # A little after the pulse's own timer, whose reason is the better one
        wait = max(0.0, leadership.trusted_until - boot_time()) + 0.02
        self._timer = self._loop.call_later(wait, self._watch_trust)

    def _tell(self, news: News) -> None:
        try:
            self._on_news(news)
        except Exception as error:  # a listener's fault must not make the node deaf
            log.tell("news_refused", news=news.kind, trace=error)
