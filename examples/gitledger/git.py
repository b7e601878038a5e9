"""Asks git, so that neither the user's configuration nor the environment changes the answer."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import IO

MARK = b"\x01"  # begins a header; no line or word of --raw or --numstat output begins with it
CHUNK_BYTES = 1 << 18

# Whatever may differ between two machines or two users and has an effect on log, diff or names.
_SETTINGS = (
    "advice.graftFileDeprecated=false",
    "core.attributesFile=" + os.devnull,
    "core.quotePath=true",
    "i18n.logOutputEncoding=UTF-8",
    "log.showSignature=false",
    "log.follow=false",
    "safe.directory=*",  # the user named this repository; nothing it configures is run
)

# One meaning of "renamed" and of "lines" for every command that compares trees.
DIFF = (
    "--find-renames=50%",
    "-l1000",
    "--rename-empty",
    "--diff-algorithm=myers",
    "--no-ext-diff",
    "--no-textconv",
    "--ignore-submodules=none",  # else .gitmodules may hide that a submodule moved
    "--submodule=short",
    "--no-relative",
    "--no-color",
    "--no-abbrev",
    "-O" + os.devnull,
)
LOG = ("--root", "--encoding=UTF-8", "--no-notes", *DIFF)


class NoHistory(Exception):  # noqa: N818 - says what is the case, like the errors of strandline
    """git cannot tell the history: not a repository, no commit yet, or git itself is missing."""


def answer(repo: Path, *arguments: str) -> bytes:
    """Run one short git command to its end and answer what it printed."""
    return b"".join(_chunks(repo, arguments))


def words(repo: Path, *arguments: str, end: bytes = b"\0") -> Generator[bytes, None, None]:
    """Stream what a git command prints, cut at each *end*, in constant memory."""
    rest = b""
    for chunk in _chunks(repo, arguments):
        *whole, rest = (rest + chunk).split(end)
        yield from whole
    if rest:
        yield rest


def readable(raw: bytes) -> str:
    """Turn a name as git has it into text that JSON and PostgreSQL can hold, reversibly.

    UTF-8 stays as it is; a byte that is not part of UTF-8 becomes `%XX`, and `%` itself `%25`.
    """
    text = raw.replace(b"%", b"%25").decode("utf-8", "surrogateescape")
    if text.isascii():
        return text
    return re.sub("[\udc80-\udcff]", lambda found: f"%{ord(found[0]) - 0xDC00:02X}", text)


def _chunks(repo: Path, arguments: tuple[str, ...]) -> Generator[bytes, None, None]:
    # A file, not a pipe: nobody reads it while git is running, so a pipe could fill up.
    with tempfile.TemporaryFile() as complaints:
        process = _start(repo, arguments, complaints)
        assert process.stdout is not None
        try:
            while chunk := os.read(process.stdout.fileno(), CHUNK_BYTES):
                yield chunk
        except GeneratorExit:
            process.terminate()
            raise
        finally:
            process.stdout.close()
            process.wait()
        if process.returncode:
            complaints.seek(0)
            said = complaints.read().decode("utf-8", "replace").strip()
            raise NoHistory(_explained(repo, said))


def _start(
    repo: Path, arguments: tuple[str, ...], complaints: IO[bytes]
) -> subprocess.Popen[bytes]:
    settings = [word for setting in _SETTINGS for word in ("-c", setting)]
    command = ["git", "--no-pager", *settings, "-C", os.fspath(repo), *arguments]
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env=_environment(),
        )
    except FileNotFoundError as missing:
        raise NoHistory("git is not installed, or not on the PATH") from missing


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return kept | {
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_GRAFT_FILE": os.devnull,
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "LC_ALL": "C",
        "TZ": "UTC",
    }


def _explained(repo: Path, said: str) -> str:
    if "not a git repository" in said:
        return f"{repo} is not a git repository"
    if "cannot change to" in said:
        return f"{repo} is not a directory that can be opened"
    if "unrecognized argument" in said:
        return f"this git is too old, 2.32 or newer is needed: {said}"
    return f"git cannot read {repo}: {said or 'no reason given'}"
