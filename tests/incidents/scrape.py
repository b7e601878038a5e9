"""What a Prometheus would have stored of one moment: the text of real nodes, read by the real parser."""

from __future__ import annotations

import asyncio
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

parser = pytest.importorskip("prometheus_client.parser")

Labels = tuple[tuple[str, str], ...]
Series = tuple[str, Labels]

JOB = "strandline"
LEFT_OUT = ("process_", "python_")  # nothing that a node does moves them


@dataclass(frozen=True)
class Scrape:
    """All series of all targets at one moment.

    Attributes:
        at: Seconds of the monotonic clock.
        values: By series. A target that did not answer has only its ``up``, which is 0.
        kinds: ``counter``, ``gauge`` or ``histogram`` by the name of a sample.
    """

    at: float
    values: Mapping[Series, float]
    kinds: Mapping[str, str] = field(default_factory=dict)

    def find(self, name: str, **labels: str) -> dict[Labels, float]:
        """The series of that name which have these labels."""
        wanted = labels.items()
        return {
            series[1]: value
            for series, value in self.values.items()
            if series[0] == name and wanted <= dict(series[1]).items()
        }

    def value(self, name: str, **labels: str) -> float | None:
        """Their sum; None if there is none."""
        found = self.find(name, **labels)
        return sum(found.values()) if found else None

    def has(self, name: str, **labels: str) -> bool:
        """Whether there is such a series, and it is not 0."""
        return bool(self.value(name, **labels))


def read(texts: Mapping[str, str | None], *, at: float | None = None) -> Scrape:
    """A scrape of targets by their names; None is one that did not answer."""
    values: dict[Series, float] = {}
    kinds: dict[str, str] = {}
    for instance, text in texts.items():
        own = {"job": JOB, "instance": instance}
        values["up", tuple(sorted(own.items()))] = float(text is not None)
        for name, kind, labels, value in _samples(text or ""):
            kinds[name] = kind
            values[name, tuple(sorted({**labels, **own}.items()))] = value
    return Scrape(time.monotonic() if at is None else at, values, kinds)


def _samples(text: str) -> Iterator[tuple[str, str, Mapping[str, str], float]]:
    for family in parser.text_string_to_metric_families(text):
        for sample in family.samples:
            if not sample.name.startswith(LEFT_OUT) and not sample.name.endswith("_created"):
                yield sample.name, family.type, sample.labels, float(sample.value)


async def scraped(targets: Mapping[str, str]) -> Scrape:
    """Scrape the URLs of *targets*, one after the other, as far as they answer."""
    return read({name: await text_of(url) for name, url in targets.items()})


async def text_of(url: str, path: str = "/metrics") -> str | None:
    """What a node answers; None if it does not, or not with 200."""
    code, text = await asked(url, path)
    return text if code == 200 else None


async def asked(url: str, path: str, timeout: float = 5.0) -> tuple[int, str]:
    """Status and body of a GET, sent from a thread; 0 if nobody answered."""

    def ask() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(url + path, timeout=timeout) as answer:
                return int(answer.status), answer.read().decode()
        except urllib.error.HTTPError as error:
            return int(error.code), error.read().decode()
        except OSError:
            return 0, ""

    return await asyncio.to_thread(ask)


async def scraped_until(
    targets: Mapping[str, str], holds: Callable[[Scrape], Any], *, timeout: float = 30.0
) -> Scrape:
    """Scrape again and again until *holds* does; that scrape."""
    deadline = time.monotonic() + timeout
    while True:
        found = await scraped(targets)
        if holds(found):
            return found
        assert time.monotonic() < deadline, "\n".join(
            ["the scrape never looked as it should; the last one:", *shown(found)]
        )
        await asyncio.sleep(0.05)


def runs(scrape: Scrape, shards: int = 2) -> bool:
    """Whether so many shards run, and all of them are level: as nodes and the survey say."""
    return (
        scrape.value("strandline_shards", state="running") == shards
        and scrape.value("strandline_cluster_shards", state="running") == shards
        and scrape.value("strandline_shard_lag_events") == 0
    )


def is_level(scrape: Scrape) -> bool:
    """Whether all shards run and are level, and so is the mark."""
    return runs(scrape) and not scrape.has("strandline_high_water_difference_events")


def is_led(scrape: Scrape) -> bool:
    """Whether one node leads, and all shards are known to run."""
    return scrape.value("strandline_leader") == 1 and runs(scrape)


def shown(scrape: Scrape) -> list[str]:
    """Its lines, without the parts of histograms."""
    return [
        f"{name}{{{', '.join(f'{key}={value}' for key, value in labels)}}} {number:g}"
        for (name, labels), number in sorted(scrape.values.items())
        if not name.endswith("_bucket")
    ]
