"""Telling signals of jobs: whoever listens is the user's, and must not disturb what is going on."""

from __future__ import annotations

from typing import Any

from strandline.telemetry.journal import Journal
from strandline.telemetry.signals import Signals

log = Journal("strandline.jobs")


def told(signals: Signals, name: str, /, **facts: Any) -> None:
    """Tell *signals*; whoever listens and fails is logged, and nothing else happens."""
    try:
        signals.tell(name, **facts)
    except Exception as error:  # the user's code raises anything
        log.tell("listener_failed", notice=name, trace=error)
