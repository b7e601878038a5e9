"""Orders to a node to harm itself from inside: block its loop, leak its connections, stop in a transaction.

They come as JSON datagrams on a Unix socket named after the process's tag.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import strandline as sl

FOLDER = Path(os.environ.get("CHAOS_FOLDER", "."))
TAG = os.environ.get("CHAOS_TAG", "")

_stops_in_transaction = False
_stops_in_batch_of = ""
_tasks: set[asyncio.Task[None]] = set()  # the loop keeps weak references only


def address(folder: Path, tag: str) -> str:
    """Where the process *tag* listens."""
    return str(folder / f"{tag}.socket")


def obey(app: sl.App) -> None:
    """Do from now on what is ordered."""
    loop = asyncio.get_running_loop()
    inbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    inbox.setblocking(False)
    Path(address(FOLDER, TAG)).unlink(missing_ok=True)
    inbox.bind(address(FOLDER, TAG))
    loop.add_reader(inbox.fileno(), lambda: _receive(app, inbox))


def order(folder: Path, tag: str, do: str, **facts: Any) -> None:
    """Tell the process *tag* to *do* something.

    Raises:
        OSError: It does not listen (yet, or any more).
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as outbox:
        outbox.sendto(json.dumps({"do": do, **facts}).encode(), address(folder, tag))


def in_transaction() -> None:
    """Called by a handler whose transaction is open: stop here if that is ordered."""
    global _stops_in_transaction
    if _stops_in_transaction:
        _stops_in_transaction = False
        os.kill(os.getpid(), signal.SIGSTOP)


def in_batch(projection: str) -> None:
    """Called for every event that is folded, with no transaction open: stop here if that is ordered."""
    global _stops_in_batch_of
    if _stops_in_batch_of == projection:
        _stops_in_batch_of = ""
        os.kill(os.getpid(), signal.SIGSTOP)


def _receive(app: sl.App, inbox: socket.socket) -> None:
    facts = json.loads(inbox.recv(4096))
    do = facts.pop("do")
    if do == "block":
        time.sleep(facts["seconds"])
    elif do == "spin":
        until = time.monotonic() + facts["seconds"]
        while time.monotonic() < until:
            pass
    elif do == "stop_in_transaction":
        global _stops_in_transaction
        _stops_in_transaction = True
    elif do == "stop_in_batch":
        global _stops_in_batch_of
        _stops_in_batch_of = facts["projection"]
    elif do == "leak":
        for _ in range(facts["connections"]):
            task = asyncio.create_task(_leak(app, facts["seconds"]), name="a leak")
            _tasks.add(task)
            task.add_done_callback(_tasks.discard)
    else:
        raise ValueError(do)


async def _leak(app: sl.App, seconds: float) -> None:
    """A transaction that somebody forgot to end."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            async with app.transaction() as tx:
                await tx.fetch("SELECT 1")
                await asyncio.sleep(until - time.monotonic())
        except Exception as error:  # whatever ends it early: leak again
            print(f"leak: {error!r}", flush=True)
            await asyncio.sleep(0.05)
