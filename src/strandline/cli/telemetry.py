"""`strandline telemetry`: alerts, dashboard and catalogue, for the monitoring that you have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any

import typer

from strandline.cli.command import Options, command, group

commands = group("Telemetry: alerts for Prometheus, a dashboard for Grafana, what is measured.")

ALERT_FIELDS = ("name", "severity", "pending", "summary", "command", "runbook")
CATALOGUE_FIELDS = ("part", "name", "kind", "unit", "attributes", "meaning")


class Part(StrEnum):
    """Parts of the catalogue."""

    metrics = "metrics"
    spans = "spans"
    attributes = "attributes"
    logs = "logs"


@command(commands, "alerts", app="", database=False, json=ALERT_FIELDS)
def alerts(
    options: Options,
    *,
    runbooks: Annotated[
        str,
        typer.Option(
            metavar="URL", help="Where you keep the runbooks; each alert links to its own."
        ),
    ] = "",
) -> None:
    """Write the alerts as a rules file of Prometheus 2.42 or later.

    For example `strandline telemetry alerts --runbooks https://wiki/strandline > strandline.yml`, and
    name that file under rule_files in prometheus.yml. With --json, what each alert is about.
    """
    from strandline.cli import output
    from strandline.telemetry import alerts as rules

    if options.json:
        output.write_json(
            [{one: getattr(alert, one) for one in ALERT_FIELDS} for alert in rules.alerts()]
        )
    else:
        print(rules.text(runbooks=runbooks or rules.RUNBOOKS), end="")


@command(commands, "dashboard", app="", database=False)
def dashboard(
    options: Options,
    *,
    title: Annotated[str, typer.Option(metavar="TEXT", help="Of the dashboard.")] = "Strandline",
) -> None:
    """Write the dashboard as JSON that Grafana imports.

    It shows every metric, in rows by subject, and asks at the import which data source to use.
    """
    from strandline.telemetry import grafana

    print(grafana.text(title=title), end="")


@command(commands, "catalogue", app="", database=False, json=CATALOGUE_FIELDS)
def catalogue(
    options: Options,
    *,
    part: Annotated[
        Part | None, typer.Option(metavar="PART", help="metrics, spans, attributes or logs.")
    ] = None,
) -> None:
    """List every metric, span, attribute and log event by name, with its meaning."""
    from strandline.cli import output

    rows = [one for one in catalogue_rows() if part is None or one["part"] == part]
    if options.json:
        output.write_json(rows)
        return
    shown = [
        (one["name"], " ".join(filter(None, (one["kind"], one["unit"]))), one["meaning"])
        for one in rows
    ]
    output.table(("name", "kind", "meaning"), shown)


def catalogue_rows() -> Iterator[dict[str, Any]]:
    """The catalogue as ``--json`` writes it."""
    from strandline.telemetry import catalogue as every

    for metric in every.CATALOGUE.values():
        unit = metric.unit.strip("{}")
        yield _row(Part.metrics, metric, kind=metric.kind, unit=unit, attributes=metric.attributes)
    for span in every.SPANS.values():
        yield _row(Part.spans, span, kind=span.role, attributes=span.attributes)
    for attribute in {**every.LOG_FIELDS, **every.ATTRIBUTES}.values():
        yield _row(Part.attributes, attribute, kind=attribute.key)
    for event in every.LOG_EVENTS.values():
        told = dict.fromkeys((*re.findall(r"%\((\w+)\)", event.message), *event.fields))
        yield _row(Part.logs, event, kind=event.level, attributes=tuple(told))


def _row(
    part: Part, one: Any, *, kind: str, unit: str = "", attributes: tuple[str, ...] = ()
) -> dict[str, Any]:
    return {
        "part": part.value,
        "name": one.name,
        "kind": kind,
        "unit": unit,
        "attributes": list(attributes),
        "meaning": one.meaning or getattr(one, "message", ""),
    }
