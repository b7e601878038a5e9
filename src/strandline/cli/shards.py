"""How the shards of an App are doing, as `projections list` and `doctor` tell it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from strandline.cli.connect import Database
    from strandline.daemon.progress import ShardProgress
    from strandline.events.inspect import Extent

LIST_FIELDS = (
    *("name", "version", "kind", "lifecycle", "shard", "shards", "wanted", "seal", "state"),
    *("position", "lag_events", "lag_seconds", "rate", "node", "owner", "epoch", "reason"),
    *("category", "phase", "attempts", "pauses", "next_at", "failure", "changed_at"),
)

NEVER_RAN = "never ran"
NO_NODE = "no node"
WORST_FIRST = ("paused", NEVER_RAN, NO_NODE, "stopped", "running")


@dataclass(frozen=True, slots=True)
class Standing:
    """A projection or subscription and one of its shards; None where that has no such thing.

    Attributes:
        shards: Into how many it is cut.
        wanted: Into how many it is to be cut.
        seal: Where the shard stops until all have come there, since it is about to be cut otherwise.
        state: ``running``, ``paused``, ``stopped``; ``never ran`` without a checkpoint; ``no node``
            when the last word was ``running`` but no app is connected to the database; the
            lifecycle (``inline``, ``live``) of what no node runs.
    """

    name: str
    version: int | None
    kind: str
    lifecycle: str
    shard: str | None
    shards: int | None
    wanted: int | None
    seal: int | None
    state: str
    position: int | None
    lag_events: int | None
    lag_seconds: float | None
    rate: float | None
    node: str | None
    owner: str | None
    epoch: int | None
    reason: str | None
    category: str | None
    phase: str | None
    attempts: int | None
    pauses: int | None
    next_at: datetime | None
    failure: str | None
    changed_at: datetime | None

    @property
    def title(self) -> str:
        """The shard's name; short where it is the only one."""
        if self.shard is not None and (self.shards or 1) > 1:
            return self.shard
        return self.name if self.version is None else f"{self.name}:v{self.version}"


async def standings(db: Database) -> tuple[Extent, list[Standing]]:
    """How far the log reaches, and the standing of every shard of the App, by name.

    What no node runs has one standing, without a shard.
    """
    from strandline.cli.connect import need_app
    from strandline.daemon.progress import progress
    from strandline.events.inspect import log_extent
    from strandline.postgres.diagnosis import server_facts

    registry = need_app(db.app).registry
    await db.pool.run(db.requests.learn_retired())
    known: dict[str, list[ShardProgress]] = {}
    for one in await db.pool.run(progress(registry.labels())):
        known.setdefault(one.label, []).append(one)
    extent = await db.pool.run(log_extent())
    connected = (await db.pool.run(server_facts())).apps > 0
    found: list[Standing] = []
    for projection in registry.kept():
        facts = {
            "version": projection.version,
            "kind": projection.kind,
            "lifecycle": str(projection.lifecycle),
        }
        told = known.get(projection.label, [])
        found += _standings(projection.name, facts, told, extent, connected=connected)
    for subscription in registry.subscriptions.values():
        facts = {"version": None, "kind": "subscription", "lifecycle": "async"}
        told = known.get(subscription.label, [])
        found += _standings(subscription.name, facts, told, extent, connected=connected)
    return extent, sorted(found, key=_version)


def together(found: Iterable[Standing]) -> list[Standing]:
    """One standing for each projection: the worst state, the least position, all nodes."""
    return [_summed(list(some)) for _, some in groupby(found, key=_version)]


def recuts(found: Iterable[Standing]) -> list[str]:
    """What is being cut into another number of shards, in words."""
    told = []
    for _, some in groupby(found, key=_version):
        shards = list(some)
        first = shards[0]
        if first.wanted == first.shards:
            continue
        text = f"{first.name} is to be cut into {first.wanted} shards instead of {first.shards}"
        if first.seal is not None:
            there = sum(one.position == one.seal for one in shards)
            text += f": {there} of them have come to position {first.seal:,}, where all stop"
        told.append(text)
    return told


