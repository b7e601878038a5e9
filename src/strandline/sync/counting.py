"""What a blocking app counts and shows of its process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from strandline.cluster.node import default_name
from strandline.jobs.waking import Written
from strandline.postgres.pool_statistics import PoolStatistics
from strandline.settings import Settings
from strandline.telemetry.metrics import Metrics
from strandline.telemetry.signals import Signals


class Counting:
    """The metrics of one blocking app. Safe to use from many threads.

    Args:
        name: Of the app.
        pool: How its pool is doing; None while there is none.
    """

    def __init__(
        self, name: str, settings: Settings, pool: Callable[[], PoolStatistics | None]
    ) -> None:
        self.signals = Signals()
        self.metrics = Metrics(self.signals, sources=self._readings, settings=settings)
        self._name = name
        self._settings = settings
        self._pool = pool
        self._adding = threading.Lock()
        self._appended = 0

    def appended(self, events: int) -> None:
        """*events* were committed."""
        with self._adding:
            self._appended += events

    def enqueued(self, written: Written) -> None:
        """The jobs of *written* were committed."""
        for queue, count in written.counts.items():
            self.signals.tell("jobs_enqueued", queue=queue, count=count)

    def _readings(self) -> Mapping[str, Any]:
        pool = self._pool()
        return {
            # Asked for each time: a server may fork its workers after the app was made.
            "node": self._settings.node_name or default_name(self._name),
            "events_appended": self._appended,
            "pools": [] if pool is None else [pool],
        }
