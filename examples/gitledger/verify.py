"""Compares every read model with what git itself says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from examples.gitledger import truth
from examples.gitledger.history import key
from examples.gitledger.ledger import Activity, Authors, Directories, Files, app, tenant_of

SHOWN = 5  # differences told of each read model


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one read model compares with git."""

    model: str
    command: str
    compared: int
    differences: tuple[str, ...]


async def verify(repo: Path, head: str) -> list[Verdict]:
    """Compare the ledger of *repo* at *head*, read model by read model."""
    tenant = tenant_of(repo, head)
    return [
        _verdict(
            "files", "git ls-tree -r, git diff-tree --numstat", *await _files(repo, head, tenant)
        ),
        _verdict(
            "authors", "git shortlog -sne, git log --numstat", *await _authors(repo, head, tenant)
        ),
        _verdict("activity", "git log --numstat", *await _activity(repo, head, tenant)),
        _verdict(
            "directories",
            "git ls-tree -r, git log --first-parent --numstat",
            *await _directories(repo, head, tenant),
        ),
    ]


Sides = tuple[Mapping[str, Any], Mapping[str, Any]]
"""What the read model says and what git says, by the same keys."""


async def _files(repo: Path, head: str, tenant: str) -> Sides:
    ours = {
        file.path: (file.mode, file.blob, file.lines)
        for _, file in await app.query(Files, tenant=tenant)
    }
    git: dict[str, tuple[str, str, int | None]] = {}
    for path, one in truth.files(repo, at=head).items():
        # Lines add up only over changes whose lines git counted: not where content was binary once.
        counted = path not in ours or ours[path][2] is not None
        git[path] = (one.mode, one.blob, one.lines if counted else None)
    return ours, git


async def _authors(repo: Path, head: str, tenant: str) -> Sides:
    ours = {name: asdict(author) for name, author in await app.query(Authors, tenant=tenant)}
    git = {
        key(name): {"name": name, **asdict(one)}
        for name, one in truth.authors(repo, at=head).items()
    }
    return ours, git


async def _activity(repo: Path, head: str, tenant: str) -> Sides:
    rows = await app.rows(Activity, tenant=tenant)
    ours = {row.week: {name: getattr(row, name) for name in WEEK} for row in rows}
    git = {week: asdict(one) for week, one in truth.weeks(repo, at=head).items()}
    return ours, git


WEEK = ("commits", "merges", "added", "removed")


async def _directories(repo: Path, head: str, tenant: str) -> Sides:
    ours = {name: asdict(one) for name, one in await app.query(Directories, tenant=tenant)}
    git = {
        key(path): {"path": path, **asdict(one)}
        for path, one in truth.directories(repo, at=head).items()
    }
    return ours, git


def _verdict(model: str, command: str, ours: Mapping[str, Any], git: Mapping[str, Any]) -> Verdict:
    differences = [
        f"{name!r}: the read model has {ours.get(name, 'nothing')}, git has {git.get(name, 'nothing')}"
        for name in sorted({*ours, *git})
        if ours.get(name) != git.get(name)
    ]
    return Verdict(model, command, len(git), tuple(differences))
