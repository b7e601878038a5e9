"""The public means of harm: servers that crash and fail over, lines that are slow or swallow, nodes."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from tally import connected, holds

from strandline.errors import ServerNotStarted
from strandline.testing.faults import Proxy
from strandline.testing.guard import Guard
from strandline.testing.nodes import NodeProcess
from strandline.testing.servers import Server

ROOT = Path(__file__).resolve().parents[2]
FAST = {"pulse_interval": 0.2, "node_ttl": 1.5, "leader_ttl": 1.2, "leader_margin": 0.2}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that PostgreSQL's account can get to."""
    base = Path(tempfile.mkdtemp(prefix="strandline-", dir="/tmp"))
    base.chmod(0o755)
    yield base
    shutil.rmtree(base, ignore_errors=True)


async def value(url: str, sql: str) -> Any:
    """The first value of the answer to *sql*."""
    async with connected(url) as connection:
        return await connection.fetchval(sql)


@pytest.mark.parametrize("how", ["fast", "immediate", "kill"])
async def test_a_server_comes_back_with_everything_it_acknowledged(how: Any, folder: Path) -> None:
    with Server(folder / "server") as server:
        url = server.url
        await value(url, "CREATE TABLE kept AS SELECT 1 AS n")

        server.restart(how)

        assert server.url == url
        assert await value(url, "SELECT n FROM kept") == 1
    assert not server.is_running


async def test_a_standby_takes_over_with_everything_it_confirmed(folder: Path) -> None:
    with Server(folder / "old") as old:
        await value(old.url, "CREATE TABLE kept (n int)")
        with old.standby(folder / "new") as new:
            old.configure(synchronous_standby_names="*")
            await holds(
                lambda: value(old.url, "SELECT sync_state = 'sync' FROM pg_stat_replication")
            )
            await value(old.url, "INSERT INTO kept VALUES (1)")
            with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                await value(new.url, "INSERT INTO kept VALUES (2)")

            old.stop("immediate")
            new.promote()

            assert await value(new.url, "INSERT INTO kept SELECT n + 1 FROM kept RETURNING n") == 2


def test_a_server_that_cannot_start_says_why(folder: Path) -> None:
    server = Server(folder / "server", options={"shared_buffers": "nonsense"})

    with pytest.raises(ServerNotStarted, match="nonsense"):
        server.start()


async def test_a_delayed_line_keeps_its_order(database_url: str) -> None:
    async with Proxy(database_url) as proxy, connected(proxy.url) as connection:
        proxy.delay(0.15)
        began = time.monotonic()
        assert await connection.fetchval("SELECT count(*) FROM generate_series(1, 20000)") == 20000
        rows = await connection.fetch("SELECT n, repeat('x', 100) FROM generate_series(1, 3000) n")
        assert time.monotonic() - began >= 0.6, "two requests and two answers, each late"
        proxy.forward()

        assert [row["n"] for row in rows] == [*range(1, 3001)]
        assert await connection.fetchval("SELECT 1") == 1


async def test_a_one_way_hold_lets_the_server_do_what_nobody_hears_of(database_url: str) -> None:
    async with Proxy(database_url) as proxy, connected(database_url) as operator:
        connection = await asyncpg.connect(proxy.url)
        await operator.execute("CREATE TABLE done (n int)")
        proxy.hold("answers")
        with pytest.raises(TimeoutError):
            await connection.execute("INSERT INTO done VALUES (1)", timeout=0.2)

        assert await operator.fetchval("SELECT count(*) FROM done") == 1
        proxy.forward()


async def test_a_black_hole_acknowledges_everything_and_cuts_afterwards(database_url: str) -> None:
    async with Proxy(database_url) as proxy, connected(database_url) as operator:
        connection = await asyncpg.connect(proxy.url)
        await operator.execute("CREATE TABLE done (n int)")
        proxy.black_hole()
        with pytest.raises(TimeoutError):
            await connection.execute("INSERT INTO done VALUES (1)", timeout=0.2)
        with pytest.raises(TimeoutError):
            await asyncpg.connect(proxy.url, timeout=0.2)
        proxy.forward()

        await holds(connection.is_closed)
        assert await operator.fetchval("SELECT count(*) FROM done") == 0
        assert await value(proxy.url, "SELECT 1") == 1


