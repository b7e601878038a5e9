"""A pulse beats, elects and tells, in a thread, in the event loop, and in a side process."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from uuid import uuid4

import pytest
from bouncer import bouncer, needs_pgbouncer
from pulses import QUICK, beating, node, watching
from tally import holds

from strandline.cluster.node import Identity
from strandline.cluster.pulse import PulseOptions
from strandline.cluster.vitals import packed, unpacked
from strandline.errors import SchemaOutOfDate, Unavailable
from strandline.settings import Settings
from strandline.testing.faults import Proxy

KINDS = ["thread", "loop", "process"]
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
async def test_a_node_joins_takes_part_drains_and_leaves(database_url: str, kind: str) -> None:
    one = node(database_url, kind, name="a", identity={"labels": ("x", "y")})
    async with watching(database_url) as watcher:
        await one.pulse.start(timeout=10)
        row = await watcher.node(one)
        assert (row["state"], row["pulse"], row["labels"]) == ("joining", kind, ["x", "y"])
        assert one.pulse.statistics().state == "joining"

        one.pulse.ready()
        await holds(lambda: one.pulse.statistics().state == "active")
        assert await watcher.state(one) == "active"

        assert await one.pulse.drain(timeout=5)
        assert await watcher.state(one) == "draining"

        report = json.dumps({"result": "clean"})
        assert await one.pulse.leave("it was told to stop", report, timeout=5)
        row = await watcher.node(one)
        assert (row["state"], row["left_reason"]) == ("left", "it was told to stop")
        assert json.loads(row["report"]) == {"result": "clean"}
        await one.pulse.stop(timeout=5)
        assert (await watcher.node(one))["beats"] == row["beats"], "no beat after it has left"

        async def unconnected() -> bool:
            return not await watcher.backends()

        await holds(unconnected)


@every_kind
async def test_a_node_alone_leads_and_keeps_leading(database_url: str, kind: str) -> None:
    async with beating(database_url, kind) as one, watching(database_url) as watcher:
        facts = await one.tells("leading")
        assert one.pulse.leadership is not None
        assert one.pulse.leadership.epoch == facts["epoch"] == 1
        until = one.pulse.leadership.trusted_until

        await holds(lambda: one.pulse.leadership.trusted_until > until + QUICK.leader_ttl)

        lease = await watcher.lease()
        assert (lease["epoch"], lease["holder"]) == (1, one.id)
        assert one.news("not_leading") == []
        statistics = one.pulse.statistics()
        assert (statistics.attempts, statistics.wins, statistics.epoch) == (1, 1, 1)
        assert statistics.seconds_since_leader_seen < 1


@every_kind
async def test_a_follower_takes_over_when_the_leader_falls_silent(
    database_url: str, kind: str
) -> None:
    """Without a word: the follower looks in the moment in which the lease ends."""
    async with beating(database_url, "thread", name="first") as first:
        await first.tells("leading")
        async with beating(database_url, kind, name="second") as second:
            gone = time.monotonic()
            await first.pulse.stop(timeout=5)  # no leave: as after a crash

            await second.tells("leading", since=gone)

            waited = second.first("leading", since=gone) - gone
            assert waited < QUICK.leader_ttl + 1.0
            assert second.pulse.leadership.epoch == 2


@every_kind
async def test_a_leader_that_resigns_is_followed_at_once(database_url: str, kind: str) -> None:
    async with beating(database_url, kind, name="first") as first:
        await first.tells("leading")
        async with beating(database_url, kind, name="second") as second:
            asked = time.monotonic()

            assert await first.pulse.resign("maintenance", timeout=5)

            assert first.pulse.leadership is None
            assert first.news("not_leading")[0] == {"epoch": 1, "reason": "maintenance"}
            await second.tells("leading", since=asked)
            assert second.first("leading", since=asked) - asked < 1.0
        async with watching(database_url) as watcher:
            told = [
                (kind, name, epoch)
                for kind, name, epoch in await watcher.logged("leader_acquired", "leader_resigned")
            ][:3]
            assert told == [
                ("leader_acquired", "first", 1),
                ("leader_resigned", "first", 1),
                ("leader_acquired", "second", 2),
            ]


@pytest.mark.parametrize("report", ["no JSON", '{"error": "\\u0000"}'])
async def test_a_report_that_cannot_be_stored_keeps_no_node_from_leaving(
    database_url: str, report: str
) -> None:
    async with beating(database_url) as one, watching(database_url) as watcher:
        assert await one.pulse.leave("it stops", report, timeout=5)

        row = await watcher.node(one)
        assert (row["state"], row["left_reason"], row["report"]) == ("left", "it stops", None)


async def test_who_resigned_stands_again_after_a_ttl_unless_it_is_for_good(
    database_url: str,
) -> None:
    async with beating(database_url) as one:
        await one.tells("leading")
        resigned = time.monotonic()
        assert await one.pulse.resign("maintenance", timeout=5)
        await one.tells("leading", since=resigned)
        assert one.first("leading", since=resigned) - resigned > QUICK.leader_ttl * 0.9
        again = time.monotonic()
        assert await one.pulse.resign("maintenance", timeout=5, for_good=True)

        with pytest.raises(TimeoutError):
            await one.tells("leading", since=again, timeout=QUICK.leader_ttl * 1.5)


async def test_a_node_that_drains_resigns_and_does_not_stand(database_url: str) -> None:
    async with beating(database_url, name="first") as first:
        await first.tells("leading")

        assert await first.pulse.drain(timeout=5)

        await holds(lambda: first.pulse.leadership is None)
        async with beating(database_url, name="second") as second:
            await second.tells("leading")


@pytest.mark.parametrize("identity", [{"priority": -1}, {"mode": "follower"}])
async def test_some_nodes_never_stand(database_url: str, identity: dict) -> None:
    async with beating(database_url, identity=identity) as one:
        with pytest.raises(TimeoutError):
            await one.tells("leading", timeout=1.0)
        assert one.pulse.statistics().attempts == 0


async def test_the_higher_priority_wins_a_free_lease(database_url: str) -> None:
    async with beating(database_url, name="leader") as leader:
        await leader.tells("leading")
        async with (
            beating(database_url, name="low", identity={"priority": 1}) as low,
            beating(database_url, name="high", identity={"priority": 2}) as high,
        ):
            await leader.pulse.resign("maintenance", timeout=5, for_good=True)

            # A head start of 200 ms, which a busy machine can eat: then the next race shows it.
            for _ in range(3):
                await holds(lambda: high.pulse.leadership or low.pulse.leadership)
                if high.pulse.leadership:
                    break
                await low.pulse.resign("a busy machine", timeout=5)

            assert high.pulse.leadership


async def test_twenty_nodes_that_join_at_once_have_one_leader(database_url: str) -> None:
    made = [
        node(
            database_url,
            "loop",
            name=f"n{number}",
            deadline=2.5,
            ttl=20.0,
            leader_ttl=15.0,
            margin=1.0,
        )
        for number in range(20)
    ]
    try:
        await asyncio.gather(*(one.pulse.start(timeout=20) for one in made))
        for one in made:
            one.pulse.ready()
        await holds(lambda: [one for one in made if one.pulse.leadership])
        await asyncio.gather(*(one.tells("ticked", since=time.monotonic()) for one in made))

        assert len([one for one in made if one.pulse.leadership]) == 1
        async with watching(database_url) as watcher:
            assert len(await watcher.logged("leader_acquired")) == 1
    finally:
        await asyncio.gather(*(one.pulse.stop(timeout=2) for one in made))


@every_kind
async def test_a_request_to_resign_is_told_and_done_without_the_app_too(
    database_url: str, kind: str
) -> None:
    """The app has two seconds to end a leader's duties; then its pulse resigns for it."""
    async with beating(database_url, kind) as one, watching(database_url) as operator:
        await one.tells("leading")
        asked = time.monotonic()
        await operator.run(
            """WITH asked AS (UPDATE strandline.leases SET resign_requested_at = clock_timestamp(),
                                     resign_reason = 'rebalancing')
               SELECT pg_notify('strandline.cluster', 'resign')"""
        )

        facts = await one.tells("resign_requested", since=asked)
        assert facts == {"reason": "rebalancing"}
        assert one.first("resign_requested", since=asked) - asked < 0.5
        assert one.pulse.leadership is not None
        await one.tells("not_leading", since=asked)
        assert 1.5 < one.first("not_leading", since=asked) - asked < 3.5
        assert len(one.news("resign_requested")) == 1


