"""`strandline projections retire` and `rewind`, and a list with several versions."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tally import connected
from typer.testing import CliRunner, Result

from strandline.cli.main import app as commands

CODE = """
from dataclasses import dataclass
import strandline as sl

app = sl.App("versioned", mode="solo")

@app.event("counted")
@dataclass(frozen=True)
class Counted:
    by: int = 1

@dataclass
class Count:
    total: int = 0

class Counts(sl.SingleStream[Count]):
    @sl.apply
    def counted(self, count: Count, event: Counted) -> None:
        count.total += event.by

for version in (VERSIONS):
    app.projection("counts", version=version)(type("Counts", (Counts,), {}))

@app.subscription("noted")
async def noted(batch: sl.EventBatch) -> None: ...
"""
Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database_url: str) -> Any:
    """``run("1, 2", *words)``: a command on an App that has these versions."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def run(versions: str, *words: str, answer: str | None = None) -> Result:
        (tmp_path / "cli_versioned.py").write_text(CODE.replace("VERSIONS", f"{versions},"))
        sys.modules.pop("cli_versioned", None)
        environment = {
            "STRANDLINE_DATABASE_URL": database_url,
            "STRANDLINE_APP": "cli_versioned:app",
            "COLUMNS": "120",
        }
        return CliRunner().invoke(commands, list(words), env=environment, input=answer)

    def caught_up(versions: str) -> None:
        run(versions, "projections", "list")  # imports it

        async def work() -> None:
            app = sys.modules["cli_versioned"].app
            async with app:
                await app.append("s", [sys.modules["cli_versioned"].Counted()] * 3)
                await app.catch_up()

        asyncio.run(work())

    run.caught_up = caught_up  # type: ignore[attr-defined]  # a second tool of this fixture
    yield run
    sys.modules.pop("cli_versioned", None)


def listed(done: Result) -> list[tuple[str, int | None, str | None]]:
    return [(one["name"], one["version"], one["shard"]) for one in json.loads(done.stdout)]


def test_an_old_version_is_listed_beside_the_new_one_until_it_is_retired(run: Any) -> None:
    run.caught_up("1, 2")
    both = [("counts", 1, "counts:v1:all"), ("counts", 2, "counts:v2:all")]
    assert listed(run("1, 2", "projections", "list", "--json"))[:2] == both
    by = run("1, 2", "projections", "list", "--by", "projection", "--json")
    assert listed(by)[:2] == both, "never summed up over versions"

    done = run("1, 2", "projections", "retire", "counts:v1", "--yes", "--json")

    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == [
        {"label": "counts:v1", "heir": "counts:v2", "effects_after": 3}
    ]
    assert listed(run("1, 2", "projections", "list", "--json"))[0] == both[1]


def test_retiring_asks_first_and_refuses_what_the_app_has(run: Any) -> None:
    run.caught_up("1")

    done = run("1", "projections", "retire", "counts:v1", "--yes")
    assert done.exit_code == 2
    assert "counts:v1 is what this code has" in done.stderr
    done = run("2", "projections", "retire", "counts:v1", answer="n\n")
    assert done.exit_code == 1
    assert "counts:v1 will be dropped: its tables" in done.stderr
    done = run("2", "projections", "retire", "counts:v1", answer="y\n")
    assert (done.exit_code, done.stdout) == (0, "counts:v1 is retired\n")
    done = run("2", "projections", "retire", "others:v1", "--yes")
    assert done.exit_code == 2
    assert "nothing is known of 'others:v1'" in done.stderr


def test_a_subscription_is_rewound_to_a_word_a_position_or_a_time(
    run: Any, database_url: str
) -> None:
    run.caught_up("1")

    async def position() -> int:
        async with connected(database_url) as connection:
            return await connection.fetchval(
                "SELECT position FROM strandline.shards WHERE name = 'noted:all'"
            )

    for to, reached in (("beginning", 0), ("2", 2), ("2020-01-01", 0), ("present", 3)):
        done = run("1", "projections", "rewind", "noted", "--to", to, "--yes", "--json")
        assert done.exit_code == 0, done.stderr
        assert json.loads(done.stdout) == [
            {"subscription": "noted", "position": reached, "shards": 1, "letters": 0}
        ]
        assert asyncio.run(position()) == reached
    done = run("1", "projections", "rewind", "noted", "--to", "1", answer="y\n")
    assert (done.exit_code, done.stdout) == (0, "noted goes on behind position 1\n")


def test_a_rewind_that_cannot_be_is_refused_in_words(run: Any) -> None:
    run.caught_up("1")

    for words, told in (
        (("noted", "--to", "9"), "to=9 lies beyond the high-water mark, which is at 3"),
        (("noted", "--to", "2999-01-01"), "is in the future"),
        (("noted", "--to", "start"), "is not a position from 0"),
        (("counts", "--to", "0"), "counts:v1 is a projection"),
        (("others", "--to", "0"), "no projection 'others'"),
    ):
        done = run("1", "projections", "rewind", *words, "--yes")
        assert done.exit_code == 2, done.stderr
        assert told in done.stderr
