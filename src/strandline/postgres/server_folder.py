"""What lies in the folder of an embedded server, and how its processes share it.

The module needs the standard library only: the supervisor loads it without the rest of strandline.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from strandline.errors import ServerNotStarted

if sys.platform != "win32":
    import fcntl
    import pwd

USERS_LOCK = "users.lock"
SUPERVISOR_LOCK = "supervisor.lock"
SERVER_LOCK = "server.lock"
STATE = "state.json"
PASSWORD = "password"  # noqa: S105 - a file name
LOG = "server.log"
DATA = "data"
ROLE = "strandline"

TICK = 0.01  # seconds between two looks at a lock or a file
ELSEWHERE = "choose another folder with STRANDLINE_EMBEDDED_DIR, or set STRANDLINE_DATABASE_URL"
TAIL_LINES = 12
LONGEST_SOCKET_PATH = 100 - len("/.s.PGSQL.65535")  # sun_path has 104 bytes on macOS, 108 on Linux


def server_account() -> tuple[int, int] | None:
    """Return user and group id for PostgreSQL, or None for this process's own.

    PostgreSQL refuses to run as root; `nobody` exists everywhere, so no account is created.
    """
    if os.geteuid() != 0:
        return None
    entry = pwd.getpwnam("nobody")
    return entry.pw_uid, entry.pw_gid


def take(path: Path, *, patience: float = 0.0, shared: bool = False) -> int | None:
    """Lock *path* and return the descriptor, or None if it stays held for *patience* seconds."""
    deadline = time.monotonic() + patience
    mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    while True:
        try:
            fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                return None
            time.sleep(TICK)
        except BaseException:
            os.close(descriptor)
            raise
        else:
            return descriptor


def is_only_holder(lock: int) -> bool:
    """Tell whether nobody else shares *lock*; ask last: *lock* may be lost by it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_same_file(descriptor: int, path: Path) -> bool:
    """Tell whether *path* still names the file opened as *descriptor*."""
    return path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())


def write_file(path: Path, text: str) -> None:
    """Replace *path* by a file with *text* that only its owner can read, all or nothing."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    draft.replace(path)


def sync_directory(path: Path) -> None:
    """Make the names in *path* survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def log_tail(folder: Path, start: int = 0) -> str:
    """Return the last lines of the server's log, from byte *start* on, as a block to append."""
    try:
        with (folder / LOG).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start if start <= size else 0, size - 8_000))
            lines = file.read().decode(errors="replace").splitlines()[-TAIL_LINES:]
    except OSError:
        return ""
    return "".join(f"\n  {line}" for line in ["last lines of " + str(folder / LOG), *lines])


def port_is_free(port: int) -> bool:
    """Tell whether a server could listen on *port* now (as PostgreSQL would: SO_REUSEADDR)."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def commands() -> dict[int, tuple[int, str]]:
    """Return owner and command line of every process that can be seen, by process id."""
    if not Path("/proc/self/cmdline").exists():
        listing = ["ps", "-axo", "pid=,uid=,command="]
        text = subprocess.run(listing, capture_output=True, text=True, check=False).stdout
        rows = [line.split(None, 2) for line in text.splitlines()]
        return {int(row[0]): (int(row[1]), row[2]) for row in rows if len(row) == 3}
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(entry.name)] = (entry.stat().st_uid, os.fsdecode(words))
            except OSError:
                continue
    return found


def prepare_folder(folder: Path) -> None:
    """Make *folder*, and see that PostgreSQL's account can work in it.

    Raises:
        ServerNotStarted: It belongs to someone else, or a directory above keeps `nobody` out.
    """
    mode = 0o755 if server_account() else 0o700
    missing = []
    for directory in (folder, *folder.parents):
        if directory.exists():
            break
        missing.append(directory)
    for directory in reversed(missing):
        try:
            directory.mkdir(mode=mode)
        except FileExistsError:
            continue
        directory.chmod(mode)  # ours, and the umask may have closed it
    if folder.stat().st_uid != os.geteuid():
        raise ServerNotStarted(
            f"{folder} belongs to user {folder.stat().st_uid}, this is user {os.geteuid()}: "
            f"{ELSEWHERE}"
        )
    account = server_account()
    if account is not None:
        for directory in (*reversed(folder.parents), folder):
            if not _can_enter(account, directory):
                raise ServerNotStarted(
                    f"PostgreSQL must not run as root, so it runs as nobody, and nobody cannot "
                    f"enter {directory} (mode {directory.stat().st_mode & 0o7777:04o}): {ELSEWHERE}"
                )


def _can_enter(account: tuple[int, int], directory: Path) -> bool:
    facts = directory.stat()
    if facts.st_uid == account[0]:
        return bool(facts.st_mode & 0o100)
    if facts.st_gid == account[1]:
        return bool(facts.st_mode & 0o010)
    return bool(facts.st_mode & 0o001)


def server_environment() -> dict[str, str]:
    """Return the environment without what would change PostgreSQL's behaviour."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return kept | {"LC_ALL": "C", "TZ": "UTC"}


