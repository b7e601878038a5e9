"""`strandline nodes` on rows as nodes write them, and with nodes that run."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from commands import ended, execute, put_node, put_work, rows, run, started, until

from strandline.cli.node_log import ENTRY_FIELDS, told
from strandline.cli.nodes import NODE_FIELDS, SHOWN_FIELDS
from strandline.cluster.log import Entry


@pytest.fixture
def nodes(database_url: str) -> dict[str, UUID]:
    """Three nodes that are here (the first leads and owns two shards), and two that are gone."""

    async def put() -> dict[str, UUID]:
        url = database_url
        found = {
            "dead-1": await put_node(url, "dead-1", "dead", left_reason="heartbeat"),
            "shop-1": await put_node(url, "shop-1", labels=["orders:v1"], leads=True),
            "shop-2": await put_node(url, "shop-2", loop_lag=2.5, mode="follower"),
            "other": await put_node(url, "other", "stalled", priority=-1, expires=-3),
        }
        await put_work(url, "orders:v1:1/2", target=found["shop-1"], owner=found["shop-1"])
        await put_work(url, "orders:v1:2/2", target=found["shop-1"], owner=found["shop-1"], epoch=7)
        return found

    return asyncio.run(put())


def put_entry(url: str, kind: str, node: UUID | None = None, name: str = "", **detail: Any) -> None:
    asyncio.run(
        execute(
            url,
            "INSERT INTO strandline.node_log (kind, node, name, detail)"
            " VALUES ($1, $2, $3, $4::text::jsonb)",
            *(kind, node, name, json.dumps(detail)),
        )
    )


# ---- list


def test_without_nodes_the_list_says_how_to_start_one(database_url: str) -> None:
    out, _ = run(database_url, "nodes", "list")

    assert out == "no node has joined; `strandline node module:app` starts one\n"
    assert rows(database_url, "nodes", "list") == []


def test_where_all_are_gone_the_list_says_how_many(database_url: str) -> None:
    asyncio.run(put_node(database_url, "a", "left"))

    out, _ = run(database_url, "nodes", "list")

    assert out.startswith("no node is here; 1 left or died (--all shows them);")
    assert [row["name"] for row in rows(database_url, "nodes", "list", "--all")] == ["a"]


def test_nodes_are_listed_with_leader_and_work(database_url: str, nodes: dict[str, UUID]) -> None:
    found = {row["name"]: row for row in rows(database_url, "nodes", "list")}
    out, _ = run(database_url, "nodes", "list")

    assert list(found) == ["shop-1", "shop-2", "other"]
    assert tuple(found["shop-1"]) == NODE_FIELDS
    assert (found["shop-1"]["is_leader"], found["shop-1"]["work"]) == (True, 2)
    assert found["shop-1"]["labels"] == ["orders:v1"]
    lines = {line.split()[1]: line for line in out.splitlines()}
    assert "active, leads" in lines["shop-1"]
    assert "event loop 2.5 s late; follower" in lines["shop-2"]
    assert "stalled, silent" in lines["other"]
    assert "never leads" in lines["other"]
    assert "dead-1" not in out
    assert "heartbeat" in run(database_url, "nodes", "list", "--all")[0]


def test_the_list_says_when_nobody_leads(database_url: str) -> None:
    asyncio.run(put_node(database_url, "a"))
    out, _ = run(database_url, "nodes", "list")

    assert "nobody leads at this moment" in out

    asyncio.run(execute(database_url, "UPDATE strandline.nodes SET priority = -1"))
    assert "no active node may" in run(database_url, "nodes", "list")[0]


@pytest.mark.parametrize("width", [30, 80, 200])
def test_the_tables_fit_the_terminal(database_url: str, nodes: dict[str, UUID], width: int) -> None:
    put_entry(database_url, "plan", None, unplaced={"no node has orders:v9": ["orders:v9:all"] * 9})
    for words in (
        ("nodes", "list", "--all"),
        ("nodes", "log"),
        ("nodes", "show", "shop-1"),
        ("work", "list"),
    ):
        out, _ = run(database_url, *words, width=width)
        assert max(len(line) for line in out.splitlines()) <= width, words
        assert "\x1b" not in out


# ---- which node is meant


@pytest.mark.parametrize("word", ["shop-1", "ot", "dead", "2"])
def test_a_node_is_meant_by_name_number_or_how_they_begin(
    word: str, database_url: str, nodes: dict[str, UUID]
) -> None:
    meant = {"ot": "other", "dead": "dead-1", "2": "shop-1"}.get(word, word)

    (found,) = rows(database_url, "nodes", "show", word)

    assert found["name"] == meant
    (by_id,) = rows(database_url, "nodes", "show", str(nodes[meant])[:13])
    assert by_id["id"] == str(nodes[meant])


def test_an_ambiguous_word_is_refused_with_what_it_may_mean(
    database_url: str, nodes: dict[str, UUID]
) -> None:
    _, err = run(database_url, "nodes", "show", "shop", code=2)

    assert "2 (shop-1), 3 (shop-2)" in err
    _, err = run(database_url, "nodes", "drain", "shop", code=2)
    assert "give a number or an id" in err


def test_an_unknown_node_is_not_found(database_url: str, nodes: dict[str, UUID]) -> None:
    _, err = run(database_url, "nodes", "show", "nix", code=4)

    assert err == "error: there is no node 'nix': there are shop-1, shop-2, other\n"
    run(database_url, "nodes", "evict", "", "--yes", code=4)


def test_a_node_that_is_here_is_meant_before_one_of_its_name_that_is_gone(
    database_url: str, nodes: dict[str, UUID]
) -> None:
    again = asyncio.run(put_node(database_url, "dead-1"))

    for word in ("dead-1", "dead"):
        (found,) = rows(database_url, "nodes", "show", word)
        assert found["id"] == str(again)


# ---- show


def test_a_node_is_shown_with_work_log_and_report(
    database_url: str, nodes: dict[str, UUID]
) -> None:
    report = {"result": "degraded", "steps": [{"name": "drain", "status": "timeout"}]}
    asyncio.run(
        execute(
            database_url,
            "UPDATE strandline.nodes SET report = $1::text::jsonb WHERE name = 'shop-1'",
            json.dumps(report),
        )
    )
    put_entry(database_url, "node_joined", nodes["shop-1"], "shop-1", host="host-1")

    (found,) = rows(database_url, "nodes", "show", "shop-1")
    out, _ = run(database_url, "nodes", "show", "shop-1")

    assert tuple(found) == SHOWN_FIELDS
    assert found["owns"] == [
        {"work": "orders:v1:1/2", "epoch": 1},
        {"work": "orders:v1:2/2", "epoch": 7},
    ]
    assert found["report"] == report
    assert [entry["kind"] for entry in found["log"]] == ["node_joined"]
    assert out.startswith("shop-1 (active, leads)\n")
    for text in ("77 on host-1", "by its process", "orders:v1:2/2", '"degraded"', "node_joined"):
        assert text in out, text
    assert "owns nothing" in run(database_url, "nodes", "show", "shop-2")[0]


# ---- log


def test_the_log_is_shown_newest_last_and_filtered(
    database_url: str, nodes: dict[str, UUID]
) -> None:
    put_entry(database_url, "leader_acquired", nodes["shop-1"], "shop-1", lease="leader")
    put_entry(
        *(database_url, "work_claimed", nodes["shop-2"], "shop-2"),
        work={f"orders:v1:{part}/9": 1 for part in range(1, 10)},
    )
    put_entry(database_url, "node_left", None, "pruned-1", reason="SIGTERM")
    put_entry(database_url, "brake", uuid4(), "shop-2")  # of an earlier start

    found = rows(database_url, "nodes", "log")
    out, _ = run(database_url, "nodes", "log", width=200)

    assert [row["kind"] for row in found] == [
        "leader_acquired",
        "work_claimed",
        "node_left",
        "brake",
    ]
    assert tuple(found[0]) == ENTRY_FIELDS
    assert found[0]["detail"] == {"lease": "leader"}
    assert "orders:v1:1/9, orders:v1:2/9, orders:v1:3/9 and 6 more" in out
    assert [row["kind"] for row in rows(database_url, "nodes", "log", "--limit", "1")] == ["brake"]
    for words, kinds in {
        ("--kind", "leader"): ["leader_acquired"],
        ("--kind", "work_claimed", "--kind", "node_left"): ["work_claimed", "node_left"],
        ("--node", "shop-2"): ["work_claimed", "brake"],
        ("--node", str(nodes["shop-2"])): ["work_claimed"],
        ("--node", str(nodes["shop-1"])[:12]): ["leader_acquired"],
        ("--node", "pruned-1"): ["node_left"],
        ("--work", "orders:v1:4/9"): ["work_claimed"],
    }.items():
        assert [row["kind"] for row in rows(database_url, "nodes", "log", *words)] == kinds, words
    assert "no such entry" in run(database_url, "nodes", "log", "--node", "nix")[0]
    assert (
        "no entries of kind 'nix'" in run(database_url, "nodes", "log", "--kind", "nix", code=2)[1]
    )


@pytest.mark.parametrize(
    ("kind", "detail", "words"),
    [
        ("node_dead", {"evicted": True, "reason": "harmful"}, "harmful; evicted"),
        ("node_stalled", {"loop_lag": 31.23456}, "loop lag 31.23"),
        ("plan", {"moved": 2, "to": {"a": "x", "b": None}}, "to: a → x, b → nobody; moved 2"),
        ("plan", {"unplaced": {}}, "unplaced: none"),
        (
            "plan",
            {"unplaced": {"no node has b": list("bcdef")}},
            "unplaced: no node has b (b, c, d and 2 more)",
        ),
        ("work_released", {"work": {"a": 1, "b": 2}, "reason": "stopping"}, "a, b; stopping"),
        ("brake", {"due": ["a"], "reason": ""}, "due: a"),
        (
            "shutdown",
            {
                "reason": "SIGTERM",
                "result": "forced",
                "seconds": 3,
                "steps": [{"name": "drain", "status": "timeout"}],
            },
            "SIGTERM: forced in 3.0 s; drain timeout",
        ),
    ],
)
def test_facts_of_an_entry_are_told_in_words(kind: str, detail: dict[str, Any], words: str) -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)

    assert sorted(
        told(Entry(1, at, kind, None, "", None, None, json.dumps(detail))).split("; ")
    ) == (sorted(words.split("; ")))


def test_the_log_is_followed_until_ctrl_c(database_url: str) -> None:
    put_entry(database_url, "node_joined", None, "first")
    put_entry(database_url, "node_joined", None, "second")
    follow = started(database_url, "nodes", "log", "--follow", "--json", "--limit", "1")
    assert follow.stdout is not None
    killer = threading.Timer(20, follow.kill)
    killer.start()
    try:
        seen = [json.loads(follow.stdout.readline())]
        for number in range(3):
            put_entry(database_url, "node_joined", None, f"new-{number}")
            seen.append(json.loads(follow.stdout.readline()))
        code, rest, err = ended(follow, signal.SIGINT)
    finally:
        killer.cancel()
        follow.kill()

    assert [row["name"] for row in seen] == ["second", "new-0", "new-1", "new-2"]
    assert (code, rest, err) == (0, "", "")


def test_an_entry_that_shows_up_late_is_followed_once(database_url: str) -> None:
    async def late() -> None:
        import asyncpg

        slow = await asyncpg.connect(database_url)
        await slow.execute("BEGIN")
        await slow.execute("INSERT INTO strandline.node_log (kind, name) VALUES ('brake', 'late')")
        await execute(
            database_url, "INSERT INTO strandline.node_log (kind, name) VALUES ('brake', 'early')"
        )
        assert follow.stdout is not None
        seen.append(json.loads(await asyncio.to_thread(follow.stdout.readline)))
        await slow.execute("COMMIT")
        seen.append(json.loads(await asyncio.to_thread(follow.stdout.readline)))
        await slow.close()

    put_entry(database_url, "node_joined", None, "first")
    seen: list[dict[str, Any]] = []
    follow = started(database_url, "nodes", "log", "--follow", "--json")
    assert follow.stdout is not None
    killer = threading.Timer(20, follow.kill)
    killer.start()
    try:
        seen.append(json.loads(follow.stdout.readline()))
        asyncio.run(late())
        _, rest, _ = ended(follow, signal.SIGINT)
    finally:
        killer.cancel()
        follow.kill()

    assert [row["name"] for row in seen] == ["first", "early", "late"]
    assert rest == ""


# ---- drain, resign, evict


def test_a_drain_is_asked_for_in_the_database(database_url: str, nodes: dict[str, UUID]) -> None:
    out, _ = run(database_url, "nodes", "drain", "shop-1", "--reason", "new disk")

    assert out == "node shop-1 was asked to drain\n"
    (found,) = rows(database_url, "nodes", "show", "shop-1")
    assert (found["state"], found["drain_reason"]) == ("active", "new disk")
    assert "drain: new disk" in run(database_url, "nodes", "list")[0]


def test_a_drain_waits_until_the_node_owns_nothing(
    database_url: str, nodes: dict[str, UUID]
) -> None:
    def drains() -> None:
        """What the node does once it has read the request."""

        def asked() -> Any:
            return asyncio.run(
                execute(
                    database_url,
                    "SELECT count(*) FROM strandline.nodes WHERE drain_requested_at IS NOT NULL",
                )
            )

        until(asked)
        for text in (
            "UPDATE strandline.assignments SET owner = NULL",
            "UPDATE strandline.nodes SET state = 'draining' WHERE name = 'shop-1'",
        ):
            asyncio.run(execute(database_url, text))

    node = threading.Thread(target=drains)
    node.start()
    found = rows(database_url, "nodes", "drain", "shop-1", "--wait", "20")
    node.join()

    assert [(row["state"], row["work"]) for row in found] == [("draining", 0)]


def test_a_drain_that_does_not_end_in_time_is_exit_code_1(
    database_url: str, nodes: dict[str, UUID]
) -> None:
    out, err = run(database_url, "nodes", "drain", "shop-1", "--wait", "0.3", code=1)

    assert out == ""
    assert "is active and still owns 2 after 0.3 s: see `strandline nodes show 2`" in err


def test_an_active_node_without_work_has_not_drained_yet(
    database_url: str, nodes: dict[str, UUID]
) -> None:
    """It may be given some until it has read the request."""
    run(database_url, "nodes", "drain", "shop-2", "--wait", "0.3", code=1)


def test_nobody_is_asked_to_drain_who_is_gone(database_url: str, nodes: dict[str, UUID]) -> None:
    _, err = run(database_url, "nodes", "drain", "dead-1", code=4)

    assert err == "error: node dead-1 is dead (heartbeat)\n"


def test_the_leader_is_asked_to_resign(database_url: str, nodes: dict[str, UUID]) -> None:
    found = rows(database_url, "nodes", "resign", "--reason", "upgrade")

    assert found == [{"id": str(nodes["shop-1"]), "name": "shop-1", "epoch": 1}]
    (entry,) = rows(database_url, "nodes", "log", "--kind", "leader_requested")
    assert (entry["epoch"], entry["detail"]) == (1, {"reason": "upgrade"})


def test_where_nobody_leads_there_is_nobody_to_ask(database_url: str) -> None:
    _, err = run(database_url, "nodes", "resign", code=4)

    assert err == "error: nobody leads: there is nobody to ask\n"


def test_an_eviction_asks_first(database_url: str, nodes: dict[str, UUID]) -> None:
    _, err = run(database_url, "nodes", "evict", "shop-1", code=1, answer="n\n")

    assert "active, leads, owns 2, last beat" in err
    assert "aborted: nothing was changed" in err
    (found,) = rows(database_url, "nodes", "show", "shop-1")
    assert found["state"] == "active"


def test_an_evicted_node_is_dead_and_leads_no_more(
    database_url: str, nodes: dict[str, UUID]
) -> None:
    (found,) = rows(database_url, "nodes", "evict", "shop-1", "--yes", "--reason", "harmful")

    assert (found["id"], found["state"]) == (str(nodes["shop-1"]), "dead")
    (shown,) = rows(database_url, "nodes", "show", "shop-1")
    assert (shown["left_reason"], shown["is_leader"]) == ("harmful", False)
    _, err = run(database_url, "nodes", "evict", "shop-1", "--yes", code=4)
    assert "there is nothing to evict" in err


# ---- with nodes that run


QUICK = {"STRANDLINE_PULSE_INTERVAL": "0.3", "STRANDLINE_REBALANCE_AFTER": "0.2"}


def owners(url: str) -> set[tuple[str, str | None]]:
    return {(row["state"], row["owner_name"]) for row in rows(url, "work", "list")}


def leader(url: str) -> str | None:
    return next((row["name"] for row in rows(url, "nodes", "list") if row["is_leader"]), None)


@contextmanager
def running(url: str, *names: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Nodes of these names, active one after the other."""
    found: list[subprocess.Popen[str]] = []
    try:
        for name in names:
            node = started(url, "node", "cli_shop:app", STRANDLINE_NODE_NAME=name, **QUICK)
            found.append(node)
            until(lambda: len(_active(url)) == len(found), timeout=60)
        until(
            lambda: owners(url) and {state for state, _ in owners(url)} == {"running"}, timeout=60
        )
        yield found
    finally:
        for node in found:
            node.kill()
            node.communicate()


