"""Keep one PostgreSQL server running in a folder until its last user is gone.

Runs as a process of its own: ``python -m strandline.postgres.supervisor FOLDER ORDER`` (ORDER is
JSON; `embedded.py` writes it and starts this file by its path, so only the standard library is
loaded). Three ``flock`` locks in FOLDER decide everything; the kernel drops them when their
holders end, however they end, so nothing here has to trust a list of process ids.

=================  ==========================================  =================================
file               held by                                     means
=================  ==========================================  =================================
`users.lock`       every user, shared; a supervisor that       somebody wants the server /
                   stops, exclusive                            the server is being stopped
`supervisor.lock`  the supervisor, exclusive, for its life     somebody is in charge
`server.lock`      the postmaster and all its children         some process of the server lives
                   (inherited descriptor), exclusive
`state.json`       written by the supervisor in charge         starting, or ready at this port
=================  ==========================================  =================================

States: *claim* `supervisor.lock` → *clear* what an earlier server left → *create* the data
directory if there is none → *start* → *watch* (a thread restarts the server when it ends, on the
same port, at once and then 0.1 s … 5 s apart; the main thread waits for `users.lock`) → *stop*
(SIGINT: fast shutdown, SIGQUIT, SIGKILL) → exit.

Invariant: a postmaster is started only by the holder of `supervisor.lock` who has also just taken
`server.lock`. Two postmasters on one data directory are therefore impossible.

What can go wrong, and what then:

* Two first users at once: both start a supervisor; the one that does not get `supervisor.lock`
  within `CLAIM_PATIENCE` exits without a word, and its user finds the other's server.
* A user arrives while the server is stopping: the supervisor holds `users.lock` exclusively until
  it has exited, so the user waits, then starts a new supervisor. Had the user been first, the
  supervisor would not have got the lock and would go on.
* The user that started us is gone before the server is up: we get `users.lock` and stop.
* The postmaster is killed: its children notice and end; those that do not are told to, found by
  command line and owner; when `server.lock` is free the server is started again.
* The supervisor is killed: the server goes on. The next supervisor (started by the next user, or
  by the last one when it leaves) finds `server.lock` held, shuts that server down cleanly and
  starts its own on the same port; being its parent is what makes a crash noticeable.
* All are killed, or the machine restarts, and the process id in `postmaster.pid` is somebody
  else's now, or a zombie's: the locks are free, so the file is stale. It is removed, because
  PostgreSQL would refuse to start, unless that process is a postmaster of this folder: one that
  someone started by hand is left alone and reported.
* `state.json` of a killed supervisor: a user removes it while it holds `supervisor.lock` shared,
  when nobody can be in charge, before it starts a new supervisor.
* `initdb` is interrupted: it works in `data.new`, which is renamed when all is written.
* The port was taken between choosing and binding: another is chosen, at the first start only;
  later restarts insist on the port that clients know.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

if not __package__:  # started by its path: load what is below without the packages' own imports
    for name, place in (("strandline", "..")), ("strandline.postgres", "."):
        package = sys.modules[name] = type(sys)(name)
        package.__path__ = [str((Path(__file__).parent / place).resolve())]

import fcntl
from typing import TYPE_CHECKING, Any

from strandline.errors import ServerNotStarted
from strandline.postgres.server_folder import (
    DATA,
    LOG,
    PASSWORD,
    SERVER_LOCK,
    STATE,
    SUPERVISOR_LOCK,
    TICK,
    USERS_LOCK,
    commands,
    create_data,
    log_tail,
    port_is_free,
    run_program,
    server_account,
    server_environment,
    socket_folder,
    take,
    write_file,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import FrameType

PORT = "port"
CLAIM_PATIENCE = 0.5  # a user that only looks holds the lock for microseconds
LOG_LIMIT_BYTES = 10_000_000
PORT_ATTEMPTS = 5
FIRST_PORT, PORTS = 15_000, 17_000  # below the ephemeral ranges: a client that tries again and
# again to reach a port inside them can end up connected to itself, and so hold the port
LONGEST_DELAY = 5.0
SETTLED = 10.0  # a server that ran this long does not count as failing again and again
LADDER = ((0, 0.3), (signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))

DEFAULTS = {
    "max_connections": "200",
    "max_prepared_transactions": "16",
    "log_destination": "stderr",
    "logging_collector": "off",
}
NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class Supervisor:
    """One data directory, one server, one process in charge of both."""

    def __init__(
        self,
        folder: Path,
        *,
        binaries: str,
        durable: bool = True,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.data = folder / DATA
        self.binaries = Path(binaries)
        self.durable = durable
        self.options = options or {}
        self.account = server_account()
        self.name = f"strandline-{zlib.crc32(os.fsencode(folder)):08x}"
        self.sockets: Path | None = None
        self.users = os.open(folder / USERS_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.version = ""
        self.leaving = threading.Event()
        self.gate = threading.Lock()  # nothing is started once `leaving` is set under it
        log = folder / LOG
        if log.exists() and log.stat().st_size > LOG_LIMIT_BYTES:
            log.replace(log.with_suffix(".log.1"))
        self.log = log.open("ab", buffering=0)
        self.log_start = log.stat().st_size

    def prepare(self) -> None:
        """Check the binaries, end what an earlier server left, create the data directory."""
        (self.folder / STATE).unlink(missing_ok=True)
        said = run_program(self.binaries / "postgres", "--version", cwd=self.folder)
        words = said.split()
        self.version = words[2] if len(words) > 2 else "unknown"
        os.close(self._reclaim())  # before initdb, which must not meet a running server
        if not self.data.exists():
            create_data(self.folder, self.binaries, durable=self.durable)
        major = (self.data / "PG_VERSION").read_text().strip()
        if not self.version.startswith(major) or self.version[len(major) :][:1].isdigit():
            raise ServerNotStarted(
                f"{self.data} was made by PostgreSQL {major}, but {self.binaries} is "
                f"{self.version}: set STRANDLINE_POSTGRES_BIN to the bin directory of a "
                f"PostgreSQL {major}, or move the folder away (or upgrade it with pg_upgrade)"
            )
        if not (self.folder / PASSWORD).exists():
            missing = self.folder / PASSWORD
            raise ServerNotStarted(f"{missing} is missing: put it back, or move the folder away")
        self.sockets = socket_folder(self.folder, self.name)
        if self.sockets is None:
            self.say("no Unix socket: its directory is not private to this server")

    def start(self) -> None:
        """Start the server for the first time, on its old port if that is still free."""
        known = self.folder / PORT
        text = known.read_text() if known.exists() else ""
        port = int(text) if text.isdecimal() else FIRST_PORT + int(self.name[-8:], 16) % PORTS
        for _ in range(PORT_ATTEMPTS):
            while not port_is_free(port):
                port = FIRST_PORT + int.from_bytes(os.urandom(4)) % PORTS
            self.port = port
            if self._launch(self.has_no_users) or self.has_no_users():
                write_file(known, str(port))
                return
            if port_is_free(port):  # so the port was not what it failed on
                break
        raise ServerNotStarted(
            f"PostgreSQL {self.version} in {self.folder} ended while starting"
            + log_tail(self.folder, self.log_start)
        )

    def watch(self) -> None:
        """Keep the server running until the last user is gone (or SIGTERM)."""
        threading.Thread(target=self._keep, name="keeper", daemon=True).start()
        fcntl.flock(self.users, fcntl.LOCK_EX)

    def stop(self) -> None:
        """Stop the server: fast shutdown, and by force only if that takes too long."""
        with self.gate:
            self.leaving.set()
        (self.folder / STATE).unlink(missing_ok=True)
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)
            if take(self.folder / SERVER_LOCK, patience=10.0) is None:
                self._reclaim()

    def say(self, text: str) -> None:
        """Write a line into the server's log."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        self.log.write(f"{stamp} [{os.getpid()}] SUPERVISOR:  {text}\n".encode())

    def _keep(self) -> None:
        """Start the server again whenever it ends."""
        delay = 0.0
        while self.process is not None:
            began = time.monotonic()
            code = self.process.wait()
            if time.monotonic() - began > SETTLED:
                delay = 0.0
            if self.leaving.wait(delay):
                return
            delay = min(max(0.1, delay * 2), LONGEST_DELAY)
            try:
                self.say(f"the server ended with code {code}; starting it again")
                self._launch(self.leaving.is_set)
            except (OSError, ServerNotStarted) as error:
                self.say(f"not started: {error}")

    def _launch(self, abandoned: Callable[[], bool]) -> bool:
        """Start the server and wait until it takes connections; False if it ended before."""
        self._publish("starting")
        lock = self._reclaim()
        try:
            self._remove_stale_files()
            with self.gate:
                if self.leaving.is_set():
                    return False
                self.process = self._spawn(lock)
        finally:
            os.close(lock)
        while self.process.poll() is None and not abandoned():
            if self._is_ready(self.process.pid):
                self._publish("ready")
                return True
            time.sleep(TICK)
        return False

    def _spawn(self, lock: int) -> subprocess.Popen[bytes]:
        settings = DEFAULTS | ({} if self.durable else NOT_DURABLE) | dict(self.options)
        quoted = str(self.sockets).replace('"', '""')  # the setting is a list, split at commas
        settings |= {
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": f'"{quoted}"' if self.sockets else "",
            "unix_socket_permissions": "0700",
            "cluster_name": self.name,
        }
        command = [str(self.binaries / "postgres"), "-D", str(self.data)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        user, group = self.account or (None, None)
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            cwd=self.folder,
            env=server_environment(),
            pass_fds=(lock,),
            start_new_session=True,
            user=user,
            group=group,
            extra_groups=None if user is None else [],
        )

    def _is_ready(self, pid: int) -> bool:
        """Read in `postmaster.pid` (as pg_ctl does) whether *pid* takes connections."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except (OSError, UnicodeDecodeError):
            return False
        return len(lines) > 7 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"

    def _publish(self, state: str) -> None:
        facts = {
            "state": state,
            "port": self.port,
            "version": self.version,
            "durable": self.durable,
            "sockets": str(self.sockets or ""),
            "supervisor": os.getpid(),
            "postmaster": self.process.pid if self.process and state == "ready" else None,
        }
        write_file(self.folder / STATE, json.dumps(facts))

    def has_no_users(self) -> bool:
        """Take `users.lock` if nobody uses the server: from then on nobody can begin to."""
        try:
            fcntl.flock(self.users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _reclaim(self) -> int:
        """Take `server.lock`, ending what is left of an earlier server if need be."""
        for number, patience in LADDER:
            self._signal_remains(number)
            lock = take(self.folder / SERVER_LOCK, patience=patience)
            if lock is not None:
                return lock
        raise ServerNotStarted(
            f"a PostgreSQL server still runs in {self.folder} (its processes hold {SERVER_LOCK}) "
            "and cannot be stopped from here: stop it where it was started, perhaps in another "
            "container"
        )

    def _signal_remains(self, number: int) -> None:
        """Signal the postmaster of this folder or, if it is gone, end its children."""
        if number == 0:
            return
        owner = self.account[0] if self.account else os.geteuid()
        mine = {pid: line for pid, (uid, line) in commands().items() if uid == owner}
        heads = [pid for pid, line in mine.items() if self._is_postmaster(line)]
        children = [pid for pid, line in mine.items() if line.startswith(f"postgres: {self.name}")]
        if number == signal.SIGKILL:
            heads += children
        elif not heads:
            heads, number = children, signal.SIGQUIT
        for pid in heads:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def _is_postmaster(self, line: str) -> bool:
        program = line.split(" -D ", 1)[0].rsplit("/", 1)[-1]
        return program in ("postgres", "postmaster") and f" -D {self.data} " in line + " "

    def _remove_stale_files(self) -> None:
        """Remove a stale `postmaster.pid` and socket, which could keep PostgreSQL from starting.

        The process id in them may be somebody else's by now, or still be that of a killed
        postmaster whose new parent (process 1 of a container) has not collected it.
        """
        path = self.data / "postmaster.pid"
        try:
            text = path.read_text().split("\n", 1)[0].strip()
        except FileNotFoundError:
            return
        line = commands().get(int(text), (0, ""))[1] if text.isdecimal() else ""
        if self._is_postmaster(line):
            raise ServerNotStarted(
                f"process {text} already runs PostgreSQL on {self.data}, started by someone "
                "else: stop it (pg_ctl stop), then try again"
            )
        path.unlink()
        for left in self.sockets.glob(".s.PGSQL.*") if self.sockets else ():
            left.unlink()


def _leave(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)


def main(folder: Path, order: dict[str, Any]) -> int:
    """Be the supervisor of *folder*; what cannot be done is said on standard output.

    Standard output is closed once the server is up: this is what the starting user waits for.
    """
    if os.fork():  # so that no user process ever has us as a child to wait for
        os._exit(0)
    os.umask(0o077)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    if take(folder / SUPERVISOR_LOCK, patience=CLAIM_PATIENCE) is None:
        return 0
    supervisor = Supervisor(folder, **order)
    try:
        supervisor.prepare()
        if not supervisor.has_no_users():
            supervisor.start()
            os.dup2(supervisor.log.fileno(), 1)
            os.dup2(supervisor.log.fileno(), 2)
            supervisor.watch()
    except (OSError, ServerNotStarted) as error:
        print(error, flush=True)  # noqa: T201 - the protocol with the user that started us
        return 1
    finally:
        supervisor.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
