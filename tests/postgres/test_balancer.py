"""The leader's duties on a real database: fenced, and patient with whoever may come back."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from clusters import CHANNEL, Tables, heard, tables
from tally import holds

from strandline.cluster import claims, duties, lease
from strandline.cluster.balancer import Balancer
from strandline.cluster.leading import Term, log_brake, look, mark_dead, publish
from strandline.cluster.lease import LEADER, Leadership
from strandline.cluster.node import Identity
from strandline.cluster.sight import SeenNode
from strandline.cluster.work_control import list_work, pause, pin, resume
from strandline.errors import DatabaseUnavailable, LeaseLost
from strandline.postgres.operations import AsyncpgSession, Op

QUICK = {"pulse_interval": 0.1, "node_ttl": 0.6, "leader_ttl": 5.0, "rebalance_after": 60.0}


@dataclass
class Led:
    """A leader under test, and what it believes of its lease."""

    balancer: Balancer
    term: Term
    trust: list[Leadership | None]

    @property
    def looks(self) -> int:
        return self.balancer.statistics().looks

    async def looked(self, times: int = 1) -> None:
        """Wait until it has looked again so often."""
        for _ in range(times):
            wanted = self.looks + 1
            self.balancer.wake()
            await holds(lambda wanted=wanted: self.looks >= wanted)

    async def settled(self) -> None:
        """Wait until it looks and has nothing to do."""

        async def is_settled() -> bool:
            before = self.balancer.statistics()
            await self.looked(2)
            after = self.balancer.statistics()
            return (before.changes, before.deaths) == (after.changes, after.deaths)

        assert await holds(is_settled)


@asynccontextmanager
async def leading(found: Tables, leader: Identity) -> AsyncIterator[Led]:
    term = await found.leads(leader)
    trust: list[Leadership | None] = [Leadership(term.epoch, float("inf"))]
    balancer = Balancer(
        found.pool, found.settings, found.signals, lambda: trust[0], leader.id, CHANNEL
    )
    balancer.start(term.epoch)
    try:
        yield Led(balancer, term, trust)
    finally:
        await balancer.stop(timeout=5.0)


@asynccontextmanager
async def beating(found: Tables, *nodes: Identity) -> AsyncIterator[None]:
    """These nodes beat as they should."""

    async def beat() -> None:
        while True:
            for one in nodes:
                await found.run(found.tick(one))
            await asyncio.sleep(0.05)

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def seen(found: Tables, term: Term, node: Identity) -> SeenNode:
    return (await found.run(look(term, grace=30.0))).nodes[node.id]


async def waiting(found: Tables) -> bool:
    """Whether some statement waits for a lock."""
    return bool(
        await found.one(
            """SELECT count(*) FROM pg_stat_activity
                WHERE datname = current_database() AND wait_event_type = 'Lock'"""
        )
    )


# ---- placing


async def test_work_without_a_node_is_placed_at_once_and_told(database_url: str) -> None:
    async with tables(database_url) as found, heard(found) as payloads:
        a, b = await found.node("a"), await found.node("b")
        await found.work("w1", "w2", "w3")
        before = await found.version()

        async with leading(found, a) as led:
            await led.settled()

            targets = await found.targets()
            assert set(targets.values()) == {"a", "b"}
            assert payloads.count("plan") == 1
            assert await found.version() == before + 2  # the leader, and one plan
            [(_, name, _, detail)] = await found.logged("plan")
            assert (name, detail["placed"], detail["changes"]) == ("a", 3, 3)
            assert detail["to"] == targets
            assert found.told("planned")[0] | {"seconds": 0} == {
                "changes": 3,
                "moves": 0,
                "placed": 3,
                "moved": 0,
                "withdrawn": 0,
                "seconds": 0,
            }
            rows = await found.rows("SELECT DISTINCT leader_epoch FROM strandline.assignments")
            assert rows == [(led.term.epoch,)]
            assert b.id in {
                row[0] for row in await found.rows("SELECT target FROM strandline.assignments")
            }


async def test_a_settled_cluster_costs_one_statement_a_look_and_no_write(database_url: str) -> None:
    async with tables(database_url) as found:
        a, _ = await found.node("a"), await found.node("b")
        await found.work("w1", "w2", "w3", "w4")
        async with leading(found, a) as led:
            await led.settled()
            await found.obey()
            await led.settled()
            before = (await found.version(), await found.logged("plan"))
            found.pool.ran.clear()
            looks = led.looks

            await led.looked(3)

            assert set(found.pool.ran) == {"look"}
            assert len(found.pool.ran) <= led.looks - looks + 1
            assert (await found.version(), await found.logged("plan")) == before


async def test_many_wake_ups_are_few_looks(database_url: str) -> None:
    async with tables(database_url) as found:
        async with leading(found, await found.node("a")) as led:
            await led.settled()
            before = led.looks

            begun = time.monotonic()
            while time.monotonic() - begun < 0.5:
                led.balancer.wake()
                await asyncio.sleep(0.001)

            assert 1 <= led.looks - before <= 0.5 / duties.BREATH + 2


async def test_the_target_of_work_moves_only_when_its_node_goes(database_url: str) -> None:
    async with tables(database_url) as found:
        a, b = await found.node("a"), await found.node("b")
        c = await found.node("c")
        await found.work("w1", "w2", "w3", owner=b)
        await found.work("x1", owner=a)

        async with leading(found, a) as led:
            await led.settled()
            assert list((await found.targets()).values()) == ["b", "b", "b", "a"]

            await found.leave(c.id)
            await found.age(b.id, 0.0, state="draining")
            await led.settled()
            assert set((await found.targets()).values()) == {"a"}


@pytest.mark.parametrize("state", ["joining", "stalled", "draining", "left", "dead"])
async def test_only_active_nodes_get_work(database_url: str, state: str) -> None:
    async with tables(database_url) as found:
        a = await found.node("a")
        other = await found.node("other", state=state)
        if state in ("left", "dead"):
            await found.leave(other.id, state=state)
        await found.work("w1", "w2")
        await found.work("w3", owner=other)

        async with leading(found, a) as led:
            await led.settled()

            assert set((await found.targets()).values()) == {"a"}


async def test_what_only_a_stalled_node_can_run_is_left_with_it(database_url: str) -> None:
    async with tables(database_url) as found:
        a, stalled = await found.node("a"), await found.node("b", "v2", state="stalled")
        await found.work("w", owner=stalled, needs=["v2"])
        await found.work("x", owner=stalled)

        async with leading(found, a) as led:
            await led.settled()

            assert await found.targets() == {"w": "b", "x": "a"}
            assert led.balancer.statistics().unplaced == 0


async def test_what_nobody_can_run_is_told_once_per_change(database_url: str) -> None:
    async with tables(database_url) as found:
        a = await found.node("a", "v1")
        await found.work("old", needs=["v1"])
        await found.work("new1", "new2", needs=["v2"])

        async with leading(found, a) as led:
            await led.settled()
            await led.looked(3)

            assert [one["count"] for one in found.told("unplaced")] == [2]
            logged = [row[3].get("unplaced") for row in await found.logged("plan")]
            assert logged == [{"no node has v2": ["new1", "new2"]}]
            rows = {row.name: row.unplaced for row in await found.run(list_work())}
            assert rows == {"old": None, "new1": "no node has v2", "new2": "no node has v2"}
            assert led.balancer.statistics().unplaced == 2

            await found.node("b", "v2")
            await led.settled()

            assert [one["count"] for one in found.told("unplaced")] == [2, 0]
            assert await found.targets() == {"old": "a", "new1": "b", "new2": "b"}
            rows = {row.name: row.unplaced for row in await found.run(list_work())}
            assert set(rows.values()) == {None}


async def test_what_an_operator_says_is_in_the_next_plan(database_url: str) -> None:
    async with tables(database_url) as found:
        a, _ = await found.node("a"), await found.node("b")
        await found.work("w", owner=a)
        async with leading(found, a) as led:
            await led.settled()

            for op, wanted in (
                (pin("w", "b", channel=CHANNEL), "b"),
                (pause(["w"], "x", channel=CHANNEL), None),
                (resume(["w"], channel=CHANNEL), "b"),
                (pin("w", "nobody", channel=CHANNEL), None),
            ):
                await found.run(op)
                await led.settled()
                assert await found.targets() == {"w": wanted}
            row = (await found.run(list_work()))[0]
            assert row.unplaced == "pinned to 'nobody', and no node of that name takes work"


async def test_work_avoids_a_node_for_as_long_as_was_said(database_url: str) -> None:
    async with tables(database_url) as found:
        a, _ = await found.node("a"), await found.node("b")
        await found.work("w", "x", owner=a)
        await found.one(
            """UPDATE strandline.assignments SET avoid = jsonb_build_object('a',
                   clock_timestamp() + make_interval(secs => CASE work WHEN 'w' THEN 60 ELSE -1 END))"""
        )
        async with leading(found, a) as led:
            await led.settled()

            assert await found.targets() == {"w": "b", "x": "a"}


async def test_5000_works_are_published_in_one_statement(database_url: str) -> None:
    async with tables(database_url, moves_per_round=0.0) as found:
        await found.one(
            """INSERT INTO strandline.nodes (id, name, state, mode, pulse, ttl, expires_at)
               SELECT gen_random_uuid(), 'n' || n, 'active', 'cluster', 'loop', 600,
                      clock_timestamp() + interval '600 s'
                 FROM generate_series(1, 200) n"""
        )
        leader = await found.node("leader", ttl=600.0)
        await found.work(*(f"w{n:04d}:{n % 8}" for n in range(5000)), apart="x")

        begun = time.monotonic()
        async with leading(found, leader) as led:
            assert await holds(lambda: led.looks, timeout=30.0)
            took = time.monotonic() - begun

            assert found.pool.ran.count("publish") == 1
            assert led.balancer.statistics().changes == 5000
            [(shared,)] = await found.rows(
                """SELECT array_agg(DISTINCT number) FROM (
                       SELECT count(*) AS number FROM strandline.assignments GROUP BY target) q"""
            )
            assert shared == [24, 25]
            [(_, _, _, detail)] = await found.logged("plan")
            assert detail["changes"] == 5000
            assert len(detail["to"]) == 50
            assert took < 10  # about 0.7 s on an idle machine


# ---- moves


async def test_a_node_that_joins_gets_its_share_in_rounds_once_nodes_stay(
    database_url: str,
) -> None:
    async with tables(
        database_url, rebalance_after=0.4, rebalance_interval=0.2, moves_per_round=0.2
    ) as found:
        a = await found.node("a", ttl=60.0)
        await found.work(*(f"w{n}" for n in range(10)), owner=a)
        async with leading(found, a) as led:
            await led.settled()
            await found.node("b", ttl=60.0)
            joined = time.monotonic()
            steps = [0]

            async def moved() -> int:
                await found.obey()
                led.balancer.wake()
                count = list((await found.targets()).values()).count("b")
                if count != steps[-1]:
                    steps.append(count)
                    if len(steps) == 2:
                        assert time.monotonic() - joined >= 0.4
                return count

            assert await holds(lambda: has(moved, 5))
            await led.settled()

            assert steps == [0, 2, 4, 5]
            assert await moved() == 5
            assert led.balancer.statistics().moves == 5


async def has(count: Callable[[], Any], wanted: int) -> bool:
    return bool(await count() == wanted)


async def test_a_node_that_restarts_under_its_name_gets_its_work_back(database_url: str) -> None:
    async with tables(
        database_url, rebalance_after=0.2, rebalance_interval=0.1, moves_per_round=1.0
    ) as found:
        leader = await found.node("a", ttl=60.0)
        b, c = await found.node("b", ttl=60.0), await found.node("c", ttl=60.0)
        works = [f"w{n:02d}" for n in range(12)]
        for number, one in enumerate((leader, b, c)):
            await found.work(*works[number::3], owner=one)
        before = await found.targets()
        async with leading(found, leader) as led:
            await led.settled()
            await found.age(b.id, 0.0, state="draining")
            await led.settled()
            assert "b" not in (await found.targets()).values()
            await found.obey()
            await found.leave(b.id)
            await led.settled()

            await found.node("b", ttl=60.0)

            async def is_back() -> bool:
                await found.obey()
                led.balancer.wake()
                return await found.targets() == before

            assert await holds(is_back)
            await led.settled()
            assert await found.targets() == before


# ---- the silent


async def test_a_silent_node_is_declared_dead_and_its_work_goes_to_others(
    database_url: str,
) -> None:
    async with tables(database_url, **QUICK) as found, heard(found) as payloads:
        a, b = await found.node("a"), await found.node("b")
        await found.work("w1", "w2", owner=b)
        begun = time.monotonic()
        for one in (a, b):
            await found.age(one.id, 0.0)
        async with beating(found, a), leading(found, a) as led:
            await holds(lambda: found.told("node_dead"))
            assert 0.6 < time.monotonic() - begun < 5

            await led.settled()

            assert await found.state(b.id) == "dead"
            assert set((await found.targets()).values()) == {"a"}
            assert {"dead", "plan"} <= set(payloads)
            [(_, name, _, detail)] = await found.logged("node_dead")
            assert name == "b"
            assert detail["by"] == str(a.id)
            assert detail["reason"].startswith("no beat for 0.")
            beat = await found.run(found.tick(b))
            assert beat is not None
            assert beat.state is None
            assert beat.end_reason == detail["reason"]
            assert led.balancer.statistics().deaths == 1


async def test_a_node_is_due_after_its_ttl_whatever_the_leader_waits_for(database_url: str) -> None:
    """The leader looks when the node expires, and not only when its interval is over."""
    async with tables(database_url, **QUICK, rebalance_interval=30.0) as found:
        a, b = await found.node("a"), await found.node("b", ttl=1.0)
        begun = time.monotonic()
        for one in (a, b):
            await found.age(one.id, 0.0)
        async with beating(found, a), leading(found, a):
            await holds(lambda: found.told("node_dead"), timeout=5.0)

            assert 0.9 < time.monotonic() - begun < 4.0


async def test_after_an_outage_everybody_has_a_whole_ttl_to_come_back(database_url: str) -> None:
    async with tables(database_url, **QUICK) as found:
        a, b = await found.node("a"), await found.node("b")
        term = await found.leads(a)
        for one in (a, b):
            await found.age(one.id, 5.0)  # nobody could beat

        node = await seen(found, term, b)
        assert not node.is_due, "the leader itself has not beaten, so it cannot judge"
        assert await found.run(mark_dead(term, [node])) == []

        await found.run(found.tick(a))  # the leader's first beat: steady from now on
        node = await seen(found, term, b)
        assert not node.is_due
        assert node.due_in is not None
        assert 0.3 < node.due_in <= 0.6
        assert await found.run(mark_dead(term, [node])) == []

        async with beating(found, a):
            await holds(lambda: judged(found, term, b))
        assert await found.state(b.id) == "dead"


async def judged(found: Tables, term: Term, node: Identity) -> bool:
    return bool(await found.run(mark_dead(term, [await seen(found, term, node)])))


async def test_during_an_outage_nothing_is_taken_from_nodes_that_cannot_beat(
    database_url: str,
) -> None:
    async with tables(database_url, **QUICK) as found:
        nodes = [await found.node(name) for name in ("a", "b", "c", "d")]
        for number, one in enumerate(nodes):
            await found.work(f"w{number}", owner=one)
        await found.work("more", owner=nodes[0])
        await found.work("orphan")
        before = await found.targets()
        for one in nodes:
            await found.age(one.id, 5.0)
        async with leading(found, nodes[0]) as led:
            await led.looked(3)
            assert await found.targets() == before
            assert found.told("unplaced") == []

            await found.run(found.tick(nodes[0]))
            await led.looked(2)

            assert await found.targets() == {**before, "orphan": "a"}  # the others may be gone
            assert found.told("node_dead") == []


async def test_most_nodes_at_once_get_a_second_ttl(database_url: str) -> None:
    async with tables(database_url, **{**QUICK, "node_ttl": 1.0}) as found:
        nodes = [await found.node(name) for name in "abcde"]
        begun = time.monotonic()
        for one in nodes:
            await found.age(one.id, 0.0)
        async with beating(found, nodes[0]), leading(found, nodes[0]) as led:
            await holds(lambda: found.told("brake"))
            braked = time.monotonic() - begun
            async with beating(found, nodes[1]):  # one comes back
                await holds(lambda: len(found.told("node_dead")) == 3)
                died = time.monotonic() - begun

            assert braked > 0.9
            assert died - braked > 0.9
            states = [await found.state(one.id) for one in nodes]
            assert states == ["active", "active", "dead", "dead", "dead"]
            logged = await found.logged("brake")
            assert {name for row in logged for name in row[3]["due"]} >= set("cde")
            assert led.balancer.statistics().brakes == len(logged)


async def test_a_beat_under_way_wins_over_the_verdict(database_url: str) -> None:
    async with tables(database_url) as found:
        a, b = await found.node("a"), await found.node("b")
        term = await found.leads(a)
        await found.age(a.id, 0.0)
        await found.age(b.id, 500.0)
        node = await seen(found, term, b)
        assert node.is_due
        connection = await found.connect()
        await connection.execute("BEGIN")
        await AsyncpgSession(connection, "strandline").run(found.tick(b))

        assert await found.run(mark_dead(term, [node])) == []  # and it does not wait
        await connection.execute("COMMIT")

        assert await found.run(mark_dead(term, [node])) == []  # it was seen before that beat
        await found.age(b.id, 500.0)
        assert await found.run(mark_dead(term, [node])) == []  # though it is due again
        assert await found.state(b.id) == "active"
        assert await judged(found, term, b)


async def test_a_beat_that_comes_too_late_finds_its_node_dead(database_url: str) -> None:
    async with tables(database_url) as found:
        a, b = await found.node("a"), await found.node("b")
        term = await found.leads(a)
        await found.age(a.id, 0.0)
        await found.age(b.id, 500.0)
        node = await seen(found, term, b)
        connection = await found.connect()
        await connection.execute("BEGIN")
        [dead] = await AsyncpgSession(connection, "strandline").run(mark_dead(term, [node]))
        assert dead.id == b.id

        beating_ = asyncio.create_task(found.run(found.tick(b)))
        await holds(lambda: waiting(found))
        await connection.execute("COMMIT")

        beat = await beating_
        assert beat is not None
        assert beat.state is None
        assert await found.state(b.id) == "dead"


async def test_in_1000_races_either_the_beat_wins_or_the_node_is_out(database_url: str) -> None:
    async with tables(database_url, connections=8, node_ttl=2.0) as found:
        leader = await found.node("leader", ttl=600.0)
        term = await found.leads(leader, ttl=600.0)
        await found.age(leader.id, 0.0)
        outcomes: Counter[str] = Counter()

        async def race(victim: Identity, chance: random.Random) -> None:
            await found.age(victim.id, 5.0, state="active")
            node = await seen(found, term, victim)
            assert node.is_due

            async def beat() -> bool:
                await asyncio.sleep(chance.random() * 0.004)
                answer = await found.run(found.tick(victim))
                assert answer is not None
                return answer.state is not None

            async def verdict() -> bool:
                await asyncio.sleep(chance.random() * 0.004)
                return bool(await found.run(mark_dead(term, [node])))

            lives, dies = await asyncio.gather(beat(), verdict())
            state = await found.state(victim.id)
            assert (lives, dies, state) in ((True, False, "active"), (False, True, "dead"))
            outcomes[state] += 1
            assert bool((await found.run(found.tick(victim))).state) == lives  # type: ignore[union-attr]

        async def races(number: int) -> None:
            victim = await found.node(f"v{number}")
            chance = random.Random(number)
            for _ in range(250):
                await race(victim, chance)

        await asyncio.gather(*(races(number) for number in range(4)))

        assert sum(outcomes.values()) == 1000
        assert min(outcomes.values()) > 50, outcomes


# ---- the fence


async def attempts(found: Tables, term: Term) -> dict[str, Callable[[], Op[Any]]]:
    """Everything a leader writes, each of which would change something."""
    silent = await found.node("silent")
    await found.age(term.me, 0.0)
    await found.age(silent.id, 500.0)
    await found.work("w")
    node = await seen(found, term, silent)
    return {
        "mark_dead": lambda: mark_dead(term, [node]),
        "publish": lambda: publish(term, {"w": term.me}, "{}"),
        "log_brake": lambda: log_brake(term, ["silent"], 2),
    }


async def everything(found: Tables) -> Any:
    return (
        await found.rows("SELECT id, state FROM strandline.nodes ORDER BY 1"),
        await found.rows("SELECT * FROM strandline.assignments ORDER BY 1"),
        await found.version(),
        await found.rows("SELECT id FROM strandline.node_log ORDER BY 1"),
    )


WRITES = ("mark_dead", "publish", "log_brake")
TAKE_OVER = """UPDATE strandline.leases SET holder = $1, epoch = epoch + 1,
                      expires_at = clock_timestamp() + interval '1 min' WHERE name = 'leader'"""


@pytest.mark.parametrize("how", ["taken over", "resigned", "same number", "regained"])
@pytest.mark.parametrize("what", WRITES)
async def test_a_former_leader_changes_nothing(database_url: str, what: str, how: str) -> None:
    async with tables(database_url) as found:
        a, b = await found.node("a"), await found.node("b")
        term = await found.leads(a)
        writes = await attempts(found, term)
        if how == "resigned":
            await found.run(lease.resign(LEADER, a.id, term.epoch, reason="", channel=CHANNEL))
        else:
            await found.leads(b)
        if how == "same number":  # as after a fail-over that lost the last commits
            await found.one("UPDATE strandline.leases SET epoch = $1", term.epoch)
        elif how == "regained":
            assert (await found.leads(a)).epoch == term.epoch + 2
        before = await everything(found)

        with pytest.raises(LeaseLost):
            await found.run(writes[what]())

        assert await everything(found) == before


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
@pytest.mark.parametrize("what", WRITES)
async def test_a_write_that_meets_a_take_over_waits_for_its_outcome(
    database_url: str, what: str, end: str
) -> None:
    """As if the leader had been stopped after it looked, and goes on in the middle of it."""
    async with tables(database_url) as found:
        a, b = await found.node("a"), await found.node("b")
        term = await found.leads(a)
        writes = await attempts(found, term)
        before = await everything(found)
        taking = await found.connect()
        await taking.execute("BEGIN")
        await taking.execute(TAKE_OVER, b.id)

        writing = asyncio.create_task(found.run(writes[what]()))
        await holds(lambda: waiting(found))
        await taking.execute(end)

        if end == "COMMIT":
            with pytest.raises(LeaseLost):
                await writing
            assert await everything(found) == before
        else:
            await writing
            assert await everything(found) != before


@pytest.mark.parametrize("what", WRITES)
async def test_nobody_takes_over_in_the_middle_of_a_write(database_url: str, what: str) -> None:
    async with tables(database_url) as found:
        a, b = await found.node("a"), await found.node("b")
        term = await found.leads(a)
        writes = await attempts(found, term)
        await found.one("UPDATE strandline.leases SET expires_at = '-infinity'")
        connection = await found.connect()
        await connection.execute("BEGIN")
        await AsyncpgSession(connection, "strandline").run(writes[what]())

        taken = await found.run(lease.acquire(LEADER, b.id, ttl=9.0, channel=CHANNEL))
        assert taken is None
        taking = await found.connect()
        task = asyncio.create_task(taking.execute(TAKE_OVER, b.id))
        await holds(lambda: waiting(found))
        assert not task.done()
        await connection.execute("COMMIT")

        await task


async def test_the_fence_does_not_hold_up_the_leaders_own_beats_for_long(database_url: str) -> None:
    async with tables(database_url, connections=6) as found:
        a = await found.node("a", ttl=60.0)
        term = await found.leads(a)
        await found.work(*(f"w{n}" for n in range(50)))
        slowest = 0.0

        async def plans() -> None:
            for number in range(100):
                target = a.id if number % 2 else None
                await found.run(publish(term, {f"w{n}": target for n in range(50)}, "{}"))

        planning = asyncio.create_task(plans())
        while not planning.done():
            begun = time.monotonic()
            beat = await found.run(found.tick(a, epoch=term.epoch))
            slowest = max(slowest, time.monotonic() - begun)
            assert beat is not None
            assert beat.is_renewed
        await planning

        assert slowest < 1.0


async def test_duties_end_by_themselves_when_the_lease_says_so(database_url: str) -> None:
    async with tables(database_url) as found:
        a, b = await found.node("a"), await found.node("b")
        async with leading(found, a) as led:
            await led.settled()
            await found.leads(b)

            led.balancer.wake()
            await holds(lambda: found.told("leader_refused"))

            loop = led.balancer.statistics().loop
            assert loop is not None
            await holds(lambda: not led.balancer.statistics().loop.running)  # type: ignore[union-attr]
            assert found.told("leader_refused")[0]["epoch"] == led.term.epoch
            assert led.balancer.statistics().refused == 1
            await found.work("w")
            led.balancer.wake()  # does nothing, and raises nothing
            term = await found.leads(a)
            led.trust[0] = Leadership(term.epoch, float("inf"))
            led.balancer.start(term.epoch)
            await led.settled()
            assert set((await found.targets()).values()) <= {"a", "b"}


async def test_without_trust_in_its_lease_the_leader_asks_nothing(database_url: str) -> None:
    async with tables(database_url, rebalance_interval=0.1) as found:
        a = await found.node("a")
        async with leading(found, a) as led:
            await led.settled()
            led.trust[0] = None
            await found.work("w")
            await asyncio.sleep(0)
            await holds(lambda: quiet(led))
            found.pool.ran.clear()
            for _ in range(20):
                led.balancer.wake()
                await asyncio.sleep(0.01)
            assert found.pool.ran == []
            loop = led.balancer.statistics().loop
            assert loop is not None
            assert loop.failures == 0

            led.trust[0] = Leadership(led.term.epoch, float("inf"))
            await led.settled()  # the same term goes on

            assert await found.targets() == {"w": "a"}


async def quiet(led: Led) -> bool:
    """Whether nothing is under way."""
    looks = led.looks
    led.balancer.wake()
    await asyncio.sleep(3 * duties.BREATH)
    return led.looks == looks


async def test_trust_that_ends_between_two_statements_stops_the_second(database_url: str) -> None:
    async with tables(database_url) as found:
        a = await found.node("a")
        async with leading(found, a) as led:
            await led.settled()
            await found.work("w")
            found.pool.ran.clear()
            trust = led.trust[0]
            object.__setattr__(
                led.balancer._wiring,
                "leadership",
                lambda: None if "look" in found.pool.ran else trust,
            )
            led.balancer.wake()

            await holds(lambda: found.pool.ran)
            await holds(lambda: quiet(led))

            assert found.pool.ran == ["look"]
            assert await found.targets() == {"w": None}


# ---- trouble


async def test_a_pause_that_is_being_written_is_not_planned_over(database_url: str) -> None:
    async with tables(database_url) as found:
        a = await found.node("a")
        term = await found.leads(a)
        await found.work("w", "x")
        pausing = await found.connect()
        await pausing.execute("BEGIN")
        await AsyncpgSession(pausing, "strandline").run(pause(["w"], "", channel=CHANNEL))

        assert await found.run(publish(term, {"w": a.id}, "{}")) == 0
        await pausing.execute("COMMIT")

        assert await found.run(publish(term, {"w": a.id, "x": a.id}, "{}")) == 1
        assert await found.targets() == {"w": None, "x": "a"}


async def test_a_pause_that_was_written_after_a_plan_began_to_look_wins(database_url: str) -> None:
    async with tables(database_url) as found:
        a, b = await found.node("a"), await found.node("b")
        term = await found.leads(a)
        await found.work("w", "x")
        taking = await found.connect()
        await taking.execute("BEGIN")
        await taking.execute(TAKE_OVER, b.id)

        planning = asyncio.create_task(found.run(publish(term, {"w": a.id, "x": a.id}, "{}")))
        await holds(lambda: waiting(found))  # it has its snapshot, and waits for the fence
        assert await found.run(pause(["w"], "", channel=CHANNEL)) == ["w"]
        await taking.execute("ROLLBACK")

        assert await planning == 1
        assert await found.targets() == {"w": None, "x": "a"}


async def test_a_pause_that_comes_while_a_plan_is_written_wins(database_url: str) -> None:
    async with tables(database_url) as found:
        a = await found.node("a")
        term = await found.leads(a)
        await found.work("w")
        planning = await found.connect()
        await planning.execute("BEGIN")
        assert await AsyncpgSession(planning, "strandline").run(publish(term, {"w": a.id}, "{}"))

        pausing = asyncio.create_task(found.run(pause(["w"], "", channel=CHANNEL)))
        await holds(lambda: waiting(found))
        await planning.execute("COMMIT")

        assert await pausing == ["w"]
        assert await found.targets() == {"w": None}


async def test_a_row_that_somebody_has_locked_holds_up_nothing_else(database_url: str) -> None:
    async with tables(database_url) as found:
        a = await found.node("a")
        await found.work("w", "x")
        holding = await found.connect()
        await holding.execute("BEGIN")
        await holding.execute("SELECT FROM strandline.assignments WHERE work = 'w' FOR UPDATE")
        async with leading(found, a) as led:
            await holds(lambda: is_planned(found, {"w": None, "x": "a"}))
            await holding.execute("ROLLBACK")

            await holds(lambda: is_planned(found, {"w": "a", "x": "a"}), timeout=2.0)
            await led.settled()


async def is_planned(found: Tables, wanted: dict[str, str | None]) -> bool:
    return await found.targets() == wanted


async def test_plans_and_releases_of_the_same_work_do_not_block_each_other(
    database_url: str,
) -> None:
    """A node that drains gives up what the leader gives to others at the same moment."""
    async with tables(database_url, connections=4) as found:
        a, b = await found.node("a"), await found.node("b")
        works = [f"w{n:03d}" for n in range(200)]
        await found.work(*works, owner=b)
        term = await found.leads(a)

        async def later(seconds: float, op: Op[Any]) -> None:
            await asyncio.sleep(seconds)
            await found.run(op)

        for number in range(30):
            await found.one(
                "UPDATE strandline.assignments SET owner = $1, target = $1, epoch = 1", b.id
            )
            backwards = dict.fromkeys(reversed(works), a.id)
            gives = (
                claims.give_back(b, channel=CHANNEL),
                claims.release(b, dict.fromkeys(works, 1), channel=CHANNEL),
            )
            begun = time.monotonic()
            await asyncio.gather(  # a deadlock fails one of them after a second
                later(0.001 * (number % 5), publish(term, backwards, "{}")),
                later(0.001 * (number // 6), gives[number % 2]),
            )
            assert time.monotonic() - begun < 1.0


async def test_looks_that_fail_are_tried_again_within_a_beat(database_url: str) -> None:
    async with tables(database_url, **QUICK) as found:
        a = await found.node("a")
        async with leading(found, a) as led:
            await led.settled()
            found.pool.fails = DatabaseUnavailable("away")
            led.balancer.wake()
            await holds(lambda: led.balancer.statistics().loop.consecutive_failures >= 6)  # type: ignore[union-attr]
            found.pool.fails = None
            looks, begun = led.looks, time.monotonic()

            await holds(lambda: led.looks > looks)

            assert time.monotonic() - begun < 1.0


async def test_a_slow_look_is_not_followed_by_another_for_nothing(database_url: str) -> None:
    async with tables(database_url, rebalance_interval=30.0) as found:
        a = await found.node("a")
        async with leading(found, a) as led:
            await led.settled()
            holding = await found.connect()
            await holding.execute("BEGIN; LOCK TABLE strandline.work")
            led.balancer.wake()
            await holds(lambda: waiting(found))
            await asyncio.sleep(2 * duties.RETRY)  # that long a look takes in a large cluster
            await holding.execute("ROLLBACK")
            looks = led.looks
            await holds(lambda: led.looks > looks)
            found.pool.ran.clear()

            await asyncio.sleep(duties.LONGEST_REST + 0.2)

            assert found.pool.ran == []


async def test_a_leader_stops_in_time_while_its_statement_hangs(database_url: str) -> None:
    async with tables(database_url) as found:
        a, b = await found.node("a"), await found.node("b")
        async with leading(found, a) as led:
            await led.settled()
            await found.work("w")
            taking = await found.connect()
            await taking.execute("BEGIN")
            await taking.execute(TAKE_OVER, b.id)
            led.balancer.wake()
            await holds(lambda: waiting(found))

            begun = time.monotonic()
            await led.balancer.stop(timeout=0.2)

            assert time.monotonic() - begun < 2.0
            assert led.balancer.statistics().epoch is None
            await taking.execute("COMMIT")
            assert await found.targets() == {"w": None}


async def test_a_later_term_replaces_the_one_before(database_url: str) -> None:
    async with tables(database_url) as found:
        a = await found.node("a")
        async with leading(found, a) as led:
            await led.settled()
            term = await found.leads(a)
            led.trust[0] = Leadership(term.epoch, float("inf"))

            led.balancer.start(term.epoch)
            await found.work("w")
            await led.settled()

            assert led.balancer.statistics().epoch == term.epoch
            await holds(lambda: running() == ["strandline:balancing", "strandline:pruning"])
            rows = await found.rows("SELECT leader_epoch FROM strandline.assignments")
            assert rows == [(term.epoch,)]
            assert found.told("leader_refused") == []


async def test_the_same_term_begun_again_runs_once(database_url: str) -> None:
    """Trust can end for a moment and come back with the same epoch."""
    async with tables(database_url) as found:
        async with leading(found, await found.node("a")) as led:
            await led.settled()

            led.balancer.start(led.term.epoch)
            led.balancer.start(led.term.epoch)

            await holds(lambda: running() == ["strandline:balancing", "strandline:pruning"])
            await led.settled()
        assert running() == []


def running() -> list[str]:
    names = [task.get_name() for task in asyncio.all_tasks()]
    return sorted(name for name in names if name.startswith("strandline:"))


async def test_a_balancer_that_never_led_can_be_stopped_and_asked(database_url: str) -> None:
    async with tables(database_url) as found:
        balancer = Balancer(
            found.pool, found.settings, found.signals, lambda: None, uuid4(), CHANNEL
        )

        balancer.wake()
        await balancer.stop()

        assert balancer.statistics().epoch is None


async def test_what_is_old_is_deleted_by_the_leader(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duties, "PRUNE_AFTER", 0.0)
    async with tables(database_url) as found:
        a, gone = await found.node("a"), await found.node("gone")
        await found.leave(gone.id, seconds=8 * 86_400.0)
        await found.one(
            """INSERT INTO strandline.node_log (kind, at)
               SELECT 'plan', clock_timestamp() - interval '6 days' FROM generate_series(1, 2500)"""
        )
        async with leading(found, a) as led:
            assert await holds(lambda: led.balancer.statistics().pruned == 2501)
            assert await found.rows("SELECT name FROM strandline.nodes") == [("a",)]


async def test_pruning_that_fails_keeps_neither_plans_nor_other_pruning_back(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duties, "PRUNE_AFTER", 0.0)
    async with tables(database_url) as found:
        a, gone = await found.node("a"), await found.node("gone")
        await found.leave(gone.id, seconds=8 * 86_400.0)
        await found.work("w")
        await found.one(
            """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
               $$ BEGIN RAISE EXCEPTION 'no'; END $$"""
        )
        await found.one(
            """CREATE TRIGGER refuse BEFORE DELETE ON strandline.node_log
               FOR EACH STATEMENT EXECUTE FUNCTION refuse()"""
        )
        async with leading(found, a) as led:
            assert await holds(lambda: led.balancer.statistics().pruned == 1)
            await led.settled()

            assert await found.targets() == {"w": "a"}


async def test_a_node_that_is_no_leader_sees_no_plan(database_url: str) -> None:
    async with tables(database_url) as found:
        a, b = await found.node("a"), await found.node("b")
        await found.leads(a)

        with pytest.raises(LeaseLost, match="look: another one leads, or nobody"):
            await found.run(look(Term(b.id, 1, CHANNEL), grace=1.0))


async def test_a_look_tells_nodes_and_work_as_they_are(database_url: str) -> None:
    async with tables(database_url, **QUICK) as found:
        a = await found.node("a", "v1", capacity=2.5)
        await found.age(a.id, 0.0)
        b = await found.node("b", silent=0.4)
        gone, long_gone = await found.node("gone"), await found.node("long gone")
        await found.leave(gone.id, state="dead", seconds=10.0)
        await found.leave(long_gone.id, seconds=100.0)
        term = await found.leads(a)
        await found.work("w", owner=b, needs=["v1", "v2"], together="t", apart="p", weight=0.5)

        sight = await found.run(look(term, grace=30.0))

        assert set(sight.nodes) == {a.id, b.id, gone.id}
        me, late, dead = sight.nodes[a.id], sight.nodes[b.id], sight.nodes[gone.id]
        assert (me.labels, me.capacity, me.due_in, me.gone) == (frozenset({"v1"}), 2.5, None, None)
        assert (me.is_fresh, me.is_late, me.is_due, me.beats) == (True, False, False, 1)
        assert (late.is_fresh, late.is_late, late.is_due) == (True, True, False)
        assert late.due_in is not None
        assert 0 < late.due_in <= 0.2
        assert dead.gone is not None
        assert dead.gone >= 10.0
        assert [place.name for place in sight.places()] == ["a", "b"]
        [item] = sight.items({})
        assert item.work.needs == frozenset({"v1", "v2"})
        assert (item.work.together, item.work.apart, item.work.weight) == ("t", "p", 0.5)
        assert (item.owner, item.target, item.last_name) == (b.id, b.id, "b")
        assert sight.items({"w": "x"})[0].waits_for_name