def give_to_server(path: Path) -> None:
    """Hand something that this process has just created to the server's account."""
    account = server_account()
    if account is not None:
        os.chown(path, *account, follow_symlinks=False)


def run_program(program: Path, *arguments: str, cwd: Path) -> str:
    """Run a PostgreSQL program to its end under the server's account and return what it printed.

    Raises:
        ServerNotStarted: It cannot be run, or it failed; the text says which and why.
    """
    user, group = server_account() or (None, None)
    try:
        done = subprocess.run(
            [str(program), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            cwd=cwd,
            env=server_environment(),
            user=user,
            group=group,
            extra_groups=None if user is None else [],
        )
    except OSError as error:
        raise ServerNotStarted(f"{program} cannot be run: {error}") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[-1_500:]
        raise ServerNotStarted(f"{program} failed with code {done.returncode}: {said}")
    return done.stdout.decode(errors="replace")


def create_data(folder: Path, binaries: Path, *, durable: bool) -> None:
    """Run initdb with a new random password; complete, or as if it had never been called."""
    fresh, secret = folder / "data.new", folder / "initdb.password"
    if fresh.exists():
        import shutil

        shutil.rmtree(fresh)
    fresh.mkdir(mode=0o700)
    give_to_server(fresh)
    password = os.urandom(24).hex()
    arguments = ["-D", str(fresh), "-U", ROLE, "-E", "UTF8", "-A", "scram-sha-256"]
    arguments += [f"--pwfile={secret}", "--no-instructions", *([] if durable else ["--no-sync"])]
    try:
        write_file(secret, password)
        give_to_server(secret)
        try:
            run_program(binaries / "initdb", *arguments, "--locale=C.UTF-8", cwd=folder)
        except ServerNotStarted:  # macOS before 15 and some small images lack that locale
            run_program(binaries / "initdb", *arguments, "--locale=C", cwd=folder)
    finally:
        secret.unlink(missing_ok=True)
    write_file(folder / PASSWORD, password)
    fresh.rename(folder / DATA)
    sync_directory(folder)


def socket_folder(folder: Path, name: str) -> Path | None:
    """Return a directory for the Unix socket that only the server's account can enter.

    Returns:
        ``run`` in *folder*, a directory called *name* in ``/tmp`` if that path would be too long,
        or None if somebody else made the latter first: then there is no socket.
    """
    path = folder / "run"
    if len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
        path = Path("/tmp") / name  # noqa: S108 - checked below to be ours and private
    try:
        path.mkdir(mode=0o700)
        give_to_server(path)
    except FileExistsError:
        account = server_account()
        facts = path.lstat()
        owner = account[0] if account else os.geteuid()
        if facts.st_uid != owner or facts.st_mode & 0o170077 != 0o040000:
            return None
    return path
