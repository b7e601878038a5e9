"""Dead letters: events put aside, written in the transaction that moves the checkpoint past them.

States of a letter: *parked* or *skipped* → *resolved*, *discarded* or *superseded*. A key (stream,
document, row) is *parked* while it has a parked letter; its later events become letters behind that
one, with no category, as they have not failed themselves.

Invariants:

* Every event that a checkpoint has passed is applied, or in an open letter, or was discarded by
  somebody: letters and checkpoint are one transaction (I9).
* Events of one key are applied in the order of their positions: a parked key is replayed from its
  first letter on, and leaves ``Parking`` when none is left.
* A letter is open once for a label, tenant, key and position: whoever fails on it again counts up
  its attempts. Without a key it is open once for each shard, and stands for the documents of the
  slice in its shard's name, however the label is cut since: others may have applied the event.

What can go wrong, and what then:

* An operator discards the first letter of a key while the shard's owner writes one behind it. Both
  lock that first letter: the one who comes second sees what the other did, and makes the new first
  letter due.
* An operator discards or edits a letter that is being replayed: ``close_letters`` finds fewer than
  it was given, the replay rolls back (``LettersChanged``) and reads again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from strandline.daemon import described
from strandline.daemon.checkpoint import Checkpoint, move
from strandline.errors import ConflictError
from strandline.postgres.operations import Op, many, none, one
from strandline.postgres.statements import SqlFile
from strandline.projections.documents import Key
from strandline.projections.failure_policy import Action
from strandline.projections.fold import POSITION, STREAM, TENANT, TYPE, VERSION, Row
from strandline.projections.slice import parsed

PARKED = "parked"
SKIPPED = "skipped"
CHANNEL = "letters"
MOST_PRUNED = 1_000  # letters forgotten in one statement


class LettersChanged(ConflictError):  # noqa: N818 - named as those in errors.py
    """A letter was discarded or edited while it was being replayed: read again."""


@dataclass(frozen=True, slots=True)
class Letter:
    """An event that is put aside by a batch about to be committed.

    Attributes:
        tenant: Of the event.
        key: What it belongs to: the stream, the document's id or the row's key; empty if that
            cannot be told.
        status: ``parked``: later events of the key wait behind it; or ``skipped``.
        category: ``apply``, ``undecodable`` or ``unknown_type``; None for one that has not failed
            itself, and waits behind one of the same key that has.
        error: JSON: class, message, cause, handler.
        fingerprint: The same for failures that look alike, so that they can be counted together.
        data: JSON that an operator has put in the place of the event's.
    """

    tenant: str
    key: str
    position: int
    stream: str
    version: int
    type: str
    status: str
    category: str | None = None
    error: str | None = None
    fingerprint: str = ""
    data: str | None = None


class Closed(NamedTuple):
    """A letter that a batch resolves, and what its data was when it was read."""

    id: int
    seen: str


@dataclass(frozen=True, slots=True)
class ParkedKey:
    """What waits. ``stuck``: its first letter has not failed itself, and nobody has asked for it."""

    tenant: str
    key: str
    stuck: bool


@dataclass(frozen=True, slots=True)
class Label:
    """A projection or subscription."""

    label: str


@dataclass(frozen=True, slots=True)
class Number:
    """How many."""

    count: int


@dataclass(frozen=True, slots=True)
class OpenCount:
    """How many letters of a label are open."""

    label: str
    status: str
    count: int


@dataclass(frozen=True, slots=True)
class Due:
    """A letter that somebody asked for.

    Attributes:
        hash: Of its stream; the slice of *parts* that owns the stream is ``hash % parts``, from 0.
        is_due: Whether it may be tried: it is skipped, or the first letter of its key is due.
    """

    id: int
    tenant: str
    key: str
    status: str
    hash: int
    is_due: bool


@dataclass(frozen=True, slots=True)
class Waiting:
    """A parked letter."""

    id: int
    tenant: str
    key: str
    position: int


@dataclass(frozen=True, slots=True)
class Replayed:
    """A letter with its event. ``event`` is the event's id; None if it is not in the log."""

    id: int
    shard: str
    tenant: str
    key: str
    position: int
    stream: str
    version: int
    type: str
    data: str | None
    recorded_at: datetime | None
    event: UUID | None
    metadata: str | None
    edited: str | None
    seen: str
    asked: datetime | None

    @property
    def row(self) -> Row:
        """The event as pages have it, with the operator's data if there are some."""
        return (
            *(self.position, self.tenant, self.stream, self.version, self.type),
            *(self.data, self.recorded_at, self.event, self.metadata),
        )

    @property
    def closed(self) -> Closed:
        """What a batch needs to resolve it."""
        return Closed(self.id, self.seen)


