"""The page ``docs/operate/signals.md``: its rows, and whether they are true.

A row: what was asked | signal | incident | then. The signal is a kind and a name in code:
``metric``, ``span``, ``attribute`` (``span / key``), ``health``, ``probe``, ``log`` or ``alert``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from incidents.stage import Stage

PAGE = Path(__file__).parents[2] / "docs/operate/signals.md"
SIGNAL = re.compile(r"(metric|span|attribute|health|probe|log|alert) `([^`]+)`")
METRIC = re.compile(r"(\w+)(?:\{(.*)\})?")
LABEL = re.compile(r'(\w+)="([^"]*)"')
NUMBER = re.compile(r"([=≥>+])? ?(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        asked: What was asked to be seen.
        kind: Of the signal.
        name: Of the signal, as it is written.
        incident: What is played; empty for what every node tells.
        then: What the signal says while it lasts.
    """

    asked: str
    kind: str
    name: str
    incident: str
    then: str

    def check(self, stage: Stage) -> None:
        """Raise AssertionError if it is not true of what was seen on *stage*."""
        getattr(self, f"_check_{self.kind}")(stage)

    def _check_metric(self, stage: Stage) -> None:
        name, labels = self.metric
        before = stage.metric("before", name, labels)
        during = stage.metric("during", name, labels)
        how, number = _number(self.then)
        assert during is not None, f"{self}: there is no such series"
        found = during - (before or 0.0) if how == "+" else during
        holds = (
            found > number if how == ">" else found >= number if how in "+≥" else found == number
        )
        assert holds, f"{self}: it was {before} before and {during} while it lasted"

    def _check_health(self, stage: Stage) -> None:
        found = stage.health["during"].get(self.name, set())
        assert self.then in found, f"{self}: found {found}"
        before = stage.health["before"].get(self.name, set())
        assert self.then not in before, f"{self}: it was so before"

    def _check_probe(self, stage: Stage) -> None:
        found = stage.health["during"].get(self.name, set())
        assert self.then in found, f"{self}: found {found}"
        assert stage.health["before"][self.name] == {"200"}, f"{self}: {stage.health}"

    def _check_log(self, stage: Stage) -> None:
        assert self.then == "told"
        told = sorted({getattr(one, "event", "") for one in stage.heard.records})
        assert stage.told(self.name), f"{self}: told were {told}"

    def _check_alert(self, stage: Stage) -> None:
        assert self.then == "fires"
        name = self.name.removeprefix("Strandline")
        assert name in stage.incident.fired, f"{self}: expected were {stage.incident.fired}"

    def _check_span(self, stage: Stage) -> None:
        assert self.then == "recorded"
        names = {span.name for span in stage.spans()}
        assert self.name in names, f"{self}: recorded were {sorted(names)}"

    def _check_attribute(self, stage: Stage) -> None:
        span, key = self.attribute
        found = [
            one.attributes[key]
            for one in stage.spans()
            if one.name == span and key in (one.attributes or {})
        ]
        assert any(_fits(value, self.then) for value in found), f"{self}: found {found}"

    @property
    def metric(self) -> tuple[str, dict[str, str]]:
        """Name and labels."""
        found = METRIC.fullmatch(self.name)
        assert found is not None, self
        return found[1], dict(LABEL.findall(found[2] or ""))

    @property
    def attribute(self) -> tuple[str, str]:
        """Name of the span, and key."""
        span, _, key = self.name.partition(" / ")
        return span, key


@cache
def rows() -> tuple[Row, ...]:
    """All rows of the page."""
    found = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [one.strip() for one in line.strip().strip("|").split(" | ")]
        signal = SIGNAL.fullmatch(cells[1]) if len(cells) == 4 else None
        if signal is not None:
            found.append(Row(cells[0], signal[1], signal[2], cells[2], cells[3]))
    assert found, PAGE
    return tuple(found)


def rows_of(incident: str) -> list[Row]:
    """Those that tell of *incident*."""
    return [row for row in rows() if row.incident == incident]


def _number(text: str) -> tuple[str, float]:
    found = NUMBER.fullmatch(text)
    assert found is not None, f"not a number: {text}"
    return found[1] or "=", float(found[2])


def _fits(value: Any, then: str) -> bool:
    if then in ("true", "false"):
        return value is (then == "true")
    if NUMBER.fullmatch(then):
        how, number = _number(then)
        if isinstance(value, str):
            return False
        return bool(
            value > number if how == ">" else value >= number if how == "≥" else value == number
        )
    return str(value) == then.strip("`")
