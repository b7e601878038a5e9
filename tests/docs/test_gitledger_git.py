"""Neither configuration nor environment changes what gitledger reads, and errors are told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]  # examples/ is not installed

from git_repository import TEN, Repo, text  # noqa: E402
from plain_ledger import differences  # noqa: E402

from examples.gitledger import git, history  # noqa: E402

LATIN = b"caf\xe9 \xff.txt"


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    return Repo(tmp_path / "repo")


def test_configuration_and_environment_do_not_change_the_history(
    repo: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = repo.commit({b"a": TEN, b"d/b": b"  x\n", LATIN: TEN * 3})
    side = repo.commit({b"a2": TEN + b"x\n", b"d/b": b"  x\n", LATIN: TEN * 3}, first)
    main = repo.commit({b"a": TEN, b"d/b": b"\tx\n", LATIN: TEN * 3}, first)
    repo.commit({b"a2": TEN + b"x\n", b"d/b": b"\tx\n", LATIN: TEN}, main, side)
    wanted = list(history.changes(repo.path))
    order = tmp_path / "order"
    order.write_text("d/*\n")
    for setting, value in {
        "diff.renames": "copies",
        "diff.renameLimit": "1",
        "diff.external": "false",
        "diff.algorithm": "patience",
        "diff.noprefix": "true",
        "diff.relative": "true",
        "diff.orderFile": str(order),
        "diff.ignoreSubmodules": "all",
        "diff.submodule": "log",
        "color.ui": "always",
        "core.quotePath": "false",
        "core.abbrev": "5",
        "format.pretty": "oneline",
        "log.showSignature": "true",
        "log.showRoot": "false",
        "log.date": "relative",
        "log.diffMerges": "on",
        "log.mailmap": "false",
        "i18n.logOutputEncoding": "ISO-8859-1",
        "notes.displayRef": "*",
    }.items():
        repo.git("config", setting, value)
    for variable, value in {
        "GIT_DIR": "/nowhere",
        "GIT_EXTERNAL_DIFF": "false",
        "GIT_DIFF_OPTS": "-u9",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "diff.renames",
        "GIT_CONFIG_VALUE_0": "false",
        "GIT_PAGER": "false",
        "TZ": "Pacific/Kiritimati",
    }.items():
        monkeypatch.setenv(variable, value)

    assert list(history.changes(repo.path)) == wanted
    assert differences(repo.path) == []


def test_no_commit_no_repository_no_folder_and_no_git_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = Repo(tmp_path / "empty")
    (tmp_path / "folder").mkdir()

    for place, said in (
        (empty.path, "has no commit yet"),
        (tmp_path / "folder", "is not a git repository"),
        (tmp_path / "nowhere", "is not a directory"),
    ):
        with pytest.raises(git.NoHistory, match=said):
            next(history.changes(place))
    monkeypatch.setenv("PATH", str(tmp_path / "folder"))
    with pytest.raises(git.NoHistory, match="git is not installed"):
        history.head(empty.path)


def test_a_missing_object_ends_the_history_with_an_error(repo: Repo) -> None:
    first = repo.commit({b"a": TEN})
    repo.commit({b"a": TEN * 2}, first)
    lost = repo.blob(TEN)
    (repo.path / "objects" / lost[:2] / lost[2:]).unlink()

    with pytest.raises(git.NoHistory, match="git cannot read"):
        list(history.changes(repo.path))


def test_reading_that_stops_early_leaves_no_git_behind(
    repo: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    before: list[str] = []
    for number in range(3):
        before = [repo.commit({b"a": text(number)}, *before)]
    started: list[subprocess.Popen[bytes]] = []
    start = git._start

    def noted(*given: Any) -> subprocess.Popen[bytes]:
        started.append(start(*given))
        return started[-1]

    monkeypatch.setattr(git, "_start", noted)
    commits = history.changes(repo.path)
    next(commits)
    commits.close()

    assert len(started) > 2
    assert all(process.returncode is not None for process in started)
