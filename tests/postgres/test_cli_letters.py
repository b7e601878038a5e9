"""`strandline letters`: look, try again, correct, discard."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import letters_node
import pytest
from commands import rows, run, started
from letterbox import letter_rows
from letters_node import letters_app
from tally import Ticked, holds

from strandline.cli.letters import FIELDS, GROUP_FIELDS

APP = ("--app", "letters_shop:app")


@pytest.fixture
def url(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Two streams parked, by the same failure: numbers 2 and 12."""
    monkeypatch.setattr(letters_node, "NUMBERS", {"2", "12"})

    async def put() -> None:
        async with letters_app(database_url) as app:
            await app.append("a", [Ticked(1), Ticked(2), Ticked(3)])
            await app.append("b", [Ticked(11), Ticked(12)])
            await app.start()
            await app.wait_for(5)

    asyncio.run(put())
    yield database_url


def statuses(url: str) -> dict[int, str]:
    found = asyncio.run(letter_rows(url))
    return {row["position"]: row["status"] for row in found}


def test_letters_are_listed_and_shown(url: str) -> None:
    found = rows(url, "letters", "list")

    assert [(one["key"], one["position"], one["category"]) for one in found] == [
        ("a", 2, "apply"),
        ("a", 3, None),
        ("b", 5, "apply"),
    ]
    assert tuple(found[0]) == FIELDS
    assert found[0]["error"]["class"] == "ValueError"
    assert [one["position"] for one in rows(url, "letters", "list", "--stream", "b")] == [5]
    assert rows(url, "letters", "list", "--projection", "fragile", "--limit", "1") == found[:1]
    assert rows(url, "letters", "list", "--after", str(found[1]["id"])) == found[2:]
    assert rows(url, "letters", "list", "--status", "resolved") == []
    shown: Any = json.loads(run(url, "letters", "show", str(found[0]["id"]), "--json")[0])
    assert shown == found[0]
    (group,) = rows(url, "letters", "groups")
    assert tuple(group) == GROUP_FIELDS
    assert (group["count"], group["type"]) == (2, "ticked")

    out, _ = run(url, "letters", "list", width=160)
    assert "fragile:v1" in out
    assert "waits" in out
    out, _ = run(url, "letters", "show", str(found[0]["id"]))
    assert "handler: Fragile.ticked" in out
    run(url, "letters", "show", "999999", code=4)
    run(url, "letters", "list", "--status", "lost", code=2)


def test_what_is_asked_on_the_command_line_is_done_by_a_node(url: str) -> None:
    first, _, last = rows(url, "letters", "list")

    run(url, "letters", "retry", code=2)
    done = json.loads(run(url, "letters", "retry", "--projection", "fragile", "--json")[0])
    assert done == {"changed": 2}
    run(url, "letters", "discard", str(last["id"]), "--reason", "a test", answer="n\n", code=1)
    done = json.loads(
        run(url, "letters", "discard", str(last["id"]), "--reason", "a test", "--yes", "--json")[0]
    )
    assert done == {"changed": 1}
    _, err = run(url, "letters", "edit", str(first["id"]), "--data", "{}", "--reason", "x", code=2)
    assert "needs your App" in err

    async def node_does_it() -> None:
        async with letters_app(url) as app:
            await app.start()
            await holds(lambda: asyncio.to_thread(is_done))

    def is_done() -> bool:
        return set(statuses(url).values()) == {"resolved", "discarded"}

    letters_node.NUMBERS.clear()
    asyncio.run(node_does_it())
    assert statuses(url) == {2: "resolved", 3: "resolved", 5: "discarded"}


def test_a_command_in_a_process_of_its_own_corrects_a_letter(url: str) -> None:
    first = rows(url, "letters", "list")[0]
    word = str(first["id"])

    process = started(
        url, "letters", "edit", word, "--data", '{"number": "x"}', "--reason", "typo", *APP
    )
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2, err
    assert "cannot be decoded" in err

    process = started(
        url, "letters", "edit", word, "--data", '{"number": 20}', "--reason", "typo", "--json", *APP
    )
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert json.loads(out) == {"changed": 1}
    (row,) = [one for one in asyncio.run(letter_rows(url)) if one["id"] == first["id"]]
    assert (json.loads(row["data"]), row["reason"], row["attempts"]) == ({"number": 20}, "typo", 0)
    assert row["retry_at"] is not None
