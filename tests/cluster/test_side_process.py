"""A side process speaks for its app while that lives, and for a moment afterwards.

Measured on two cores with a load of 12: a ``kill -9`` of the app is in the node's row after 3 to 30
ms; a new side process, after its own ``kill -9``, beats again after 0.7 to 1.4 s, of which 0.15 s
are its own processor time. It takes 29 MB, 17 MB of them not shared with another Python.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psutil
import pytest
from pulses import QUICK, Watcher, beating, node, watching
from tally import holds

from strandline.errors import Unavailable

HERE = Path(__file__).parent
AT_ONCE = 0.05
SLACK = 1.0  # seconds that a busy machine may add
START = 4.0  # seconds that it may take to start a Python there


@dataclass
class Main:
    """An app in a process of its own."""

    id: UUID
    process: asyncio.subprocess.Process
    said: list[dict[str, Any]] = field(default_factory=list)
    errors: bytes = b""
    came: asyncio.Event = field(default_factory=asyncio.Event)
    side: int = 0

    @property
    def pid(self) -> int:
        return self.process.pid

    def tell(self, what: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(what.encode() + b"\n")

    async def says(
        self, where: Callable[[dict[str, Any]], bool], timeout: float = 15.0
    ) -> dict[str, Any]:
        async with asyncio.timeout(timeout):
            while True:
                self.came.clear()
                for one in self.said:
                    if where(one):
                        return one
                await self.came.wait()

    async def tells(self, kind: str, since: float = 0.0, timeout: float = 15.0) -> dict[str, Any]:
        return await self.says(lambda one: one.get("news") == kind and one["at"] >= since, timeout)

    def news(self, kind: str, since: float = 0.0) -> list[dict[str, Any]]:
        return [one for one in self.said if one.get("news") == kind and one["at"] >= since]

    async def ended(self, timeout: float = 15.0) -> int:
        async with asyncio.timeout(timeout):
            return await self.process.wait()


@asynccontextmanager
async def running(
    url: str, kind: str = "process", environment: dict[str, str] | None = None, **options: Any
) -> AsyncIterator[Main]:
    who = uuid4()
    path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(HERE / "pulse_main.py"),
        url,
        kind,
        json.dumps({"id": str(who), **options}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path, **(environment or {})},
    )
    main = Main(who, process)

    async def read() -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            main.said.append(json.loads(line))
            main.came.set()

    async def read_errors() -> None:
        assert process.stderr is not None
        while data := await process.stderr.read(4096):
            main.errors += data

    readers = [asyncio.create_task(read()), asyncio.create_task(read_errors())]
    try:
        main.side = (await main.says(lambda one: "started" in one))["side"]
        yield main
    finally:
        for pid in (main.side, main.pid):
            with suppress(ProcessLookupError, ValueError):
                if pid:
                    os.kill(pid, signal.SIGCONT)
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        for reader in readers:
            reader.cancel()
        process._transport.close()  # a fork of it may keep the pipes
        if main.side:
            await holds(lambda: is_gone(main.side), timeout=10)


def is_gone(pid: int) -> bool:
    """Neither running nor left as a zombie."""
    return not psutil.pid_exists(pid)


def has_ended(pid: int) -> bool:
    """It may be a zombie: whoever is its parent now does not know that it has children."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def states(watcher: Watcher, who: Main) -> str:
    return await watcher.run("SELECT state FROM strandline.nodes WHERE id = $1", who.id)


async def in_state(watcher: Watcher, who: Main, state: str, timeout: float = 10.0) -> None:
    async def reached() -> bool:
        return await states(watcher, who) == state

    await holds(reached, timeout=timeout)


async def left_at(watcher: Watcher, who: Main) -> float:
    return await watcher.run(
        "SELECT extract(epoch FROM left_at)::float8 FROM strandline.nodes WHERE id = $1", who.id
    )


