"""The ledger: a repository's history as events, and read models of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from uuid import UUID, uuid5

import strandline as sl
from examples.gitledger import history
from examples.gitledger.git import readable
from examples.gitledger.history import Commit, Kind, directories, key

app = sl.App("gitledger")

COMMITS = "commits"  # the stream of all commits; a file's stream is "file/" and where it was born
_NAMESPACE = UUID("6f1b1c2e-6f0e-5a0f-9a55-1c5f3c2f7a11")


# ---- events: a commit was made; something happened to a file


@app.event("commit-made")
@dataclass(frozen=True, slots=True)
class CommitMade:
    """A commit, anywhere in the history; lines as `git log --numstat` counts them."""

    hash: str
    author: str
    committed_at: datetime
    subject: str
    merges: int  # 1 if it is a merge
    added: int
    removed: int


@dataclass(frozen=True, slots=True)
class Change:
    """What every change of a file has. Lines are None for binary content."""

    path: str
    commit: str
    author: str
    committed_at: datetime
    added: int | None
    removed: int | None


@app.event("file-added")
@dataclass(frozen=True, slots=True)
class FileAdded(Change):
    """A path came into the tree."""

    mode: str
    blob: str


@app.event("file-modified")
@dataclass(frozen=True, slots=True)
class FileModified(Change):
    """The content or the mode of a path changed."""

    mode: str
    blob: str


@app.event("file-renamed")
@dataclass(frozen=True, slots=True)
class FileRenamed(Change):
    """A file moved, and may have changed as well."""

    old_path: str
    mode: str
    blob: str


@app.event("file-deleted")
@dataclass(frozen=True, slots=True)
class FileDeleted(Change):
    """A path left the tree."""


# ---- read models


@dataclass(slots=True)
class File:
    """A file in the tree. ``lines`` is None once git has called it binary."""

    path: str
    mode: str
    blob: str
    lines: int | None = 0
    changes: int = 0


@app.projection("files")
class Files(sl.SingleStream[File]):
    """One document per file's life: what `git ls-tree -r` lists."""

    @sl.create
    def added(self, event: FileAdded) -> File:
        return _changed(File(event.path, event.mode, event.blob), event)

    @sl.apply
    def modified(self, file: File, event: FileModified | FileRenamed) -> None:
        file.path, file.mode, file.blob = event.path, event.mode, event.blob
        _changed(file, event)

    @sl.delete
    def deleted(self, event: FileDeleted) -> None:
        """It is in the tree no more."""


def _changed(file: File, event: Change) -> File:
    file.changes += 1
    if event.added is None or event.removed is None:
        file.lines = None
    elif file.lines is not None:
        file.lines += event.added - event.removed
    return file


@dataclass(slots=True)
class Author:
    """What one author did: what `git shortlog -sne` and `git log --numstat` count."""

    name: str = ""
    commits: int = 0
    merges: int = 0
    added: int = 0
    removed: int = 0
    changes: int = 0


@app.projection("authors")
class Authors(sl.MultiStream[Author]):
    """One document per author, gathered from the commits and from every file."""

    @sl.key
    def author(self, event: CommitMade | Change) -> str:
        return key(event.author)

    @sl.apply
    def committed(self, author: Author, event: CommitMade) -> None:
        author.name = event.author
        author.commits += 1
        author.merges += event.merges
        author.added += event.added
        author.removed += event.removed

    @sl.apply
    def changed(self, author: Author, event: Change) -> None:
        author.changes += 1


@app.projection("activity")
class Activity(sl.Table):
    """One row per ISO week of the commit time, in UTC; counted inside PostgreSQL."""

    week = sl.column(str, key=sl.bucket("week", "committed_at"))
    commits = sl.column(int, default=0)
    merges = sl.column(int, default=0)
    added = sl.column(int, default=0)
    removed = sl.column(int, default=0)
    rules = (
        sl.on(
            CommitMade,
            commits=sl.count(),
            merges=sl.add("merges"),
            added=sl.add("added"),
            removed=sl.add("removed"),
        ),
    )


@dataclass(slots=True)
class Directory:
    """A directory with everything below it; it stays known when its last file is gone."""

    path: str = ""
    files: int = 0
    changes: int = 0
    added: int = 0
    removed: int = 0


@dataclass(frozen=True, slots=True)
class Touched:
    """What one change of a file means for one directory above it."""

    directory: str
    files: int
    added: int
    removed: int


@app.projection("directories")
class Directories(sl.MultiStream[Directory]):
    """One document per directory: each change of a file fans out to all directories above."""

    @sl.fan_out
    def touched(self, event: Change) -> list[Touched]:
        here = directories(event.path)
        before = directories(event.old_path) if isinstance(event, FileRenamed) else here
        if isinstance(event, FileAdded):
            before = []
        gone = isinstance(event, FileDeleted)
        added, removed = event.added or 0, event.removed or 0
        parts = [Touched(one, (not gone) - (one in before), added, removed) for one in here]
        return [*parts, *(Touched(one, -1, 0, 0) for one in before if one not in here)]

    @sl.key
    def directory(self, part: Touched) -> str:
        return key(part.directory)

    @sl.apply
    def count(self, directory: Directory, part: Touched) -> None:
        directory.path = part.directory
        directory.changes += 1
        directory.files += part.files
        directory.added += part.added
        directory.removed += part.removed


# ---- from git


def tenant_of(repo: Path, head: str) -> str:
    """Every repository and every HEAD of it has a ledger of its own."""
    name = readable(os.fsencode(repo.resolve().name))[:40] or "repository"
    return f"{name}@{head[:16]}"


def events(repo: Path, head: str) -> Iterator[sl.ImportedEvent]:
    """The history up to *head* as events, oldest first. Ids are derived: importing twice is safe."""
    tenant = tenant_of(repo, head)
    for commit in history.changes(repo, at=head):
        author = f"{commit.author} <{commit.email}>"
        made = CommitMade(
            hash=commit.hash,
            author=author,
            committed_at=commit.committed_at,
            subject=commit.subject.replace("\0", " ")[:200],
            merges=int(commit.is_merge),
            added=commit.added,
            removed=commit.removed,
        )
        yield sl.ImportedEvent(
            COMMITS, made, id=uuid5(_NAMESPACE, commit.hash), tenant=tenant, stream_type="commits"
        )
        for change in commit.changes:
            yield sl.ImportedEvent(
                f"file/{change.stream}",
                _event(change, commit, author),
                id=uuid5(_NAMESPACE, f"{commit.hash} {change.stream}\n{change.kind}"),
                tenant=tenant,
                stream_type="file",
            )


def _event(change: history.Change, commit: Commit, author: str) -> Change:
    about = (change.path, commit.hash, author, commit.committed_at, change.added, change.removed)
    if change.kind is Kind.DELETED:
        return FileDeleted(*about)
    mode, blob = change.mode or "", change.blob or ""
    if change.kind is Kind.RENAMED:
        return FileRenamed(*about, change.old_path or "", mode, blob)
    return (FileAdded if change.kind is Kind.ADDED else FileModified)(*about, mode, blob)
