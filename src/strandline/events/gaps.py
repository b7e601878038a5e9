"""The ledger of settled gaps, the live ones above the mark, and the transactions that hold them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from strandline.errors import SchemaOutOfDate
from strandline.postgres.operations import Op, many, one
from strandline.postgres.statements import SqlFile

LOOK = 50_000  # visible rows above the mark that one look takes in


@dataclass(frozen=True, slots=True)
class Mark:
    """The published high-water mark: no event at or below ``position`` can still appear."""

    position: int
    settled_at: datetime


@dataclass(frozen=True, slots=True)
class Gap:
    """Numbers that were passed without an event.

    Attributes:
        first: Lowest number of the gap.
        last: Highest number of the gap.
        kind: ``rolled_back`` is proved; ``forced`` was skipped after ``force_after``.
        settled_at: When the mark passed it.
        watched: A forced gap whose holders have not all ended yet.
        proof: JSON; ``facts`` has it decoded.
    """

    first: int
    last: int
    kind: str
    settled_at: datetime
    watched: bool
    proof: str

    @property
    def numbers(self) -> int:
        """How many numbers the gap has."""
        return self.last - self.first + 1

    @property
    def facts(self) -> dict[str, Any]:
        """What the decision was based on.

        ``highest`` (the position whose proof covered it), ``taken_at``, ``holders`` (how many
        transactions were waited for), ``waited`` (seconds); forced gaps have ``keys`` (holders
        still there), ``shards`` (which had not passed it) and perhaps ``late``.
        """
        found: dict[str, Any] = json.loads(self.proof)
        return found


@dataclass(frozen=True, slots=True)
class Holder:
    """A transaction that may still fill a gap. None where the role may not see it.

    Attributes:
        pid: Of its backend; None for a prepared transaction.
        application: Its ``application_name``.
        user: Role.
        state: As in ``pg_stat_activity``, or ``prepared``.
        age: Seconds since it began, or was prepared.
        client: Address; None for a local socket too.
        query: Start of its last statement.
        prepared: Name given to PREPARE TRANSACTION.
        keys: Every name it has in ``pg_locks``.
    """

    pid: int | None
    application: str | None
    user: str | None
    state: str | None
    age: float | None
    client: str | None
    query: str | None
    prepared: str | None
    keys: list[str] = field(default_factory=list, repr=False)

    @property
    def who(self) -> str:
        """One line for people."""
        name = f"prepared transaction {self.prepared!r}" if self.pid is None else f"pid {self.pid}"
        age = "" if self.age is None else f" for {self.age:.1f} s"
        said = {
            "application": self.application,
            "user": self.user,
            "client": self.client,
            "last query": " ".join(self.query.split())[:80] if self.query else None,
        }
        known = [f"{what} {value!r}" for what, value in said.items() if value]
        return f"{name} ({', '.join([f'{self.state}{age}', *known])})"

    @property
    def cure(self) -> str:
        """What an operator can do about it."""
        if self.pid is None:
            return f"COMMIT PREPARED or ROLLBACK PREPARED {self.prepared!r}"
        return f"strandline gaps cancel {self.pid} (or SELECT pg_terminate_backend({self.pid}))"


@dataclass(frozen=True, slots=True)
class LiveGap:
    """Missing numbers above the mark: still open, or dead and about to be settled."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class LiveGaps:
    """What lies open above the mark, and who may still fill it."""

    gaps: list[LiveGap]
    holders: list[Holder]


@dataclass(frozen=True, slots=True)
class LateEvents:
    """Events that turned up in a forced gap: all of them, and how many are new."""

    first: int
    last: int
    events: int
    fresh: int


@dataclass(frozen=True, slots=True)
class _Position:
    position: int


@dataclass(frozen=True, slots=True)
class _Ended:
    ended: bool


_sql = SqlFile(__name__)
_read_mark = _sql.one("read_mark", Mark)
_highest_position = _sql.one("highest_position", _Position)
_list_gaps = _sql.many("list_gaps", Gap)
_open_gaps = _sql.many("open_gaps", LiveGap)
_holders = _sql.many("holders", Holder)
_cancel_holder = _sql.one("cancel_holder", _Ended)
_watch_forced = _sql.many("watch_forced", LateEvents)


def read_mark() -> Op[Mark]:
    """Answer the published mark."""
    found = yield from one(_read_mark)
    if found is None:
        raise lost_row()
    return found


def highest_position() -> Op[int]:
    """Answer the highest visible position, 0 before the first event."""
    found = yield from one(_highest_position)
    return found.position if found else 0


def list_gaps(limit: int = 100, after: int = 0, *, forced: bool = False) -> Op[list[Gap]]:
    """Answer settled gaps that begin after position *after*, in order, at most *limit*.

    Args:
        limit: Gaps at the most.
        after: They begin after this position.
        forced: Only those that were skipped without proof.
    """
    return (yield from many(_list_gaps, limit, after, forced))


def holders() -> Op[list[Holder]]:
    """Answer the transactions that may still fill a gap, the oldest first."""
    return (yield from many(_holders))


def live_gaps(limit: int = 100) -> Op[LiveGaps]:
    """Answer up to *limit* gaps above the mark, and the transactions that may still fill them.

    Which transaction owns which number is not known; one that is not listed owns none of them.
    """
    gaps = yield from many(_open_gaps, LOOK, limit)
    found = yield from many(_holders)
    return LiveGaps(gaps, found)


def cancel_holder(pid: int) -> Op[bool]:
    """End the backend *pid* if it holds up the mark; answer whether it did and was ended.

    A backend that holds no lock on ``streams`` is left alone. Its transaction rolls back.
    """
    found = yield from one(_cancel_holder, pid)
    return found is not None and found.ended


def watch_forced(present: Iterable[str]) -> Op[list[LateEvents]]:
    """Note events that turned up in forced gaps; end the watch where no holder is *present*.

    Args:
        present: Keys of the holders, read by an earlier statement than this one.
    """
    return (yield from many(_watch_forced, list(present)))


def lost_row() -> Exception:
    """The error for an empty ``high_water`` table."""
    return SchemaOutOfDate(
        "the table high_water has lost its only row; with every node stopped, INSERT INTO"
        " high_water DEFAULT VALUES makes the mark walk up again from 0"
    )
