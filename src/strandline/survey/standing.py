"""The state of each shard: from its checkpoint, what its agent said, its work and its node."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from strandline.cluster.membership import NodeRow
from strandline.cluster.work_control import WorkRow
from strandline.daemon.progress import ShardProgress
from strandline.survey.facts import NodeFacts, ShardFacts

GONE = ("left", "dead")

_VERSIONED = re.compile(r":v\d+$")
_BUILD = re.compile(r"~\d+$")


@dataclass(frozen=True, slots=True)
class Around:
    """What a shard's state is told by, besides its own rows.

    Attributes:
        now: By the database's clock.
        highest: The highest visible position.
        mode: ``cluster`` or ``solo``.
        nodes: Those that are there and the last ones that are gone, by id.
        work: By name.
        is_led: Whether somebody leads.
        is_connected: Whether any app is open on the database, as far as can be seen.
    """

    now: datetime
    highest: int
    mode: str
    nodes: Mapping[UUID, NodeRow]
    work: Mapping[str, WorkRow]
    is_led: bool
    is_connected: bool

    @property
    def here(self) -> list[NodeRow]:
        """The nodes that are there."""
        return [one for one in self.nodes.values() if one.state not in GONE]

    def age(self, moment: datetime | None) -> float | None:
        """Seconds since *moment*."""
        return None if moment is None else max(0.0, (self.now - moment).total_seconds())


@dataclass(frozen=True, slots=True)
class _State:
    word: str
    reason: str = ""
    since: float | None = None
    node: str = ""
    paused_by: str = ""


def shard_facts(told: ShardProgress, parts: int, around: Around) -> ShardFacts:
    """The facts of one shard, of a label that is cut into *parts*."""
    work = around.work.get(told.name)
    state = _in_cluster(told, work, around) if around.mode == "cluster" else _alone(told, around)
    is_build = _BUILD.search(told.label) is not None
    is_paused = state.word == "paused"
    return ShardFacts(
        name=told.name,
        projection=_BUILD.sub("", told.label),
        kind=kind_of(told.label),
        state="rebuilding" if is_build and state.word == "running" else state.word,
        position=told.position,
        lag_events=max(0, around.highest - (told.position or 0)),
        lag_seconds=around.age(told.waiting_since) or 0.0,
        node=state.node or told.node or "",
        owner=(work.owner if work is not None else None) or told.owner,
        epoch=told.epoch,
        rate=told.rate if state.word == "running" else 0.0,
        reason=state.reason,
        category=(told.category or "") if is_paused else "",
        phase=(told.phase or "") if is_paused else "",
        attempts=told.attempts if is_paused else 0,
        pauses=told.pauses if is_paused else 0,
        failure=json.loads(told.failure) if told.failure else None,
        since=state.since,
        told_at=told.changed_at,
        next_at=told.next_at if is_paused else None,
        paused_by=state.paused_by,
        seal=told.seal,
        parts=parts,
        wanted=told.wanted,
        avoid=work.avoid if work is not None else "",
    )


def kind_of(label: str) -> str:
    """``projection``, ``subscription`` or ``build``."""
    if _BUILD.search(label):
        return "build"
    return "projection" if _VERSIONED.search(label) else "subscription"


def _alone(told: ShardProgress, around: Around) -> _State:
    """In mode solo nobody grants, and no node has a row: what is said last counts."""
    since = around.age(told.changed_at)
    if told.position is None:
        return _State("never_started", "nobody has run it yet")
    if told.state == "running" and not around.is_connected:
        return _State("silent", "no app is open on the database", since)
    return _said(told, since)


def _said(told: ShardProgress, since: float | None) -> _State:
    if told.state is None:  # no agent of this checkpoint has spoken: it has been set, or copied
        return _State("stopped" if told.owner is None else "claiming", "it has told nothing yet")
    by = "failure" if told.state == "paused" else ""
    return _State(told.state, told.reason or "", since, paused_by=by)


def _in_cluster(told: ShardProgress, work: WorkRow | None, around: Around) -> _State:
    is_gone = work is not None and work.owner_state in GONE
    if work is not None and work.owner is not None and not is_gone:
        return _owned(told, work, around)
    if work is not None and work.paused_at is not None:
        by = "operator" if work.rests_for is None else "rest"
        reason = work.reason or ("it rests for a while" if by == "rest" else "")
        return _State("held", reason, around.age(work.paused_at), paused_by=by)
    state = _ownerless(told, work, around)
    if work is not None and is_gone and state.word in ("unassigned", "stopped", "never_started"):
        name, node = work.owner_name or "", around.nodes.get(work.owner) if work.owner else None
        return _State("silent", f"its node {name} is gone", node.gone if node else None, name)
    return state


def _ownerless(told: ShardProgress, work: WorkRow | None, around: Around) -> _State:
    since = around.age(told.changed_at)
    label = _BUILD.sub("", told.label)
    has_run = told.position is not None
    if not around.here:
        why = "no node is there"
        found = _State("stopped", why, since) if has_run else _State("never_started", why)
    elif not any(label in one.labels for one in around.here):
        found = _State("orphaned", f"no node that is there has the code of {label}")
    elif work is not None and any(one.name == work.target for one in around.here):
        found = _State("claiming", f"node {work.target} is to run it", node=work.target or "")
    elif work is not None and work.unplaced is not None:
        found = _State("unplaced", work.unplaced)
    else:
        why = "the leader has given it to no node yet" if around.is_led else "nobody leads"
        found = _State("unassigned", why, since) if has_run else _State("never_started", why)
    return found


def _owned(told: ShardProgress, work: WorkRow, around: Around) -> _State:
    name = work.owner_name or ""
    node = around.nodes.get(work.owner) if work.owner is not None else None
    if node is not None and node.expires_in < 0:
        reason = f"its node {name} has not beaten for {node.silent:.1f} s"
        return _State("silent", reason, node.silent, name)
    if told.node != name or told.position is None:
        reason = f"node {name} has begun it and told nothing yet"
        return _State("claiming", reason, work.owned, name)
    found = _said(told, around.age(told.changed_at))
    since = work.owned if found.word == "running" else found.since
    return _State(found.word, found.reason, since, name, found.paused_by)


# ---- nodes


def node_facts(row: NodeRow, shards: int) -> NodeFacts:
    """The facts of the node in *row*, which owns *shards*."""
    is_silent = row.state not in GONE and row.expires_in < 0
    return NodeFacts(
        id=row.id,
        number=row.number,
        name=row.name,
        state="silent" if is_silent else row.state,
        mode=row.mode,
        beat_age=row.silent,
        expires_in=row.expires_in,
        loop_lag=row.loop_lag,
        work=row.work,
        shards=shards,
        is_leader=row.is_leader,
        labels=tuple(row.labels),
        capacity=row.capacity,
        priority=row.priority,
        version=row.version,
        host=row.host,
        pid=row.pid,
        pulse=row.pulse,
        age=row.age,
        drain_reason=row.drain_reason,
        left_reason=row.left_reason,
        report=_report(row.report),
        gone_for=row.gone,
    )


def _report(text: str | None) -> dict[str, Any] | None:
    found = json.loads(text) if text else None
    return found if isinstance(found, dict) else None
