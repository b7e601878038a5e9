"""Leases: named rights with an epoch, as single statements by the server's clock.

    free ──acquire──▶ held, epoch n ──renew──▶ held, epoch n, longer
      ▲                   │    │
      └──────resign───────┘    └──expires, or unchanged for long──▶ acquired by another: epoch n + 1

The holder trusts a lease until ``start of its last successful attempt + ttl - margin`` on the
clock of its own machine that counts from boot. The server computes the end of the lease later
than that start, and nobody else can acquire before that end; so no two processes believe in the
same lease, as long as their clocks run equally fast within ``margin / ttl``. If that fails, what
the holder writes is still refused, since every fenced write names holder and epoch.

An epoch is used by one term only: an expired term is never revived, and one that was given up is
never taken up again. The row is logged and never deleted, since the epoch would go with it.

What can go wrong, and what then: the answer to an acquire is lost: the next look shows the own id
as the holder, and a renewal *adopts* that epoch. The server's clock is set back, or another server
with a slower clock takes over: the lease seems good for hours; who has seen the same (epoch,
renewals) for one and a half ttl of its own clock *takes over unchanged*, with no clock compared.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from uuid import UUID

from strandline.postgres.operations import Op, one
from strandline.postgres.statements import SqlFile

LEADER = "leader"

_BOOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # macOS counts sleep in MONOTONIC


@dataclass(frozen=True, slots=True)
class Term:
    """The epoch under which a lease was won, renewed or given up."""

    epoch: int


_sql = SqlFile(__name__)
ACQUIRE = _sql.one("acquire_lease", Term)
TAKE_OVER = _sql.one("take_over_lease", Term)
RENEW = _sql.one("renew_lease", Term)
RESIGN = _sql.one("resign_lease", Term)


@dataclass(frozen=True, slots=True)
class Leadership:
    """The right to act as leader, until a moment of ``boot_time``."""

    epoch: int
    trusted_until: float


def boot_time() -> float:
    """Seconds since this machine booted, the time it was suspended counted: one for all processes."""
    return time.clock_gettime(_BOOT)


def acquire(name: str, holder: UUID, *, ttl: float, channel: str) -> Op[int | None]:
    """Become the holder of lease *name* if nobody is or its term has ended; the new epoch.

    None: it has a holder, another was faster, or *holder* is no active node. Contenders never
    queue for the row.
    """
    term = yield from one(ACQUIRE, name, holder, ttl, channel)
    return term.epoch if term else None


def take_over(
    name: str, holder: UUID, epoch: int, renewals: int, *, ttl: float, channel: str
) -> Op[int | None]:
    """Become the holder if the lease is still as it was seen, whatever any clock says.

    None: it has changed, so somebody has it, or *holder* is no active node.
    """
    term = yield from one(TAKE_OVER, name, holder, ttl, epoch, renewals, channel)
    return term.epoch if term else None


def renew(name: str, holder: UUID, epoch: int, *, ttl: float) -> Op[int | None]:
    """Extend the term *epoch*. None: it has ended, or was given up; it is never revived."""
    term = yield from one(RENEW, name, holder, epoch, ttl)
    return term.epoch if term else None


def resign(name: str, holder: UUID, epoch: int, *, reason: str, channel: str) -> Op[int | None]:
    """Give the term *epoch* up. None: it was not the holder's any more."""
    term = yield from one(RESIGN, name, holder, epoch, reason, channel)
    return term.epoch if term else None