_sql = SqlFile(__name__)
PARKED_KEYS = _sql.many("parked_keys", ParkedKey)
WAKE = _sql.none("wake_first_letters")
WRITE = _sql.none("write_letters")
CLOSE = _sql.one("close_letters", Number)
FAIL = _sql.none("fail_letter")
DUE_LABELS = _sql.many("due_labels", Label)
DUE = _sql.many("due_letters", Due)
FIRST = _sql.many("first_letters", Waiting)
TO_REPLAY = _sql.many("letters_to_replay", Replayed)
CALM = _sql.none("calm_letters")
PRUNE = _sql.none("prune_letters")
COUNT = _sql.many("count_open_letters", OpenCount)

_encode = msgspec.json.Encoder().encode


# ---- what a batch writes


def put_aside(row: Row, key: Key, error: BaseException, action: Action) -> Letter:
    """The letter of the event *row*, which failed with *error* for *key*."""
    return Letter(
        *_event(row, key),
        status=PARKED if action is Action.PARK else SKIPPED,
        category=described.category(error),
        error=described.as_json(error),
        fingerprint=described.fingerprint(error, row[TYPE]),
    )


def behind(row: Row, key: Key) -> Letter:
    """The letter of the event *row*, which waits behind one of *key* that failed."""
    return Letter(*_event(row, key), status=PARKED)


def settle(
    checkpoint: Checkpoint,
    ceiling: int,
    letters: Sequence[Letter] = (),
    closed: Sequence[Closed] = (),
) -> Op[None]:
    """``move``, and with it the letters of a batch: first of all in the session's transaction.

    Raises:
        CheckpointMoved: Another epoch owns the shard: roll back and stop.
        LettersChanged: One of *closed* is not what it was: roll back and read again.
    """
    yield from move(checkpoint, ceiling)
    if closed:
        yield from close(closed)
    if letters:
        yield from write(checkpoint.shard, letters)


def write(shard: str, letters: Sequence[Letter]) -> Op[None]:
    """Write *letters* of *shard* inside the session's transaction; those open already count up."""
    rows = []
    for letter in letters:
        row: dict[str, Any] = asdict(letter)
        for name in ("error", "data"):
            text = row[name]
            row[name] = None if text is None else msgspec.Raw(text.encode())
        rows.append(row)
    yield from none(WRITE, parsed(shard)[0], shard, _encode(rows).decode())


def close(closed: Sequence[Closed]) -> Op[None]:
    """Resolve letters inside the session's transaction, which has moved the checkpoint.

    Raises:
        LettersChanged: One is closed already, or was edited: roll back.
    """
    found = yield from one(CLOSE, [one.id for one in closed], [one.seen for one in closed])
    if found is None or found.count != len(closed):
        raise LettersChanged("letters were discarded or edited while they were being replayed")


def _event(row: Row, key: Key) -> tuple[str, str, int, str, int, str]:
    tenant, name = key
    assert tenant == row[TENANT]
    return tenant, name, row[POSITION], row[STREAM], row[VERSION], row[TYPE]


# ---- what the owner of a shard asks


def parked_keys(label: str) -> Op[list[Key]]:
    """The keys of *label* whose events wait: of all its shards."""
    found = yield from many(PARKED_KEYS, label)
    stuck = [row for row in found if row.stuck]
    if stuck:
        yield from none(WAKE, label, [one.tenant for one in stuck], [one.key for one in stuck])
    return [(row.tenant, row.key) for row in found]


def due(labels: Sequence[str]) -> Op[list[str]]:
    """Those of *labels* that have letters to be tried again."""
    return [row.label for row in (yield from many(DUE_LABELS, list(labels)))]


def due_letters(label: str, after: int, most: int) -> Op[list[Due]]:
    """The first *most* letters asked for, of all shards, with ids after *after*."""
    return (yield from many(DUE, label, after, most))


def first_letters(label: str, keys: Sequence[Key], most: int) -> Op[list[Waiting]]:
    """The first *most* parked letters of *keys*, by position."""
    tenants, names = [key[0] for key in keys], [key[1] for key in keys]
    return (yield from many(FIRST, label, tenants, names, most))


def to_replay(ids: Sequence[int], size: int) -> Op[list[Replayed]]:
    """Those of *ids* that are open, by position, until they have *size* bytes of JSON."""
    return (yield from many(TO_REPLAY, list(ids), size))


def fail(letter: Replayed, error: BaseException) -> Op[None]:
    """*letter* was tried again and has failed with *error*."""
    yield from none(
        FAIL,
        letter.id,
        letter.seen,
        letter.asked,
        described.category(error),
        described.as_json(error),
        described.fingerprint(error, letter.type),
    )


def calm(ids: Sequence[int]) -> Op[None]:
    """Take the request off those of *ids* that are not the first of their keys."""
    yield from none(CALM, list(ids))


# ---- housekeeping


def prune(days: float) -> Op[None]:
    """Forget letters closed *days* ago, some at a time."""
    yield from none(PRUNE, days, MOST_PRUNED)


def count_open() -> Op[list[OpenCount]]:
    """How many letters are open."""
    return (yield from many(COUNT))
