"""`strandline telemetry`: what it writes is what Prometheus, Grafana and scripts can read, without a database."""

from __future__ import annotations

import json

import yaml
from commands import rows, run

from strandline.telemetry import alerts, grafana
from strandline.telemetry.catalogue import ATTRIBUTES, CATALOGUE, LOG_EVENTS, SPANS

NOWHERE = "postgresql://127.0.0.1:1/nowhere"


def test_the_rules_file_is_written_with_links_to_your_runbooks() -> None:
    shipped, _ = run(NOWHERE, "telemetry", "alerts")
    moved, _ = run(NOWHERE, "telemetry", "alerts", "--runbooks", "https://wiki.example/books/")

    assert shipped == alerts.PATH.read_text(encoding="utf-8")
    first = yaml.safe_load(moved)["groups"][0]["rules"][0]
    assert first["annotations"]["runbook_url"] == "https://wiki.example/books/node-down.md"


def test_alerts_are_told_as_json() -> None:
    found = rows(NOWHERE, "telemetry", "alerts")

    assert len(found) == len(alerts.alerts())
    assert found[0] == {
        "name": "StrandlineNodeDown",
        "severity": "page",
        "pending": "1m",
        "summary": "Node {{ $labels.instance }} does not answer",
        "command": "strandline nodes list --all",
        "runbook": "node-down",
    }


def test_the_dashboard_is_written_with_a_title_of_yours() -> None:
    out, _ = run(NOWHERE, "telemetry", "dashboard", "--title", 'Shop "1"')

    assert json.loads(out) == grafana.dashboard(title='Shop "1"')


def test_the_catalogue_lists_everything_by_part() -> None:
    found = rows(NOWHERE, "telemetry", "catalogue")
    by_part = {part: {one["name"] for one in found if one["part"] == part} for part in PARTS}

    assert by_part["metrics"] == set(CATALOGUE)
    assert by_part["spans"] == set(SPANS)
    assert by_part["attributes"] >= set(ATTRIBUTES)
    assert by_part["logs"] == set(LOG_EVENTS)
    assert all(one["meaning"] for one in found)


def test_a_log_event_is_listed_with_all_its_fields() -> None:
    paused = next(
        one
        for one in rows(NOWHERE, "telemetry", "catalogue", "--part", "logs")
        if one["name"] == "shard_paused"
    )

    assert {"shard", "reason", "seconds"} <= set(paused["attributes"])


def test_one_part_of_the_catalogue_is_shown_as_a_table() -> None:
    out, _ = run(NOWHERE, "telemetry", "catalogue", "--part", "spans")

    assert "strandline.append" in out
    assert "strandline_leader" not in out


def test_a_part_that_is_not_there_is_refused() -> None:
    _, err = run(NOWHERE, "telemetry", "catalogue", "--part", "dreams", code=2)

    assert "dreams" in err


PARTS = ("metrics", "spans", "attributes", "logs")
