"""Into how many shards a projection or subscription is cut, and changing that while events flow.

States of a label: *settled* → *sealed* → *drained* → *settled*, cut otherwise. A node that starts
declares what its code wants; where that is not how the label is cut, steps change it:

1. **Seal.** One position for all shards of the label, as far as the first of them has come. Every
   epoch grows, so that batches under way are refused, and who claims a shard is told its seal.
2. **Drain.** Whoever owns a shard runs it up to the seal exactly, and waits there.
3. **Switch.** When all stand at the seal, the old shards go and the new ones begin there.
4. **Fit.** The cluster's work becomes what the shards are.

Invariant: all shards of a label apply every event up to the seal, and none beyond it, before any shard
of another cut exists. So each event is applied by exactly one of the old shards or exactly one of the
new ones, though a stream may move from one to another.

What can go wrong, and what then:

* A crash between two steps: each is one statement, found out from the rows what comes next. Any
  node goes on; two that do at once take turns at the row of slicings.
* A frozen owner wakes up: its epoch is of the past, and after the switch its row is gone, or has an
  epoch that it never had, since those of a new cut begin beyond all of the old.
* The code wants yet another number, or the old one again: the seal is good for any number, and
  taken away when the label stays as it is.
* A shard cannot reach the seal, since it is paused or nobody runs it: the others wait at the seal.
  The cure is the shard's; or declaring the old number again.
* The label is sealed for a swap (see ``rebuilds``): no step touches it until that is over.
* Work of the label is paused: it is not switched, and its work stays as it is, until all of it is
  resumed. So a rebuild, which pauses it for a while, resumes what it has paused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from strandline.postgres.operations import Op, many, one
from strandline.postgres.statements import SqlFile


class Stage(StrEnum):
    """What a step has done."""

    SETTLED = "settled"  # nothing is to be done
    OPENED = "opened"  # a seal was taken away: stays cut as it is
    SEALED = "sealed"  # owners must claim anew, and stop at the seal
    DRAINING = "draining"  # some are not at the seal yet
    SWITCHED = "switched"  # cut otherwise: other shards exist now
    FITTED = "fitted"  # the cluster's work did not fit the shards


@dataclass(frozen=True, slots=True)
class Slicing:
    """How a label is cut, and how it is to be cut since ``wanted_at``."""

    label: str
    parts: int
    wanted: int
    wanted_at: datetime


@dataclass(frozen=True, slots=True)
class Changed:
    """Shards that a step has changed, and where they stand or stop."""

    position: int
    shards: int


@dataclass(frozen=True, slots=True)
class Fitted:
    """Pieces of work that came and went."""

    made: int
    gone: int


@dataclass(frozen=True, slots=True)
class ShardName:
    """A shard."""

    name: str


_sql = SqlFile(__name__)
DECLARE = _sql.one("declare_slicing", Slicing)
READ = _sql.many("read_slicings", Slicing)
UNSETTLED = _sql.many("unsettled_slicings", Slicing)
SEAL = _sql.one("seal_shards", Changed)
OPEN = _sql.one("open_shards", Changed)
SWITCH = _sql.one("switch_slicing", Changed)
FIT = _sql.one("fit_work", Fitted)
RESET = _sql.many("reset_shards", ShardName)


def declare(label: str, wanted: int, *, start: int = 0) -> Op[Slicing | None]:
    """Say that this node's code wants *label* cut into *wanted* shards; how it is cut now.

    A label that nobody has run yet is cut so at once, with all its shards at *start*. None: nodes do
    not keep it (any more); see ``lifecycles``.
    """
    return (yield from one(DECLARE, label, wanted, start))


def slicings(labels: Sequence[str]) -> Op[dict[str, Slicing]]:
    """How *labels* are cut; those never declared are missing."""
    rows = yield from many(READ, list(labels))
    return {row.label: row for row in rows}


def pending() -> Op[list[str]]:
    """The labels that need steps."""
    return [row.label for row in (yield from many(UNSETTLED))]


def step(label: str, *, channel: str) -> Op[Stage]:
    """Bring a change of *label*'s cut on, as far as it goes without waiting.

    Run it outside a transaction, as often as you like, on as many nodes as you like.

    Args:
        label: The label.
        channel: Where other nodes hear of changed work.
    """
    stage = yield from _cut(label)
    fitted = yield from one(FIT, label, channel)
    return Stage.FITTED if fitted and stage is Stage.SETTLED else stage


def _cut(label: str) -> Op[Stage]:
    cut = (yield from slicings([label])).get(label)
    if cut is None:
        return Stage.SETTLED
    if cut.parts == cut.wanted:
        opened = yield from one(OPEN, label)
        return Stage.SETTLED if opened is None else Stage.OPENED
    sealed = yield from one(SEAL, label)
    switched = yield from one(SWITCH, label)
    if switched is not None:
        return Stage.SWITCHED
    return Stage.DRAINING if sealed is None else Stage.SEALED


def reset(label: str) -> Op[list[str]]:
    """Send all shards of *label* back to the beginning; their names.

    Their present owners are refused from now on, and a seal is gone.
    """
    return sorted(row.name for row in (yield from many(RESET, label)))
