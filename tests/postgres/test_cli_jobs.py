"""`strandline jobs`: look, try again, cancel, discard, enqueue."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from commands import ended, execute, rows, run, started, until

from strandline.cli.job_shown import FIELDS
from strandline.cli.jobs import COUNT_FIELDS

ERROR = '[{"attempt": 3, "at": "2100-01-01", "class": "OSError", "message": "gone\\u001b[2J", "stack": "line 7"}]'
LIVE = (
    "INSERT INTO strandline.jobs (id, kind, queue, state, attempt, args, meta, run_at, key, claim)"
    " VALUES ($1, $2, $3, $4, $5, $6, $7, now() + interval '1 h', $8, $9)"
)
DEAD = (
    "INSERT INTO strandline.dead_jobs (id, created_at, priority, attempt, max_attempts, flags, queue,"
    " kind, args, errors, fingerprint) VALUES ($1, now(), 5, 3, 3, 0, 'mail', 'send', $2, $3, 'f')"
)
APP = ("--app", "jobs_shop:app")


@pytest.fixture
def url(database_url: str) -> Iterator[str]:
    """One available, one retryable, one running, two dead."""

    async def put() -> None:
        tags = '{"tags": ["bill"]}'
        live = [
            (1, "send", "mail", 0, 0, '{"to": "ada"}', tags, "a", None),
            (2, "charge", "default", 1, 1, "{}", None, None, None),
            (3, "send", "mail", 2, 1, "{}", None, None, 7 << 32),
        ]
        for row in live:
            await execute(database_url, LIVE, *row)
        await execute(database_url, DEAD, 4, '{"to": "bo"}', ERROR)
        await execute(database_url, DEAD, 5, "gAAAAA", None)

    asyncio.run(put())
    yield database_url


def ids(url: str, *words: str) -> list[int]:
    return [row["id"] for row in rows(url, "jobs", "list", *words)]


def changed(url: str, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(url, "jobs", *words, "--json")[0])
    return found


def test_jobs_are_listed_by_what_is_chosen_and_page_by_page(url: str) -> None:
    found = rows(url, "jobs", "list")

    assert [(row["id"], row["state"]) for row in found] == [
        (1, "available"),
        (2, "retryable"),
        (3, "running"),
        (4, "dead"),
        (5, "dead"),
    ]
    assert tuple(found[0]) == FIELDS
    assert (found[0]["args"], found[0]["meta"]) == ({"to": "ada"}, {"tags": ["bill"]})
    assert found[4]["args"] == "gAAAAA", "what is encrypted is no JSON"
    assert ids(url, "--state", "dead") == [4, 5]
    assert ids(url, "--queue", "mail", "--kind", "send") == [1, 3, 4, 5]
    assert ids(url, "--tag", "bill") == [1]
    assert ids(url, "--key", "a") == [1]
    assert ids(url, "--limit", "2", "--after", "2") == [3, 4]
    assert ids(url, "--newest", "--limit", "2") == [5, 4]
    out, _ = run(url, "jobs", "list", "--limit", "2")
    assert "more with --after 2" in out
    run(url, "jobs", "list", "--state", "lost", code=2)
    out, _ = run(url, "jobs", "list", "--queue", "nothing")
    assert "no such jobs" in out


def test_a_job_is_shown_with_its_errors_and_no_control_characters(url: str) -> None:
    shown = json.loads(run(url, "jobs", "show", "4", "--json")[0])
    out, _ = run(url, "jobs", "show", "4")

    assert shown["errors"][0]["class"] == "OSError"
    assert "line 7" in out
    assert "\x1b[2J" not in out
    assert 'args: {"to": "bo"}' in out
    run(url, "jobs", "show", "99", code=4)


def test_jobs_are_counted_by_queue_and_state(url: str) -> None:
    found = rows(url, "jobs", "counts")

    assert tuple(found[0]) == COUNT_FIELDS
    assert {(row["queue"], row["state"]): row["count"] for row in found} == {
        ("default", "retryable"): 1,
        ("mail", "available"): 1,
        ("mail", "running"): 1,
        ("mail", "dead"): 2,
    }
    out, _ = run(url, "jobs", "counts")
    assert "~" not in out


def test_dead_jobs_are_tried_again_and_waiting_ones_run_now(url: str) -> None:
    run(url, "jobs", "retry", code=2)

    assert changed(url, "retry", "4") == {"changed": 1}
    assert changed(url, "retry", "--state", "retryable") == {"changed": 1}

    assert ids(url, "--state", "available") == [1, 2, 4]
    assert changed(url, "retry", "--all", "--attempts", "5") == {"changed": 1}
    (row,) = [one for one in rows(url, "jobs", "list") if one["id"] == 5]
    assert (row["attempt"], row["max_attempts"]) == (3, 8)
    assert changed(url, "retry", "4") == {"changed": 0}


def test_jobs_are_cancelled_by_id_or_after_a_question(url: str) -> None:
    assert changed(url, "cancel", "1", "--reason", "mistake") == {"changed": 1, "asked": 0}
    run(url, "jobs", "cancel", "--queue", "mail", "--reason", "all of it", answer="n\n", code=1)
    run(url, "jobs", "cancel", "--reason", "nothing is chosen", "--yes", code=2)

    done = changed(url, "cancel", "--queue", "mail", "--reason", "all of it", "--yes")

    assert done == {"changed": 0, "asked": 1}
    states = {row["id"]: (row["state"], row["reason"]) for row in rows(url, "jobs", "list")}
    assert states[1] == ("cancelled", "mistake")
    assert states[3] == ("running", "all of it")
    assert states[4][0] == "dead"
    out, _ = run(url, "jobs", "list", "--state", "running", width=160)
    assert "told to end" in out


def test_dead_jobs_are_discarded_after_a_question(url: str) -> None:
    run(url, "jobs", "discard", "4", "--reason", "over", answer="n\n", code=1)
    assert ids(url, "--state", "dead") == [4, 5]

    assert changed(url, "discard", "4", "--reason", "over", "--yes") == {"changed": 1}
    assert changed(url, "discard", "1", "--reason", "alive", "--yes") == {"changed": 0}

    assert ids(url, "--state", "discarded") == [4]
    assert ids(url, "--state", "available") == [1]


def test_what_is_chosen_is_told_before_and_has_to_be_chosen(url: str) -> None:
    words = ("--reason", "old")
    _, told = run(
        url, *("jobs", "discard", "--fingerprint", "a\x1b[2Jb", *words), answer="n\n", code=1
    )
    assert "fingerprint a\\u001b[2Jb" in told
    for command in (("cancel", *words), ("discard", *words), ("retry",)):
        _, told = run(url, "jobs", *command, code=2)
        assert "--all" in told and "all=True" not in told


def test_a_job_that_is_not_there_is_an_error_of_its_own(url: str) -> None:
    for command in (("cancel", "--reason", "x"), ("discard", "--reason", "x", "-y"), ("retry",)):
        _, told = run(url, "jobs", *command, "777", code=4)
        assert "777" in told
    assert changed(url, "cancel", "1", "777", "--reason", "one of them")["changed"] == 1


def test_arguments_that_are_no_json_object_are_refused_with_a_sentence(database_url: str) -> None:
    for args in ("to=3", "[1]", "{"):
        _, told = run(database_url, "jobs", "enqueue", "send", "--args", args, code=2)
        assert "--args is no JSON object" in told


def test_a_delay_is_counted_by_the_servers_clock(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 0.0)
    changed(database_url, "enqueue", "send", "--delay", "3600")

    (row,) = rows(database_url, "jobs", "list")
    assert row["state"] == "scheduled"


def test_text_that_is_no_json_is_listed_as_text(url: str) -> None:
    asyncio.run(execute(url, "UPDATE strandline.jobs SET meta = 'nonsense' WHERE id = 1"))

    assert [row["meta"] for row in rows(url, "jobs", "list") if row["id"] == 1] == ["nonsense"]


def test_a_job_is_enqueued_by_name_without_any_app(database_url: str) -> None:
    done = changed(
        database_url,
        *("enqueue", "send", "--args", '{"to": "ada"}', "--queue", "mail", "--priority", "2"),
        *("--unique", "u", "--max-attempts", "4", "--delay", "60", "--key", "k"),
    )
    again = changed(database_url, "enqueue", "send", "--unique", "u")

    (row,) = rows(database_url, "jobs", "list")
    assert (row["id"], again["id"]) == (done["id"], done["id"])
    assert (row["state"], row["priority"], row["max_attempts"], row["key"]) == (
        *("scheduled", 2, 4, "k"),
    )
    run(database_url, "jobs", "enqueue", "send", "--args", "[1]", code=2)
    run(database_url, "jobs", "enqueue", "send", "--args", "{", code=2)


def test_with_the_app_arguments_are_checked_and_its_options_count(database_url: str) -> None:
    def enqueue(args: str) -> tuple[int, str, str]:
        words = ("jobs", "enqueue", "send", "--args", args, "--priority", "3", "--json", *APP)
        process = started(database_url, *words)
        out, err = process.communicate(timeout=30)
        return process.returncode, out, err

    code, out, err = enqueue('{"to": "ada"}')
    assert code == 0, err
    (row,) = rows(database_url, "jobs", "list")
    assert (row["id"], row["queue"], row["priority"]) == (json.loads(out)["id"], "mail", 3)
    assert row["args"] == {"to": "ada"}

    code, _, err = enqueue('{"to": 7}')
    assert code == 2, err
    code, _, err = enqueue("nothing")
    assert code == 2, err
    assert len(rows(database_url, "jobs", "list")) == 1


def test_the_doctor_sees_jobs_that_nobody_runs_and_those_that_are_dead(url: str) -> None:
    asyncio.run(
        execute(url, "UPDATE strandline.jobs SET created_at = now() - interval '1 h' WHERE id = 1")
    )
    asyncio.run(
        execute(
            url,
            "INSERT INTO strandline.schedules (name, spec, job, next_at) VALUES"
            " ('late', '@daily', '{}', now() - interval '1 h')",
        )
    )

    found = [one for one in rows(url, "doctor") if one["check"] in ("jobs", "schedules")]

    assert {one["outcome"] for one in found} == {"warn"}
    told = " ".join(one["finding"] for one in found)
    assert "1 job waits in queue 'mail', the next for 1 h" in told
    assert "2 dead in queue 'mail'" in told
    assert "late is 1 h" in told
    run(url, "queues", "pause", "mail", "--reason", "a test")
    assert any("is paused (a test)" in one["finding"] for one in rows(url, "doctor"))


def test_the_doctor_finds_nothing_wrong_where_there_are_no_jobs(database_url: str) -> None:
    (found,) = [one for one in rows(database_url, "doctor") if one["check"] == "jobs"]

    assert (found["outcome"], found["finding"]) == ("ok", "0 may run, 0 run, none is dead")


def test_a_node_works_the_queues_that_are_named(database_url: str) -> None:
    run(database_url, "jobs", "enqueue", "send", "--args", '{"to": "ada"}', "--queue", "mail")
    run(database_url, "jobs", "enqueue", "send", "--args", '{"to": "bo"}', "--queue", "other")

    node = started(database_url, "node", "jobs_shop:app", "--queues", "mail=3", "--pulse", "loop")
    try:
        until(lambda: len(rows(database_url, "jobs", "list", "--state", "completed")) == 1)
        left = rows(database_url, "jobs", "list", "--state", "available")
    finally:
        code, _, err = ended(node)

    assert [one["queue"] for one in left] == ["other"]
    assert code == 0, err
    assert "1 kinds of jobs" in err
