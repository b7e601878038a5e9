"""What is logged of events and the high-water mark."""

from __future__ import annotations

from strandline.telemetry.catalogue.log_event import LogEvent

ALL = (
    LogEvent(
        "high_water_waits",
        "WARNING",
        "the high-water mark waits at %(position)d (highest is %(highest)d) for %(seconds).1f s for:"
        " %(waits_for)s",
        "Nothing beyond the mark is processed. Each holder is told with the command that ends it.",
    ),
    LogEvent(
        "high_water_cleared",
        "INFO",
        "the high-water mark moves again: %(position)d, after %(seconds).1f s",
    ),
    LogEvent(
        "gaps_forced",
        "ERROR",
        "%(gaps)d gap(s) up to %(position)d skipped without proof",
        "`force_after` was over. If an event appears in a gap, `late_events` tells.",
    ),
    LogEvent(
        "late_events",
        "ERROR",
        "%(events)d event(s) appeared in the gap %(first)d-%(last)d after it was skipped by"
        " force_after: what had passed it lacks them; `strandline projections heal` mends that",
    ),
    LogEvent(
        "high_water_went_back",
        "ERROR",
        "the high-water mark in the database went back from %(before)d to %(position)d: it was"
        " restored, or failed over to a standby that lagged; read models may be ahead of their events",
        "`strandline projections verify` finds those that are.",
    ),
    LogEvent(
        "lifecycle_to_nodes",
        "INFO",
        "%(projection)s was kept by appends up to position %(position)d; nodes go on from there",
    ),
    LogEvent(
        "lifecycle_to_appends",
        "INFO",
        "%(projection)s was kept by nodes up to position %(position)d; appends go on from there",
    ),
)
