"""Runs the systems side by side: ``python -m bench.run [--short] [--only WORKLOAD,...] ...``.

For each workload the systems take turns, each in an empty database and a process of its own,
on one server: that of ``STRANDLINE_DATABASE_URL``, or one that is started for the run with
PostgreSQL's default settings. A complete run writes ``bench/results/events.json``; a part of one,
or a short one, writes only where ``--out`` says.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg

from bench import results, workload
from bench.harness import FULL, MODULES, SHORT, WORKLOADS, Sizes, find_workloads

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "events.json"
BUSY = 0.25  # load a core before the run: systems that wait much on the server suffer most from it
STEP_LIMIT = 300.0  # seconds for one workload of one system


def main() -> None:
    """Run what the command line says, print the table, write the rows."""
    options = _options()
    workload.check_generator()
    steps = [
        (name, system)
        for name in options.only
        for system in options.systems
        if name in find_workloads(system)
    ]
    missing = [system for system in options.systems if not find_workloads(system)]
    if missing:
        print(f"not there: {', '.join(missing)}", file=sys.stderr)
    rows: list[results.Row] = []
    load = os.getloadavg()[0]  # whatever else ran here took its share of every number
    if load > BUSY * (os.cpu_count() or 1):
        print(
            f"load {load:.1f}: this machine is busy, quote no number of this run", file=sys.stderr
        )
    began = time.monotonic()
    with server() as url:
        for number in range(options.rounds):
            for name, system in steps:
                found = run_step(url, name, system, SHORT if options.short else FULL)
                rows += found
                print(f"{number + 1}/{options.rounds} {_line(found)}", file=sys.stderr)
        caption = asyncio.run(_describe(url))
    rows = results.medians(rows)
    took = time.monotonic() - began
    results.show(rows, f"{caption}; load before the run {load:.1f}; took {took:.0f} s")
    complete = not options.short and len(options.only) == len(WORKLOADS) and not missing
    out = options.out or (RESULTS if complete and len(options.systems) == len(MODULES) else None)
    if out:
        results.write(out, rows)
        print(f"written: {out}")


def run_step(url: str, name: str, system: str, sizes: Sizes) -> list[results.Row]:
    """Run one workload of one system in a new database and a new process.

    Raises:
        SystemExit: It failed, or what came out was wrong. The run ends there.
    """
    try:
        with temporary_database(url) as place:
            job = {"system": system, "workload": name, "url": place, "sizes": asdict(sizes)}
            done = subprocess.run(
                [sys.executable, "-m", "bench.step"],
                input=json.dumps(job),
                stdout=subprocess.PIPE,
                text=True,
                cwd=HERE.parent,
                timeout=STEP_LIMIT,
                check=False,
            )
    except subprocess.TimeoutExpired:
        raise SystemExit(f"{name} of {system} took more than {STEP_LIMIT:.0f} s") from None
    if done.returncode:
        raise SystemExit(f"{name} of {system} failed; nothing is written")
    measures = json.loads(done.stdout.splitlines()[-1])
    return [results.Row(name, system, metric, value, unit) for metric, value, unit in measures]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("--short", action="store_true", help="small sizes: does it run, for CI")
    parser.add_argument("--only", type=_names(WORKLOADS), default=WORKLOADS, metavar="WORKLOAD,...")
    parser.add_argument(
        "--systems", type=_names(tuple(MODULES)), default=tuple(MODULES), metavar="SYSTEM,..."
    )
    parser.add_argument("--rounds", type=int, default=1, help="the medians of so many rounds")
    parser.add_argument("--out", type=Path, help=f"where to write; default {RESULTS}")
    return parser.parse_args()


def _names(known: Sequence[str]) -> Any:
    def names(text: str) -> tuple[str, ...]:
        given = text.split(",")
        unknown = [name for name in given if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return tuple(name for name in known if name in given)

    return names


@contextlib.contextmanager
def server() -> Iterator[str]:
    """The server to measure on: the one that is given, or one for this run."""
    given = os.environ.get("STRANDLINE_DATABASE_URL")
    if given:
        yield given
        return
    from strandline.postgres.embedded import Embedded

    folder = Path(tempfile.gettempdir()) / f"strandline-bench-{uuid4().hex[:8]}"
    try:
        with Embedded(folder) as server:
            yield server.url
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def temporary_database(url: str) -> Iterator[str]:
    """A new, empty database on the server of *url*; its own URL."""
    database = f"bench_{uuid4().hex[:12]}"
    asyncio.run(_execute(url, f"CREATE DATABASE {database}"))
    try:
        yield urlunsplit(urlsplit(url)._replace(path=f"/{database}"))
    finally:
        asyncio.run(_execute(url, f"DROP DATABASE {database} WITH (FORCE)"))


async def _execute(url: str, sql: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


async def _describe(url: str) -> str:
    connection = await asyncpg.connect(url)
    try:
        version, fsync, buffers = [
            await connection.fetchval(f"SHOW {name}")
            for name in ("server_version", "fsync", "shared_buffers")
        ]
    finally:
        await connection.close()
    return (
        f"PostgreSQL {version.split()[0]}, fsync {fsync}, shared_buffers {buffers}, "
        f"{os.cpu_count()} cores for client and server, Python {sys.version.split()[0]}"
    )


def _line(rows: Sequence[results.Row]) -> str:
    measured = ", ".join(f"{row.metric} {row.value:,.2f} {row.unit}" for row in rows)
    return f"{rows[0].workload:20} {rows[0].system:26} {measured}"


if __name__ == "__main__":
    main()
