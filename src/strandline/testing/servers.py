"""A PostgreSQL server of a test's own: restarted, crashed, copied to a standby, promoted.

    with Server(folder) as server:
        async with App("shop", server.url): ...
        server.restart("immediate")

It is for tests that harm their server. `strandline.postgres.embedded` is for everybody else: its
server is shared, and comes back by itself.

Nothing is written through to disk (``fsync = off``), so it starts fast. Commits are still handed
to the operating system before they are acknowledged (``synchronous_commit = on``): they survive the
death of the server's processes, though not of the machine.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from strandline.errors import ServerNotStarted
from strandline.postgres.server_binaries import find_binaries, usable_binaries
from strandline.postgres.server_folder import (
    DATA,
    LOG,
    PASSWORD,
    ROLE,
    TICK,
    create_data,
    give_to_server,
    log_tail,
    port_is_free,
    prepare_folder,
    run_program,
    server_account,
    server_environment,
    write_file,
)
from strandline.testing.guard import Guard

Stop = Literal["fast", "immediate", "kill"]
"""How a server ends: it says goodbye, it drops everything, or it is killed in mid-sentence."""

SIGNALS = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT, "kill": signal.SIGKILL}
OPTIONS = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "on",
    "max_connections": "300",
    "shared_buffers": "64MB",
    "log_destination": "stderr",
    "logging_collector": "off",
}
FIRST_PORT, PORTS = 15_000, 17_000  # below the ephemeral ranges, as the embedded server's
READY = ("ready", "standby")  # as in postmaster.pid


class Server:
    """One server in *folder*, which is made if it is not there.

    Calls block; in a coroutine use ``asyncio.to_thread``. The server ends with this process.

    Args:
        folder: Where it lives. As root, PostgreSQL runs as `nobody`, who must be able to get there.
        options: Server settings, on top of `OPTIONS`.
    """

    def __init__(self, folder: Path, *, options: Mapping[str, str] | None = None) -> None:
        self.folder = folder.resolve()
        self.options = OPTIONS | dict(options or {})
        self.port = 0
        self._binaries: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: Guard | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.is_running:
            self.stop("immediate")

    @property
    def url(self) -> str:
        """DSN of its superuser, over TCP; the same after every start."""
        password = (self.folder / PASSWORD).read_text()
        return f"postgresql://{ROLE}:{password}@127.0.0.1:{self.port}/postgres"

    @property
    def binaries(self) -> Path:
        """Where PostgreSQL's programs are."""
        if self._binaries is None:
            self._binaries = usable_binaries(find_binaries(), self.folder)
        return self._binaries

    @property
    def is_running(self) -> bool:
        """Whether its first process is there."""
        return self._process is not None and self._process.poll() is None

    def start(self, *, timeout: float = 30.0) -> None:
        """Start it, unless it runs, and wait until it takes connections.

        Raises:
            ServerNotStarted: It did not within *timeout* seconds; the text has the end of its log.
        """
        if self.is_running:
            return
        prepare_folder(self.folder)
        if not (self.folder / DATA).exists():
            create_data(self.folder, self.binaries, durable=False)
        self.port = self.port or _free_port()
        with (self.folder / LOG).open("ab") as log:
            self._process = self._spawn(log.fileno())
        self._guard = Guard(self._process.pid, "QUIT")
        deadline = time.monotonic() + timeout
        while not self._answers():
            if not self.is_running or time.monotonic() > deadline:
                why = "was not ready in time" if self.is_running else "ended while starting"
                raise ServerNotStarted(f"PostgreSQL in {self.folder} {why}{log_tail(self.folder)}")
            time.sleep(TICK)

    def stop(self, how: Stop = "fast", *, timeout: float = 20.0) -> None:
        """End it, and wait until it has.

        Args:
            how: ``fast`` ends every session; ``immediate`` is a crash, after which the next start
                recovers; ``kill`` kills the first process only, and the others follow by themselves.
            timeout: Seconds until it is killed.
        """
        process = self._process
        if process is None:
            return
        process.send_signal(SIGNALS[how])
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._process = None
        if self._guard is not None:
            self._guard.dismiss()
        if how == "kill":
            self._wait_for_orphans(timeout)

    def restart(self, how: Stop = "fast", *, away: float = 0.0) -> None:
        """End it, leave it away for *away* seconds, start it again on the same port."""
        self.stop(how)
        time.sleep(away)
        self.start()

    def configure(self, **options: str) -> None:
        """Change settings that need no restart; those given to the constructor stay as they are."""
        with (self.folder / DATA / "postgresql.conf").open("a") as file:
            for name, value in options.items():
                file.write(f"\n{name} = '{value.replace(chr(39), chr(39) * 2)}'")
        if self._process is not None:
            self._process.send_signal(signal.SIGHUP)

    def standby(self, folder: Path) -> Server:
        """A hot standby of this server in *folder*, streaming; it is started.

        It is asynchronous until this server is told to wait for it:
        ``configure(synchronous_standby_names="*")``.
        """
        other = Server(folder, options=self.options)
        prepare_folder(other.folder)
        data = other.folder / DATA
        data.mkdir(mode=0o700)
        give_to_server(data)
        arguments = ["-D", str(data), "-R", "-X", "stream", "--checkpoint=fast", "--no-sync"]
        arguments += ["-d", f"{self.url}?application_name=standby"]
        run_program(self.binaries / "pg_basebackup", *arguments, cwd=other.folder)
        write_file(other.folder / PASSWORD, (self.folder / PASSWORD).read_text())
        # what `configure` said was for this server; a promoted standby would wait for nobody
        other.configure(synchronous_standby_names="")
        other.start()
        return other

    def promote(self, *, timeout: float = 30.0) -> None:
        """Make a standby take writes; returns when it does."""
        arguments = ["promote", "-D", str(self.folder / DATA), "-w", "-t", str(int(timeout))]
        run_program(self.binaries / "pg_ctl", *arguments, cwd=self.folder)

    @property
    def can_have_standbys(self) -> bool:
        """Whether the programs for it are there."""
        return all((self.binaries / name).exists() for name in ("pg_basebackup", "pg_ctl"))

    def _spawn(self, log: int) -> subprocess.Popen[bytes]:
        user, group = server_account() or (None, None)
        command = [str(self.binaries / "postgres"), "-D", str(self.folder / DATA)]
        settings = {
            **self.options,
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
        }
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=self.folder,
            env=server_environment(),
            start_new_session=True,
            user=user,
            group=group,
            extra_groups=None if user is None else [],
        )

    def _answers(self) -> bool:
        """Whether it says in its pid file (as pg_ctl reads it) that it takes connections."""
        try:
            lines = (self.folder / DATA / "postmaster.pid").read_text().splitlines()
        except (OSError, UnicodeDecodeError):
            return False
        mine = self._process is not None and lines[:1] == [str(self._process.pid)]
        return mine and len(lines) > 7 and lines[7].strip() in READY

    def _wait_for_orphans(self, timeout: float) -> None:
        """The children of a killed postmaster end by themselves, and hold the memory until then."""
        deadline = time.monotonic() + timeout
        marker = str(self.folder / DATA).encode()
        while time.monotonic() < deadline and _has_process_in(marker):
            time.sleep(TICK)


def _has_process_in(folder: bytes) -> bool:
    processes = Path("/proc")
    for entry in processes.iterdir() if processes.exists() else ():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if os.fsencode((entry / "cwd").readlink()) == folder:
                    return True
    return False


def _free_port() -> int:
    while True:
        port = FIRST_PORT + int.from_bytes(os.urandom(4)) % PORTS
        if port_is_free(port):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
                continue
            return port
