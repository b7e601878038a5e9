"""Metrics of one app: counted in a tally, shown to Prometheus and to OpenTelemetry.

Counters and histograms are fed by notices of ``Signals``; gauges, and what is counted already, are
read from the statistics of the node at the moment somebody collects. Nothing here runs by itself, and
nothing that fails here reaches the node.

The names are in ``catalogue``, what adds to them in ``rules``, what is read in ``readings``.
"""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from itertools import product
from typing import Any, Protocol

from strandline.telemetry.catalogue import CATALOGUE
from strandline.telemetry.journal import Journal
from strandline.telemetry.otel_metrics import Instruments, instruments
from strandline.telemetry.prometheus import Exposition
from strandline.telemetry.readings import READERS, Facts, Reading, looked_at
from strandline.telemetry.rules import BEGIN_AT, RULES, Rule, value_of
from strandline.telemetry.signals import Notice, Signals
from strandline.telemetry.tally import DROPPED, Distribution, Tally, Values

log = Journal("strandline.metrics")

SERIES_LIMIT = 1_000
STALE = 1.0  # seconds; a collection that takes longer looks again
LOCAL = {"strandline_build_info", DROPPED}  # told by nobody but this module and the tally
LABELS = {one.name: one.attributes for one in CATALOGUE.values()}


class Wanted(Protocol):
    """The settings that are read here."""

    @property
    def metrics(self) -> bool:
        """Whether anything is counted."""
        ...

    @property
    def series_limit(self) -> int:
        """Series of one metric at the most."""
        ...


