"""`strandline top`: as text, as JSON, and in a real terminal with keys, another size, an outage."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from commands import SHOP, execute, put_node, run, until
from pictured import MARK, SERVER, WELL, shard

from strandline.cli import keys
from strandline.cli.top_view import SORTS, WORST_FIRST, Rates, View, ordered, shares
from strandline.survey.facts import SHARD_STATES
from strandline.testing.database import fresh_database
from strandline.testing.faults import Proxy

APPEND = "SELECT position FROM strandline.append($1, $2)"
BODY = '[{"type": "t", "data": {}}]'
ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|\([A-Z])")


FILL = """
    INSERT INTO strandline.slicings (label, parts, wanted) VALUES ('orders:v2', :parts, :parts);
    INSERT INTO strandline.work (name, needs)
    SELECT 'orders:v2:' || n || '/:parts', ARRAY['orders:v2'] FROM generate_series(1, :parts) n
    UNION ALL SELECT 'high-water', ARRAY['high-water'];
    INSERT INTO strandline.assignments (work, target, target_at, owner, owner_name, epoch, owned_at)
    SELECT name, ':a', now(), CASE WHEN name <> 'orders:v2:2/3' THEN ':a'::uuid END, 'alpha', 1, now()
      FROM strandline.work;
    UPDATE strandline.work SET paused_at = now() WHERE name = 'orders:v2:2/3';
    INSERT INTO strandline.shards (name, claimed_at, epoch, owner, position)
    SELECT 'orders:v2:' || n || '/:parts', now(), 1, ':a', n % 2 FROM generate_series(1, :parts) n;
    INSERT INTO strandline.shard_status (name, state, node, rate)
    SELECT 'orders:v2:' || n || '/:parts', 'running', 'alpha', n FROM generate_series(1, :parts) n;
    INSERT INTO strandline.queues (name, paused_at, paused_reason) VALUES ('mail', now(), 'x');
