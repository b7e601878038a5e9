"""How fast jobs are drained beside millions of others: ``python -m bench.jobs.scale [--jobs N] ...``.

Three drains by one process take turns: from tables that hold nothing else; beside jobs that wait behind them
in their queue, wait in another queue, are scheduled for tomorrow, and have ended and are kept; and from empty
tables while a REPEATABLE READ transaction is open, which keeps PostgreSQL from removing what has been deleted.
The medians of the rounds are written to ``bench/results/jobs_scale.json``. The exit code is 1 if one of them
is slower than is promised.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg

from bench import results
from bench.harness import Measure
from bench.jobs.__main__ import QUIET, bench
from bench.jobs.measure import Bench, Found
from bench.jobs.processes import Failed
from bench.run import BUSY, _describe, server

RESULTS = Path(__file__).resolve().parents[1] / "results" / "jobs_scale.json"
SYSTEM = "strandline"
PORTION = 250_000  # rows of one filling statement
DAYS = 6  # over which what has ended is spread
LEAST = {"full": 0.75, "snapshot_held": 0.5}  # of the rate with empty tables; what is promised
FIRST = "SELECT (last_value + is_called::integer) * 1024 FROM strandline.job_ids"
# Those enqueued since. By the primary key: a look at the whole table would be part of what is measured.
OURS = "FROM (SELECT FROM strandline.jobs WHERE id >= {first} ORDER BY id LIMIT 1) one"
WAITING = """
INSERT INTO strandline.jobs (id, queue, priority, kind, args)
SELECT {block} * 1024 + n, CASE WHEN n % 2 = 0 THEN 'other' ELSE 'default' END, CASE WHEN n % 2 = 0 THEN 5 ELSE 9 END,
       'noop', '{{"i":-1}}'
  FROM generate_series({first}, {last}) n
"""
SCHEDULED = """
INSERT INTO strandline.jobs (id, state, priority, run_at, kind, args)
SELECT {block} * 1024 + n, 1, 9, clock_timestamp() + interval '1 day' + n * interval '1 ms', 'noop', '{{"i":-1}}'
  FROM generate_series({first}, {last}) n
"""
DAY = """
DO $$ BEGIN
    EXECUTE format('CREATE TABLE IF NOT EXISTS strandline.%I PARTITION OF strandline.job_history FOR VALUES FROM (%L) TO (%L)',
                   'job_history_' || to_char({day}, 'YYYYMMDD'), {day}::timestamp AT TIME ZONE 'UTC',
                   ({day} + 1)::timestamp AT TIME ZONE 'UTC');
END $$
"""
INDEXES = """
SELECT indexrelid::regclass::text, replace(pg_get_indexdef(indexrelid), ' ON ONLY ', ' ON ')
  FROM pg_index WHERE indrelid = 'strandline.job_history'::regclass
"""
PAST = "((now() AT TIME ZONE 'UTC')::date - {ago})"
ENDED = """
INSERT INTO strandline.job_history (id, finished_at, outcome, created_at, claimed_at, node, priority, attempt, queue, kind, args)
SELECT {block} * 1024 + n, d.at + n * interval '1 ms', 'completed', d.at, d.at, 1, 5, 1, 'default', 'noop', '{{"i":-1}}'
  FROM generate_series({first}, {last}) n
 CROSS JOIN (SELECT {day}::timestamp AT TIME ZONE 'UTC' AS at) d
