"""Git repositories made with plumbing, because no porcelain makes what is nasty."""

from __future__ import annotations

import os
import subprocess
from collections import defaultdict
from itertools import count
from pathlib import Path

MARCH = 1_709_251_200  # 2024-03-01


class Repo:
    """A bare repository made of trees and commits."""

    def __init__(self, path: Path, *, kind: str = "--bare") -> None:
        self.path = path
        self._seconds = count(MARCH, 86_400)
        self.git("init", "-q", kind, "-b", "main", str(path), here=path.parent)

    def git(self, *arguments: str, given: bytes = b"", here: Path | None = None) -> str:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("GIT_")
        } | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
        command = ["git", "-C", os.fspath(here or self.path), *arguments]
        done = subprocess.run(
            command, input=given, env=environment, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().strip()

    def blob(self, content: bytes) -> str:
        return self.git("hash-object", "-w", "--stdin", given=content)

    def tree(self, files: dict[bytes, bytes | tuple[str, bytes]]) -> str:
        """Write a tree of path → content, or path → (mode, content or commit id)."""
        entries: dict[bytes, str] = {}
        below: defaultdict[bytes, dict[bytes, bytes | tuple[str, bytes]]] = defaultdict(dict)
        for path, file in files.items():
            top, slash, rest = path.partition(b"/")
            if slash:
                below[top][rest] = file
                continue
            mode, content = file if isinstance(file, tuple) else ("100644", file)
            name = content.decode() if mode == "160000" else self.blob(content)
            entries[top] = f"{mode} {'commit' if mode == '160000' else 'blob'} {name}"
        for top, inner in below.items():
            entries[top] = f"040000 tree {self.tree(inner)}"
        lines = [entry.encode() + b"\t" + name + b"\0" for name, entry in entries.items()]
        return self.git("mktree", "-z", "--missing", given=b"".join(lines))

    def commit(
        self,
        files: dict[bytes, bytes | tuple[str, bytes]],
        *parents: str,
        author: bytes = b"Ada <ada@example.org>",
        time: bytes | None = None,
        extra: bytes = b"",
    ) -> str:
        """Write a commit and let main name it."""
        moment = b"%d +0300" % next(self._seconds) if time is None else time
        lines = [b"tree " + self.tree(files).encode()]
        lines += [b"parent " + parent.encode() for parent in parents]
        lines += [b"author " + author + b" " + moment, b"committer " + author + b" " + moment]
        raw = b"\n".join(lines) + b"\n" + extra + b"\nA subject\n\nand more\n"
        name = self.git("hash-object", "-t", "commit", "-w", "--literally", "--stdin", given=raw)
        self.git("update-ref", "refs/heads/main", name)
        return name


def text(*numbers: int) -> bytes:
    return b"".join(b"line %d\n" % number for number in numbers)


TEN = text(*range(10))
