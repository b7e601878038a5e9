"""`strandline node`: it ends when it is told to, in every phase and whatever hangs."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tally import connected, holds

from strandline.testing.faults import Proxy

HERE = Path(__file__).parent
FAST = {
    "STOP_TIMEOUT": "3",
    "STOP_RESERVE": "1",
    "STOP_FAST": "1",
    "STOP_HARD": "4",
    "PULSE_INTERVAL": "0.1",
    "NODE_TTL": "1",
    "LEADER_TTL": "0.9",
    "LEADER_MARGIN": "0.2",
    "PULSE_DEADLINE": "0.5",
    "CONNECT_TIMEOUT": "3",
    "POLL_INTERVAL": "0.1",
}
SLACK = 1.5


@dataclass
class Command:
    """`strandline node node_shop:app` in a process of its own, whose output is read all the time."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    readers: list[threading.Thread] = field(default_factory=list)

    def __post_init__(self) -> None:
        for pipe, into in ((self.process.stdout, self.lines), (self.process.stderr, self.errors)):
            reader = threading.Thread(target=self._read, args=(pipe, into), daemon=True)
            reader.start()
            self.readers.append(reader)

    @staticmethod
    def _read(pipe: Any, into: list[str]) -> None:
        for line in pipe:
            into.append(line.rstrip("\n"))

    def until(self, words: str, *, timeout: float = 20.0) -> None:
        """Wait for *words* in its output."""
        deadline = time.monotonic() + timeout
        while not any(words in line for line in [*self.lines, *self.errors]):
            assert self.process.poll() is None, "\n".join(self.errors)
            assert time.monotonic() < deadline, "\n".join(self.errors)
            time.sleep(0.01)

    def stop(self, number: int = signal.SIGTERM, *, within: float) -> int:
        """Send a signal; the exit code, which must come *within* so many seconds and a little."""
        self.process.send_signal(number)
        return self.ended(within=within)

    def ended(self, *, within: float) -> int:
        try:
            code = self.process.wait(timeout=within + SLACK)
        except subprocess.TimeoutExpired:
            raise AssertionError("\n".join(self.errors)) from None
        for reader in self.readers:
            reader.join(5)
        return code

    def report(self) -> dict[str, Any]:
        text = "\n".join(self.errors)
        (found,) = re.findall(r"(?:shutdown report:|ended by force,) (\{.*\})$", text, re.MULTILINE)
        report: dict[str, Any] = json.loads(found)
        return report

    def statuses(self) -> dict[str, str]:
        return {one["name"]: one["status"] for one in self.report()["steps"]}


