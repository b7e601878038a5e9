"""Surveys made by hand: one where all is well, and what can be wrong with it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from strandline.cluster.work_control import WorkRow
from strandline.events.gaps import Holder
from strandline.jobs.queues import QueueState
from strandline.postgres.diagnosis import Room
from strandline.survey.facts import (
    BuildFacts,
    LeaderFacts,
    MarkFacts,
    NodeFacts,
    QueueFacts,
    ServerFacts,
    ShardFacts,
    Survey,
    TransactionFacts,
    WorkFacts,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
A, B = UUID(int=1), UUID(int=2)


def node(name: str = "a", number: int = 1, **facts: Any) -> NodeFacts:
    given: dict[str, Any] = {
        "id": UUID(int=number),
        "number": number,
        "name": name,
        "state": "active",
        "mode": "cluster",
        "beat_age": 0.4,
        "expires_in": 14.0,
        "loop_lag": 0.0,
        "work": 2,
        "shards": 1,
        "is_leader": number == 1,
        "labels": ("orders:v2",),
        "capacity": 1.0,
        "priority": 0,
        "version": "0.1.0",
        "host": "h",
        "pid": 7,
        "pulse": "process",
        "age": 100.0,
        "drain_reason": None,
        "left_reason": "",
        "report": None,
        "gone_for": None,
    }
    return NodeFacts(**(given | facts))


def shard(name: str = "orders:v2:all", state: str = "running", **facts: Any) -> ShardFacts:
    given: dict[str, Any] = {
        "projection": name.rpartition(":")[0],
        "kind": "projection",
        "position": 100,
        "lag_events": 0,
        "lag_seconds": 0.0,
        "node": "a",
        "owner": A,
        "epoch": 1,
        "since": 60.0,
    }
    return ShardFacts(name=name, state=state, **(given | facts))


def work(name: str, **facts: Any) -> WorkRow:
    given: dict[str, Any] = dict.fromkeys(WorkRow.__dataclass_fields__)
    given |= {"name": name, "needs": [name.rpartition(":")[0]], "reason": "", "avoid": ""}
    return WorkRow(**(given | facts))


MARK = MarkFacts(
    position=100,
    highest=100,
    settled_at=NOW,
    age=0.0,
    is_stale=False,
    holders=(),
    rolled_back_numbers=0,
    forced_gaps=0,
    forced_numbers=0,
    late_events=0,
    detector="a",
    detector_state="alive",
)
SERVER = ServerFacts(
    version="18",
    room=Room(100, 3, None, None, 20, 12, 1),
    is_standby=False,
    horizon=0.0,
    jobs_ended=0,
)
WELL = Survey(
    taken_at=NOW,
    seconds=0.01,
    mode="cluster",
    mark=MARK,
    shards=(shard(),),
    nodes=(node(),),
    leader=LeaderFacts(A, "a", 5, 100.0, 10.0, 1.0),
    server=SERVER,
    leaderless=None,
    leader_changes=1,
    work=WorkFacts((work("orders:v2:all", owner=A),)),
)


def queue(**facts: Any) -> QueueFacts:
    more = {name: facts.pop(name) for name in ("dead", "oldest_dead") if name in facts}
    return QueueFacts(QueueState("mail", **facts), **more)


def transaction(**facts: Any) -> TransactionFacts:
    given = {
        "pid": 42,
        "application": "report",
        "user": "ada",
        "state": "idle in transaction",
        "age": 90.0,
        "idle": 80.0,
        "query": "SELECT  1",
        "client": "",
        "prepared": "",
        "holds_mark": False,
        "is_ours": False,
    }
    return TransactionFacts(**(given | facts))  # type: ignore[arg-type]  # each has its type


def with_shards(*shards: ShardFacts, **changes: Any) -> Survey:
    return replace(WELL, shards=shards, **changes)


def with_mark(**changes: Any) -> Survey:
    return replace(WELL, mark=replace(MARK, **changes))


def with_nodes(*nodes: NodeFacts, **changes: Any) -> Survey:
    return replace(WELL, nodes=nodes, **changes)


def gone(state: str = "left", **facts: Any) -> NodeFacts:
    return node("b", 9, state=state, is_leader=False, **({"gone_for": 60.0} | facts))


HOLDER = Holder(42, "import", "ada", "idle in transaction", 12.0, None, "INSERT", None)
PREPARED = Holder(None, None, "ada", "prepared", 12.0, None, None, "it's")
HELD_UP = {"highest": 120, "age": 12.0, "is_stale": True}
LATE = {"lag_events": 5_000, "lag_seconds": 240.0}
BUILD = BuildFacts(
    number=3,
    projection="orders:v2",
    purpose="rebuild",
    state="building",
    reason="",
    position=10,
    target=40,
    done=0.25,
    rate=5.0,
    shards=1,
    paused=0,
    known_by=1,
    age=60.0,
    idle=1.0,
)
STEPS = {"steps": [{"name": "drain agents", "status": "timeout", "seconds": 24.0, "error": "hung"}]}
