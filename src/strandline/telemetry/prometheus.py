"""The numbers of apps in the words of Prometheus, through ``prometheus_client`` where it is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Any

from strandline.errors import MissingExtra
from strandline.telemetry.catalogue import CATALOGUE, Metric
from strandline.telemetry.tally import Distribution, Source

UNITS = {"s": "seconds", "By": "bytes"}


class Exposition:
    """One page of numbers of *sources*, with those of this process.

    Raises:
        MissingExtra: ``prometheus_client`` is not installed.
    """

    def __init__(self, sources: Iterable[Source]) -> None:
        try:
            from prometheus_client import CollectorRegistry, ProcessCollector
        except ImportError as error:
            raise MissingExtra("/metrics", "prometheus") from error
        self._sources = list(sources)
        # Not the registry of prometheus_client, which is the program's own.
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        self._registry.register(self)

    def page(self, accept: str = "") -> tuple[bytes, str]:
        """The page and its content type, of which there are several.

        Args:
            accept: The header of that name, as it was sent.
        """
        from prometheus_client.exposition import choose_encoder

        try:
            encode, kind = choose_encoder(accept)
        except Exception:  # it may ask for a version that is no number
            encode, kind = choose_encoder("")
        return encode(self._registry), kind

    def collect(self) -> Iterator[Any]:
        """The families that have a series: what ``prometheus_client`` asks for."""
        for metric in CATALOGUE.values():
            family, add = _family(metric)
            for source in self._sources:
                for value, labels in source.samples(metric.name):
                    add([_text(labels[name]) for name in ("node", *metric.attributes)], value)
            if family.samples:
                yield family

    def describe(self) -> list[Any]:
        """Nothing: it is asked once, and would have to collect."""
        return []


def exposition(sources: Iterable[Source], accept: str = "") -> tuple[bytes, str]:
    """A page of the numbers of *sources*, and its content type.

    Raises:
        MissingExtra: ``prometheus_client`` is not installed.
    """
    return Exposition(sources).page(accept)


def _family(metric: Metric) -> tuple[Any, Callable[[list[str], Any], None]]:
    """An empty family of *metric*, and what adds a series to it."""
    from prometheus_client import metrics_core

    labels = ("node", *metric.attributes)
    unit = UNITS.get(metric.unit, "")
    unit = unit if metric.name.removesuffix("_total").endswith(f"_{unit}") else ""
    if metric.kind == "histogram":
        family = metrics_core.HistogramMetricFamily(
            metric.name, metric.meaning, labels=labels, unit=unit
        )
        return family, lambda values, value: family.add_metric(
            values, _buckets(metric, value), sum_value=value.total
        )
    make = {"counter": metrics_core.CounterMetricFamily, "gauge": metrics_core.GaugeMetricFamily}
    family = make[metric.kind](metric.name, metric.meaning, labels=labels, unit=unit)
    return family, family.add_metric


def _text(value: str) -> str:
    """*value*, also if it holds what UTF-8 cannot: one name must not cost the page."""
    return value.encode("utf-8", "backslashreplace").decode()


def _buckets(metric: Metric, found: Distribution) -> list[tuple[str, float]]:
    bounds = [*(repr(one) for one in metric.bounds), "+Inf"]
    return list(zip(bounds, map(float, accumulate(found.counts)), strict=True))
