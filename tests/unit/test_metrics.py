"""What is told becomes metrics of the catalogue: all of them, no others, and nobody is hit by it."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from strandline.cluster.election import Acquire, Adopt, Election, Rules, Seen
from strandline.cluster.shutdown_report import ShutdownReport
from strandline.errors import ApplyFailed, CheckpointMoved
from strandline.telemetry import otel_metrics
from strandline.telemetry.catalogue import CATALOGUE
from strandline.telemetry.catalogue.survey_metrics import WORK_STATES
from strandline.telemetry.metrics import LOCAL, Metrics
from strandline.telemetry.readings import READERS
from strandline.telemetry.rules import RULES
from strandline.telemetry.signals import Signals
from strandline.telemetry.tally import DROPPED

sdk = pytest.importorskip("opentelemetry.sdk.metrics")
export = pytest.importorskip("opentelemetry.sdk.metrics.export")

NODE = "shop-1"
ME, OTHER = uuid4(), uuid4()
MOVED = CheckpointMoved("orders:v1:all", epoch=3, position=40)
TOLD: dict[str, dict[str, Any]] = {
    "tick": {"seconds": 0.004},
    "tick_failed": {"error": "no answer"},
    "loop_blocked": {"seconds": 1.2, "stack": "..."},
    "unblocked": {"seconds": 2.5},
    "side_process_died": {"code": -9},
    "election": {"outcome": "won", "seconds": 0.02},
    "leading": {"epoch": 7},
    "not_leading": {"epoch": 7, "reason": "it could not be renewed in time"},
    "shard_claimed": {"shard": "orders:v1:all", "epoch": 4},
    "ownership_lost": {"shard": "orders:v1:all", "error": MOVED},
    "evicted": {"reason": "heartbeat"},
    "work_claimed": {"count": 3},
    "work_released": {"count": 2},
    "work_failed": {"work": "orders:v1:all", "error": None, "failures": 1},
    "work_avoided": {"work": "orders:v1:all", "failures": 3},
    "zombie_ended": {"shard": "orders:v1:all", "pid": 7, "idle": 3.0},
    "planned": {"changes": 7, "moves": 4, "seconds": 0.01, "placed": 3, "moved": 4, "withdrawn": 0},
    "leader_refused": {"epoch": 7, "reason": "publish"},
    "node_dead": {"node": "x"},
    "brake": {"due": 5},
    "batch_committed": {
        "shard": "orders:v1:all",
        "floor": 0,
        "ceiling": 5,
        "events": 4,
        "seconds": 0.03,
    },
    "batch_failed": {"shard": "orders:v1:all", "error": MOVED},
    "shard_paused": {"shard": "orders:v1:all", "error": ApplyFailed("orders", "bad")},
    "letters_written": {
        "label": "orders:v1",
        "category": "apply",
        "status": "skipped",
        "count": 3,
        "shard": "x",
    },
    "high_water_detected": {"mark": 40, "highest": 53, "settled": 50, "proved": 3, "forced": 6},
    "high_water_stale": {"position": 40, "highest": 53, "seconds": 3.0, "is_new": True},
    "high_water_went_back": {"before": 50, "position": 40},
    "late_event": {"first": 44, "last": 45, "events": 2, "fresh": 2},
    "forced_gap_passed": {"projection": "orders:v1", "numbers": 6},
    "loop_failed": {"loop": "agent", "name": "agent orders:v1:all", "error": MOVED},
    "letters_replayed": {"label": "orders:v1", "shard": "orders:v1:all", "count": 2},
    "letter_failed_again": {"label": "orders:v1", "shard": "x", "error": MOVED},
    "jobs_enqueued": {"queue": "mail", "count": 3},
    "jobs_claimed": {"queue": "mail", "count": 3, "seconds": 0.004, "wait": 0.5},
    "jobs_ran": {"queue": "mail", "count": 3, "seconds": 0.75},
    "job_stuck": {"job": 7, "kind": "send", "queue": "mail", "stack": "..."},
    "job_failed": {"id": 1, "queue": "mail", "kind": "send", "error": MOVED},
    "job_dead": {"id": 2, "queue": "mail", "kind": "send", "error": MOVED},
    "job_snoozed": {"id": 3, "queue": "mail", "kind": "send"},
    "job_cancelled": {"id": 4, "queue": "mail", "kind": "send"},
    "job_interrupted": {"id": 5, "queue": "mail", "kind": "send"},
    "jobs_flushed": {"count": 2, "seconds": 0.003},
    "jobs_fenced": {"count": 1},
    "jobs_promoted": {"count": 4},
    "jobs_rescued": {"count": 5, "dead": 1},
    "schedule_fired": {"schedule": "nightly", "count": 1},
    "schedule_missed": {"schedule": "nightly", "count": 2},
    "transaction_leaked": {"pool": "work", "age": 31.0},
    "transaction_rolled_back": {"pool": "work", "age": 61.0},
    "shutdown_step": {"step": "drain", "status": "timeout", "seconds": 10.0},
    "shutdown": {"report": ShutdownReport("SIGTERM", seconds=12.0, forced=True)},
}


@dataclass
class Part:
    """Statistics of anything."""

    name: str = ""
    epoch: int = 7
    seconds_since_tick: float = 1.5
    loop_lag: float = 0.25
    seconds_since_leader_seen: float = 2.5
    unplaced: int = 2
    mark: int = 50
    shard: str = "orders:v1:all"
    state: str = "running"
    position: int = 40
    size: int = 4
    most: int = 8
    in_use: int = 3
    waiting: int = 2
    longest_wait: float = 0.75
    oldest_transaction: float = 9.5
    exhausted: int = 6
    agents: tuple[Any, ...] = ()
    letters: tuple[Any, ...] = ()
    label: str = "orders:v1"
    status: str = "parked"
    count: int = 5
    queue: str = "mail"
    running: int = 9
    buffered: int = 11
    concurrency: int = 20
    pending: int = 12
    completed: int = 21
    oldest: datetime | None = datetime.now(UTC) - timedelta(seconds=33)
    dead_tuples: int = 1000
    index_bytes: int = 4096
    oldest_xmin: float | None = 99.0
    queues: tuple[Any, ...] = ()
    waited: float = 1.25
    taken: int = 40
    connected: bool = True
    is_polling: bool = False
    reconnects: int = 3
    kind: str = "agent"
    consecutive_failures: int = 2
    seconds_since_success: float = 8.0
    detects: bool = True
    moves: int = 4
    high_water: Any = None
    loop: Any = None
    is_dead: bool = False
    counts: tuple[Any, ...] = ()


SURVEY = SimpleNamespace(
    mode="cluster",
    seconds=0.2,
    leader_changes=2,
    mark=SimpleNamespace(
        position=50,
        highest=53,
        difference=3,
        age=7.0,
        is_stale=True,
        holders=("x",),
        detector_state="alive",
    ),
    shards=(
        SimpleNamespace(
            name="orders:v1:all",
            projection="orders:v1",
            state="paused",
            lag_events=13,
            lag_seconds=21.5,
        ),
    ),
    nodes_here=(SimpleNamespace(state="active", beat_age=1.5),),
    nodes=(
        SimpleNamespace(
            is_here=False,
            gone_for=60.0,
            result="forced",
            report={"seconds": 25.0, "result": "forced"},
        ),
        SimpleNamespace(is_here=False, gone_for=9_000.0, result="forced", report=None),
    ),
    work=SimpleNamespace(counts=dict.fromkeys(WORK_STATES, 1)),
    letters=(SimpleNamespace(projection="orders:v1", status="parked", count=5, oldest=99.0),),
    queues=(SimpleNamespace(name="mail", dead=4),),
    builds=(
        SimpleNamespace(projection="orders:v2", purpose="rebuild", done=0.5, idle=3.0, paused=1),
    ),
    server=SimpleNamespace(
        connections=12,
        most=97,
        oldest_transaction=SimpleNamespace(age=300.0),
        oldest_idle=None,
    ),
)


def picture() -> dict[str, Any]:
    return {
        "node": NODE,
        "leadership": Part(),
        "pulse": Part(),
        "balancer": Part(),
        "daemon": Part(agents=(Part(),), high_water=Part(loop=Part())),
        "pools": [Part("work"), Part("control")],
        "job_workers": Part(queues=(Part(),)),
        "job_completer": Part(),
        "listener": Part(),
        "loops": (Part(), Part(consecutive_failures=0), Part(kind="mark", consecutive_failures=0)),
        "events_appended": 70,
        "survey": SimpleNamespace(last=SURVEY, age=4.0),
        "lease_trust": 9.5,
        "job_watch": Part(counts=(Part(state="available"), Part(state="dead", oldest=None))),
    }


@pytest.fixture
def reader() -> Iterator[Any]:
    """What collects."""
    reader = export.InMemoryMetricReader()
    yield reader
    reader.shutdown()


@pytest.fixture
def meter(reader: Any) -> Any:
    """A meter whose values *reader* collects."""
    return sdk.MeterProvider(metric_readers=[reader]).get_meter("test")


def collected(reader: Any) -> dict[str, dict[tuple[tuple[str, Any], ...], Any]]:
    """By name: value (of a histogram the sum) by attributes."""
    found: dict[str, dict[tuple[tuple[str, Any], ...], Any]] = {}
    data = reader.get_metrics_data()
    for resource in data.resource_metrics if data else ():
        for scope in resource.scope_metrics:
            for one in scope.metrics:
                series = found.setdefault(one.name, {})
                for point in one.data.data_points:
                    key = tuple(sorted(dict(point.attributes).items()))
                    series[key] = point.value if hasattr(point, "value") else point.sum
    return found


def series(**attributes: str) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted({"node": NODE, **attributes}.items()))


def tell_all(signals: Signals) -> None:
    for name, facts in TOLD.items():
        signals.tell(name, **facts)


def test_all_that_is_told_is_in_the_catalogue_and_the_other_way_round(
    reader: Any, meter: Any
) -> None:
    signals = Signals()
    told = Metrics(signals, sources=picture, meter=meter)
    told.start()

    tell_all(signals)
    found = collected(reader)

    assert set(found) == set(CATALOGUE) - {DROPPED}
    for name, by_attributes in found.items():
        for attributes in by_attributes:
            assert {key for key, _ in attributes} == {"node", *CATALOGUE[name].attributes}, name


def test_rules_and_readers_name_metrics_of_their_kind() -> None:
    fed = {rule.metric for rules in RULES.values() for rule in rules}
    gauges = {one.name for one in CATALOGUE.values() if one.kind == "gauge"}

    assert fed | LOCAL == set(CATALOGUE) - set(READERS)
    assert gauges - LOCAL <= set(READERS) < set(CATALOGUE)
    assert set(RULES) <= set(TOLD)


def test_values_are_those_that_were_told(reader: Any, meter: Any) -> None:
    signals = Signals()
    Metrics(signals, sources=picture, meter=meter).start()  # kept by its signals
    tell_all(signals)
    signals.tell("ownership_lost", shard="orders:v1:all", error=MOVED)

    found = collected(reader)

    shard = series(shard="orders:v1:all")
    assert found["strandline_ownership_lost_total"][shard] == 2
    assert found["strandline_fenced_writes_total"][shard] == 1
    in_cluster = series(shard="orders:v1:all", projection="orders:v1")
    assert found["strandline_shard_lag_events"][in_cluster] == 13
    assert found["strandline_shard_lag_seconds"][in_cluster] == 21.5
    assert found["strandline_high_water_stale"][series()] == 1
    assert found["strandline_high_water_difference_events"][series()] == 3
    assert found["strandline_recent_shutdowns"][series(result="forced")] == 1
    assert found["strandline_high_water_settled_numbers_total"][series(kind="forced")] == 6
    assert found["strandline_late_events_total"][series()] == 2
    assert found["strandline_claims_total"][series()] == 3
    assert found["strandline_moves_total"][series(kind="placed")] == 3
    assert found["strandline_moves_total"][series(kind="withdrawn")] == 0
    assert found["strandline_rebalances_total"][series()] == 1
    assert found["strandline_unplaced_work"][series()] == 2
    assert found["strandline_leader"][series()] == 1
    assert found["strandline_lease_lost_total"][series(lease="leader")] == 1
    assert found["strandline_election_seconds"][series(outcome="won")] == 0.02
    assert found["strandline_pool_waiting_tasks"][series(pool="work")] == 2
    assert found["strandline_pool_exhausted_total"][series(pool="control")] == 6
    assert found["strandline_shards"][series(state="running")] == 1
    assert found["strandline_shards"][series(state="paused")] == 0
    assert found["strandline_shutdown_seconds"][series(result="forced")] == 12
    assert found["strandline_shutdowns_total"][series(result="forced")] == 1
    ended = found["strandline_jobs_not_completed_total"]
    assert {dict(one)["outcome"] for one in ended} == {
        *("retried", "dead", "snoozed", "cancelled", "released"),
    }
    assert ended[series(queue="mail", kind="send", outcome="dead")] == 1
    assert found["strandline_job_attempts_total"][series(queue="mail")] == 3
    assert found["strandline_jobs_completed_total"][series()] == 21
    assert found["strandline_job_run_seconds_total"][series(queue="mail")] == 0.75
    assert found["strandline_job_wait_seconds"][series(queue="mail")] == 0.5
    assert found["strandline_jobs"][series(queue="mail", state="dead")] == 5
    assert 33 <= found["strandline_job_oldest_available_seconds"][series(queue="mail")] < 86_400
    assert found["strandline_jobs_unrecorded"][series()] == 12
    assert found["strandline_shard_pauses_total"][shard] == 1
    projection = series(projection="orders:v1")
    assert found["strandline_events_processed_total"][projection] == 4
    assert found["strandline_batch_seconds"][projection] == 0.03
    skipped = found["strandline_skipped_events_total"]
    assert skipped[series(projection="orders:v1", **{"class": "apply"})] == 3
    assert skipped[series(projection="orders:v1", **{"class": "forced_gap"})] == 6
    assert found["strandline_loop_failures_total"][series(loop="agent")] == 1
    assert found["strandline_loop_seconds_since_success"] == {
        series(loop="agent"): 8.0,
        series(loop="mark"): 0.0,
    }
    assert found["strandline_events_appended_total"][series()] == 70
    assert found["strandline_listener_connected"][series()] == 1
    assert found["strandline_lease_trust_remaining_seconds"][series()] == 9.5
    assert found["strandline_pool_wait_seconds_total"][series(pool="work")] == 1.25


def test_what_alerts_begins_at_0_so_that_its_first_increase_shows(reader: Any, meter: Any) -> None:
    signals = Signals()
    told = Metrics(signals, sources=picture, meter=meter)
    told.start()
    signals.tell("shard_claimed", shard="orders:v1:all", epoch=1)

    found = collected(reader)

    assert found["strandline_ownership_lost_total"] == {series(shard="orders:v1:all"): 0}
    assert found["strandline_skipped_events_total"] == {
        series(projection="orders:v1", **{"class": one}): 0
        for one in ("apply", "undecodable", "unknown_type", "other", "forced_gap")
    }
    assert found["strandline_elections_total"][series(outcome="timed_out")] == 0
    assert found["strandline_leaked_transactions_total"][series(pool="work")] == 0
    assert found["strandline_shutdowns_total"] == {
        series(result=one): 0 for one in ("clean", "degraded", "forced")
    }
    assert found["strandline_evictions_total"] == {series(): 0}
    assert found["strandline_lease_lost_total"] == {series(lease="leader"): 0}


def _overtaken(election: Election) -> None:
    election.saw(Seen(OTHER, 2, 9, 12.0, 12.0), sent=1.0, received=1.0)


def _late(election: Election) -> None:
    election.saw(Seen(ME, 1, 1, 0.0, 12.0), sent=13.0, received=13.0)


def _refused(election: Election) -> None:
    election.refused(Adopt(1), 1.0)


def _withdrawn(election: Election) -> None:
    election.withdraw(1.0, seconds=12.0, reason="asked for by `strandline nodes resign`")


def _draining(election: Election) -> None:
    election.stand(False, 1.0, "its node is draining")


@pytest.mark.parametrize(
    ("happens", "lost"),
    [(_overtaken, 1), (_late, 1), (_refused, 1), (_withdrawn, 0), (_draining, 0)],
)
def test_a_lease_that_is_given_up_is_not_lost(
    happens: Callable[[Election], None], lost: int, reader: Any, meter: Any
) -> None:
    election = Election(ME, Rules(ttl=12.0, margin=2.0, interval=3.0), lambda: 0.5)
    election.stand(True, 0.0)
    election.won(Acquire(), 1, sent=0.0, now=0.0)
    signals = Signals()
    told = Metrics(signals, sources=picture, meter=meter)
    told.start()

    happens(election)
    signals.tell("not_leading", epoch=1, reason=election.lost_because)

    assert election.lost_because
    assert collected(reader)["strandline_lease_lost_total"][series(lease="leader")] == lost


def test_only_a_refused_write_counts_as_fenced(reader: Any, meter: Any) -> None:
    signals = Signals()
    told = Metrics(signals, sources=picture, meter=meter)
    told.start()

    signals.tell("batch_failed", shard="a", error=ApplyFailed("a", "bad"))
    signals.tell("batch_failed", shard="a", error=MOVED)

    assert collected(reader)["strandline_fenced_writes_total"] == {series(shard="a"): 1}


def test_a_parked_letter_is_no_skipped_event() -> None:
    signals = Signals()
    told = Metrics(signals, sources=picture)
    told.start()

    for status in ("parked", "skipped"):
        signals.tell("letters_written", label="a:v1", category="apply", status=status, count=2)

    assert told.tally.counts("strandline_skipped_events_total") == {("a:v1", "apply"): 2}
    assert sum(told.tally.counts("strandline_letters_written_total").values()) == 4


def test_a_follower_tells_neither_an_epoch_nor_unplaced_work(reader: Any, meter: Any) -> None:
    signals = Signals()
    leads: list[Any] = [Part()]
    told = Metrics(signals, sources=lambda: picture() | {"leadership": leads[0]}, meter=meter)
    told.start()
    assert collected(reader)["strandline_unplaced_work"] == {series(): 2}

    leads[0] = None
    found = collected(reader)

    assert found["strandline_leader"] == {series(): 0}
    assert "strandline_leader_epoch" not in found
    assert "strandline_unplaced_work" not in found


def test_after_stop_nothing_is_counted_and_no_gauge_told(reader: Any, meter: Any) -> None:
    signals = Signals()
    told = Metrics(signals, sources=picture, meter=meter)
    told.start()
    told.start()
    signals.tell("brake", due=3)

    told.stop()
    told.stop()
    signals.tell("brake", due=3)
    found = collected(reader)

    assert found["strandline_brakes_total"] == {series(): 1}
    assert "strandline_leader" not in found
    assert signals.listeners == []


def test_two_apps_of_a_process_are_told_apart_by_node(reader: Any, meter: Any) -> None:
    first, second = Signals(), Signals()
    one = Metrics(first, sources=picture, meter=meter)
    other = Metrics(second, sources=lambda: picture() | {"node": "shop-2"}, meter=meter)
    one.start()
    other.start()
    first.tell("brake", due=3)

    found = collected(reader)

    both = {series(), (("node", "shop-2"),)}
    assert set(found["strandline_leader"]) == both
    assert found["strandline_brakes_total"] == {series(): 1, (("node", "shop-2"),): 0}


def test_an_app_that_was_dropped_without_stop_is_not_kept(reader: Any, meter: Any) -> None:
    Metrics(Signals(), sources=picture, meter=meter).start()
    gc.collect()

    assert "strandline_leader" not in collected(reader)


def _broken(*_: Any) -> Any:
    raise RuntimeError("broken")


@pytest.mark.parametrize(
    "now",
    [
        dict,
        _broken,
        lambda: {"pools": [object()], "daemon": Part(agents=(object(),)), "node": NODE},
        lambda: {"leadership": None, "pulse": None, "daemon": None, "pools": ()},
    ],
)
def test_statistics_that_are_missing_or_fail_hurt_nobody(
    now: Callable[[], Any], reader: Any, meter: Any
) -> None:
    signals = Signals()
    told = Metrics(signals, sources=now, meter=meter)
    told.start()

    tell_all(signals)

    assert next(iter(collected(reader)["strandline_brakes_total"].values())) == 1


@pytest.mark.parametrize("name", sorted(TOLD))
def test_a_notice_without_its_facts_hurts_nobody(name: str, meter: Any) -> None:
    signals = Signals()
    told = Metrics(signals, sources=picture, meter=meter)
    told.start()

    signals.tell(name)
    signals.tell(name, seconds="long", count=object(), moves=None, unplaced=object(), shard=None)


def test_a_failing_exporter_does_not_keep_a_node_from_starting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(otel_metrics, "Instruments", _broken)
    signals = Signals()
    told = Metrics(signals, sources=picture, meter=object())

    told.start()
    signals.tell("brake", due=1)
    told.stop()

    assert signals.listeners == []
    assert told.tally.counts("strandline_brakes_total") == {(): 1}


def test_without_opentelemetry_and_prometheus_all_the_rest_works() -> None:
    code = """
import sys
sys.modules["opentelemetry"] = sys.modules["prometheus_client"] = None
from strandline.telemetry.metrics import LOCAL, Metrics
from strandline.telemetry.signals import Signals
from strandline.errors import MissingExtra
signals = Signals()
told = Metrics(signals, sources=dict)
told.start()
signals.tell("brake", due=1)
assert told.tally.counts("strandline_brakes_total") == {(): 1}
told.stop()
assert not signals.listeners
try:
    told.exposition()
except MissingExtra as error:
    assert 'pip install "strandline[prometheus]"' in str(error)
else:
    raise AssertionError
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


def test_without_an_sdk_counting_is_a_no_op() -> None:
    signals = Signals()
    told = Metrics(signals, sources=picture)  # the provider of this process is none
    told.start()

    tell_all(signals)

    told.stop()
    assert signals.listeners == []
