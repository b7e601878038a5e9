"""Retiring a version of a projection: what it has written, its shards and its letters go.

Two steps, each a transaction; who is interrupted between them retires it again.

1. **Bury.** Its shards, slicing, work and letters go, and a tombstone stays in ``lifecycles``. Agents
   that run it are refused by the fence and end quietly; appends of old code leave it alone.
2. **Drop** its tables.

The tombstone is there because old code comes back: a process that is started again would declare the
label anew, and build it, and raise its side effects, from the first event on. It opens all the same, so
that a version retired too early stops nothing else that this process does; it only leaves the label out.

Side effects are raised by one version of a name at a time. If it is this one, the newest that stays
takes over, beyond the position where this one has ended. That is exact only if this one stands at one
position, and the newest has not passed it: else the change is refused for now, and tried again.
Under load that would not come about by chance, so both are sealed for a moment (see ``slicing``): all
of their shards stop at one position. Whoever cares for cuts takes such a seal away sooner or later, so
an interrupted retirement leaves nothing standing; while it goes on it seals again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from strandline.daemon import slicing
from strandline.daemon.slicing import Changed
from strandline.errors import ConflictError, UnknownProjection
from strandline.postgres.operations import Op, many, none, one
from strandline.postgres.statements import SqlFile, quoted
from strandline.projections import lifecycles
from strandline.projections.lifecycles import HeldShard, HeldSlicing

NEAR = 10_000  # positions that a shard may have to go while others wait for it
_LABEL = re.compile(r"([a-z][a-z0-9_]{0,39}):v([1-9][0-9]{0,3})")


class NotYetError(Exception):
    """The version still has to raise side effects that the newest has passed silently.

    Attributes:
        heir: The newest: ``keep_still`` both, and it comes about.
    """

    def __init__(self, message: str, heir: str) -> None:
        super().__init__(message)
        self.heir = heir


@dataclass(frozen=True, slots=True)
class Label:
    """A label."""

    label: str


@dataclass(frozen=True, slots=True)
class Found:
    """Whether there is any."""

    found: bool


@dataclass(frozen=True, slots=True)
class Retired:
    """What became of a label.

    Attributes:
        heir: The version that raises the side effects from now on; None if nothing was handed over.
        effects_after: Beyond which position.
    """

    label: str
    heir: str | None = None
    effects_after: int | None = None


_sql = SqlFile(__name__)
VERSIONS = _sql.many("versions_of", Label)
DELETE_LETTERS = _sql.none("delete_letters")
HAND_OVER = _sql.none("hand_over_effects")
KEEP_STILL = _sql.one("keep_still", Changed)
HAS_TABLE = _sql.one("has_table", Found)
DROP_TABLE = _sql.none("drop_left_table")


def name_and_version(label: str) -> tuple[str, int] | None:
    """What *label* is made of; None if it is no label of a projection."""
    found = _LABEL.fullmatch(label)
    return (found[1], int(found[2])) if found else None


def bury(
    label: str,
    *,
    schema: str,
    channel: str,
    checkpoints: str,
    silent: bool = False,
    force: bool = False,
) -> Op[Retired]:
    """The first step, in a transaction of its own. A label that is retired already stays so.

    Args:
        label: Of a projection.
        schema: Of the tables.
        channel: Where nodes hear of changed work.
        checkpoints: Where nodes hear of checkpoints that are to be read anew.
        silent: The newest version raises no side effects, so there is nothing to hand over.
        force: Hand over now, though some will be raised by nobody.

    Raises:
        UnknownProjection: Nothing is known of it.
        ConflictError: It is being rebuilt, or has open letters whose side effects are missing.
        NotYetError: See above; nothing was changed.
        DatabaseUnavailable: Appends or batches under way did not end soon; see
            ``lifecycles.is_locked``.
    """
    parts = name_and_version(label)
    assert parts is not None
    yield from lifecycles.lock()
    known = (yield from lifecycles.kept([label])).get(label)
    if known is not None and known.lifecycle == lifecycles.RETIRED:
        return Retired(label)
    versions = [row.label for row in (yield from many(VERSIONS, parts[0]))]
    held = yield from lifecycles.hold(versions)
    if known is None and label not in held:
        tables = [f"{kind}_{parts[0]}_v{parts[1]}" for kind in ("doc", "table")]
        found = yield from one(HAS_TABLE, *tables, schema)
        if found is None or not found.found:
            raise UnknownProjection(f"nothing is known of {label!r} in this database")
    heir = _heir(label, held)
    exactly = heir is not None and not (silent or force)
    # First: a batch under way may write the letter that is looked for.
    shards = yield from lifecycles.hold_shards([label, *([heir] if heir else [])])
    left = yield from lifecycles.still_open(label)
    if left.builds:
        raise ConflictError(f"{label} is being rebuilt: wait for it, or cancel it")
    if left.letters and exactly:
        raise ConflictError(
            f"{label} has {left.letters} open dead letters, whose side effects nobody would raise:"
            " retry or discard them first, or retire it with force"
        )
    own = [one for one in shards if one.name.startswith(f"{label}:")]
    others = [one for one in shards if one not in own]
    until = _until(label, own, others, heir=heir if exactly else None)
    if heir is not None:
        yield from none(HAND_OVER, heir, until, checkpoints)
    yield from none(DELETE_LETTERS, label)
    spoke = label in held and held[label].effects_after is not None
    told = until if spoke else None
    yield from lifecycles.end(label, lifecycles.RETIRED, told, channel=channel)
    return Retired(label, heir, until if heir else None)


def keep_still(label: str, heir: str, *, checkpoints: str) -> Op[bool]:
    """Let the shards of both stop at one position; run it in a transaction of its own.

    Returns:
        Whether they do so from now on. Not if they do already, if one is cut or built otherwise, and
        if it could take long: *heir* serves, and waits there.

    Raises:
        DatabaseUnavailable: A batch under way did not end soon; see ``lifecycles.is_locked``.
    """
    yield from one(lifecycles.BE_BRIEF, lifecycles.PATIENCE)
    found = yield from one(KEEP_STILL, label, heir, NEAR, checkpoints)
    return found is not None


def let_go(label: str, heir: str) -> Op[None]:
    """The opposite of ``keep_still``: it has not come about."""
    for each in sorted((label, heir)):
        yield from one(slicing.OPEN, each)


def drop(label: str) -> Op[None]:
    """The second step for a label that this program's code does not have."""
    parts = name_and_version(label)
    assert parts is not None
    yield from one(lifecycles.BE_BRIEF, lifecycles.PATIENCE)
    for kind in ("doc", "table"):
        table = quoted(f"{kind}_{parts[0]}_v{parts[1]}")
        yield from none(DROP_TABLE.about(table=table))


def _heir(label: str, held: dict[str, HeldSlicing]) -> str | None:
    """Who raises the side effects after *label*; None if it does not do so, or nobody is left."""
    if label not in held or held[label].effects_after is None:
        return None
    silent = [one.label for one in held.values() if one.effects_after is None]
    return max(silent, key=lambda one: name_and_version(one) or ("", 0), default=None)


def _until(
    label: str, own: Sequence[HeldShard], others: Sequence[HeldShard], *, heir: str | None
) -> int:
    """Up to which position *label* has raised what is to be raised, exactly if there is an *heir*."""
    here = [one.position for one in own]
    there = [one.position for one in others]
    if heir is None:
        return max([*here, *there], default=0)
    if len(set(here)) > 1:
        raise NotYetError(
            f"the shards of {label} stand at different positions ({min(here)} to {max(here)})",
            heir,
        )
    if there and max(there) > max(here, default=0):
        raise NotYetError(
            f"{label} has come to position {max(here, default=0)}, and has still to raise side"
            f" effects that the newest version has passed silently, up to {max(there)}",
            heir,
        )
    return max(here, default=0)