class Metrics:
    """Feeds the metrics of one app, from ``start`` to ``stop``.

    Args:
        signals: The app's notices.
        sources: A picture of the node, asked for at each collection, maybe by another thread. Keys,
            all optional: ``node`` (a name) or ``identity``; and statistics by part, see ``readings``.
        settings: Of the app; with ``metrics=False`` nothing is counted or shown.
        meter: Of OpenTelemetry; None for that of the provider that is set.

    Attributes:
        tally: What is counted. It goes on over ``stop`` and a further ``start``.
    """

    def __init__(
        self,
        signals: Signals,
        *,
        sources: Callable[[], Facts],
        settings: Wanted | None = None,
        meter: Any | None = None,
    ) -> None:
        self._is_wanted = settings is None or settings.metrics
        self._limit = settings.series_limit if settings else SERIES_LIMIT
        self.tally = Tally(self._limit)
        self._signals = signals
        self._sources = sources
        self._meter = meter
        self._instruments: Instruments | None = None
        self._deaf: Callable[[], None] | None = None
        self._node = ""
        self._looking = threading.Lock()
        self._looked_at = 0.0
        self._seen: Facts | None = None
        self._read: set[str] = set()
        self._exposition: Exposition | None = None
        self._exposing = threading.Lock()

    def start(self) -> None:
        """Begin. A second call does nothing."""
        if self._deaf is not None or not self._is_wanted:
            return
        try:
            self._instruments = instruments(self._meter)
            self._picture()
        except Exception as error:  # somebody's exporter must not keep a node from starting
            log.tell("metrics_incomplete", error=error)
        if self._instruments is not None:
            self._instruments.watch(self)
        self._deaf = self._signals.listen(self._heard)
        for metric in _begin_at_start():
            for values in _closed(metric):
                self.tally.begin(metric, values)

    def stop(self) -> None:
        """End: nothing is counted any more, and gauges are no longer told.

        What was counted is still told, for as long as somebody keeps this: an exporter may
        collect only after the app is closed.
        """
        if self._deaf is not None:
            self._deaf()
            self._deaf = None

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """The page of Prometheus for this app and process, and its content type.

        May be called by any thread; calls take turns.

        Args:
            accept: The header of that name, as it was sent.

        Raises:
            MissingExtra: ``prometheus_client`` is not installed.
        """
        with self._exposing:
            if self._exposition is None:
                self._exposition = Exposition([self])
            return self._exposition.page(accept)

    def samples(self, metric: str) -> Iterator[tuple[Any, Mapping[str, str]]]:
        """The series of *metric* as they are now, each with all of its labels."""
        if not self._is_wanted:
            return
        labels = ("node", *LABELS[metric])
        if metric == "strandline_build_info":
            runs = (self._node, version("strandline"), platform.python_version())
            yield 1.0, dict(zip(labels, runs, strict=True))
        elif metric in READERS:
            yield from self.readings(metric)
        else:
            for values, number in self._tallied(metric).items():
                yield number, dict(zip(labels, (self._node, *values), strict=True))

    def readings(self, name: str) -> list[Reading]:
        """What the metric *name* shows now; nothing before ``start`` and after ``stop``."""
        if self._deaf is None:
            return []
        try:
            found = [
                (value, {"node": self._node, **attributes})
                for value, attributes in READERS[name](self._picture_for(name))
            ]
        except Exception as error:  # a part that is just closing; the others are told
            log.tell("metric_unreadable", metric=name, error=error)
            return []
        if len(found) > self._limit:
            self.tally.dropped(name, len(found) - self._limit)
        return found[: self._limit]

    def _tallied(self, metric: str) -> Mapping[Values, float | Distribution]:
        if CATALOGUE[metric].kind == "histogram":
            return self.tally.distributions(metric)
        return self.tally.counts(metric)

    def _picture_for(self, name: str) -> Facts:
        """A picture that has not been read for *name*: one serves a whole collection."""
        with self._looking:
            late = time.monotonic() - self._looked_at > STALE
            if name in self._read or late or self._seen is None:
                self._seen, self._looked_at = self._picture(), time.monotonic()
                self._read.clear()
            self._read.add(name)
            return self._seen

    def _picture(self) -> Facts:
        now = looked_at(self._sources)
        named = now.get("node") or getattr(now.get("identity"), "name", "")
        self._node = str(named or self._node)
        return now

    # ---- what is heard

    def _heard(self, notice: Notice) -> None:
        try:
            facts = _flat(notice.facts)
            for metric in BEGIN_AT.get(notice.name, ()):
                for values in _begun(metric, facts):
                    self.tally.begin(metric, values)
            for rule in RULES.get(notice.name, ()):
                self._apply(rule, facts)
        except Exception as error:  # whoever tells something must never be hit by its being counted
            log.tell("notice_uncounted", notice=notice.name, error=error)

    def _apply(self, rule: Rule, facts: Facts) -> None:
        if rule.only is not None and not rule.only(facts):
            return
        amount = float(facts.get(rule.amount) or 0) if rule.amount else 1.0
        fixed = rule.fixed or {}
        names = LABELS[rule.metric]
        values = tuple([fixed.get(one) or value_of(one, facts) for one in names])
        counted = self.tally.add(rule.metric, amount, values)
        if counted is None or self._instruments is None:
            return
        if self._instruments.records(rule.metric):
            told = {"node": self._node, **dict(zip(names, counted, strict=True))}
            self._instruments.record(rule.metric, amount, told)


def _flat(facts: Facts) -> Facts:
    """*facts*; those of a report instead of the report."""
    report = facts.get("report")
    if report is None:
        return facts
    return {"result": report.result, "seconds": report.seconds}


def _begin_at_start() -> Iterable[str]:
    """Counters whose series are known beforehand: one that begins at 1 shows no increase."""
    for one in CATALOGUE.values():
        if one.kind == "counter" and one.name not in READERS:
            yield one.name


def _closed(metric: str) -> Iterable[Values]:
    """Every series of *metric* if all of its labels have few values, else none."""
    return product(*map(CATALOGUE[metric].values_of, LABELS[metric]))


def _begun(metric: str, facts: Facts) -> Iterable[Values]:
    """The series of *metric* that there can be for *facts*."""
    known = CATALOGUE[metric].values_of
    return product(*(known(one) or (value_of(one, facts),) for one in LABELS[metric]))
