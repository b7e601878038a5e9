"""The numbers of apps as instruments of the OpenTelemetry API, where that is installed.

Counters and gauges are observed: somebody collects, and the tally answers. Histograms have no such
form in OpenTelemetry and are recorded as they are told. All apps of a process share the instruments,
and the attribute ``node`` tells them apart.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from strandline.telemetry.catalogue import CATALOGUE, Metric
from strandline.telemetry.tally import Source


class Instruments:
    """The instruments of one meter. There is one set of them, however many apps feed it."""

    def __init__(self, meter: Any) -> None:
        self._watched: weakref.WeakSet[Source] = weakref.WeakSet()
        self._watching = threading.Lock()  # an exporter reads in a thread of its own
        self._histograms: dict[str, Callable[[float, Mapping[str, str]], None]] = {}
        for one in CATALOGUE.values():
            told = {"unit": one.unit, "description": one.meaning}
            if one.kind == "histogram":
                self._histograms[one.name] = _histogram(meter, one, told).record
            elif one.kind == "gauge":
                meter.create_observable_gauge(one.name, [self._observer(one.name)], **told)
            else:
                meter.create_observable_counter(one.name, [self._observer(one.name)], **told)

    def watch(self, source: Source) -> None:
        """Observe *source*, for as long as somebody else keeps it."""
        with self._watching:
            self._watched.add(source)

    def records(self, metric: str) -> bool:
        """Whether *metric* is recorded, and not observed."""
        return metric in self._histograms

    def record(self, metric: str, value: float, attributes: Mapping[str, str]) -> None:
        """Record *value* in the histogram *metric*."""
        self._histograms[metric](value, attributes)

    def _observer(self, name: str) -> Callable[[Any], list[Any]]:
        from opentelemetry.metrics import Observation

        def observe(_: Any) -> list[Any]:
            with self._watching:
                sources = list(self._watched)
            return [
                Observation(value, attributes)
                for source in sources
                for value, attributes in source.samples(name)
            ]

        return observe


def _histogram(meter: Any, one: Metric, told: dict[str, str]) -> Any:
    try:
        return meter.create_histogram(
            one.name, explicit_bucket_boundaries_advisory=one.bounds, **told
        )
    except TypeError:  # the API before 1.30 leaves buckets to the SDK's views
        return meter.create_histogram(one.name, **told)


_of_meters: dict[Any, Instruments] = {}


def instruments(meter: Any | None) -> Instruments | None:
    """Those of *meter* (None: of the provider that is set); None without OpenTelemetry."""
    found = _of_meters.get(meter)
    if found is None:
        try:
            from opentelemetry.metrics import get_meter
        except ImportError:
            return None
        found = _of_meters[meter] = Instruments(meter or get_meter("strandline"))
    return found
