"""A batch of a composite in the making: what all members write, tell, and put aside."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from strandline.daemon.batch import Batch
from strandline.daemon.feed import Page
from strandline.daemon.letters import Letter, behind, put_aside
from strandline.daemon.member import Member
from strandline.errors import EventFailure, InvalidEvent
from strandline.postgres.operations import AsyncpgSession
from strandline.projections.documents import Key
from strandline.projections.effects import Change
from strandline.projections.failure_policy import Action, Decide
from strandline.projections.fold import POSITION, TENANT, Piece, Row
from strandline.projections.projection import Projection
from strandline.projections.slice import WHOLE, Slice

Saved = tuple[Member, str, str]
Told = tuple[Projection, tuple[Change[Any], ...]]


@dataclass(slots=True)
class Draft:
    """A batch in the making.

    Attributes:
        page: What it is made of.
        late: Its events come late: they are replayed.
        within: The slice whose documents a replayed letter without a key stands for.
    """

    page: Page
    late: bool = False
    within: Slice = WHOLE
    work: list[Saved] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    letters: dict[tuple[Key, int], Letter] = field(default_factory=dict)

    def wait(self, row: Row, key: Key) -> None:
        """The event waits, as *key* does."""
        self.letters.setdefault((key, row[POSITION]), behind(row, key))

    def wait_each(self, member: Member, pieces: Iterable[Piece]) -> None:
        """The events of *pieces* wait for the documents that a letter without a key stands for."""
        rows = {row[POSITION]: row for row in self.page.rows}
        for piece in pieces:
            if piece[0][1] and self.within.holds(*piece[0]):
                self.wait(rows[piece[-1]], member.parked(piece[0]))

    def fail(self, row: Row, key: Key, error: EventFailure, decide: Decide) -> None:
        """The event is put aside for *key*."""
        self.letters[key, row[POSITION]] = put_aside(row, key, error, decide(error))

    def fail_whole(self, row: Row, member: Member, error: EventFailure, decide: Decide) -> None:
        """The event is put aside for all documents of *member*: no key can say for which."""
        decide(error)  # it may say pause; nothing can wait behind it
        key = member.parked((row[TENANT], ""))
        for one in [one for one in self.letters if one[0][1].startswith(key[1])]:
            del self.letters[one]
        self.letters[key, row[POSITION]] = put_aside(row, key, error, Action.SKIP)

    async def save(self, session: AsyncpgSession) -> None:
        """Write the documents."""
        await saved(session, self.work)

    def batch(self) -> Batch:
        """The batch."""
        letters = tuple(self.letters.values())
        return Batch(self.page, tuple(self.work) or None, letters, told=tuple(self.told))


async def saved(session: AsyncpgSession, work: Iterable[Saved]) -> None:
    """Write what members have changed, inside the session's transaction.

    Raises:
        ApplyFailed: A state cannot be stored.
    """
    for member, upserted, gone in work:
        try:
            await session.run(member.documents.save_changes(upserted, gone))
        except InvalidEvent as error:
            raise member.not_stored(error) from error
