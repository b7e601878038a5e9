"""What a pulse tells the database: that a node joins, beats, leaves, or has died."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from strandline.cluster import lease
from strandline.cluster.election import Acquire, Adopt, Move, Resign, TakeOver
from strandline.cluster.lease import LEADER
from strandline.cluster.node import Identity, NodeState
from strandline.postgres.operations import Op, one
from strandline.postgres.statements import SqlFile


@dataclass(frozen=True, slots=True)
class Beat:
    """What one tick read back.

    Attributes:
        state: Of the node; None if it has no beating row: it was declared dead.
        end_reason: Why it is dead or has left, if it is or has.
        drain_reason: Why it is to drain; None if nobody asked for it.
        version: Of the cluster.
        holder: Of the leader's lease.
        epoch: Of that lease.
        renewals: Of that lease, ever.
        expires_in: Seconds of it that are left by the server's clock; 0 or less: it is free.
        lease_ttl: Seconds for which its holder took it.
        is_renewed: Whether this tick renewed it.
        resign_reason: Why its holder is asked to give it up; None if nobody asked.
        rivals: If it is free, how many higher priorities there are among active nodes.
    """

    state: str | None
    end_reason: str | None
    drain_reason: str | None
    version: int
    holder: UUID | None
    epoch: int
    renewals: int
    expires_in: float
    lease_ttl: float
    is_renewed: bool
    resign_reason: str | None
    rivals: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The state in which a node ended."""

    state: str


@dataclass(frozen=True, slots=True)
class Joined:
    """The number of a node that has a row now."""

    number: int


_sql = SqlFile(__name__)
JOIN = _sql.one("join_cluster", Joined)
TICK = _sql.one("tick", Beat)
END = _sql.one("end_node", Ended)


@dataclass(frozen=True, slots=True)
class Terms:
    """How long what lasts, and where changes are told."""

    node_ttl: float
    leader_ttl: float
    channel: str


def join(identity: Identity, pulse: str, terms: Terms) -> Op[None]:
    """Make the node's row, in state *joining*. Doing it twice does nothing more."""
    one_node = identity
    yield from one(
        JOIN,
        one_node.id,
        one_node.name,
        one_node.mode,
        list(one_node.labels),
        one_node.capacity,
        one_node.priority,
        one_node.version,
        one_node.host,
        one_node.pid,
        pulse,
        terms.node_ttl,
        terms.channel,
    )


def tick(
    identity: Identity,
    state: NodeState,
    terms: Terms,
    *,
    loop_lag: float,
    progress: int,
    epoch: int | None,
) -> Op[Beat | None]:
    """Beat, renew the leader's lease of *epoch*, and read what the cluster wants: one round trip.

    A node that drains goes on draining, and none goes back to joining, whatever *state* says.
    None: the lease's row is missing.
    """
    return (
        yield from one(
            TICK,
            identity.id,
            state.value,
            terms.node_ttl,
            loop_lag,
            progress,
            LEADER,
            epoch,
            terms.leader_ttl,
            identity.priority,
            terms.channel,
        )
    )


def made(move: Move, node: UUID, terms: Terms) -> Op[int | None]:
    """Do what the election says; the epoch for which it worked. None: another has the lease."""
    ttl, channel = terms.leader_ttl, terms.channel
    match move:
        case Acquire():
            return lease.acquire(LEADER, node, ttl=ttl, channel=channel)
        case TakeOver(epoch, renewals):
            return lease.take_over(LEADER, node, epoch, renewals, ttl=ttl, channel=channel)
        case Adopt(epoch):
            return lease.renew(LEADER, node, epoch, ttl=ttl)
        case Resign(epoch, reason):
            return lease.resign(LEADER, node, epoch, reason=reason, channel=channel)


def end(
    node: UUID, state: NodeState, reason: str, terms: Terms, *, report: str | None = None
) -> Op[bool]:
    """Write down that *node* has left or died, and give up every lease it has.

    Whether its row says so now; not if it said something else that is final, or is gone.
    """
    found = yield from one(END, node, state.value, reason, report, terms.channel)
    return found is not None and found.state == state
