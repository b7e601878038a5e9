"""`strandline cron`: when jobs are enqueued again and again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from commands import execute, rows, run

from strandline.cli.cron import FIELDS, NEXT_FIELDS

JOB = {"job": {"kind": "report", "args": '{"days": 3}', "queue": "mail"}}
PUT = "INSERT INTO strandline.schedules (name, spec, zone, job, next_at, error) VALUES ($1, $2, $3, $4, $5, $6)"


@pytest.fixture
def url(database_url: str) -> Iterator[str]:
    """Two schedules, one of which could not be fired."""
    due = datetime(2100, 1, 1, 9, 0, tzinfo=UTC)

    async def put() -> None:
        job = json.dumps(JOB)
        await execute(database_url, PUT, "report", "0 9 * * *", "Europe/Berlin", job, due, None)
        await execute(database_url, PUT, "sweep", "@hourly", "UTC", job, due, "no such thing")

    asyncio.run(put())
    yield database_url


def one(url: str, name: str) -> dict[str, Any]:
    (found,) = [row for row in rows(url, "cron", "list") if row["name"] == name]
    return found


def test_schedules_are_listed_with_what_is_wrong(url: str) -> None:
    found = rows(url, "cron", "list")
    out, _ = run(url, "cron", "list", width=200)

    assert [(row["name"], row["state"]) for row in found] == [
        ("report", "active"),
        ("sweep", "failing"),
    ]
    assert tuple(found[0]) == FIELDS
    assert found[0]["job"] == JOB
    assert "no such thing" in out
    assert "Europe/Berlin" in out


def test_a_schedule_is_paused_and_resumed(url: str) -> None:
    done = json.loads(run(url, "cron", "pause", "report", "--json")[0])
    assert (done["name"], done["state"]) == ("report", "paused")
    assert one(url, "report")["paused_at"] is not None

    out, _ = run(url, "cron", "resume", "report")

    assert "is due at 2100-01-01 09:00:00 UTC" in out
    assert one(url, "report")["state"] == "active"
    run(url, "cron", "pause", "nothing", code=4)


def test_a_job_is_enqueued_out_of_turn(url: str) -> None:
    run(url, "cron", "pause", "report")

    done = json.loads(run(url, "cron", "run", "report", "--json")[0])

    found = asyncio.run(
        execute(url, "SELECT kind || queue || args FROM strandline.jobs WHERE id = $1", done["job"])
    )
    assert found == 'reportmail{"days": 3}'
    assert (one(url, "report")["fired"], one(url, "report")["last_job"]) == (1, done["job"])
    run(url, "cron", "run", "nothing", code=4)


def test_the_next_moments_are_shown_in_both_times(url: str) -> None:
    found = rows(url, "cron", "next", "report", "--count", "2")
    out, _ = run(url, "cron", "next", "report", "--count", "2")

    assert tuple(found[0]) == NEXT_FIELDS
    assert [row["at"] for row in found] == ["2100-01-01T09:00:00Z", "2100-01-02T08:00:00Z"]
    assert "Sat 2100-01-02 09:00:00" in out
    run(url, "cron", "next", "nothing", code=4)


def test_an_expression_is_read_without_any_database() -> None:
    nowhere = "postgresql://nobody@127.0.0.1:1/none"

    found = rows(nowhere, "cron", "next", "--spec", "30 2 * * *", "--zone", "Europe/Berlin")

    assert len(found) == 5
    assert all("T02:30:00" in row["local"] or "T03:" in row["local"] for row in found)
    run(nowhere, "cron", "next", "--spec", "30 25 * * *", code=2)
    run(nowhere, "cron", "next", "--spec", "@daily", "--zone", "Europe/Nowhere", code=2)
    run(nowhere, "cron", "next", code=2)
    run(nowhere, "cron", "next", "report", "--spec", "@daily", code=2)


def test_a_schedule_is_forgotten_after_a_question(url: str) -> None:
    run(url, "cron", "forget", "sweep", answer="n\n", code=1)
    assert len(rows(url, "cron", "list")) == 2

    run(url, "cron", "forget", "sweep", "--yes")

    assert [row["name"] for row in rows(url, "cron", "list")] == ["report"]
    run(url, "cron", "forget", "sweep", "--yes", code=4)


def test_a_schedule_whose_job_is_no_json_is_listed_with_its_text(url: str) -> None:
    asyncio.run(execute(url, "UPDATE strandline.schedules SET job = 'no' WHERE name = 'sweep'"))

    assert one(url, "sweep")["job"] == "no"


def test_control_characters_of_a_name_are_not_written_back(url: str) -> None:
    name = "a\x1b[2Jb"
    asyncio.run(
        execute(url, "UPDATE strandline.schedules SET name = $1 WHERE name = 'sweep'", name)
    )

    _, told = run(url, "cron", "forget", name, answer="n\n", code=1)
    assert "a\\u001b[2Jb" in told
    for words in (("cron", "forget", f"{name}c", "-y"), ("queues", "forget", name, "-y")):
        out, told = run(url, *words, code=4 if words[0] == "cron" else 0)
        assert "\x1b" not in out + told
