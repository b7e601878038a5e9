"""The systems: how each is started, tuned, emptied, and asked what is unfinished."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CLIENTS = HERE / "clients"
CACHE = Path(sys.prefix) / "bench-jobs"  # what is built for the peers; no part of the repository
GO = "/usr/local/go/bin/go"  # where Go's own archive puts it, often outside PATH


@dataclass(frozen=True, slots=True)
class System:
    """One of the queues.

    Attributes:
        tables: Emptied before each repetition.
        unfinished: ``FROM ... WHERE ...``: the jobs that have not ended.
        settings: What makes it fast on a machine of two cores, found by trying; the same for all
            workloads, ``chunk`` being the jobs of one bulk insert.
        drained: Share of the jobs to drain that it is given, if it would take minutes for all.
        module: The Python module it needs.
        folder: Its client outside Python, in ``clients``.
    """

    name: str
    tables: tuple[str, ...]
    unfinished: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    drained: float = 1.0
    module: str = ""
    folder: str = ""

    @property
    def command(self) -> list[str]:
        """What starts its client."""
        match self.name:
            case "graphile-worker":
                place = CACHE / self.folder
                own = next(place.glob("node_modules/node-linux-*/bin/node"), None)
                return [str(own or shutil.which("node")), str(place / "client.mjs")]
            case "river":
                return [str(CACHE / self.folder / "client")]
        return [sys.executable, "-m", f"bench.jobs.clients.{self.name}_client"]

    def missing(self) -> str:
        """Why it cannot run here; empty if it can."""
        if self.module and importlib.util.find_spec(self.module) is None:
            return f"the package {self.module} is not installed"
        if self.folder and stamp(self.folder) != digest(self.folder):
            return "its client is not built, or is an older one: make bench-jobs"
        return ""


SYSTEMS = {
    system.name: system
    for system in (
        System(
            "strandline",
            tuple(
                f"strandline.{name}"
                for name in (
                    "jobs",
                    "dead_jobs",
                    "job_history",
                    "job_edges",
                    "job_batches",
                    "job_periods",
                )
            ),
            "FROM strandline.jobs",
            {"chunk": 100_000, "job_batch": 2000},
        ),
        System(
            "pgqueuer",
            ("pgqueuer", "pgqueuer_log", "pgqueuer_statistics"),
            "FROM pgqueuer",
            {"chunk": 10_000, "batch": 1000, "producers": 16},
            module="pgqueuer",
        ),
        System(
            "procrastinate",
            (
                "procrastinate_jobs",
                "procrastinate_events",
                "procrastinate_periodic_defers",
                "procrastinate_workers",
            ),
            "FROM procrastinate_jobs WHERE status IN ('todo', 'doing')",
            {"chunk": 5000, "concurrency": 100, "pool": 4, "producers": 16},
            drained=0.1,
            module="procrastinate",
        ),
        System(
            "graphile-worker",
            ("graphile_worker._private_jobs", "graphile_worker._private_job_queues"),
            "FROM graphile_worker._private_jobs",
            {
                "chunk": 10_000,
                "concurrency": 24,
                "batch": 8000,
                "complete_delay": 0,
                "pool": 10,
                "producers": 16,
            },
            folder="graphile",
        ),
        System(
            "river",
            ("river_job",),
            "FROM river_job WHERE state <> 'completed'",
            {
                "chunk": 100_000,
                "concurrency": 2000,
                "pool": 4,
                "producers": 64,
                "cooldown": 2,
                "poll": 20,
            },
            folder="river",
        ),
    )
}


def find_go() -> str | None:
    """The Go tool."""
    return shutil.which("go") or (GO if os.access(GO, os.X_OK) else None)


def sources(folder: str) -> list[Path]:
    """What a client is built from."""
    return sorted(path for path in (CLIENTS / folder).iterdir() if path.is_file())


def digest(folder: str) -> str:
    """Names the sources of a client."""
    whole = hashlib.sha256()
    for path in sources(folder):
        whole.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return whole.hexdigest()


def stamp(folder: str) -> str:
    """The digest of the sources that the built client was made from; empty if there is none."""
    path = CACHE / folder / "built-from"
    return path.read_text() if path.exists() else ""