async def test_a_killed_app_is_dead_for_all_within_milliseconds(database_url: str) -> None:
    """Its lease is free and the others are told, in the statement that says so."""
    async with running(database_url) as main, watching(database_url) as watcher:
        await main.tells("leading")
        notices: list[str] = []
        await watcher.connection.add_listener(
            "strandline.cluster", lambda *told: notices.append(told[3])
        )
        killed = time.time()
        os.kill(main.pid, signal.SIGKILL)

        await in_state(watcher, main, "dead")

        row = await watcher.node(main)
        assert row["left_reason"] == "process died"
        assert await left_at(watcher, main) - killed < AT_ONCE + 0.2
        assert (await watcher.lease())["holder"] is None
        await holds(lambda: "dead" in notices)
        kinds = [kind for kind, _, _ in await watcher.logged("leader_lost", "node_dead")]
        assert kinds == ["leader_lost", "node_dead"]
        await holds(lambda: is_gone(main.side))


async def test_a_follower_leads_at_once_when_the_leader_is_killed(database_url: str) -> None:
    async with running(database_url, leader_ttl=60.0, ttl=60.0) as main:
        await main.tells("leading")
        async with beating(database_url, "thread", leader_ttl=60.0, ttl=60.0) as follower:
            killed = time.monotonic()
            os.kill(main.pid, signal.SIGKILL)

            await follower.tells("leading", since=killed)

            assert follower.first("leading", since=killed) - killed < 0.3 + SLACK
            assert follower.pulse.leadership.epoch == 2


@pytest.mark.parametrize("how", ["exit", "abrupt", "raise", "exec"])
async def test_an_app_that_ends_without_a_word_leaves_no_side_process(
    database_url: str, how: str
) -> None:
    async with running(database_url) as main, watching(database_url) as watcher:
        main.tell(how)

        await in_state(watcher, main, "dead")

        await holds(lambda: has_ended(main.side) if how == "exec" else is_gone(main.side))
        # asyncio.run closes the loop a moment before the process ends
        reasons = {"process died", "its event loop was closed"}
        assert (await watcher.node(main))["left_reason"] in reasons


@pytest.mark.parametrize("kind", ["process", "thread"])
async def test_an_event_loop_that_is_closed_without_a_word_is_the_end_of_its_node(
    database_url: str, kind: str
) -> None:
    """The process goes on, but nothing of it can work for the cluster any more."""
    async with (
        running(database_url, kind, environment={"STAYS": "1"}) as main,
        watching(database_url) as watcher,
    ):
        main.tell("close")

        await in_state(watcher, main, "dead")

        assert (await watcher.node(main))["left_reason"] == "its event loop was closed"
        assert main.process.returncode is None
        if main.side:
            await holds(lambda: is_gone(main.side))


async def test_an_app_that_leaves_is_left_and_not_dead(database_url: str) -> None:
    async with running(database_url) as main, watching(database_url) as watcher:
        main.tell("leave")

        assert await main.ended() == 0
        assert (await main.says(lambda one: "left" in one))["left"] is True
        assert await states(watcher, main) == "left"
        assert is_gone(main.side)


async def test_an_app_that_only_stops_its_pulse_leaves_its_row_to_the_ttl(
    database_url: str,
) -> None:
    async with running(database_url) as main, watching(database_url) as watcher:
        main.tell("stop")

        assert await main.ended() == 0
        assert is_gone(main.side)
        assert await states(watcher, main) in ("joining", "active")


async def test_a_child_that_inherits_the_pipe_does_not_keep_a_dead_app_alive(
    database_url: str,
) -> None:
    """So the side process asks the kernel too, and not the pipe alone."""
    async with running(database_url) as main, watching(database_url) as watcher:
        main.tell("fork")
        await main.says(lambda one: one.get("did") == "fork")
        child = next(one.pid for one in psutil.Process(main.pid).children() if one.pid != main.side)
        try:
            killed = time.time()
            os.kill(main.pid, signal.SIGKILL)

            await in_state(watcher, main, "dead")

            assert await left_at(watcher, main) - killed < AT_ONCE + 0.2
            await holds(lambda: is_gone(main.side))
        finally:
            os.kill(child, signal.SIGKILL)


