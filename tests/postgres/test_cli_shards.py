"""What the command line tells of projections that are cut into several shards."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from typer.testing import CliRunner

from strandline.cli.main import app as commands
from strandline.cli.projections import LIST_FIELDS

CODE = """
from dataclasses import dataclass
import strandline as sl

app = sl.App("sliced")

@app.event("counted")
@dataclass(frozen=True)
class Counted:
    by: int = 1

@dataclass
class Count:
    total: int = 0

@app.projection("counts", shards=SHARDS)
class Counts(sl.SingleStream[Count]):
    @sl.apply
    def counted(self, count: Count, event: Counted) -> None:
        count.total += event.by
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database_url: str) -> Any:
    """``run(shards, words)``: a command on an App that wants so many shards; stdout and stderr."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def run(shards: int, *words: str) -> tuple[str, str]:
        (tmp_path / "cli_sliced.py").write_text(CODE.replace("SHARDS", str(shards)))
        sys.modules.pop("cli_sliced", None)
        environment = {"STRANDLINE_DATABASE_URL": database_url, "COLUMNS": "80"}
        done = CliRunner().invoke(commands, list(words), env=environment)
        assert done.exit_code == 0, (done.stdout, done.stderr, done.exception)
        return done.stdout, done.stderr

    yield run
    sys.modules.pop("cli_sliced", None)


def sql(url: str, text: str) -> None:
    async def execute() -> None:
        connection = await asyncpg.connect(url)
        await connection.execute(text)
        await connection.close()

    asyncio.run(execute())


LIST = ("projections", "list", "cli_sliced:app")
REBUILD = ("projections", "rebuild", "counts", "--app", "cli_sliced:app", "--yes")
FILL = """SELECT strandline.append('s' || n, '[{"type": "counted", "data": {"by": 1}}]')
            FROM generate_series(1, 20) n"""


def test_every_shard_is_listed_and_together_they_are_one_line(run: Any, database_url: str) -> None:
    sql(database_url, FILL)
    run(3, *REBUILD)

    found = json.loads(run(3, *LIST, "--json")[0])
    (one,) = json.loads(run(3, *LIST, "--by", "projection", "--json")[0])
    text, _ = run(3, *LIST)

    assert [row["shard"] for row in found] == [f"counts:v1:{part}/3" for part in (1, 2, 3)]
    assert {(row["position"], row["shards"], row["wanted"]) for row in found} == {(20, 3, 3)}
    assert tuple(one) == LIST_FIELDS
    assert (one["shard"], one["shards"], one["position"], one["lag_events"]) == (None, 3, 20, 0)
    assert text.count("counts:v1:") == 3
    assert "to be cut" not in text


def test_a_rebuild_cuts_as_the_code_wants_it(run: Any, database_url: str) -> None:
    sql(database_url, FILL)
    for shards in (1, 4, 2):
        text, _ = run(shards, *REBUILD)
        assert "is rebuilt up to position 20" in text

    text, _ = run(2, "projections", "show", "counts", "s7", "--app", "cli_sliced:app")
    assert '"total": 1' in text


def test_a_change_of_the_cut_that_is_under_way_is_told(run: Any, database_url: str) -> None:
    sql(database_url, FILL)
    run(3, *REBUILD)
    sql(
        database_url,
        """UPDATE strandline.slicings SET wanted = 5;
           UPDATE strandline.shards SET seal = 20;
           UPDATE strandline.shards SET position = 11 WHERE name = 'counts:v1:2/3'""",
    )

    text, _ = run(5, *LIST)

    told = " ".join(text.split())
    assert (
        "counts is to be cut into 5 shards instead of 3: 2 of them have come to position 20,"
        " where all stop" in told
    )


def test_the_worst_shard_speaks_for_its_projection(run: Any, database_url: str) -> None:
    sql(database_url, FILL)
    run(3, *REBUILD)
    sql(
        database_url,
        """UPDATE strandline.shards SET position = 4 WHERE name = 'counts:v1:2/3';
           UPDATE strandline.shard_status SET state = 'paused', reason = 'no such luck'
            WHERE name = 'counts:v1:3/3'""",
    )

    (one,) = json.loads(run(3, *LIST, "--by", "projection", "--json")[0])
    text, _ = run(3, *LIST)

    assert (one["state"], one["reason"]) == ("paused", "no such luck")
    assert (one["position"], one["lag_events"]) == (4, 16)
    assert "counts:v1:3/3 paused: no such luck" in text
