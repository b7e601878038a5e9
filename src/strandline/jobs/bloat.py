"""Watches what keeps the tables of jobs from staying small, and says what to do about it.

Every job leaves dead rows, which vacuum removes unless an old snapshot may still see them. So a
transaction left open anywhere, a forgotten prepared one or the slot of a replica that is away makes
every queue on PostgreSQL slow. It is named here; ending it is left to people.
"""

from __future__ import annotations

from dataclasses import dataclass

from strandline.postgres.operations import Op, many
from strandline.postgres.statements import SqlFile

DEAD = 100_000  # dead rows from which on a table is worth a word
SHARE = 5.0  # dead rows for each that lives, likewise
HELD = 60.0  # seconds a transaction may hold the horizon before it is named
OLD = 1_000_000  # transactions, where seconds are not known
INDEX_BYTES = 64 * 1024 * 1024  # below which no index is worth a word
INDEX_ROW = 200  # bytes of an index for each row, dead ones included, beyond which it is bloated


@dataclass(frozen=True, slots=True)
class Health:
    """One table of jobs.

    Attributes:
        live: Rows, as the statistics tell.
        dead: Rows that vacuum is to remove.
        index_name: Of its largest index.
        vacuumed: Seconds since it was vacuumed; None: never.
    """

    name: str
    live: int
    dead: int
    bytes: int
    index_name: str
    index_bytes: int
    vacuumed: float | None


@dataclass(frozen=True, slots=True)
class Holder:
    """Who keeps dead rows from being removed.

    Attributes:
        kind: ``session``, ``prepared transaction`` or ``replication slot``.
        who: Its application, transaction id or slot.
        seconds: Since its transaction began; None where that is not known.
        age: In transactions.
    """

    kind: str
    who: str
    pid: int
    state: str
    seconds: float | None
    age: int

    @property
    def is_old(self) -> bool:
        """Whether it holds on for too long."""
        return self.age > OLD if self.seconds is None else self.seconds > HELD

    def __str__(self) -> str:
        """For people."""
        where = f" pid {self.pid}" if self.pid else ""
        since = f" for {self.seconds:.0f} s" if self.seconds is not None else ""
        return f"{self.kind} {self.who!r}{where} ({self.state}{since}, {self.age} transactions)"


_sql = SqlFile(__name__)
TABLE_HEALTH = _sql.many("table_health", Health)
HOLDERS = _sql.many("horizon_holders", Holder)


def look() -> Op[tuple[list[Health], list[Holder]]]:
    """The tables of jobs, and who holds their horizon, the oldest first."""
    tables = yield from many(TABLE_HEALTH)
    holders = yield from many(HOLDERS, 3)
    return tables, holders


def advice(tables: list[Health], holders: list[Holder]) -> list[str]:
    """What is wrong and what helps, in sentences; empty if all is well."""
    found = []
    old = [holder for holder in holders if holder.is_old]
    for table in tables:
        if table.dead > DEAD and table.dead > SHARE * table.live:
            why = f"held by {old[0]}: end it" if old else "vacuum lags: VACUUM it by hand"
            found.append(f"{table.name} has {table.dead} dead rows on {table.live}; {why}")
        rows = table.live + table.dead
        if table.index_bytes > INDEX_BYTES and table.index_bytes > INDEX_ROW * rows:
            found.append(
                f"{table.index_name} has {table.index_bytes // 1024 // 1024} MB for {rows} rows:"
                f" REINDEX INDEX CONCURRENTLY {table.index_name}"
            )
    return found
