"""What operators do with dead letters: look, ask for another try, put in other data, discard.

Asking only writes down what is wanted; the owner of the shard does it (``replay``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from strandline.daemon.letters import CHANNEL, PARKED, SKIPPED, Number
from strandline.errors import ConflictError, NotFound
from strandline.postgres.operations import Op, many, none, one
from strandline.postgres.statements import SqlFile
from strandline.projections.fold import Row

OPEN = (PARKED, SKIPPED)
STATUSES = (*OPEN, "resolved", "discarded", "superseded")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An event that a projection or subscription could not process, or one parked behind it.

    Attributes:
        label: Of the projection or subscription, e.g. ``orders:v2``.
        shard: Which of its shards wrote it.
        key: What it belongs to: the stream, the document's id, the row's key; empty if that cannot
            be told.
        position: Of the event.
        status: ``parked`` (later events of the key wait), ``skipped``, ``resolved``, ``discarded`` or
            ``superseded`` (a rebuild has taken care of it).
        category: ``apply``, ``undecodable`` or ``unknown_type``; None for one that waits behind
            another and has not failed itself.
        error: JSON: class, message, cause and handler.
        fingerprint: The same for failures that look alike.
        attempts: How often it has failed.
        data: JSON that an operator has put in the place of the event's.
        reason: What an operator said of it.
        retry_at: When somebody asked for another try that has not been made yet.
    """

    id: int
    label: str
    shard: str
    tenant: str
    key: str
    position: int
    stream: str
    version: int
    type: str
    status: str
    category: str | None
    error: str | None
    fingerprint: str
    attempts: int
    data: str | None
    reason: str
    retry_at: datetime | None
    created_at: datetime
    failed_at: datetime | None
    closed_at: datetime | None

    @property
    def is_open(self) -> bool:
        """Whether something is still to be done about it."""
        return self.status in OPEN


@dataclass(frozen=True, slots=True)
class LetterGroup:
    """Open dead letters that failed of the same. ``example`` is the id of the latest."""

    label: str
    fingerprint: str
    category: str
    error_class: str
    message: str
    type: str
    count: int
    first_at: datetime
    last_at: datetime
    example: int


@dataclass(frozen=True, slots=True)
class Which:
    """Which letters are meant; None lets all through.

    Attributes:
        label: A label, or a name for all its versions.
    """

    label: str | None = None
    stream: str | None = None
    fingerprint: str | None = None
    ids: tuple[int, ...] | None = None

    @property
    def is_everything(self) -> bool:
        """Whether nothing is left out."""
        return self == Which()


class Place(NamedTuple):
    """Where letters are: a parked key; or one event whose key is not known, if *position* is not 0."""

    tenant: str
    key: str
    position: int = 0


@dataclass(frozen=True, slots=True)
class DiscardedKey:
    """What discarded letters were parked for."""

    label: str
    tenant: str
    key: str
    count: int


@dataclass(frozen=True, slots=True)
class LetterId:
    """A letter."""

    id: int


@dataclass(frozen=True, slots=True)
class LetterRow:
    """The event of a letter."""

    id: int
    position: int
    tenant: str
    stream: str
    version: int
    type: str
    data: str
    recorded_at: datetime
    event: UUID
    metadata: str | None

    @property
    def row(self) -> Row:
        """As pages have it."""
        return (
            *(self.position, self.tenant, self.stream, self.version, self.type),
            *(self.data, self.recorded_at, self.event, self.metadata),
        )


_sql = SqlFile(__name__)
_LIST = _sql.many("list_letters", DeadLetter)
_GROUPS = _sql.many("group_letters", LetterGroup)
_ASK_PARKED = _sql.one("ask_for_parked", Number)
_ASK_SKIPPED = _sql.one("ask_for_skipped", Number)
_ASK_PLACES = _sql.one("ask_for_places", Number)
_HOLD = _sql.one("hold_letters", Number)
_DISCARD = _sql.many("discard_letters", DiscardedKey)
_WAKE = _sql.none("wake_keys")
_EDIT = _sql.many("edit_letter", LetterId)
_RESOLVE = _sql.one("resolve_letters", Number)
_ROWS = _sql.many("letter_rows", LetterRow)
_TELL = _sql.none("tell_of_letters")


def listed(
    which: Which, *, statuses: Sequence[str] | None = OPEN, after: int = 0, limit: int = 100
) -> Op[list[DeadLetter]]:
    """Letters by id, after the id *after*; of every status if *statuses* is None."""
    ids = None if which.ids is None else list(which.ids)
    wanted = None if statuses is None else list(statuses)
    filters = (which.label, wanted, which.stream, which.fingerprint, ids)
    return (yield from many(_LIST, *filters, after, limit))


def letter(number: int) -> Op[DeadLetter]:
    """One letter.

    Raises:
        NotFound: There is none of this id.
    """
    found = yield from listed(Which(ids=(number,)), statuses=None, limit=1)
    if not found:
        raise NotFound(f"there is no dead letter {number}")
    return found[0]


def groups(label: str | None = None) -> Op[list[LetterGroup]]:
    """Open letters by what they failed of, the most frequent first."""
    return (yield from many(_GROUPS, label))


def ask_for_parked(which: Which) -> Op[int]:
    """Have the parked keys that *which* is about tried from their first letters on; how many keys."""
    ids = None if which.ids is None else list(which.ids)
    found = yield from one(_ASK_PARKED, which.label, which.stream, which.fingerprint, ids)
    return found.count if found else 0


def ask_for_places(label: str, shard: str, places: Sequence[Place]) -> Op[int]:
    """Have the letters at *places* tried; how many there are still."""
    tenants, keys = [one.tenant for one in places], [one.key for one in places]
    positions = [one.position for one in places]
    found = yield from one(_ASK_PLACES, label, shard, tenants, keys, positions)
    return found.count if found else 0


def ask_for_skipped(ids: Sequence[int]) -> Op[int]:
    """Have skipped letters tried, each alone; how many."""
    found = yield from one(_ASK_SKIPPED, list(ids))
    return found.count if found else 0


def discard(ids: Sequence[int], reason: str) -> Op[int]:
    """Give open letters up, inside the session's transaction; how many.

    What waits behind one of them becomes due.
    """
    yield from one(_HOLD, list(ids))
    keys = yield from many(_DISCARD, list(ids), reason)
    if keys:
        columns = zip(*((one.label, one.tenant, one.key) for one in keys), strict=True)
        yield from none(_WAKE, *(list(column) for column in columns))
    return sum(one.count for one in keys)


def edit(number: int, data: str, reason: str) -> Op[list[int]]:
    """Put *data* (JSON) in the place of what the letter's event holds, for this projection alone.

    The letter's id, and with it those of the other slices' letters of an event without a key.

    Raises:
        ConflictError: The letter is closed.
    """
    found = yield from many(_EDIT, number, data, reason)
    if not found:
        raise ConflictError(f"dead letter {number} is closed: nothing was changed")
    return sorted(one.id for one in found)


def resolve(ids: Sequence[int], reason: str) -> Op[int]:
    """Close skipped letters that a rebuild has taken care of; how many were open still."""
    found = yield from one(_RESOLVE, list(ids), reason)
    return found.count if found else 0


def rows_of(ids: Sequence[int]) -> Op[dict[int, Row]]:
    """The events of letters, by the letters' ids; those no longer in the log are missing."""
    return {row.id: row.row for row in (yield from many(_ROWS, list(ids)))}


def tell(schema: str) -> Op[None]:
    """Let the nodes look at once."""
    yield from none(_TELL, f"{schema}.{CHANNEL}")
