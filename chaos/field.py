"""What a run harms: a server, nodes behind proxies, writers; and who is who among them."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import struct
import sys
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from chaos import evidence, puppet
from chaos.database import execute, fetchval
from chaos.peers import ROOT, Relay, Writer
from chaos.settings import SETTINGS
from chaos.signs import Logs
from chaos.watch import Look, Watch
from strandline.testing.nodes import NodeProcess
from strandline.testing.servers import Server

CLOCK = Path(__file__).with_name("clock")
APP = "chaos.jobs:app"
DATABASE = "bank"
JOB_LINES, JOB_PACE = 6, 0.12  # lines of jobs, seconds between two of one
START = 60.0  # seconds for a node to be active: many start at once, on few cores
ENOUGH = 3  # active nodes with which the next round may begin, while others are starting
GONE_SLACK = 1.0  # seconds after stop_hard at which a node must be gone


@dataclass(eq=False)
class Node:
    """One start of a node."""

    process: NodeProcess
    tag: str
    name: str
    clock: Path
    pulse: str
    started: float = field(default_factory=time.monotonic)
    is_frozen: bool = False
    is_leaving: bool = False
    is_busy: bool = False  # something is being done to it

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def works(self) -> bool:
        """Whether it runs, and nobody has told it to stop."""
        return self.process.is_running and not self.is_leaving

    def move_clock(self, seconds: float) -> None:
        """Let its wall clock, and its side process's, go *seconds* wrong."""
        with self.clock.open("r+b") as file, mmap.mmap(file.fileno(), 8) as lead:
            lead[:8] = struct.pack("d", seconds)


