"""A private PostgreSQL server in a folder, shared by the processes that use it.

`Embedded.start` makes this process a user of the folder's server and starts the server if nobody
has; `Embedded.stop`, or the end of the process in whatever way, makes it one no longer. The
server stops with its last user. How that is decided is told in `supervisor.py`.

The folder holds the data directory (``data``), the log (``server.log``), the password (readable by
the owner only), the Unix socket (``run``) and the lock files. The server listens on 127.0.0.1 and
on the socket and wants the password (SCRAM) on both, so other users of the machine cannot get in.

As root, PostgreSQL runs as `nobody`: it refuses to run as root. No account is made, and nothing
is chmod'ed or chown'ed that was there before. (Whatever else runs as `nobody` could read the data
directory; use an account of your own where that matters.)
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import select
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strandline.errors import ServerNotStarted
from strandline.postgres.server_binaries import find_binaries, usable_binaries
from strandline.postgres.server_folder import (
    ELSEWHERE,
    PASSWORD,
    ROLE,
    SERVER_LOCK,
    STATE,
    SUPERVISOR_LOCK,
    TICK,
    USERS_LOCK,
    is_only_holder,
    is_same_file,
    log_tail,
    prepare_folder,
    take,
)

if sys.platform != "win32":
    import pwd

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

__all__ = ["Embedded", "EmbeddedServer", "default_folder", "find_binaries"]

LAST_PATIENCE = 2.0  # seconds for the supervisor to begin stopping when we were the last user
OTHERS_PATIENCE = 0.05  # the same when others seem to be left; short, it delays every `stop`


@dataclass(frozen=True, slots=True)
class EmbeddedServer:
    """A running server as this process uses it.

    Attributes:
        url: DSN for asyncpg and psycopg: TCP on 127.0.0.1, the server's superuser, its password.
            It stays the same while the server runs, through a crash too, and, as long as the
            port is free then, at later starts.
        folder: Where everything of the server lies.
        version: PostgreSQL's own, such as ``18.4``.
        socket: Directory of the Unix socket, for ``host=`` in a DSN; None if there is none.
    """

    url: str
    folder: Path
    version: str
    socket: Path | None = None


def default_folder(app: str) -> Path:
    """Return the folder of the embedded server of *app* for this user.

    ``$STRANDLINE_EMBEDDED_DIR/<app>`` if that is set; for root ``/var/lib/strandline/<app>``,
    which `nobody` can reach; else ``strandline/<app>`` in the XDG data directory. A home that
    belongs to another user (sudo and su may keep ``HOME``) is passed over.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", app).strip(".-") or "strandline"
    chosen = os.environ.get("STRANDLINE_EMBEDDED_DIR")
    if chosen:
        return Path(chosen).expanduser().resolve() / name
    if os.geteuid() == 0:
        return Path("/var/lib/strandline") / name
    homes = [Path(os.environ.get("HOME", "/"))]
    with contextlib.suppress(KeyError):  # containers run with user ids that have no entry
        homes.append(Path(pwd.getpwuid(os.geteuid()).pw_dir))
    data_home = Path(os.environ.get("XDG_DATA_HOME", ""))
    places = [data_home] if data_home.is_absolute() else []
    for place in [*places, *(home / ".local/share" for home in homes)]:
        # os.path: a directory that may not be looked into counts as missing, not as an error
        nearest = next(part for part in [place, *place.parents] if os.path.exists(part))  # noqa: PTH110
        if nearest.stat().st_uid == os.geteuid():
            return place.resolve() / "strandline" / name
    return Path(f"/var/tmp/strandline-{os.geteuid()}") / name  # noqa: S108 - owner checked at start


