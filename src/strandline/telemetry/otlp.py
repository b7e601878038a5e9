"""Metrics and traces by OTLP, as the standard environment variables say: for ``strandline node`` and ``up``.

A program of your own sets OpenTelemetry up by itself, and strandline uses what is set. Here nobody
would, so the command does it: with the extra ``otlp``, over HTTP, unless somebody has set a provider
before. What the SDK reads by itself counts: sampler, resource, headers, time-outs, batch sizes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from strandline.telemetry.exporting import Exporting
from strandline.telemetry.journal import Journal

log = Journal("strandline.telemetry")

KINDS = ("traces", "metrics")
HTTP = ("", "http/protobuf")  # of OTEL_EXPORTER_OTLP_PROTOCOL
LAST_WORDS = 1.0  # seconds for what is told while the node ends

_installed: Exporting | None = None


def from_environment(service: str, *, instance: str = "") -> Exporting | None:
    """Set up what the environment asks for; None if that is nothing.

    Args:
        service: ``service.name`` where ``OTEL_SERVICE_NAME`` says none.
        instance: ``service.instance.id``, where nothing else says it.
    """
    global _installed
    wanted = [one for one in KINDS if is_wanted(one)]
    if not wanted or _installed is not None:
        return _installed
    try:
        from strandline.telemetry import otlp_setup

        _installed = otlp_setup.begin(wanted, service, instance)
    except ImportError as error:
        log.tell("otlp_not_installed", error=error)
    except Exception as error:  # a variable that the SDK cannot read; the node is to start anyway
        log.tell("otlp_not_begun", error=error)
    return _installed


@contextmanager
def exporting(service: str, instance: str) -> Iterator[None]:
    """``from_environment`` for the block; what it has not sent by its end is given a moment."""
    found = from_environment(service, instance=instance)
    try:
        yield
    finally:
        if found is not None:
            found.stop(LAST_WORDS)


def installed() -> Exporting | None:
    """What ``from_environment`` has set up in this process."""
    return _installed


def is_wanted(kind: str) -> bool:
    """Whether the environment asks for OTLP, as far as we can speak it."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    upper = kind.upper()
    exporter = os.environ.get(f"OTEL_{upper}_EXPORTER", "").strip().lower()
    names = [one.strip() for one in exporter.split(",") if one.strip()]
    has_endpoint = any(
        os.environ.get(name, "").strip()
        for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{upper}_ENDPOINT")
    )
    if names and "otlp" not in names:
        return False
    if not names and not has_endpoint:
        return False
    protocol = os.environ.get(f"OTEL_EXPORTER_OTLP_{upper}_PROTOCOL") or os.environ.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL", ""
    )
    if protocol.strip().lower() not in HTTP:
        log.tell("otlp_protocol_unknown", protocol=protocol)
        return False
    return True
