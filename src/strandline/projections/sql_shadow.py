"""Tables of the user's own, built a second time in a shadow schema by the user's own statements.

The statements name tables without a schema. Inside a build's transactions ``search_path`` begins with
the shadow, so that the same names mean the tables there.

What can go wrong, and what then:

* ``setup`` names a schema, or does not make a table: it is not in the shadow, and the build is refused.
* It makes more than the tables: views, types and functions would go with the shadow when the tables
  leave it, so the build is refused. A sequence goes along with the column that owns it.
* A handler makes something there, such as a partition: so is its batch.
* A handler changes what is not the projection's, or names a schema: each batch asks for the locks it
  holds, and is rolled back if one is of a table, materialized view or sequence elsewhere. What is not
  bound to one cannot be seen: NOTIFY, advisory locks, large objects, other databases and files.
* The build is cancelled and its schema dropped while a batch of it is frozen: the names mean what
  serves then, so the batch is refused for its locks. The schema stays for as long as a shard is held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from strandline.errors import InvalidDefinition
from strandline.postgres.operations import Op, many, one
from strandline.postgres.statements import SqlFile
from strandline.projections.shadow import Pair


@dataclass(frozen=True, slots=True)
class Entered:
    """The search path before and after."""

    path: str
    entered: str


@dataclass(frozen=True, slots=True)
class Left:
    """The search path now."""

    path: str


@dataclass(frozen=True, slots=True)
class Named:
    """An object of the database, in words."""

    what: str


@dataclass(frozen=True, slots=True)
class KeyColumn:
    """A column of a table's primary key."""

    table: str
    column: str


_sql = SqlFile(__name__)
_ENTER = _sql.one("enter_shadow", Entered)
_LEAVE = _sql.one("leave_shadow", Left)
_STRAYS = _sql.many("strays_in_shadow", Named)
_MISSING = _sql.many("missing_in_shadow", Named)
_ELSEWHERE = _sql.many("written_elsewhere", Named)
_KEYS = _sql.many("primary_key", KeyColumn)


def entered(place: str) -> Op[str]:
    """Let names without a schema mean what is in *place*, until the transaction ends; what they did before."""
    found = yield from one(_ENTER, place)
    assert found is not None
    return found.path


def left(path: str) -> Op[None]:
    """Let names mean again what they did before ``entered``, which answered *path*."""
    yield from one(_LEAVE, path)


def refuse_other_things(label: str, place: str, tables: Sequence[str]) -> Op[None]:
    """Check that ``setup`` and handlers have made *tables* in *place*, and nothing else.

    Raises:
        InvalidDefinition: It has not; the message says what is to be changed.
    """
    missing = [row.what for row in (yield from many(_MISSING, place, list(tables)))]
    if missing:
        raise InvalidDefinition(
            f"{label}: setup has not made {_listed(missing)} in the shadow: tables named in tables="
            " are made by setup, and named without a schema"
        )
    strays = [row.what for row in (yield from many(_STRAYS, place, list(tables)))]
    if strays:
        raise InvalidDefinition(
            f"{label}: setup or a handler makes {_listed(strays)}, which would be lost when the"
            " tables are exchanged: name tables in tables=, let a column own a sequence (GENERATED"
            " ... AS IDENTITY, or ALTER SEQUENCE ... OWNED BY), and make everything else elsewhere"
        )


def refuse_writes_elsewhere(label: str, place: str) -> Op[None]:
    """Check that this transaction has changed no table or sequence beyond *place*.

    Raises:
        InvalidDefinition: It has: roll back.
    """
    found = [row.what for row in (yield from many(_ELSEWHERE, place))]
    if found:
        raise InvalidDefinition(
            f"{label}: a build must leave alone what serves, but its handlers write to"
            f" {_listed(found)}: name all of its tables in tables=, make them in setup, and write"
            " their names without a schema"
        )


def with_keys(pairs: Sequence[Pair]) -> Op[list[Pair]]:
    """*pairs* with the columns of the primary keys, where they are not known and both tables have the same."""
    unknown = [pair for pair in pairs if not pair.keys]
    if not unknown:
        return list(pairs)
    names = [name for pair in unknown for name in (pair.live, pair.shadow)]
    keys: dict[str, list[str]] = {}
    for row in (yield from many(_KEYS, names)):
        keys.setdefault(row.table, []).append(row.column)
    return [
        pair
        if pair.keys or keys.get(pair.live) != keys.get(pair.shadow)
        else pair._replace(keys=tuple(keys.get(pair.live, ())))
        for pair in pairs
    ]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