class Embedded:
    """The use of a folder's PostgreSQL server by one process.

    A child made by fork is no user: it must call `start` itself. Processes started in any other
    way share the server by giving the same folder.

    Args:
        folder: Where the server lives; None means `default_folder` of *app*.
        app: Names the folder when none is given.
        durable: False trades the data for speed (no fsync): for tests only.
        start_timeout: Seconds that `start` may take in all.
        options: Server settings such as ``{"shared_buffers": "1GB"}``. They take effect when the
            server starts; who joins a running server takes it as it is.
    """

    def __init__(
        self,
        folder: Path | str | None = None,
        *,
        app: str = "strandline",
        durable: bool = True,
        start_timeout: float = 30.0,
        options: Mapping[str, str] | None = None,
    ) -> None:
        if sys.platform == "win32":
            raise ServerNotStarted(f"an embedded server needs Linux or macOS: {ELSEWHERE}")
        self.folder = Path(folder).expanduser().resolve() if folder else default_folder(app)
        self.durable = durable
        self.start_timeout = start_timeout
        self.options = dict(options or {})
        self._lock: int | None = None
        self._gate = threading.RLock()

    def start(self) -> EmbeddedServer:
        """Become a user of the server, starting it if it does not run, and wait until it is ready.

        May be called again at any time: it then makes sure that the server still runs.

        Raises:
            ServerNotStarted: The text says why, with the last lines of the log, and what to do.
        """
        deadline = time.monotonic() + self.start_timeout
        with self._gate:
            try:
                prepare_folder(self.folder)
                fresh = self._lock is None
                if fresh:
                    self._lock = self._join(deadline)
                    _in_use.add(self)
                try:
                    return self._find_or_start(deadline)
                except BaseException:
                    if fresh:
                        self._release()
                    raise
            except OSError as error:
                raise ServerNotStarted(
                    f"no embedded server in {self.folder}: {error}; {ELSEWHERE}"
                ) from error

    def stop(self, *, timeout: float = 10.0) -> None:
        """Use the server no longer; if nobody else does, wait until it has stopped.

        Args:
            timeout: Seconds to wait for that. The server stops all the same when they are over.
        """
        with self._gate:
            if self._lock is None:
                return
            patience = LAST_PATIENCE if is_only_holder(self._lock) else OTHERS_PATIENCE
            self._release()
            self._relieve_orphan()
            now = time.monotonic()
            deadline, stays_until = now + timeout, now + patience
            while self._is_held(SUPERVISOR_LOCK) and now < deadline:
                stops = self._is_held(USERS_LOCK)  # exclusively, so by the supervisor
                if not stops and now > stays_until:
                    return
                time.sleep(TICK)
                now = time.monotonic()

    def __enter__(self) -> EmbeddedServer:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _join(self, deadline: float) -> int:
        """Take `users.lock` shared: from then on the server cannot stop."""
        path = self.folder / USERS_LOCK
        while True:
            patience = max(0.0, deadline - time.monotonic())
            lock = take(path, patience=patience, shared=True)
            if lock is None:
                raise ServerNotStarted(
                    f"the server in {self.folder} is stopping and has not ended within "
                    f"{self.start_timeout} s{log_tail(self.folder)}"
                )
            if is_same_file(lock, path):
                return lock
            os.close(lock)  # the folder was removed and made again meanwhile

    def _release(self) -> None:
        """Close our descriptor; unlocking instead would unlock for a parent we were forked from."""
        _in_use.discard(self)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _is_held(self, name: str) -> bool:
        """Tell whether somebody holds the lock *name* exclusively."""
        try:
            lock = take(self.folder / name, shared=True)
        except FileNotFoundError:
            return False
        if lock is not None:
            os.close(lock)
        return lock is None

    def _find_or_start(self, deadline: float) -> EmbeddedServer:
        """Wait for a ready server, starting a supervisor whenever nobody is in charge."""
        with contextlib.ExitStack() as closing:
            launch: _Launch | None = None
            state: dict[str, Any] = {}
            while time.monotonic() < deadline:
                if self._is_held(SUPERVISOR_LOCK):  # looked at before the state, which is its own
                    state = _read_state(self.folder)
                    if state.get("state") == "ready" and _answers(state["port"]):
                        return self._describe(state)
                elif launch is None:
                    self._discard_state()
                    launch = _Launch(self.folder, self._order())
                    closing.callback(launch.close)
                if launch is None:
                    time.sleep(TICK)
                elif launch.has_ended(patience=TICK):
                    if launch.said:
                        raise ServerNotStarted(launch.said.strip())
                    launch = None
        raise ServerNotStarted(
            f"the server in {self.folder} was not ready within {self.start_timeout} s "
            f"(state: {state.get('state', 'none')}); if it is recovering, give it more time "
            f"with start_timeout{log_tail(self.folder)}"
        )

    def _describe(self, state: dict[str, Any]) -> EmbeddedServer:
        if self.durable and not state["durable"]:
            raise ServerNotStarted(
                f"the server in {self.folder} was started with durable=False and can lose data: "
                "stop its users first, or ask for durable=False as they do"
            )
        password = (self.folder / PASSWORD).read_text()
        return EmbeddedServer(
            url=f"postgresql://{ROLE}:{password}@127.0.0.1:{state['port']}/postgres",
            folder=self.folder,
            version=state["version"],
            socket=Path(state["sockets"]) if state["sockets"] else None,
        )

    def _order(self) -> dict[str, Any]:
        binaries = usable_binaries(find_binaries(), self.folder)
        return {"binaries": str(binaries), "durable": self.durable, "options": self.options}

    def _discard_state(self) -> None:
        """Remove the state of a dead supervisor while its lock keeps a new one from writing."""
        lock = take(self.folder / SUPERVISOR_LOCK, shared=True)
        if lock is not None:
            (self.folder / STATE).unlink(missing_ok=True)
            os.close(lock)

    def _relieve_orphan(self) -> None:
        """Let a new supervisor end a server whose supervisor was killed, if nobody uses it."""
        try:
            if not self._is_held(SUPERVISOR_LOCK) and self._is_held(SERVER_LOCK):
                launch = _Launch(self.folder, self._order())
                launch.has_ended(patience=5.0)
                launch.close()
        except (OSError, ServerNotStarted):
            return  # the next start will do it, and will say what is wrong

    def _forget_after_fork(self) -> None:
        self._gate = threading.RLock()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _leave_at_exit(self) -> None:
        self._release()
        self._relieve_orphan()


