"""Runs the job queues side by side: ``python -m bench.jobs [--short] [--only WORKLOAD,...] ...``.

Each system has a database of its own on one server: that of ``STRANDLINE_DATABASE_URL``, or one that is
started for the run with PostgreSQL's default settings. The systems take turns at each workload; before
each turn the tables are emptied, vacuumed and on disk. The rows are the medians of the rounds. A complete
run writes ``bench/results/jobs.json``; a part of one, or a short one, writes only where ``--out`` says.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psycopg

from bench import results
from bench.jobs.measure import FULL, SHORT, WORKLOADS, Bench, Found, Sizes
from bench.jobs.processes import Failed, Place
from bench.jobs.systems import SYSTEMS
from bench.run import BUSY, _describe, _names, server, temporary_database

RESULTS = Path(__file__).resolve().parents[1] / "results" / "jobs.json"
QUIET = 0.15  # cores that others may use during a measurement
BRIEF = ("insert_16", "drain_2")  # what a short run has time for in CI


def main() -> None:
    """Run what the command line says, print the table, write the rows."""
    options = _options()
    missing = {name: SYSTEMS[name].missing() for name in options.systems}
    _tell_missing(missing)
    there = [name for name in options.systems if not missing[name]]
    load = os.getloadavg()[0]
    if load > BUSY * (os.cpu_count() or 1):
        print(
            f"load {load:.1f}: this machine is busy, quote no number of this run", file=sys.stderr
        )
    began = time.monotonic()
    rows: list[results.Row] = []
    with server() as url, contextlib.ExitStack() as stack:
        caption = asyncio.run(_describe(url))
        benches = {name: stack.enter_context(bench(url, name)) for name in there}
        sizes = SHORT if options.short else FULL
        for number in range(options.rounds):
            for workload in options.only:
                for system, one in benches.items():
                    found = _measure(one, workload, system, sizes, options)
                    rows += found
                    line = _line(found, one.foreign)
                    print(f"{number + 1}/{options.rounds} {line}", file=sys.stderr)
    rows = results.medians(rows)
    results.show(rows, f"{caption}; load before {load:.1f}; took {time.monotonic() - began:.0f} s")
    _tell_missing(missing)
    complete = not options.short and len(options.only) == len(WORKLOADS) and there == list(SYSTEMS)
    out = options.out or (RESULTS if complete else None)
    if out:
        results.write(out, rows)
        print(f"written: {out}")


def _tell_missing(missing: Mapping[str, str]) -> None:
    for name, reason in missing.items():
        if reason:
            print(f"missing: {name}: {reason}", file=sys.stderr)


@contextlib.contextmanager
def bench(url: str, system: str) -> Iterator[Bench]:
    """A database with the system's tables."""
    with temporary_database(url) as own:
        place = Place(SYSTEMS[system], own)
        try:
            place.run("install")
        except Failed as error:
            raise SystemExit(f"{system}: {error}; nothing is written") from None
        with psycopg.connect(own, autocommit=True) as connection:
            yield Bench(place, connection)


def _measure(
    one: Bench, workload: str, system: str, sizes: Sizes, options: argparse.Namespace
) -> list[results.Row]:
    """Measure; again while something else uses the machine, so often as is allowed. The quietest counts."""
    tries: list[tuple[float, Found]] = []
    while len(tries) <= options.again and min(tries, default=(math.inf, []))[0] > QUIET:
        one.foreign = 0.0
        try:
            found = WORKLOADS[workload](one, sizes)
        except Failed as error:
            raise SystemExit(f"{workload} of {system}: {error}; nothing is written") from None
        tries.append((one.foreign, found))
    one.foreign, found = min(tries)
    return [results.Row(workload, system, m.metric, m.value, m.unit) for m in found]


def _line(rows: Sequence[results.Row], foreign: float) -> str:
    measured = ", ".join(f"{row.metric} {row.value:,.2f} {row.unit}" for row in rows)
    others = f"; others used {foreign:.2f} cores" if foreign > QUIET else ""
    return f"{rows[0].workload:18} {rows[0].system:16} {measured}{others}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.jobs", description=__doc__)
    parser.add_argument("--short", action="store_true", help="small sizes: does it run, for CI")
    parser.add_argument("--only", type=_names(tuple(WORKLOADS)), metavar="WORKLOAD,...")
    parser.add_argument(
        "--systems", type=_names(tuple(SYSTEMS)), default=tuple(SYSTEMS), metavar="SYSTEM,..."
    )
    parser.add_argument(
        "--rounds", type=int, help="the medians of so many rounds; 3, or 1 if short"
    )
    parser.add_argument(
        "--again",
        type=int,
        default=0,
        metavar="TIMES",
        help=f"repeat a measurement during which others used more than {QUIET} cores",
    )
    parser.add_argument("--out", type=Path, help=f"where to write; default {RESULTS}")
    options = parser.parse_args()
    options.only = options.only or (BRIEF if options.short else tuple(WORKLOADS))
    options.rounds = options.rounds or (1 if options.short else 3)
    return options


if __name__ == "__main__":
    main()
