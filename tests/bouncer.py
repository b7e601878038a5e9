"""A real PgBouncer before the test's database, with the defaults of its package."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import asyncpg
import pytest

from strandline.postgres.server_folder import port_is_free

PROGRAM = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
ACCOUNT = "nobody"  # PgBouncer refuses to be root

needs_pgbouncer = pytest.mark.skipif(
    PROGRAM is None, reason="PgBouncer is not installed (apt-get install pgbouncer)"
)


@asynccontextmanager
async def bouncer(url: str, *, port: int = 0, **options: Any) -> AsyncIterator[str]:
    """The URL of the database at *url* through a PgBouncer of its own.

    Args:
        url: The database, over TCP.
        port: Where it listens; 0 for a free one.
        options: Of PgBouncer, over these: transaction mode, 4 server connections.
    """
    with tempfile.TemporaryDirectory(prefix="strandline-pgbouncer-") as name:
        folder = Path(name)
        port = port or _free_port()
        _write(folder, url, {"listen_port": port, **options})
        process = await asyncio.to_thread(_started, folder)
        try:
            parts = urlsplit(url)
            user = parts.username or "postgres"
            through = urlunsplit(parts._replace(netloc=f"{user}@127.0.0.1:{port}"))
            await _answers(through, process, folder)
            yield through
        finally:
            process.send_signal(signal.SIGTERM)  # ends at once, whoever is connected
            await asyncio.to_thread(process.wait, 10)


def _write(folder: Path, url: str, options: dict[str, Any]) -> None:
    parts = urlsplit(url)
    target = {
        "host": parts.hostname or "127.0.0.1",
        "port": parts.port or 5432,
        "user": unquote(parts.username or "postgres"),
    }
    if parts.password:
        target["password"] = unquote(parts.password)
    settings = {
        "listen_addr": "127.0.0.1",
        "unix_socket_dir": "",
        "auth_type": "any",
        "pool_mode": "transaction",
        "default_pool_size": 4,
        "logfile": folder / "log",
        **options,
    }
    lines = ["[databases]", "* = " + " ".join(f"{key}='{value}'" for key, value in target.items())]
    lines += ["[pgbouncer]", *(f"{key} = {value}" for key, value in settings.items())]
    (folder / "pgbouncer.ini").write_text("\n".join(lines) + "\n")


def _started(folder: Path) -> subprocess.Popen[bytes]:
    assert PROGRAM is not None
    account: dict[str, Any] = {}
    if os.geteuid() == 0:
        shutil.chown(folder, ACCOUNT)
        account = {"user": ACCOUNT, "group": "nogroup", "extra_groups": []}
    return subprocess.Popen(
        [PROGRAM, "-q", str(folder / "pgbouncer.ini")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        **account,
    )


async def _answers(url: str, process: subprocess.Popen[bytes], folder: Path) -> None:
    async with asyncio.timeout(10):
        while True:
            if process.poll() is not None:
                log = folder / "log"
                raise RuntimeError(f"PgBouncer ended: {log.read_text() if log.exists() else ''}")
            try:
                connection = await asyncpg.connect(url, statement_cache_size=0, timeout=5)
            except (OSError, asyncpg.PostgresError):
                await asyncio.sleep(0.01)
            else:
                await connection.close()
                return


def _free_port() -> int:
    """One below the ephemeral ports: a client that retries there could connect to itself."""
    while True:
        port = random.randrange(8_000, 15_000)
        if port_is_free(port):
            return port