def _version(one: Standing) -> tuple[str, int]:
    return one.name, one.version or 0


def state_of(told: ShardProgress, *, connected: bool) -> str:
    """One word for how a shard is doing."""
    if told.position is None:
        return NEVER_RAN
    if told.state is None or (told.state == "running" and not connected):
        return NO_NODE
    return told.state


def _standings(
    name: str,
    facts: dict[str, Any],
    told: list[ShardProgress],
    extent: Extent,
    *,
    connected: bool,
) -> list[Standing]:
    common = facts | {"name": name, "shards": len(told) or None}
    if not told:
        return [_standing(common, None, extent, connected=connected)]
    return [_standing(common, one, extent, connected=connected) for one in told]


def _standing(
    common: dict[str, Any], told: ShardProgress | None, extent: Extent, *, connected: bool
) -> Standing:
    facts: dict[str, Any] = dict.fromkeys(LIST_FIELDS)
    if told is None:
        facts["state"] = common["lifecycle"]
    else:
        facts |= {
            "shard": told.name,
            "wanted": told.wanted,
            "seal": told.seal,
            "state": state_of(told, connected=connected),
            "position": told.position,
            "lag_events": max(0, extent.highest - (told.position or 0)),
            "lag_seconds": _waited(told.waiting_since, extent.now),
            "rate": told.rate if connected else 0.0,
            "node": told.node,
            "owner": str(told.owner) if told.owner else None,
            "epoch": told.epoch,
            "reason": told.reason or None,
            "category": told.category,
            "phase": told.phase,
            "attempts": told.attempts,
            "pauses": told.pauses,
            "next_at": told.next_at,
            "failure": told.failure,
            "changed_at": told.changed_at,
        }
    return Standing(**facts | common)


def _summed(shards: list[Standing]) -> Standing:
    if len(shards) == 1:
        return shards[0]
    worst = min(shards, key=lambda one: WORST_FIRST.index(one.state))
    ran = [one.position for one in shards if one.position is not None]
    nodes = sorted({one.node for one in shards if one.node})
    return replace(
        worst,
        shard=None,
        position=min(ran) if len(ran) == len(shards) else None,
        lag_events=max(one.lag_events or 0 for one in shards),
        lag_seconds=max(one.lag_seconds or 0.0 for one in shards),
        rate=sum(one.rate or 0.0 for one in shards),
        node=nodes[0] if len(nodes) == 1 else f"{len(nodes)} nodes",
        owner=None,
        epoch=None,
    )


def trouble(one: Standing, now: datetime) -> list[str]:
    """What a shard fails with, at which event, and when it tries again: a line each."""
    import msgspec

    lines = [f"{one.title} {one.state}: {one.reason}"]
    facts = msgspec.json.decode(one.failure) if one.failure else {}
    what = " ".join(text for text in (one.category, f"in {one.phase}") if text) if one.phase else ""
    if facts.get("position"):
        place = f"event at position {facts['position']:,}"
        if facts.get("type"):
            place += f", type {facts['type']}"
        if facts.get("stream"):
            place += f", stream {facts['stream']} version {facts['version']}"
        what = f"{what}: {place}" if what else place
    if facts.get("handler"):
        what += f", handler {facts['handler']}"
    if what:
        lines.append(f"  {what}")
    if one.state == "paused" and one.next_at is not None:
        left = max(0.0, (one.next_at - now).total_seconds())
        lines.append(
            f"  {one.attempts} tries failed, pause {one.pauses}: next try in {left:.0f} s, at"
            f" {one.next_at:%H:%M:%S} UTC"
        )
    return lines


def _waited(since: datetime | None, now: datetime) -> float:
    return max(0.0, (now - since).total_seconds()) if since is not None else 0.0