async def test_a_frozen_app_resigns_is_stalled_and_comes_back(database_url: str) -> None:
    """I6: SIGSTOP. It is alive, so it is not dead; it does nothing, so it gets nothing to do."""
    options = {"stall_resign_after": 0.5, "stall_after": 1.2}
    async with running(database_url, **options) as main, watching(database_url) as watcher:
        await main.tells("leading")
        stopped = time.monotonic()
        os.kill(main.pid, signal.SIGSTOP)

        async def resigned() -> bool:
            return (await watcher.lease())["holder"] is None

        await holds(resigned)
        assert 0.3 < time.monotonic() - stopped < 0.5 + QUICK.interval + SLACK
        await in_state(watcher, main, "stalled")
        assert 1.0 < time.monotonic() - stopped < 1.2 + QUICK.interval + SLACK
        assert (await watcher.node(main))["loop_lag"] > 1.0

        os.kill(main.pid, signal.SIGCONT)

        await in_state(watcher, main, "active", timeout=1.0 + SLACK)
        kinds = [
            kind for kind, _, _ in await watcher.logged("node_stalled", "node_active", "node_dead")
        ]
        assert kinds == ["node_active", "node_stalled", "node_active"]
        await main.tells("not_leading")


async def test_a_leader_whose_event_loop_is_blocked_hands_over(database_url: str) -> None:
    """Before it counts as stalled: it keeps its work for longer than the leadership."""
    async with running(database_url, stall_resign_after=0.5) as main:
        await main.tells("leading")
        async with (
            beating(database_url, name="other") as other,
            watching(database_url) as watcher,
        ):
            blocked = time.monotonic()
            main.tell("sleep 4")

            await other.tells("leading", since=blocked)

            assert other.first("leading", since=blocked) - blocked < 0.5 + QUICK.interval + SLACK
            assert await states(watcher, main) == "active"
            detail = (
                "SELECT detail->>'reason' FROM strandline.node_log WHERE kind = 'leader_resigned'"
            )
            assert (await watcher.run(detail)).startswith("its event loop has been blocked for 0.")


async def test_an_app_that_is_frozen_with_its_side_process_is_not_called_stalled_afterwards(
    database_url: str,
) -> None:
    """A paused container: when it goes on, the app gets its chance before anybody judges it."""
    options = {"stall_resign_after": 0.5, "stall_after": 1.0, "stall_kill_after": 1.2, "ttl": 60.0}
    async with running(database_url, **options) as main, watching(database_url) as watcher:
        for pid in (main.side, main.pid):
            os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(2.0)
        os.kill(main.side, signal.SIGCONT)
        os.kill(main.pid, signal.SIGCONT)

        await main.tells("ticked", since=time.time() + 0.5)

        assert main.process.returncode is None
        assert await watcher.logged("node_stalled") == []


async def test_a_killed_side_process_is_replaced_and_nothing_else_happens(
    database_url: str,
) -> None:
    """The same node goes on beating, and the new one adopts the leadership of the old one."""
    async with beating(database_url, "process") as one, watching(database_url) as watcher:
        await one.tells("leading")
        for round_ in range(1, 4):
            await one.tells("ticked", since=time.monotonic())
            side = one.pulse._host._process.pid
            killed = time.monotonic()
            os.kill(side, signal.SIGKILL)

            facts = await one.tells("side_process_died", since=killed)
            assert facts["code"] == -signal.SIGKILL
            await one.tells("ticked", since=killed)

            assert one.first("ticked", since=killed) - killed < 1.0 + START
            assert is_gone(side)
            assert one.pulse.statistics().restarts == round_
            await holds(lambda: one.pulse.leadership)
        row = await watcher.node(one)
        assert row["state"] == "active"
        assert len(one.news("not_leading")) <= 3
        assert one.news("evicted") == []
        assert await watcher.logged("node_joined") == [("node_joined", "n", None)]
        assert (await watcher.lease())["epoch"] == 1
        zombies = [p for p in psutil.Process().children() if p.status() == psutil.STATUS_ZOMBIE]
        assert zombies == []


async def test_a_new_side_process_knows_that_the_node_drains(database_url: str) -> None:
    async with beating(database_url, "process") as one, watching(database_url) as watcher:
        await one.tells("leading")
        assert await one.pulse.drain(timeout=5)
        killed = time.monotonic()
        os.kill(one.pulse._host._process.pid, signal.SIGKILL)
        await one.tells("ticked", since=killed)
        await one.tells("ticked", since=time.monotonic())

        assert await watcher.state(one) == "draining"
        assert one.pulse.leadership is None