async def test_a_proxy_leads_new_connections_to_another_server(
    database_url: str, folder: Path
) -> None:
    with Server(folder / "server") as server:
        async with Proxy(server.url) as proxy, connected(proxy.url) as before:
            assert await before.fetchval("SHOW port") == str(server.port)
            with Server(folder / "other") as other:
                shutil.copy(folder / "server/password", folder / "other/password")
                proxy.lead_to(other.url)
                with pytest.raises(asyncpg.InvalidPasswordError):  # another server indeed
                    await asyncpg.connect(proxy.url)
                assert await before.fetchval("SELECT 1") == 1, "what is open stays"


async def test_ports_of_a_proxy_are_those_the_server_sees(database_url: str) -> None:
    async with Proxy(database_url) as proxy, connected(proxy.url) as connection:
        port = await connection.fetchval(
            "SELECT client_port FROM pg_stat_activity WHERE pid = pg_backend_pid()"
        )

        assert proxy.ports == [port]


async def test_a_node_is_killed_frozen_woken_and_told_to_stop(
    database_url: str, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="not started"):
        _ = node(database_url, tmp_path, "a").pid
    async with node(database_url, tmp_path, "a") as first:
        row = await first.until("active", timeout=20)
        assert (row.name, row.pid) == ("a", first.pid)
        side = first.find_side_process()
        assert side is not None
        first.kill()
        assert await first.gone(timeout=5) == -9
        await first.until("dead", timeout=5)
        await holds(lambda: not Path(f"/proc/{side}").exists())
    async with node(database_url, tmp_path, "a") as second:
        before = await second.until("active", timeout=20)
        second.freeze(with_side_process=True)
        await holds(lambda: state_of(second.pid) == "T")
        second.thaw()
        await second.until("active", timeout=20)
        assert second.kill_side_process()
        told = (await second.rows())[-1].beats
        await holds(lambda: beats_beyond(second, told), timeout=20)
        assert before.number > row.number
        second.terminate()
        assert await second.gone(timeout=20) == 0
        await second.until("left", timeout=5)


async def test_a_node_that_cannot_start_is_told_with_its_last_words(
    database_url: str, tmp_path: Path
) -> None:
    async with NodeProcess(
        "no_such:app", database_url, name="a", log=tmp_path / "a.log"
    ) as process:
        with pytest.raises(TimeoutError, match="no module 'no_such'"):
            await process.until("active", timeout=30)


def test_a_guard_ends_what_it_guards_when_its_owner_is_gone() -> None:
    import subprocess
    import sys

    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    program = (
        "import sys, os; from strandline.testing.guard import Guard;"
        "guard = Guard(int(sys.argv[1])); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", program, str(sleeper.pid)], check=True)

    assert sleeper.wait(timeout=10) == -9


def test_a_dismissed_guard_harms_nobody() -> None:
    import subprocess
    import sys

    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5)"])
    Guard(sleeper.pid).dismiss()

    assert sleeper.wait(timeout=10) == 0


def node(url: str, folder: Path, name: str) -> NodeProcess:
    """A node with a small app of its own."""
    (folder / "small.py").write_text("import strandline as sl\napp = sl.App('small')\n")
    settings = {**FAST, "pulse": "process"}
    return NodeProcess("small:app", url, name=name, settings=settings, folder=folder)


async def beats_beyond(process: NodeProcess, told: int) -> bool:
    """Whether its last row has had more beats than that."""
    return (await process.rows())[-1].beats > told


def state_of(pid: int) -> str:
    """The state of a process: R, S, T ..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
