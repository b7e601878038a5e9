"""A shard's checkpoint, fenced: claimed under an epoch, moved only from where it was left."""

from __future__ import annotations

from dataclasses import dataclass, replace
from uuid import UUID

from strandline.errors import CheckpointMoved, LeaseLost
from strandline.postgres.faults import sqlstate
from strandline.postgres.operations import Op, many, none, one
from strandline.postgres.statements import SqlFile
from strandline.projections.slice import parsed

PATIENCE = 1.0  # seconds a claim waits for a batch of the previous owner that is being committed


@dataclass(frozen=True, slots=True)
class Claimed:
    """The answer to a claim."""

    epoch: int
    position: int
    seal: int | None


@dataclass(frozen=True, slots=True)
class Owner:
    """Who has a shard, and where it stands."""

    owner: UUID | None
    epoch: int
    position: int
    node: str


@dataclass(frozen=True, slots=True)
class Moved:
    """The checkpoint after a move."""

    position: int


@dataclass(frozen=True, slots=True)
class ShardPosition:
    """Where a shard stands."""

    name: str
    position: int


_sql = SqlFile(__name__)
CLAIM = _sql.one("claim_shard", Claimed)
READ_CLAIM = _sql.one("read_claim", Claimed)
READ_OWNER = _sql.one("read_owner", Owner)
MOVE = _sql.one("move_checkpoint", Moved)
COMMIT_DOCUMENTS = _sql.one("commit_documents", Moved)
RESET = _sql.none("reset_shard")
POSITIONS = _sql.many("read_positions", ShardPosition)
TELL = _sql.none("tell_status")
TAKE_WRITE = _sql.none("take_write")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The right to process a shard from *position* on, good while no later epoch exists.

    Attributes:
        seal: Where it must stop, since the projection is about to be cut otherwise.
    """

    shard: str
    owner: UUID
    epoch: int
    position: int
    seal: int | None = None

    def at(self, position: int) -> Checkpoint:
        """The same claim at a later position."""
        return replace(self, position=position)

    def lost(self) -> CheckpointMoved:
        """The error for a write that the fence refused."""
        return CheckpointMoved(self.shard, epoch=self.epoch, position=self.position)


def claim(
    shard: str,
    owner: UUID,
    *,
    start: int = 0,
    granted: int | None = None,
    only_free: bool = False,
) -> Op[Checkpoint]:
    """Become the owner of *shard* under a new epoch; a shard never run begins at *start*.

    Args:
        shard: Its name.
        owner: Who claims it.
        start: Where a shard that was never run begins.
        granted: Epoch of the assignment under which *owner* may run it. None: whoever claims has
            it, as nobody assigns (mode ``solo``).
        only_free: Leave the shard to whoever has it.

    Raises:
        LeaseLost: The assignment is no longer *owner*'s, or the shard no longer exists, since its
            projection was cut into another number, or it is not free. Stop; do not try again.
        DatabaseUnavailable: The shard's row was locked for ``PATIENCE`` seconds by a transaction of
            its previous owner; see ``is_locked``.
    """
    label, part = parsed(shard)
    patience = f"{int(PATIENCE * 1000)}ms"
    found = yield from one(
        CLAIM, shard, owner, start, granted, label, part.parts, patience, only_free
    )
    if found is None:
        reason = "another node has it, or its projection is cut otherwise by now"
        raise LeaseLost(shard, epoch=granted or 0, reason=reason)
    return Checkpoint(shard, owner, found.epoch, found.position, found.seal)


def is_locked(error: BaseException) -> bool:
    """Whether a claim failed since somebody's transaction holds the shard's row."""
    return error.__cause__ is not None and sqlstate(error.__cause__) == "55P03"


def reread(checkpoint: Checkpoint) -> Op[Checkpoint]:
    """Where the shard stands now, after a commit whose outcome is unknown.

    Raises:
        CheckpointMoved: Another epoch owns it: stop.
    """
    found = yield from one(READ_CLAIM, checkpoint.shard, checkpoint.owner, checkpoint.epoch)
    if found is None:
        raise checkpoint.lost()
    return replace(checkpoint, position=found.position, seal=found.seal)


def owner_of(shard: str) -> Op[Owner | None]:
    """Who has *shard* now, for people."""
    return (yield from one(READ_OWNER, shard))


def move(checkpoint: Checkpoint, ceiling: int) -> Op[None]:
    """Move to *ceiling* inside the session's transaction.

    Raises:
        CheckpointMoved: Another epoch owns the shard: roll back and stop.
    """
    c = checkpoint
    moved = yield from one(MOVE, c.shard, c.owner, c.epoch, c.position, ceiling)
    if moved is None:
        raise checkpoint.lost()


def reset(shard: str) -> Op[None]:
    """Send *shard* back to the beginning; its present owner is refused from now on."""
    yield from none(RESET, shard)


def positions(shards: list[str]) -> Op[dict[str, int]]:
    """The positions of *shards*; those never claimed are missing."""
    rows = yield from many(POSITIONS, shards)
    return {row.name: row.position for row in rows}


@dataclass(frozen=True, slots=True)
class Trouble:
    """What an agent says of a failure that it has not got over.

    Attributes:
        failure: JSON, see ``failures.Failure.json``.
        attempts: Tries since the last batch that was committed, or since the last pause.
        pauses: Pauses since then.
        seconds: Until the next try; None if there will be none.
    """

    reason: str
    failure: str
    category: str
    phase: str
    attempts: int
    pauses: int
    seconds: float | None


def tell(
    shard: str, state: str, *, node: str, rate: float = 0, trouble: Trouble | None = None
) -> Op[None]:
    """Write down how an agent is doing, for people."""
    t = trouble
    if t is None:
        yield from none(TELL, shard, state, node, "", None, rate, None, None, 0, 0, None)
        return
    what = (t.reason, t.failure, rate, t.category, t.phase, t.attempts, t.pauses, t.seconds)
    yield from none(TELL, shard, state, node, *what)


def take_write() -> Op[None]:
    """Nothing, if the server takes writes.

    Raises:
        Unavailable: It does not, or does not answer.
    """
    yield from none(TAKE_WRITE)
