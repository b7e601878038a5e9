"""Who keeps a projection: its appends (inline) or nodes (async). Changing that while events flow.

The code says what it should be, and the table says what it is; an app that opens brings the two
together. Code of before may still run meanwhile, so what it does must go by the table, not by itself:

* **inline → async.** Every append to an inline projection asks the table first (``inline.take_part``)
  and holds ROW SHARE on it until it ends. The change locks the table in EXCLUSIVE mode: it has
  waited then for every append that followed, and every later one finds that nodes do that now. So all
  that was followed lies at or below the highest position X, and the nodes begin behind X.
* **async → inline.** Code of before would not follow its own appends, so nobody may run it any more:
  refused while a node does. All appends end (a SHARE lock on streams), and every shard must have
  come to the highest position; then its shards are gone, and appends go on from there.
* **retired.** Nobody keeps it: appends leave it alone, and nodes do not declare it; see ``retiring``.

What was inline once stays with the nodes, though code says inline: that is an old process which was
started again. It leaves its appends to the nodes, as it has done since the change.

Deadlocks: an append may hold a stream, or turns, when it comes to this table, and the change may hold
the table when it waits for that append. Hence every wait of a change is shorter than PostgreSQL's
``deadlock_timeout`` (1 s), after which an append could be the one that fails: the change gives
way, and is tried again by its caller. Appends queue behind it for that long at most. An autovacuum of
streams would never give way to so short a wait, so a lock that stops nobody else is waited for first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from strandline.errors import InvalidDefinition
from strandline.events.gaps import highest_position
from strandline.postgres.faults import sqlstate
from strandline.postgres.operations import Op, many, none, one
from strandline.postgres.statements import SqlFile, quoted
from strandline.projections.projection import Lifecycle, Projection
from strandline.projections.slice import slices
from strandline.telemetry.journal import Journal

log = Journal("strandline.lifecycles")

PATIENCE = "250ms"  # for a lock; less than deadlock_timeout, see above
CALM_PATIENCE = "1500ms"  # for an autovacuum of streams, which gives way after deadlock_timeout
RETIRED = "retired"
ASYNC, INLINE = str(Lifecycle.ASYNC), str(Lifecycle.INLINE)


@dataclass(frozen=True, slots=True)
class Kept:
    """Who keeps a label.

    Attributes:
        lifecycle: ``inline``, ``async`` or ``retired``.
        until: async: up to here appends have kept it, None if they never have; retired: up to here
            it has raised side effects.
    """

    label: str
    lifecycle: str
    until: int | None
    changed_at: datetime


@dataclass(frozen=True, slots=True)
class Label:
    """A label."""

    label: str


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting's new value."""

    setting: str


@dataclass(frozen=True, slots=True)
class Found:
    """Whether there is any."""

    found: bool


@dataclass(frozen=True, slots=True)
class HeldSlicing:
    """How a label is cut, and whose its side effects are."""

    label: str
    parts: int
    build: int | None
    effects_after: int | None


@dataclass(frozen=True, slots=True)
class HeldShard:
    """Where a shard stands."""

    name: str
    position: int


@dataclass(frozen=True, slots=True)
class NodeName:
    """A node."""

    name: str


@dataclass(frozen=True, slots=True)
class StillOpen:
    """What somebody has to decide on."""

    letters: int
    builds: int


_sql = SqlFile(__name__)
READ = _sql.many("read_lifecycles", Kept)
RETIRED_LABELS = _sql.many("retired_labels", Label)
BE_BRIEF = _sql.one("be_brief", Setting)
LOCK = _sql.none("lock_lifecycles")
LOCK_STREAMS = _sql.none("lock_streams")
KEEP_AUTOVACUUM_AWAY = _sql.none("keep_autovacuum_away")
RECORD = _sql.none("record_lifecycle")
WAS_RUN = _sql.one("was_run", Found)
HAS_TABLE = _sql.one("has_table", Found)
HAS_ROWS = _sql.one("has_rows", Found)
BEGIN_SHARDS = _sql.none("begin_shards")
HOLD_SLICINGS = _sql.many("hold_slicings", HeldSlicing)
HOLD_SHARDS = _sql.many("hold_shards", HeldShard)
WHO_RUNS = _sql.many("who_runs", NodeName)
WHAT_IS_OPEN = _sql.one("what_is_open", StillOpen)
END_SHARDS = _sql.none("end_shards")


def retired(labels: Iterable[str]) -> Op[set[str]]:
    """Those of *labels* that nobody keeps any more; none other can be retired in this transaction."""
    return {row.label for row in (yield from many(RETIRED_LABELS, list(labels)))}


def kept(labels: Iterable[str]) -> Op[dict[str, Kept]]:
    """Who keeps *labels*; those never recorded are missing."""
    return {row.label: row for row in (yield from many(READ, list(labels)))}


def unsettled(projections: Sequence[Projection]) -> Op[list[Projection]]:
    """Those of *projections* that are not kept as their code says, and are to be."""
    known = yield from kept([one.label for one in projections])
    return [one for one in projections if not _is_settled(one, known.get(one.label))]


def lock() -> Op[None]:
    """Let nobody keep anything but whoever keeps it now, until the transaction ends.

    Raises:
        DatabaseUnavailable: An append, or another change, did not end soon; see ``is_locked``.
    """
    yield from one(BE_BRIEF, PATIENCE)
    yield from none(LOCK)


def is_locked(error: BaseException) -> bool:
    """Whether a change gave way to somebody: it is to be tried again."""
    return error.__cause__ is not None and sqlstate(error.__cause__) in ("55P03", "40P01")