"""


async def fill(url: str, parts: int = 3) -> None:
    """A cluster of two nodes, one silent; shards, one of them held; a paused queue."""
    a = await put_node(url, "alpha", leads=True, labels=["orders:v2"])
    await put_node(url, "beta", expires=-5.0)
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(FILL.replace(":parts", str(parts)).replace(":a", str(a)))
        await connection.fetchval(APPEND, "s", BODY)
    finally:
        await connection.close()


@pytest.fixture(scope="module")
def url(server_url: str) -> Iterator[str]:
    """A database with all of it, which nobody changes."""
    with asyncio.Runner() as runner:
        context = fresh_database(server_url)
        found = runner.run(context.__aenter__())
        runner.run(fill(found))
        yield found
        runner.run(context.__aexit__(None, None, None))


# ---- once


def test_one_picture_has_all_parts(url: str) -> None:
    text, _ = run(url, "top", "--once", width=160)

    assert "alpha leads, epoch 1" in text
    assert "mark 0 (1 behind" in text
    assert "warn nodes: node beta has not beaten" in text
    assert "-> strandline nodes evict 2" in text
    assert "[1] 3 shards by lag" in text
    assert re.search(r"orders:v2:2/3 +held", text)
    assert re.search(r"1 alpha +active .* leads", text)
    assert re.search(r"mail +paused .* x", text)
    assert "q quit" not in text


def test_without_a_terminal_one_picture_is_written(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(SHOP)
    monkeypatch.syspath_prepend(str(SHOP))
    out, _ = run(url, "top", "cli_shop:app")

    assert "\x1b" not in out
    assert "notifier:all" in out  # of the App; no node has ever run it


def test_json_has_the_survey_and_what_it_says(url: str) -> None:
    found = json.loads(run(url, "top", "--json")[0])

    assert found["mode"] == "cluster"
    assert found["survey"]["leader"]["name"] == "alpha"
    assert {one["state"] for one in found["survey"]["shards"]} == {"running", "held"}
    assert any(one["cure"] == "strandline nodes evict 2" for one in found["findings"])


def test_a_narrow_window_and_an_empty_database_are_drawn(database_url: str) -> None:
    assert "no projection, no node and no queue" in run(database_url, "top", "--once")[0]
    asyncio.run(fill(database_url))
    text, _ = run(database_url, "top", "--once", width=40)
    assert max(len(line) for line in text.splitlines()) <= 40
    assert "alpha leads" in text
    assert re.search(r"^orders:v2:2/3 +held +1", text, re.MULTILINE)  # other columns give way


def test_a_database_that_cannot_be_reached_at_first_is_exit_code_3() -> None:
    _, err = run("postgresql://postgres@127.0.0.1:1/nowhere", "top", "--once", code=3)

    assert err.startswith("error: ")


# ---- in a terminal


class Terminal:
    """A pseudo-terminal with `strandline top` in it."""

    def __init__(
        self, url: str, *words: str, rows: int = 30, columns: int = 120, term: str = "xterm"
    ) -> None:
        self.master, self._slave = pty.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(self._slave)
        self._text = ""
        environment = {**os.environ, "TERM": term, "STRANDLINE_DATABASE_URL": url}
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            environment.pop(name, None)
        environment |= {"STRANDLINE_ACQUIRE_TIMEOUT": "0.5", "STRANDLINE_CONNECT_TIMEOUT": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "strandline", "top", "--interval", "0.2", *words],
            cwd=SHOP,
            env=environment,
            stdin=self._slave,
            stdout=self._slave,
            stderr=subprocess.PIPE,
            process_group=0,  # as a shell would start it; else it could not be stopped
        )

    def resize(self, rows: int, columns: int) -> None:
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, size)

    def press(self, key: str) -> None:
        self._text = ""
        os.write(self.master, key.encode())

    def shows(self, *words: str, timeout: float = 30.0) -> str:
        """Wait until all of *words* were drawn since the last key."""
        deadline = time.monotonic() + timeout
        while not all(word in self._text for word in words):
            left = deadline - time.monotonic()
            assert left > 0, f"{words} not in {self._text[-3000:]}"
            assert self.process.poll() is None, self.process.communicate()[1]
            self._read(min(left, 0.2))
        return self._text

    def forget(self) -> None:
        """Begin with what is drawn from now on."""
        while self._read(0.0):
            pass
        self._text = ""

    def end(self, timeout: float = 30.0) -> tuple[int, str]:
        """Wait for the end; exit code and all that was written since the last key."""
        deadline = time.monotonic() + timeout
        while self.process.poll() is None and time.monotonic() < deadline:
            self._read(0.1)
        self._read(0.1)
        return self.process.wait(timeout=1), self._text

    def is_as_before(self) -> bool:
        return termios.tcgetattr(self._slave) == self.before

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        os.close(self.master)
        os.close(self._slave)

    def _read(self, seconds: float) -> bool:
        if not select.select([self.master], [], [], seconds)[0]:
            return False
        raw = os.read(self.master, 65_536).decode(errors="replace")
        self._text += ESCAPES.sub(lambda found: found[0] if "1049" in found[0] else "", raw)
        return True


@pytest.fixture
def terminal(url: str) -> Iterator[Terminal]:
    found = Terminal(url)
    yield found
    found.close()


def test_keys_choose_what_is_shown(terminal: Terminal) -> None:
    terminal.shows("alpha leads", "[1] 3 shards by lag", "[2] 2 nodes", "[3] 1 queues", "q quit")
    terminal.press("s")
    terminal.shows("3 shards by state", "sort: state")
    terminal.press("2")
    assert "[1]" not in terminal.shows("[2] 2 nodes", "q quit").rpartition("alpha leads")[2]
    terminal.press("4")
    terminal.shows("to look at", "cure: strandline nodes evict 2", "was killed, is frozen")
    terminal.press("4")
    terminal.shows("[1] 3 shards by state", "[3]")
    terminal.press("p")
    terminal.shows("paused (p goes on)")
    terminal.press("x\x1b[99~")  # nothing
    terminal.press("p")
    terminal.shows("alpha leads", "q quit")
    terminal.press("q")
    is_left_clean(terminal)


def test_what_happens_is_seen_and_a_pause_stops_that(database_url: str) -> None:
    asyncio.run(fill(database_url))
    terminal = Terminal(database_url)
    try:
        _what_happens(database_url, terminal)
    finally:
        terminal.close()


def _what_happens(url: str, terminal: Terminal) -> None:
    terminal.shows("mark 0 (1 behind")
    twenty = (
        "SELECT count(*) FROM generate_series(1, 20) n, LATERAL strandline.append('s' || n, $1)"
    )
    asyncio.run(execute(url, twenty, BODY))
    terminal.shows("mark 0 (21 behind", "events/s")
    terminal.press("p")
    terminal.shows("paused")
    asyncio.run(execute(url, APPEND, "s", BODY))
    terminal.forget()
    terminal.press("s")
    assert "22 behind" not in terminal.shows("by state")
    terminal.press("p")
    terminal.shows("22 behind")

    terminal.process.send_signal(signal.SIGTERM)
    is_left_clean(terminal)


def is_left_clean(terminal: Terminal) -> None:
    """It ends, and the terminal is as it was."""
    code, text = terminal.end()

    assert code == 0
    assert "\x1b[?1049l" in text
    assert terminal.is_as_before()


def test_who_stops_it_for_a_while_has_a_clean_terminal(terminal: Terminal) -> None:
    terminal.shows("alpha leads", "q quit")
    terminal.press("\x1b[99~")  # nothing
    terminal.process.send_signal(signal.SIGTSTP)

    terminal.shows("\x1b[?1049l")
    until(lambda: _state(terminal.process.pid) == "T")
    assert terminal.is_as_before()

    terminal.forget()
    terminal.process.send_signal(signal.SIGCONT)
    terminal.shows("\x1b[?1049h", "alpha leads", "q quit")
    terminal.press("2")
    terminal.shows("[2] 2 nodes")
    terminal.process.send_signal(signal.SIGTSTP)
    until(lambda: _state(terminal.process.pid) == "T")
    terminal.process.send_signal(signal.SIGCONT)
    terminal.process.send_signal(signal.SIGINT)
    is_left_clean(terminal)


def _state(process: int) -> str:
    """A letter: what the system says of a process."""
    command = ["ps", "-o", "state=", "-p", str(process)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout[:1]


def test_a_terminal_that_cannot_be_drawn_on_gets_one_picture(url: str) -> None:
    terminal = Terminal(url, term="dumb")
    try:
        code, text = terminal.end()
    finally:
        terminal.close()

    assert code == 0
    assert "alpha leads" in text
    assert "\x1b" not in text


def test_a_window_of_another_size_is_drawn_anew_and_long_lists_scroll(database_url: str) -> None:
    asyncio.run(fill(database_url, 60))
    terminal = Terminal(database_url, "--sort", "name", rows=40, columns=100)
    try:
        terminal.shows("[1] 60 shards by name, 1 to", "[2] 2 nodes", "q quit")
        terminal.resize(12, 60)
        terminal.forget()
        terminal.process.send_signal(signal.SIGWINCH)
        terminal.shows("[1] 60 shards by name, 1 to", "q quit")
        terminal.press("1")
        terminal.shows("60 shards by name, 1 to 6")
        terminal.press("\x1b[6~")
        terminal.shows("60 shards by name, 11 to 16", "orders:v2:11/60")
        for _ in range(6):
            terminal.press(" ")
        terminal.shows("60 shards by name, 55 to 60", "orders:v2:60/60")
    finally:
        terminal.close()


async def test_an_outage_is_told_and_waited_out(database_url: str) -> None:
    await fill(database_url)
    async with Proxy(database_url) as proxy:
        terminal = Terminal(proxy.url)

        async def seen(*words: str) -> str:
            return await asyncio.to_thread(terminal.shows, *words)

        try:
            await seen("alpha leads")
            for begin in (proxy.refuse, proxy.black_hole):
                begin()
                terminal.forget()
                # The last picture stays, and keys are heard meanwhile.
                assert "alpha leads" in await seen("no answer: for", "q quit")
                terminal.press("2")
                await seen("[2] 2 nodes")
                terminal.press("2")
                proxy.forward()
                await asyncio.to_thread(_answers, terminal)
            terminal.press("q")
            assert (await asyncio.to_thread(terminal.end))[0] == 0
        finally:
            terminal.close()


def _answers(terminal: Terminal) -> None:
    """Wait for a whole picture without the word of an outage."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        terminal.forget()
        if "no answer" not in terminal.shows("alpha leads", "q quit"):
            return
    raise AssertionError("it did not answer again")


