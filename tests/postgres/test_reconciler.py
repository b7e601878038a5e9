"""A node runs what it should and nothing else: claims, releases, losses, failures, lost answers."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest
from crew import Crew, Hands, Member, crew
from tally import holds

from strandline.cluster import claims, run
from strandline.cluster.work import Grant
from strandline.errors import CheckpointMoved
from strandline.testing.faults import Proxy

# ---- claims


async def test_a_node_runs_what_is_meant_for_it_under_the_epoch_of_its_claim(
    database_url: str,
) -> None:
    async with crew(database_url) as nodes:
        a = await nodes.join(Hands("x", "y"))
        await asyncio.sleep(0)
        assert a.worker.running == {}

        await nodes.give(a, "x")
        await nodes.runs(a, "x")

        assert a.worker.running == {"x": Grant("x", a.id, 1)}
        row = await nodes.row("x")
        assert (row["owner"], row["owner_name"], row["epoch"]) == (a.id, "a", 1)
        (entry,) = await nodes.log("work_claimed")
        assert (entry["node"], entry["name"], entry["work"], entry["epoch"]) == (a.id, "a", "x", 1)
        assert a.told("work_claimed") == [{"count": 1, "works": ["x"]}]
        assert a.reconciler.grants() == a.worker.running


async def test_much_work_is_claimed_by_few_statements(database_url: str) -> None:
    names = [f"w{number:04}" for number in range(2_500)]
    async with crew(database_url) as nodes:
        a = await nodes.join(Hands(*names))

        await nodes.give(a, *names)
        await nodes.runs(a, *names)

        entries = await nodes.log("work_claimed")
        assert [len(one["detail"]["work"]) for one in entries] == [1_000, 1_000, 500]
        released, abandoned = await a.reconciler.release_all(timeout=10.0)
        assert (released, abandoned) == (names, [])
        assert len(await nodes.log("work_released")) < 20, "one statement for many"


@pytest.mark.parametrize("state", ["joining", "stalled", "draining", "left", "dead"])
async def test_a_node_that_is_not_active_claims_nothing(database_url: str, state: str) -> None:
    async with crew(database_url) as nodes:
        a = await nodes.join(Hands("x"), state=state, start=False)
        await a.reconciler.offer()
        await nodes.give(a, "x")

        assert await claimed(nodes, a) == []

        await nodes.state(a, "active")
        assert await claimed(nodes, a) == [Grant("x", a.id, 1)]


async def test_a_node_that_has_not_beaten_in_time_claims_nothing(database_url: str) -> None:
    async with crew(database_url) as nodes:
        a = await nodes.join(Hands("x"), start=False)
        await a.reconciler.offer()
        await nodes.give(a, "x")
        await nodes.operator.execute("UPDATE strandline.nodes SET expires_at = clock_timestamp()")

        assert await claimed(nodes, a) == []


async def test_a_claim_waits_for_the_word_whether_its_node_is_dead(database_url: str) -> None:
    """Declared dead and claimed at the same time: one comes after the other."""
    async with crew(database_url) as nodes:
        a = await nodes.join(Hands("x"), start=False)
        await a.reconciler.offer()
        await nodes.give(a, "x")

        async with nodes.operator.transaction():
            await nodes.state(a, "dead")
            claiming = asyncio.create_task(claimed(nodes, a))
            await asyncio.wait({claiming}, timeout=0.2)
            assert not claiming.done()

        assert await claiming == []
        assert await nodes.owner("x") is None


async def test_only_what_is_meant_for_the_node_is_claimed(database_url: str) -> None:
    async with crew(database_url) as nodes:
        a = await nodes.join(Hands("x", "y", "z"), start=False)
        b = await nodes.join(Hands(), "b", start=False)
        await a.reconciler.offer()
        await nodes.give(a, "x")
        await nodes.give(b, "y")

        assert [one.work for one in await claimed(nodes, a)] == ["x"]
        assert [one.work for one in await claimed(nodes, a)] == []
        assert [one.work for one in await claimed(nodes, b)] == ["y"]


@pytest.mark.parametrize("state", ["joining", "active", "draining"])
async def test_work_of_a_node_that_is_there_is_not_taken_before_its_time(
    database_url: str, state: str
) -> None:
    async with crew(database_url) as nodes:
        a = await nodes.join(Hands("x"), start=False)
        b = await nodes.join(Hands(), "b", start=False)
        await a.reconciler.offer()
        await nodes.give(a, "x")
        assert await claimed(nodes, a) == [Grant("x", a.id, 1)]
        await nodes.state(a, state)
        await nodes.give(b, "x")

        assert await claimed(nodes, b) == []

        await nodes.operator.execute(
            "UPDATE strandline.assignments SET target_at = clock_timestamp() - interval '6 s'"
        )
        assert await claimed(nodes, b) == [Grant("x", b.id, 2)]


@pytest.mark.parametrize("fate", ["left", "dead", "stalled", "pruned"])
async def test_work_of_a_node_that_is_gone_or_frozen_is_taken_at_once(
    database_url: str, fate: str
) -> None:
    async with crew(database_url) as nodes:
        a = await nodes.join(Hands("x"), start=False)
        b = await nodes.join(Hands(), "b", start=False)
        await a.reconciler.offer()
        await nodes.give(a, "x")
        await claimed(nodes, a)
        if fate == "pruned":
            await nodes.operator.execute("DELETE FROM strandline.nodes WHERE id = $1", a.id)
        else:
            await nodes.state(a, fate)
        await nodes.give(b, "x")

        assert await claimed(nodes, b) == [Grant("x", b.id, 2)]


async def test_paused_work_is_not_claimed_and_what_runs_is_stopped_and_released(
    database_url: str,
) -> None:
    async with crew(database_url) as nodes:
        a = await nodes.join(Hands("x", "y"))
        await nodes.give(a, "x", "y")
        await nodes.runs(a, "x", "y")

        await nodes.operator.execute(
            "UPDATE strandline.work SET paused_at = clock_timestamp() WHERE name = 'x'"
        )
        await nodes.tell("paused")
        await holds(lambda: is_nobodys(nodes, "x"))
        assert set(a.worker.running) == {"y"}
        assert await claimed(nodes, a) == []

        await nodes.operator.execute("UPDATE strandline.work SET paused_at = NULL")
        await nodes.tell("resumed")
        await nodes.runs(a, "x")
        assert a.worker.running["x"].epoch == 2


async def test_offers_follow_the_code_and_keep_what_an_operator_said(database_url: str) -> None:
    async with crew(database_url) as nodes:
        a = await nodes.join(Hands("x", needs=["old"]), start=False)
        assert await a.reconciler.offer() == 2
        await nodes.operator.execute("UPDATE strandline.work SET pinned_to = 'a', reason = 'why'")
        version = await nodes.operator.fetchval("SELECT version FROM strandline.cluster")

        assert await a.reconciler.offer() == 0
        assert version == await nodes.operator.fetchval("SELECT version FROM strandline.cluster")
        a.worker.works = Hands("x", needs=["new", "more"]).works
        assert await a.reconciler.offer() == 1

        row = await nodes.operator.fetchrow("SELECT * FROM strandline.work")
        assert (row["needs"], row["pinned_to"], row["reason"]) == (["more", "new"], "a", "why")


# ---- from one node to another


async def test_work_is_handed_over_in_far_less_than_half_a_second(database_url: str) -> None:
    async with crew(database_url) as nodes:
        a, b = await nodes.join(Hands("x")), await nodes.join(Hands("x"), "b")
        await nodes.give(a, "x")
        await nodes.runs(a, "x")
        seconds = []

        for target, other in [(b, a), (a, b)] * 10:
            begun = time.monotonic()
            await nodes.give(target, "x")
            await nodes.runs(target, "x")
            seconds.append(time.monotonic() - begun)
            assert "x" not in other.worker.running

        seconds.sort()
        assert seconds[10] < 0.25, "half of them"
        assert seconds[18] < 0.5, "19 of 20; the machine may be busy"
        assert await nodes.epoch("x") == 21
        assert_never_both(a, b)


async def test_the_next_owner_waits_until_the_work_has_ended(database_url: str) -> None:
    async with crew(database_url) as nodes:
        a, b = await nodes.join(Hands("x")), await nodes.join(Hands("x"), "b")
        await nodes.give(a, "x")
        await nodes.runs(a, "x")
        a.worker.stops["x"] = 0.3

        await nodes.give(b, "x")
        await nodes.runs(b, "x")

        assert a.worker.did("x") == [("run", 1), ("stop", 1)]
        assert_never_both(a, b)


@pytest.mark.parametrize("deaf", [False, True], ids=["cut off", "never returns"])
async def test_work_that_does_not_end_is_released_all_the_same(
    database_url: str, deaf: bool
) -> None:
    async with crew(database_url, revoke_timeout=0.5) as nodes:
        a = await nodes.join(Hands("x"), hears=False)  # else it sees in time that it is taken
        b = await nodes.join(Hands("x"), "b", start=False)
        await nodes.give(a, "x")
        await nodes.runs(a, "x")
        a.worker.stops["x"] = float("inf")
        if deaf:
            a.worker.deaf.add("x")

        await nodes.give(b, "x")
        await holds(lambda: is_nobodys(nodes, "x"))
        await b.reconciler.start()
        await nodes.runs(b, "x")

        assert a.reconciler.statistics().abandoned == 1
        assert await nodes.epoch("x") == 2


async def test_a_release_is_seen_without_notices_at_the_next_look(database_url: str) -> None:
    async with crew(database_url) as nodes:
        a = await nodes.join(Hands("x"), hears=False)
        b = await nodes.join(Hands("x"), "b", hears=False)
        version = await nodes.operator.fetchval("SELECT version FROM strandline.cluster")
        await nodes.give(a, "x")
        await nodes.runs(a, "x")
        await nodes.give(b, "x")
        await nodes.runs(b, "x")

        now = await nodes.operator.fetchval("SELECT version FROM strandline.cluster")
        assert now == version + 3, "claim, release and claim each let the version grow"


async def test_a_stale_release_gives_nothing_up(database_url: str) -> None:
    async with crew(database_url) as nodes:
        a = await nodes.join(Hands("x"), start=False)
        b = await nodes.join(Hands("x"), "b", start=False)
        await a.reconciler.offer()
        await nodes.give(a, "x")
        await claimed(nodes, a)

        assert await released(nodes, b, x=1) == [], "of another owner"
        assert await released(nodes, a, x=0) == [], "of an older epoch"
        assert await released(nodes, a, x=2) == []
        assert await nodes.owner("x") == a.id
        assert await released(nodes, a, x=1) == ["x"]
        row = await nodes.row("x")
        assert (row["owner"], row["owner_name"], row["epoch"]) == (None, "a", 1)
        assert await released(nodes, a, x=1) == []


async def test_nodes_that_swap_much_work_at_once_end_with_all_of_it(database_url: str) -> None:
    names = [f"w{number:03}" for number in range(200)]
    async with crew(database_url) as nodes:
        members = [await nodes.join(Hands(*names), name) for name in "abcd"]
        for turn in range(6):
            for number, member in enumerate(members):
                await nodes.give(member, *names[(number + turn) % 4 :: 4])
            await asyncio.sleep(0.02)  # in the middle of it

        for number, member in enumerate(members):
            await nodes.runs(member, *names[(number + 5) % 4 :: 4])
            await holds(lambda m=member: len(m.worker.running) == 50)

        assert_never_both(*members)
        assert not [one for member in members for one in member.told("ownership_lost")]


# ---- lost answers


async def test_a_claim_whose_answer_is_lost_is_adopted(database_url: str) -> None:
    async with crew(database_url) as nodes, Proxy(database_url) as proxy:
        a = await nodes.join(Hands("x"), url=proxy.url)
        await holds(lambda: a.reconciler.statistics().loop.steps)
        proxy.swallow_answer_to(b"strandline.cluster")  # which the next claim tells

        await nodes.give(a, "x")
        await nodes.runs(a, "x")

        assert proxy.swallowed == 1
        assert a.worker.did("x") == [("run", 1)], "under the epoch that was given, and once"
        assert a.reconciler.statistics().adopted == 1
        assert a.told("ownership_lost") == []


async def test_a_release_whose_answer_is_lost_is_no_loss(database_url: str) -> None:
    async with crew(database_url) as nodes, Proxy(database_url) as proxy:
        a = await nodes.join(Hands("x"), url=proxy.url)
        b = await nodes.join(Hands("x"), "b")
        await nodes.give(a, "x")
        await nodes.runs(a, "x")
        steps = a.reconciler.statistics().loop.steps
        await holds(lambda: a.reconciler.statistics().loop.steps > steps)
        proxy.swallow_answer_to(b"strandline.cluster")

        await nodes.give(b, "x")
        await nodes.runs(b, "x")
        await holds(lambda: proxy.swallowed == 1)
        await holds(lambda: a.reconciler.statistics().loop.consecutive_failures == 0)

        assert a.worker.did("x") == [("run", 1), ("stop", 1)]
        assert a.told("ownership_lost") == []
        assert_never_both(a, b)


async def test_a_release_that_never_arrived_is_made_again(database_url: str) -> None:
    async with crew(database_url) as nodes, Proxy(database_url) as proxy:
        a = await nodes.join(Hands("x"), url=proxy.url)
        b = await nodes.join(Hands("x"), "b")
        await nodes.give(a, "x")
        await nodes.runs(a, "x")
        a.worker.stops["x"] = 0.3

        await nodes.give(b, "x")
        await holds(lambda: a.reconciler.statistics().stopping == 1)
        proxy.refuse()
        await holds(lambda: a.worker.did("x")[-1] == ("stop", 1))
        await asyncio.sleep(0.1)
        proxy.forward()
        await nodes.runs(b, "x")

        assert_never_both(a, b)


async def test_a_look_from_before_a_release_does_not_bring_the_work_back(
    database_url: str,
) -> None:
    async with crew(database_url, pulse_interval=60.0, node_ttl=200.0, leader_ttl=200.0) as nodes:
        a, b = await nodes.join(Hands("x"), hears=False), await nodes.join(Hands("x"), "b")
        await nodes.give(a, "x")
        a.reconciler.wake()
        await nodes.runs(a, "x")
        a.worker.stops["x"] = 0.3
        await nodes.give(b, "x")
        a.reconciler.wake()
        await holds(lambda: a.reconciler.statistics().stopping)
        await nodes.give(a, "x")  # after all, and for a moment
        looked, arrive = held_answer(a)
        a.reconciler.wake()
        await looked.wait()
        await nodes.give(b, "x")

        await nodes.runs(b, "x")
        arrive.set()
        steps = a.reconciler.statistics().loop.steps
        await holds(lambda: a.reconciler.statistics().loop.steps > steps + 1)

        assert a.worker.did("x") == [("run", 1), ("stop", 1)]
        assert a.reconciler.statistics().adopted == 0


async def test_work_goes_on_while_the_database_does_not_answer(database_url: str) -> None:
    async with crew(database_url) as nodes, Proxy(database_url) as proxy:
        a = await nodes.join(Hands("x"), url=proxy.url)
        await nodes.give(a, "x")
        await nodes.runs(a, "x")

        proxy.refuse()
        a.reconciler.wake()
        await holds(lambda: a.reconciler.statistics().loop.consecutive_failures > 1)
        assert set(a.worker.running) == {"x"}
        proxy.forward()
        await holds(lambda: a.reconciler.statistics().loop.consecutive_failures == 0)

        assert a.worker.did("x") == [("run", 1)]


async def test_what_a_node_owns_and_does_not_run_is_released_if_it_is_not_wanted(
    database_url: str,
) -> None:
    async with crew(database_url) as nodes:
        a, b = await nodes.join(Hands("x"), start=False), await nodes.join(Hands("x"), "b")
        await nodes.give(a, "x")
        await claimed(nodes, a)
        await nodes.give(b, "x")
        assert b.worker.running == {}

        await a.reconciler.start()

        await nodes.runs(b, "x")
        assert a.worker.history == []


# ---- losses


async def test_a_node_stops_at_once_what_is_anothers_and_tells(
    database_url: str, caplog: Any
) -> None:
    async with crew(database_url, pulse_interval=60.0, node_ttl=200.0, leader_ttl=200.0) as nodes:
        a = await nodes.join(Hands("x", "y"), hears=False)
        b = await nodes.join(Hands("x"), "b", start=False)
        await nodes.give(a, "x", "y")
        a.reconciler.wake()
        await nodes.runs(a, "x", "y")
        a.worker.stops["x"] = 60.0

        with caplog.at_level(logging.ERROR, "strandline.reconciler"):
            await nodes.give(b, "x")
            await nodes.operator.execute(
                "UPDATE strandline.assignments SET target_at = clock_timestamp() - interval '1 h'"
            )
            await claimed(nodes, b)
            a.reconciler.wake()
            await holds(lambda: a.told("ownership_lost"))
            await holds(lambda: nodes.log("ownership_lost"))

        assert set(a.worker.running) == {"y"}
        assert ("cut off", 1) in a.worker.did("x")
        (told,) = a.told("ownership_lost")
        assert (told["shard"], told["epoch"]) == ("x", 1)
        (entry,) = await nodes.log("ownership_lost")
        assert (entry["node"], entry["work"], entry["epoch"]) == (a.id, "x", 1)
        assert f"node b ({b.id}) has it under epoch 2" in entry["detail"]["now"]
        assert any("epoch 1, node b" in one.getMessage() for one in caplog.records)
        assert await nodes.owner("x") == b.id, "and does not release what is b's"
        assert a.reconciler.statistics().lost == 1


async def test_work_taken_by_force_while_it_was_ending_is_told_as_lost(database_url: str) -> None:
    async with crew(database_url) as nodes:
        a, b = await nodes.join(Hands("x")), await nodes.join(Hands("x"), "b")
        await nodes.give(a, "x")
        await nodes.runs(a, "x")
        a.worker.stops["x"] = 0.5

        await nodes.give(b, "x")
        await holds(lambda: a.reconciler.statistics().stopping)
        await nodes.operator.execute(
            "UPDATE strandline.assignments SET owner = $1, epoch = 2", b.id
        )
        await holds(lambda: a.told("ownership_lost"))

        assert a.worker.did("x") == [("run", 1), ("stop", 1)]
        assert await nodes.owner("x") == b.id


async def test_work_that_was_given_back_while_it_ran_is_stopped_without_an_alarm(
    database_url: str,
) -> None:
    async with crew(database_url) as nodes:
        a = await nodes.join(Hands("x"))
        await nodes.give(a, "x")
        await nodes.runs(a, "x")

        await a.reconciler.give_back()
        await nodes.tell("released")
        await holds(lambda: a.reconciler.grants() == {})

        await holds(lambda: not a.reconciler._tasks)
        assert a.told("ownership_lost") == []


async def test_a_grant_of_another_epoch_is_another_grant(database_url: str) -> None:
    """After a restore, or a release and a claim by somebody under this node's id."""
    async with crew(database_url) as nodes:
        a = await nodes.join(Hands("x"))
        await nodes.give(a, "x")
        await nodes.runs(a, "x")

        await nodes.operator.execute("UPDATE strandline.assignments SET epoch = 9")
        await nodes.tell("restored")
        await holds(lambda: a.worker.running.get("x") == Grant("x", a.id, 9))

        assert [epoch for what, epoch in a.worker.did("x") if what == "run"] == [1, 9]


