"""What git itself says, asked in other ways than the history is read, to compare with."""

from __future__ import annotations

from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

from examples.gitledger.git import DIFF, LOG, MARK, answer, readable, words
from examples.gitledger.history import directories as directories_of
from examples.gitledger.history import head


@dataclass(slots=True)
class File:
    """One file of the tree."""

    mode: str
    blob: str
    lines: int | None  # None where git calls it binary


@dataclass(slots=True)
class Author:
    """What one author did."""

    commits: int = 0
    merges: int = 0
    added: int = 0
    removed: int = 0
    changes: int = 0  # of files, by commits of the mainline


@dataclass(slots=True)
class Week:
    """What happened in one week."""

    commits: int = 0
    merges: int = 0
    added: int = 0
    removed: int = 0


@dataclass(slots=True)
class Directory:
    """One directory with all that is below it."""

    files: int = 0
    changes: int = 0
    added: int = 0
    removed: int = 0


def files(repo: Path, *, at: str | None = None) -> dict[str, File]:
    """Path → file, from `git ls-tree -r` and `git diff-tree --numstat` against the empty tree."""
    commit = at or head(repo)
    found = {}
    for entry in words(repo, "ls-tree", "-r", "-z", "--full-tree", commit):
        about, path = entry.split(b"\t", 1)
        mode, _, blob = about.decode().split(" ")
        found[readable(path)] = File(mode, blob, None)
    empty = answer(repo, "hash-object", "-t", "tree", "--stdin").decode().strip()
    options = ("-r", "-z", "--numstat", *DIFF, "--no-renames")
    for entry in words(repo, "diff-tree", *options, empty, commit):
        added, _, path = entry.split(b"\t", 2)
        found[readable(path)].lines = None if added == b"-" else int(added)
    return found


def authors(repo: Path, *, at: str | None = None) -> dict[str, Author]:
    """`Name <email>` → author: commits from `git shortlog -sne`, lines from `git log --numstat`."""
    commit = at or head(repo)
    found: defaultdict[str, Author] = defaultdict(Author)
    for line in answer(repo, "shortlog", "-sne", commit).removesuffix(b"\n").split(b"\n"):
        number, author = line.split(b"\t", 1)
        found[readable(author)].commits = int(number)
    for one in _commits(repo, commit):
        found[one.author].merges += one.is_merge
        found[one.author].added += one.added
        found[one.author].removed += one.removed
    for changed in _mainline(repo, commit):
        found[changed.author].changes += 1
    return dict(found)


def weeks(repo: Path, *, at: str | None = None) -> dict[str, Week]:
    """ISO week of the commit time in UTC → week, from `git log --numstat`."""
    found: defaultdict[str, Week] = defaultdict(Week)
    for one in _commits(repo, at or head(repo)):
        week = found[one.week]
        week.commits += 1
        week.merges += one.is_merge
        week.added += one.added
        week.removed += one.removed
    return dict(found)


def directories(repo: Path, *, at: str | None = None) -> dict[str, Directory]:
    """Directory → directory, `.` is the top, those that are gone too.

    The files from `git ls-tree -r`, the rest from `git log --first-parent --numstat`. A rename is
    a change of the directories of both paths; its lines belong to those of the new path.
    """
    commit = at or head(repo)
    found: defaultdict[str, Directory] = defaultdict(Directory)
    for name in words(repo, "ls-tree", "-r", "-z", "--full-tree", "--name-only", commit):
        for parent in directories_of(readable(name)):
            found[parent].files += 1
    for changed in _mainline(repo, commit):
        parents = directories_of(changed.path)
        for parent in parents:
            found[parent].added += changed.added
            found[parent].removed += changed.removed
        for parent in {*directories_of(changed.old_path), *parents}:
            found[parent].changes += 1
    return dict(found)


@dataclass(slots=True)
class _Commit:
    author: str
    week: str
    is_merge: bool
    added: int = 0
    removed: int = 0


@lru_cache(maxsize=1)
def _commits(repo: Path, commit: str) -> list[_Commit]:
    form = "--format=tformat:%x01%cd%x01%P%x01%aN <%aE>"
    date = "--date=format-local:%G-W%V"  # git reckons the week; it runs in UTC
    arguments = ("log", "--numstat", "--diff-merges=off", form, date, *LOG, commit, "--")
    found: list[_Commit] = []
    for line in words(repo, *arguments, end=b"\n"):
        if line.startswith(MARK):
            _, week, parents, author = line.split(MARK, 3)
            found.append(_Commit(readable(author), week.decode(), b" " in parents))
        elif line:
            added, removed, _ = line.split(b"\t", 2)
            found[-1].added += _number(added)
            found[-1].removed += _number(removed)
    return found


@dataclass(frozen=True, slots=True)
class _Changed:
    author: str
    old_path: str
    path: str
    added: int
    removed: int


@lru_cache(maxsize=1)
def _mainline(repo: Path, commit: str) -> list[_Changed]:
    mainline = ("--first-parent", "--diff-merges=first-parent")
    form = "--format=tformat:%x01%aN <%aE>"
    found: list[_Changed] = []
    author = ""
    with closing(
        words(repo, "log", "-z", "--numstat", *mainline, form, *LOG, commit, "--")
    ) as output:
        for word in output:
            if word.startswith(MARK):
                author = readable(word.removeprefix(MARK))
                continue
            added, removed, path = word.removeprefix(b"\n").split(b"\t", 2)
            old, new = (path, path) if path else islice(output, 2)
            lines = _number(added), _number(removed)
            found.append(_Changed(author, readable(old), readable(new), *lines))
    return found


def _number(lines: bytes) -> int:
    return 0 if lines == b"-" else int(lines)