# ---- its parts


def test_keys_are_read_from_bytes() -> None:
    assert keys.read(b"q\x1b[Ap\x1bOB\x1b[5~1\x1b[1;5Cx\x1b") == [
        *("q", "up", "p", "down", "page up", "1", "x")
    ]


def test_a_key_changes_the_view() -> None:
    view = View()

    assert view.pressed("q").is_over
    assert view.pressed("p").pressed("p") == view
    assert view.pressed("3").pane == "queues"
    assert view.pressed("3").pressed("3") == view.pressed("3").pressed("0") == view
    assert view.pressed("down").pressed("up").pressed("up").first == 0
    assert view.pressed("z") == view
    turned = view
    for _ in SORTS:
        turned = turned.pressed("s")
    assert turned == view


def test_lines_are_shared_so_that_small_parts_keep_all() -> None:
    assert shares(10, [100, 2, 3]) == [5, 2, 3]
    assert shares(100, [5, 2, 3]) == [5, 2, 3]
    assert sum(shares(4, [9, 9, 9])) == 4
    assert shares(-3, [5, 1]) == [0, 0]
    assert shares(3, []) == []


def test_every_state_of_a_shard_has_its_place() -> None:
    assert set(WORST_FIRST) == set(SHARD_STATES)


def test_shards_are_ordered_by_what_is_asked() -> None:
    some = [
        shard("a:all", rate=5.0),
        shard("b:all", "paused", lag_events=3),
        shard("c:all", rate=9.0, lag_events=8),
    ]

    def names(sort: str) -> str:
        return "".join(one.name[0] for one in ordered(some, sort))

    assert [names(sort) for sort in ("lag", "state", "rate", "name")] == [
        "cba",
        "bca",
        "cab",
        "abc",
    ]


def test_rates_are_taken_over_the_last_seconds() -> None:
    def at(seconds: float, events: int, jobs: int) -> Any:
        return replace(
            WELL,
            taken_at=WELL.taken_at + timedelta(seconds=seconds),
            mark=replace(MARK, highest=events),
            server=replace(SERVER, jobs_ended=jobs),
        )

    rates = Rates()
    rates.add(at(0, 100, 10))
    assert (rates.events, rates.jobs) == (None, None)
    rates.add(at(2, 300, 10))
    assert (rates.events, rates.jobs) == (100.0, 0.0)
    for second in range(3, 31):
        rates.add(at(second, 300, 10 + second))
    assert rates.events == 0.0
    assert 0.9 < (rates.jobs or 0.0) < 1.1
    rates.add(at(31, 5, 0))  # a restored database
    assert rates.events is None