async def test_work_that_was_withdrawn_is_stopped_without_an_alarm(database_url: str) -> None:
    async with crew(database_url) as nodes:
        a = await nodes.join(Hands("x"))
        await nodes.give(a, "x")
        await nodes.runs(a, "x")

        await nodes.operator.execute("DELETE FROM strandline.work")
        await nodes.tell("work")
        await holds(lambda: a.reconciler.grants() == {})

        assert a.worker.running == {}
        await holds(lambda: not a.reconciler._tasks)
        assert a.told("ownership_lost") == []


# ---- what does not go well


async def test_work_that_ended_by_itself_is_started_again_under_the_same_grant(
    database_url: str,
) -> None:
    async with crew(database_url) as nodes:
        a = await nodes.join(Hands("x"))
        await nodes.give(a, "x")
        await nodes.runs(a, "x")

        for _ in range(5):
            a.worker.end("x", CheckpointMoved("x", epoch=1, position=5))
            await nodes.runs(a, "x")

        assert a.worker.did("x") == [("run", 1), *[("ended", 1), ("run", 1)] * 5]
        assert await nodes.log("work_failed") == [], "it did not fail: something raised its epoch"
        assert a.reconciler.statistics().restarted == 5
        assert a.reconciler.statistics().avoided == 0


async def test_work_that_ended_because_it_is_anothers_is_not_started_again(
    database_url: str,
) -> None:
    async with crew(database_url) as nodes:
        a, b = await nodes.join(Hands("x")), await nodes.join(Hands("x"), "b", start=False)
        await nodes.give(a, "x")
        await nodes.runs(a, "x")
        await nodes.operator.execute(
            "UPDATE strandline.assignments SET owner = $1, epoch = 2", b.id
        )

        a.worker.end("x", CheckpointMoved("x", epoch=1, position=5))
        await holds(lambda: a.reconciler.grants() == {})

        assert a.worker.did("x") == [("run", 1), ("ended", 1)]


