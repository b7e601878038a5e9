"""Every metric by name: kind, unit, attributes, meaning. The reference page is made from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "histogram", "gauge"]

MOMENTS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
LENGTHS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 25.0, 60.0, 120.0)
WAITS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 3600.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. Every one carries the attribute ``node`` besides its own.

    Attributes:
        name: As it is exported.
        kind: ``counter`` only grows; ``gauge`` is read when somebody collects.
        unit: In the notation of OpenTelemetry: ``s``, ``1``, or what is counted in braces.
        attributes: What tells its series apart.
        meaning: What is measured, and what to think of it.
        bounds: Of a histogram's buckets.
    """

    name: str
    kind: Kind
    unit: str
    attributes: tuple[str, ...]
    meaning: str
    bounds: tuple[float, ...] = ()


def _counter(name: str, of: str, meaning: str, *attributes: str) -> Metric:
    return Metric(f"strandline_{name}_total", "counter", f"{{{of}}}", attributes, meaning)


def _gauge(name: str, unit: str, meaning: str, *attributes: str) -> Metric:
    return Metric(f"strandline_{name}", "gauge", unit, attributes, meaning)


def _histogram(name: str, bounds: tuple[float, ...], meaning: str, *attributes: str) -> Metric:
    return Metric(f"strandline_{name}_seconds", "histogram", "s", attributes, meaning, bounds)


PULSE = (
    _histogram("tick", MOMENTS, "one beat, there and back"),
    _counter("tick_failures", "beat", "beats without an answer within `pulse_deadline`"),
    _gauge(
        "last_tick_age_seconds",
        "s",
        "since the last beat that was answered; from `node_ttl` on others take this node's work",
    ),
    _gauge("loop_lag_seconds", "s", "how late the event loop is; above 1 it counts as blocked"),
    _counter("loop_blocks", "block", "times the event loop was blocked; the log has the stack"),
    _histogram("blocked_loop", LENGTHS, "how long, told when it turns again"),
    _counter("side_process_deaths", "process", "side processes that died and were replaced"),
)

LEADERSHIP = (
    _gauge("leader", "1", "1 on the node that leads, 0 elsewhere; the sum should be 1"),
    _gauge("leader_epoch", "1", "epoch of the leader's lease, told by the node that leads"),
    _gauge("leader_unseen_seconds", "s", "since this node last saw that somebody leads"),
    _counter(
        "elections",
        "attempt",
        "attempts to get the leader's lease: won, lost, timed_out or failed",
        "outcome",
    ),
    _histogram("election", MOMENTS, "one attempt", "outcome"),
    _counter("leaderships", "term", "terms this node has led; many in a short time is churn"),
    _counter("lease_lost", "lease", "leases that ended without being given up", "lease"),
)

OWNERSHIP = (
    _counter(
        "ownership_lost",
        "loss",
        "a shard that this node was running belongs to another; alert on any increase",
        "shard",
    ),
    _counter(
        "fenced_writes",
        "write",
        "writes that the database refused, since the shard has a later epoch",
        "shard",
    ),
    _counter("evictions", "eviction", "times this node found itself declared dead"),
    _counter("claims", "work", "work this node has begun to own"),
    _counter("releases", "work", "work this node has given back"),
    _counter("work_failures", "work", "work that ended by itself or could not be started"),
    _counter("work_avoided", "work", "work left to other nodes, since it failed here repeatedly"),
    _counter(
        "zombies_ended",
        "connection",
        "connections of frozen owners that were ended, since they held what a successor needs",
    ),
)

PLAN = (
    _counter("plans", "plan", "plans that changed something"),
    _histogram("plan", MOMENTS, "computing one"),
    _counter("rebalances", "plan", "plans that moved work only to even out the load"),
    _counter(
        "moves",
        "work",
        "work that got another target: placed (it had no node), moved, or withdrawn",
        "kind",
    ),
    _gauge(
        "unplaced_work",
        "{work}",
        "work that no node can run, told by the node that leads;"
        " `strandline work list --unplaced` shows it",
    ),
    _counter("leader_refused", "write", "writes refused, since another node leads by now"),
    _counter("mark_dead", "node", "nodes that this leader has declared dead"),
    _counter("brakes", "brake", "times so many nodes were due at once that the leader waited"),
)

SHARDS = (
    _gauge("shards", "{shard}", "shards that run here, by state", "state"),
    _gauge("shard_position", "1", "checkpoint of a shard that runs here", "shard"),
    _gauge("shard_lag_events", "{event}", "positions from there to the high-water mark", "shard"),
    _gauge("high_water_position", "1", "the high-water mark as this node knows it"),
    _counter("batches", "batch", "batches committed", "shard"),
    _counter("batch_failures", "batch", "batches that failed, by class of error", "shard", "error"),
    _counter(
        "shard_pauses",
        "pause",
        "every try of a batch failed, and the shard rests `failure_pause` seconds",
        *("shard", "error"),
    ),
)

