"""Every option: default, unit, reason. Arguments win over environment, environment over TOML."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from strandline.errors import InvalidSetting

PREFIX = "STRANDLINE_"
LONGEST_SCHEMA = 48  # bytes: names of channels begin with it, and have 63

CHOICES = {
    "mode": ("cluster", "follower", "solo"),
    "pulse": ("", "process", "thread", "loop"),
    "pooler": ("none", "transaction"),
    "on_evicted": ("rejoin", "exit"),
    "log_format": ("console", "json"),
    "on_apply_failed": ("pause", "skip", "park"),
    "on_undecodable": ("pause", "skip", "park"),
    "on_unknown_type": ("ignore", "pause", "skip", "park"),
}


def option(default: Any, reason: str, *, least: float | None = None) -> Any:
    """Declare one setting: its default, why it has that value, its smallest sensible value."""
    return field(default=default, metadata={"reason": reason, "least": least})


@dataclass(frozen=True, slots=True)
class Settings:
    """All options of an app. Each is read from ``STRANDLINE_<NAME>`` too; durations are seconds."""

    database_url: str = option("", "PostgreSQL to use; empty starts an embedded server")
    embedded_dir: str = option(
        "", "folder of embedded servers, one below it per app; empty: the user's data folder"
    )
    schema: str = option("strandline", "PostgreSQL schema that holds all tables")
    migrate_at_start: bool = option(True, "apply missing migrations when the app opens")

    work_connections: int = option(8, "pool for appends, reads and batches", least=2)
    control_connections: int = option(2, "pool for the mark and checks; never shared", least=1)
    connect_timeout: float = option(10.0, "seconds to open a connection", least=0.1)
    acquire_timeout: float = option(5.0, "seconds to wait for a free connection", least=0.05)
    statement_timeout: float = option(60.0, "seconds one statement may take", least=0.1)
    idle_transaction_timeout: float = option(
        60.0, "seconds an idle transaction may hold its locks before the server ends it", least=1
    )
    direct_url: str = option(
        "", "way to the server past a pooler, for control, beats and LISTEN; empty: database_url"
    )
    pooler: str = option(
        "none", "transaction: database_url leads to PgBouncer in transaction mode, or none"
    )
    leak_after: float = option(
        30.0, "seconds a transaction may be open before it is reported as leaked", least=0.01
    )
    leak_rollback_after: float = option(
        0.0, "seconds after which a leaked transaction is rolled back; 0: never", least=0.0
    )
    prepared_statements: bool = option(True, "off behind a pooler that cannot keep them")

    max_payload_bytes: int = option(1_048_576, "JSON of one event, data or metadata", least=256)
    max_events_per_append: int = option(10_000, "events of one append; import takes more", least=1)
    group_appends: int = option(500, "single appends sent together at the most", least=1)
    group_bytes: int = option(1_048_576, "JSON of one group at the most", least=1024)

    page_events: int = option(1_000, "events an agent takes at once", least=1)
    table_page_events: int = option(20_000, "events a table projection folds at once", least=1)
    rebuild_page_events: int = option(
        10_000, "events a rebuild takes at once: it has no readers that wait", least=1
    )
    rebuilds_at_once: int = option(
        2, "rebuilds under way in the cluster at the most; others wait", least=1
    )
    page_bytes: int = option(16_777_216, "JSON of one page held in memory, about", least=65_536)
    cached_documents: int = option(20_000, "documents an agent keeps between batches", least=0)

    failure_pause: float = option(
        30.0, "seconds a shard rests once every try of a batch has failed", least=0.0
    )
    longest_failure_pause: float = option(
        300.0, "seconds that pause grows to, doubling while no batch succeeds between", least=0.0
    )
    on_apply_failed: str = option(
        "park", "event whose handler raises: pause, skip, or park; a projection may say otherwise"
    )
    on_undecodable: str = option("park", "event whose JSON does not fit its class: as above")
    on_unknown_type: str = option("ignore", "event no class is registered for: ignore, or as above")
    letters_kept_days: float = option(
        30.0, "days a dead letter is kept once it is resolved, discarded or superseded", least=0.0
    )
    poll_interval: float = option(0.5, "seconds between looks without any notice", least=0.01)
    notify_interval: float = option(0.01, "seconds between notices of one process", least=0.001)
    probe_interval: float = option(0.02, "seconds between looks at a gap's holders", least=0.001)
    stale_after: float = option(3.0, "seconds a gap may wait before it is reported", least=0.1)
    force_after: float = option(
        0.0, "seconds after which a held gap is skipped without proof; 0: never", least=0.0
    )

    queues: str = option(
        "",
        "queues this node works, as name=jobs at once with commas; empty: those of its jobs; none:"
        " no queue",
    )
    job_concurrency: int = option(100, "jobs of one queue at once on a node, by default", least=1)
    job_batch: int = option(1_000, "jobs fetched by one statement at the most", least=1)
    job_poll_interval: float = option(
        1.0, "seconds between looks at a queue without any notice", least=0.01
    )
    job_notify_interval: float = option(
        0.002, "seconds between notices of new jobs of one process", least=0.0005
    )
    job_buffer_seconds: float = option(
        3.0, "seconds a fetched job may wait for its turn before it is given back", least=0.05
    )
    job_drain_timeout: float = option(
        10.0, "seconds running jobs have to end when the node stops", least=0.0
    )
    job_cancel_timeout: float = option(
        3.0, "seconds they have then to end once they are cancelled", least=0.0
    )
    job_stuck_after: float = option(
        10.0, "seconds after its cancellation at which a job that runs on is told as stuck", least=0
    )
    job_history_days: int = option(7, "days that jobs which have ended are kept", least=1)
    group_jobs: int = option(500, "single enqueued jobs sent together at the most", least=1)
    job_keys: str = option(
        "", "Fernet keys with commas for encrypted arguments: the first encrypts, all decrypt"
    )

    mode: str = option(
        "cluster", "cluster, follower (never leads), or solo: runs everything, whoever had it"
    )
    pulse: str = option(
        "",
        "what speaks for the node: process, thread or loop; empty: process in"
        " `strandline node`, thread elsewhere",
    )
    node_name: str = option(
        "", "stable name of the node, by which it gets its work back; empty: from app, host and pid"
    )
    node_labels: str = option("", "what this node offers besides its code: words with commas")
    node_capacity: float = option(1.0, "share of the work this node takes", least=0.01)
    leader_priority: int = option(0, "higher leads sooner; below 0: never leads")
    pulse_interval: float = option(3.0, "seconds between beats", least=0.05)
    pulse_deadline: float = option(2.5, "seconds until a beat without an answer fails", least=0.05)
    node_ttl: float = option(
        15.0, "seconds after which the work of a node that fell silent runs elsewhere", least=0.2
    )
    leader_ttl: float = option(12.0, "seconds a leader's lease lasts without renewal", least=0.2)
    leader_margin: float = option(
        2.0, "seconds before the lease's end at which the leader stops trusting it", least=0.01
    )
    revoke_timeout: float = option(
        30.0, "seconds until work is taken from a node that does not give it up", least=0.1
    )
    rebalance_interval: float = option(
        10.0, "seconds between looks whether work should move", least=0.1
    )
    rebalance_after: float = option(
        5.0, "seconds without a change of nodes before work moves for balance", least=0.0
    )
    moves_per_round: float = option(0.1, "share of all work moved for balance at once", least=0.0)
    rejoin_grace: float = option(
        30.0, "seconds work of a node that left waits for its name, if others have enough", least=0
    )
    stall_resign_after: float = option(
        8.0, "seconds a blocked event loop may lead the cluster", least=0.1
    )
    stall_after: float = option(
        30.0, "seconds until a blocked event loop makes its node stalled", least=0.1
    )
    stall_kill_after: float = option(
        120.0,
        "seconds until the side process ends a node with a blocked event loop; 0: never",
        least=0.0,
    )
    work_stall_after: float = option(
        60.0, "seconds a shard may be behind without progress before it is started anew", least=0.1
    )
    on_evicted: str = option("rejoin", "what a node declared dead does: rejoin, or exit (code 75)")

    stop_timeout: float = option(25.0, "seconds for a node to stop in all", least=0.1)
    stop_reserve: float = option(
        5.0, "of these kept back for the steps that others wait for", least=0.0
    )
    stop_fast: float = option(3.0, "seconds left after a second signal", least=0.1)
    stop_hard: float = option(
        28.0,
        "seconds after the first signal at which the process is ended, whatever hangs",
        least=0.1,
    )
    wait_timeout: float = option(30.0, "seconds wait_for waits by default", least=0.0)

    ops_port: int = option(
        -1, "port of health checks and /metrics of this node; 0: any free one, -1: none", least=-1
    )
    ops_host: str = option("127.0.0.1", "address it listens on; 0.0.0.0 for probes from outside")
    live_loop_lag: float = option(
        60.0, "seconds a blocked event loop may last until /livez fails", least=0.1
    )
    survey_interval: float = option(
        10.0, "seconds between the leader's looks at all shards and nodes, for metrics", least=0.05
    )
    metrics: bool = option(True, "count for /metrics and OpenTelemetry")
    series_limit: int = option(
        1_000, "series of one metric at the most; further ones are counted as `other`", least=10
    )
    log_level: str = option("INFO", "of the `strandline` logger, for the commands")
    log_format: str = option("console", "console or json, for the commands")

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        for one in fields(self):
            least = one.metadata["least"]
            value = getattr(self, one.name)
            if least is not None and not value >= least:  # NaN is refused too
                raise InvalidSetting(one.name, value, f"must be at least {least}")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                words = ", ".join(repr(one) for one in known)
                raise InvalidSetting(name, getattr(self, name), f"one of {words}")
        if not self.schema or "\0" in self.schema or len(self.schema.encode()) > LONGEST_SCHEMA:
            raise InvalidSetting("schema", self.schema, f"1 to {LONGEST_SCHEMA} bytes, no NUL")
        self._refuse_what_does_not_fit()

    def _refuse_what_does_not_fit(self) -> None:
        """Refuse durations that are sensible alone and not together."""
        beats = 2 * self.pulse_interval
        if self.node_ttl < beats:
            raise InvalidSetting(
                "node_ttl", self.node_ttl, f"less than two beats of pulse_interval ({beats:g} s)"
            )
        if self.leader_ttl - self.leader_margin < beats:
            raise InvalidSetting(
                "leader_ttl",
                self.leader_ttl,
                f"less leader_margin ({self.leader_margin:g} s) there must be two beats of"
                f" pulse_interval left ({beats:g} s)",
            )
        if self.stop_hard <= self.stop_timeout:
            raise InvalidSetting(
                "stop_hard", self.stop_hard, f"must be above stop_timeout ({self.stop_timeout:g} s)"
            )

    def embedded_folder(self, app: str) -> Path | None:
        """The folder of *app*'s embedded server; None for the user's data folder."""
        return Path(self.embedded_dir) / app if self.embedded_dir else None


def load(
    arguments: Mapping[str, Any] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    toml: Path | None = None,
) -> Settings:
    """Collect settings: *arguments*, then the environment, then ``[tool.strandline]`` of *toml*.

    Raises:
        InvalidSetting: A name is unknown or a value cannot be used; the message names both.
    """
    environment = os.environ if environment is None else environment
    known = {one.name: one for one in fields(Settings)}
    values: dict[str, Any] = {}
    for name, value in _from_toml(toml).items():
        if name not in known:
            raise InvalidSetting(name, value, f"unknown; known are {', '.join(sorted(known))}")
        values[name] = _parsed(name, value, known[name].default)
    for name, one in known.items():
        text = environment.get(PREFIX + name.upper())
        if text is not None:
            values[name] = _parsed(name, text, one.default)
    for name, value in (arguments or {}).items():
        if name not in known:
            raise InvalidSetting(name, value, f"unknown; known are {', '.join(sorted(known))}")
        if value is not None:
            values[name] = _parsed(name, value, known[name].default)
    return Settings(**values)


def _from_toml(path: Path | None) -> dict[str, Any]:
    if path is None or not path.is_file():
        return {}
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSetting("toml", str(path), str(error)) from error
    found = tree.get("tool", {}).get("strandline", tree.get("strandline", {}))
    return dict(found)


def _parsed(name: str, value: Any, default: Any) -> Any:
    try:
        if isinstance(default, bool):
            return _flag(value)
        if isinstance(default, int):
            return int(value)
        if isinstance(default, float):
            return float(value)
    except (TypeError, ValueError) as error:
        raise InvalidSetting(name, value, f"not a {type(default).__name__}") from error
    if not isinstance(value, str):
        raise InvalidSetting(name, value, "not a text")
    return value


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    words = {"1": True, "true": True, "yes": True, "on": True}
    words |= {"0": False, "false": False, "no": False, "off": False}
    found = words.get(str(value).strip().lower())
    if found is None:
        raise ValueError(value)
    return found
