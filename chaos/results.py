"""The table of a run, and its JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from chaos.blow import Blow
from chaos.oracle import Violation

SHOWN = 10  # violations of each invariant that are printed


@dataclass(frozen=True)
class Row:
    """All injections of one fault."""

    fault: str
    injected: int
    detected: tuple[float, ...]
    recovered: tuple[float, ...]
    counts_from: str
    violations: int
    facts: dict[str, float]

    def json(self) -> dict[str, Any]:
        """As it is kept."""
        return {
            "fault": self.fault,
            "injected": self.injected,
            "violations": self.violations,
            "recovered_p50_s": p50(self.recovered),
            "recovered_max_s": most(self.recovered),
            "recovered_from": self.counts_from,
            "detected_p50_s": p50(self.detected),
            "detected_max_s": most(self.detected),
            **self.facts,
        }


def rows(blows: Sequence[Blow], others: Iterable[Violation]) -> list[Row]:
    """One row a fault; *others* are violations that belong to none, each given to the fault before it."""
    more = {id(blow): 0 for blow in blows}
    nobodys = 0
    for violation in others:
        before = [one for one in blows if violation.at is not None and one.at <= violation.at]
        if before:
            more[id(max(before, key=lambda one: one.at))] += 1
        else:
            nobodys += 1
    found = []
    for name in dict.fromkeys(blow.fault.name for blow in blows):
        mine = [blow for blow in blows if blow.fault.name == name]
        found.append(
            Row(
                fault=name,
                injected=len(mine),
                detected=_numbers(one.detected for one in mine),
                recovered=_numbers(one.recovered for one in mine),
                counts_from="injection" if mine[0].fault.heals == "while" else "end",
                violations=sum(len(one.violations) + more[id(one)] for one in mine),
                facts=_facts(mine),
            )
        )
    found.sort(key=lambda one: one.fault)
    if nobodys:
        found.append(Row("(whole run)", 0, (), (), "end", nobodys, {}))
    return found


def show(found: Sequence[Row], caption: str, violations: Sequence[Violation]) -> None:
    """Print the table, and what was wrong."""
    table = Table(caption=caption, caption_justify="left")
    table.add_column("fault")
    for name in ("injected", "detected in p50/max", "recovered in p50/max", "violations"):
        table.add_column(name, justify="right")
    for row in found:
        mark = "" if row.counts_from == "injection" or not row.recovered else " *"
        table.add_row(
            row.fault,
            str(row.injected),
            _pair(row.detected),
            _pair(row.recovered) + mark,
            str(row.violations),
        )
    table.add_section()
    table.add_row(
        "all",
        str(sum(row.injected for row in found)),
        _pair([one for row in found for one in row.detected]),
        _pair([one for row in found for one in row.recovered]),
        str(sum(row.violations for row in found)),
    )
    console = Console(width=110)
    console.print(table)
    console.print("seconds; * from the end of the disturbance, since nobody can recover before")
    told: dict[str, int] = {}
    for one in violations:
        told[one.invariant] = told.get(one.invariant, 0) + 1
        if told[one.invariant] <= SHOWN:
            console.print(f"[bold]{escape(one.invariant)}[/bold] {escape(one.words)}")
    for invariant, count in told.items():
        if count > SHOWN:
            console.print(f"[bold]{escape(invariant)}[/bold] and {count - SHOWN} more")


def write(path: Path, found: Sequence[Row], facts: dict[str, Any]) -> None:
    """Write *found* and *facts* as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n  ".join(json.dumps(row.json()) for row in found)
    head = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in facts.items())
    path.write_text(f'{{\n{head},\n "faults": [\n  {lines}\n ]\n}}\n')


def p50(values: Sequence[float]) -> float | None:
    """The median, in milliseconds' precision."""
    return round(median(values), 3) if values else None


def p95(values: Sequence[float]) -> float | None:
    """The 95th percentile."""
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))], 3) if ordered else None


def most(values: Sequence[float]) -> float | None:
    """The largest."""
    return round(max(values), 3) if values else None


def _facts(blows: Sequence[Blow]) -> dict[str, Any]:
    """What some faults measure besides: how fast work changed hands, how fast processes ended."""
    found: dict[str, Any] = {}
    for name in ("taken_over_process_s", "taken_over_thread_s", "handed_over_s", "gone_s"):
        values = [one for blow in blows for one in blow.facts.get(name, ())]
        if values:
            stem = name.removesuffix("_s")
            found |= {f"{stem}_p50_s": p50(values), f"{stem}_p95_s": p95(values)}
            found[f"{stem}_max_s"] = most(values)
    codes = sorted({one for blow in blows for one in blow.facts.get("exit_codes", ())})
    if codes:
        found["exit_codes"] = codes
    return found


def _numbers(values: Iterable[float | None]) -> tuple[float, ...]:
    return tuple(one for one in values if one is not None)


def _pair(values: Sequence[float]) -> str:
    return f"{median(values):.2f} / {max(values):.2f}" if values else "-"
