"""What notices add to which metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from strandline.errors import OwnershipLost
from strandline.telemetry.readings import Facts

# How a pulse tells that a term ended without being given up. What it was given up for is free text.
LOST = (
    *(
        "it could not be renewed",
        "its pulse has not renewed",
        "the term ",
        "epoch ",
        "a later epoch",
    ),
    "its node was declared dead",
)


@dataclass(frozen=True, slots=True)
class Rule:
    """What a notice adds to a metric.

    Attributes:
        metric: Its name.
        amount: The fact that is added or recorded; empty for 1.
        fixed: Values of labels that are always the same; the others are facts, see ``value_of``.
        only: Notices for which this does not hold are left out.
    """

    metric: str
    amount: str = ""
    fixed: Mapping[str, str] | None = None
    only: Callable[[Facts], bool] | None = None


def _was_lost(facts: Facts) -> bool:
    return str(facts.get("reason", "")).startswith(LOST)


def _was_fenced(facts: Facts) -> bool:
    return isinstance(facts.get("error"), OwnershipLost)


def _has_waited(facts: Facts) -> bool:
    return facts.get("wait") is not None


def _has_lasted(facts: Facts) -> bool:
    return facts.get("seconds") is not None


def _is_new(facts: Facts) -> bool:
    return bool(facts.get("is_new"))


def _was_skipped(facts: Facts) -> bool:
    return facts.get("status") == "skipped"


RULES: dict[str, tuple[Rule, ...]] = {
    "tick": (Rule("strandline_tick_seconds", "seconds"),),
    "tick_failed": (Rule("strandline_tick_failures_total"),),
    "loop_blocked": (Rule("strandline_loop_blocks_total"),),
    "unblocked": (Rule("strandline_blocked_loop_seconds", "seconds"),),
    "side_process_died": (Rule("strandline_side_process_deaths_total"),),
    "election": (
        Rule("strandline_elections_total"),
        Rule("strandline_election_seconds", "seconds"),
    ),
    "leading": (Rule("strandline_leaderships_total"),),
    "not_leading": (
        Rule("strandline_lease_lost_total", fixed={"lease": "leader"}, only=_was_lost),
    ),
    "ownership_lost": (Rule("strandline_ownership_lost_total"),),
    "evicted": (Rule("strandline_evictions_total"),),
    "work_claimed": (Rule("strandline_claims_total", "count"),),
    "work_released": (Rule("strandline_releases_total", "count"),),
    "work_failed": (Rule("strandline_work_failures_total"),),
    "work_avoided": (Rule("strandline_work_avoided_total"),),
    "zombie_ended": (Rule("strandline_zombies_ended_total"),),
    "planned": (
        Rule("strandline_plans_total"),
        Rule("strandline_plan_seconds", "seconds"),
        Rule("strandline_rebalances_total", only=lambda facts: bool(facts.get("moves"))),
        *(
            Rule("strandline_moves_total", kind, fixed={"kind": kind})
            for kind in ("placed", "moved", "withdrawn")
        ),
    ),
    "leader_refused": (Rule("strandline_leader_refused_total"),),
    "node_dead": (Rule("strandline_mark_dead_total"),),
    "brake": (Rule("strandline_brakes_total"),),
    "batch_committed": (
        Rule("strandline_batches_total"),
        Rule("strandline_events_processed_total", "events"),
        Rule("strandline_batch_seconds", "seconds", only=_has_lasted),
    ),
    "forced_gap_passed": (
        Rule("strandline_skipped_events_total", "numbers", fixed={"class": "forced_gap"}),
    ),
    "high_water_detected": (
        Rule(
            "strandline_high_water_settled_numbers_total", "proved", fixed={"kind": "rolled_back"}
        ),
        Rule("strandline_high_water_settled_numbers_total", "forced", fixed={"kind": "forced"}),
    ),
    "high_water_stale": (Rule("strandline_high_water_stale_periods_total", only=_is_new),),
    "high_water_went_back": (Rule("strandline_high_water_went_back_total"),),
    "late_event": (Rule("strandline_late_events_total", "fresh"),),
    "loop_failed": (Rule("strandline_loop_failures_total"),),
    "batch_failed": (
        Rule("strandline_batch_failures_total"),
        Rule("strandline_fenced_writes_total", only=_was_fenced),
    ),
    "shard_paused": (Rule("strandline_shard_pauses_total"),),
    "letters_written": (
        Rule("strandline_letters_written_total", "count"),
        Rule("strandline_skipped_events_total", "count", only=_was_skipped),
    ),
    "letters_replayed": (Rule("strandline_letters_replayed_total", "count"),),
    "letter_failed_again": (Rule("strandline_letters_failed_again_total"),),
    "jobs_enqueued": (Rule("strandline_jobs_enqueued_total", "count"),),
    "jobs_claimed": (
        Rule("strandline_jobs_claimed_total", "count"),
        Rule("strandline_job_claim_seconds", "seconds"),
        Rule("strandline_job_wait_seconds", "wait", only=_has_waited),
    ),
    "jobs_ran": (
        Rule("strandline_job_attempts_total", "count"),
        Rule("strandline_job_run_seconds_total", "seconds"),
    ),
    **{
        notice: (
            Rule(
                "strandline_jobs_not_completed_total",
                fixed={"outcome": outcome},
            ),
        )
        for notice, outcome in {
            "job_failed": "retried",
            "job_dead": "dead",
            "job_snoozed": "snoozed",
            "job_cancelled": "cancelled",
            "job_interrupted": "released",
        }.items()
    },
    "job_stuck": (Rule("strandline_jobs_stuck_total"),),
    "jobs_flushed": (Rule("strandline_job_flush_seconds", "seconds"),),
    "jobs_fenced": (Rule("strandline_jobs_fenced_total", "count"),),
    "jobs_promoted": (Rule("strandline_jobs_promoted_total", "count"),),
    "jobs_rescued": (Rule("strandline_jobs_rescued_total", "count"),),
    "schedule_fired": (Rule("strandline_schedules_fired_total", "count"),),
    "schedule_missed": (Rule("strandline_schedules_missed_total", "count"),),
    "transaction_leaked": (Rule("strandline_leaked_transactions_total"),),
    "transaction_rolled_back": (Rule("strandline_rolled_back_transactions_total"),),
    "shutdown_step": (Rule("strandline_shutdown_step_seconds", "seconds"),),
    "shutdown": (
        Rule("strandline_shutdown_seconds", "seconds"),
        Rule("strandline_shutdowns_total"),
    ),
}


# Told with 0 when a notice says that there can be such: a series that begins at 1 has no increase
# to alert on. Counters whose labels all have few values begin so at the start.
BEGIN_AT: dict[str, tuple[str, ...]] = {
    "shard_claimed": (
        "strandline_ownership_lost_total",
        "strandline_fenced_writes_total",
        "strandline_shard_pauses_total",
        "strandline_skipped_events_total",
    ),
}


def value_of(label: str, facts: Facts) -> str:
    """The value of *label* that *facts* give; of an error the name of its class."""
    if label == "projection":
        return _projection(facts)
    value = facts.get("category" if label == "class" else label)
    return type(value).__name__ if isinstance(value, BaseException) else str(value)


def _projection(facts: Facts) -> str:
    """That of the shard, if it is not told itself."""
    told = facts.get("projection") or facts.get("label")
    return str(told or str(facts["shard"]).rpartition(":")[0])
