"""How the shards of an App are doing, as `projections list` and `doctor` tell it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from strandline.cli.connect import Database
    from strandline.daemon.progress import ShardProgress
    from strandline.events.inspect import Extent

LIST_FIELDS = (
    *("name", "version", "kind", "lifecycle", "shard", "state", "position", "lag_events"),
    *("lag_seconds", "rate", "node", "owner", "epoch", "reason", "failure", "changed_at"),
)

NEVER_RAN = "never ran"
NO_NODE = "no node"


@dataclass(frozen=True, slots=True)
class Standing:
    """A projection or subscription and its shard; None where that has no such thing.

    Attributes:
        state: ``running``, ``paused``, ``stopped``; ``never ran`` without a checkpoint; ``no node``
            when the last word was ``running`` but no app is connected to the database; the
            lifecycle (``inline``, ``live``) of what no node runs.
    """

    name: str
    version: int | None
    kind: str
    lifecycle: str
    shard: str | None
    state: str
    position: int | None
    lag_events: int | None
    lag_seconds: float | None
    rate: float | None
    node: str | None
    owner: str | None
    epoch: int | None
    reason: str | None
    failure: str | None
    changed_at: datetime | None


async def standings(db: Database) -> tuple[Extent, list[Standing]]:
    """How far the log reaches, and the standing of everything the App declares, by name."""
    from strandline.cli.connect import need_app
    from strandline.daemon.progress import progress
    from strandline.events.inspect import log_extent
    from strandline.postgres.diagnosis import server_facts

    registry = need_app(db.app).registry
    known = {one.name: one for one in await db.pool.run(progress(registry.shards()))}
    extent = await db.pool.run(log_extent())
    connected = (await db.pool.run(server_facts())).apps > 0
    found = []
    for projection in registry.projections.values():
        told = known.get(projection.shard)
        standing = _standing(
            projection.name,
            version=projection.version,
            kind=projection.kind,
            lifecycle=str(projection.lifecycle),
            told=told,
            extent=extent,
            connected=connected,
        )
        found.append(standing)
    for subscription in registry.subscriptions.values():
        standing = _standing(
            subscription.name,
            version=None,
            kind="subscription",
            lifecycle="async",
            told=known.get(subscription.shard),
            extent=extent,
            connected=connected,
        )
        found.append(standing)
    return extent, sorted(found, key=lambda one: one.name)


def state_of(told: ShardProgress, *, connected: bool) -> str:
    """One word for how a shard is doing."""
    if told.position is None:
        return NEVER_RAN
    if told.state is None or (told.state == "running" and not connected):
        return NO_NODE
    return told.state


def _standing(
    name: str,
    *,
    version: int | None,
    kind: str,
    lifecycle: str,
    told: ShardProgress | None,
    extent: Extent,
    connected: bool,
) -> Standing:
    facts: dict[str, Any] = dict.fromkeys(LIST_FIELDS)
    if told is not None:
        facts |= {
            "shard": told.name,
            "state": state_of(told, connected=connected),
            "position": told.position,
            "lag_events": max(0, extent.highest - (told.position or 0)),
            "lag_seconds": _waited(told.waiting_since, extent.now),
            "rate": told.rate if connected else 0.0,
            "node": told.node,
            "owner": str(told.owner) if told.owner else None,
            "epoch": told.epoch,
            "reason": told.reason or None,
            "failure": told.failure,
            "changed_at": told.changed_at,
        }
    else:
        facts["state"] = lifecycle
    return Standing(
        **facts | {"name": name, "version": version, "kind": kind, "lifecycle": lifecycle}
    )


def _waited(since: datetime | None, now: datetime) -> float:
    return max(0.0, (now - since).total_seconds()) if since is not None else 0.0
