"""`strandline projections rebuild`, `rebuilds`, `cancel`, `verify`, `heal`, as processes of their own."""

from __future__ import annotations

import asyncio
import json
import re
from importlib import import_module
from typing import Any

import pytest
from commands import SHOP, ended, execute, rows, run, started, until

from strandline.cli import output
from strandline.cli.rebuilding import (
    DIFFERENCE_FIELDS,
    HEAL_FIELDS,
    PLAN_FIELDS,
    REBUILDS_FIELDS,
    VERIFY_FIELDS,
)

APP = ("--app", "cli_shop:app")
VERIFY = ("projections", "verify", "accounts", *APP)
REBUILD = ("projections", "rebuild", "accounts", *APP)


@pytest.fixture
def filled(database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Three accounts with five events each, and the read model at the end of the log."""
    monkeypatch.chdir(SHOP)
    monkeypatch.syspath_prepend(str(SHOP))
    asyncio.run(import_module("cli_shop").fill(database_url, 3))
    run(database_url, *REBUILD, "--yes")
    return database_url


def spoil(url: str) -> None:
    asyncio.run(
        execute(
            url,
            """WITH gone AS (DELETE FROM strandline.doc_accounts_v2 WHERE id = 'account-1')
               UPDATE strandline.doc_accounts_v2 SET data = data || '{"balance": 999}'
                WHERE id = 'account-2'""",
        )
    )


def called(url: str, *words: str) -> tuple[int, list[dict[str, Any]], str]:
    """Exit code, JSON and stderr of a command in a process of its own."""
    process = started(url, *words, "--json")
    out, err = process.communicate(timeout=60)
    return process.returncode, json.loads(out or "[]"), err


def test_verify_tells_by_its_exit_code_whether_anything_is_wrong(filled: str) -> None:
    code, (right,), _ = called(filled, *VERIFY)
    assert (code, right["checked"], right["differing"]) == (0, 3, 0)
    assert tuple(right) == VERIFY_FIELDS
    spoil(filled)

    code, (wrong,), _ = called(filled, *VERIFY)
    assert (code, wrong["differing"], wrong["repaired"]) == (1, 2, False)
    assert [(one["key"], one["kind"]) for one in wrong["differences"]] == [
        ("account-1", "missing"),
        ("account-2", "differs"),
    ]
    assert tuple(wrong["differences"][0]) == DIFFERENCE_FIELDS
    assert json.loads(wrong["differences"][1]["rebuilt"])["data"]["balance"] == 6

    code, (mended,), _ = called(filled, *VERIFY, "--repair")
    assert (code, mended["differing"], mended["repaired"]) == (0, 2, True)
    code, (again,), _ = called(filled, *VERIFY)
    assert (code, again["differing"]) == (0, 0)


def test_people_see_both_sides_of_what_differs(filled: str) -> None:
    spoil(filled)

    text, _ = run(filled, *VERIFY, "--limit", "1", code=1)
    fine, _ = run(filled, *VERIFY, "--stream", "account-0")

    assert "missing: account-1" in text
    assert "2 differ (1 more than are listed); --repair" in " ".join(text.split())
    assert "1 checked" in fine
    assert "nothing is wrong" in fine


def test_a_part_is_rebuilt_by_name(filled: str) -> None:
    spoil(filled)

    code, (done,), _ = called(filled, *REBUILD, "--yes", "--stream", "account-1")

    assert (code, done["projection"], done["state"]) == (0, "accounts", "done")
    assert tuple(done) == ("projection", "number", "state", "position", "seconds")
    assert "999" in run(filled, "projections", "show", "accounts", "account-2", *APP)[0]
    assert '"balance": 6' in run(filled, "projections", "show", "accounts", "account-1", *APP)[0]
    _, err = run(filled, *REBUILD, "--yes", "--key", "", code=2)
    assert "keys= takes one or more names" in err


def test_a_dry_run_tells_and_changes_nothing(filled: str) -> None:
    spoil(filled)
    before = rows(filled, "projections", "rebuilds")

    (plan,) = rows(filled, *REBUILD, "--dry-run")
    text, _ = run(filled, *REBUILD, "--dry-run", "--stream", "account-1")

    assert tuple(plan) == PLAN_FIELDS
    assert (plan["events"], plan["documents"], plan["position"]) == (15, 2, 15)
    assert "read 5 events" in text
    assert "replace 0 documents" in text
    assert rows(filled, "projections", "rebuilds") == before
    assert "999" in run(filled, "projections", "show", "accounts", "account-2", *APP)[0]


def test_builds_are_listed_cancelled_and_left_to_nodes(filled: str) -> None:
    assert (
        "no build of accounts" in run(filled, "projections", "cancel", "accounts", *APP, code=4)[1]
    )
    (asked,) = rows(filled, *REBUILD, "--yes", "--no-wait")
    assert asked["state"] == "queued"
    found = rows(filled, "projections", "rebuilds")
    text, _ = run(filled, "projections", "rebuilds")
    assert tuple(found[0]) == REBUILDS_FIELDS
    assert [(one["state"], one["scope"]) for one in found][-1] == ("queued", "everything")
    assert "queued" in text
    _, err = run(filled, *REBUILD, "--yes", code=5)
    assert "built again already" in err
    (gone,) = rows(filled, "projections", "cancel", "accounts", *APP)
    assert gone == {"projection": "accounts", "cancelled": True}
    assert rows(filled, "projections", "rebuilds")[-1]["state"] == "cancelled"


def test_a_build_shows_rate_and_time_left(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "PATIENCE", 0.0)

    _, err = run(filled, *REBUILD, "--yes")

    assert re.search(r"accounts:v2: [\d,]+ of 15 \([\d,]+/s, .+ left\)", err), err


def test_heal_mends_once_and_names_what_it_did(filled: str) -> None:
    assert called(filled, "projections", "heal", "cli_shop:app")[:2] == (0, [])
    body = '{"type": "money-deposited", "data": {"amount": 100}}'
    asyncio.run(
        execute(filled, "SELECT position FROM strandline.append('account-1', $1)", f"[{body}]")
    )
    run(filled, *REBUILD, "--yes")
    asyncio.run(
        execute(
            filled,
            """WITH unseen AS (
                   UPDATE strandline.doc_accounts_v2 SET data = data || '{"balance": 6}' WHERE id = 'account-1')
               INSERT INTO strandline.gaps (first, last, kind, proof) VALUES (16, 16, 'forced', '{}')""",
        )
    )
    (finding,) = [
        one
        for one in rows(filled, "doctor", "cli_shop", code=1)
        if one["check"] == "skipped positions"
    ]
    assert "projections heal" in finding["cure"]

    code, healed, _ = called(filled, "projections", "heal", "cli_shop:app")

    assert code == 0
    assert {one["label"]: one["how"] for one in healed} == {
        "accounts:v2": "rebuilt",
        "notifier": "read",  # it never ran
    }
    assert tuple(healed[0]) == HEAL_FIELDS
    assert healed[0]["scopes"] == ["stream account-1"]
    assert "106" in run(filled, "projections", "show", "accounts", "account-1", *APP)[0]
    assert "no late event" in run(filled, "projections", "heal", "cli_shop:app")[0]


def test_nodes_that_are_there_build_it_and_keep_their_shards(filled: str) -> None:
    node = started(filled, "node", "cli_shop:app", STRANDLINE_MODE="solo")
    try:
        owner = until(lambda: asyncio.run(execute(filled, OWNER)))
        spoil(filled)
        code, (found,), _ = called(filled, *VERIFY, "--repair")
        run(filled, *REBUILD, "--yes", "--stream", "account-1")

        assert (code, found["repaired"]) == (0, True)
        assert until(lambda: asyncio.run(execute(filled, OWNER))) == owner
    finally:
        code, _, err = ended(node)
    assert code == 0, err


OWNER = """SELECT s.owner FROM strandline.shards s JOIN strandline.shard_status t ON t.name = s.name
            WHERE s.name = 'accounts:v2:all' AND s.owner IS NOT NULL AND t.state = 'running'"""
