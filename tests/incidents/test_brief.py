"""Every row of ``docs/operate/signals.md`` names what there is, and an incident that is played.

That a row is true, the test of its incident finds out: ``Stage.judge``.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from incidents.page import PAGE, Row, rows
from strandline.telemetry.alerts import alerts
from strandline.telemetry.catalogue import ATTRIBUTES, CATALOGUE, LOG_EVENTS, SPANS

PARTS = re.compile(r"_(count|sum|bucket)$")
PLAYED = re.compile(r'play\("([^"]+)"\)')
SUBJECTS = {
    "A lock that was lost",
    "Work spread over nodes, and its failures",
    "The high-water mark",
    "Leaving a cluster",
    "Electing a leader beside a shared pool",
    "Jobs",
}


def played() -> set[str]:
    """The incidents of the tests."""
    return {
        name
        for file in Path(__file__).parent.glob("test_of_*.py")
        for name in PLAYED.findall(file.read_text(encoding="utf-8"))
    }


def found(kind: str) -> list[Row]:
    return [row for row in rows() if row.kind == kind]


@pytest.mark.parametrize("row", found("metric"), ids=lambda row: row.name)
def test_a_metric_that_is_asked_for_is_in_the_catalogue(row: Row) -> None:
    name, labels = row.metric
    metric = CATALOGUE.get(name) or CATALOGUE[PARTS.sub("", name)]
    assert metric.kind == "histogram" or name == metric.name
    assert labels.keys() <= {*metric.attributes, "node"}
    for label, value in labels.items():
        known = metric.values_of(label) if label in metric.attributes else ()
        assert not known or value in known


@pytest.mark.parametrize("row", found("attribute"), ids=lambda row: row.name)
def test_an_attribute_that_is_asked_for_is_one_of_its_span(row: Row) -> None:
    name, key = row.attribute
    keys = {ATTRIBUTES[one].key for one in SPANS[name].attributes}
    assert key in {*keys, "error.type"}


def test_spans_logs_and_alerts_that_are_asked_for_exist() -> None:
    assert {row.name for row in found("span")} <= set(SPANS)
    assert {row.name for row in found("log")} <= set(LOG_EVENTS)
    assert {row.name for row in found("alert")} <= {one.name for one in alerts()}


def test_every_incident_is_on_the_page_and_every_one_there_is_played() -> None:
    assert {row.incident for row in rows()} == played()
    assert len(played()) >= 12


def test_the_page_has_each_subject() -> None:
    headings = re.findall(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(headings) == SUBJECTS
