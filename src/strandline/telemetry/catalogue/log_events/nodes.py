"""What is logged of Apps, nodes, loops and commands."""

from __future__ import annotations

from strandline.telemetry.catalogue.log_event import LogEvent

ALL = (
    LogEvent(
        "loop_failed",
        "WARNING",
        "%(loop)s failed (%(failures)d in a row): %(error)r",
        "A background loop never ends by a failure: it tries again, ever more slowly.",
    ),
    LogEvent(
        "event_loop_stopped",
        "WARNING",
        "the event loop was stopped by %(error)r: this node stops",
        "Code of yours called `sys.exit` in a task, or `loop.stop`.",
    ),
    LogEvent("otlp_begun", "INFO", "%(what)s go out by OTLP, as the environment says"),
    LogEvent(
        "otlp_not_installed",
        "WARNING",
        "the environment asks for OTLP, which is not installed: %(error)s;"
        " install strandline[otlp], or set OTEL_SDK_DISABLED=true",
    ),
    LogEvent(
        "otlp_not_begun",
        "WARNING",
        "the environment asks for OTLP, and it could not be set up: %(error)r",
        "A variable `OTEL_...` says something that the SDK cannot read; the node works without.",
    ),
    LogEvent(
        "otlp_protocol_unknown",
        "WARNING",
        "OTLP goes out over HTTP only: set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"
        " instead of %(protocol)s, and the collector's HTTP port",
    ),
    LogEvent(
        "telemetry_not_sent",
        "WARNING",
        "not all telemetry was sent within %(seconds).1f s: the rest is lost",
        "The collector is away or slow. The node's stop does not wait for it.",
    ),
    LogEvent("telemetry_not_flushed", "WARNING", "telemetry could not be flushed: %(error)r"),
    LogEvent("migration_applied", "INFO", "applied migration %(number)04d %(migration)s"),
    LogEvent(
        "lifecycle_differs",
        "WARNING",
        "%(advice)s",
        "Code and database do not agree about who keeps a projection.",
    ),
    LogEvent("projection_retired", "INFO", "%(projection)s is retired%(note)s"),
    LogEvent("subscription_rewound", "INFO", "%(projection)s goes on behind position %(position)d"),
    LogEvent("projection_healed", "INFO", "%(projection)s: %(events)d late event(s), %(how)s"),
    LogEvent("letter_left_out", "WARNING", "%(reason)s: it was left out", fields=("letter",)),
    LogEvent(
        "build_cancelled",
        "WARNING",
        "build %(shadow)s is cancelled; a node will sweep up what it leaves",
    ),
    LogEvent("metrics_incomplete", "WARNING", "metrics are incomplete or missing: %(error)r"),
    LogEvent("metric_unreadable", "DEBUG", "metric %(metric)s cannot be read: %(error)r"),
    LogEvent("notice_uncounted", "DEBUG", "notice %(notice)s is not counted: %(error)r"),
    LogEvent("span_begin_failed", "DEBUG", "span %(span)s did not begin: %(error)r"),
    LogEvent("span_end_failed", "DEBUG", "a span did not end well: %(error)r"),
    LogEvent(
        "node_up",
        "INFO",
        "node %(node)s is up, its code runs %(shards)d shards and %(kinds)d kinds of jobs",
        "Told by `strandline node` where it logs JSON; else it is a line for people.",
    ),
    LogEvent(
        "ops_port_open",
        "INFO",
        "health checks and metrics are at %(url)s",
        "The ops port is open: /livez, /readyz, /healthz and /metrics are there.",
    ),
    LogEvent(
        "ops_port_refused",
        "WARNING",
        "the ops port %(address)s cannot be had, tried again every %(seconds)g s: %(error)s",
        "Another process has the port, or the address is not this machine's. The node works on, but"
        " probes fail and nothing is scraped: set ops_port or ops_host.",
    ),
    LogEvent(
        "ops_request_failed",
        "ERROR",
        "%(path)s on the ops port failed: %(error)r",
        "A fault in the code of that page; the node works on.",
    ),
)
