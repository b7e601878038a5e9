"""Telling signals of jobs: whoever listens is the user's, and must not disturb what is going on."""

from __future__ import annotations

import logging
from typing import Any

from strandline.telemetry.signals import Signals

log = logging.getLogger("strandline.jobs")


def told(signals: Signals, name: str, /, **facts: Any) -> None:
    """Tell *signals*; whoever listens and fails is logged, and nothing else happens."""
    try:
        signals.tell(name, **facts)
    except Exception:  # the user's code raises anything
        log.exception("a listener to %s failed", name)
