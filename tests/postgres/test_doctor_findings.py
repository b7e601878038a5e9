"""What hostile names, many shards, missing privileges and outages do to `doctor` and `top`."""

from __future__ import annotations

import asyncio
import json
import shlex
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import pytest
from commands import execute, put_node, put_work, rows, run
from pictured import WELL, shard, with_shards, work
from typer.testing import CliRunner

from strandline.cli.main import app as commands
from strandline.jobs.queues import QueueState
from strandline.survey.diagnosis import findings
from strandline.survey.facts import QueueFacts, WorkFacts
from strandline.survey.finding import FAIL, OK

LATE = {"lag_events": 10, "lag_seconds": 900.0}


def doctor(url: str, *words: str) -> list[dict[str, Any]]:
    """What the doctor finds, whatever its exit code says."""
    environment = {"STRANDLINE_DATABASE_URL": url, "STRANDLINE_APP": None}
    done = CliRunner().invoke(commands, ["doctor", *words, "--json"], env=environment)
    assert done.stdout, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


# ---- names


@pytest.mark.parametrize("name", ["-x", "--all", "a b'c\"; rm -rf ~ #", "$(reboot)", "*", "ü&|"])
def test_cures_work_for_whatever_a_queue_and_a_schedule_are_called(
    database_url: str, name: str
) -> None:
    run(database_url, "jobs", "enqueue", "send", f"--queue={name}")
    run(database_url, "queues", "pause", "--reason", "x", "--", name)
    asyncio.run(
        execute(
            database_url,
            "INSERT INTO strandline.schedules (name, spec, job, next_at, error) VALUES"
            " ($1, '@daily', '{}', now(), 'no such kind')",
            name,
        )
    )

    for one in doctor(database_url):
        if one["check"] in ("jobs", "schedules") and one["outcome"] != OK:
            run(database_url, *shlex.split(one["cure"])[1:], answer="y\n")

    assert [one["paused_at"] for one in rows(database_url, "queues", "list")] == [None]
    assert rows(database_url, "cron", "list") == []


def test_a_busy_queue_is_widened_by_the_command_that_is_told(database_url: str) -> None:
    run(database_url, "queues", "set", "--at-most", "2", "--", "-x")
    busy = QueueState("-x", available=3, oldest=900.0, running=2, at_most=2)
    (found,) = [
        one for one in findings(replace(WELL, queues=(QueueFacts(busy),))) if one.name == "jobs"
    ]

    run(database_url, *shlex.split(found.cure)[1:])

    assert [one["at_most"] for one in rows(database_url, "queues", "list")] == [4]


def test_what_others_wrote_cannot_move_the_cursor(database_url: str) -> None:
    evil = "\x1b[2J\x07\u202enoitcejni\n\r"
    asyncio.run(put_node(database_url, f"n{evil}", leads=True))
    asyncio.run(put_work(database_url, "orders:v1:all"))
    for table in ("queues (name, paused_at, paused_reason)",):
        text = f"INSERT INTO strandline.{table} VALUES ($1, now(), $1)"
        asyncio.run(execute(database_url, text, f"q{evil}"))
    run(database_url, "jobs", "enqueue", "send", "--queue", f"q{evil}")

    for words in (["doctor"], ["top", "--once"]):
        environment = {"STRANDLINE_DATABASE_URL": database_url, "COLUMNS": "100"}
        text = CliRunner().invoke(commands, words, env=environment).stdout
        assert "2J" in text
        assert not set(text) & set("\x1b\x07\u202e\r")


# ---- many


def test_ten_thousand_shards_are_judged_in_a_moment() -> None:
    names = [f"p{number}:v1" for number in range(10_000)]

    def all_of(state: str) -> Any:
        return with_shards(
            *(shard(f"{name}:all", state, projection=name, **LATE) for name in names)
        )

    lost = WorkFacts(tuple(work(f"{name}:all", unplaced="no label") for name in names))
    pictures = [
        (all_of("orphaned"), None),
        (replace(all_of("unplaced"), work=lost), None),
        (
            all_of("running"),
            replace(all_of("running"), taken_at=WELL.taken_at - timedelta(minutes=1)),
        ),
    ]

    began = time.monotonic()
    for picture, before in pictures:
        assert len(findings(picture, before=before)) < 20

    assert time.monotonic() - began < 5  # 0.2 s where nobody else works; once it took 30


# ---- privileges, outages


@asynccontextmanager
async def role(url: str, *rights: str) -> AsyncIterator[str]:
    """A role with *rights*, whose name stands for {}; the URL by which it connects."""
    name = f'{urlsplit(url).path[1:]} "r"'
    quoted = '"' + name.replace('"', '""') + '"'
    await execute(url, f"CREATE ROLE {quoted} LOGIN PASSWORD 'r'")
    for one in rights:
        await execute(url, one.format(quoted))
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    try:
        yield urlunsplit(parts._replace(netloc=f"{quote(name)}:r@{host}"))
    finally:
        await execute(url, f"DROP OWNED BY {quoted}")
        await execute(url, f"DROP ROLE {quoted}")


def test_missing_rights_are_told_and_cured_and_the_rest_is_still_looked_at(
    database_url: str,
) -> None:
    with asyncio.Runner() as runner:
        for rights in (
            (),
            (
                "GRANT USAGE ON SCHEMA strandline TO {}",
                "GRANT SELECT ON ALL TABLES IN SCHEMA strandline TO {}",
            ),
        ):
            context = role(database_url, *rights)
            url = runner.run(context.__aenter__())
            try:
                found = doctor(url)
                (told,) = [one for one in found if one["check"] == "rights"]
                assert told["outcome"] == FAIL
                assert any(one["check"] == "high-water mark" for one in found) == bool(rights)

                for text in told["cure"].split(";"):
                    runner.run(execute(database_url, text))

                (told,) = [one for one in doctor(url) if one["check"] == "rights"]
                assert told["outcome"] != FAIL
            finally:
                runner.run(context.__aexit__(None, None, None))


def test_who_cannot_see_the_transactions_of_others_does_not_call_them_well(
    database_url: str,
) -> None:
    with asyncio.Runner() as runner:
        context = role(
            database_url,
            "GRANT USAGE ON SCHEMA strandline TO {}",
            "GRANT SELECT ON ALL TABLES IN SCHEMA strandline TO {}",
        )
        url = runner.run(context.__aenter__())
        try:
            (told,) = [one for one in doctor(url) if one["check"] == "statistics"]
            assert "sees only its own" in told["finding"]

            for text in told["cure"].split(";"):
                runner.run(execute(database_url, text))

            assert not [one for one in doctor(url) if one["check"] == "statistics"]
        finally:
            runner.run(context.__aexit__(None, None, None))
