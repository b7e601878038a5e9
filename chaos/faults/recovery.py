"""Faults while something is being mended: events put aside, builds killed and cancelled, comparisons."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from chaos import choices
from chaos.blow import Blow, Fault, NoTarget
from chaos.database import execute, fetchval
from chaos.field import APP, DATABASE, set_poison
from chaos.peers import ROOT
from chaos.watch import Look

POISONED = 1.5  # seconds that a handler raises
PARKING = {  # projections whose bad events are parked, by the beginning of their shards' names
    "accounts": "accounts:v1:",
    "sliced": "sliced:v1:",
    "sliced_branches": "sliced_branches:v1:",
    "notes": "notes:",
}
REBUILT = ("accounts", "branches", "turnover", "sliced", "sliced_branches")
COMMAND = 30.0  # seconds for one command
READ_ONLY = 1.5  # seconds that the database refuses writes

OPEN_LETTERS = "SELECT count(*) FROM strandline.dead_letters WHERE status IN ('parked', 'skipped')"
STATE = "SELECT state || ' ' || reason FROM strandline.rebuilds ORDER BY number DESC LIMIT 1"
LEFT_BEHIND = """
    SELECT (SELECT count(*) FROM strandline.shards WHERE name LIKE '%~%' OR seal IS NOT NULL)
         + (SELECT count(*) FROM strandline.work WHERE name LIKE '%~%')
         + (SELECT count(*) FROM strandline.slicings WHERE label LIKE '%~%')
         + (SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'strandline~%')
"""
END_SESSIONS = """
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
     WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


async def strandline(blow: Blow, *words: str) -> tuple[int, str]:
    """Run a command as an operator does; its exit code, and what it says."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "strandline", *words, "--app", APP),
        cwd=ROOT,
        env=os.environ | {"STRANDLINE_DATABASE_URL": blow.field.url, "CHAOS_TAG": ""},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(COMMAND):
            out, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        out, _ = await process.communicate()
        blow.accuse("I5", f"strandline {' '.join(words)} took more than {COMMAND} s")
    return process.returncode or 0, out.decode(errors="replace")


async def poison_parked(blow: Blow) -> None:
    """A handler raises at the events of one stream: they are put aside, and later replayed in order."""
    name = blow.random.choice(sorted(PARKING))
    stream = f"w1-{blow.random.randint(1, 3)}"
    blow.hit()
    set_poison(blow.field, f"{name} {stream} -")
    head = blow.head
    await asyncio.sleep(POISONED)
    look = blow.field.watch.latest
    set_poison(blow.field, "")
    if look:
        stuck = [shard for shard, (position, _) in look.shards.items() if position < head]
        if stuck:
            blow.accuse("I5", f"poison for {name} stopped {', '.join(stuck)}")
    await _replayed(blow)


async def _replayed(blow: Blow) -> None:
    """Ask for everything that was put aside, until nothing is."""
    loop = asyncio.get_running_loop()
    until = loop.time() + blow.fault.deadline
    while await fetchval(blow.field.url, OPEN_LETTERS):
        if loop.time() > until:
            left = await fetchval(blow.field.url, OPEN_LETTERS)
            blow.accuse("I9", f"{left} letters are still open {blow.fault.deadline} s later")
            return
        code, said = await strandline(blow, "letters", "retry", "--all")
        if code:
            blow.accuse("I9", f"letters cannot be asked for: {said}")
            return
        await asyncio.sleep(0.3)


async def rebuild(blow: Blow) -> None:
    """A projection is built again beside the one that serves, and takes its place."""
    await _asked_for(blow)
    await _done(blow)


async def rebuild_killed(blow: Blow) -> None:
    """The same, and who builds is killed: another goes on from where it was."""
    name = await _asked_for(blow)
    begun = await blow.field.watch.until(lambda look: bool(_of_builds(look, name)), timeout=10)
    if begun is not None:
        shard = blow.random.choice(sorted(_of_builds(begun, name)))
        try:
            node = await blow.aim(choices.owner_of(blow.field, shard))
        except NoTarget:  # it was done before anybody could be found
            pass
        else:
            node.is_leaving = True
            node.process.kill()
    await _done(blow)


async def rebuild_cancelled(blow: Blow) -> None:
    """A build is cancelled at any moment: nothing is left of it, and what serves goes on."""
    name = await _asked_for(blow)
    await asyncio.sleep(blow.random.uniform(0.0, 2.0))
    await strandline(blow, "projections", "cancel", name)
    await _swept(blow)


async def verify(blow: Blow) -> None:
    """What serves is compared with a build of its own: it must not differ."""
    name = blow.random.choice(REBUILT)
    blow.hit()
    code, said = await strandline(blow, "projections", "verify", name, "--json")
    if code == 1:
        blow.accuse("I1", f"verify found {name} to differ: {said[:2000]}")
    elif code:
        blow.facts["verify"] = said[-500:]  # a node that it was connected to died: no finding


async def read_only(blow: Blow) -> None:
    """The database takes no writes for a while, as after a fail-over to a standby."""
    blow.hit()
    await _set_read_only(blow, "on")
    await asyncio.sleep(READ_ONLY)
    await _set_read_only(blow, "off")


async def _set_read_only(blow: Blow, value: str) -> None:
    url = blow.field.url
    await execute(
        blow.field.server.url,
        f"ALTER DATABASE {DATABASE} SET default_transaction_read_only = {value}",
    )
    await fetchval(url, END_SESSIONS)


async def _asked_for(blow: Blow) -> str:
    name = blow.random.choice(REBUILT)
    code, said = await strandline(blow, "projections", "rebuild", name, "--yes", "--no-wait")
    blow.hit()
    if code:
        blow.accuse("I5", f"{name} cannot be rebuilt: {said}")
    return name


def _of_builds(look: Look, name: str) -> dict[str, Any]:
    return {one: at for one, at in look.shards.items() if one.startswith(f"{name}:v1~")}


async def _done(blow: Blow) -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + blow.fault.deadline
    state = ""
    while not state.startswith(("done", "cancelled", "failed")):
        if loop.time() > until:
            shards = json.dumps(await _progress(blow))
            blow.accuse("I5", f"the build is {state} {blow.fault.deadline} s later: {shards}")
            return
        await asyncio.sleep(0.2)
        state = await fetchval(blow.field.url, STATE) or "not there"
    if not state.startswith("done"):
        blow.accuse("I5", f"the build is {state}")
    await _swept(blow)


async def _progress(blow: Blow) -> list[str]:
    look = blow.field.watch.latest
    return [f"{name} at {at[0]}" for name, at in look.shards.items() if "~" in name] if look else []


async def _swept(blow: Blow) -> None:
    """Wait until nothing is left of builds that have ended."""
    loop = asyncio.get_running_loop()
    until = loop.time() + blow.fault.deadline
    while left := await fetchval(blow.field.url, LEFT_BEHIND):
        if loop.time() > until:
            blow.accuse("I5", f"{left} things are left of builds that have ended")
            return
        await asyncio.sleep(0.2)


ALL = (
    Fault("poison_parked", poison_parked, heals="after", reach="all", deadline=20, alone=True),
    Fault("rebuild", rebuild, heals="after", reach="all", deadline=40),
    Fault("rebuild_killed", rebuild_killed, heals="after", reach="all", deadline=40),
    Fault("rebuild_cancelled", rebuild_cancelled, heals="after", reach="all", deadline=20),
    Fault("verify", verify, heals="after", reach="all", deadline=40),
    Fault("read_only", read_only, heals="after", reach="all"),
)