def _active(url: str) -> list[str]:
    return [row["name"] for row in rows(url, "nodes", "list") if row["state"] == "active"]


def test_a_drained_node_gives_its_work_to_another_and_stays(database_url: str) -> None:
    with running(database_url, "first", "second") as (first, _):
        (found,) = rows(database_url, "nodes", "drain", "first", "--wait", "30")
        assert (found["state"], found["work"]) == ("draining", 0)

        until(lambda: owners(database_url) == {("running", "second")})
        until(lambda: leader(database_url) == "second")
        assert first.poll() is None
        code, _, _ = ended(first)

        assert code == 0
        (gone,) = rows(database_url, "nodes", "show", "first")
        assert (gone["state"], gone["report"]["result"]) == ("left", "clean")


def test_another_leads_after_a_resignation_and_pinned_work_moves(database_url: str) -> None:
    with running(database_url, "first", "second"):
        assert leader(database_url) == "first"
        run(database_url, "nodes", "resign", "--reason", "for the test")

        until(lambda: leader(database_url) == "second")
        kinds = [row["kind"] for row in rows(database_url, "nodes", "log", "--kind", "leader")]
        assert kinds == [
            "leader_acquired",
            "leader_requested",
            "leader_resigned",
            "leader_acquired",
        ]

        for name in ("first", "second"):
            run(database_url, "work", "pin", "*", name)
            until(lambda: owners(database_url) == {("running", name)})


def test_an_evicted_node_joins_again_and_paused_work_rests(database_url: str) -> None:
    with running(database_url, "first"):
        (before,) = rows(database_url, "nodes", "show", "first")
        rows(database_url, "nodes", "evict", "first", "--yes")

        until(lambda: _active(database_url) == ["first"])
        (after,) = rows(database_url, "nodes", "show", "first")
        assert after["id"] != before["id"]
        until(lambda: owners(database_url) == {("running", "first")})

        run(database_url, "work", "pause", "*", "--reason", "for the test")
        until(lambda: owners(database_url) == {("paused", None)})
        run(database_url, "work", "resume", "*")
        until(lambda: owners(database_url) == {("running", "first")})