LETTERS = (
    _gauge(
        "open_letters",
        "{letter}",
        "dead letters that are parked or skipped, as each node counted them within the last minute;"
        " take the maximum over nodes",
        *("label", "status"),
    ),
    _counter(
        "letters_written",
        "letter",
        "dead letters written; category is `waiting` for one parked behind another that failed",
        *("label", "category", "status"),
    ),
    _counter(
        "letters_replayed", "letter", "dead letters that were tried again and went well", "label"
    ),
    _counter(
        "letters_failed_again",
        "letter",
        "dead letters that were tried again and failed, by class of error",
        *("label", "error"),
    ),
)

JOBS = (
    _counter("jobs_enqueued", "job", "jobs that this process enqueued and committed", "queue"),
    _counter("jobs_claimed", "job", "jobs that this node has fetched", "queue"),
    _counter("job_attempts", "attempt", "attempts that have run here, however they ended", "queue"),
    _counter("jobs_completed", "job", "jobs that this node has recorded as completed"),
    _counter(
        "jobs_not_completed",
        "attempt",
        "attempts that ended otherwise: retried (failed, tried again later), dead (attempts are used"
        " up), snoozed, cancelled, or released (interrupted by a stop)",
        *("queue", "kind", "outcome"),
    ),
    _counter(
        "jobs_fenced",
        "job",
        "ends of attempts that were not recorded, since the job belongs to a later attempt",
    ),
    _counter(
        "jobs_stuck",
        "job",
        "attempts that ran on for `job_stuck_after` after they were cancelled; the log has the stack",
        "kind",
    ),
    _counter(
        "jobs_promoted", "job", "scheduled jobs whose time came, made available by the leader"
    ),
    _counter("jobs_rescued", "job", "running jobs of dead nodes that the leader gave back"),
    _counter("schedules_fired", "job", "jobs that schedules enqueued", "schedule"),
    _counter(
        "schedules_missed",
        "moment",
        "moments of schedules for which nothing was enqueued, since nobody led then",
        "schedule",
    ),
    _histogram(
        "job_wait",
        WAITS,
        "from enqueueing to the fetch, of the first job of each fetch; first attempts only",
        "queue",
    ),
    _histogram("job_claim", MOMENTS, "one fetch, there and back", "queue"),
    _histogram("job_flush", MOMENTS, "recording the ends of many attempts at once"),
    Metric(
        "strandline_job_run_seconds_total",
        "counter",
        "s",
        ("queue",),
        "time that handlers have run; over `strandline_job_attempts_total` the mean of one attempt",
    ),
    _gauge("jobs_running", "{job}", "jobs that run on this node", "queue"),
    _gauge("jobs_buffered", "{job}", "jobs fetched by this node that have not begun", "queue"),
    _gauge("job_slots", "{job}", "jobs this node runs at once at the most", "queue"),
    _gauge("jobs_unrecorded", "{job}", "ended attempts that this node has yet to record"),
    _gauge(
        "jobs",
        "{job}",
        "jobs in the tables by state, told by the node that leads; estimated where there are many",
        *("queue", "state"),
    ),
    _gauge(
        "job_oldest_available_seconds",
        "s",
        "age of the oldest job that could run, told by the node that leads",
        "queue",
    ),
    _gauge(
        "jobs_dead_tuples", "{row}", "dead rows in the table of jobs, told by the node that leads"
    ),
    _gauge("jobs_index_bytes", "By", "size of its indexes, told by the node that leads"),
    _gauge(
        "oldest_snapshot_seconds",
        "s",
        "age of the oldest transaction that keeps PostgreSQL from removing dead rows, told by the"
        " node that leads; the log names it",
    ),
)

POOLS = (
    _gauge("pool_connections", "{connection}", "connections open", "pool"),
    _gauge("pool_limit_connections", "{connection}", "connections it may have", "pool"),
    _gauge("pool_used_connections", "{connection}", "connections in use", "pool"),
    _gauge("pool_waiting_tasks", "{task}", "tasks that wait for a connection", "pool"),
    _gauge("pool_longest_wait_seconds", "s", "longest wait since the start", "pool"),
    _gauge(
        "pool_oldest_transaction_seconds", "s", "age of the oldest open transaction, or 0", "pool"
    ),
    _counter("pool_exhausted", "wait", "waits for a connection that ended without one", "pool"),
    _counter(
        "leaked_transactions",
        "transaction",
        "transactions open for longer than `leak_after`; the log tells who began them",
        "pool",
    ),
    _counter(
        "rolled_back_transactions",
        "transaction",
        "of these ended after `leak_rollback_after`",
        "pool",
    ),
)

SHUTDOWN = (
    _histogram(
        "shutdown_step", LENGTHS, "one step: ok, timeout, error or skipped", "step", "status"
    ),
    _histogram("shutdown", LENGTHS, "all of it", "result"),
    _counter("shutdowns", "shutdown", "clean, degraded or forced", "result"),
)

GROUPS: dict[str, tuple[Metric, ...]] = {
    "Pulse": PULSE,
    "Leadership": LEADERSHIP,
    "Ownership": OWNERSHIP,
    "Plan": PLAN,
    "Shards": SHARDS,
    "Dead letters": LETTERS,
    "Jobs": JOBS,
    "Pools": POOLS,
    "Shutdown": SHUTDOWN,
}

CATALOGUE: dict[str, Metric] = {one.name: one for group in GROUPS.values() for one in group}
