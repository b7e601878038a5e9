"""Nodes and work as an operator sees and orders them."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from clusters import CHANNEL, Tables, heard, names, tables
from tally import holds

from strandline.cluster.membership import (
    channel,
    evict,
    find_node,
    nodes,
    prune,
    request_drain,
    request_resign,
)
from strandline.cluster.work_control import (
    forget,
    list_work,
    pause,
    pin,
    resume,
    unpin,
)
from strandline.errors import InvalidInput

# ---- nodes


async def test_nodes_are_listed_with_what_they_own_and_who_leads(database_url: str) -> None:
    async with tables(database_url, node_ttl=2.0) as found:
        a = await found.node(
            "a", "orders:v1", capacity=2.0, priority=3, version="1.2", host="h1", pid=7
        )
        b = await found.node("b", silent=1.5)
        await found.leads(a)
        await found.work("w1", "w2", owner=b)

        first, second = await found.run(nodes())

        assert (first.id, first.name, first.state, first.mode) == (a.id, "a", "active", "cluster")
        assert (first.labels, first.capacity, first.priority) == (["orders:v1"], 2.0, 3)
        assert (first.version, first.host, first.pid, first.pulse) == ("1.2", "h1", 7, "loop")
        assert (first.work, first.is_leader, first.report) == (0, True, None)
        assert 0 <= first.age < 5
        assert 1.5 < first.expires_in <= 2.0
        assert (second.work, second.is_leader) == (2, False)
        assert second.silent >= 1.5
        assert second.expires_in <= 0.5
        assert first.number < second.number


async def test_a_leader_whose_term_has_ended_is_not_shown_as_one(database_url: str) -> None:
    async with tables(database_url) as found:
        await found.leads(await found.node("a"), ttl=0.001)

        async def is_over() -> bool:
            return not (await found.run(nodes()))[0].is_leader

        assert await holds(is_over)


async def test_nodes_that_are_gone_come_last_and_only_so_many(database_url: str) -> None:
    async with tables(database_url) as found:
        for number in range(4):
            gone = await found.node(f"gone {number}")
            await found.leave(gone.id, state="dead" if number % 2 else "left")
        await found.node("a")
        await found.node("b")

        assert names(await found.run(nodes(gone=2))) == ["a", "b", "gone 3", "gone 2"]
        assert names(await found.run(nodes(gone=0))) == ["a", "b"]


async def test_a_node_is_found_by_name_number_and_id(database_url: str) -> None:
    async with tables(database_url) as found:
        old = await found.node("web-1")
        await found.leave(old.id)
        web = await found.node("web-1")
        other = await found.node("web-2")
        number = await found.one("SELECT number FROM strandline.nodes WHERE id = $1", other.id)

        for word, wanted in {
            "web-1": web,  # the one that is there
            "web-2": other,
            f" {number} ": other,
            str(web.id): web,
            str(web.id)[:8].upper(): web,
            str(old.id): old,
        }.items():
            match = await found.run(find_node(word))
            assert match is not None, word
            assert match.id == wanted.id
        for word in ("web", "", "99999", str(web.id)[:2]):
            assert await found.run(find_node(word)) is None


async def test_a_word_that_means_several_nodes_is_refused(database_url: str) -> None:
    async with tables(database_url) as found:
        await found.node("twin")
        await found.node("twin")

        with pytest.raises(InvalidInput, match=r"several nodes: .*twin.*twin.*; give a number"):
            await found.run(find_node("twin"))


async def changes(found: Tables, op: Any, payload: str) -> Any:
    """Run *op*, which must count as a change of the cluster, and be told; its answer."""
    before = await found.version()
    async with heard(found) as payloads:
        answer = await found.run(op)
        await holds(lambda: payloads)
        assert payloads == [payload]
    assert await found.version() == before + 1
    return answer


async def leaves_as_it_is(found: Tables, op: Any) -> None:
    """Run *op*, which must find nothing to do."""
    before = await found.version()
    logged = await found.one("SELECT count(*) FROM strandline.node_log")
    assert not await found.run(op)
    assert await found.version() == before
    assert await found.one("SELECT count(*) FROM strandline.node_log") == logged


async def test_a_node_reads_in_its_next_beat_that_it_is_to_drain(database_url: str) -> None:
    async with tables(database_url) as found:
        a = await found.node("a")

        asked = await changes(found, request_drain(a.id, "upgrade", channel=CHANNEL), "drain")

        assert (asked.id, asked.name) == (a.id, "a")
        beat = await found.run(found.tick(a))
        assert beat.drain_reason == "upgrade"
        assert (await found.run(nodes()))[0].drain_reason == "upgrade"
        [(_, name, _, detail)] = await found.logged("node_draining")
        assert (name, detail) == ("a", {"requested": True, "reason": "upgrade"})


async def test_a_leader_reads_in_its_next_beat_that_it_is_to_resign(database_url: str) -> None:
    async with tables(database_url) as found:
        a = await found.node("a")
        await leaves_as_it_is(found, request_resign("no reason", channel=CHANNEL))
        term = await found.leads(a)

        asked = await changes(found, request_resign("upgrade", channel=CHANNEL), "resign")

        assert (asked.holder, asked.name, asked.epoch) == (a.id, "a", term.epoch)
        assert (await found.run(found.tick(a, epoch=term.epoch))).resign_reason == "upgrade"
        [(_, name, _, detail)] = await found.logged("leader_requested")
        assert (name, detail) == ("a", {"reason": "upgrade"})


async def test_an_evicted_node_is_dead_and_its_lease_free(database_url: str) -> None:
    async with tables(database_url) as found:
        a, b = await found.node("a"), await found.node("b")
        term = await found.leads(a)

        gone = await changes(found, evict(a.id, "wrong data", channel=CHANNEL), "dead")

        assert gone.id == a.id
        beat = await found.run(found.tick(a, epoch=term.epoch))
        assert (beat.state, beat.end_reason, beat.holder) == (None, "wrong data", None)
        assert not beat.is_renewed
        assert await found.state(b.id) == "active"
        kinds = [row[0] for row in await found.logged("leader_lost", "node_dead")]
        assert kinds == ["leader_lost", "node_dead"]
        epoch = (await found.leads(b)).epoch
        assert epoch == term.epoch + 1


async def test_nothing_is_asked_of_a_node_that_is_gone(database_url: str) -> None:
    async with tables(database_url) as found:
        a = await found.node("a")
        await found.leave(a.id)

        for node in (a.id, uuid4()):
            await leaves_as_it_is(found, request_drain(node, "x", channel=CHANNEL))
            await leaves_as_it_is(found, evict(node, "x", channel=CHANNEL))


async def test_the_channel_is_named_after_the_schema() -> None:
    assert channel("shop") == "shop.cluster"


async def test_rows_of_nodes_that_are_long_gone_are_deleted_and_others_kept(
    database_url: str,
) -> None:
    async with tables(database_url) as found:
        day, hour = 86_400.0, 3_600.0
        ages = {
            "old": 8 * day,
            "busy": 8 * day,
            "meant": 8 * day,
            "third": 2 * hour,
            "new": 2 * hour,
        }
        made = {}
        for name, age in ages.items():
            made[name] = await found.node(name)
            await found.leave(made[name].id, seconds=age)
        await found.leave((await found.node("just")).id, seconds=60.0)
        silent = await found.node("silent")
        await found.age(silent.id, 30 * day)
        await found.work("w", owner=made["busy"])
        await found.work("x", owner=made["meant"])
        await found.one("UPDATE strandline.assignments SET owner = NULL WHERE work = 'x'")
        await found.one("UPDATE strandline.assignments SET target = NULL WHERE work = 'w'")

        assert await found.run(prune(keep=2)) == 2

        left = [row[0] for row in await found.rows("SELECT name FROM strandline.nodes ORDER BY 1")]
        assert left == ["busy", "just", "meant", "new", "silent"]
        assert await found.run(prune(keep=0)) == 1  # "just" went recently
        assert await found.run(prune(keep=0, recent=0.0, most=1)) == 1


# ---- work


async def test_work_is_listed_with_where_it_should_and_does_run(database_url: str) -> None:
    async with tables(database_url) as found:
        a = await found.node("a")
        b = await found.node("b", state="draining")
        await found.work("w1", owner=b, needs=["v1"], together="db", apart="orders", weight=2.0)
        await found.work("w2")
        await found.one("UPDATE strandline.assignments SET target = $1 WHERE work = 'w1'", a.id)
        await found.one(
            """UPDATE strandline.assignments SET failures = 3, avoid = jsonb_build_object(
                   'a', clock_timestamp() + interval '1 min', 'z', clock_timestamp() - interval '1 s')
                WHERE work = 'w2'"""
        )

        first, second = await found.run(list_work())

        assert (first.name, first.needs, first.together, first.apart) == (
            "w1",
            ["v1"],
            "db",
            "orders",
        )
        assert (first.weight, first.pinned_to, first.paused_at) == (2.0, None, None)
        assert (first.target, first.owner, first.owner_name) == ("a", b.id, "b")
        assert (first.owner_state, first.epoch, first.failures) == ("draining", 1, 0)
        assert first.owned is not None
        assert 0 <= first.owned < 5
        assert (second.target, second.owner, second.owner_name, second.owner_state) == (None,) * 4
        assert (second.owned, second.failures, second.avoid) == (None, 3, "a")


async def test_work_is_pinned_and_unpinned(database_url: str) -> None:
    async with tables(database_url) as found:
        await found.work("w")

        assert await changes(found, pin("w", "big", channel=CHANNEL), "work")
        assert (await found.run(list_work()))[0].pinned_to == "big"
        assert await changes(found, unpin("w", channel=CHANNEL), "work")
        assert (await found.run(list_work()))[0].pinned_to is None

        logged = await found.logged("work_pinned", "work_unpinned")
        assert [(row[0], row[2], row[3]) for row in logged] == [
            ("work_pinned", "w", {"to": "big"}),
            ("work_unpinned", "w", {}),
        ]
        await leaves_as_it_is(found, pin("none", "big", channel=CHANNEL))
        await leaves_as_it_is(found, unpin("none", channel=CHANNEL))


async def test_paused_work_has_no_target_until_it_is_resumed(database_url: str) -> None:
    async with tables(database_url) as found:
        a = await found.node("a")
        await found.work("w1", "w2", "w3", owner=a)

        paused = await changes(
            found, pause(["w2", "w1", "none"], "migration", channel=CHANNEL), "work"
        )

        assert paused == ["w1", "w2"]
        assert await found.targets() == {"w1": None, "w2": None, "w3": "a"}
        row = (await found.run(list_work()))[0]
        assert (row.reason, row.owner_name) == ("migration", "a")
        assert row.paused_at is not None
        await found.run(pause(["w1"], "still", channel=CHANNEL))
        again = (await found.run(list_work()))[0]
        assert (again.reason, again.paused_at) == ("still", row.paused_at)

        assert await changes(found, resume(["w1", "w3"], channel=CHANNEL), "work") == ["w1"]
        row = (await found.run(list_work()))[0]
        assert (row.reason, row.paused_at) == ("", None)
        await leaves_as_it_is(found, resume(["w1", "w3", "none"], channel=CHANNEL))
        await leaves_as_it_is(found, pause(["none"], "x", channel=CHANNEL))
        assert [row[3]["work"] for row in await found.logged("work_paused", "work_resumed")] == [
            ["w1", "w2"],
            ["w1"],
            ["w1"],
        ]


async def test_work_is_forgotten_only_if_nobody_who_lives_owns_it(database_url: str) -> None:
    async with tables(database_url) as found:
        a, gone = await found.node("a"), await found.node("gone")
        await found.work("owned", owner=a)
        await found.work("left", owner=gone)
        await found.work("free")
        await found.leave(gone.id)

        kept = await found.run(forget("owned", channel=CHANNEL))
        assert (kept.is_forgotten, kept.owner_name) == (False, "a")
        for name in ("left", "free"):
            done = await changes(found, forget(name, channel=CHANNEL), "work")
            assert (done.is_forgotten, done.owner_name) == (True, "")

        assert set(await found.targets()) == {"owned"}
        await leaves_as_it_is(found, forget("free", channel=CHANNEL))


async def test_work_that_is_just_being_claimed_is_not_forgotten(database_url: str) -> None:
    async with tables(database_url) as found:
        a = await found.node("a")
        await found.work("w")
        claiming = await found.connect()
        await claiming.execute("BEGIN")
        await claiming.execute(
            "UPDATE strandline.assignments SET owner = $1, owner_name = 'a' WHERE work = 'w'", a.id
        )

        forgetting = asyncio.create_task(found.run(forget("w", channel=CHANNEL)))
        await holds(lambda: waits(found, "forget"))
        await claiming.execute("COMMIT")

        done = await forgetting
        assert (done.is_forgotten, done.owner_name) == (False, "a")
        assert set(await found.targets()) == {"w"}


async def waits(found: Tables, what: str) -> bool:
    """Whether a statement waits for a lock."""
    return bool(
        await found.one(
            """SELECT count(*) FROM pg_stat_activity
                WHERE datname = current_database() AND wait_event_type = 'Lock'"""
        )
    )
