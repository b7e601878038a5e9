"""`strandline queues`: what waits, limits, pauses."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from commands import execute, rows, run

from strandline.cli.queues import FIELDS, SETTINGS_FIELDS

PUT = "INSERT INTO strandline.jobs (id, kind, queue, state, run_at) VALUES ($1, 'k', $2, $3, now())"


def put(url: str, number: int, queue: str, state: int = 0) -> None:
    asyncio.run(execute(url, PUT, number, queue, state))


def one(url: str, name: str) -> dict[str, Any]:
    (found,) = [row for row in rows(url, "queues", "list") if row["name"] == name]
    return found


def test_queues_are_listed_with_what_waits(database_url: str) -> None:
    out, _ = run(database_url, "queues", "list")
    assert "no queue" in out
    for number in range(3):
        put(database_url, number, "mail")
    put(database_url, 3, "mail", state=1)

    found = one(database_url, "mail")
    out, _ = run(database_url, "queues", "list", width=160)

    assert tuple(found) == FIELDS
    assert (found["state"], found["available"], found["scheduled"], found["running"]) == (
        *("open", 3, 1, 0),
    )
    assert found["oldest"] >= 0
    assert "mail" in out


def test_a_queue_is_paused_with_a_reason_and_resumed(database_url: str) -> None:
    done = json.loads(
        run(database_url, "queues", "pause", "mail", "--reason", "moving", "--json")[0]
    )

    assert done == {"name": "mail", "changed": True}
    assert (one(database_url, "mail")["state"], one(database_url, "mail")["paused_reason"]) == (
        *("paused", "moving"),
    )
    out, _ = run(database_url, "queues", "list", width=160)
    assert "moving" in out
    done = json.loads(run(database_url, "queues", "resume", "mail", "--json")[0])
    assert done["changed"] is True
    out, _ = run(database_url, "queues", "resume", "mail")
    assert "was not paused" in out


def test_limits_are_set_one_by_one_and_taken_away(database_url: str) -> None:
    run(database_url, "queues", "set", "mail", "--at-most", "10", "--rate", "100/60")
    out, _ = run(database_url, "queues", "set", "mail", "--per-key", "1")
    assert out.strip() == "mail: 10 in all, 1 a key, 100 in 60 s"

    set_to = json.loads(
        run(database_url, "queues", "set", "mail", "--at-most", "0", "--rate", "0", "--json")[0]
    )

    assert tuple(set_to) == SETTINGS_FIELDS
    assert (set_to["at_most"], set_to["per_key"], set_to["rate"], set_to["set_by"]) == (
        *(None, 1, None, "operator"),
    )


@pytest.mark.parametrize(
    "words", [(), ("--at-most", "-3"), ("--rate", "fast"), ("--rate", "0/60"), ("--rate", "5/0")]
)
def test_limits_that_cannot_be_are_refused(database_url: str, words: tuple[str, ...]) -> None:
    run(database_url, "queues", "set", "mail", *words, code=2)

    assert rows(database_url, "queues", "list") == []


def test_settings_are_forgotten_after_a_question(database_url: str) -> None:
    run(database_url, "queues", "set", "mail", "--concurrency", "3")

    run(database_url, "queues", "forget", "mail", answer="n\n", code=1)
    assert one(database_url, "mail")["concurrency"] == 3
    run(database_url, "queues", "forget", "mail", answer="y\n")

    assert rows(database_url, "queues", "list") == []
    out, _ = run(database_url, "queues", "forget", "mail", "--yes")
    assert "had no settings" in out
