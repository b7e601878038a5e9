"""What is logged of jobs, queues and their duties."""

from __future__ import annotations

from strandline.telemetry.catalogue.log_event import LogEvent

_RUN = (
    LogEvent(
        "job_failed",
        "INFO",
        "job %(job)s of kind %(kind)r failed, attempt %(attempt)d of %(max_attempts)d: %(error)r",
        "An error if the job is dead now, that is, no further attempt is left.",
        ("queue", "outcome"),
    ),
    LogEvent(
        "settled_job_failed",
        "ERROR",
        "job %(job)s of kind %(kind)r is completed, and then failed: %(error)r",
        "It completed itself inside its transaction; what its code did after that has failed.",
    ),
    LogEvent(
        "result_not_kept",
        "WARNING",
        "job %(job)s of kind %(kind)r has completed, but %(reason)s",
    ),
    LogEvent(
        "result_not_stored",
        "ERROR",
        "job %(job)s of kind %(kind)r: its result or error cannot be stored: %(error)r",
        "The job is recorded without it.",
    ),
    LogEvent(
        "retry_policy_failed",
        "WARNING",
        "the retry policy of job kind %(kind)r failed, so the default decides: %(error)r",
    ),
    LogEvent("job_not_runnable", "WARNING", "a job of kind %(kind)r cannot be run here: %(error)r"),
    LogEvent(
        "job_lost",
        "ERROR",
        "job %(job)s of kind %(kind)r is running here as the table says, and is not: it is tried again",
        "A fault; please report it.",
    ),
    LogEvent(
        "job_left_behind",
        "ERROR",
        "job %(job)s of kind %(kind)r did not end when it was told to, and is left behind\n%(stack)s",
        "Its code swallows the cancellation or blocks; the job is tried again elsewhere.",
    ),
    LogEvent(
        "job_runs_on",
        "ERROR",
        "job %(job)s of kind %(kind)r was told to end (%(reason)s) and runs on: its place is given to"
        " another\n%(stack)s",
        "Its code swallows the cancellation or blocks.",
    ),
    LogEvent("runner_cancelled", "WARNING", "a runner of %(queue)s was cancelled by somebody else"),
    LogEvent(
        "runner_ended", "ERROR", "a runner of %(queue)s ended: %(error)r", "Another one is started."
    ),
    LogEvent("job_hook_failed", "ERROR", "the hook %(hook)r for %(state)s jobs failed"),
    LogEvent("async_job_hook_failed", "ERROR", "the hook %(hook)r failed"),
    LogEvent(
        "job_hook_left_out",
        "WARNING",
        "%(count)d hooks are running already: %(hook)r is not called",
    ),
    LogEvent("listener_failed", "ERROR", "a listener to %(notice)s failed"),
)

_FETCHED = (
    LogEvent(
        "fetch_failed",
        "WARNING",
        "no jobs of %(queue)s can be fetched for now: %(error)s",
        "It is tried again; jobs under way go on.",
    ),
    LogEvent("jobs_not_given_back", "WARNING", "%(count)d jobs wait to be given back: %(error)s"),
    LogEvent(
        "fetched_jobs_kept",
        "WARNING",
        "fetched jobs wait until this node is gone: %(error)r",
        "The leader gives them back then.",
    ),
    LogEvent(
        "unanswered_claims_given_back",
        "WARNING",
        "jobs of %(queues)s were claimed without an answer: given back",
    ),
    LogEvent(
        "queue_settings_failed", "ERROR", "the settings of %(queues)s changed, and then failed"
    ),
    LogEvent("job_notice_not_sent", "DEBUG", "notice of new jobs not sent: %(error)s"),
    LogEvent(
        "drain_delayed", "WARNING", "a draining node could not give its jobs back yet: %(error)s"
    ),
    LogEvent("drain_failed", "ERROR", "a draining node could not give its jobs back"),
    LogEvent(
        "abandoned_jobs_failed", "ERROR", "the jobs of node number %(number)d did not end well"
    ),
)

_WRITTEN = (
    LogEvent(
        "ended_jobs_lost",
        "ERROR",
        "%(count)d jobs have ended and could not be written: they run again",
        "The database could not be reached until the stop was over.",
    ),
    LogEvent(
        "ended_jobs_left",
        "WARNING",
        "%(count)d ended jobs are left to others: the node was evicted",
    ),
    LogEvent(
        "completions_refused",
        "WARNING",
        "%(count)d completions refused: other attempts have these jobs by now (%(job_ids)s)",
        "This node was silent for longer than `node_ttl`, and its jobs were given to others.",
    ),
    LogEvent("queues_not_told", "ERROR", "queues with new jobs were not told"),
    LogEvent(
        "ended_jobs_locked",
        "WARNING",
        "%(count)d ended jobs wait for whoever has locked their rows",
    ),
    LogEvent(
        "ended_jobs_refused",
        "ERROR",
        "%(count)d ended jobs cannot be written; tried again in %(seconds)s s: %(error)r",
    ),
    LogEvent(
        "ended_jobs_delayed",
        "WARNING",
        "%(count)d ended jobs wait for the database: %(error)r",
        "They are kept in memory and written when it is back.",
    ),
    LogEvent(
        "ended_jobs_taken_again",
        "INFO",
        "the database takes ended jobs again, after %(failures)d tries",
    ),
    LogEvent(
        "next_of_key_waits", "WARNING", "the next job of a key waits for the sweep: %(error)s"
    ),
    LogEvent(
        "commit_unknown",
        "WARNING",
        "whether transaction %(xid)s was committed cannot be told: %(error)s",
        "The job is taken as not completed, and tried again.",
    ),
)

_DUTIES = (
    LogEvent(
        "job_leader_refused",
        "WARNING",
        "%(error)s; the duties of this term end here",
        "Another node leads by now. Nothing was written under the old epoch.",
        ("epoch",),
    ),
    LogEvent(
        "jobs_rescued",
        "WARNING",
        "nodes %(nodes)s are gone: %(count)d of their jobs are available again, %(dead)d had no"
        " attempt left, %(cancelled)d are cancelled",
    ),
    LogEvent(
        "jobs_stuck",
        "WARNING",
        "%(count)d jobs of nodes that are gone have no attempt left, and a dead letter stands in the"
        " place of each: they end when it is retried or discarded",
    ),
    LogEvent("job_session_ended", "WARNING", "session %(application)r is ended: its node is gone"),
    LogEvent(
        "silent_job_session_ended",
        "WARNING",
        "session %(application)r, silent for %(idle).0f s, is ended",
    ),
    LogEvent("keys_promoted", "INFO", "%(count)d keys had blocked jobs and nobody to begin them"),
    LogEvent(
        "schedule_failed",
        "WARNING",
        "schedule %(schedule)r cannot be fired: %(error)s",
        "The other schedules are fired; this one is tried again.",
    ),
    LogEvent("history_dropped", "INFO", "history of %(day)s is over: dropped"),
    LogEvent("history_in_default", "WARNING", "history of %(day)s stays in the default partition"),
    LogEvent("history_in_use", "DEBUG", "a day of the history is in use: %(error)s"),
    LogEvent(
        "job_table_advice",
        "WARNING",
        "%(advice)s",
        "Dead rows pile up in a table of jobs, and who or what keeps them there.",
    ),
    LogEvent(
        "schedules_left",
        "INFO",
        "schedules that this code does not declare go on: %(schedules)s (app.schedules.forget(name)"
        " ends one)",
    ),
)

ALL = _RUN + _FETCHED + _WRITTEN + _DUTIES