async def test_a_request_to_drain_is_told_once(database_url: str) -> None:
    async with beating(database_url) as one, watching(database_url) as operator:
        await operator.run(
            """UPDATE strandline.nodes
                  SET drain_requested_at = clock_timestamp(), drain_reason = 'maintenance'"""
        )

        assert await one.tells("drain_requested") == {"reason": "maintenance"}
        for _ in range(3):
            await one.tells("ticked", since=time.monotonic())
        assert len(one.news("drain_requested")) == 1


@every_kind
@pytest.mark.parametrize("how", ["dead", "gone"])
async def test_a_node_that_is_declared_dead_beats_no_more_and_tells(
    database_url: str, kind: str, how: str
) -> None:
    """I4. It holds the lease too, which whoever ended it has left: it gives that up."""
    async with beating(database_url, kind) as one, watching(database_url) as operator:
        await one.tells("leading")
        since = time.monotonic()
        if how == "dead":
            await operator.run(
                "UPDATE strandline.nodes SET state = 'dead', left_reason = 'by hand' WHERE id = $1",
                one.id,
            )
        else:
            await operator.run("DELETE FROM strandline.nodes WHERE id = $1", one.id)

        facts = await one.tells("evicted", since=since)

        assert facts == {"reason": "by hand" if how == "dead" else "its row is gone"}
        assert one.pulse.leadership is None
        assert one.first("not_leading") <= one.first("evicted")

        async def freed() -> bool:
            return (await operator.lease())["holder"] is None

        await holds(freed)
        beats = one.pulse.statistics().ticks
        with pytest.raises(TimeoutError):
            await one.tells("ticked", since=time.monotonic(), timeout=1.0)
        assert one.pulse.statistics().ticks == beats
        row = await operator.node(one)
        assert row is None or row["state"] == "dead"


