"""gitledger as a user runs it: imports, catches up, and is verified against git, or says what differs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE)]

from git_repository import Repo, text  # noqa: E402

CORRUPTIONS = {
    "files": """UPDATE strandline.doc_files_v1 SET data = jsonb_set(data, '{lines}', '99') WHERE data->>'path' = 'a b.txt'""",
    "authors": """DELETE FROM strandline.doc_authors_v1 WHERE id LIKE 'Bob%'""",
    "activity": """UPDATE strandline.table_activity_v1 SET commits = commits + 1""",
    "directories": """UPDATE strandline.doc_directories_v1 SET data = jsonb_set(data, '{files}', '0') WHERE id = 'src'""",
}


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    """Merges, a rename, a deletion, a binary file, odd names, two authors."""
    repo = Repo(tmp_path / "repo")
    first = repo.commit({b"a b.txt": text(*range(10)), b"src/\xff.py": text(1, 2)})
    side = repo.commit(
        {b"a b.txt": text(*range(10)), b"src/\xff.py": text(1, 2), "src/é\n.bin".encode(): b"\0\1"},
        first,
        author=b"Bob <bob@example.org>",
    )
    main = repo.commit({b"moved/a b.txt": text(*range(11)), b"src/\xff.py": text(2)}, first)
    merge = repo.commit(
        {b"moved/a b.txt": text(*range(11)), "src/é\n.bin".encode(): b"\0\1"}, main, side
    )
    repo.commit({b"a b.txt": text(*range(12)), b"src/new": b""}, merge)
    repo.git("symbolic-ref", "HEAD", "refs/heads/main")
    return repo


def run(repo: Path, url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "examples.gitledger", str(repo), "--verify"],
        cwd=ROOT,
        env={**os.environ, "STRANDLINE_DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


async def corrupt(url: str, sql: str) -> str:
    connection = await asyncpg.connect(url)
    try:
        return await connection.execute(sql)
    finally:
        await connection.close()


def test_the_ledger_is_verified_and_a_second_run_changes_nothing(
    repo: Repo, database_url: str
) -> None:
    first = run(repo.path, database_url)
    second = run(repo.path, database_url)

    assert first.returncode == 0, first.stdout + first.stderr
    assert "verified: 2 files, 2 authors" in first.stdout
    assert second.returncode == 0, second.stdout + second.stderr
    assert "are in the ledger already" in second.stdout


async def test_each_corrupted_read_model_is_found(repo: Repo, database_url: str) -> None:
    assert run(repo.path, database_url).returncode == 0

    for model, sql in CORRUPTIONS.items():
        done = await corrupt(database_url, sql)
        told = run(repo.path, database_url)

        assert not done.endswith(" 0"), (model, done)
        assert told.returncode == 1, (model, told.stdout)
        assert f"{model} differs from git" in told.stdout


def test_new_commits_begin_a_ledger_of_their_own(repo: Repo, database_url: str) -> None:
    assert run(repo.path, database_url).returncode == 0
    repo.commit({b"only": text(1)}, repo.git("rev-parse", "HEAD"))

    told = run(repo.path, database_url)

    assert told.returncode == 0, told.stdout + told.stderr
    assert "verified: 1 files" in told.stdout


def test_a_folder_without_history_is_a_plain_error(tmp_path: Path, database_url: str) -> None:
    told = run(tmp_path, database_url)

    assert told.returncode == 2
    assert told.stderr.startswith("error: ")
    assert "Traceback" not in told.stderr
