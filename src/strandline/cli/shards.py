"""How the shards of an App are doing, as `projections list` and `doctor` tell it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from strandline.cli.connect import Database
    from strandline.survey.facts import ShardFacts, Survey

LIST_FIELDS = (
    *("name", "version", "kind", "lifecycle", "shard", "shards", "wanted", "seal", "state"),
    *("position", "lag_events", "lag_seconds", "rate", "node", "owner", "epoch", "reason"),
    *("category", "phase", "attempts", "pauses", "next_at", "failure", "changed_at"),
)

WORST_FIRST = (
    *("paused", "silent", "orphaned", "unplaced", "unassigned", "never_started", "stopped"),
    *("claiming", "held", "running"),
)


@dataclass(frozen=True, slots=True)
class Standing:
    """A projection or subscription and one of its shards; None where that has no such thing.

    Attributes:
        shards: Into how many it is cut.
        wanted: Into how many it is to be cut.
        seal: Where the shard stops until all have come there, since it is about to be cut otherwise.
        state: As a survey tells it (``running``, ``paused``, ``never_started`` ...); the lifecycle
            (``inline``, ``live``) of what no node runs.
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
    failure: dict[str, Any] | None
    changed_at: datetime | None

    @property
    def title(self) -> str:
        """The shard's name; short where it is the only one."""
        if self.shard is not None and (self.shards or 1) > 1:
            return self.shard
        return self.name if self.version is None else f"{self.name}:v{self.version}"


async def standings(db: Database) -> tuple[Survey, list[Standing]]:
    """A survey, and the standing of every shard of the App, by name.

    What no node runs has one standing, without a shard.
    """
    from strandline.cli.connect import need_app
    from strandline.survey.survey import take

    registry = need_app(db.app).registry
    await db.pool.run(db.requests.learn_retired())
    survey = await take(db.pool, labels=registry.labels(), second_look=0.0)
    found: list[Standing] = []
    for projection in registry.kept():
        facts = {
            "name": projection.name,
            "version": projection.version,
            "kind": projection.kind,
            "lifecycle": str(projection.lifecycle),
        }
        found += _standings(facts, projection.label, survey)
    for subscription in registry.subscriptions.values():
        facts = {
            "name": subscription.name,
            "version": None,
            "kind": "subscription",
            "lifecycle": "async",
        }
        found += _standings(facts, subscription.label, survey)
    return survey, sorted(found, key=_version)


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


def _standings(common: dict[str, Any], label: str, survey: Survey) -> list[Standing]:
    own = [one for one in survey.shards if one.projection == label and one.kind != "build"]
    if not own:
        nothing: dict[str, Any] = dict.fromkeys(LIST_FIELDS)
        return [Standing(**nothing | {"state": common["lifecycle"]} | common)]
    return [_standing(common, one) for one in own]


def _standing(common: dict[str, Any], shard: ShardFacts) -> Standing:
    facts: dict[str, Any] = {
        "shard": shard.name,
        "shards": shard.parts,
        "wanted": shard.wanted,
        "seal": shard.seal,
        "state": shard.state,
        "position": shard.position,
        "lag_events": shard.lag_events,
        "lag_seconds": shard.lag_seconds,
        "rate": shard.rate,
        "node": shard.node or None,
        "owner": str(shard.owner) if shard.owner else None,
        "epoch": shard.epoch,
        "reason": shard.reason or None,
        "category": shard.category or None,
        "phase": shard.phase or None,
        "attempts": shard.attempts,
        "pauses": shard.pauses,
        "next_at": shard.next_at,
        "failure": shard.failure,
        "changed_at": shard.told_at,
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
    lines = [f"{one.title} {one.state}: {one.reason}"]
    facts = one.failure or {}
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