async def test_changes_of_the_cluster_are_told_by_notice_and_by_tick(database_url: str) -> None:
    async with (
        beating(database_url, name="hears", interval=5.0, ttl=30.0) as hears,
        beating(database_url, name="polls", listens=False) as polls,
        watching(database_url) as operator,
    ):
        await asyncio.sleep(0.3)  # what is told of the joining has passed
        since = time.monotonic()
        await operator.run(
            """WITH planned AS (UPDATE strandline.cluster SET version = version + 1)
               SELECT pg_notify('strandline.cluster', 'plan')"""
        )

        await hears.tells("changed", since=since, where=lambda facts: facts["notice"] == "plan")
        await polls.tells("changed", since=since)

        assert hears.first("changed", since=since) - since < 0.5
        assert hears.news("ticked", since=since) == [], "a plan is no reason to beat"


async def test_a_storm_of_notices_makes_few_ticks(database_url: str) -> None:
    async with beating(database_url) as one, watching(database_url) as operator:
        await one.tells("leading")
        ticks = one.pulse.statistics().ticks
        began = time.monotonic()
        for number in range(500):
            await operator.run("SELECT pg_notify('strandline.cluster', 'left')")
        took = time.monotonic() - began
        await one.tells("ticked", since=time.monotonic())

        assert one.pulse.statistics().ticks - ticks <= (took + 1.0) / 0.02 + 2


@every_kind
async def test_a_start_without_a_database_says_so_and_goes_on_trying(
    database_url: str, kind: str
) -> None:
    async with Proxy(database_url) as proxy:
        proxy.refuse()
        one = node(proxy.url, kind)
        began = time.monotonic()

        with pytest.raises(Unavailable, match="could not join within"):
            await one.pulse.start(timeout=1.5)

        assert time.monotonic() - began < 2.5
        proxy.forward()
        await one.pulse.start(timeout=10)
        async with watching(database_url) as watcher:
            assert await watcher.state(one) == "joining"
        await one.pulse.stop(timeout=2)


@every_kind
async def test_a_start_without_our_tables_says_so_at_once(database_url: str, kind: str) -> None:
    one = node(database_url, kind, schema="elsewhere")

    with pytest.raises(SchemaOutOfDate, match="migrate apply"):
        await one.pulse.start(timeout=10)

    await one.pulse.stop(timeout=2)


@every_kind
async def test_a_pulse_that_cannot_reach_the_database_stops_in_time(
    database_url: str, kind: str
) -> None:
    """Nothing raises, nothing hangs; what could not be written is answered with False."""
    async with Proxy(database_url) as proxy:
        one = node(proxy.url, kind)
        await one.pulse.start(timeout=10)
        one.pulse.ready()
        await one.tells("leading")
        proxy.hold()
        began = time.monotonic()

        assert await one.pulse.drain(timeout=0.5) is False
        assert await one.pulse.resign("it stops", timeout=0.5) is False
        assert await one.pulse.leave("it stops", "", timeout=0.5) is False
        assert one.pulse.leadership is None
        await one.pulse.stop(timeout=1.0)

        assert time.monotonic() - began < 4.5


