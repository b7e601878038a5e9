"""Probes of a real node process: while it starts, hangs, is frozen, stops; and `strandline health`."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from probing import Answered, probed
from tally import connected

HERE = Path(__file__).parent
PATIENCE = 40.0
FAST = {
    "OPS_PORT": "0",
    "STOP_TIMEOUT": "5",
    "STOP_HARD": "8",
    "PULSE_INTERVAL": "0.2",
    "NODE_TTL": "2",
    "LEADER_TTL": "1.8",
    "LEADER_MARGIN": "0.2",
    "PULSE_DEADLINE": "1",
    "POLL_INTERVAL": "0.1",
    "LIVE_LOOP_LAG": "1",
    "STALL_AFTER": "1",
    "STALL_RESIGN_AFTER": "0.8",
}


class NodeProcess:
    """`strandline node node_shop:app` in a process of its own, and its ops port."""

    def __init__(self, url: str, *words: str, shop: str = "", **settings: str) -> None:
        chosen = {f"STRANDLINE_{name}": value for name, value in {**FAST, **settings}.items()}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "strandline", "node", "node_shop:app", *words],
            cwd=HERE,
            env={**os.environ, **chosen, "STRANDLINE_DATABASE_URL": url, "SHOP": shop},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)

    @property
    def ops(self) -> str:
        """The URL of its ops port, as its log tells it."""
        found = until(lambda: re.search(r"metrics are at (\S+)", "".join(self.lines)))
        return str(found[1])

    def probe(self, path: str) -> Answered:
        return probed(self.ops, path)

    def turns(self, path: str, status: int) -> Answered:
        """Wait until *path* is answered with *status*; that answer."""
        found: list[Answered] = []

        def is_so() -> bool:
            found.append(self.probe(path))
            return found[-1].status == status

        until(is_so, lambda: "".join([*self.lines, *map(str, found[-1:])]))
        return found[-1]


@pytest.fixture
def node() -> Iterator[Callable[..., NodeProcess]]:
    made: list[NodeProcess] = []

    def start(url: str, *words: str, shop: str = "", **settings: str) -> NodeProcess:
        made.append(NodeProcess(url, *words, shop=shop, **settings))
        return made[-1]

    yield start
    for one in made:
        one.process.send_signal(signal.SIGCONT)
        one.process.kill()
        one.process.wait()


def until(what: Callable[[], Any], words: Callable[[], str] = lambda: "") -> Any:
    end = time.monotonic() + PATIENCE
    while not (found := what()):
        assert time.monotonic() < end, words()
        time.sleep(0.03)
    return found


async def append(url: str) -> None:
    async with connected(url) as operator:
        await operator.fetchval(
            'SELECT position FROM strandline.append(\'s-1\', \'[{"type": "ticked", "data": {}}]\')'
        )


async def test_a_node_that_starts_and_cannot_reach_its_database_is_live(
    node: Any, database_url: str
) -> None:
    silent = socket.create_server(("127.0.0.1", 0))  # it takes connections, and never answers
    with silent:
        one = node(
            f"postgresql://nobody@127.0.0.1:{silent.getsockname()[1]}/none", CONNECT_TIMEOUT="20"
        )
        until(lambda: one.probe("/livez").status == 200)

        found = one.probe("/readyz")

    assert found.status == 503
    assert "the database has not been reached yet" in found.text


async def test_a_node_whose_loop_hangs_is_neither_live_nor_ready_and_says_where(
    node: Any, database_url: str
) -> None:
    one = node(database_url, shop="batch=sleep")
    one.turns("/readyz", 200)

    await append(database_url)

    live = one.turns("/livez", 503)
    assert "misbehave" in live.text
    assert "node_shop.py" in live.text
    assert one.probe("/readyz").status == 503
    assert one.probe("/metrics").status == 200  # the page that tells of it is there


def test_a_frozen_node_answers_nothing_and_is_live_at_once_when_it_goes_on(
    node: Any, database_url: str
) -> None:
    one = node(database_url)
    one.turns("/readyz", 200)
    one.process.send_signal(signal.SIGSTOP)
    frozen = probed(one.ops, "/livez", timeout=1.6)  # longer than live_loop_lag

    one.process.send_signal(signal.SIGCONT)
    answers = [one.probe("/livez") for _ in range(3)]

    assert frozen.status == 0
    assert [one.status for one in answers] == [200] * 3, answers
    one.turns("/readyz", 200)


def test_health_asks_over_the_port_and_tells_by_its_exit_code_until_the_node_has_gone(
    node: Any, database_url: str
) -> None:
    one = node(
        database_url, "--name", "shop-1", "--ops-port", "0", shop="hooks=hang", OPS_PORT="-1"
    )
    one.turns("/readyz", 200)
    assert [one.probe(path).status for path in ("/livez", "/healthz", "/metrics")] == [200] * 3

    own = health(
        "--ready",
        STRANDLINE_OPS_PORT=one.ops.rpartition(":")[2],
        STRANDLINE_OPS_HOST="0.0.0.0",  # noqa: S104 - where it would listen
        http_proxy="http://127.0.0.1:1",
    )
    assert (own.returncode, own.stdout.splitlines()[0]) == (0, "shop-1: ready")

    one.process.send_signal(signal.SIGTERM)
    ready = one.turns("/readyz", 503)
    live = one.probe("/livez")
    stopping = health(one.ops, "--ready", "--json")
    one.process.wait(PATIENCE)
    gone = health(one.ops.removeprefix("http://"), "--live")

    assert "stopping (SIGTERM)" in ready.text
    assert live.status == 200
    assert (stopping.returncode, json.loads(stopping.stdout)["ready"]) == (1, False)
    assert (gone.returncode, "no answer" in gone.stderr) == (1, True)


def health(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "strandline", "health", *words],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