@pytest.fixture
def command() -> Iterator[Any]:
    made: list[subprocess.Popen[str]] = []

    def start(url: str, *words: str, shop: str = "", **settings: str) -> Command:
        process = subprocess.Popen(
            [sys.executable, "-m", "strandline", "node", "node_shop:app", *words],
            cwd=HERE,
            env={
                **os.environ,
                **{f"STRANDLINE_{name}": value for name, value in {**FAST, **settings}.items()},
                "STRANDLINE_DATABASE_URL": url,
                "SHOP": shop,
                "PYTHONUNBUFFERED": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        made.append(process)
        return Command(process)

    yield start
    for one in made:
        one.kill()
        one.wait()


NODES = (
    "SELECT name, state, left_reason, report::text, labels, capacity, mode FROM strandline.nodes"
)
HELD = "SELECT count(*) FROM strandline.assignments WHERE owner IS NOT NULL"
LEADS = "SELECT holder FROM strandline.leases WHERE name = 'leader'"


async def rows(url: str, query: str = NODES) -> list[Any]:
    async with connected(url) as connection:
        found: list[Any] = await connection.fetch(query)
        return found


async def test_a_clean_stop_leaves_nothing_behind(command: Any, database_url: str) -> None:
    node = command(database_url, "--name", "blue-1", "--label", "blue", "--label", "ssd")
    node.until("is up")
    await holds(lambda: owned(database_url, 3))

    code = node.stop(within=3)

    assert (code, node.report()["result"]) == (0, "clean")
    (row,) = await rows(database_url)
    assert (row["name"], row["state"], row["left_reason"]) == ("blue-1", "left", "SIGTERM")
    assert {"blue", "ssd"} <= set(row["labels"])
    assert json.loads(row["report"])["reason"] == "SIGTERM"
    assert await rows(database_url, LEADS) == [(None,)]
    assert await rows(database_url, HELD) == [(0,)]


async def test_a_node_that_logs_json_writes_nothing_else(command: Any, database_url: str) -> None:
    node = command(database_url, "--name", "a", "--log-format", "json")
    node.until('"event":"node_up"')
    await holds(lambda: owned(database_url, 3))

    assert node.stop(within=3) == 0

    told = [json.loads(line) for line in node.errors]
    assert all({"time", "level", "logger", "message"} <= set(one) for one in told)
    events = {one["event"]: one for one in told if one["logger"].startswith("strandline")}
    assert events["leadership_won"]["epoch"] == 1
    assert events["work_claimed"]["node"] == "a"
    assert json.loads(events["shutdown_report"]["report"])["result"] == "clean"
    assert events["stopped"]["result"] == "clean"


async def owned(url: str, count: int) -> bool:
    return (await rows(url, HELD))[0]["count"] == count


async def test_options_override_settings(command: Any, database_url: str) -> None:
    node = command(
        database_url, "--capacity", "2.5", "--never-lead", "--mode", "cluster", "--pulse", "thread",
        NODE_CAPACITY="7", PULSE="loop",
    )  # fmt: skip
    node.until("joined as")
    async with connected(database_url) as connection:
        found = await connection.fetchrow("SELECT capacity, priority, pulse FROM strandline.nodes")
    time.sleep(1)

    assert dict(found) == {"capacity": 2.5, "priority": -1, "pulse": "thread"}
    assert await rows(database_url, LEADS) == [(None,)]
    assert node.stop(within=3) == 0


def test_an_option_that_cannot_be_is_refused(command: Any, database_url: str) -> None:
    node = command(database_url, "--pulse", "drum")

    assert node.ended(within=5) == 2
    assert "setting pulse='drum'" in "\n".join(node.errors)


async def test_with_a_hanging_and_a_failing_step_all_others_are_done(
    command: Any, database_url: str
) -> None:
    node = command(database_url, shop="hooks=raise,hang,exit")
    node.until("is up")
    await holds(lambda: owned(database_url, 3))

    code = node.stop(within=3)

    assert code == 3
    statuses = node.statuses()
    assert {name for name, status in statuses.items() if status != "ok"} == {
        "hook number_0", "hook number_1", "hook number_2",
    }  # fmt: skip
    assert (statuses["hook number_1"], statuses["hook number_0"]) == ("timeout", "error")
    (row,) = await rows(database_url)
    assert (row["state"], len(json.loads(row["report"])["steps"]) >= 6) == ("left", True)
    assert await rows(database_url, HELD) == [(0,)]


@pytest.mark.parametrize(("how", "expected"), [("sleep", 70), ("regex", 1)])
async def test_a_blocked_process_is_gone_at_its_deadline_and_others_know(
    command: Any, database_url: str, how: str, expected: int
) -> None:
    node = command(database_url, shop=f"hooks={how}")
    node.until("is up")
    await holds(lambda: owned(database_url, 3))

    code = node.stop(within=4)

    assert code == expected
    await holds(lambda: gone(database_url), timeout=2)  # by its side process, long before its ttl
    assert "misbehave" in "\n".join(node.errors)


async def gone(url: str) -> bool:
    return [row["state"] for row in await rows(url)] in (["dead"], ["left"])


async def test_an_agent_that_never_returns_is_abandoned(command: Any, database_url: str) -> None:
    node = command(database_url, shop="batch=swallow")
    node.until("is up")
    async with connected(database_url) as connection:
        await connection.fetch(
            "SELECT position FROM strandline.append('s', $1::text::jsonb)",
            '[{"type": "ticked", "data": {"number": 1}}]',
        )
    node.until("batch")

    code = node.stop(within=3)

    assert code in (3, 70)
    assert await rows(database_url, HELD) == [(0,)]
    assert node.report()["abandoned"] or node.report()["forced"]


@pytest.mark.parametrize("how", ["black_hole", "refuse"])
async def test_with_the_database_gone_it_still_ends_in_time(
    command: Any, database_url: str, how: str
) -> None:
    async with Proxy(database_url) as proxy:
        node = command(proxy.url)
        await holds(lambda: any("joined as" in line for line in node.errors), timeout=20)

        getattr(proxy, how)()
        begun = time.monotonic()
        node.process.send_signal(signal.SIGTERM)
        await holds(lambda: node.process.poll() is not None, timeout=4 + SLACK)

    assert time.monotonic() - begun < 4 + SLACK
    assert node.ended(within=1) in (3, 70)
    assert node.report()["is_complete"]


def test_a_database_that_cannot_be_reached_at_the_start_is_code_3(command: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        node = command(f"postgresql://postgres@127.0.0.1:{taken.getsockname()[1]}/none")

        assert node.ended(within=15) == 3
    assert "Traceback" not in "\n".join(node.errors)


def test_a_database_that_never_answers_does_not_hold_up_a_signal(command: Any) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        node = command(
            f"postgresql://postgres@127.0.0.1:{silent.getsockname()[1]}/none", CONNECT_TIMEOUT="60"
        )
        _held = silent.accept()  # it is connecting

        code = node.stop(within=3)

    assert code in (0, 3)
    assert node.report()["reason"] == "SIGTERM"


async def test_a_signal_in_the_middle_of_joining_breaks_the_start_off(
    command: Any, database_url: str
) -> None:
    async with connected(database_url) as blocker:
        async with blocker.transaction():
            await blocker.execute("LOCK TABLE strandline.nodes")
            node = command(database_url, CONNECT_TIMEOUT="60", STOP_TIMEOUT="6", STOP_HARD="9")
            await holds(lambda: waits_for_a_lock(database_url), timeout=20)

            node.process.send_signal(signal.SIGTERM)
            code = await asyncio.to_thread(node.ended, within=6)

    assert (code, node.report()["reason"]) == (3, "SIGTERM")
    assert node.statuses()["break off the start"] == "ok"
    assert node.statuses()["leave"] != "ok"  # and that is why it is not clean
    assert {row["state"] for row in await rows(database_url)} <= {"left", "dead"}


async def waits_for_a_lock(url: str) -> bool:
    query = "SELECT 1 FROM pg_locks JOIN pg_database d ON d.oid = database WHERE NOT granted AND datname = current_database()"
    return bool(await rows(url, query))


@pytest.mark.parametrize(("how", "expected"), [("1", 0), ("sleep", 70)])
def test_a_signal_while_the_app_is_imported_ends_it(command: Any, how: str, expected: int) -> None:
    node = command("postgresql://nobody@127.0.0.1:1/none", shop=f"import={how}")
    node.until("importing")

    code = node.stop(within=4)

    assert (code, "Traceback" in "\n".join(node.errors)) == (expected, False)


async def test_the_third_signal_ends_it_and_the_side_process_tells_the_others(
    command: Any, database_url: str
) -> None:
    node = command(
        database_url, shop="hooks=hang", STOP_TIMEOUT="20", STOP_HARD="25", STOP_FAST="9"
    )
    node.until("is up")
    node.process.send_signal(signal.SIGINT)
    node.until("stopping (SIGINT)")
    time.sleep(0.2)  # or it counts as the same one
    node.process.send_signal(signal.SIGINT)
    node.until("second signal")
    time.sleep(0.2)
    code = node.stop(signal.SIGINT, within=1)

    assert code == 130
    await holds(lambda: gone(database_url), timeout=3)


async def test_a_node_that_is_evicted_for_good_ends_with_code_75(
    command: Any, database_url: str
) -> None:
    node = command(database_url, ON_EVICTED="exit")
    node.until("is up")

    async with connected(database_url) as connection:
        await connection.execute("UPDATE strandline.nodes SET state = 'dead'")
    code = await asyncio.to_thread(node.ended, within=6)

    assert (code, node.report()["reason"]) == (75, "evicted")


async def test_run_in_another_thread_hears_no_signals_and_ends_by_stop(database_url: str) -> None:
    """As in somebody's program, whose signals are its own business."""
    from strandline.app import App

    app = App("embedded", database_url, mode="solo", stop_hard=1.0, stop_timeout=0.8)
    before = signal.getsignal(signal.SIGTERM)
    loops: list[asyncio.AbstractEventLoop] = []

    async def run() -> Any:
        loops.append(asyncio.get_running_loop())
        return await app.run()

    running = asyncio.create_task(asyncio.to_thread(asyncio.run, run()))
    await holds(lambda: app.is_running)
    assert signal.getsignal(signal.SIGTERM) is before
    asyncio.run_coroutine_threadsafe(app.stop(), loops[0])
    report = await asyncio.wait_for(running, 5)

    assert (report.reason, report.result) == ("stop", "clean")