@every_kind
async def test_a_pulse_can_be_stopped_before_it_has_started_and_twice(
    database_url: str, kind: str
) -> None:
    one = node(database_url, kind)
    await one.pulse.stop(timeout=1)
    one = node(database_url, kind)
    starting = asyncio.create_task(one.pulse.start(timeout=10))
    await asyncio.sleep(0)

    await one.pulse.stop(timeout=2)
    await one.pulse.stop(timeout=2)

    starting.cancel()
    assert not await one.pulse.leave("too late", "", timeout=0.2)


async def test_the_answer_to_an_acquire_is_lost_and_the_term_is_adopted(
    database_url: str,
) -> None:
    """One epoch is used, and no ttl passes until somebody leads."""
    async with Proxy(database_url) as proxy:
        one = node(proxy.url, "thread", leader_ttl=30.0, ttl=30.0)
        await one.pulse.start(timeout=10)
        # the first bytes of what an acquire is sent with: the lease's name, and then the node
        proxy.swallow_answer_to(b"leader" + (16).to_bytes(4, "big") + one.id.bytes)
        one.pulse.ready()

        await one.tells("leading", timeout=5.0)

        assert proxy.swallowed == 1
        assert one.pulse.leadership.epoch == 1
        outcomes = [facts["outcome"] for facts in one.news("election")]
        assert outcomes == ["failed"]
        await one.pulse.leave("", "", timeout=2)
        await one.pulse.stop(timeout=2)


async def test_a_lost_answer_to_a_tick_costs_no_leadership(database_url: str) -> None:
    async with Proxy(database_url) as proxy, beating(proxy.url) as one:
        await one.tells("leading")
        for lost in range(1, 4):
            proxy.swallow_answer_to(one.id.bytes)  # its bytes stand in what every tick sends
            await holds(lambda lost=lost: proxy.swallowed == lost)
            await one.tells("ticked", since=time.monotonic())

        assert one.news("not_leading") == []
        assert one.pulse.statistics().attempts == 1


async def test_trust_ends_in_time_when_no_answer_comes(database_url: str) -> None:
    """The end is told in the moment it comes, in the middle of a tick that is not answered."""
    async with Proxy(database_url) as proxy, beating(proxy.url, deadline=5.0) as one:
        await one.tells("leading")
        await one.tells("ticked", since=time.monotonic())
        proxy.hold()
        held = time.monotonic()
        trust = QUICK.leader_ttl - QUICK.margin

        await one.tells("not_leading", since=held)

        assert trust - 0.5 < one.first("not_leading", since=held) - held < trust + 0.3
        assert one.pulse.leadership is None
        proxy.forward()
        await one.tells("leading", since=held)


@needs_pgbouncer
@pytest.mark.parametrize("kind", ["thread", "process"])
async def test_nodes_behind_a_pooler_elect_by_polling_alone(database_url: str, kind: str) -> None:
    """PgBouncer in transaction mode: no LISTEN, no session setting, no prepared statement."""
    polls = {"prepared": False, "listens": False}
    async with (
        bouncer(database_url) as url,
        beating(url, kind, name="first", **polls) as first,
        beating(url, kind, name="second", **polls) as second,
    ):
        await holds(lambda: first.pulse.leadership or second.pulse.leadership)
        for _ in range(2):
            leader, follower = (first, second) if first.pulse.leadership else (second, first)
            asked = time.monotonic()
            assert await leader.pulse.resign("it is the other's turn", timeout=5)
            await follower.tells("leading", since=asked)
            assert leader.pulse.leadership is None
            waits = QUICK.interval + 1.0
            assert follower.first("leading", since=asked) - asked < waits
            await leader.tells("ticked", since=time.monotonic())
            await holds(lambda leader=leader: leader.pulse.statistics().state == "active")
            await asyncio.sleep(QUICK.leader_ttl)  # until it may stand again
        assert first.news("tick_failed") == second.news("tick_failed") == []


async def test_what_the_app_vouches_for_is_in_its_row(database_url: str) -> None:
    async with beating(database_url, "process") as one, watching(database_url) as watcher:
        one.pulse.vouch(4711)

        async def written() -> bool:
            return (await watcher.node(one))["progress"] == 4711

        await holds(written)


def test_what_a_side_process_is_given_goes_through_a_pipe() -> None:
    identity = Identity(uuid4(), "a", labels=("x",))
    settings = Settings(database_url="postgresql://h/d", pooler="transaction")
    options = PulseOptions.of(settings, "postgresql://h/d")

    told = json.loads(json.dumps(packed(identity, options)))

    assert unpacked(told) == (identity, options)
    assert (options.prepared, options.listens) == (False, False)
    assert PulseOptions.of(replace(settings, direct_url="postgresql://h/d"), "").listens
