"""What is logged of connections, pools and the embedded server."""

from __future__ import annotations

from strandline.telemetry.catalogue.log_event import LogEvent

ALL = (
    LogEvent(
        "transaction_leaked",
        "WARNING",
        "%(summary)s",
        "A transaction is open for longer than `leak_after`; it keeps a connection, and the"
        " high-water mark if it appends.",
        ("pool", "seconds", "place", "query"),
    ),
    LogEvent(
        "joined_transaction_leaked",
        "WARNING",
        "a transaction of yours that strandline takes part in has been open for %(seconds).1f s"
        " (leak_after is %(leak_after)s s): joined at %(place)s, last query %(query)r",
    ),
    LogEvent(
        "transaction_rolled_back",
        "ERROR",
        "pool %(pool)s: rolled back: %(holder)s",
        "It was open for longer than `leak_rollback_after`.",
    ),
    LogEvent("rollback_failed", "WARNING", "pool %(pool)s: it could not be rolled back: %(error)s"),
    LogEvent(
        "connections_questionable",
        "WARNING",
        "%(advice)s",
        "A look at the connections when an App opens; `strandline doctor` looks closer.",
    ),
    LogEvent("connections_unchecked", "INFO", "the connections could not be checked: %(error)r"),
    LogEvent("connection_dropped", "DEBUG", "a connection of pool %(pool)s was dropped: %(error)r"),
    LogEvent(
        "dropped_work_ended", "DEBUG", "what ran on a dropped connection ended with %(error)r"
    ),
    LogEvent("listener_polls", "INFO", "no LISTEN through a pooler: polling every %(seconds)s s"),
    LogEvent("notice_failed", "ERROR", "a notice on %(channel)s was heard, and then failed"),
    LogEvent("notice_not_sent", "DEBUG", "notice on %(channel)s not sent: %(error)s"),
)
