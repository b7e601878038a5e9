"""Every metric by name: kind, unit, attributes, meaning."""

from __future__ import annotations

from strandline.telemetry.catalogue.metric import Metric
from strandline.telemetry.catalogue.metric import counter as _counter
from strandline.telemetry.catalogue.metric import gauge as _gauge
from strandline.telemetry.catalogue.metric import histogram as _histogram
from strandline.telemetry.catalogue.survey_metrics import SURVEY

MOMENTS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
LENGTHS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 25.0, 60.0, 120.0)
SPANS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
WAITS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 3600.0)

ELECTION_OUTCOMES = ("won", "lost", "timed_out", "failed")
SHARD_STATES = ("claiming", "running", "paused", "stopped")
LETTER_STATES = ("parked", "skipped")
LETTER_CATEGORIES = ("apply", "undecodable", "unknown_type", "other", "waiting")
JOB_OUTCOMES = ("retried", "dead", "snoozed", "cancelled", "released")
STEP_STATES = ("ok", "timeout", "error", "skipped")


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
    ).where(outcome=ELECTION_OUTCOMES),
    _histogram("election", MOMENTS, "one attempt", "outcome").where(outcome=ELECTION_OUTCOMES),
    _counter("leaderships", "term", "terms this node has led; many in a short time is churn"),
    _gauge(
        "lease_trust_remaining_seconds",
        "s",
        "how long the node that leads may still act as leader without another renewal",
    ),
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
    ).where(kind=("placed", "moved", "withdrawn")),
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
    _gauge("shards", "{shard}", "shards that run here, by state", "state").where(
        state=SHARD_STATES
    ),
    _gauge("shard_position", "1", "checkpoint of a shard that runs here", "shard"),
    _counter("batches", "batch", "batches committed", "shard"),
    _counter("batch_failures", "batch", "batches that failed, by class of error", "shard", "error"),
    _counter(
        "shard_pauses",
        "pause",
        "times that every try of a batch failed, and the shard rests `failure_pause` seconds or"
        " longer; why is told by `strandline_batch_failures_total`",
        "shard",
    ),
    _counter(
        "events_appended",
        "event",
        "events that this process appended and that were committed; in a transaction that is joined they"
        " count when they are sent",
    ),
    _counter(
        "events_processed",
        "event",
        "events that a batch read, committed by this node",
        "projection",
    ),
    _histogram("batch", SPANS, "one batch, from its page to its commit", "projection"),
    _counter(
        "skipped_events",
        "event",
        "events passed over without being processed: dead letters written as skipped, and numbers"
        " of forced gaps; alert on any increase",
        *("projection", "class"),
    ),
)

LETTERS = (
    _counter(
        "letters_written",
        "letter",
        "dead letters written; category is `waiting` for one parked behind another that failed",
        *("projection", "category", "status"),
    ).where(status=LETTER_STATES, category=LETTER_CATEGORIES),
    _counter(
        "letters_replayed",
        "letter",
        "dead letters that were tried again and went well",
        "projection",
    ),
    _counter(
        "letters_failed_again",
        "letter",
        "dead letters that were tried again and failed, by class of error",
        *("projection", "error"),
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
    ).where(outcome=JOB_OUTCOMES),
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
    _counter("pool_checkouts", "checkout", "connections taken", "pool"),
    Metric(
        "strandline_pool_wait_seconds_total",
        "counter",
        "s",
        ("pool",),
        "time that tasks have waited for connections; over `strandline_pool_checkouts_total` the mean",
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
    ).where(status=STEP_STATES),
    _histogram("shutdown", LENGTHS, "all of it", "result"),
    _counter("shutdowns", "shutdown", "clean, degraded or forced", "result"),
)

ITSELF = (
    _gauge("build_info", "1", "always 1; the labels tell what runs", "version", "python"),
    _gauge(
        "listener_connected",
        "1",
        "1 while notices are heard, 0 while only polling is left; not told behind a pooler",
    ),
    _counter("listener_reconnects", "connection", "times the listening connection was made anew"),
    _counter(
        "loop_failures",
        "step",
        "steps of loops in the background that failed; each is tried again after a growing delay",
        "loop",
    ),
    _gauge(
        "loop_seconds_since_success",
        "s",
        "since the last good step of a loop that is failing or has ended unasked; 0 while all is well",
        "loop",
    ),
    _counter(
        "series_dropped",
        "series",
        "times that a metric had `series_limit` series, and a further one was counted as `other`, or"
        " left out if it is a gauge",
        "metric",
    ),
)

GROUPS: dict[str, tuple[Metric, ...]] = {
    "Pulse": PULSE,
    "Leadership": LEADERSHIP,
    "Ownership": OWNERSHIP,
    "Plan": PLAN,
    "Shards": SHARDS,
    **SURVEY,
    "Dead letters": LETTERS,
    "Jobs": JOBS,
    "Pools": POOLS,
    "Shutdown": SHUTDOWN,
    "Itself": ITSELF,
}

CATALOGUE: dict[str, Metric] = {one.name: one for group in GROUPS.values() for one in group}
