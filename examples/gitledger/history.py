"""The history of a git repository as changes, in an order in which they can become events.

What is told, and in which order:

* Every commit reachable from HEAD comes once, parents before children, older before newer where
  git leaves a choice (`--date-order`). It carries what `git log --numstat` counts for it: files,
  lines added, lines removed, against its only parent, or against nothing for a root. A merge
  counts nothing, as there.
* The commits of the mainline (HEAD, its first parent, the first parent of that ...) also carry
  `changes`: the difference to their first parent, a merge as a whole. Replayed in order the
  changes lead to exactly the tree of HEAD, at each mainline commit to the tree of that commit.
  A commit beside the mainline has none: what it did reaches the mainline with its merge.

A stream is the life of one file and is named after the path at which it was born. A rename
continues it under another path. A file added where one was deleted continues the stream of that
name. If that stream lives on elsewhere (`a` renamed to `b`, then a new `a`), the new file begins
the stream `a%~2`, or `%~3` and so on: the first one nobody lives in. Copies begin a new stream.

Inside one commit the changes stand in the order deleted, renamed, modified, added, then by path.
A path is part of at most one of them. Two files that swap their names are two modified files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from itertools import count, islice
from pathlib import Path

from examples.gitledger.git import LOG, MARK, NoHistory, answer, readable, words

MAX_KEY_BYTES = 400  # strandline allows 500 for a stream id; the rest is for a prefix
LAST_SECOND = 253_402_300_799  # of the year 9999, the last that datetime can hold

_FIELDS = ("%P", "%aN", "%aE", "%at", "%ct", "%s")
_FORMAT = "--format=tformat:%x01%H" + "".join("%x00" + field for field in _FIELDS)
_READ = ("-z", "--raw", "--numstat", "--date-order", "--reverse", _FORMAT, *LOG)


class Kind(StrEnum):
    """What happened to a file, in the order in which it happens inside one commit."""

    DELETED = "deleted"
    RENAMED = "renamed"
    MODIFIED = "modified"
    ADDED = "added"


@dataclass(frozen=True, slots=True)
class Change:
    """One file changed by one mainline commit."""

    kind: Kind
    stream: str
    path: str  # after the change; of a deleted file the path it had
    old_path: str | None  # where a renamed file was before
    mode: str | None  # 100644, 100755, 120000 link, 160000 submodule; None when deleted
    blob: str | None  # object id of the content; None when deleted
    added: int | None  # lines; None where git calls the file binary
    removed: int | None


@dataclass(frozen=True, slots=True)
class Commit:
    """One commit; `files`, `added` and `removed` as in `git log --numstat`."""

    hash: str
    parents: tuple[str, ...]
    author: str  # through .mailmap, as in git shortlog
    email: str
    authored_at: datetime
    committed_at: datetime
    subject: str
    is_mainline: bool
    files: int
    added: int
    removed: int
    changes: tuple[Change, ...]

    @property
    def is_merge(self) -> bool:
        """Whether it has more than one parent."""
        return len(self.parents) > 1

    @property
    def week(self) -> str:
        """The ISO week of the commit time in UTC, as `2024-W05`."""
        year, week, _ = self.committed_at.isocalendar()
        return f"{year:04}-W{week:02}"


def head(repo: Path) -> str:
    """Answer the commit that HEAD names now; give it to the others, HEAD may move meanwhile."""
    answer(repo, "rev-parse", "--git-dir")
    try:
        return (
            answer(repo, "rev-parse", "--verify", "--end-of-options", "HEAD^{commit}")
            .decode()
            .strip()
        )
    except NoHistory as error:
        raise NoHistory(f"{repo} has no commit yet") from error


def commit_count(repo: Path, *, at: str | None = None) -> int:
    """Answer how many commits `changes` will tell."""
    return int(answer(repo, "rev-list", "--count", at or head(repo)))


def changes(
    repo: Path, *, at: str | None = None, limit: int | None = None
) -> Generator[Commit, None, None]:
    """Tell the history up to *at* (HEAD), oldest commit first, in one pass.

    *limit* ends it after so many commits; what was told until then belongs to no one tree.

    Raises:
        NoHistory: It is no repository, has no commit, or git failed on the way.
    """
    with closing(_commits(repo, at or head(repo))) as commits:
        yield from islice(commits, limit)


def key(text: str) -> str:
    """Answer *text*, or where it is too long for an index its beginning and a hash of it."""
    raw = text.encode()
    if len(raw) <= MAX_KEY_BYTES:
        return text
    digest = hashlib.sha256(raw).hexdigest()[:32]
    return raw[: MAX_KEY_BYTES - 40].decode("utf-8", "ignore") + "%#" + digest


def directories(path: str) -> list[str]:
    """Answer every directory *path* is in, from the top, which is `.`, downwards."""
    parts = path.split("/")[:-1]
    return [".", *("/".join(parts[: depth + 1]) for depth in range(len(parts)))]


@dataclass(slots=True)
class _Difference:
    kind: Kind
    path: bytes
    old_path: bytes | None
    mode: str
    blob: str
    added: int | None = 0
    removed: int | None = 0


@dataclass(slots=True)
class _Record:
    fields: list[bytes]
    differences: list[_Difference]


class _Lives:
    """Which stream lives at which path."""

    def __init__(self) -> None:
        self._at: dict[bytes, str] = {}
        self._living: set[str] = set()

    def stream_of(self, found: _Difference) -> str:
        if found.kind is Kind.ADDED:
            stream = self._vacant(readable(found.path))
            self._living.add(stream)
            self._at[found.path] = stream
        elif found.kind is Kind.RENAMED:
            assert found.old_path is not None
            stream = self._at[found.path] = self._at.pop(found.old_path)
        elif found.kind is Kind.DELETED:
            stream = self._at.pop(found.path)
            self._living.remove(stream)
        else:
            stream = self._at[found.path]
        return stream

    def _vacant(self, path: str) -> str:
        # % begins an escape of two digits in a path, so no path ends like this.
        names = (key(path if turn == 1 else f"{path}%~{turn}") for turn in count(1))
        return next(name for name in names if name not in self._living)


def _commits(repo: Path, at: str) -> Generator[Commit, None, None]:
    # Comparing each merge with its first parent is most of the work in a busy repository, and only
    # those of the mainline are needed. So they come from a git of their own, in step with the
    # first: the mainline is a chain, every order that has parents first has it in the same order.
    with ExitStack() as stack:
        everything = _records(stack, repo, "--diff-merges=off", at)
        merges = _records(
            stack, repo, "--first-parent", "--merges", "--diff-merges=first-parent", at
        )
        mainline = words(repo, "rev-list", "--first-parent", "--reverse", at, end=b"\n")
        stack.enter_context(closing(mainline))
        lives = _Lives()
        expected = next(mainline)
        for record in everything:
            name, parents = record.fields[:2]
            is_mainline = name == expected
            differences = record.differences if is_mainline else []
            if is_mainline:
                expected = next(mainline, b"")
                if b" " in parents:
                    merge = next(merges)
                    assert merge.fields[0] == name
                    differences = merge.differences
            yield _commit(record, is_mainline, _changes(differences, lives))
        assert not expected


def _records(stack: ExitStack, repo: Path, *arguments: str) -> Generator[_Record, None, None]:
    output = words(repo, "log", *_READ, *arguments, "--")
    stack.enter_context(closing(output))
    return _parsed(output)


def _parsed(output: Iterator[bytes]) -> Generator[_Record, None, None]:
    word = next(output, None)
    while word is not None:
        fields = [word.removeprefix(MARK), *islice(output, len(_FIELDS))]
        record = _Record(fields, [])
        word = _read_differences(output, record.differences)
        yield record


def _read_differences(output: Iterator[bytes], into: list[_Difference]) -> bytes | None:
    """Read up to the next header and answer it; --raw comes first, then --numstat."""
    by_path: dict[bytes, _Difference] = {}
    for word in output:
        if word.startswith(MARK):
            return word
        line = word.removeprefix(b"\n")  # git parts the header from the rest by an empty line
        if line.startswith(b":"):
            _, mode, _, blob, status = line.split(b" ")
            old_path = next(output) if status.startswith(b"R") else None
            path = next(output)
            found = _Difference(_KINDS[status[:1]], path, old_path, mode.decode(), blob.decode())
            by_path[path] = found
            into.append(found)
        else:
            added, removed, path = line.split(b"\t", 2)
            if not path:
                _, path = next(output), next(output)
            found = by_path[path]
            found.added, found.removed = _lines(added), _lines(removed)
    return None


_KINDS = {
    b"A": Kind.ADDED,
    b"D": Kind.DELETED,
    b"M": Kind.MODIFIED,
    b"R": Kind.RENAMED,
    b"T": Kind.MODIFIED,  # a file became a link, or the like
}
_ORDER = {kind: place for place, kind in enumerate(Kind)}


def _lines(number: bytes) -> int | None:
    return None if number == b"-" else int(number)


def _changes(differences: list[_Difference], lives: _Lives) -> tuple[Change, ...]:
    # Deleted first: a life that ends in this commit leaves its stream to one that begins in it.
    ordered = sorted(differences, key=lambda found: _ORDER[found.kind])
    return tuple(_change(found, lives.stream_of(found)) for found in ordered)


def _change(found: _Difference, stream: str) -> Change:
    gone = found.kind is Kind.DELETED
    return Change(
        kind=found.kind,
        stream=stream,
        path=readable(found.path),
        old_path=None if found.old_path is None else readable(found.old_path),
        mode=None if gone else found.mode,
        blob=None if gone else found.blob,
        added=found.added,
        removed=found.removed,
    )


def _commit(record: _Record, is_mainline: bool, changed: tuple[Change, ...]) -> Commit:
    name, parents, author, email, authored, committed, subject = record.fields
    return Commit(
        hash=name.decode(),
        parents=tuple(parents.decode().split()),
        author=readable(author),
        email=readable(email),
        authored_at=_instant(authored),
        committed_at=_instant(committed),
        subject=subject.decode("utf-8", "replace"),
        is_mainline=is_mainline,
        files=len(record.differences),
        added=sum(found.added or 0 for found in record.differences),
        removed=sum(found.removed or 0 for found in record.differences),
        changes=changed,
    )


def _instant(seconds: bytes) -> datetime:
    # A damaged commit may have no time, or one far off; git itself shows 1970 for those.
    number = int(seconds or 0)
    return datetime.fromtimestamp(number if 0 <= number <= LAST_SECOND else 0, UTC)