async def test_work_that_fails_again_and_again_is_left_to_another_node(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "REST", 0.01)
    async with crew(database_url) as nodes:
        a = await nodes.join(Hands("x", needs=["l"]), labels=["l"])
        b = await nodes.join(Hands("x", needs=["l"]), "b", labels=["l"])
        a.worker.broken["x"] = ValueError("no such table")

        await nodes.give(a, "x")
        (avoided,) = await holds(lambda: a.told("work_avoided"))

        assert avoided == {"work": "x", "failures": 3}
        assert a.worker.did("x") == [("run", 1)] * 3
        assert await nodes.owner("x") is None
        assert [one["detail"]["failures"] for one in await nodes.log("work_failed")] == [1, 2, 3]
        (entry,) = await nodes.log("work_avoided")
        assert "no such table" in entry["detail"]["error"]
        a.worker.broken.clear()
        assert await claimed(nodes, a) == [], "not for a while, though it is still meant for it"
        await nodes.give(b, "x")
        await nodes.runs(b, "x")
        await nodes.operator.execute(
            """UPDATE strandline.assignments SET avoid = jsonb_build_object('a', clock_timestamp())"""
        )
        await nodes.give(a, "x")
        await nodes.runs(a, "x")


@pytest.mark.parametrize("other", ["without the label", "not active", "of the same name", "none"])
async def test_work_that_no_other_node_can_run_is_tried_here_for_ever(
    database_url: str, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    monkeypatch.setattr(run, "REST", 0.01)
    async with crew(database_url) as nodes:
        a = await nodes.join(Hands("x", needs=["l"]), labels=["l"])
        if other == "without the label":
            await nodes.join(Hands(), "b", labels=["m"])
        elif other == "not active":
            await nodes.join(Hands(), "b", labels=["l"], state="draining")
        elif other == "of the same name":
            await nodes.join(Hands(), "a", labels=["l"])
        a.worker.broken["x"] = ValueError("no such table")

        await nodes.give(a, "x")
        await holds(lambda: failures(nodes, 3))
        resting = await holds(
            lambda: a.reconciler._runs["x"].due < float("inf") and a.reconciler._runs["x"]
        )

        assert await nodes.owner("x") == a.id
        assert 25 < resting.due - time.monotonic() <= 30
        a.worker.broken.clear()
        resting.due = 0.0
        a.reconciler.wake()
        await nodes.runs(a, "x")


async def test_work_that_gets_nowhere_is_started_anew_and_then_left_to_another(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "REST", 0.01)
    async with crew(database_url, pulse_interval=0.05) as nodes:
        a = await nodes.join(Hands("x", "y"))
        await nodes.join(Hands("x"), "b", start=False)
        await nodes.give(a, "x", "y")
        await nodes.runs(a, "x", "y")
        a.worker.frozen.add("x")
        a.worker.stops["x"] = 0.01

        await holds(lambda: a.told("work_avoided"))

        assert a.worker.did("x") == [("run", 1), ("stop", 1)] * 3
        assert set(a.worker.running) == {"y"}
        assert await nodes.owner("x") is None


# ---- leaving


async def test_leaving_stops_everything_in_parallel_and_releases_each_as_it_ends(
    database_url: str,
) -> None:
    quick, slow = [f"q{n:02}" for n in range(30)], [f"s{n:02}" for n in range(30)]
    async with crew(database_url) as nodes:
        a = await nodes.join(Hands(*quick, *slow))
        b = await nodes.join(Hands(*quick, *slow), "b")
        await nodes.give(a, *quick, *slow)
        await nodes.runs(a, *quick, *slow)
        a.worker.stops.update(dict.fromkeys(slow, 0.6))
        await nodes.operator.execute("UPDATE strandline.assignments SET target = $1", b.id)

        begun = time.monotonic()
        leaving = asyncio.create_task(a.reconciler.release_all(timeout=5.0))
        await nodes.runs(b, *quick)
        assert time.monotonic() - begun < 0.6, "these do not wait for the slow ones"
        released, abandoned = await leaving

        assert time.monotonic() - begun < 2.0
        assert (released, abandoned) == (sorted([*quick, *slow]), [])
        await nodes.runs(b, *slow)
        assert_never_both(a, b)


@pytest.mark.parametrize("deaf", [False, True], ids=["never returns", "swallows cancellation"])
async def test_leaving_ends_in_time_though_some_work_never_does(
    database_url: str, deaf: bool
) -> None:
    hanging, good = [f"h{n}" for n in range(15)], ["g1", "g2"]
    async with crew(database_url) as nodes:
        a = await nodes.join(Hands(*hanging, *good))
        await nodes.give(a, *hanging, *good)
        await nodes.runs(a, *hanging, *good)
        a.worker.stops.update(dict.fromkeys(hanging, float("inf")))
        if deaf:
            a.worker.deaf.update(hanging)

        begun = time.monotonic()
        released, abandoned = await a.reconciler.release_all(timeout=1.0)

        assert time.monotonic() - begun < 1.5
        assert (released, abandoned) == (good, sorted(hanging))
        assert await nodes.owner("g1") is None
        await a.reconciler.give_back()
        assert await nodes.owner("h1") is None, "its epoch protects the next owner"


async def test_a_leaving_node_claims_and_adopts_nothing(database_url: str) -> None:
    async with crew(database_url) as nodes:
        a = await nodes.join(Hands("x", "y"))
        await nodes.give(a, "x")
        await nodes.runs(a, "x")

        await a.reconciler.release_all(timeout=1.0)
        await nodes.give(a, "x", "y")
        steps = a.reconciler.statistics().loop.steps
        await holds(lambda: a.reconciler.statistics().loop.steps > steps + 1)

        assert a.worker.running == {}
        assert await nodes.owner("x") is None


async def test_leaving_without_a_database_stops_the_work_all_the_same(database_url: str) -> None:
    async with crew(database_url) as nodes, Proxy(database_url) as proxy:
        a = await nodes.join(Hands("x", "y"), url=proxy.url)
        await nodes.give(a, "x", "y")
        await nodes.runs(a, "x", "y")
        proxy.refuse()

        begun = time.monotonic()
        released, abandoned = await a.reconciler.release_all(timeout=1.0)

        assert time.monotonic() - begun < 1.5
        assert a.worker.running == {}
        assert (released, abandoned) == ([], ["x", "y"])
        proxy.forward()
        assert await a.reconciler.give_back() in (0, 2)
        assert await nodes.owner("x") is await nodes.owner("y") is None


async def test_an_evicted_node_stops_everything_in_time_and_touches_no_row(
    database_url: str,
) -> None:
    async with crew(database_url) as nodes:
        a = await nodes.join(Hands("x", "y", "z"))
        await nodes.give(a, "x", "y", "z")
        await nodes.runs(a, "x", "y", "z")
        a.worker.stops.update(y=0.2, z=float("inf"))
        a.worker.deaf.add("z")
        await nodes.give(None, "y")
        await holds(lambda: a.reconciler.statistics().stopping)
        await nodes.state(a, "dead")

        begun = time.monotonic()
        left = await a.reconciler.abandon_all(timeout=0.5)

        assert time.monotonic() - begun < 1.0
        assert left == ["z"]
        assert set(a.worker.running) == {"z"}
        assert [await nodes.owner(work) for work in "xyz"] == [a.id] * 3
        assert await nodes.log("work_released") == []


async def test_giving_back_releases_what_is_the_nodes_and_nothing_else(database_url: str) -> None:
    async with crew(database_url) as nodes:
        a = await nodes.join(Hands("x", "y", "z"), start=False)
        b = await nodes.join(Hands(), "b", start=False)
        await a.reconciler.offer()
        await nodes.give(a, "x", "y")
        await nodes.give(b, "z")
        await claimed(nodes, a)
        await claimed(nodes, b)

        assert await a.reconciler.give_back() == 2

        assert [await nodes.owner(work) for work in "xyz"] == [None, None, b.id]
        assert await a.reconciler.give_back() == 0


# ---- by hand


async def claimed(nodes: Crew, member: Member) -> list[Grant]:
    """One claim, as the reconciler makes it."""
    seconds = nodes.settings.revoke_timeout
    channel = "strandline.cluster"
    op = claims.claim(member.me, revoke=seconds, most=100, channel=channel)
    return await member.control.run(op)


async def released(nodes: Crew, member: Member, **epochs: int) -> list[str]:
    return await member.control.run(claims.release(member.me, epochs, channel="strandline.cluster"))


def held_answer(member: Member) -> tuple[asyncio.Event, asyncio.Event]:
    """Its next look has been answered when the first is set, and hears of it when the second is."""
    looked, arrive = asyncio.Event(), asyncio.Event()
    run = member.control.run

    async def held(op: Any) -> Any:
        member.control.run = run
        found = await run(op)
        looked.set()
        await arrive.wait()
        return found

    member.control.run = held
    return looked, arrive


async def is_nobodys(nodes: Crew, work: str) -> bool:
    return await nodes.owner(work) is None


async def failures(nodes: Crew, number: int) -> bool:
    return len(await nodes.log("work_failed")) >= number


def assert_never_both(*members: Member) -> None:
    """No work ran on two of them at once, and its epochs only grew."""
    history = sorted(
        (when, what, work, epoch, member.me.name)
        for member in members
        for when, what, work, epoch in member.worker.history
    )
    running: dict[str, str] = {}
    epochs: dict[str, int] = {}
    for _, what, work, epoch, name in history:
        if what == "run":
            assert work not in running, f"{work} on {running.get(work)} and {name}"
            assert epoch > epochs.get(work, 0)
            running[work], epochs[work] = name, epoch
        elif what in ("stop", "ended", "cut off"):
            assert running.pop(work) == name