async def test_a_new_side_process_knows_that_the_node_takes_part_and_judges_it(
    database_url: str,
) -> None:
    options = {"stall_resign_after": 0.5, "stall_after": 1.0}
    async with running(database_url, **options) as main, watching(database_url) as watcher:
        killed = time.time()
        os.kill(main.side, signal.SIGKILL)
        await main.tells("side_process_died", since=killed)
        await main.tells("ticked", since=killed)
        os.kill(main.pid, signal.SIGSTOP)

        await in_state(watcher, main, "stalled")


async def test_a_new_side_process_knows_who_has_resigned_for_good(database_url: str) -> None:
    async with beating(database_url, "process", leader_ttl=1.0, margin=0.3) as one:
        await one.tells("leading")
        assert await one.pulse.resign("it goes", timeout=5, for_good=True)
        killed = time.monotonic()
        os.kill(one.pulse._host._process.pid, signal.SIGKILL)
        await one.tells("ticked", since=killed)

        with pytest.raises(TimeoutError):
            await one.tells("leading", since=killed, timeout=2.0)


async def test_what_was_asked_of_a_side_process_that_died_is_asked_of_the_next(
    database_url: str,
) -> None:
    async with beating(database_url, "process") as one, watching(database_url) as watcher:
        await one.tells("leading")
        side = one.pulse._host._process.pid
        os.kill(side, signal.SIGSTOP)
        asking = asyncio.create_task(one.pulse.leave("it is told to", "", timeout=10))
        await asyncio.sleep(0.2)
        os.kill(side, signal.SIGKILL)

        assert await asking
        assert await watcher.state(one) == "left"


