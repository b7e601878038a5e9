"""The alerts for Prometheus that the package brings, with links to runbooks wherever these are kept."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PATH = Path(__file__).with_name("alerts.yml")
PREFIX = "Strandline"
RUNBOOKS = "https://strandline.example/docs/operate/runbooks"
"""Where alerts.yml as it lies there looks for runbooks; nobody answers."""


@dataclass(frozen=True, slots=True)
class Alert:
    """What a person wants to know of an alert without reading its expression.

    Attributes:
        name: With its prefix, as Prometheus tells it.
        severity: ``page``, ``ticket`` or ``info``.
        pending: How long it has to hold, as in ``5m``; empty for not at all.
        summary: In a line, as a template of Prometheus.
        command: What to type first.
    """

    name: str
    severity: str
    pending: str
    summary: str
    command: str

    @property
    def runbook(self) -> str:
        """The stem of its page in docs/operate/runbooks."""
        return re.sub(r"(?<!^)(?=[A-Z])", "-", self.name.removeprefix(PREFIX)).lower()


def text(*, runbooks: str = RUNBOOKS) -> str:
    """The rules file, its links below *runbooks*."""
    return PATH.read_text(encoding="utf-8").replace(RUNBOOKS, runbooks.rstrip("/"))


def alerts() -> list[Alert]:
    """All alerts in the order of the file.

    Reads the few lines of each rule that it needs, since PyYAML is no dependency of the package; a
    test compares with what PyYAML reads.
    """
    rules = re.split(r"(?m)^ +- alert: ", PATH.read_text(encoding="utf-8"))[1:]
    return [
        Alert(
            name=rule.split("\n", 1)[0].strip(),
            severity=_field(rule, r"labels: \{severity: (\w+)\}"),
            pending=_field(rule, r"^ +for: (\w+)"),
            summary=_field(rule, r"^ +summary: '(.*)'"),
            command=_field(rule, r"^ +command: '(.*)'"),
        )
        for rule in rules
    ]


def _field(rule: str, pattern: str) -> str:
    found = re.search(pattern, rule, re.MULTILINE)
    return found[1].replace("''", "'") if found else ""
