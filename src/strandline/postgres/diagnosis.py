"""What the server says of itself: version, durability, connections, rights."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from strandline.postgres.operations import Op, many, one
from strandline.postgres.statements import SqlFile


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """The settings of the server that strandline depends on.

    Attributes:
        version: As the server writes it.
        number: The same as a number, such as 180001.
        database: Where we are connected.
        user: As whom.
        standby: Whether it replays another server's log.
        read_only: Whether transactions are read-only by default.
        fsync: Off: a crash of the machine can destroy the data.
        full_page_writes: Off: the same.
        synchronous_commit: Off: a crash can lose the last commits.
        max_connections: Of the server.
        reserved_connections: Of these, for superusers and other reserved roles.
        connections: Clients connected now, ours included.
        database_limit: CONNECTION LIMIT of the database; None without.
        encoding: Of the database.
        apps: Open apps (listening connections) on this database, in any process.
    """

    version: str
    number: int
    database: str
    user: str
    standby: bool
    read_only: bool
    fsync: bool
    full_page_writes: bool
    synchronous_commit: str
    max_connections: int
    reserved_connections: int
    connections: int
    database_limit: int | None
    encoding: str
    apps: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """A prepared transaction that nobody has finished."""

    gid: str
    owner: str
    prepared: datetime
    age: float


@dataclass(frozen=True, slots=True)
class Rights:
    """What the role may do in the schema: use it, create tables, write all of them."""

    usage: bool
    creates: bool
    writes: bool


_sql = SqlFile(__name__)
_server_facts = _sql.one("server_facts", ServerFacts)
_lingering_prepared = _sql.many("lingering_prepared", Prepared)
_may_write = _sql.one("may_write", Rights)


def server_facts() -> Op[ServerFacts]:
    """Answer what the server says of itself."""
    found = yield from one(_server_facts)
    assert found is not None
    return found


def lingering_prepared(seconds: float) -> Op[list[Prepared]]:
    """Answer prepared transactions of this database older than *seconds*, the oldest first."""
    return (yield from many(_lingering_prepared, seconds))


def may_write() -> Op[Rights | None]:
    """Answer what the role may do in the schema; None when that does not exist."""
    return (yield from one(_may_write))
