"""The swap: what a build has made takes the place of what served, in one short transaction.

All of a projection: its tables are taken away and those of the shadow put in their place, by a change
of their schema. A part of it: the part's rows are deleted and copied from the shadow. Either way
readers see what was before or what is after, never nothing and never some of both.

Taking a table away needs a lock that excludes readers. It is waited for ``PATIENCE`` seconds at the
most: a reader that takes long makes the swap fail, and it is tried again; others wait no longer.

What prepared statements and transactions see: a statement that begins after the swap reads the new
table, also one prepared before. A transaction of isolation level REPEATABLE READ that began before the
swap and has read the table keeps it until it ends, so the swap waits for it. If it has not read it
yet, it finds the new table, as far as that was filled when the transaction began.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from strandline.daemon import rebuilds
from strandline.daemon.comparing import key_of
from strandline.daemon.rebuilds import (
    CREATE_SHADOW,
    DROP_EMPTY,
    DROP_SHADOW,
    MARK_SHADOW,
    Build,
    Count,
)
from strandline.daemon.scope import Scope
from strandline.errors import ConflictError, RebuildFailed
from strandline.postgres.faults import sqlstate
from strandline.postgres.operations import Op, many, none, one
from strandline.postgres.statements import SqlFile, literal, quoted
from strandline.projections.shadow import LIVE, Pair

PATIENCE = 0.3  # seconds that readers may have to wait behind a swap that does not come about
CALM_PATIENCE = 1.5  # seconds for an autovacuum, which gives way after deadlock_timeout (1 s)
LONGEST_NAME = 63  # bytes
IN_PLACE = "or rebuild it in place (in_place=True), which keeps the table"


@dataclass(frozen=True, slots=True)
class Home:
    """Where a table is, and whose, as SQL."""

    schema: str
    name: str
    owner: str
    is_ours: bool
    is_open: bool


@dataclass(frozen=True, slots=True)
class What:
    """Something, in words."""

    what: str


@dataclass(frozen=True, slots=True)
class Granted:
    """A privilege on a table, as SQL."""

    privilege: str
    grantee: str
    option: str


_sql = SqlFile(__name__)
_HOME = _sql.one("table_home", Home)
_HANGS_ON = _sql.many("hangs_on", What)
_BY_HAND = _sql.many("made_by_hand", What)
_LEFT = _sql.many("left_in_shadow", What)
_OPEN_LETTERS = _sql.one("open_letters", Count)
_GRANTED = _sql.many("granted", Granted)
_REVOKE = _sql.none("revoke_all")
_GRANT = _sql.none("grant_again")
_CALM = _sql.none("keep_autovacuum_away")
_TAKE = _sql.none("take_table")
_DROP_TABLES = _sql.none("drop_tables")
_OWN = _sql.none("own_table")
_MOVE = _sql.none("move_table")
_DELETE = _sql.none("delete_scope")
_COPY = _sql.none("copy_scope")
_SUPERSEDE = _sql.none("supersede_letters")
_DROP_KNOWN = _sql.none("drop_known_letters")
_INHERIT = _sql.none("inherit_letters")


@dataclass(frozen=True, slots=True)
class Names:
    """The schemas of one build of one schema of strandline."""

    schema: str
    number: int

    @property
    def shadow(self) -> str:
        """Where its tables are."""
        return self._fitting(f"~{self.number}")

    @property
    def trash(self) -> str:
        """Where the old tables are for the time of the swap."""
        return self._fitting(f"~{self.number}~old")

    @property
    def place(self) -> str:
        """``shadow`` as SQL."""
        return quoted(self.shadow)

    @property
    def mark(self) -> str:
        """What the comment on the schema says: without it none is ever dropped."""
        return f"{marks(self.schema)}{self.number}"

    def _fitting(self, suffix: str) -> str:
        """A name that PostgreSQL does not cut off."""
        whole = f"{self.schema}{suffix}".encode()
        if len(whole) <= LONGEST_NAME:
            return whole.decode()
        suffix = f"~{sha256(self.schema.encode()).hexdigest()[:8]}{suffix}"
        room = LONGEST_NAME - len(suffix)
        return self.schema.encode()[:room].decode(errors="ignore") + suffix


def marks(schema: str) -> str:
    """How the comments on all shadows of *schema* begin."""
    return f"Made and dropped by strandline: schema {schema}, build "


def filled_in(pairs: Sequence[Pair], schema: str) -> list[Pair]:
    """*pairs* with their schema, in one order for everybody."""
    own = quoted(schema)
    found = [
        one._replace(live=one.live.replace(LIVE, own), shadow=one.shadow.replace(LIVE, own))
        for one in pairs
    ]
    return sorted(found)


def make_room(names: Names) -> Op[None]:
    """An empty schema for a build."""
    found = yield from rebuilds.mark_of(names.shadow)
    if found == names.mark:  # of a database that was restored
        yield from none(DROP_SHADOW.about(shadow=names.place))
    elif found is not None:
        raise RebuildFailed(
            f"there is a schema {names.shadow} that strandline has not made: rename it, or drop it"
        )
    yield from none(CREATE_SHADOW.about(shadow=names.place))
    yield from none(MARK_SHADOW.about(shadow=names.place, mark=literal(names.mark)))


def refuse_what_would_be_lost(pairs: Sequence[Pair]) -> Op[None]:
    """Look whether the tables that serve can be taken away, and nothing is lost with them.

    Raises:
        RebuildFailed: They cannot; the message says why.
    """
    for pair in pairs:
        home = yield from one(_HOME, pair.live)
        if home is None:
            raise RebuildFailed(f"there is no table {pair.live}: let a node open the app first")
        if not home.is_ours:
            raise RebuildFailed(
                f"table {pair.live} belongs to role {home.owner}: only that role can exchange it;"
                f" run the nodes under it, {IN_PLACE}"
            )
        if not home.is_open:
            raise RebuildFailed(
                f"the role of the nodes may not put a new table {pair.live} into schema"
                f" {home.schema}: GRANT CREATE ON SCHEMA {home.schema} to it, {IN_PLACE}"
            )
    found = [row.what for row in (yield from many(_HANGS_ON, [pair.live for pair in pairs]))]
    for pair in pairs:
        found += [row.what for row in (yield from many(_BY_HAND, pair.live, pair.shadow))]
    if found:
        raise RebuildFailed(
            f"with the old table would go: {'; '.join(dict.fromkeys(found))}. Drop that and make it"
            f" again afterwards (indexes can be declared), {IN_PLACE}"
        )


def refuse_silence(label: str, scope: Scope) -> Op[None]:
    """Look whether what serves has raised the side effects of all that a build of *scope* reads past.

    Raises:
        ConflictError: Events of it were put aside; whoever tries them again raises their effects.
    """
    found = yield from one(_OPEN_LETTERS, label, scope.tenant, scope.ids)
    if found is not None and found.count:
        raise ConflictError(
            f"{label} has {found.count} open dead letters, whose side effects nobody would raise after"
            " a rebuild, as it reads past them silently: retry or discard them first"
        )


def swap(
    build: Build, pairs: Sequence[Pair], names: Names, *, speaks: bool, channel: str
) -> Op[bool]:
    """Let what *build* has made take the place of what serves; False: not yet, nothing was done.

    Args:
        build: Locked in this transaction, and sealed.
        pairs: Its tables, filled in.
        names: Of its schemas.
        speaks: Whether what serves raises side effects: then it must have come to the seal too, and
            have none left to raise.
        channel: Where other nodes hear of changed work.

    Raises:
        RebuildFailed: Something would be lost with the old tables.
        ConflictError: Side effects would be lost.
        DatabaseUnavailable: A reader or a batch held a table or shard too long.
    """
    scope = Scope.parsed(build.scope)
    yield from keep_autovacuum_away([table for pair in pairs for table in (pair.live, pair.shadow)])
    yield from rebuilds.be_patient(PATIENCE)
    position = yield from rebuilds.hold(build, exact=speaks or not scope.is_whole)
    if position is None:
        return False
    if speaks:
        yield from refuse_silence(build.label, scope)
    if scope.is_whole:
        yield from _exchange(pairs, names)
    else:
        yield from _copy(pairs, scope)
    yield from supersede(build.label, scope, f"build {build.number} has read past it")
    yield from none(_DROP_KNOWN, build.label, build.shadow)
    yield from none(_INHERIT, build.label, build.shadow)
    yield from rebuilds.advance(build.label, position)
    yield from rebuilds.clean(build.shadow, channel=channel)
    if scope.is_whole:
        yield from _drop_empty(names.place)
    else:
        yield from none(DROP_SHADOW.about(shadow=names.place))
    yield from rebuilds.note_done(build, position)
    return True


def keep_autovacuum_away(tables: Sequence[str]) -> Op[None]:
    """Let nobody tidy up *tables*, until the transaction ends: it could take long, and is in the way."""
    yield from rebuilds.be_patient(CALM_PATIENCE)
    for table in tables:
        yield from none(_CALM.about(table=table))


def supersede(label: str, scope: Scope, reason: str) -> Op[None]:
    """Close the open dead letters of *scope*: their events are read anew."""
    yield from none(_SUPERSEDE, label, scope.tenant, scope.ids, reason)


def _exchange(pairs: Sequence[Pair], names: Names) -> Op[None]:
    trash = quoted(names.trash)
    yield from none(CREATE_SHADOW.about(shadow=trash))
    for pair in pairs:
        yield from none(_TAKE.about(table=pair.live))
    yield from refuse_what_would_be_lost(pairs)
    homes = []
    for pair in pairs:
        home = yield from one(_HOME, pair.live)
        assert home is not None  # it is locked
        homes.append(home)
        yield from _like(pair)
        yield from none(_MOVE.about(table=pair.live, schema_of=trash))
    for pair, home in zip(pairs, homes, strict=True):
        yield from none(_MOVE.about(table=pair.shadow, schema_of=home.schema))
    old = ", ".join(f"{trash}.{home.name}" for home in homes)
    yield from none(_DROP_TABLES.about(tables=old))
    yield from _drop_empty(trash)


def _drop_empty(place: str) -> Op[None]:
    found = [row.what for row in (yield from many(_LEFT, place))]
    if found:
        raise RebuildFailed(
            f"besides the tables there is in schema {place}, and would be lost: {'; '.join(found)}."
            f" Let setup and handlers make nothing but the tables and cancel the build, {IN_PLACE}"
        )
    yield from none(DROP_EMPTY.about(shadow=place))


def _like(pair: Pair) -> Op[None]:
    """Let the new table belong to whom the old one does, and be open to the same roles, and no others."""
    old = yield from one(_HOME, pair.live)
    new = yield from one(_HOME, pair.shadow)
    assert old is not None
    assert new is not None
    by_default = yield from many(_GRANTED, pair.shadow)
    for grantee in sorted({right.grantee for right in by_default}):
        yield from none(_REVOKE.about(table=pair.shadow, grantee=grantee))
    for right in (yield from many(_GRANTED, pair.live)):
        yield from none(
            _GRANT.about(
                privilege=right.privilege,
                table=pair.shadow,
                grantee=right.grantee,
                option=right.option,
            )
        )
    if old.owner != new.owner:
        yield from none(_OWN.about(table=pair.shadow, owner=old.owner))


def _copy(pairs: Sequence[Pair], scope: Scope) -> Op[None]:
    for pair in pairs:
        given = {"live": pair.live, "shadow": pair.shadow, "key": key_of(pair)}
        yield from none(_DELETE.about(**given), scope.tenant, scope.ids)
        yield from none(_COPY.about(**given), scope.tenant, scope.ids)


def explained(error: Exception) -> str:
    """Why a step of a build was refused, for people."""
    if sqlstate(error) == "42501" or sqlstate(error.__cause__) == "42501":
        return (
            f"{error}: a build needs a schema of its own; GRANT CREATE ON DATABASE to the role of the"
            f" nodes, {IN_PLACE}"
        )
    return (
        str(error)
        if isinstance(error, RebuildFailed | ConflictError)
        else f"{type(error).__name__}: {error}"
    )
