"""The Grafana dashboard: an overview, and every metric of the catalogue in the row of its subject.

Nothing is drawn by hand but the overview: the kind of a metric decides what is shown of it. A counter
is shown as a rate, a histogram as its median and its 99th percentile, a gauge as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from strandline.telemetry.catalogue import GROUPS, Metric

UID = "strandline"
COLUMNS = 24  # of Grafana's grid
WIDTH, HEIGHT = 8, 7  # of one panel
MOST_SHARDS = 20  # lines of a panel: with hundreds of shards the worst are what one looks for
QUANTILES = (0.5, 0.99)
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
UNITS = {"s": "s", "By": "bytes", "1": "short"}

ROWS: dict[str, tuple[str, ...]] = {
    "Projections": ("Lag and state", "Shards", "Dead letters"),
    "High water": ("High-water mark",),
    "Nodes and leadership": ("Cluster", "Leadership", "Pulse", "Ownership", "Plan"),
    "Jobs": ("Jobs",),
    "Pools": ("Pools",),
    "Shutdown": ("Shutdown",),
}
"""Rows and the groups of the catalogue in each; any other group gets a row of its own."""

MOVED = {
    "strandline_recent_shutdowns": "Shutdown",
    "strandline_recent_shutdown_seconds": "Shutdown",
    "strandline_server_connections": "Pools",
    "strandline_server_connections_limit": "Pools",
    "strandline_oldest_transaction_seconds": "Pools",
    "strandline_oldest_idle_transaction_seconds": "Pools",
    "strandline_dead_jobs": "Jobs",
}
"""Metrics that are looked for in another row than the rest of their group."""

# Title, expression, unit, what is too much (orange, red), from which a stat takes its colour.
OVERVIEW: tuple[tuple[str, str, str, tuple[float, ...]], ...] = (
    ("Nodes", "count(strandline_build_info{%s})", "short", ()),
    ("Leaders (should be 1)", "sum(strandline_leader{%s})", "short", (2,)),
    ("Worst lag", "max(strandline_shard_lag_seconds{%s})", "s", (60, 900)),
    (
        "Shards that do not run",
        'sum(strandline_shard_state{%s, state!~"running|rebuilding|held"}) or vector(0)',
        "short",
        (1,),
    ),
    ("Mark stands still for", "max(strandline_high_water_age_seconds{%s})", "s", (3, 60)),
    (
        "Events skipped, 24 h",
        "sum(increase(strandline_skipped_events_total{%s}[24h])) or vector(0)",
        "short",
        (1,),
    ),
    (
        "Dead letters",
        "sum(max by (projection, status) (strandline_open_letters{%s})) or vector(0)",
        "short",
        (1, 100),
    ),
    (
        "Oldest waiting job",
        "max(strandline_job_oldest_available_seconds{%s}) or vector(0)",
        "s",
        (60, 300),
    ),
)

THROUGHPUT = (
    ("appended", "sum(rate(strandline_events_appended_total{%s}[$__rate_interval]))"),
    ("processed", "sum(rate(strandline_events_processed_total{%s}[$__rate_interval]))"),
    ("jobs completed", "sum(rate(strandline_jobs_completed_total{%s}[$__rate_interval]))"),
)

Panel = dict[str, Any]


def text(*, title: str = "Strandline") -> str:
    """The dashboard as Grafana imports it."""
    return json.dumps(dashboard(title=title), indent=2, ensure_ascii=False) + "\n"


def dashboard(*, title: str = "Strandline") -> dict[str, Any]:
    """The dashboard as a tree."""
    panels = _placed(_overview())
    bottom = max(one["gridPos"]["y"] + one["gridPos"]["h"] for one in panels)
    for name, metrics in rows().items():
        inner = _placed([_panel(one) for one in metrics], top=bottom + 1)
        panels.append(_row(name, bottom, inner))
        bottom += 1
    for number, one in enumerate(_all(panels), start=1):
        one["id"] = number
    return {
        "uid": UID,
        "title": title,
        "description": "Made by `strandline telemetry dashboard` from the catalogue of metrics.",
        "tags": ["strandline"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "annotations": {"list": [_annotation()]},
        "templating": {"list": _variables()},
        "panels": panels,
    }


def rows() -> dict[str, list[Metric]]:
    """Every metric of the catalogue in the row that shows it."""
    found: dict[str, list[Metric]] = {row: [] for row in ROWS}
    for group, metrics in GROUPS.items():
        row = next((name for name, groups in ROWS.items() if group in groups), group)
        for metric in metrics:
            found.setdefault(MOVED.get(metric.name, row), []).append(metric)
    return {row: metrics for row, metrics in found.items() if metrics}


def _overview() -> list[Panel]:
    stats = []
    for title, expression, unit, limits in OVERVIEW:
        stat = _bare("stat", title, 3, 4, unit)
        stat["targets"] = [_target(expression % _where(()), "")]
        stat["fieldConfig"]["defaults"]["thresholds"] = _thresholds(limits)
        stat["options"] = {
            "colorMode": "background" if limits else "value",
            "graphMode": "area",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        }
        stats.append(stat)
    attention = _bare("table", "Needs attention", 12, 8, "short")
    attention["description"] = "Alerts of alerts.yml that fire or are about to."
    attention["targets"] = [
        {
            **_target('ALERTS{alertname=~"Strandline.*", job=~"$job"}', ""),
            "format": "table",
            "instant": True,
        }
    ]
    attention["transformations"] = [
        {
            "id": "organize",
            "options": {"excludeByName": {"Time": True, "Value": True, "__name__": True}},
        }
    ]
    throughput = _bare("timeseries", "Throughput", 12, 8, "suffix: /s")
    throughput["targets"] = [
        _target(expression % _where(()), legend, letter)
        for letter, (legend, expression) in zip("ABC", THROUGHPUT, strict=True)
    ]
    return [*stats, attention, throughput]


# ---- one metric


def _panel(metric: Metric) -> Panel:
    panel = _bare("timeseries", _title(metric), WIDTH, HEIGHT, _unit(metric))
    panel["description"] = f"{metric.meaning}\n\n`{metric.name}`"
    panel["targets"] = [
        _target(expression, legend, letter)
        for letter, (expression, legend) in zip("AB", _shown(metric), strict=False)
    ]
    return panel


def _shown(metric: Metric) -> Iterator[tuple[str, str]]:
    """What is drawn of a metric, each with its legend."""
    own = metric.attributes
    selected = f"{{{_where(own)}}}"
    if metric.kind == "histogram":
        parts = ", ".join(("le", *own))
        rate = f"sum by ({parts}) (rate({metric.name}_bucket{selected}[$__rate_interval]))"
        for part in QUANTILES:
            yield f"histogram_quantile({part}, {rate})", f"p{part * 100:g} {_legend(own)}".strip()
        return
    if metric.kind == "counter":
        by = own or ("node",)
        drawn = f"sum by ({', '.join(by)}) (rate({metric.name}{selected}[$__rate_interval]))"
    else:
        by = (*own, "node")
        drawn = f"max by ({', '.join(by)}) ({metric.name}{selected})"
    yield f"topk({MOST_SHARDS}, {drawn})" if "shard" in own else drawn, _legend(by)


def _legend(attributes: Iterable[str]) -> str:
    return " ".join(f"{{{{{one}}}}}" for one in attributes)


def _where(attributes: Sequence[str]) -> str:
    """The variables of the dashboard as a selector, as far as a metric has their labels."""
    parts = ['job=~"$job"', 'node=~"$node"']
    if "projection" in attributes:
        parts.append('projection=~"$projection"')
    elif "shard" in attributes:
        parts.append('shard=~"$projection(:.*)?"')
    return ", ".join(parts)


def _title(metric: Metric) -> str:
    words = metric.name.removeprefix("strandline_").removesuffix("_total").removesuffix("_seconds")
    title = words.replace("_", " ").capitalize()
    return title + {"counter": ", rate", "histogram": ", p50 and p99"}.get(metric.kind, "")


def _unit(metric: Metric) -> str:
    if metric.kind == "counter":
        return f"suffix: {metric.unit.strip('{}')}/s"
    return UNITS.get(metric.unit, "short")


# ---- parts of Grafana's schema


def _bare(kind: str, title: str, width: int, height: int, unit: str) -> Panel:
    return {
        "id": 0,
        "type": kind,
        "title": title,
        "description": "",
        "datasource": SOURCE,
        "gridPos": {"x": 0, "y": 0, "w": width, "h": height},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "options": {},
        "targets": [],
    }


def _target(expression: str, legend: str, letter: str = "A") -> dict[str, Any]:
    return {
        "refId": letter,
        "datasource": SOURCE,
        "expr": expression,
        "legendFormat": legend or "__auto",
    }


def _thresholds(limits: Iterable[float]) -> dict[str, Any]:
    colours = ("orange", "red")
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    steps += [{"color": one, "value": limit} for one, limit in zip(colours, limits, strict=False)]
    return {"mode": "absolute", "steps": steps}


def _row(name: str, y: int, panels: list[Panel]) -> Panel:
    """A folded row: Grafana asks for the data of its panels once somebody opens it."""
    return {
        "id": 0,
        "type": "row",
        "title": name,
        "collapsed": True,
        "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
        "panels": panels,
    }


def _placed(panels: list[Panel], *, top: int = 0) -> list[Panel]:
    """*panels* from left to right, and in the next line where one does not fit any more."""
    x, y, tallest = 0, top, 0
    for one in panels:
        place = one["gridPos"]
        if x + place["w"] > COLUMNS:
            x, y, tallest = 0, y + tallest, 0
        place["x"], place["y"] = x, y
        x, tallest = x + place["w"], max(tallest, place["h"])
    return panels


def _all(panels: list[Panel]) -> Iterator[Panel]:
    for one in panels:
        yield one
        yield from one.get("panels", ())


def _variables() -> list[dict[str, Any]]:
    known = "strandline_build_info"
    return [
        {
            "name": "datasource",
            "label": "Data source",
            "type": "datasource",
            "query": "prometheus",
            "current": {},
        },
        _variable("job", "Job", f"label_values({known}, job)"),
        _variable("node", "Node", f'label_values({known}{{job=~"$job"}}, node)'),
        _variable(
            "projection",
            "Projection",
            'label_values(strandline_shard_state{job=~"$job"}, projection)',
        ),
    ]


def _variable(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
    }


def _annotation() -> dict[str, Any]:
    return {
        "name": "Leadership",
        "datasource": SOURCE,
        "enable": True,
        "iconColor": "blue",
        "expr": 'changes(strandline_leader{job=~"$job"}[1m]) > 0',
        "titleFormat": "leader changed: {{node}}",
    }
