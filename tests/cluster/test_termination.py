"""A process that is told to end is gone by its deadline, whatever hangs; and says what happened."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
HARD = 2.5  # of the program below
SLACK = 1.0  # seconds a process may be later than it promises, on a busy machine


@dataclass
class Program:
    """`stopping.py`, once it is up."""

    process: subprocess.Popen[str]
    told_at: float = 0.0
    seconds: float = 0.0
    lines: list[str] = field(default_factory=list)
    errors: str = ""

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.told_at = self.told_at or time.monotonic()
        self.process.send_signal(number)

    def end(self, limit: float = HARD) -> int:
        """Wait for its end, at most *limit* seconds after the first signal; the exit code."""
        spare = limit + SLACK - (time.monotonic() - self.told_at)
        out, self.errors = self.process.communicate(timeout=max(0.1, spare))
        self.seconds = time.monotonic() - self.told_at
        self.lines += out.splitlines()
        return self.process.returncode

    def did(self) -> list[str]:
        return [line[4:] for line in self.lines if line.startswith("did ")]

    def report(self) -> dict[str, Any]:
        """What it printed at its end; or its last words."""
        for line in reversed(self.lines):
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        (words,) = re.findall(r"ended by force, (\{.*\})$", self.errors, re.MULTILINE)
        last: dict[str, Any] = json.loads(words)
        return last

    def statuses(self) -> dict[str, str]:
        return {one["name"]: one["status"] for one in self.report()["steps"]}


@pytest.fixture
def program() -> Iterator[Any]:
    made: list[subprocess.Popen[str]] = []

    def start(kind: str, **settings: Any) -> Program:
        words = [f"{name}={value}" for name, value in settings.items()]
        process = subprocess.Popen(
            [sys.executable, str(HERE / "stopping.py"), kind, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        made.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        return Program(process)

    yield start
    for one in made:
        one.kill()
        one.wait()


NEEDED = ["announce", "give back", "leave"]


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_node_stops_at_a_signal_on_either_loop(program: Any, number: int, loop: str) -> None:
    node = program("clean", loop=loop)

    node.signal(number)
    code = node.end(limit=1.5)

    assert node.did() == ["announce", "work", "give back", "leave", "close"]
    assert node.report()["reason"] == signal.Signals(number).name
    assert (code, node.report()["exit_code"]) == (3, 3)  # stepping down always fails here
    assert node.statuses()["step down"] == "error"


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("raises", "RuntimeError: async"),
        ("raises_at_once", "ValueError: sync"),
        ("raises_base", "Bang: "),
        ("exits", "SystemExit: 9"),
        ("interrupted", "KeyboardInterrupt: "),
    ],
)
def test_a_step_that_raises_keeps_no_other_from_running(
    program: Any, kind: str, error: str
) -> None:
    node = program(kind)

    node.signal()
    code = node.end()

    (work,) = [one for one in node.report()["steps"] if one["name"] == "work"]
    assert (code, work["status"], work["error"]) == (3, "error", error)
    assert node.did() == ["announce", "give back", "leave", "close"]
    assert node.report()["is_complete"]


@pytest.mark.parametrize("kind", ["exits_in_a_task", "stops_the_loop", "cancels_all"])
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_step_that_attacks_the_event_loop_keeps_no_other_from_running(
    program: Any, kind: str, loop: str
) -> None:
    node = program(kind, loop=loop)

    node.signal()
    code = node.end()

    assert code == 3
    assert node.did() == ["announce", "give back", "leave", "close"]
    assert node.report()["is_complete"]


@pytest.mark.parametrize("kind", ["swallow", "thread", "slow"])
def test_a_step_that_hangs_is_cut_off_at_its_cap(program: Any, kind: str) -> None:
    node = program(kind, cap=0.3)

    node.signal()
    code = node.end()

    assert (code, node.statuses()["work"]) == (3, "timeout")
    assert node.did() == ["announce", "give back", "leave", "close"]
    assert node.report()["seconds"] < 1.5


@pytest.mark.parametrize("kind", ["swallow", "thread", "slow"])
def test_a_step_that_hangs_leaves_the_needed_ones_their_reserve(program: Any, kind: str) -> None:
    node = program(kind, cap=9)

    node.signal()
    code = node.end(limit=1.5)

    assert (code, node.report()["result"]) == (70, "forced")
    assert node.statuses()["work"] == "timeout"
    assert node.did()[:3] == NEEDED
    assert "stopping.py" in str(node.report()["steps"])  # it tells where it hung


@pytest.mark.parametrize("settings", [{}, {"before": "blocks"}])
def test_a_blocked_event_loop_is_ended_by_a_thread_that_says_so(
    program: Any, settings: dict[str, str]
) -> None:
    """When it stops, and already before the signal."""
    node = program("blocks", **settings)

    node.signal()
    code = node.end()

    assert (code, node.report()["forced"]) == (70, True)
    assert node.report()["is_complete"] is False
    assert "in blocks" in node.errors  # the stacks
    if not settings:
        assert node.statuses() == {"announce": "ok", "step down": "error", "work": "running"}


@pytest.mark.parametrize("settings", [{}, {"before": "regex"}])
def test_a_held_interpreter_lock_is_ended_with_all_stacks(
    program: Any, settings: dict[str, str]
) -> None:
    node = program("regex", **settings)

    node.signal()
    code = node.end()

    assert code == 1
    assert "Timeout" in node.errors
    assert "in regex" in node.errors


def test_a_second_signal_leaves_little_time(program: Any) -> None:
    node = program("slow", total=20, hard=22, fast=1)

    node.signal()
    time.sleep(0.3)
    node.signal(signal.SIGINT)
    code = node.end(limit=1.5)

    assert (code, node.report()["signals"]) == (70, 2)
    assert node.did() == [*NEEDED, "close"]


def test_a_second_signal_changes_nothing_where_all_goes_well(program: Any) -> None:
    node = program("nap", total=20, hard=22, fast=10)

    node.signal()
    time.sleep(0.3)
    node.signal()

    assert node.end(limit=4) == 3
    assert (node.report()["signals"], node.report()["forced"]) == (2, False)


def test_a_third_signal_ends_at_once(program: Any) -> None:
    node = program("slow", total=20, hard=22, fast=10)

    for _ in range(3):
        node.signal()
        time.sleep(0.4)

    assert node.end(limit=1.5) == 130
    assert "third signal" in node.errors


def test_a_second_signal_ends_a_blocked_loop_soon(program: Any) -> None:
    node = program("blocks", total=20, hard=22, fast=0.2)

    node.signal()
    time.sleep(0.4)
    node.signal()

    assert node.end(limit=3) == 70


def test_one_wish_delivered_twice_counts_once(program: Any) -> None:
    """A parent that forwards Ctrl-C, which the terminal has sent to the whole group."""
    node = program("slow", cap=0.5)

    node.signal(signal.SIGINT)
    node.signal(signal.SIGTERM)
    node.signal(signal.SIGINT)
    code = node.end()

    assert (code, node.report()["signals"]) == (3, 1)


def test_a_signal_before_there_is_an_event_loop_is_not_lost(program: Any) -> None:
    node = program("clean", **{"import": 0.5})

    node.signal()
    code = node.end()

    assert (code, node.report()["reason"]) == (0, "SIGTERM")
    assert node.did() == []  # nothing was started


def test_a_start_that_hangs_is_broken_off_and_what_it_started_is_stopped(program: Any) -> None:
    node = program("start")

    node.signal()
    code = node.end(limit=1.5)

    assert code == 70
    assert node.statuses()["break off the start"] == "timeout"
    assert node.did() == ["give back", "leave", "close"]


def test_threads_and_exit_functions_do_not_keep_the_process(program: Any) -> None:
    for kind in ("leaves_a_thread", "leaves_an_exit_function"):
        node = program(kind)
        node.signal()
        assert node.end() == 3
    assert "exit function ran" in node.lines


def test_a_pipe_that_nobody_reads_does_not_keep_the_process(program: Any) -> None:
    node = program("fills_stdout")

    node.signal()
    code = node.process.wait(timeout=HARD + SLACK)

    assert code == 70


def test_a_forked_child_of_user_code_ends_at_its_own_signal(program: Any) -> None:
    node = program("forks")

    node.signal()
    node.end()

    assert "child -15" in node.lines
