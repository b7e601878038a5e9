"""Who is in the cluster, and what an operator may ask of a node."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from strandline.cluster.log import Pruned
from strandline.errors import InvalidInput
from strandline.postgres.operations import Op, many, one
from strandline.postgres.statements import SqlFile

LONGEST_AGE = 7 * 86_400.0  # seconds the row of a node that is gone is kept
MOST_GONE = 100  # rows of nodes that are gone
RECENT = 3_600.0  # seconds in which a row is kept in any case: work returns to its name
AT_ONCE = 1_000  # rows deleted by one statement


@dataclass(frozen=True, slots=True)
class NodeRow:
    """A node as the database knows it.

    Attributes:
        id: Of this process start.
        number: Short for people; grows with every start.
        age: Seconds since it started; of one that is gone, how long it ran.
        silent: Seconds since its last beat.
        expires_in: Seconds until it counts as dead without a beat; negative afterwards.
        loop_lag: Seconds its event loop was late at the last beat.
        progress: A number that grows while its work gets on.
        work: How much work it owns.
        drain_reason: Why it was asked to drain, or None.
        report: Its shutdown report, as JSON.
        gone: Seconds since it left, or was declared dead; None if it is there.
    """

    id: UUID
    number: int
    name: str
    state: str
    mode: str
    labels: list[str]
    capacity: float
    priority: int
    version: str
    host: str
    pid: int
    pulse: str
    age: float
    silent: float
    expires_in: float
    loop_lag: float
    progress: int
    work: int
    is_leader: bool
    drain_reason: str | None
    left_reason: str
    report: str | None
    gone: float | None = None


@dataclass(frozen=True, slots=True)
class Match:
    """A node that a word may mean. The lower *likely*, the better it fits."""

    id: UUID
    number: int
    name: str
    state: str
    likely: int


@dataclass(frozen=True, slots=True)
class Asked:
    """The node that was asked, or declared dead."""

    id: UUID
    name: str


@dataclass(frozen=True, slots=True)
class AskedLeader:
    """The leader that was asked to resign."""

    holder: UUID
    name: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Numbered:
    """The number of a node."""

    number: int


_sql = SqlFile(__name__)
NUMBER = _sql.one("number_of", Numbered)
LIST = _sql.many("list_nodes", NodeRow)
MATCH = _sql.many("match_nodes", Match)
DRAIN = _sql.one("request_drain", Asked)
RESIGN = _sql.one("request_resign", AskedLeader)
EVICT = _sql.one("evict_node", Asked)
PRUNE = _sql.one("prune_nodes", Pruned)


def channel(schema: str) -> str:
    """Where changes of the cluster with its tables in *schema* are told by NOTIFY."""
    return f"{schema}.cluster"


def nodes(*, gone: int = 20) -> Op[list[NodeRow]]:
    """All nodes that are there, by number, and the last *gone* ones that have left or died."""
    return (yield from many(LIST, gone))


def number_of(node: UUID) -> Op[int | None]:
    """The number of *node*, never used again. None: it is not there (any more)."""
    found = yield from one(NUMBER, node)
    return found.number if found else None


def find_node(word: str) -> Op[Match | None]:
    """The node that *word* means: its name, number, id, or the first six letters of its id or more.

    Raises:
        InvalidInput: It may mean several.
    """
    found = yield from many(MATCH, word.strip())
    best = [one for one in found if one.likely == found[0].likely] if word.strip() else []
    if len(best) > 1 and best[0].state not in ("left", "dead"):
        known = ", ".join(f"{one.number} ({one.name}, {one.state}, {one.id})" for one in best)
        raise InvalidInput(f"{word!r} may mean several nodes: {known}; give a number or an id")
    return best[0] if best else None


def request_drain(node: UUID, reason: str, *, channel: str) -> Op[Asked | None]:
    """Ask a node to give all its work away and take nothing new. None: it is not there."""
    return (yield from one(DRAIN, node, reason, channel))


def request_resign(reason: str, *, channel: str) -> Op[AskedLeader | None]:
    """Ask the leader to let another one lead. None: there is none."""
    return (yield from one(RESIGN, reason, channel))


def evict(node: UUID, reason: str, *, channel: str) -> Op[Asked | None]:
    """Declare a node dead: its work goes to others now, and whatever it still writes is refused.

    None: it is not there (any more). A node that lives learns of it in its next beat.
    """
    return (yield from one(EVICT, node, reason, channel))


def prune(
    *,
    age: float = LONGEST_AGE,
    keep: int = MOST_GONE,
    recent: float = RECENT,
    most: int = AT_ONCE,
) -> Op[int]:
    """Delete rows of nodes that are gone for *age* seconds or beyond the newest *keep*.

    Returns:
        How many were deleted; 0: there is nothing more to delete.
    """
    done = yield from one(PRUNE, age, keep, recent, most)
    return done.rows if done else 0
