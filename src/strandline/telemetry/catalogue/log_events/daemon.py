"""What is logged of shards, agents and rebuilds."""

from __future__ import annotations

from strandline.telemetry.catalogue.log_event import LogEvent

ALL = (
    LogEvent("node_runs", "INFO", "node %(node)s runs %(count)d shards"),
    LogEvent(
        "projection_left_out",
        "WARNING",
        "%(projection)s is not run by nodes (any more), and is left out",
        "It is inline or live in the database: the code of another version changed its lifecycle.",
    ),
    LogEvent("cut_moved", "INFO", "%(projection)s is %(stage)s", "Its shards are cut otherwise."),
    LogEvent(
        "batch_failed",
        "WARNING",
        "shard %(shard)s failed (%(phase)s): %(reason)s",
        "It is tried again after 250 ms, 500 ms and 1 s, then the shard pauses, or the failure policy decides.",
        ("error", "category"),
    ),
    LogEvent(
        "shard_paused",
        "ERROR",
        "shard %(shard)s pauses %(seconds).0f s after every try failed: %(reason)s",
        "It goes on by itself once the cause is gone; `strandline doctor` says what to do.",
        ("error",),
    ),
    LogEvent("shard_recovered", "INFO", "shard %(shard)s goes on"),
    LogEvent(
        "event_put_aside",
        "WARNING",
        "shard %(shard)s: the event at position %(position)d is %(outcome)s: %(reason)s",
        "It is a dead letter now: `strandline letters list`.",
        ("error",),
    ),
    LogEvent(
        "replay_failed",
        "WARNING",
        "shard %(shard)s: the dead letter %(letter)d at position %(position)d has failed again:"
        " %(reason)s",
        "It stays a dead letter.",
        ("error",),
    ),
    LogEvent(
        "ownership_lost",
        "ERROR",
        "shard %(shard)s is lost: this node held %(held)s, now %(owner)s; its agent stops (%(error)s)",
        "Another took it over, or its epoch was raised. Nothing is processed twice.",
    ),
    LogEvent("shard_withdrawn", "INFO", "shard %(shard)s does not exist any more: its agent stops"),
    LogEvent(
        "shard_lost_while_stopping",
        "WARNING",
        "shard %(shard)s was lost while it was being stopped: %(error)s",
    ),
    LogEvent(
        "shard_left_behind",
        "ERROR",
        "shard %(shard)s cannot be ended, and is left to itself",
        "Its code swallows the cancellation or blocks; what it still writes is refused.",
    ),
    LogEvent(
        "shard_claimed_anew",
        "WARNING",
        "shard %(shard)s was reset or sealed under epoch %(epoch)d, and is claimed anew",
    ),
    LogEvent(
        "shard_held",
        "WARNING",
        "shard %(shard)s is held by a transaction of a previous owner",
        "It is ended if it is idle; see `zombie_ended`.",
    ),
    LogEvent(
        "shard_holder_unknown",
        "WARNING",
        "who holds shard %(shard)s could not be found out: %(error)s",
    ),
    LogEvent(
        "zombie_ended",
        "ERROR",
        "session %(pid)d (%(application)s, client %(client)s) held %(held)s in a transaction idle"
        " for %(idle).1f s: %(outcome)s",
        "A node that is frozen or cut off had left it open.",
    ),
    LogEvent("note_not_written", "DEBUG", "a note of shard %(shard)s is not written: %(error)r"),
    LogEvent(
        "build_waits",
        "WARNING",
        "build %(shadow)s waits: %(error)s",
        "Only told to DEBUG while a lock is waited for.",
    ),
    LogEvent("build_moved", "INFO", "build %(shadow)s is %(state)s"),
    LogEvent(
        "build_refused",
        "ERROR",
        "build %(shadow)s, which is %(state)s: %(reason)s",
        "`strandline projections builds` shows it.",
    ),
    LogEvent("swap_waits", "INFO", "the swap of %(shadow)s waits: %(error)s"),
    LogEvent("build_unsealed", "WARNING", "build %(shadow)s is not sealed any more: %(reason)s"),
    LogEvent(
        "table_holders_unknown",
        "WARNING",
        "who holds tables of %(shadow)s could not be found out: %(error)s",
    ),
    LogEvent(
        "leftover_stays", "INFO", "%(leftover)s, left behind by a build, is still there: %(error)s"
    ),
    LogEvent("leftover_gone", "INFO", "%(leftover)s, left behind by a build, is gone"),
)
