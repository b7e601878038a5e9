"""What the server says of itself: version, durability, connections, rights."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from strandline.postgres.operations import Op, many, one
from strandline.postgres.statements import SqlFile
from strandline.settings import Settings

CURE = (
    "raise max_connections, lower work_connections, close other clients, or put PgBouncer before"
    ' the server (pooler="transaction")'
)

NO_QUEUE = "none"  # the setting queues of a node that runs no jobs
FETCHING, DUTIES = 2, 2  # connections of a node's job workers, and of the leader's duties
SURVEY = 1  # and of the leader's survey


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
        apps: Apps open on this database, in any process; not those behind a pooler alone.
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
class Room:
    """How many connections there may be.

    Attributes:
        max_connections: Of the server.
        reserved: Of these, for superusers and other reserved roles.
        database_limit: CONNECTION LIMIT of the database; None without.
        role_limit: CONNECTION LIMIT of our role; None without.
        connections: Clients connected to the server now, ours included.
        ours: Of these, of the apps on this database.
        apps: Apps open on this database, in any process.
    """

    max_connections: int
    reserved: int
    database_limit: int | None
    role_limit: int | None
    connections: int
    ours: int
    apps: int

    @property
    def most(self) -> int:
        """Connections that a role without privileges may have in this database."""
        limits = (self.max_connections - self.reserved, self.database_limit, self.role_limit)
        return min(one for one in limits if one is not None)

    @property
    def left(self) -> int:
        """Of these, what others leave to the apps on this database."""
        others = self.connections - self.ours
        bounds = [self.max_connections - self.reserved - others]
        bounds += [one for one in (self.database_limit, self.role_limit) if one is not None]
        return max(0, min(bounds))


@dataclass(frozen=True, slots=True)
class Needs:
    """Server connections that one app may open, by what they are for. A pooler's are not counted.

    Attributes:
        jobs: For fetching jobs and for recording their ends, in a node that runs some.
        duties: The leader's, for what it does about jobs: one app of all has them.
        survey: The leader's, or a solo node's, for looking at everything.
    """

    work: int
    control: int
    listen: int
    pulse: int
    jobs: int = 0
    duties: int = 0
    survey: int = 0

    @classmethod
    def of(cls, settings: Settings, *, jobs: bool = False) -> Needs:
        """What an app with *settings* opens on the server at the most.

        Args:
            settings: Of the app.
            jobs: Whether its code has jobs.
        """
        is_pooled = settings.pooler == "transaction"
        is_direct = bool(settings.direct_url) or not is_pooled
        leads = is_direct and settings.mode != "follower"
        runs_jobs = jobs and is_direct and settings.queues.strip() != NO_QUEUE
        return cls(
            work=0 if is_pooled else settings.work_connections,
            control=settings.control_connections if is_direct else 0,
            listen=1 if is_direct else 0,
            pulse=1 if is_direct and settings.mode != "solo" else 0,
            jobs=FETCHING if runs_jobs else 0,
            duties=DUTIES if jobs and leads else 0,
            survey=SURVEY if settings.metrics and leads else 0,
        )

    @property
    def total(self) -> int:
        """All that every app has."""
        return self.work + self.control + self.listen + self.pulse + self.jobs

    def of_all(self, apps: int) -> int:
        """Those of so many apps, one of which leads."""
        return apps * self.total + (self._leading if apps else 0)

    @property
    def _leading(self) -> int:
        return self.duties + self.survey

    def __str__(self) -> str:
        """In words."""
        parts = {"work": self.work, "control": self.control, "listen": self.listen}
        parts |= {"beats": self.pulse, "jobs": self.jobs}
        words = [f"{number} {what}" for what, number in parts.items() if number]
        if self._leading:
            words.append(f"{self._leading} more while it leads")
        return ", ".join(words)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A prepared transaction that nobody has finished."""

    gid: str
    owner: str
    prepared: datetime
    age: float


@dataclass(frozen=True, slots=True)
class Rights:
    """What the role may do in the schema: create tables, read all of them, write all of them.

    Attributes:
        sees_all: Also what other roles do; else ``pg_stat_activity`` shows only its own.
    """

    role: str
    sees_all: bool
    creates: bool
    reads: bool
    writes: bool


_sql = SqlFile(__name__)
_server_facts = _sql.one("server_facts", ServerFacts)
_room = _sql.one("room", Room)
_lingering_prepared = _sql.many("lingering_prepared", Prepared)
_may_write = _sql.one("may_write", Rights)


def server_facts() -> Op[ServerFacts]:
    """Answer what the server says of itself."""
    found = yield from one(_server_facts)
    assert found is not None
    return found


def room() -> Op[Room]:
    """Answer how many connections there may be, and are."""
    found = yield from one(_room)
    assert found is not None
    return found


def shortage(found: Room, needs: Needs) -> str:
    """Why the connections of all apps on this database do not fit, and the cure; empty if they do."""
    apps = max(1, found.apps)
    if needs.of_all(apps) <= found.left:
        return ""
    who = "one app" if apps == 1 else f"{apps} apps"
    each = "" if apps == 1 else f" each, {needs.of_all(apps)} in all"
    limits = [f"max_connections {found.max_connections}", f"{found.reserved} reserved"]
    limits += [f"{found.connections - found.ours} used by others"]
    if found.database_limit is not None:
        limits.append(f"CONNECTION LIMIT {found.database_limit} of the database")
    if found.role_limit is not None:
        limits.append(f"CONNECTION LIMIT {found.role_limit} of the role")
    return (
        f"{who} on this database may open {needs.total} connections{each} ({needs}), and there is"
        f" room for {found.left} ({', '.join(limits)}): {CURE}"
    )


def lingering_prepared(seconds: float) -> Op[list[Prepared]]:
    """Answer prepared transactions of this database older than *seconds*, the oldest first."""
    return (yield from many(_lingering_prepared, seconds))


def may_write() -> Op[Rights | None]:
    """Answer what the role may do in the schema; None when that does not exist."""
    return (yield from one(_may_write))