class _Launch:
    """A supervisor being started; its standard output stays open until the server is up."""

    def __init__(self, folder: Path, order: dict[str, Any]) -> None:
        program = Path(__file__).with_name("supervisor.py")
        command = [sys.executable, "-I", "-S", str(program), str(folder), json.dumps(order)]
        self.said = ""
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            cwd="/",
            start_new_session=True,
        ) as process:
            assert process.stdout is not None
            self._output = os.dup(process.stdout.fileno())
        # It has forked and ended: the supervisor is nobody's child.

    def has_ended(self, *, patience: float) -> bool:
        """Wait up to *patience* seconds for the end of the output, which goes to `said`."""
        while select.select([self._output], [], [], patience)[0]:
            chunk = os.read(self._output, 65_536)
            if not chunk:
                return True
            self.said += chunk.decode(errors="replace")
        return False

    def close(self) -> None:
        """Listen no longer; the supervisor goes on."""
        os.close(self._output)


def _read_state(folder: Path) -> dict[str, Any]:
    try:
        state = json.loads((folder / STATE).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _answers(port: int) -> bool:
    """Tell whether something accepts connections: the postmaster may have died a moment ago."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True


_in_use: set[Embedded] = set()


def _after_fork_in_child() -> None:
    for embedded in _in_use:
        embedded._forget_after_fork()
    _in_use.clear()


@atexit.register
def _at_exit() -> None:
    for embedded in list(_in_use):
        embedded._leave_at_exit()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