@dataclass
class Field:
    """Everything there is in a run."""

    folder: Path
    server: Server
    wanted: int  # nodes that there should be
    fence: str = ""
    mode: str = "cluster"
    nodes: list[Node] = field(default_factory=list)
    writers: list[Writer] = field(default_factory=list)
    enqueuers: list[Writer] = field(default_factory=list)
    logs: Logs = field(default_factory=Logs)
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    _starts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.watch = Watch(lambda: self.url, self.is_whole)
        self._relay: Relay | None = None

    @property
    def url(self) -> str:
        """The database, past every proxy."""
        return urlunsplit(urlsplit(self.server.url)._replace(path=f"/{DATABASE}"))

    @property
    def relay(self) -> Relay:
        """The proxies."""
        assert self._relay is not None
        return self._relay

    @property
    def control(self) -> Path:
        """Where nodes and writers find their orders."""
        return self.folder / "control"

    async def open(self, writers: int, streams: int, pace: float) -> None:
        """Make the database, start proxies, nodes, writers (which rest), and begin to look."""
        self.control.mkdir(exist_ok=True)
        await execute(self.server.url, f"CREATE DATABASE {DATABASE}")
        await self._prepare()
        self._relay = await Relay.start()
        self.watch.start()
        self.background(self.logs.follow())
        for _ in range(self.wanted):
            await self.start_node()
        for number in range(1, writers + 1):
            self.writers.append(await self._start_writer("writer", f"w{number}", streams, pace))
        self.enqueuers.append(await self._start_writer("enqueuer", "j1", JOB_LINES, JOB_PACE))
        started = await self.watch.until(
            lambda look: (
                self.is_whole(look)
                and (self.mode == "solo" or len(look.nodes) == self.wanted)
                and all(one.state == "active" for one in look.nodes.values())
            ),
            timeout=START,
        )
        if started is None:
            raise SystemExit(f"the nodes did not start; see {self.folder}\n{self.last_words()}")

    async def close(self) -> None:
        """End everything but the server."""
        await self.watch.stop()
        for task in self.tasks:
            task.cancel()
        for writer in self.busy:
            if writer.process.returncode is None:
                writer.process.kill()
            await writer.process.wait()
        for node in self.nodes:
            node.process.kill()
        for node in self.nodes:
            with contextlib.suppress(TimeoutError):
                await node.process.gone(timeout=10)
        if self._relay is not None:
            await self._relay.stop()

    # ---- nodes

    async def start_node(self, name: str = "", *, is_busy: bool = False) -> Node:
        """Start a node, under the first free name if none is given; it need not be active yet."""
        taken = {one.name for one in self.nodes if one.process.is_running}
        name = name or next(n for n in map("n{}".format, range(1, 999)) if n not in taken)
        self._starts[name] = self._starts.get(name, 0) + 1
        tag = f"{name}.{self._starts[name]}"
        clock = self.control / f"{tag}.clock"
        clock.write_bytes(struct.pack("d", 0.0))
        log = self.folder / f"{tag}.log"
        process = NodeProcess(
            APP,
            await self._through_proxy(tag),
            name=name,
            settings=SETTINGS | {"mode": self.mode, "pulse": _pulse(name)},
            environment=self._environment(tag, CHAOS_CLOCK=str(clock)),
            log=log,
            folder=ROOT,
        )
        process.start()
        node = Node(process, tag, name, clock, _pulse(name), is_busy=is_busy)
        self.nodes.append(node)
        self.logs.add(tag, log)
        return node

    async def fill_up(self) -> None:
        """Start nodes until there are as many as wanted."""
        while sum(one.works for one in self.nodes) < self.wanted:
            await self.start_node()

    def stop_node(self, node: Node) -> asyncio.Task[float | None]:
        """Tell *node* to stop; the task answers in how many seconds it was gone, or None."""
        node.is_leaving = True
        node.process.terminate()
        return self.background(self._gone(node, time.monotonic()))

    async def _gone(self, node: Node, since: float) -> float | None:
        try:
            await node.process.gone(timeout=SETTINGS["stop_hard"] + GONE_SLACK)
        except TimeoutError:
            return None
        return time.monotonic() - since

    def running(self) -> list[Node]:
        """The nodes that run and were not told to stop."""
        return [one for one in self.nodes if one.works]

    def node_of(self, owner: str | None, look: Look | None = None) -> Node | None:
        """The running node with this id."""
        look = look or self.watch.latest
        row = look.nodes.get(owner) if look and owner else None
        if row is None:
            return None
        return next((one for one in self.running() if one.pid == row.pid), None)

    def works_of(self, node: Node, look: Look | None = None) -> set[str]:
        """What *node* owns."""
        look = look or self.watch.latest
        rows = [one for one in look.nodes.values() if one.pid == node.pid] if look else []
        return {work for row in rows for work in look.works_of(row.id)} if look else set()

    def is_whole(self, look: Look) -> bool:
        """Whether all work is owned by nodes that live."""
        owners = look.owners()
        if self.mode == "solo":
            return bool(owners) and all(owners.values()) and bool(self.running())
        pids = {one.pid for one in self.nodes if one.process.is_running and not one.is_frozen}
        live = {
            one.id
            for one in look.nodes.values()
            if one.state == "active" and one.expires_in > 0 and one.pid in pids
        }
        return bool(owners) and all(owner in live for owner in owners.values())

    def all_active(self, look: Look) -> bool:
        """Whether every running node is active or has just been started, and there is none else."""
        if self.mode == "solo":
            return True
        started = {one.pid: one.started for one in self.running()}
        active = {one.pid for one in look.nodes.values() if one.state == "active"}
        if len(active) < min(ENOUGH, self.wanted) or active - started.keys():
            return False
        since = time.monotonic() - START
        late = [pid for pid, at in started.items() if pid not in active and at < since]
        others = [one for one in look.nodes.values() if one.state not in ("active", "joining")]
        return not late and not others

    def inactive(self, look: Look) -> str:
        """Which nodes are not what they should be, in words."""
        rows = {one.pid: one for one in look.nodes.values()}
        words = []
        for node in self.running():
            row = rows.pop(node.pid, None)
            if row is None or row.state != "active":
                age = time.monotonic() - node.started
                state = row.state if row else "without a row"
                words.append(f"{node.tag}, started {age:.0f} s ago, is {state}")
        words += [f"{row.name} (pid {row.pid}) is {row.state}, and gone" for row in rows.values()]
        return "; ".join(words)

    # ---- the rest

    def background(self, coroutine: Any) -> asyncio.Task[Any]:
        """Run it beside everything else."""
        task = asyncio.create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def order(self, node: Node, do: str, **facts: Any) -> None:
        """Tell *node* to harm itself."""
        puppet.order(self.control, node.tag, do, **facts)

    async def evictions(self, node: Node) -> int:
        """How often *node* was declared dead."""
        sql = (
            "SELECT count(*) FROM strandline.nodes WHERE pid = $1 AND name = $2 AND state = 'dead'"
        )
        found: int = await fetchval(self.url, sql, node.pid, node.name)
        return found

    def cut_into(self, parts: int) -> None:
        """Nodes that start from now on cut two projections into *parts* shards."""
        (self.control / "slices").write_text(str(parts))

    async def end_backends(self, node: Node, application: str) -> int:
        """End *node*'s sessions whose application name contains *application*; how many."""
        ports = await self.relay.order("ports", node.tag)
        return await fetchval(
            self.url,
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE client_port = ANY ($1) AND application_name LIKE $2",
            ports,
            f"%{application}%",
        )

    def go(self) -> None:
        """Let the writers write."""
        for writer in self.busy:
            writer.go()

    async def rest(self, *, timeout: float) -> list[str]:
        """Let the writers finish what is under way, and rest; the names of those that cannot."""
        resting = await asyncio.gather(*(one.rest(timeout=timeout) for one in self.busy))
        return [one.name for one, rests in zip(self.busy, resting, strict=True) if not rests]

    def places(self) -> list[tuple[Writer, int]]:
        """How long each writer's journal is."""
        return [(one, one.journal.stat().st_size) for one in self.writers]

    async def forget_what_was_lost(self, since: list[tuple[Writer, int]]) -> None:
        """After a fail-over that lost commits, while writers rest: nobody is to miss those.

        Args:
            since: The journals' ``places`` when the standby had everything.
        """
        self.watch.go_back_to(
            await fetchval(self.url, "SELECT position FROM strandline.high_water")
        )
        await evidence.forgive(since, self.url)
        for writer in self.writers:
            await writer.look_again()

    def lead_to(self, server: Server) -> Any:
        """Make *server* the one that everything uses."""
        self.server = server
        return self.relay.order("lead_to", "*", url=self.url)

    def last_words(self, tags: Iterable[str] | None = None, lines: int = 5) -> str:
        """How the logs end."""
        wanted: Collection[str] | None = None if tags is None else list(tags)
        words = []
        for path in sorted(self.folder.glob("*.log")):
            if wanted is None or path.stem in wanted:
                text = path.read_text(errors="replace").splitlines()[-lines:]
                words += [f"--- {path.name}", *text]
        return "\n".join(words)

    async def _prepare(self) -> None:
        """Migrate, make the read models, then the checker's own tables and triggers."""
        making = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            "import asyncio\nfrom chaos.jobs import app\n"
            "async def make():\n    async with app: pass\nasyncio.run(make())",
            cwd=ROOT,
            env=os.environ | {"STRANDLINE_DATABASE_URL": self.url},
        )
        if await making.wait():
            raise SystemExit("the database cannot be prepared")
        await evidence.install(self.url)

    @property
    def busy(self) -> list[Writer]:
        """Everybody who writes."""
        return [*self.writers, *self.enqueuers]

    async def _start_writer(self, module: str, name: str, streams: int, pace: float) -> Writer:
        journal = self.folder / f"{name}.journal"
        log = self.folder / f"{name}.log"
        settings = {"database_url": await self._through_proxy(name), "connect_timeout": 2}
        settings |= {"statement_timeout": 5, "acquire_timeout": 2}
        named = {f"STRANDLINE_{key.upper()}": str(value) for key, value in settings.items()}
        with log.open("ab") as file:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", f"chaos.{module}", name, str(streams), str(pace), journal),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=file,
                cwd=ROOT,
                env=self._environment("") | named,
            )
        self.logs.add(name, log)
        return Writer(name, process, journal)

    async def _through_proxy(self, tag: str) -> str:
        """The database's URL through a proxy of its own, which tells the checker who it is."""
        query = f"chaos.node={quote(tag)}"
        url = urlunsplit(urlsplit(self.url)._replace(query=query))
        found: str = await self.relay.order("open", tag, url=url)
        return found

    def _environment(self, tag: str, **more: str) -> dict[str, str]:
        path = os.pathsep.join([str(CLOCK), *filter(None, [os.environ.get("PYTHONPATH")])])
        return {
            **os.environ,
            "PYTHONPATH": path,
            "CHAOS_FOLDER": str(self.control),
            "CHAOS_TAG": tag,
            "CHAOS_FENCE": self.fence if tag else "",
            **more,
        }


def _pulse(name: str) -> str:
    """Most beat by a side process; every fourth by a thread, as embedded nodes do."""
    return "thread" if int(name[1:]) % 4 == 0 else "process"


def set_poison(field: Field, words: str) -> None:
    """What is poison from now on (see ``bank.py``); nothing for an empty text."""
    draft = field.control / "poison.new"
    draft.write_text(words)
    draft.rename(field.control / "poison")


Choice = Callable[[Look], Node | None]
