"""Settings that are sensible alone and not together, and extras that they need."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec

from strandline.settings import Settings
from strandline.survey.finding import FAIL, OK, WARN, Finding

KILLED_AFTER = 30.0  # seconds Kubernetes and ECS leave a container that was told to stop
OTLP = (
    *("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
    *("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",),
)


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even what it is in
        return False


def examine_settings(
    settings: Settings,
    *,
    has_jobs: bool = False,
    environment: Mapping[str, str] | None = None,
    is_there: Callable[[str], bool] = _is_there,
) -> list[Finding]:
    """What does not fit together, and what is asked for and not installed."""
    environment = os.environ if environment is None else environment
    found = [*_of_nodes(settings), *_of_stops(settings, has_jobs=has_jobs), *_of_events(settings)]
    found += _of_extras(settings, environment, is_there)
    return found or [Finding("settings", OK, "they fit together")]


def _warned(what: str, why: str, cure: str) -> Finding:
    return Finding("settings", WARN, what, why, cure)


def _of_nodes(settings: Settings) -> Iterator[Finding]:
    one = settings
    trusted = one.leader_ttl - one.leader_margin
    if one.mode != "solo" and one.pulse_deadline + one.pulse_interval > trusted:
        yield _warned(
            f"pulse_deadline {one.pulse_deadline:g} s and pulse_interval {one.pulse_interval:g} s are"
            f" more than the {trusted:g} s a leader may trust its lease",
            "one beat without an answer ends its leadership",
            "lower pulse_deadline, or raise leader_ttl",
        )
    if 0 < one.stall_kill_after <= one.stall_after:
        yield _warned(
            f"stall_kill_after {one.stall_kill_after:g} s is not above stall_after"
            f" {one.stall_after:g} s",
            "a node with a blocked loop is ended before others could take over its work",
            "raise stall_kill_after, or set it to 0",
        )
    if one.failure_pause > one.longest_failure_pause:
        yield _warned(
            f"failure_pause {one.failure_pause:g} s is above longest_failure_pause"
            f" {one.longest_failure_pause:g} s",
            "the shorter of them is the pause",
            "raise longest_failure_pause",
        )
    if one.log_level.upper() not in logging.getLevelNamesMapping():
        yield _warned(
            f"log_level {one.log_level!r} is no level",
            "`strandline node` refuses to start",
            "set log_level=INFO",
        )


def _of_stops(settings: Settings, *, has_jobs: bool) -> Iterator[Finding]:
    one = settings
    if one.stop_hard > KILLED_AFTER:
        yield _warned(
            f"stop_hard {one.stop_hard:g} s is more than the {KILLED_AFTER:g} s that Kubernetes and ECS"
            " leave by default",
            "the container would be killed in the middle of the stop",
            "raise terminationGracePeriodSeconds or stopTimeout above it, or lower stop_hard",
        )
    drain = one.job_drain_timeout + one.job_cancel_timeout
    left = one.stop_timeout - one.stop_reserve
    if has_jobs and drain > left:
        yield _warned(
            f"job_drain_timeout and job_cancel_timeout are {drain:g} s, and a stop has {left:g} s for it",
            "jobs are cut off before that: stop_timeout less stop_reserve",
            "raise stop_timeout, or lower job_drain_timeout",
        )


def _of_events(settings: Settings) -> Iterator[Finding]:
    one = settings
    if one.force_after:
        yield _warned(
            f"force_after is {one.force_after:g} s: gaps are skipped without proof",
            "an event whose transaction commits after that is missing from read models",
            "unset force_after once the cause is found",
        )
    if 0 < one.leak_rollback_after < one.leak_after:
        yield _warned(
            f"leak_rollback_after {one.leak_rollback_after:g} s is below leak_after"
            f" {one.leak_after:g} s",
            "transactions are ended before anybody was told of them",
            "raise leak_rollback_after",
        )
    if one.leak_after >= one.idle_transaction_timeout:
        yield _warned(
            f"leak_after {one.leak_after:g} s is not below idle_transaction_timeout"
            f" {one.idle_transaction_timeout:g} s",
            "the server ends forgotten transactions before we can say who began them, and where",
            "lower leak_after",
        )


def _of_extras(
    settings: Settings, environment: Mapping[str, str], is_there: Callable[[str], bool]
) -> Iterator[Finding]:
    if settings.job_keys and not is_there("cryptography"):
        yield Finding(
            "extras",
            FAIL,
            "job_keys is set, and cryptography is not installed",
            "encrypted arguments can neither be written nor read",
            "pip install 'strandline[encryption]'",
        )
    if settings.metrics and settings.ops_port >= 0 and not is_there("prometheus_client"):
        yield Finding(
            "extras",
            WARN,
            "ops_port is set, and prometheus-client is not installed: /metrics answers 501",
            "health checks work without it",
            "pip install 'strandline[prometheus]'",
        )
    if any(environment.get(one) for one in OTLP) and not is_there(
        "opentelemetry.exporter.otlp.proto.http"
    ):
        yield Finding(
            "extras",
            WARN,
            "an OTLP endpoint is set, and its exporter is not installed: nothing is sent",
            "",
            "pip install 'strandline[otlp]'",
        )
    if settings.ops_port < 0:
        yield Finding("ops port", OK, "none is set here: ops_port gives nodes /metrics and probes")
