"""Incidents as rule tests: what was really scraped, held for as long as the rules want, judged by promtool.

The rules say "for 5 minutes"; the real failure lasts a second. So a test scrapes the node before, during
and after the real failure, and here each of these pictures is held for so long that every ``for`` and
every range of the rules is over (hours of the rules' time, a second of ours). What goes on while a failure lasts (an age, a counter) goes on as it did
between two scrapes.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import yaml

from incidents.scrape import Scrape, Series, scraped_until
from strandline.telemetry.alerts import PATH

SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
STEP = 120.0  # seconds between samples and between evaluations
PARTS = ("_bucket", "_sum", "_count")
MOST = 1800.0  # seconds: no incident here lasts for hours, as a forgotten pause does
MEMORY = 3600.0
AGES = 900.0  # seconds after which what goes on growing is above every limit
SPARE = 600.0
FIRING = 'ALERTS{alertstate="firing"}'


def rules_file() -> Path:
    """The rules that the package ships."""
    return Path(PATH)


@cache
def program(name: str) -> str:
    """The path of ``promtool`` or ``prometheus``; skips the test without it, but not in CI."""
    found = shutil.which(name)
    if found is None and not os.environ.get("CI"):
        pytest.skip(f"{name} is not installed (Debian package prometheus)")
    assert found is not None, f"{name} is not installed (Debian package prometheus)"
    return found


@cache
def lengths(rules: Path) -> dict[str, float]:
    """Seconds for which each phase is held: until every ``for`` is over, and what is remembered too.

    An alert that remembers trouble for longer than ``MEMORY`` does not clear, as far as this goes.
    """
    every = _rules(rules)
    pending = [seconds(str(rule.get("for", "0s"))) for rule in every]
    reach = [
        seconds(one)
        for rule in every
        for one in re.findall(r"(?:\[|offset\s+)(\d\w*)", rule["expr"])
    ]
    wait = max((one for one in pending if one <= MOST), default=0.0) + SPARE
    memory = max((one for one in reach if one <= MEMORY), default=0.0)
    return {"before": wait, "during": wait + AGES, "after": wait + memory}


@cache
def asked_for(rules: Path) -> frozenset[str]:
    """The metrics that rules ask for."""
    return frozenset(
        word for rule in _rules(rules) for word in re.findall(r"[a-z_:]+", str(rule["expr"]))
    )


@cache
def _rules(file: Path) -> list[dict[str, Any]]:
    tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    return [rule for group in tree["groups"] for rule in group["rules"]]


def seconds(duration: str) -> float:
    """Of a duration as Prometheus writes it: ``1h30m``."""
    return sum(float(n) * SECONDS[unit] for n, unit in re.findall(r"(\d+)(ms|[smhdw])", duration))


@dataclass
class Incident:
    """A real failure: what was scraped before it, while it lasted and when it was over.

    Args:
        targets: URLs of nodes by name.
        grows: Gauges that go on growing while the failure lasts, as they did between two scrapes.
    """

    targets: dict[str, str]
    grows: Sequence[str] = ()
    phases: dict[str, list[Scrape]] = field(default_factory=dict)
    fired: set[str] = field(default_factory=set)

    async def before(
        self, when: Callable[[Scrape], Any] = lambda _: True, **options: Any
    ) -> Scrape:
        """Scrape a healthy node."""
        return await self._scrape("before", when, **options)

    async def during(
        self, when: Callable[[Scrape], Any] = lambda _: True, **options: Any
    ) -> Scrape:
        """Scrape once *when* holds. A second call tells how it goes on."""
        return await self._scrape("during", when, **options)

    async def after(self, when: Callable[[Scrape], Any] = lambda _: True, **options: Any) -> Scrape:
        """Scrape once *when* holds and the failure is over."""
        return await self._scrape("after", when, **options)

    async def _scrape(
        self, phase: str, when: Callable[[Scrape], Any], *, timeout: float = 30.0
    ) -> Scrape:
        found = await scraped_until(self.targets, when, timeout=timeout)
        self.phases.setdefault(phase, []).append(found)
        return found

    def judge(
        self,
        *alerts: str,
        may: Iterable[str] = (),
        rules: Path | None = None,
        folder: Path,
    ) -> None:
        """Exactly *alerts* (without their prefix) fire while it lasts, none before and none after.

        Args:
            alerts: What has to fire.
            may: What may fire, or not, as the machine is quick.
            rules: Other rules than those that are shipped.
            folder: For promtool's files.

        Raises:
            AssertionError: It is otherwise; the text is promtool's.
        """
        rules = rules or rules_file()
        self.fired = set(alerts)
        test = folder / "incident.yml"
        told = self._test(alerts, tuple(may), rules)
        test.write_text(json.dumps(told), encoding="utf-8")  # JSON is YAML
        done = subprocess.run(
            [program("promtool"), "test", "rules", str(test)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, self._told(done.stdout + done.stderr)

    def _test(self, alerts: Iterable[str], may: Sequence[str], rules: Path) -> dict[str, Any]:
        counts = {
            name: math.ceil(seconds / STEP)
            for name, seconds in lengths(rules).items()
            if name in self.phases
        }
        ends = dict(zip(counts, accumulate(counts.values()), strict=True))
        other = "|".join(f"Strandline{one}" for one in may) or "none"
        firing = f'ALERTS{{alertstate="firing", alertname!~"{other}"}}'
        checks = [
            ("before", f"max_over_time({FIRING}[{(counts['before'] - 1) * STEP:.0f}s])", ()),
            ("during", f"max_over_time({firing}[{(counts['during'] - 1) * STEP:.0f}s])", alerts),
            ("after", FIRING, ()),
        ]
        return {
            "rule_files": [str(rules)],
            "evaluation_interval": f"{STEP:g}s",
            "tests": [
                {
                    "interval": f"{STEP:g}s",
                    "input_series": list(self._series(counts, asked_for(rules))),
                    "promql_expr_test": [
                        {
                            "expr": f"max by (alertname) ({expression})",
                            "eval_time": f"{(ends[phase] - 1) * STEP:.0f}s",
                            "exp_samples": [
                                {"labels": f'{{alertname="Strandline{name}"}}', "value": 1}
                                for name in sorted(expected)
                            ],
                        }
                        for phase, expression, expected in checks
                    ],
                }
            ],
        }

    def _series(self, counts: Mapping[str, int], names: frozenset[str]) -> Iterable[dict[str, str]]:
        phases = [(self.phases[name], count) for name, count in counts.items()]
        every = {one for scrapes, _ in phases for scrape in scrapes for one in scrape.values}
        for series in sorted(one for one in every if one[0] in names):
            parts: list[str] = []
            for scrapes, count in phases:
                now = self._values(series, scrapes, count)
                if now.startswith("_") and parts and parts[-1][0] not in "_s":
                    now = f"stale _x{count - 1}"
                parts.append(now)
            yield {"series": _written(series), "values": " ".join(parts)}

    def _values(self, series: Series, scrapes: Sequence[Scrape], count: int) -> str:
        """*count* samples: the last scrape's value, and from there on as it went between scrapes."""
        last = scrapes[-1].values.get(series)
        if last is None:
            return f"_x{count}"
        rate = 0.0
        first = scrapes[0].values.get(series)
        if len(scrapes) > 1 and first is not None and self._goes_on(series[0], scrapes[-1]):
            rate = (last - first) / (scrapes[-1].at - scrapes[0].at)
        return f"{_number(last)}{'-' if rate < 0 else '+'}{_number(abs(rate) * STEP)}x{count - 1}"

    def _goes_on(self, name: str, scrape: Scrape) -> bool:
        return scrape.kinds.get(name) in ("counter", "histogram") or name in self.grows

    def _told(self, said: str) -> str:
        """Promtool's words, and what changed between the phases."""
        firsts: Mapping[str, Scrape] = {name: found[-1] for name, found in self.phases.items()}
        lines = []
        for series in sorted({one for scrape in firsts.values() for one in scrape.values}):
            values = [scrape.values.get(series) for scrape in firsts.values()]
            if len(set(values)) > 1 and any(values) and not series[0].endswith(PARTS):
                lines.append(f"  {_written(series)}: {values}")
        return "\n".join([said, f"changed over {list(firsts)}:", *lines])


def _written(series: Series) -> str:
    name, labels = series
    return name + "{" + ",".join(f"{key}={json.dumps(value)}" for key, value in labels) + "}"


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Inf" if value > 0 else "-Inf"
    return repr(value)
