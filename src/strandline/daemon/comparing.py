"""What is live compared with what a build made of the same events, inside one snapshot.

Both sides must stand at the same position: then every difference is a fault, or of a projection
that does not always make the same of the same events.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from strandline.daemon.scope import EVERYTHING, Scope
from strandline.postgres.operations import Op, many, one
from strandline.postgres.statements import SqlFile, literal, quoted
from strandline.projections.shadow import Pair
from strandline.projections.sql_shadow import with_keys

LISTED = 1_000  # differences that are kept of one comparison; all are counted
LONGEST = 2_000  # characters of a side that are kept
PIECE = 100_000  # rows compared by one statement, so that none takes longer than statement_timeout
TENANT = "tenant"


@dataclass(frozen=True, slots=True)
class Difference:
    """A document or row that is not what its events make of it.

    Attributes:
        kind: ``missing``: it should be there; ``extra``: it should not; ``differs``.
        live: What is there, as JSON without the key, cut after 2,000 characters; None when missing.
        rebuilt: What its events make of it, likewise; None when extra.
        table: Of which table, where a projection has several.
    """

    tenant: str
    key: str
    kind: str
    live: str | None
    rebuilt: str | None
    table: str = ""


@dataclass(frozen=True, slots=True)
class Compared:
    """What a comparison came to.

    Attributes:
        checked: Documents or rows looked at, of either side.
        differing: How many are not the same in both.
        differences: The first of them.
    """

    checked: int
    differing: int
    differences: tuple[Difference, ...] = ()

    def json(self) -> str:
        """As it is stored in ``rebuilds.outcome``."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def parsed(cls, text: str) -> Compared:
        """What ``json`` wrote."""
        return msgspec.json.decode(text, type=cls)


@dataclass(frozen=True, slots=True)
class Counted:
    """Rows compared, and how many differ."""

    checked: int
    differing: int


@dataclass(frozen=True, slots=True)
class Boundary:
    """A key, as a JSON object."""

    boundary: str


@dataclass(frozen=True, slots=True)
class DifferenceRow:
    """A row of the list."""

    tenant: str
    key: str
    kind: str
    live: str | None
    rebuilt: str | None


_sql = SqlFile(__name__)
_BOUNDARY = _sql.one("next_boundary", Boundary)
_COUNT = _sql.one("count_differences", Counted)
_LIST = _sql.many("list_differences", DifferenceRow)
_COUNT_UNLIKE = _sql.one("count_unlike_rows", Counted)
_LIST_UNLIKE = _sql.many("list_unlike_rows", DifferenceRow)


def compare(
    tables: Sequence[Pair], scope: Scope = EVERYTHING, *, listed: int = LISTED
) -> Op[Compared]:
    """Compare each live table with its shadow, inside the session's snapshot.

    Args:
        tables: Pairs of tables with their key columns; without any, rows are compared as a bag.
        scope: Nothing beyond it is looked at.
        listed: Differences to list at the most, in order of tenant and key.
    """
    checked = differing = 0
    found: list[Difference] = []
    for pair in (yield from with_keys(tables)):
        counted, rows = yield from _compared(pair, scope, listed - len(found))
        checked += counted.checked
        differing += counted.differing
        name = pair.live.rpartition(".")[2].strip('"') if len(tables) > 1 else ""
        found += [
            Difference(row.tenant, row.key, row.kind, row.live, row.rebuilt, name) for row in rows
        ]
    return Compared(checked, differing, tuple(found))


def _compared(pair: Pair, scope: Scope, most: int) -> Op[tuple[Counted, list[DifferenceRow]]]:
    if not pair.keys:
        return (yield from _compared_as_bags(pair, most))
    checked = differing = 0
    found: list[DifferenceRow] = []
    low: str | None = None
    while True:
        high = (yield from _boundary(pair, low)) if scope.ids is None else None
        made = fragments(pair) | _ranges(pair, low, high)
        of: list[Any] = [low, high, scope.tenant, scope.ids]
        counted = yield from one(_COUNT.about(**made), *of)
        assert counted is not None  # an aggregate always answers
        checked += counted.checked
        differing += counted.differing
        left = most - len(found)
        if counted.differing and left > 0:
            found += yield from many(_LIST.about(**made), *of, left, LONGEST)
        if high is None:
            return Counted(checked, differing), found
        low = high


def _boundary(pair: Pair, low: str | None) -> Op[str | None]:
    """Where the next piece ends; None if it is the last."""
    made = fragments(pair) | _ranges(pair, low, None)
    found = yield from one(_BOUNDARY.about(**made), low, PIECE)
    return found.boundary if found else None


def _compared_as_bags(pair: Pair, most: int) -> Op[tuple[Counted, list[DifferenceRow]]]:
    bag = {"live": pair.live, "built": pair.shadow}
    counted = yield from one(_COUNT_UNLIKE.about(**bag))
    rows: list[DifferenceRow] = []
    if counted and counted.differing and most > 0:
        rows = yield from many(_LIST_UNLIKE.about(**bag), most, LONGEST)
    return counted or Counted(0, 0), rows


def fragments(pair: Pair) -> dict[str, str]:
    """What stands for the names in the statements about tables with a key."""
    names = [quoted(key) for key in pair.keys]
    keyed = [f"k{n}" for n in range(1, len(names) + 1)]
    return {
        "columns": ", ".join(f"d.{name} AS {k}" for name, k in zip(names, keyed, strict=True)),
        "key_columns": ", ".join(f"d.{name}" for name in names),
        "key_columns_of_f": ", ".join(f"f.{name}" for name in names),
        "same": " AND ".join(f"l.{k} = b.{k}" for k in keyed),
        "order": ", ".join(f"coalesce(l.{k}, b.{k})" for k in keyed),
        "names": f"ARRAY[{', '.join(literal(key) for key in pair.keys)}]::text[]",
        "tenant": f"d.{quoted(TENANT)}" if TENANT in pair.keys else "''::text",
        "key": key_of(pair),
        "live": pair.live,
        "built": pair.shadow,
    }


def _ranges(pair: Pair, low: str | None, high: str | None) -> dict[str, str]:
    """Conditions that an index on the key serves; a limit that is not set is no condition at all."""

    def bound(how: str, parameter: str, limit: str | None) -> str:
        if limit is None:
            return f"{parameter}::text IS NULL"
        given = f"jsonb_populate_record(NULL::{pair.live}, {parameter}::text::jsonb) AS r"
        names = [quoted(key) for key in pair.keys]
        values = ", ".join(f"(SELECT r.{name} FROM {given})" for name in names)
        return f"({', '.join(f'd.{name}' for name in names)}) {how} ({values})"

    return {"beyond_low": bound(">", "$1", low), "up_to_high": bound("<=", "$2", high)}


def key_of(pair: Pair) -> str:
    """The SQL for what a row *d* is called: its key as one text, without the tenant."""
    own = [f"d.{quoted(key)}" for key in pair.keys if key != TENANT]
    if pair.name or not own:
        return pair.name or "''::text"
    return f"{own[0]}::text" if len(own) == 1 else f"jsonb_build_array({', '.join(own)})::text"
