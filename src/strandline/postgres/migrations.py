"""Applies schema/NNNN_*.sql in order, each once, in one transaction under an advisory lock.

Forward only. Many processes may start at the same moment: one applies, the others wait for the
lock and then find nothing to do.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files

from strandline.errors import SchemaOutOfDate
from strandline.postgres.operations import Call, Op, many, none, one
from strandline.postgres.statements import SqlFile, Statement

_FILE = re.compile(r"^(\d{4})_(\w+)\.sql$")


@dataclass(frozen=True, slots=True)
class Found:
    """Whether something is there."""

    found: bool


@dataclass(frozen=True, slots=True)
class Locked:
    """The migrators' lock is ours."""

    locked: bool


@dataclass(frozen=True, slots=True)
class Applied:
    """A migration the database has."""

    number: int
    name: str
    checksum: str
    applied_at: datetime


@dataclass(frozen=True, slots=True)
class Migration:
    """A migration this program brings."""

    number: int
    name: str
    text: str

    @property
    def checksum(self) -> str:
        """Tells whether a file was changed after it had been applied."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


_sql = SqlFile(__name__)
LOCK = _sql.one("lock_migrations", Locked)
EXIST = _sql.one("migrations_exist", Found)
CREATE_SCHEMA = _sql.none("create_migrations")
CREATE_TABLE = _sql.none("create_migrations_table")
APPLIED = _sql.many("applied_migrations", Applied)
RECORD = _sql.none("record_migration")


def available() -> list[Migration]:
    """The migrations this program brings, in order."""
    found = []
    for file in files("strandline.postgres.schema").iterdir():
        match = _FILE.match(file.name)
        if match:
            found.append(Migration(int(match[1]), match[2], file.read_text(encoding="utf-8")))
    return sorted(found, key=lambda one: one.number)


def applied(schema: str) -> Op[list[Applied]]:
    """The migrations the database has; none when it was never migrated."""
    exists = yield from one(EXIST, schema)
    if not (exists and exists.found):
        return []
    return (yield from many(APPLIED))


def apply(schema: str) -> Op[list[Migration]]:
    """Apply what is missing, inside the session's transaction.

    Returns:
        What was applied now.

    Raises:
        SchemaOutOfDate: The database is newer than this program, or a migration it has was
            changed afterwards. Install the version of strandline that wrote it, or a later one.
    """
    yield from one(LOCK, schema)
    done = yield from applied(schema)
    missing = _missing(done)
    if not missing:
        return []
    if not done:
        yield from none(CREATE_SCHEMA)
        yield from none(CREATE_TABLE)
    for migration in missing:
        script: Statement[tuple[()]] = Statement(
            f"migration {migration.number:04}", migration.text, tuple, "none", (), None
        )
        yield Call(script, ())
        yield from none(RECORD, migration.number, migration.name, migration.checksum)
    return missing


def check(schema: str) -> Op[None]:
    """Refuse to run on tables that this program does not know.

    Raises:
        SchemaOutOfDate: A migration is missing (run ``strandline migrate apply``), or the
            database is newer than this program.
    """
    missing = _missing((yield from applied(schema)))
    if missing:
        names = ", ".join(f"{one.number:04}_{one.name}" for one in missing)
        raise SchemaOutOfDate(
            f"schema {schema!r} lacks {names}: run `strandline migrate apply`,"
            " or open the app with migrate_at_start=True"
        )


def _missing(done: list[Applied]) -> list[Migration]:
    have = {one.number: one for one in done}
    ours = {one.number: one for one in available()}
    newer = sorted(set(have) - set(ours))
    if newer:
        raise SchemaOutOfDate(
            f"the database has migration {newer[-1]:04}, this program knows {max(ours):04}:"
            " install a newer strandline"
        )
    changed = [n for n, one in have.items() if ours[n].checksum != one.checksum]
    if changed:
        raise SchemaOutOfDate(
            f"migration {changed[0]:04} was changed after it had been applied:"
            " install the version of strandline that applied it"
        )
    return [one for number, one in sorted(ours.items()) if number not in have]
