"""One picture of the whole database, by few statements; all it needs is a connection.

The mark, shards, nodes, leadership and work are read in one snapshot. What may be slow or refused
(dead letters, queues, the server's own views) is read after that, each part for itself: what could
not be read in time is named in ``missing``, and the rest is still good.

Lag is told against the highest *visible* position: a detector that stands still is no lag of 0.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from strandline.cluster import membership, work_control
from strandline.cluster.membership import NodeRow
from strandline.cluster.work_control import WorkRow
from strandline.daemon import progress, rebuilds
from strandline.daemon.daemon import HIGH_WATER
from strandline.daemon.progress import ShardProgress
from strandline.daemon.rebuilds import BuildProgress
from strandline.events.gaps import Holder, holders, lost_row
from strandline.postgres.operations import Op, many, none, one
from strandline.postgres.statements import SqlFile
from strandline.survey.extras import BuildFacts
from strandline.survey.facts import LeaderFacts, MarkFacts, ShardFacts, Survey, WorkFacts
from strandline.survey.parts import Place, read_parts, wait_for_no_lock
from strandline.survey.standing import GONE, Around, node_facts, shard_facts

WITHIN = 5.0  # seconds for the snapshot
NODES_GONE = 50  # of those that are gone, so many are told
GAPS = 10_000  # of the ledger, the newest
SECOND_LOOK = 1.5  # seconds after which a mark that nobody holds must have moved


@dataclass(frozen=True, slots=True)
class _Label:
    label: str


@dataclass(frozen=True, slots=True)
class _Mark:
    now: datetime
    position: int
    settled_at: datetime
    highest: int
    first_beyond: datetime | None
    rolled_back: int
    forced_gaps: int
    forced: int
    late: int

    @property
    def age(self) -> float:
        """How long it has stood still while there was something beyond it."""
        if self.first_beyond is None:
            return 0.0
        return max(0.0, (self.now - max(self.settled_at, self.first_beyond)).total_seconds())


@dataclass(frozen=True, slots=True)
class _Leader:
    holder: UUID | None
    name: str
    epoch: int
    is_held: bool
    since: float
    expires_in: float | None
    renewed: float
    resign_reason: str | None
    ended: float | None
    changes: int


_sql = SqlFile(__name__)
_one_snapshot = _sql.none("one_snapshot")
_labels_run_by_nodes = _sql.many("labels_run_by_nodes", _Label)
_not_run_by_nodes = _sql.many("not_run_by_nodes", _Label)
_mark_row = _sql.one("mark_row", _Mark)
_leader_row = _sql.one("leader_row", _Leader)


@dataclass(frozen=True, slots=True)
class _Snapshot:
    mark: _Mark
    holders: list[Holder]
    progress: list[ShardProgress]
    nodes: list[NodeRow]
    work: list[WorkRow]
    leader: _Leader
    builds: list[BuildProgress]


async def take(
    place: Place,
    *,
    stale_after: float = 3.0,
    labels: Sequence[str] = (),
    detects: bool | None = None,
    me: UUID | None = None,
    second_look: float = SECOND_LOOK,
) -> Survey:
    """Look at everything.

    Args:
        place: Where to look.
        stale_after: Seconds a mark that stands still counts as stale after.
        labels: Projections and subscriptions of the caller's code, so that those are told as well
            that no node has ever declared.
        detects: Whether a detector is at work in this process, where the caller knows: nothing in
            the database says so.
        me: The node that the caller is; None in mode ``solo``, and for others.
        second_look: Seconds after which a mark that nobody holds is looked at again.

    Raises:
        Unavailable: The database did not answer, or somebody has locked a table.
        TimeoutError: It took longer than ``WITHIN`` seconds.
        SchemaOutOfDate: A table has lost its only row.
    """
    began = time.monotonic()
    async with asyncio.timeout(WITHIN):
        found = await place.transact(_look(labels))
    parts = await read_parts(place)
    server = parts.server
    # Behind a pooler alone no app can be seen; but who tells of its own detector is one.
    is_connected = detects is not None or server is None or server.room.apps > 0
    is_alone = detects is not None and me is None
    mode = "solo" if is_alone else _mode(found, is_connected=is_connected)
    own = is_connected if detects is None else detects
    shards = _shards(found, mode, is_connected=is_connected)
    state = _detector(found, mode, me, detects=own)
    if state == "alive" and _is_held_by_nobody(found.mark, found.holders, stale_after):
        await asyncio.sleep(second_look)
        state, found = await _looked_again(place, found, stale_after)
    return Survey(
        taken_at=found.mark.now,
        seconds=time.monotonic() - began,
        mode=mode,
        mark=_mark_facts(found, stale_after, state),
        shards=shards,
        nodes=tuple(
            node_facts(row, sum(one.owner == row.id for one in shards)) for row in found.nodes
        ),
        leader=_leader_facts(found.leader),
        leaderless=None if mode == "solo" or found.leader.is_held else found.leader.ended,
        leader_changes=found.leader.changes,
        work=WorkFacts(tuple(found.work)),
        letters=parts.letters,
        queues=parts.queues,
        builds=_builds(found, shards),
        server=server,
        missing=parts.missing,
    )


def _look(labels: Sequence[str]) -> Op[_Snapshot]:
    """What is read in one snapshot."""
    yield from none(_one_snapshot)
    yield from wait_for_no_lock()
    mark = yield from _mark()
    if mark is None:
        raise lost_row()
    holding = yield from holders() if mark.first_beyond is not None else _nothing()
    known = {row.label for row in (yield from many(_labels_run_by_nodes))}
    more = set(labels) - known
    if more:
        more -= {row.label for row in (yield from many(_not_run_by_nodes, sorted(more)))}
    leader = yield from one(_leader_row)
    return _Snapshot(
        mark=mark,
        holders=holding,
        progress=(yield from progress.progress(sorted(known | more))),
        nodes=(yield from membership.nodes(gone=NODES_GONE)),
        work=(yield from work_control.list_work()),
        leader=leader or _Leader(None, "", 0, False, 0.0, None, 0.0, None, None, 0),
        builds=(yield from rebuilds.progress()),
    )


def _mark() -> Op[_Mark | None]:
    return (yield from one(_mark_row, GAPS))


def _nothing() -> Op[list[Holder]]:
    yield from ()
    return []


def _mode(found: _Snapshot, *, is_connected: bool) -> str:
    """A node that beats makes a cluster; a former one leaves rows behind that a solo app ignores."""
    if any(row.state not in GONE and row.expires_in >= 0 for row in found.nodes):
        return "cluster"
    known = {row.id for row in found.nodes}
    if not known and not found.work:
        return "solo"
    strangers = any(
        one.owner is not None and one.owner not in known and one.state != "stopped"
        for one in found.progress
    )
    return "solo" if strangers and is_connected else "cluster"


# ---- the mark


def _detector(found: _Snapshot, mode: str, me: UUID | None, *, detects: bool) -> str:
    """Whether somebody has the duty and is there, as far as the database tells."""
    if mode == "solo":
        return "alive" if detects else "missing"
    duty = _duty(found)
    if duty is None or duty.owner is None:
        return "missing"
    node = next((row for row in found.nodes if row.id == duty.owner), None)
    if node is None or node.state in GONE:
        return "missing"
    is_ended = node.id == me and not detects
    return "silent" if node.expires_in < 0 or is_ended else "alive"


def _duty(found: _Snapshot) -> WorkRow | None:
    return next((row for row in found.work if row.name == HIGH_WATER), None)


def _suspects(mark: _Mark, holding: Sequence[Holder], stale_after: float) -> list[Holder]:
    """Those of *holding* that are old enough to hold the mark for as long as it has stood still.

    It waits for each transaction by itself, so a younger one has not stopped it so far.
    """
    least = min(mark.age, stale_after)
    return [one for one in holding if one.pid is None or one.age is None or one.age >= least]


def _is_held_by_nobody(mark: _Mark, holding: Sequence[Holder], stale_after: float) -> bool:
    return mark.age > stale_after and not _suspects(mark, holding, stale_after)


async def _looked_again(
    place: Place, found: _Snapshot, stale_after: float
) -> tuple[str, _Snapshot]:
    """Whether the mark has moved a moment later: a holder that has just ended is no silence."""
    async with asyncio.timeout(WITHIN):
        mark = await place.run(_mark())
        holding = await place.run(holders())
    if mark is None:
        raise lost_row()
    is_still = mark.position == found.mark.position
    is_silent = is_still and _is_held_by_nobody(mark, holding, stale_after)
    return "silent" if is_silent else "alive", replace(found, mark=mark, holders=holding)


def _mark_facts(found: _Snapshot, stale_after: float, state: str) -> MarkFacts:
    mark, duty = found.mark, _duty(found)
    suspects = _suspects(mark, found.holders, stale_after)
    return MarkFacts(
        position=mark.position,
        highest=max(mark.highest, mark.position),
        settled_at=mark.settled_at,
        age=mark.age,
        is_stale=mark.age >= stale_after,
        holders=tuple(suspects),
        rolled_back_numbers=mark.rolled_back,
        forced_gaps=mark.forced_gaps,
        forced_numbers=mark.forced,
        late_events=mark.late,
        detector=(duty.owner_name or "") if duty is not None and state != "missing" else "",
        detector_state=state,
    )


# ---- shards, leadership, builds


def _shards(found: _Snapshot, mode: str, *, is_connected: bool) -> tuple[ShardFacts, ...]:
    around = Around(
        now=found.mark.now,
        highest=max(found.mark.highest, found.mark.position),
        mode=mode,
        nodes={row.id: row for row in found.nodes},
        work={row.name: row for row in found.work},
        is_led=found.leader.is_held,
        is_connected=is_connected,
    )
    parts = Counter(one.label for one in found.progress)
    return tuple(shard_facts(one, parts[one.label], around) for one in found.progress)


def _leader_facts(row: _Leader) -> LeaderFacts | None:
    if not row.is_held or row.holder is None:
        return None
    return LeaderFacts(
        id=row.holder,
        name=row.name,
        epoch=row.epoch,
        since=row.since,
        expires_in=row.expires_in or 0.0,
        renewed=row.renewed,
        resign_reason=row.resign_reason,
    )


def _builds(found: _Snapshot, shards: Sequence[ShardFacts]) -> tuple[BuildFacts, ...]:
    rows: dict[int, list[BuildProgress]] = {}
    for row in found.builds:
        rows.setdefault(row.number, []).append(row)
    return tuple(_build(some, found, shards) for some in rows.values())


def _build(
    rows: Sequence[BuildProgress], found: _Snapshot, shards: Sequence[ShardFacts]
) -> BuildFacts:
    first, now = rows[0], found.mark.now
    names = {row.shard for row in rows if row.shard is not None}
    places = [row.position or 0 for row in rows if row.shard is not None]
    position = sum(places) // len(places) if places else 0
    told = [one.changed_at for one in found.progress if one.name in names and one.changed_at]
    begun = max(told, default=first.started_at)
    return BuildFacts(
        number=first.number,
        projection=first.label,
        purpose=first.purpose,
        state=first.state,
        reason=first.reason,
        position=position,
        target=first.target,
        done=min(1.0, position / first.target) if first.target else float(bool(places)),
        rate=sum(row.rate for row in rows if row.shard is not None),
        shards=len(names),
        paused=sum(one.state == "paused" for one in shards if one.name in names),
        known_by=first.known_by,
        age=max(0.0, (now - first.requested_at).total_seconds()),
        idle=max(0.0, (now - begun).total_seconds()) if begun is not None and names else None,
    )