async def test_a_side_process_that_hangs_is_replaced_before_its_node_is_called_dead(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("strandline.cluster.process_host.SILENT_FOR", 1.5)
    async with beating(database_url, "process", ttl=30.0) as one:
        side = one.pulse._host._process.pid
        stopped = time.monotonic()
        os.kill(side, signal.SIGSTOP)

        await one.tells("side_process_died", since=stopped)
        await one.tells("ticked", since=one.first("side_process_died", since=stopped))

        assert is_gone(side)
        assert one.news("evicted") == []


async def test_both_killed_at_once_is_found_by_the_ttl(database_url: str) -> None:
    async with (
        beating(database_url, name="other") as other,
        running(database_url) as main,
        watching(database_url) as watcher,
    ):
        await other.tells("leading")
        assert await other.pulse.resign("so that the other leads", timeout=5)
        await main.tells("leading")
        killed = time.monotonic()
        os.kill(main.side, signal.SIGKILL)
        os.kill(main.pid, signal.SIGKILL)

        await other.tells("leading", since=killed)

        assert other.first("leading", since=killed) - killed < QUICK.leader_ttl + SLACK
        expired = "SELECT expires_at < clock_timestamp() FROM strandline.nodes WHERE id = $1"

        async def is_expired() -> bool:
            return await watcher.run(expired, main.id)

        await holds(is_expired)
        assert time.monotonic() - killed < QUICK.ttl + SLACK


async def test_a_side_process_that_is_frozen_ends_with_its_app(database_url: str) -> None:
    async with running(database_url) as main:
        os.kill(main.side, signal.SIGSTOP)
        main.tell("stop")

        assert await main.ended(timeout=6) == 0
        assert is_gone(main.side)


async def test_signals_to_a_whole_group_do_not_end_a_side_process(database_url: str) -> None:
    async with beating(database_url, "process") as one:
        side = one.pulse._host._process.pid
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            os.kill(side, number)
        for _ in range(3):
            await one.tells("ticked", since=time.monotonic())

        assert one.pulse._host._process.pid == side
        assert one.news("side_process_died") == []
        assert os.getsid(side) == side, "it has a session of its own"


async def test_a_blocked_event_loop_is_reported_with_its_stack_and_beats_go_on(
    database_url: str,
) -> None:
    async with running(database_url, ttl=1.0) as main, watching(database_url) as watcher:
        began = time.time()
        main.tell("sleep 2.5")
        await main.says(lambda one: one.get("did") == "sleep")

        facts = await main.tells("blocked")
        assert "time.sleep(float(rest))" in facts["stack"]
        assert (await main.tells("unblocked"))["seconds"] > 2.0
        assert b"the event loop has been blocked for" in main.errors
        assert await steady(watcher, main, began), "with a ttl of 1 s"
        assert main.news("evicted") == []


@pytest.mark.parametrize(("kind", "goes_on"), [("process", True), ("thread", False)])
async def test_a_call_that_holds_the_interpreter_stops_a_thread_and_no_side_process(
    database_url: str, kind: str, goes_on: bool
) -> None:
    """What the side process is for; and how long a gap a thread has, as the documentation says."""
    async with running(database_url, kind, ttl=1.0) as main, watching(database_url) as watcher:
        began = time.time()
        main.tell("gil 2")
        await main.says(lambda one: one.get("did") == "gil", timeout=60)
        assert time.time() - began > 1.0
        await main.tells("ticked", since=time.time())

        assert await steady(watcher, main, began) is goes_on
        assert main.news("evicted") == [], "nobody has judged it: it is alone"


async def steady(watcher: Watcher, main: Main, since: float) -> bool:
    """Whether no break of half a ttl was in its beats since then."""
    steady_since = await watcher.run(
        "SELECT extract(epoch FROM steady_since)::float8 FROM strandline.nodes WHERE id = $1",
        main.id,
    )
    return steady_since < since


async def test_an_app_blocked_for_too_long_is_ended_with_all_its_stacks(database_url: str) -> None:
    options = {"stall_resign_after": 0.3, "stall_after": 0.5, "stall_kill_after": 1.5}
    async with running(database_url, **options) as main, watching(database_url) as watcher:
        main.tell("sleep 60")

        assert await main.ended() == -signal.SIGABRT

        await in_state(watcher, main, "dead")
        assert "its event loop had been blocked for" in (await watcher.node(main))["left_reason"]
        await holds(lambda: b"pulse_main.py" in main.errors)
        assert b"Fatal Python error: Aborted" in main.errors
        await holds(lambda: is_gone(main.side))


async def test_an_app_that_is_frozen_for_too_long_is_killed(database_url: str) -> None:
    """SIGABRT waits for a process that is stopped; SIGKILL does not."""
    options = {"stall_resign_after": 0.3, "stall_after": 0.5, "stall_kill_after": 1.0}
    async with running(database_url, **options) as main, watching(database_url) as watcher:
        os.kill(main.pid, signal.SIGSTOP)

        assert await main.ended() == -signal.SIGKILL

        await in_state(watcher, main, "dead")


async def test_an_app_is_not_killed_unless_that_is_wanted(database_url: str) -> None:
    options = {"stall_resign_after": 0.2, "stall_after": 0.3, "stall_kill_after": 0.0}
    async with running(database_url, **options) as main:
        main.tell("sleep 2")

        await main.says(lambda one: one.get("did") == "sleep")

        assert main.process.returncode is None


async def test_a_python_that_cannot_be_started_is_told_in_the_error(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    before = set(psutil.Process().children())  # an embedded server may be one of them
    one = node(database_url, "process")

    with pytest.raises(Unavailable):
        await one.pulse.start(timeout=1.0)

    assert one.news("side_process_died")[0]["code"] == 1
    deaths = len(one.news("side_process_died"))
    assert deaths < 12, "it is started again after a growing pause"
    await one.pulse.stop(timeout=2)
    await holds(lambda: not set(psutil.Process().children()) - before, timeout=5)


async def test_a_program_that_is_no_python_is_told_to_use_a_thread(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would start itself, and that again itself."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    one = node(database_url, "process")

    with pytest.raises(Unavailable, match='pulse="thread"'):
        await one.pulse.start(timeout=1.0)

    await one.pulse.stop(timeout=2)


async def test_a_forked_child_is_not_the_node(database_url: str) -> None:
    async with beating(database_url, "process") as one:
        await one.tells("leading")
        child = os.fork()
        if child == 0:
            os._exit(0 if one.pulse.leadership is None else 1)

        _, status = os.waitpid(child, 0)

        assert os.waitstatus_to_exitcode(status) == 0
        assert one.pulse.leadership is not None
