"""Builds of a projection in the shadow, beside the one that serves: their rows, and each step's part of them.

States: *queued* → *building* → *sealed* → *done*, or from any of these *cancelled* or *failed*. A
build has a number; ``orders:v2~7`` is the label of build 7. Its shards are leased work like any other,
with checkpoints of their own, and write to tables of the same names in a schema of its own.

1. **Begin.** Schema, tables, shards at the beginning, work: one transaction.
2. **Seal**, when the shards of the build have come near the mark: one position for them and for the
   shards of what serves, as far as the first of all has come. All of them stop there.
3. **Swap** (``exchange``), when the build stands at the seal: one short transaction.

Invariant: what is exchanged has applied exactly the events up to the seal, and what served has applied
no event beyond it. So no reader sees a position go back, and nobody's batch falls between the two.

Who takes these steps: ``rebuilder``, on any node that knows the label. What can go wrong is told there.

For callers (all are operations; those that say so need a transaction around them)::

    request(label, purpose="rebuild", scope="{}", parts=1, on_error="pause") -> Build
    read(number) -> Build | None
    open_rebuilds(labels=None) -> list[Build]           labels None: of all
    progress(labels=None, ended=0) -> list[BuildProgress]   one for each shard of an open build
    cancel(label) -> Build | None                       in a transaction; then wake the nodes

    Build: number, label, purpose, scope (JSON), parts, on_error, state, reason, target, outcome (JSON),
           requested_at, started_at, sealed_at, ended_at; .shadow is its label
    BuildProgress: all of Build, known_by, mark; of one shard: position, node, shard_state ...
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from strandline.errors import RebuildUnderWay
from strandline.postgres.operations import Op, many, none, one
from strandline.postgres.statements import SqlFile

CHANNEL = "rebuilds"
"""Where nodes hear that a build wants a step; the payload is the label."""

OPEN = ("queued", "building", "sealed")
_SHADOW = re.compile(r"(?P<label>.+)~(?P<number>[0-9]{1,18})")


@dataclass(frozen=True, slots=True)
class Build:
    """A build, as it is in the database.

    Attributes:
        label: What is built again.
        purpose: ``rebuild``, ``verify`` or ``repair``.
        scope: The part of it that is built, as JSON; ``{}``: all of it.
        parts: Into how many shards the build is cut.
        on_error: What becomes of events that fail: ``pause``, ``skip`` or ``park``.
        state: See the module.
        reason: Why it has failed, was cancelled, or does not get on.
        target: The mark when it began; the position of the swap once it is done.
        outcome: Of a comparison, as JSON.
    """

    number: int
    label: str
    purpose: str
    scope: str
    parts: int
    on_error: str
    state: str
    reason: str
    target: int
    outcome: str | None
    requested_at: datetime
    started_at: datetime | None
    sealed_at: datetime | None
    ended_at: datetime | None

    @property
    def shadow(self) -> str:
        """Its label, e.g. ``orders:v2~7``."""
        return f"{self.label}~{self.number}"

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""
        return self.state in OPEN

    @property
    def is_whole(self) -> bool:
        """Whether it is of all of the projection."""
        return self.scope == "{}"


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """A shard of a build, with the build; without a shard for one that is queued or has ended.

    Attributes:
        known_by: Nodes of the cluster whose code has the projection.
        mark: The high-water mark now.
    """

    number: int
    label: str
    purpose: str
    scope: str
    parts: int
    on_error: str
    state: str
    reason: str
    target: int
    outcome: str | None
    requested_at: datetime
    started_at: datetime | None
    sealed_at: datetime | None
    ended_at: datetime | None
    known_by: int
    mark: int
    shard: str | None
    position: int | None
    seal: int | None
    node: str | None
    shard_state: str | None
    shard_reason: str | None
    category: str | None
    failure: str | None
    rate: float


@dataclass(frozen=True, slots=True)
class Standing:
    """Where both sides of a build stand: the first and the last of their shards.

    Attributes:
        is_settled: What serves is not being cut otherwise.
        seal: Of the build; None: it has none.
        sealed_for: Seconds since it was sealed the last time; None: never.
        pauses: Which shard of the build rests, and why; None: none does.
        live_pauses: The same of what serves.
    """

    mark: int
    is_settled: bool
    live_low: int
    live_high: int
    shadow_low: int
    shadow_high: int
    seal: int | None
    sealed_for: float | None
    pauses: str | None
    live_pauses: str | None

    def is_at_the_seal(self, *, exact: bool) -> bool:
        """Whether they may be exchanged (or compared, if *exact*)."""
        if self.seal is None or self.shadow_low != self.seal or self.live_high > self.seal:
            return False
        return self.live_low == self.seal or not exact


@dataclass(frozen=True, slots=True)
class Sealed:
    """Where shards stop, and how many."""

    position: int
    shards: int


@dataclass(frozen=True, slots=True)
class Count:
    """How many there are."""

    count: int


@dataclass(frozen=True, slots=True)
class Turn:
    """Whether it is the caller's turn."""

    is_ours: bool


