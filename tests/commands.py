"""Runs commands of the command line, and puts nodes and work into a database for them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
from typer.testing import CliRunner

from strandline.cli.main import app as commands

SHOP = Path(__file__).parent / "postgres"  # where `cli_shop:app` is


def run(
    url: str, *words: str, code: int = 0, answer: str | None = None, width: int = 100
) -> tuple[str, str]:
    """Run a command; its stdout and stderr."""
    sys.modules.pop("cli_shop", None)  # an App takes its settings when it is made
    environment = {"STRANDLINE_DATABASE_URL": url, "STRANDLINE_APP": None, "COLUMNS": str(width)}
    done = CliRunner().invoke(commands, list(words), env=environment, input=answer)
    assert done.exit_code == code, (done.exit_code, done.stdout, done.stderr, done.exception)
    return done.stdout, done.stderr


def rows(url: str, *words: str, code: int = 0) -> list[dict[str, Any]]:
    """What a command writes with --json."""
    found: list[dict[str, Any]] = json.loads(run(url, *words, "--json", code=code)[0])
    return found


def started(url: str, *words: str, **environment: str) -> subprocess.Popen[str]:
    """A command in a process of its own, in the folder of the shop."""
    given = {"STRANDLINE_DATABASE_URL": url, "PYTHONUNBUFFERED": "1", **environment}
    return subprocess.Popen(
        [sys.executable, "-m", "strandline", *words],
        cwd=SHOP,
        env={**os.environ, **given},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> tuple[int, str, str]:
    """Send the signal *number*; exit code, stdout and stderr."""
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


def until(what: Callable[[], Any], timeout: float = 20.0) -> Any:
    """Call *what* until it answers something true; that."""
    deadline = time.monotonic() + timeout
    while not (answer := what()):
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.05)
    return answer


# ---- rows as nodes would write them


async def execute(url: str, text: str, *arguments: Any) -> Any:
    """Run a statement; the first value of its answer."""
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(text, *arguments)
    finally:
        await connection.close()


async def put_node(
    url: str,
    name: str,
    state: str = "active",
    *,
    labels: Sequence[str] = (),
    expires: float = 600.0,
    leads: bool = False,
    **columns: Any,
) -> UUID:
    """A node's row; also the leader's lease, if it *leads*."""
    node = uuid4()
    given = {"mode": "cluster", "pulse": "process", "host": "host-1", "pid": 77, "version": "0.1.0"}
    given |= columns
    names = ["id", "name", "state", "labels", "ttl", *given]
    values = [node, name, state, list(labels), 15.0, *given.values()]
    places = ", ".join(f"${number}" for number in range(1, len(values) + 1))
    await execute(
        url,
        f"INSERT INTO strandline.nodes ({', '.join(names)}, expires_at)"
        f" VALUES ({places}, clock_timestamp() + make_interval(secs => {expires}))",
        *values,
    )
    if leads:
        await execute(
            url,
            "UPDATE strandline.leases SET holder = $1, epoch = epoch + 1,"
            " expires_at = clock_timestamp() + interval '1 h' WHERE name = 'leader'",
            node,
        )
    return node


async def put_work(
    url: str, name: str, *, target: UUID | None = None, owner: UUID | None = None, epoch: int = 1
) -> None:
    """Work with its assignment."""
    await execute(url, "INSERT INTO strandline.work (name, needs) VALUES ($1, $2)", name, [name])
    await execute(
        url,
        "INSERT INTO strandline.assignments (work, target, target_at, owner, owner_name, epoch,"
        " owned_at) VALUES ($1, $2, clock_timestamp(), $3,"
        " coalesce((SELECT name FROM strandline.nodes WHERE id = $3), ''), $4, clock_timestamp())",
        *(name, target, owner, epoch),
    )
