"""The rows of a run: kept as JSON, shown as one table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

PEER = "eventsourcing"  # what the ratios are against


@dataclass(frozen=True, slots=True)
class Row:
    """One number of one system."""

    workload: str
    system: str
    metric: str
    value: float
    unit: str


def medians(rounds: Iterable[Row]) -> list[Row]:
    """One row where there were several of the same, in the order of their first."""
    values: dict[tuple[str, str, str, str], list[float]] = {}
    for row in rounds:
        key = (row.workload, row.system, row.metric, row.unit)
        values.setdefault(key, []).append(row.value)
    return [
        Row(workload, system, metric, round(median(found), 3), unit)
        for (workload, system, metric, unit), found in values.items()
    ]


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write *rows* as a JSON list, one object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(asdict(row)) for row in rows)
    path.write_text(f"[\n{lines}\n]\n")


def show(rows: Sequence[Row], caption: str) -> None:
    """Print *rows* side by side; in parentheses how many times better than the peer."""
    systems = list(dict.fromkeys(row.system for row in rows))
    found = {(row.workload, row.metric, row.system): row for row in rows}
    table = Table(caption=caption, caption_justify="left")
    for name in ("workload", "metric", "unit"):
        table.add_column(name)
    for system in systems:
        table.add_column(system, justify="right")
    previous = ""
    for workload, metric, unit in dict.fromkeys((r.workload, r.metric, r.unit) for r in rows):
        peer = found.get((workload, metric, PEER))
        cells = [_cell(found.get((workload, metric, system)), peer) for system in systems]
        if previous not in ("", workload):
            table.add_section()
        table.add_row("" if workload == previous else workload, metric, unit, *cells)
        previous = workload
    Console(width=max(100, 40 + 26 * len(systems))).print(table)


def _cell(row: Row | None, peer: Row | None) -> str:
    if row is None:
        return "-"
    value = f"{row.value:,.0f}" if row.value >= 100 else f"{row.value:.2f}"
    if peer is None or row.system == PEER:
        return value
    return f"{value} ({_times_better(row, peer):.1f}x)"


def _times_better(row: Row, peer: Row) -> float:
    """How many times faster *row* is, whether its number counts work or time."""
    over, under = (peer, row) if row.unit == "ms" else (row, peer)
    return over.value / max(under.value, 1e-9)