def settle(projections: Sequence[Projection], *, channel: str) -> Op[None]:
    """Let *projections* be kept as their code says; run it in a transaction of its own.

    Args:
        projections: Stored ones, whose tables are there.
        channel: Where nodes hear of changed work.

    Raises:
        InvalidDefinition: One cannot be kept by its appends now; the message says why.
        DatabaseUnavailable: Appends did not end soon; see ``is_locked``.
    """
    if any(each.lifecycle is Lifecycle.INLINE for each in projections):
        yield from one(BE_BRIEF, CALM_PATIENCE)  # nobody waits behind this one
        yield from none(KEEP_AUTOVACUUM_AWAY)
    yield from lock()
    known = yield from kept([one.label for one in projections])
    for each in sorted(projections, key=lambda one: one.label):
        if not _is_settled(each, known.get(each.label)):
            yield from _settle(each, known.get(each.label), channel)


def _is_settled(projection: Projection, known: Kept | None) -> bool:
    if known is None:
        return False
    if known.lifecycle in (RETIRED, str(projection.lifecycle)):
        return True
    return known.lifecycle == ASYNC and known.until is not None  # code of before: see above


def _settle(projection: Projection, known: Kept | None, channel: str) -> Op[None]:
    label, wanted = projection.label, str(projection.lifecycle)
    if known is not None:
        was = known.lifecycle
    else:
        was = yield from _of_old(projection)
    if was == wanted:
        if known is None:
            yield from _refuse_of_others(projection)
        yield from none(RECORD, label, wanted, None)
    elif wanted == ASYNC:
        yield from _to_nodes(projection)
    else:
        yield from _to_appends(label, channel)


def _of_old(projection: Projection) -> Op[str]:
    """Who has kept what nobody has recorded; as its code says, if it is new."""
    run = yield from one(WAS_RUN, projection.label)
    if run is not None and run.found:
        return ASYNC
    if projection.table and (yield from _is_filled(projection)):
        return INLINE  # nodes have never run it: only appends can have written what is there
    return str(projection.lifecycle)


def _refuse_of_others(composite: Projection) -> Op[None]:
    """Look whether what a new composite begins with is its own; others have no members."""
    run = yield from one(WAS_RUN, composite.label)
    if run is not None and run.found:
        return  # of a time when nobody recorded it
    former = yield from kept([each.label for each in composite.members])
    for each in composite.members:
        run = yield from one(WAS_RUN, each.label)
        is_kept = each.label in former and former[each.label].lifecycle != RETIRED
        if is_kept or (run is not None and run.found) or (yield from _is_filled(each)):
            raise InvalidDefinition(
                f"{composite.label} would begin with documents that are there already, and apply every"
                f" event to them a second time: its member {each.label} was kept apart from it, in"
                f" table {each.table}. Give {composite.name!r} a version that {each.name!r} never had"
            )


def _is_filled(projection: Projection) -> Op[bool]:
    """Whether its table is there, and has rows."""
    table = quoted(projection.table)
    for question in (HAS_TABLE, HAS_ROWS):  # where nobody migrates it may not be there yet
        answer = yield from one(question.about(table=table))
        if answer is None or not answer.found:
            return False
    return True


def hold(labels: Sequence[str]) -> Op[dict[str, HeldSlicing]]:
    """How *labels* are cut, held until the transaction ends; those never declared are missing."""
    return {row.label: row for row in (yield from many(HOLD_SLICINGS, list(labels)))}


def hold_shards(labels: Sequence[str]) -> Op[list[HeldShard]]:
    """Where the shards of *labels* stand, held until the transaction ends; ``hold`` them first."""
    return (yield from many(HOLD_SHARDS, list(labels)))


def still_open(label: str) -> Op[StillOpen]:
    """What somebody has to decide on."""
    found = yield from one(WHAT_IS_OPEN, label)
    assert found is not None
    return found


def end(label: str, lifecycle: str, until: int | None, *, channel: str) -> Op[None]:
    """No node runs *label* any more; who keeps it instead. ``hold`` it first."""
    yield from none(END_SHARDS, label, channel)
    yield from none(RECORD, label, lifecycle, until)


def _to_nodes(projection: Projection) -> Op[None]:
    label = projection.label
    until = yield from highest_position()
    yield from none(BEGIN_SHARDS, label, projection.shards, until)
    yield from none(RECORD, label, ASYNC, until)
    log.tell("lifecycle_to_nodes", projection=label, position=until)


def _to_appends(label: str, channel: str) -> Op[None]:
    nodes = [row.name for row in (yield from many(WHO_RUNS, label))]
    if nodes:
        raise _refused(label, f"nodes still run it: {', '.join(nodes)}; stop them first")
    yield from none(LOCK_STREAMS)
    cut = (yield from hold([label])).values()
    shards = yield from hold_shards([label])
    left = yield from still_open(label)
    if left.builds or any(row.build is not None for row in cut):
        raise _refused(label, "a rebuild of it is under way: wait for it, or cancel it")
    if left.letters:
        raise _refused(label, f"{left.letters} dead letters of it are open: retry or discard them")
    until = yield from highest_position()
    behind = [f"{row.name} is at {row.position}" for row in shards if row.position < until]
    missing = [part.shard(label) for row in cut for part in slices(row.parts)]
    behind += [f"{name} never ran" for name in missing if name not in {row.name for row in shards}]
    if until and not cut:
        behind.append(f"{label} never ran")
    if behind:
        cure = "let a node with the code of before bring it up to date, then stop that"
        raise _refused(label, f"the log ends at position {until}, {', '.join(behind)}; {cure}")
    yield from end(label, INLINE, None, channel=channel)
    log.tell("lifecycle_to_appends", projection=label, position=until)


def _refused(label: str, reason: str) -> InvalidDefinition:
    return InvalidDefinition(
        f"{label} is kept by nodes and cannot become inline now: {reason}."
        " Or give it a higher version"
    )
