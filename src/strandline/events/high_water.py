"""The high-water mark: below it no event can still appear, proved by locks and never by time.

States. The log is numbered by a sequence, and transactions commit in another order than they
drew their numbers. So the visible log may have *gaps*: numbers whose transaction is still under
way, or was rolled back. The *mark* is the position up to which this is decided; readers never
look beyond it. A gap is open (live), or settled as ``rolled_back`` (proved) or ``forced`` (an
operator set ``force_after``); settled gaps stand in the table ``gaps``.

Invariant. No position at or below the mark becomes visible later, and the mark never moves back.

Rules it rests on. Every writer writes ``streams`` first (that takes ROW EXCLUSIVE on it until
the transaction ends, and a transaction id), and draws positions afterwards, inside the INSERT
into ``events``, from a sequence with CACHE 1. Only the primary decides.

One look (``tick``), each step a statement of its own, outside any transaction:
1. ``advance``: from one snapshot, move the mark over the events that follow it without a gap;
   that needs no proof. Answer H, the highest visible position, if there is a gap below it.
2. ``holders_of_streams``: G, the transactions that now hold ``streams``. (H, G) is a
   *generation*; it is queued.
3. A generation of which no holder is left is proved. The newest proved one is settled:
   ``settle`` records the numbers missing up to H and moves the mark to H, in one transaction.

Proof. Let p < H be the number of a transaction T. H was visible in step 1, so it was drawn
before step 1, and p before H: T held ``streams`` by then. A transaction becomes visible before
it gives up its locks. So at step 2 T is either in G, or has ended and is visible to (or dead for)
every snapshot from then on. When step 3 reads that no member of G is left, the same holds for all
of them, and the snapshot of ``settle``, taken later, shows everything up to H that will ever
be there. The order of these three is the proof; holders read before rows lose events.

Who a holder is. A transaction is known by a set of *keys*: its virtual transaction and its
transaction ids. Its pid is none of them: PREPARE TRANSACTION takes the pid away, and a crash gives
the prepared transaction a new virtual transaction; its transaction id outlives both.
A holder without a transaction id has not drawn a number yet. A lock taken inside a savepoint is
given up when that is rolled back, with every number drawn under it: dead at once. If the
transaction held ``streams`` before the savepoint, the gap waits for its end.

What can go wrong, what then.
- A holder lives on: the mark waits. After ``stale_after`` it is reported with who holds it, once
  per change of who. Nothing is skipped unless ``force_after`` is set; then the gap is ``forced``,
  names the shards that will miss it, and a sentinel tells ``late_event`` if one turns up, until the
  last holder has ended.
- Two detectors at once, or one that wakes from a freeze: harmless. Every decision is proved by
  itself, the UPDATE only lets the mark grow, the ledger takes a gap once.
- This process dies: nothing is lost but pending generations, which are taken anew.
- PostgreSQL crashes with ``synchronous_commit = off``, fails over, or is restored: a head that was
  seen may be gone and its number drawn again. ``settle`` names the head's event id and does
  nothing without it; moves of the mark are synchronous commits, so what lies below it is on disk.
  A mark that went back is logged and told, and detection goes on from there.
- The default isolation is REPEATABLE READ or stricter: every statement still has a snapshot of
  its own; a lost race of two detectors is a serialization error and counts as a look without news.
- A standby: the UPDATE in ``advance`` is refused there, which is told as ``DatabaseUnavailable``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Literal
from uuid import UUID

from strandline.clock import Clock, SystemClock
from strandline.errors import DatabaseUnavailable
from strandline.events.detections import Detection, Detections, HighWaterStatistics
from strandline.events.gaps import LOOK, holders, lost_row, watch_forced
from strandline.events.generations import Generation, Generations, all_keys
from strandline.loops import Loop, Rhythm
from strandline.postgres.faults import sqlstate
from strandline.postgres.operations import Answer, Op, many, one
from strandline.postgres.pools import Pool
from strandline.postgres.statements import SqlFile
from strandline.settings import Settings
from strandline.telemetry.journal import Journal
from strandline.telemetry.signals import Signals

log = Journal("strandline.high_water")

BREATH = 0.005  # seconds between looks, however often woken: one look carries many appends
REST = 3  # times its own duration that a slow look rests: an import in flight makes it slow
LONGEST_REST = 1.0  # seconds


@dataclass(frozen=True, slots=True)
class _Look:
    mark: int
    settled: int
    highest: int
    gap: bool
    head: UUID | None
    watching: bool


@dataclass(frozen=True, slots=True)
class _Keys:
    keys: list[str]


@dataclass(frozen=True, slots=True)
class _Settled:
    position: int
    moved: bool
    gaps: int
    numbers: int
    labels: list[str]


_sql = SqlFile(__name__)
_advance = _sql.one("advance", _Look)
_holders_of_streams = _sql.many("holders_of_streams", _Keys)
_settle = _sql.one("settle", _Settled)


class HighWater:
    """The detector: a loop around ``tick``. The page above says why it may be believed.

    Args:
        control: Its statements run here, outside any transaction.
        settings: Intervals, ``stale_after``, ``force_after``.
        signals: Told ``high_water_detected`` of looks that met a gap; ``high_water_stale``,
            ``high_water_cleared``, ``high_water_forced``, ``high_water_went_back``, ``late_event``.
        on_moved: Called with the new mark after it is committed, and with a lower one when the
            database went back; must not block.
        on_forced: Called with how many numbers were skipped without proof, and with the projections
            and subscriptions that miss them; must not block.
        clock: Source of ages.
    """

    def __init__(
        self,
        control: Pool,
        settings: Settings,
        signals: Signals,
        *,
        on_moved: Callable[[int], None],
        on_forced: Callable[[int, Sequence[str]], None] = lambda *_: None,
        clock: Clock | None = None,
    ) -> None:
        self._control = control
        self._settings = settings
        self._signals = signals
        self._on_moved = on_moved
        self._on_forced = on_forced
        self._clock = clock or SystemClock()
        self._detections = Detections(signals, self._clock)
        self._generations = Generations()
        self._ticking = asyncio.Lock()
        self._numbers = HighWaterStatistics()
        self._behind = False
        self._blockers: frozenset[str] = frozenset()
        self._stale_since: float | None = None
        self._watched_at = float("-inf")
        limit = settings.statement_timeout + settings.acquire_timeout
        rhythm = Rhythm(settings.poll_interval, limit=limit, gap=BREATH)
        self._loop = Loop("high_water", self._step, rhythm, clock=self._clock)

    def start(self) -> None:
        """Begin to look: when woken and every ``poll_interval``; more often while a gap is open."""
        self._loop.start()

    async def stop(self, *, timeout: float = 5.0) -> bool:
        """End the loop; answer whether the look under way finished within *timeout* seconds."""
        return await self._loop.stop(timeout=timeout)

    def wake(self) -> None:
        """Look now: something was appended."""
        self._loop.wake()

    def statistics(self) -> HighWaterStatistics:
        """A picture of now."""
        now = self._clock.monotonic()
        oldest = self._generations.oldest
        since = self._stale_since
        return replace(
            self._numbers,
            pending=len(self._generations),
            pending_seconds=now - oldest.taken if oldest else 0.0,
            stale=since is not None,
            stale_seconds=now - since if since is not None else 0.0,
            loop=self._loop.statistics(),
        )

    async def tick(self) -> int:
        """Take one look and answer the mark after it.

        Raises:
            DatabaseUnavailable: The server is a standby, is read-only or cannot be reached.
        """
        async with self._ticking:
            begun = self._clock.monotonic()
            step = one(_advance, LOOK)
            look = await self._decided(step)
            if look is not None:
                await self._consider(look)
                self._detections.looked(
                    self._detection(look), seconds=self._clock.monotonic() - begun
                )
            return self._numbers.position

    async def _step(self) -> bool:
        begun = self._clock.monotonic()
        await self.tick()
        if self._behind:
            return True
        if not len(self._generations):
            return False
        spent = self._clock.monotonic() - begun
        await asyncio.sleep(max(self._settings.probe_interval, min(REST * spent, LONGEST_REST)))
        return True

    async def _consider(self, look: _Look) -> None:
        self._count(looks=1, highest=look.highest - self._numbers.highest)
        if look.mark < self._numbers.position:
            self._went_back(look)
        self._moved(look.settled)
        self._generations.passed(look.settled, look.highest)
        self._behind = not look.gap and look.highest > look.settled
        now = self._clock.monotonic()
        watch = look.watching and now - self._watched_at >= self._settings.poll_interval
        present: frozenset[str] = frozenset()
        if look.gap or len(self._generations) or watch:
            found = await self._control.run(many(_holders_of_streams))  # after the rows, always
            self._count(probes=1)
            present = all_keys(holder.keys for holder in found)
            if look.gap and look.head is not None:
                self._generations.add(Generation(look.highest, look.head, present, len(found), now))
            await self._decide(present)
        if watch:
            self._watched_at = now
            await self._watch(present)
        await self._report(present)

    async def _decide(self, present: frozenset[str]) -> None:
        proved = self._generations.settled(present)
        if proved is not None:
            await self._settle(proved, "rolled_back", present)
        elif self._settings.force_after > 0:
            moment = self._clock.monotonic() - self._settings.force_after
            overdue = self._generations.taken_before(moment)
            if overdue is not None:
                await self._settle(overdue, "forced", present)

    async def _settle(
        self,
        generation: Generation,
        kind: Literal["rolled_back", "forced"],
        present: frozenset[str],
    ) -> None:
        """Move the mark to *generation*'s head, page by page."""
        waited = self._clock.monotonic() - generation.taken
        facts: dict[str, Any] = {
            "highest": generation.highest,
            "taken_at": (self._clock.now() - timedelta(seconds=waited)).isoformat(),
            "holders": generation.count,
            "waited": round(waited, 3),
        }
        if kind == "forced":
            facts["keys"] = sorted(generation.holders & present)
        gaps, skipped = 0, self._numbers.forced_numbers
        while self._numbers.position < generation.highest:
            step = one(_settle, generation.highest, generation.head, LOOK, kind, json.dumps(facts))
            done = await self._decided(step)
            if done is None or not done.moved:
                # Another detector was faster, or the head is gone and the proof with it.
                self._generations.clear()
                break
            gaps += done.gaps
            if kind == "rolled_back":
                self._count(settled_gaps=done.gaps, settled_numbers=done.numbers)
            else:
                self._count(forced_gaps=done.gaps, forced_numbers=done.numbers)
                if done.numbers:
                    self._on_forced(done.numbers, done.labels)
            self._moved(done.position)
        self._generations.passed(self._numbers.position, self._numbers.highest)
        if kind == "forced" and gaps:
            log.tell("gaps_forced", gaps=gaps, position=generation.highest)
            self._signals.tell(
                "high_water_forced",
                position=self._numbers.position,
                gaps=gaps,
                numbers=self._numbers.forced_numbers - skipped,
                waited=waited,
            )

    async def _watch(self, present: frozenset[str]) -> None:
        """Look for events in forced gaps. *present* was read before, as its end rule asks."""
        for late in await self._control.run(watch_forced(present)):
            self._count(late_events=late.fresh)
            log.tell("late_events", events=late.events, first=late.first, last=late.last)
            self._signals.tell(
                "late_event", first=late.first, last=late.last, events=late.events, fresh=late.fresh
            )

    async def _report(self, present: frozenset[str]) -> None:
        """Tell who holds up the mark, once per change, and when it is free again."""
        now = self._clock.monotonic()
        oldest = self._generations.oldest
        if oldest is None or now - oldest.taken < self._settings.stale_after:
            self._clear(now)
            return
        if self._stale_since is None:
            self._stale_since = now
        blockers = oldest.holders & present
        if not blockers or blockers == self._blockers:
            return
        is_new, self._blockers = not self._blockers, blockers
        found = await self._control.run(holders())
        who = tuple(holder for holder in found if not blockers.isdisjoint(holder.keys))
        self._numbers = replace(self._numbers, holders=who)
        position, waited = self._numbers.position, now - oldest.taken
        log.tell(
            "high_water_waits",
            position=position,
            highest=self._numbers.highest,
            seconds=waited,
            waits_for="; ".join(f"{holder.who}: {holder.cure}" for holder in who)
            or "one that just ended",
        )
        self._signals.tell(
            "high_water_stale",
            position=position,
            highest=self._numbers.highest,
            seconds=waited,
            holders=who,
            is_new=is_new,
        )

    def _clear(self, now: float) -> None:
        if self._stale_since is None:
            return
        seconds, self._stale_since = now - self._stale_since, None
        self._blockers = frozenset()
        position = self._numbers.position
        self._numbers = replace(self._numbers, holders=())
        log.tell("high_water_cleared", position=position, seconds=seconds)
        self._signals.tell("high_water_cleared", position=position, seconds=seconds)

    def _moved(self, position: int) -> None:
        if position > self._numbers.position:
            self._numbers = replace(self._numbers, position=position)
            self._count(moves=1)
            self._on_moved(position)

    def _detection(self, look: _Look) -> Detection:
        numbers, oldest = self._numbers, self._generations.oldest
        return Detection(
            position=numbers.position,
            highest=look.highest,
            proved=numbers.settled_numbers,
            forced=numbers.forced_numbers,
            gaps=numbers.settled_gaps + numbers.forced_gaps,
            is_open=look.gap,
            is_stale=self._stale_since is not None,
            holders=len(numbers.holders) or (oldest.count if oldest else 0),
        )

    def _went_back(self, look: _Look) -> None:
        before = self._numbers.position
        log.tell("high_water_went_back", before=before, position=look.mark)
        self._generations.clear()
        self._numbers = replace(self._numbers, position=look.mark)
        self._on_moved(look.mark)
        self._signals.tell("high_water_went_back", before=before, position=look.mark)

    async def _decided(self, op: Op[Answer | None]) -> Answer | None:
        """Run a deciding statement; None when another detector got in between."""
        try:
            answer = await self._control.run(op)
        except DatabaseUnavailable as error:
            state = sqlstate(error.__cause__) if error.__cause__ else ""
            if state == "40001":
                return None
            if state == "25006":
                raise DatabaseUnavailable(
                    "the high-water mark is decided on the primary only, and this server is a"
                    " standby or read-only; wait until it is promoted, or connect to the primary"
                ) from error
            raise
        if answer is None:
            raise lost_row()
        return answer

    def _count(self, **more: int) -> None:
        values = {name: getattr(self._numbers, name) + more[name] for name in more}
        self._numbers = replace(self._numbers, **values)