@dataclass(frozen=True, slots=True)
class Mark:
    """What a schema is, in words."""

    mark: str


@dataclass(frozen=True, slots=True)
class Label:
    """A label."""

    label: str


@dataclass(frozen=True, slots=True)
class Shadow:
    """The schema of a build that has ended."""

    name: str
    number: int


_sql = SqlFile(__name__)
_REQUEST = _sql.one("request_rebuild", Build)
_READ = _sql.one("read_rebuild", Build)
_OPEN = _sql.many("open_rebuilds", Build)
_PROGRESS = _sql.many("rebuild_progress", BuildProgress)
_LOCK = _sql.one("lock_rebuild", Build)
_LOCK_OPEN = _sql.one("lock_open_rebuild", Build)
_PATIENT = _sql.none("be_patient")
_TURN = _sql.one("take_turn", Turn)
_SNAPSHOT = _sql.none("one_snapshot")
_COUNT = _sql.one("count_building", Count)
CREATE_SHADOW = _sql.none("create_shadow")
MARK_SHADOW = _sql.none("mark_shadow")
DROP_SHADOW = _sql.none("drop_shadow")
DROP_EMPTY = _sql.none("drop_empty")
_SHADOW_MARK = _sql.one("shadow_mark", Mark)
_BEGIN_SHARDS = _sql.one("begin_shards", Count)
_BEGIN_WORK = _sql.one("begin_work", Count)
_BEGUN = _sql.none("note_begun")
_WEIGH = _sql.one("weigh_rebuild", Standing)
_SEAL = _sql.one("seal_build", Sealed)
_SEALED = _sql.none("note_sealed")
_UNSEAL = _sql.one("open_build", Count)
_HOLD = _sql.one("hold_sealed", Sealed)
_ADVANCE = _sql.one("advance_live", Count)
_END_SHARDS = _sql.one("end_shards", Count)
_END_LETTERS = _sql.none("end_letters")
_END_WORK = _sql.one("end_work", Count)
_NOTE = _sql.one("note_rebuild", Build)
_DONE = _sql.none("note_done")
_LEFTOVERS = _sql.many("leftover_labels", Label)
_SHADOWS = _sql.many("shadows", Shadow)


def build_of(label: str) -> tuple[str, int] | None:
    """Label and number of a build, from its own label; None if it is no build's."""
    found = _SHADOW.fullmatch(label)
    return (found["label"], int(found["number"])) if found else None


# ---- asked for, looked at


def request(
    label: str,
    *,
    purpose: str = "rebuild",
    scope: str = "{}",
    parts: int = 1,
    on_error: str = "pause",
) -> Op[Build]:
    """Ask for a build of *label*; nodes that know it begin as soon as there is room.

    Raises:
        RebuildUnderWay: One of this label has not ended.
    """
    found = yield from one(_REQUEST, label, purpose, scope, parts, on_error)
    if found is None:
        raise RebuildUnderWay(
            f"{label} is being built again already (`strandline projections rebuilds` shows how far"
            " it is); wait for it, or cancel it"
        )
    return found


def read(number: int) -> Op[Build | None]:
    """Build *number*, ended or not."""
    return (yield from one(_READ, number))


def open_rebuilds(labels: Sequence[str] | None = None) -> Op[list[Build]]:
    """The builds of *labels* (of all, when None) that have not ended, the oldest first."""
    return (yield from many(_OPEN, None if labels is None else list(labels)))


