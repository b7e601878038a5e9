"""What a pulse writes: each is one statement, logged, counted and told in the same transaction."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
from pulses import Watcher, watching
from tally import holds

from strandline.cluster import beat, lease
from strandline.cluster.beat import Beat, Terms
from strandline.cluster.lease import LEADER
from strandline.cluster.node import Identity, NodeState
from strandline.postgres.operations import AsyncpgSession

CHANNEL = "strandline.cluster"
TERMS = Terms(node_ttl=10.0, leader_ttl=8.0, channel=CHANNEL)


@dataclass
class Lab:
    """A session to write with, an operator to look with, and the notices that were told."""

    session: AsyncpgSession
    watcher: Watcher
    notices: list[str] = field(default_factory=list)

    async def node(self, name: str = "a", **facts: Any) -> Identity:
        """A node that is active."""
        who = Identity(uuid4(), name, **facts)
        await self.session.run(beat.join(who, "thread", TERMS))
        await self.tick(who)
        return who

    async def tick(
        self, who: Identity, state: NodeState = NodeState.ACTIVE, epoch: int | None = None
    ) -> Beat:
        found = await self.session.run(
            beat.tick(who, state, TERMS, loop_lag=0.25, progress=7, epoch=epoch)
        )
        assert found is not None
        return found

    async def acquire(self, who: Identity) -> int | None:
        return await self.session.run(lease.acquire(LEADER, who.id, ttl=8.0, channel=CHANNEL))

    async def version(self) -> int:
        return await self.watcher.run("SELECT version FROM strandline.cluster")

    async def expire(self) -> None:
        await self.watcher.run(
            "UPDATE strandline.leases SET expires_at = clock_timestamp() - interval '1 ms'"
        )


@asynccontextmanager
async def lab(url: str) -> AsyncIterator[Lab]:
    connection = await asyncpg.connect(url)
    async with watching(url) as watcher:
        made = Lab(AsyncpgSession(connection, "strandline"), watcher)
        await watcher.connection.add_listener(CHANNEL, lambda *told: made.notices.append(told[3]))
        try:
            yield made
        finally:
            await connection.close()


async def test_of_twenty_contenders_one_wins_each_term(database_url: str) -> None:
    """I1 under real concurrency: nobody queues, and no epoch is given twice or left out."""
    async with lab(database_url) as desk:
        pool = await asyncpg.create_pool(database_url, min_size=20, max_size=20)
        nodes = [await desk.node(f"n{number}") for number in range(20)]

        async def contend(who: Identity) -> int | None:
            async with pool.acquire() as connection:
                op = lease.acquire(LEADER, who.id, ttl=8.0, channel=CHANNEL)
                return await AsyncpgSession(connection, "strandline").run(op)

        for term in range(1, 16):
            won = [one for one in await asyncio.gather(*map(contend, nodes)) if one is not None]
            assert won == [term]
            await desk.expire()
        await pool.close()
        acquired = [epoch for _, _, epoch in await desk.watcher.logged("leader_acquired")]
        assert acquired == list(range(1, 16))


async def test_a_takeover_by_counter_is_won_by_one_and_never_against_a_renewal(
    database_url: str,
) -> None:
    async with lab(database_url) as desk:
        leader = await desk.node("leader")
        assert await desk.acquire(leader) == 1
        pool = await asyncpg.create_pool(database_url, min_size=8, max_size=8)
        nodes = [await desk.node(f"n{number}") for number in range(7)]

        async def take_over(who: Identity, epoch: int, renewals: int) -> int | None:
            async with pool.acquire() as connection:
                op = lease.take_over(LEADER, who.id, epoch, renewals, ttl=8.0, channel=CHANNEL)
                return await AsyncpgSession(connection, "strandline").run(op)

        async def renew() -> bool:
            async with pool.acquire() as connection:
                op = lease.renew(LEADER, leader.id, 1, ttl=8.0)
                return await AsyncpgSession(connection, "strandline").run(op) is not None

        for _ in range(30):
            seen = await desk.watcher.lease()
            counters = seen["epoch"], seen["renewals"]
            renewed, *taken = await asyncio.gather(
                renew(), *(take_over(one, *counters) for one in nodes)
            )
            won = [one for one in taken if one is not None]
            assert (len(won), renewed) in [(0, True), (1, False), (0, False)]
            after = await desk.watcher.lease()
            assert after["renewals"] == seen["renewals"] + len(won) + renewed
            if after["holder"] != leader.id:
                await desk.watcher.run(
                    "UPDATE strandline.leases SET holder = $1, epoch = 1", leader.id
                )
        await pool.close()


async def test_winning_is_logged_counted_and_told_and_so_is_the_end_of_the_term_before(
    database_url: str,
) -> None:
    async with lab(database_url) as desk:
        first, second = await desk.node("first"), await desk.node("second")
        assert await desk.acquire(first) == 1
        version = await desk.version()
        desk.notices.clear()

        assert await desk.acquire(second) is None
        assert await desk.version() == version
        await desk.expire()
        assert await desk.acquire(second) == 2

        assert await desk.watcher.logged("leader_acquired", "leader_lost") == [
            ("leader_acquired", "first", 1),
            ("leader_lost", "first", 1),
            ("leader_acquired", "second", 2),
        ]
        assert await desk.version() == version + 1
        await holds(lambda: desk.notices == ["leader"])


async def test_a_resignation_frees_the_lease_and_tells_at_once(database_url: str) -> None:
    async with lab(database_url) as desk:
        first, second = await desk.node("first"), await desk.node("second")
        assert await desk.acquire(first) == 1
        resign = lambda epoch: lease.resign(
            LEADER, first.id, epoch, reason="asked to", channel=CHANNEL
        )

        assert await desk.session.run(resign(2)) is None, "an old or a wrong term frees nothing"
        assert await desk.session.run(resign(1)) == 1
        assert await desk.session.run(resign(1)) is None

        await holds(lambda: "resigned" in desk.notices)
        assert (await desk.tick(second)).expires_in == 0.0
        assert await desk.acquire(second) == 2
        assert ("leader_resigned", "first", 1) in await desk.watcher.logged("leader_resigned")


async def test_only_an_active_node_can_become_leader(database_url: str) -> None:
    async with lab(database_url) as desk:
        who = await desk.node()
        for state in (NodeState.STALLED, NodeState.DRAINING):
            await desk.tick(who, state)
            assert await desk.acquire(who) is None
            take_over = lease.take_over(LEADER, who.id, 0, 0, ttl=8.0, channel=CHANNEL)
            assert await desk.session.run(take_over) is None
        stranger = Identity(uuid4(), "stranger")
        assert await desk.acquire(stranger) is None


async def test_a_tick_renews_exactly_the_term_it_names(database_url: str) -> None:
    async with lab(database_url) as desk:
        who = await desk.node()
        assert await desk.acquire(who) == 1

        assert (await desk.tick(who, epoch=None)).is_renewed is False
        assert (await desk.tick(who, epoch=2)).is_renewed is False
        before = await desk.watcher.lease()
        found = await desk.tick(who, epoch=1)
        after = await desk.watcher.lease()
        assert found.is_renewed
        assert after["renewals"] == before["renewals"] + 1 == found.renewals
        assert after["expires_at"] > before["expires_at"]
        assert 7.5 < found.expires_in <= 8.0
        await desk.expire()
        assert (await desk.tick(who, epoch=1)).is_renewed is False, "an expired term is not revived"


async def test_a_node_that_is_out_beats_no_more_and_renews_nothing(database_url: str) -> None:
    """I4: whoever declared it dead may have left it the lease."""
    async with lab(database_url) as desk:
        who = await desk.node()
        assert await desk.acquire(who) == 1
        await desk.watcher.run(
            "UPDATE strandline.nodes SET state = 'dead', left_reason = 'silent' WHERE id = $1",
            who.id,
        )
        before = await desk.watcher.node(who)

        found = await desk.tick(who, epoch=1)

        assert (found.state, found.end_reason, found.is_renewed) == (None, "silent", False)
        assert await desk.watcher.node(who) == before
        assert (await desk.watcher.lease())["renewals"] == 1


async def test_a_tick_of_an_unknown_node_answers_and_writes_nothing(database_url: str) -> None:
    async with lab(database_url) as desk:
        found = await desk.tick(Identity(uuid4(), "never joined"))

        assert found.state is None
        assert found.end_reason is None


async def test_joining_twice_is_joining_once(database_url: str) -> None:
    """The answer to the first try was lost."""
    async with lab(database_url) as desk:
        who = Identity(uuid4(), "a", labels=("x",), capacity=2.5, priority=3, host="h", pid=7)
        await desk.session.run(beat.join(who, "thread", TERMS))
        version = await desk.version()
        await desk.session.run(beat.join(who, "thread", TERMS))

        assert await desk.version() == version
        row = await desk.watcher.node(who)
        assert (row["labels"], row["capacity"], row["priority"]) == (["x"], 2.5, 3)
        assert (row["state"], row["host"], row["pid"]) == ("joining", "h", 7)
        assert await desk.watcher.logged("node_joined") == [("node_joined", "a", None)]


async def test_a_change_of_state_is_logged_counted_and_told_once(database_url: str) -> None:
    async with lab(database_url) as desk:
        who = await desk.node()
        for state in (NodeState.STALLED, NodeState.STALLED, NodeState.ACTIVE, NodeState.DRAINING):
            await desk.tick(who, state)
        version = await desk.version()

        found = await desk.tick(who, NodeState.ACTIVE)

        assert found.state == "draining", "who drains goes on draining"
        assert found.version == version == await desk.version()
        kinds = [
            kind
            for kind, _, _ in await desk.watcher.logged(
                "node_active", "node_stalled", "node_draining"
            )
        ]
        assert kinds == ["node_active", "node_stalled", "node_active", "node_draining"]
        told = ["joined", "active", "stalled", "active", "draining"]
        await holds(lambda: desk.notices == told)


async def test_a_node_does_not_go_back_to_joining(database_url: str) -> None:
    """A new side process does not know yet that its node takes part."""
    async with lab(database_url) as desk:
        who = await desk.node()

        assert (await desk.tick(who, NodeState.JOINING)).state == "active"


async def test_a_tick_writes_what_it_was_told_and_counts(database_url: str) -> None:
    async with lab(database_url) as desk:
        who = await desk.node()
        before = await desk.watcher.node(who)

        await desk.tick(who)

        after = await desk.watcher.node(who)
        assert after["beats"] == before["beats"] + 1
        assert after["beat_at"] > before["beat_at"]
        assert (after["loop_lag"], after["progress"]) == (0.25, 7)
        assert after["steady_since"] == before["steady_since"]
        assert (after["expires_at"] - after["beat_at"]).total_seconds() > 9.9


async def test_a_long_silence_makes_a_node_unsteady(database_url: str) -> None:
    """Who was silent itself cannot tell whether the others were."""
    async with lab(database_url) as desk:
        who = await desk.node()
        long_ago = """UPDATE strandline.nodes
                         SET steady_since = beat_at - interval '1 h', beat_at = beat_at - $1::interval"""
        await desk.watcher.run(long_ago, timedelta(seconds=4.5))
        await desk.tick(who)
        assert await desk.watcher.run(
            "SELECT steady_since < beat_at - interval '50 min' FROM strandline.nodes"
        )
        await desk.watcher.run(long_ago, timedelta(seconds=5.5))
        await desk.tick(who)

        assert await desk.watcher.run(
            "SELECT steady_since > clock_timestamp() - interval '5 s' FROM strandline.nodes"
        )


async def test_the_end_of_a_node_frees_its_lease_in_the_same_statement(database_url: str) -> None:
    async with lab(database_url) as desk:
        first, second = await desk.node("first"), await desk.node("second")
        assert await desk.acquire(first) == 1
        version = await desk.version()

        assert await desk.session.run(beat.end(first.id, NodeState.DEAD, "process died", TERMS))

        row = await desk.watcher.node(first)
        assert (row["state"], row["left_reason"]) == ("dead", "process died")
        assert row["left_at"] is not None
        assert (await desk.watcher.lease())["holder"] is None
        assert await desk.version() == version + 1
        kinds = await desk.watcher.logged("leader_lost", "node_dead")
        assert kinds == [("leader_lost", "first", 1), ("node_dead", "first", None)]
        await holds(lambda: desk.notices[-1:] == ["dead"])
        assert await desk.acquire(second) == 2


async def test_the_first_end_of_a_node_is_final(database_url: str) -> None:
    async with lab(database_url) as desk:
        who = await desk.node()
        report = json.dumps({"result": "clean"})

        assert await desk.session.run(
            beat.end(who.id, NodeState.LEFT, "done", TERMS, report=report)
        )
        version = await desk.version()

        assert not await desk.session.run(beat.end(who.id, NodeState.DEAD, "process died", TERMS))
        assert await desk.session.run(beat.end(who.id, NodeState.LEFT, "again", TERMS)), (
            "it has left"
        )
        row = await desk.watcher.node(who)
        assert (row["state"], row["left_reason"]) == ("left", "done")
        assert json.loads(row["report"]) == {"result": "clean"}
        assert await desk.version() == version
        assert await desk.watcher.logged("node_left", "shutdown") == [
            ("node_left", "a", None),
            ("shutdown", "a", None),
        ]
        assert not await desk.session.run(beat.end(UUID(int=1), NodeState.LEFT, "", TERMS))


async def test_a_free_lease_tells_how_many_better_candidates_there_are(database_url: str) -> None:
    async with lab(database_url) as desk:
        low = await desk.node("low")
        for priority in (5, 5, 3, -1):
            await desk.node("other", priority=priority)
        await desk.node("follower", priority=9, mode="follower")
        gone = await desk.node("gone", priority=8)
        await desk.session.run(beat.end(gone.id, NodeState.LEFT, "", TERMS))
        silent = await desk.node("silent", priority=7)
        await desk.watcher.run(
            "UPDATE strandline.nodes SET expires_at = clock_timestamp() WHERE id = $1", silent.id
        )

        assert (await desk.tick(low)).rivals == 2, "priorities 5 and 3"

        assert await desk.acquire(low) == 1
        assert (await desk.tick(low)).rivals == 0, "nobody is to be let pass"


async def test_requests_of_an_operator_are_read_back_by_the_next_tick(database_url: str) -> None:
    async with lab(database_url) as desk:
        who = await desk.node()
        assert await desk.acquire(who) == 1
        await desk.watcher.run(
            """UPDATE strandline.nodes
                  SET drain_requested_at = clock_timestamp(), drain_reason = 'maintenance'"""
        )
        await desk.watcher.run(
            """UPDATE strandline.leases
                  SET resign_requested_at = clock_timestamp(), resign_reason = 'rebalancing'"""
        )

        found = await desk.tick(who)

        assert (found.drain_reason, found.resign_reason) == ("maintenance", "rebalancing")
        await desk.expire()
        assert await desk.acquire(who) == 2
        assert (await desk.tick(who)).resign_reason is None, "a request is for one term"
