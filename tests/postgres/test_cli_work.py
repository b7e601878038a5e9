"""`strandline work` on rows as nodes write them."""

from __future__ import annotations

import asyncio

import pytest
from commands import execute, put_node, put_work, rows, run

from strandline.cli.work import WORK_FIELDS

NAMES = ["idle:v1:all", "lost:v1:all", "orders:v1:1/2", "orders:v1:2/2", "away:v1:all"]


@pytest.fixture
def url(database_url: str) -> str:
    """Two nodes; work that runs, moves, is lost with its node, and runs nowhere."""

    async def put() -> None:
        a = await put_node(database_url, "shop-1", leads=True)
        b = await put_node(database_url, "shop-2")
        dead = await put_node(database_url, "shop-3", "dead")
        await put_work(database_url, "orders:v1:1/2", target=a, owner=a, epoch=4)
        await put_work(database_url, "orders:v1:2/2", target=b, owner=a)
        await put_work(database_url, "away:v1:all", target=b)
        await put_work(database_url, "idle:v1:all")
        await put_work(database_url, "lost:v1:all", owner=dead)

    asyncio.run(put())
    return database_url


def states(url: str, *words: str) -> dict[str, str]:
    return {row["name"]: row["state"] for row in rows(url, "work", "list", *words)}


def lines(url: str, *words: str) -> dict[str, str]:
    out, _ = run(url, "work", "list", *words, width=160)
    return {line.split()[0]: line for line in out.splitlines() if line}


def test_without_work_the_list_says_who_declares_some(database_url: str) -> None:
    out, _ = run(database_url, "work", "list")

    assert out.startswith("there is no work: a node declares it when it joins; `strandline node ")
    assert rows(database_url, "work", "list") == []


def test_work_is_listed_with_its_state(url: str) -> None:
    (row,) = [one for one in rows(url, "work", "list") if one["name"] == "orders:v1:1/2"]

    assert states(url) == {
        "away:v1:all": "moving",
        "idle:v1:all": "unplaced",
        "lost:v1:all": "unplaced",
        "orders:v1:1/2": "running",
        "orders:v1:2/2": "moving",
    }
    assert tuple(row) == WORK_FIELDS
    assert (row["owner_name"], row["target"], row["epoch"]) == ("shop-1", "shop-1", 4)
    assert "to shop-2" in lines(url)["orders:v1:2/2"]


def test_only_what_a_node_owns_is_listed(url: str) -> None:
    assert list(states(url, "--node", "shop-1")) == ["orders:v1:1/2", "orders:v1:2/2"]
    assert "node shop-2 owns nothing" in run(url, "work", "list", "--node", "shop-2")[0]


def test_unplaced_work_says_why(url: str) -> None:
    asyncio.run(
        execute(
            url,
            """INSERT INTO strandline.node_log (kind, detail)
               VALUES ('plan', '{"unplaced": {"no node has idle:v1": ["idle:v1:all"]}}')""",
        )
    )

    found = {row["name"]: row for row in rows(url, "work", "list", "--unplaced")}

    assert list(found) == ["idle:v1:all", "lost:v1:all"]
    assert found["idle:v1:all"]["unplaced"] == "no node has idle:v1"
    assert found["lost:v1:all"]["unplaced"] == "the leader has not placed it yet"
    assert "no node has idle:v1" in lines(url, "--unplaced")["idle:v1:all"]
    asyncio.run(execute(url, "UPDATE strandline.leases SET holder = NULL"))
    assert "nobody leads" in lines(url, "--unplaced")["lost:v1:all"]


def test_where_all_is_placed_the_list_of_unplaced_says_so(url: str) -> None:
    for name in ("idle:v1:all", "lost:v1:all"):
        run(url, "work", "pause", name, "--reason", "for the test")

    assert "all 5 are placed or paused" in run(url, "work", "list", "--unplaced")[0]


# ---- pins


def test_a_pin_goes_by_the_name_of_the_node(url: str) -> None:
    out, _ = run(url, "work", "pin", "orders:v1:1/2", "shop-2")

    assert out == "orders:v1:1/2 is pinned to shop-2\n"
    assert "pinned to shop-2" in lines(url)["orders:v1:1/2"]
    run(url, "work", "unpin", "orders:v1:1/2")
    assert "pinned" not in lines(url)["orders:v1:1/2"]


def test_a_pin_to_nobody_is_asked_about(url: str) -> None:
    _, err = run(url, "work", "pin", "idle", "shop-9", code=1, answer="n\n")
    assert "no node named shop-9 is here" in err
    assert "aborted" in err

    _, err = run(url, "work", "pin", "idle", "shop-3", code=1, answer="n\n")
    assert "no node named shop-3 is here" in err

    assert rows(url, "work", "pin", "idle", "shop-9", "--yes") == [{"name": "idle:v1:all"}]
    (row,) = [one for one in rows(url, "work", "list") if one["name"] == "idle:v1:all"]
    assert row["pinned_to"] == "shop-9"


# ---- pauses


def test_work_is_paused_with_a_reason_and_resumed(url: str) -> None:
    run(url, "work", "pause", "idle:v1:all", code=2)  # the reason is asked for
    run(url, "work", "pause", "idle:v1:all", "--reason", "repair")

    assert states(url)["idle:v1:all"] == "paused"
    assert "paused: repair" in lines(url)["idle:v1:all"]
    assert rows(url, "work", "resume", "idle:v1:all") == [{"name": "idle:v1:all"}]
    assert states(url)["idle:v1:all"] == "unplaced"
    assert "nothing of that was paused" in run(url, "work", "resume", "idle:v1:all")[0]


def test_a_pattern_means_all_that_match(url: str) -> None:
    out, _ = run(url, "work", "pause", "orders:v1:*", "--reason", "repair")

    assert [line.split()[0] for line in out.splitlines()] == ["orders:v1:1/2", "orders:v1:2/2"]
    _, err = run(url, "work", "pause", "orders", "--reason", "repair", code=2)
    assert "'orders*' means all of them" in err


@pytest.mark.parametrize(
    "words",
    [
        ("pin", "nix", "shop-1"),
        ("unpin", "nix*"),
        ("pause", "nix", "--reason", "x"),
        ("resume", ""),
        ("forget", "nix", "--yes"),
    ],
)
def test_unknown_work_is_not_found(url: str, words: tuple[str, ...]) -> None:
    _, err = run(url, "work", *words, code=4)

    assert all(name in err for name in NAMES)


# ---- forget


def test_forgetting_asks_first(url: str) -> None:
    _, err = run(url, "work", "forget", "idle", code=1, answer="n\n")

    assert "1 to be forgotten: idle:v1:all" in err
    assert "idle:v1:all" in states(url)


def test_what_a_node_owns_is_not_forgotten(url: str) -> None:
    out, err = run(url, "work", "forget", "*", "--yes", code=5)

    assert "orders:v1:1/2 is owned by shop-1" in err
    assert list(states(url)) == ["orders:v1:1/2", "orders:v1:2/2"]
    assert "idle:v1:all is forgotten" in out
    assert "lost:v1:all is forgotten" in out  # its owner is dead


def test_a_schema_of_another_name_has_its_own_work(url: str) -> None:
    _, err = run(url, "work", "list", "--schema", "other", code=2)

    assert "lacks" in err