def progress(labels: Sequence[str] | None = None, *, ended: int = 0) -> Op[list[BuildProgress]]:
    """How far builds are, one row for each shard; and the last *ended* of those that are over."""
    return (yield from many(_PROGRESS, None if labels is None else list(labels), ended))


def weigh(build: Build) -> Op[Standing | None]:
    """Where both sides stand; None if one of them has no shards."""
    return (yield from one(_WEIGH, build.label, build.shadow, build.number))


# ---- steps; each inside a transaction


def lock(number: int) -> Op[Build | None]:
    """Build *number*, nobody else's until the transaction ends; None: somebody is at it."""
    return (yield from one(_LOCK, number))


def be_patient(seconds: float) -> Op[None]:
    """Wait so long for each lock of this transaction."""
    yield from none(_PATIENT.about(milliseconds=str(int(seconds * 1000))))


def take_turn(key: str) -> Op[bool]:
    """Whether nobody else has *key* now; kept until the transaction ends."""
    found = yield from one(_TURN, key)
    return found is not None and found.is_ours


def one_snapshot() -> Op[None]:
    """Let the transaction, which has done nothing yet, see what is committed now, to its end."""
    yield from none(_SNAPSHOT)


def count_building() -> Op[int]:
    """How many builds are under way, queued ones left out."""
    found = yield from one(_COUNT)
    return found.count if found else 0


def mark_of(shadow: str) -> Op[str | None]:
    """Whose the schema *shadow* is, by its mark; None: there is no such schema."""
    found = yield from one(_SHADOW_MARK, shadow)
    return None if found is None else found.mark


def begin(build: Build, *, channel: str) -> Op[None]:
    """Its shards and their work come to be; the tables are there."""
    yield from one(_BEGIN_SHARDS, build.shadow, build.number, build.parts)
    yield from one(_BEGIN_WORK, build.shadow, build.label, build.parts, channel)
    yield from none(_BEGUN, build.number)


def seal(build: Build, *, near: int) -> Op[bool]:
    """Let both sides stop at one position, if the shards of *build*, locked, have come to *near*."""
    found = yield from one(_SEAL, build.label, build.shadow, build.number, near)
    if found is not None:
        yield from none(_SEALED, build.number)
    return found is not None


def unseal(build: Build, reason: str) -> Op[None]:
    """Let both sides go on; it is building again."""
    yield from one(_UNSEAL, build.label, build.shadow, build.number)
    yield from one(_NOTE, build.number, "building", reason, None)


def hold(build: Build, *, exact: bool) -> Op[int | None]:
    """Lock both sides, if they may be exchanged; where they stop."""
    found = yield from one(_HOLD, build.label, build.shadow, build.number, exact)
    return None if found is None else found.position


def advance(label: str, position: int) -> Op[None]:
    """What serves goes on from *position* under a new epoch, unsealed."""
    yield from one(_ADVANCE, label, position)


def note(build: Build, state: str, reason: str, outcome: str | None = None) -> Op[Build | None]:
    """Write down what became of it; None if it had ended before."""
    return (yield from one(_NOTE, build.number, state, reason, outcome))


def note_done(build: Build, position: int) -> Op[None]:
    """Its tables serve from now on, with everything up to *position*."""
    yield from none(_DONE, build.number, position)


def clean(shadow: str, *, channel: str) -> Op[None]:
    """Delete shards, letters and work of a build, by its label. Its schema is dropped apart."""
    yield from one(_END_SHARDS, shadow)
    yield from none(_END_LETTERS, shadow)
    yield from one(_END_WORK, shadow, channel)


def cancel(label: str, *, reason: str = "cancelled") -> Op[Build | None]:
    """End the build of *label* that is under way, whatever its state; None if there is none.

    What serves goes on at once. What the build leaves behind, nodes sweep away.
    """
    found = yield from one(_LOCK_OPEN, label)
    if found is None:
        return None
    yield from one(_UNSEAL, found.label, found.shadow, found.number)
    return (yield from note(found, "cancelled", reason))


# ---- what ended builds have left behind


def leftovers() -> Op[list[str]]:
    """Labels of builds that have ended and still have shards or work."""
    return [row.label for row in (yield from many(_LEFTOVERS))]


def shadows(mark: str) -> Op[list[Shadow]]:
    """Schemas of builds that have ended; *mark* is how theirs begins."""
    return (yield from many(_SHADOWS, mark))
