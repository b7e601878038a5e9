"""The embedded server: shared by processes, stopped with the last, back after every crash."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psycopg
import pytest

from strandline.errors import ServerNotStarted
from strandline.postgres.embedded import Embedded, default_folder, find_binaries
from strandline.postgres.server_folder import SERVER_LOCK, STATE, SUPERVISOR_LOCK, take

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

USER = """
import sys
from strandline.postgres.embedded import Embedded
embedded = Embedded(sys.argv[1], durable=False)
print(embedded.start().url, flush=True)
sys.stdin.read()
embedded.stop()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that `nobody` can reach too; pytest's own are closed to others."""
    base = Path(tempfile.mkdtemp(prefix="strandline-", dir="/tmp"))
    base.chmod(0o755)
    yield base / "server"
    if (base / "server").exists():
        eventually(lambda: is_free(base / "server", SUPERVISOR_LOCK))
    shutil.rmtree(base)


@pytest.fixture
def users(folder: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts other processes that use the server until their standard input ends."""
    with contextlib.ExitStack() as stack:

        def start() -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-c", USER, str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


def url_of(user: subprocess.Popen[str]) -> str:
    assert user.stdout is not None
    return user.stdout.readline().strip()


def eventually(condition: Callable[[], bool], *, timeout: float = 15.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


def is_free(folder: Path, lock: str) -> bool:
    descriptor = take(folder / lock, shared=True)
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is not None


def server_has_stopped(folder: Path) -> bool:
    return is_free(folder, SERVER_LOCK) and not (folder / "data/postmaster.pid").exists()


def supervisor_of(folder: Path) -> int:
    pid = json.loads((folder / STATE).read_text())["supervisor"]
    assert isinstance(pid, int)
    return pid


def postmaster_of(folder: Path) -> int:
    return int((folder / "data/postmaster.pid").read_text().split("\n", 1)[0])


def postmasters_on(folder: Path) -> list[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if words[0].endswith(b"/postgres") and os.fsencode(folder / "data") in words:
                facts = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                parents[int(entry.name)] = int(facts[1])
    # A child that was forked a moment ago still has its postmaster's command line.
    return [pid for pid, parent in parents.items() if parent not in parents]


def ask(url: str, query: str = "select 1") -> object:
    with psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def answers(url: str) -> bool:
    try:
        return ask(url) == 1
    except psycopg.OperationalError:
        return False


def test_the_server_keeps_url_and_data_from_one_start_to_the_next(folder: Path) -> None:
    with Embedded(folder, durable=False) as server:
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("create table kept as select 42 as n")
        assert ask(server.url, "show max_connections") == "200"
        assert ask(server.url, "show max_prepared_transactions") == "16"
        assert ask(server.url, "show server_encoding") == "UTF8"
        assert server.version in str(ask(server.url, "select version()"))
    assert server_has_stopped(folder)

    with Embedded(folder) as again:  # durable this time
        assert again.url == server.url
        assert ask(again.url, "select n from kept") == 42
        assert ask(again.url, "show fsync") == "on"


def test_the_unix_socket_reaches_the_same_server(folder: Path) -> None:
    with Embedded(folder, durable=False) as server:
        assert server.socket is not None
        over_socket = psycopg.conninfo.make_conninfo(server.url, host=str(server.socket))
        assert ask(over_socket, "select inet_server_addr() is null")


def test_a_long_path_gets_a_socket_elsewhere(folder: Path) -> None:
    deep = folder / ("long" * 20) / ("name" * 20)
    embedded = Embedded(deep, durable=False)

    server = embedded.start()

    assert server.socket is not None
    assert server.socket.parent == Path("/tmp")
    assert ask(psycopg.conninfo.make_conninfo(server.url, host=str(server.socket))) == 1
    embedded.stop()
    shutil.rmtree(server.socket)


def test_start_may_be_called_again_and_options_reach_the_server(folder: Path) -> None:
    embedded = Embedded(folder, durable=False, options={"max_connections": "20"})

    assert embedded.start() == embedded.start()

    assert ask(embedded.start().url, "show max_connections") == "20"
    embedded.stop()
    embedded.stop()
    assert server_has_stopped(folder)


def test_who_needs_durability_does_not_join_a_server_without(folder: Path) -> None:
    with Embedded(folder, durable=False):
        with pytest.raises(ServerNotStarted, match="durable=False"):
            Embedded(folder).start()


def test_two_processes_share_one_server_and_the_last_stops_it(
    folder: Path, users: Callable[[], subprocess.Popen[str]]
) -> None:
    first, second = users(), users()
    url = url_of(first)
    assert url_of(second) == url
    assert len(postmasters_on(folder)) == 1

    first.communicate()
    assert ask(url) == 1

    second.communicate()
    assert server_has_stopped(folder)


def test_a_killed_user_counts_as_gone(
    folder: Path, users: Callable[[], subprocess.Popen[str]]
) -> None:
    first, second = users(), users()
    url = url_of(first)
    url_of(second)

    first.kill()
    assert answers(url)

    second.kill()
    eventually(lambda: server_has_stopped(folder))


def test_a_forked_child_does_not_keep_the_server(folder: Path) -> None:
    embedded = Embedded(folder, durable=False)
    embedded.start()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)  # until the parent's end is closed
        os._exit(0)

    embedded.stop()

    assert server_has_stopped(folder)
    os.close(writer)
    os.close(reader)
    os.waitpid(child, 0)


def test_a_killed_postmaster_is_replaced_at_the_same_url(folder: Path) -> None:
    with Embedded(folder, durable=False) as server, psycopg.connect(server.url) as held:
        killed = postmaster_of(folder)
        os.kill(killed, signal.SIGKILL)

        eventually(lambda: answers(server.url))

        assert postmaster_of(folder) != killed
        assert len(postmasters_on(folder)) == 1
        with pytest.raises(psycopg.OperationalError):
            held.execute("select 1")


def test_busy_children_of_a_killed_postmaster_are_ended(folder: Path) -> None:
    """A backend that computes does not notice that its postmaster is gone."""
    computing = "select count(*) from pg_stat_activity where query like 'select sum%'"
    with Embedded(folder, durable=False) as server:
        busy = psycopg.connect(server.url)
        busy.pgconn.send_query(b"select sum(n) from generate_series(1, 1000000000) n")
        eventually(lambda: ask(server.url, computing) == 1)

        os.kill(postmaster_of(folder), signal.SIGKILL)

        eventually(lambda: answers(server.url))
        assert len(postmasters_on(folder)) == 1
        busy.close()


def test_after_the_supervisor_is_killed_the_next_user_gets_one_server(folder: Path) -> None:
    first, second = Embedded(folder, durable=False), Embedded(folder, durable=False)
    server = first.start()
    os.kill(supervisor_of(folder), signal.SIGKILL)
    eventually(lambda: is_free(folder, SUPERVISOR_LOCK))
    assert ask(server.url) == 1

    assert second.start().url == server.url

    assert ask(server.url) == 1
    assert len(postmasters_on(folder)) == 1
    first.stop()
    assert ask(server.url) == 1
    second.stop()
    assert server_has_stopped(folder)


def test_the_last_user_ends_a_server_whose_supervisor_was_killed(folder: Path) -> None:
    embedded = Embedded(folder, durable=False)
    embedded.start()
    os.kill(supervisor_of(folder), signal.SIGKILL)
    eventually(lambda: is_free(folder, SUPERVISOR_LOCK))

    embedded.stop()

    eventually(lambda: server_has_stopped(folder))


def test_everything_killed_at_once_starts_again(
    folder: Path, users: Callable[[], subprocess.Popen[str]]
) -> None:
    user = users()
    url = url_of(user)
    for pid in (supervisor_of(folder), postmaster_of(folder), user.pid):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: is_free(folder, SUPERVISOR_LOCK))

    with Embedded(folder, durable=False) as server:
        assert server.url == url
        assert ask(url) == 1
        assert len(postmasters_on(folder)) == 1


def test_a_process_id_that_is_somebody_elses_now_is_no_obstacle(folder: Path) -> None:
    """As after a restart of the machine: the file names a process that is not PostgreSQL."""
    embedded = Embedded(folder, durable=False)
    embedded.start()
    path = folder / "data/postmaster.pid"
    lines = path.read_text().splitlines()
    embedded.stop()
    with subprocess.Popen(["sleep", "60"]) as stranger:
        path.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")

        embedded.start()

        assert stranger.poll() is None
        stranger.kill()
    embedded.stop()


def test_four_first_users_at_once_get_one_server(
    folder: Path, users: Callable[[], subprocess.Popen[str]]
) -> None:
    urls = {url_of(user) for user in [users() for _ in range(4)]}

    assert len(urls) == 1
    assert len(postmasters_on(folder)) == 1
    assert ask(urls.pop()) == 1


def test_users_who_come_and_go_at_once_always_get_a_server(
    folder: Path, users: Callable[[], subprocess.Popen[str]]
) -> None:
    """Each arrives about when the one before leaves, so often while the server is stopping."""
    user = users()
    url = url_of(user)
    for _ in range(8):
        before, user = user, users()
        assert before.stdin is not None
        before.stdin.close()
        assert url_of(user) == url
        assert ask(url) == 1
        assert len(postmasters_on(folder)) == 1


def test_a_port_that_is_taken_is_left_to_its_owner(folder: Path) -> None:
    with Embedded(folder, durable=False) as server:
        port = urlsplit(server.url).port
    assert port is not None
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()

        with Embedded(folder, durable=False) as moved:
            assert urlsplit(moved.url).port != port
            assert ask(moved.url) == 1


def test_a_wrong_password_is_refused_on_both_ways_in(folder: Path) -> None:
    with Embedded(folder, durable=False) as server:
        parts = urlsplit(server.url)
        assert parts.password is not None
        wrong = server.url.replace(parts.password, "guess")

        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            ask(wrong)
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            ask(psycopg.conninfo.make_conninfo(wrong, host=str(server.socket)))
        assert (folder / "password").stat().st_mode & 0o077 == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as somebody else")
def test_a_folder_that_nobody_cannot_reach_is_named(folder: Path) -> None:
    folder.mkdir(mode=0o700)

    with pytest.raises(ServerNotStarted, match=rf"{folder} \(mode 0700\).*STRANDLINE_EMBEDDED_DIR"):
        Embedded(folder / "inner").start()

    assert folder.stat().st_mode & 0o7777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as somebody else")
def test_programs_that_nobody_cannot_reach_are_copied(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install = find_binaries().parent
    if not (install / "share").is_dir():
        pytest.skip("this PostgreSQL is installed in a way that cannot be copied")
    closed = folder.parent / "closed"
    closed.mkdir(mode=0o700)
    package = closed / install.parent.name
    shutil.copytree(install, package / install.name, symlinks=True)
    shutil.copytree(f"{install.parent}.libs", f"{package}.libs", symlinks=True)
    monkeypatch.setenv("STRANDLINE_POSTGRES_BIN", str(package / install.name / "bin"))

    with Embedded(folder, durable=False) as server:
        assert ask(server.url) == 1

    assert closed.stat().st_mode & 0o7777 == 0o700


def test_missing_programs_are_reported_with_the_cure(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STRANDLINE_POSTGRES_BIN", raising=False)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr("strandline.postgres.server_binaries.PACKAGE", "no_such_package")
    monkeypatch.setattr("strandline.postgres.server_binaries.SYSTEM_BINARIES", ())

    with pytest.raises(ServerNotStarted, match=r"strandline\[embedded\].*STRANDLINE_DATABASE_URL"):
        Embedded(folder).start()


def test_a_data_directory_of_another_version_is_reported(folder: Path) -> None:
    with Embedded(folder, durable=False) as server:
        version = server.version
    (folder / "data/PG_VERSION").write_text("13\n")

    with pytest.raises(ServerNotStarted, match=rf"PostgreSQL 13, but .* is {version}"):
        Embedded(folder, durable=False).start()


def test_an_error_while_starting_shows_the_end_of_the_log(folder: Path) -> None:
    with pytest.raises(ServerNotStarted, match="no_such_setting"):
        Embedded(folder, durable=False, options={"no_such_setting": "1"}).start()

    with Embedded(folder, durable=False) as server:  # and it is no obstacle to the next
        assert ask(server.url) == 1


def test_the_default_folder_is_this_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRANDLINE_EMBEDDED_DIR", "/srv/embedded")
    assert default_folder("../my bank") == Path("/srv/embedded/my-bank")

    monkeypatch.delenv("STRANDLINE_EMBEDDED_DIR")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_folder("bank") == Path("/var/lib/strandline/bank")

    monkeypatch.setattr(os, "geteuid", lambda: 54_321)
    assert default_folder("bank") == Path("/var/tmp/strandline-54321/bank")