"""


def main() -> None:
    """Fill, drain in turns, write, and judge."""
    options = _options()
    load = os.getloadavg()[0]
    if load > BUSY * (os.cpu_count() or 1):
        print(
            f"load {load:.1f}: this machine is busy, quote no number of this run", file=sys.stderr
        )
    began = time.monotonic()
    rows: list[results.Row] = []
    with server() as url, bench(url, SYSTEM) as empty, bench(url, SYSTEM) as full:
        caption = asyncio.run(_describe(url))
        fill(full, options)
        print(f"filled after {time.monotonic() - began:.0f} s", file=sys.stderr)
        cases: dict[str, Callable[[], Found]] = {
            "empty": lambda: drain(empty, options.jobs),
            "full": lambda: drain(full, options.jobs),
            "snapshot_held": lambda: drain(empty, options.jobs, snapshot=True),
        }
        for number in range(options.rounds):
            for name, measure in cases.items():
                try:
                    found = measure()
                except Failed as error:
                    raise SystemExit(f"{name}: {error}; nothing is written") from None
                rows += [results.Row(f"drain_{name}", SYSTEM, *measured) for measured in found]
                told = ", ".join(f"{m.metric} {m.value:,.2f} {m.unit}" for m in found)
                print(f"{number + 1}/{options.rounds} {name:14} {told}", file=sys.stderr)
    rows = results.medians(rows)
    kept = _judge(rows)
    results.show(rows, f"{caption}; load before {load:.1f}; took {time.monotonic() - began:.0f} s")
    out = options.out or (None if options.is_part else RESULTS)
    if out:
        results.write(out, rows)
        print(f"written: {out}")
    sys.exit(not kept)


def fill(one: Bench, options: argparse.Namespace) -> None:
    """Put the others in."""
    ask = one.connection.execute
    block = 0

    def insert(sql: str, number: int, **also: str) -> None:
        """By ids of blocks that nobody else is given."""
        nonlocal block
        for first in range(0, number, PORTION):
            last = min(first + PORTION, number) - 1
            taken = (last - first) // 1024 + 1
            (block,) = ask(  # type: ignore[misc]
                "SELECT min(nextval('strandline.job_ids')) FROM generate_series(1, %s)", (taken,)
            ).fetchone()
            ask(sql.format(first=0, last=last - first, block=block, **also))

    insert(WAITING, options.waiting)
    insert(SCHEDULED, options.scheduled)
    indexes = ask(INDEXES).fetchall()
    for name, _ in indexes:  # made anew in a third of the time
        ask(f"DROP INDEX {name}")
    for ago in range(DAYS):
        day = PAST.format(ago=ago)
        ask(DAY.format(day=day))
        insert(ENDED, options.ended // DAYS, day=day)
    ask("SET maintenance_work_mem = '256MB'")
    for _, made in indexes:
        ask(made)
    one.settle()


def drain(one: Bench, jobs: int, *, snapshot: bool = False) -> Found:
    """Enqueue the jobs, and let one process run them."""
    (first,) = one.connection.execute(FIRST).fetchone()  # type: ignore[misc]
    one.place.run("bulk", jobs=jobs)
    one.settle()
    one.foreign = 0.0
    held = held_snapshot(one.place.url) if snapshot else None
    found = one.drained(1, jobs, unfinished=OURS.format(first=first), meanwhile=held)
    if one.foreign > QUIET:
        print(f"others used {one.foreign:.2f} cores", file=sys.stderr)
    return found


@contextlib.contextmanager
def held_snapshot(url: str) -> Iterator[None]:
    """A transaction that sees, and so keeps, everything that is there now."""
    with psycopg.connect(url) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("SELECT count(*) FROM strandline.nodes")
        yield
        connection.rollback()


def _judge(rows: list[results.Row]) -> bool:
    """Add how the rates compare; whether they are as promised."""
    rates = {row.workload: row.value for row in rows if row.metric == "rate"}
    kept = True
    for name, least in LEAST.items():
        share = rates[f"drain_{name}"] / rates["drain_empty"]
        measured = Measure("of_empty", round(share, 3), "x")
        rows.append(results.Row(f"drain_{name}", SYSTEM, *measured))
        if share < least:
            kept = False
            print(f"{name}: {share:.0%} of the rate with empty tables, promised are {least:.0%}")
    places = list(dict.fromkeys(row.workload for row in rows))
    rows.sort(key=lambda row: places.index(row.workload))
    return kept


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.jobs.scale", description=__doc__)
    whole = {"jobs": 100_000, "waiting": 1_000_000, "scheduled": 1_000_000, "ended": 10_000_000}
    for name, number in whole.items():
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--rounds", type=int, default=3, help="the medians of so many")
    parser.add_argument("--out", type=Path, help=f"where to write; default {RESULTS}")
    options = parser.parse_args()
    options.is_part = any(getattr(options, name) != number for name, number in whole.items())
    return options


if __name__ == "__main__":
    main()
