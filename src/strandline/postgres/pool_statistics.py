"""How full a pool is, and what it has been through."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """How full a pool is, and what it has been through.

    Attributes:
        name: Of the pool.
        size: Connections open now.
        in_use: Of these, taken by somebody.
        idle: Of these, free.
        waiting: Callers that wait for one.
        most: Connections there may be.
        longest_wait: Seconds, the longest that anybody waited so far.
        waited: Seconds that all callers waited together.
        taken: Times that a connection was taken.
        exhausted: Times that none came free in time.
        oldest_transaction: Age in seconds of the oldest open transaction; 0 without any.
        leaked: Transactions reported as leaked.
        rolled_back: Of these, ended by force.
    """

    name: str
    size: int
    in_use: int
    idle: int
    waiting: int
    most: int
    longest_wait: float
    waited: float = 0.0
    taken: int = 0
    exhausted: int = 0
    oldest_transaction: float = 0.0
    leaked: int = 0
    rolled_back: int = 0
