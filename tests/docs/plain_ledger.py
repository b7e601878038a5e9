"""The read models of gitledger as a plain fold, and how they differ from what git says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from examples.gitledger import history, truth
from examples.gitledger.history import Change, Commit, Kind


@dataclass
class Ledger:
    """The read models, as dictionaries."""

    files: dict[str, truth.File]
    authors: dict[str, truth.Author]
    weeks: dict[str, truth.Week]
    directories: dict[str, truth.Directory]
    streams: dict[str, list[Change]]


def fold(commits: Iterable[Commit]) -> Ledger:
    """Apply every commit as the example's projections do."""
    ledger = Ledger(
        {},
        defaultdict(truth.Author),
        defaultdict(truth.Week),
        defaultdict(truth.Directory),
        defaultdict(list),
    )
    for commit in commits:
        author = ledger.authors[f"{commit.author} <{commit.email}>"]
        for total in (author, ledger.weeks[commit.week]):
            total.commits += 1
            total.merges += commit.is_merge
            total.added += commit.added
            total.removed += commit.removed
        author.changes += len(commit.changes)
        for change in commit.changes:
            ledger.streams[change.stream].append(change)
            _apply_to_files(ledger.files, change)
            _apply_to_directories(ledger.directories, change)
    return ledger


def _apply_to_files(files: dict[str, truth.File], change: Change) -> None:
    if change.kind is Kind.DELETED:
        del files[change.path]
        return
    before = None
    if change.kind is Kind.ADDED:
        assert change.path not in files
        before = truth.File("", "", 0)
    else:
        before = files.pop(change.old_path or change.path)
        assert change.path not in files
    lines = None
    if before.lines is not None and change.added is not None and change.removed is not None:
        lines = before.lines + change.added - change.removed
    files[change.path] = truth.File(change.mode or "", change.blob or "", lines)


def _apply_to_directories(directories: dict[str, truth.Directory], change: Change) -> None:
    new = set(history.directories(change.path))
    old = set(history.directories(change.old_path or change.path))
    for name in new:
        directories[name].added += change.added or 0
        directories[name].removed += change.removed or 0
    for name in new | old:
        directories[name].changes += 1
    if change.kind is not Kind.DELETED:
        for name in new if change.kind is Kind.ADDED else new - old:
            directories[name].files += 1
    for name in new if change.kind is Kind.DELETED else old - new:
        directories[name].files -= 1


def differences(repo: Path) -> list[str]:
    """Answer what the fold and git do not agree about, as lines to read."""
    at = history.head(repo)
    ledger = fold(history.changes(repo, at=at))
    said = truth.files(repo, at=at)
    for path, file in ledger.files.items():
        if file.lines is None and path in said:  # was binary once: its lines cannot be added up
            file.lines = said[path].lines
    pairs: dict[str, tuple[Mapping[str, object], Mapping[str, object]]] = {
        "file": (ledger.files, said),
        "author": (ledger.authors, truth.authors(repo, at=at)),
        "week": (ledger.weeks, truth.weeks(repo, at=at)),
        "directory": (ledger.directories, truth.directories(repo, at=at)),
    }
    return [
        f"{what} {name!r}: {folded.get(name)} here, {told.get(name)} in git"
        for what, (folded, told) in pairs.items()
        for name in sorted({*folded, *told})
        if folded.get(name) != told.get(name)
    ]
