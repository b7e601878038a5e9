"""Finds the events of a page that cannot be processed, and puts them aside; all others go on.

The page is taken in ranges from left to right. A range that succeeds is committed with the
checkpoint at its end; one that fails is split: at the failing event if that is known, else in
halves. A single event that fails goes to ``Processor.aside``. So whatever ends the process in
between loses and doubles nothing: the checkpoint stands at the end of the last range.

For n events of which k fail, that is 2k + 1 commits and 3k + 1 tries when failures tell their
position; when they do not, k·log2(n) tries or fewer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from strandline.daemon.batch import Batch, Processor
from strandline.daemon.failures import Failure, Ledger, Phase
from strandline.daemon.feed import Page
from strandline.daemon.streak import Streak
from strandline.errors import EventFailure
from strandline.projections.failure_policy import Action, ErrorPolicy
from strandline.projections.fold import POSITION
from strandline.telemetry.journal import Journal

log = Journal("strandline.agent")


@dataclass(frozen=True, slots=True)
class Part:
    """A range that is still to be processed.

    Attributes:
        guilty: It must fail: it is what is left of a range that failed, and the other half did not.
    """

    page: Page
    guilty: bool = False

    @property
    def is_single(self) -> bool:
        """Whether it cannot be split any further."""
        if self.page.rows:
            return len(self.page.rows) == 1
        return self.page.ceiling - self.page.floor <= 1


class Isolation:
    """The isolation of one page's failing events.

    Args:
        shard: Whose page it is.
        processor: Makes its batches.
        policy: Says what becomes of an event that fails.
        ledger: Notes where errors are raised.
        commit: Commits a batch and moves the checkpoint.
        is_over: Whether the agent was told to stop.
        streak: Says when too many fail in a row; None: never.
    """

    def __init__(
        self,
        shard: str,
        processor: Processor,
        policy: ErrorPolicy,
        ledger: Ledger,
        *,
        commit: Callable[[Batch], Awaitable[None]],
        is_over: Callable[[], bool],
        streak: Streak | None = None,
    ) -> None:
        self._shard = shard
        self._processor = processor
        self._policy = policy
        self._ledger = ledger
        self._commit = commit
        self._is_over = is_over
        self._streak = streak
        self._trusts_positions = True

    async def through(self, page: Page) -> int:
        """Process *page*; how many events were put aside.

        Raises:
            EventFailure: An event fails for which the policy says ``pause``, or could not be put
                aside. Everything before it is committed.
            NothingSucceeds: Too many fail in a row.
            StrandlineError: As for any batch; what was committed stays so.
        """
        parts = [Part(page)]
        count = 0
        while parts and not self._is_over():
            part = parts.pop()
            if part.guilty and not part.is_single:
                parts += reversed(_halves(part.page))
                continue
            failure = await self._tried(part.page)
            if failure is None:
                if part.guilty and not self._processor.is_pure:
                    self._trusts_positions = False  # the event before or after it was blamed
                continue
            if parts:  # if that must fail for a range that was split, this failure explains it
                parts[-1] = replace(parts[-1], guilty=False)
            if part.is_single:
                await self._put_aside(part.page, failure)
                count += 1
            else:
                parts += reversed(self._pieces(part.page, failure))
        return count

    async def _tried(self, page: Page) -> Failure | None:
        """Process and commit *page*; what failed in it."""
        try:
            with self._ledger.during(Phase.APPLY, page.rows):
                batch = await self._processor.prepare(page)
            await self._commit(batch)
        except EventFailure as error:
            self._processor.forget()
            return self._ledger.found(error)
        return None

    async def _put_aside(self, page: Page, failure: Failure) -> None:
        error = failure.error
        assert isinstance(error, EventFailure)
        with self._ledger.during(failure.phase, page.rows):
            action = self._decided(error)
            batch = await self._processor.aside(page, error, self._decided)
        await self._commit(batch)
        log.tell(
            "event_put_aside",
            shard=self._shard,
            position=page.rows[0][POSITION] if page.rows else page.ceiling,
            outcome="parked" if action is Action.PARK else "skipped",
            reason=failure.reason,
            error=type(error).__name__,
        )
        if self._streak is not None and action is Action.PARK:
            await self._streak.grown(batch, error)

    def _decided(self, error: EventFailure) -> Action:
        action = self._policy.action(error)
        if action is Action.PAUSE:
            raise error
        return action

    def _pieces(self, page: Page, failure: Failure) -> list[Part]:
        position = getattr(failure.error, "position", 0) if self._trusts_positions else 0
        found = _around(page, position) if position else []
        return found or _halves(page)


def _halves(page: Page) -> list[Part]:
    """Two ranges; if the first succeeds, the second must fail."""
    if page.rows:
        middle = len(page.rows) // 2
        cut = page.rows[middle - 1][POSITION]
        first, second = page.rows[:middle], page.rows[middle:]
    else:
        cut = (page.floor + page.ceiling) // 2
        first = second = ()
    return [Part(Page(page.floor, cut, first)), Part(Page(cut, page.ceiling, second), guilty=True)]


def _around(page: Page, position: int) -> list[Part]:
    """What is before the event at *position*, it, and what is after it; nothing if it is not there."""
    floor, ceiling, rows = page.floor, page.ceiling, page.rows
    if not rows:
        if not floor < position <= ceiling:
            return []
        before = Page(floor, position - 1, ())
        it, after = Page(position - 1, position, ()), Page(position, ceiling, ())
    else:
        at = next((i for i, row in enumerate(rows) if row[POSITION] == position), None)
        if at is None:
            return []
        start = rows[at - 1][POSITION] if at else floor
        end = position if at + 1 < len(rows) else ceiling
        before, it = Page(floor, start, rows[:at]), Page(start, end, rows[at : at + 1])
        after = Page(end, ceiling, rows[at + 1 :])
    parts = [Part(before), Part(it, guilty=True), Part(after)]
    return [part for part in parts if part.page.floor < part.page.ceiling]
