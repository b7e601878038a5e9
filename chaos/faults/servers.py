"""Faults of the server: restarted, crashed, failed over, out of disk."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import asyncpg

from chaos import choices, evidence
from chaos.blow import Blow, Fault, NoTarget
from chaos.database import fetchval
from chaos.faults import processes

READ_ONLY = 0.8  # seconds that everything leads to a standby before it is promoted
REST = 10.0  # seconds for writers to finish what is under way
IN_SYNC = 20.0  # seconds for a standby to catch up
SHOCK = 0.05  # seconds after which the server has noticed that one of its processes died
TABLES = (
    ("shards",),
    ("events",),
    ("nodes", "leases"),
    ("shards", "events", "nodes", "leases", "high_water"),
)


async def server_restart(blow: Blow) -> None:
    """Fast shutdown, and back in a moment."""
    blow.hit()
    await asyncio.to_thread(blow.field.server.restart, "fast", away=blow.random.uniform(0, 0.8))


async def server_crash(blow: Blow) -> None:
    """All its processes die at once; it recovers from its log."""
    blow.hit()
    await asyncio.to_thread(
        blow.field.server.restart, "immediate", away=blow.random.uniform(0, 0.8)
    )


async def backend_crash(blow: Blow) -> None:
    """kill -9 for one of its processes, so the server resets all of them."""
    pid = await fetchval(
        blow.field.url,
        "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'strandline work%'"
        " ORDER BY random() LIMIT 1",
    )
    if pid is None:
        raise NoTarget
    blow.hit()
    os.kill(pid, signal.SIGKILL)
    await asyncio.sleep(SHOCK)
    while not await _takes_connections(blow.field.url):
        await asyncio.sleep(0.02)


async def fail_over(blow: Blow) -> None:
    """The server dies; its synchronous standby answers, read-only at first, then takes over."""
    old = blow.field.server
    if not old.can_have_standbys:
        raise NoTarget
    folder = old.folder.with_name(f"server-{time.monotonic_ns()}")
    new = await asyncio.to_thread(old.standby, folder)
    old.configure(synchronous_standby_names="*")
    await _in_sync(blow.field.url)
    blow.hit()
    await asyncio.to_thread(old.stop, "immediate")
    await blow.field.lead_to(new)
    await asyncio.sleep(READ_ONLY)
    await asyncio.to_thread(new.promote)


async def fail_over_losing(blow: Blow) -> None:
    """The same with a standby that lags: the last commits are lost, acknowledged ones too.

    So checkpoints, leases and the mark go back in time, and epochs are given out twice; nodes remember
    what never was. What is there must still be applied exactly once.
    """
    field, old = blow.field, blow.field.server
    if not old.can_have_standbys:
        raise NoTarget
    new = await asyncio.to_thread(
        old.standby, old.folder.with_name(f"server-{time.monotonic_ns()}")
    )
    old.configure(synchronous_standby_names="*")
    await _in_sync(field.url)
    complete = field.places()
    old.configure(synchronous_standby_names="")
    await asyncio.to_thread(new.stop)
    blow.hit()
    if field.mode == "cluster" and blow.random.random() < 0.5:  # its work changes hands, in vain
        await processes.kill(await blow.aim(choices.follower(field, blow.random)), field)
    await asyncio.sleep(blow.random.uniform(0.3, 1.2))
    await field.rest(timeout=REST)
    await asyncio.to_thread(old.stop, "immediate")
    await asyncio.to_thread(new.start)
    await field.lead_to(new)
    await asyncio.to_thread(new.promote)
    await field.forget_what_was_lost(complete)
    field.go()


async def disk_full(blow: Blow) -> None:
    """Writes to some tables fail for a while, as on a full disk."""
    tables = blow.random.choice(TABLES)
    connection = await asyncpg.connect(blow.field.url)
    try:
        blow.hit()
        await evidence.fail_writes(connection, tables)
        await asyncio.sleep(blow.random.uniform(0.8, 1.6))
        await evidence.fail_writes(connection, ())
    finally:
        await connection.close()


async def _takes_connections(url: str) -> bool:
    try:
        return bool(await fetchval(url, "SELECT true"))
    except (OSError, asyncpg.PostgresError):
        return False


async def _in_sync(url: str) -> None:
    deadline = time.monotonic() + IN_SYNC
    while await fetchval(url, "SELECT sync_state FROM pg_stat_replication") != "sync":
        if time.monotonic() > deadline:
            raise RuntimeError("the standby does not catch up")
        await asyncio.sleep(0.05)


ALL = (
    Fault("server_restart", server_restart, heals="after", reach="all"),
    Fault("server_crash", server_crash, heals="after", reach="all"),
    Fault("backend_crash", backend_crash, heals="after", reach="all"),
    Fault("fail_over", fail_over, heals="after", reach="all", deadline=15.0),
    Fault("fail_over_losing", fail_over_losing, "after", deadline=15.0, reach="all", alone=True),
    Fault("disk_full", disk_full, heals="after", reach="all"),
)
