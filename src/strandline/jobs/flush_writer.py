"""Sends what the completer has gathered, and finds out what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from strandline.jobs import completion
from strandline.jobs.completion import Settled
from strandline.jobs.flushes import Flush
from strandline.postgres.line import Line
from strandline.postgres.statements import Statement

SHOWN = ("completed", "cancelled", "dead")  # what somebody who awaits the result wants to know
ALL_QUEUES = ""


@dataclass(slots=True)
class Written:
    """What became of a flush.

    Attributes:
        completed: Attempts that are written as completed.
        settled: Written as something else.
        untold: They have ended, and nothing is left to tell by whom.
        lost: Not written, since their claim was lost.
        lost_ids: Some of these.
        queues: With something available now.
        keys: Whose next one is to be promoted.
        is_shown: There is something to see for somebody who awaits a result.
    """

    completed: int = 0
    settled: int = 0
    untold: int = 0
    lost: int = 0
    lost_ids: Sequence[int] = ()
    queues: set[str] = field(default_factory=set)
    keys: set[tuple[str, str]] = field(default_factory=set)
    is_shown: bool = False

    def count(self, settled: Sequence[Settled]) -> None:
        """*settled* are written."""
        completed = sum(one.ending == "completed" for one in settled)
        self.completed += completed
        self.settled += len(settled) - completed
        self.is_shown = self.is_shown or any(one.ending in SHOWN for one in settled)


class FlushWriter:
    """Writes flushes on one line.

    Args:
        line: The completer's.
    """

    def __init__(self, line: Line) -> None:
        self._line = line

    async def write(self, flush: Flush) -> Written:
        """Write *flush*, as one commit."""
        if flush.is_doubtful:
            return await self._again(flush)
        if flush.groups is not None:
            arguments: tuple[Any, ...] = completion.completed(flush.groups)
            return await self._at_once(flush, completion.COMPLETE, *arguments)
        if flush.is_kept and not flush.is_stripped:
            arguments = completion.kept(flush.items)
            return await self._at_once(flush, completion.COMPLETE_KEPT, *arguments)
        written = Written()
        settled = await self._settle(flush, written)
        if len(settled) < flush.size:
            found = {(one.id, one.claim) for one in settled}
            written.lost_ids = [one.id for one in flush.held() if one[:2] not in found]
            written.lost = flush.size - len(settled)
        return written

    async def locked(self, flush: Flush) -> set[int]:
        """Jobs of *flush* whose rows somebody else has locked."""
        found = await self._line.run(completion.locked(flush.held()))
        return {one.id for one in found}

    async def _at_once(self, flush: Flush, statement: Statement[Any], *arguments: Any) -> Written:
        """Write completions, of which only their number is asked back."""
        count = await self._line.affected(statement, *arguments)
        written = Written(completed=count, is_shown=flush.is_kept)
        if count < flush.size:
            written.lost = flush.size - count
            with suppress(Exception):  # only for the log
                found = await self._line.run(completion.still_there(flush.held()))
                written.lost_ids = [one.id for one in found]
        return written

    async def _settle(self, flush: Flush, written: Written) -> list[Settled]:
        if flush.is_linked:
            linked = await self._line.run(completion.settle_linked(flush.items))
            settled, written.queues, written.keys = linked
        else:
            op = completion.settle(flush.items)
            if flush.groups is not None:
                op = completion.settle_completed(flush.groups)
            settled = await self._line.run(op)
            written.queues = completion.available(settled)
        written.count(settled)
        return settled

    async def _again(self, flush: Flush) -> Written:
        """Send once more what may be written already, and find out what was."""
        written = Written()
        settled = await self._settle(flush, written)
        found = {(one.id, one.claim) for one in settled}
        missing = [one for one in flush.held() if one[:2] not in found]
        if not missing:
            return written
        lost: list[int] = []
        endings = {one[:2]: one.ending for one in missing}
        for trace in await self._line.run(completion.find_traces(missing)):
            ending = endings[trace.id, trace.claim]
            ours = completion.was_ours(ending, trace)
            if ours is None:
                written.untold += 1
            elif not ours:
                lost.append(trace.id)
            elif ending == "completed":
                written.completed += 1
            else:
                written.settled += 1
        written.lost, written.lost_ids = len(lost), lost
        if flush.groups is None:  # what followed was written with them, and told to nobody
            written.queues = {ALL_QUEUES}
            written.keys |= {(one.job.queue, one.job.key) for one in flush.items if one.job.key}
            written.is_shown = True
        return written
