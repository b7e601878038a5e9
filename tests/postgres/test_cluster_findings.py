"""What a review of the cluster found, each as a test that failed before."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

from tally import Ticked, Versions, connected, fill, holds, tally_app

from strandline.app.in_place import emptied_at_rest
from strandline.cluster import work_control
from strandline.cluster.vitals import News
from strandline.cluster.work_control import list_work

SHARD = "versions:v1:all"
QUICK = {"pulse": "loop", "pulse_interval": 0.1, "rebalance_interval": 0.2, "node_name": "n1"}


async def leads(app: Any) -> Any:
    cluster = app._node.cluster
    await holds(lambda: cluster.leadership and cluster.balancer.serves(cluster.leadership.epoch))
    return cluster


async def test_the_end_of_one_term_does_not_end_the_duties_of_the_next(database_url: str) -> None:
    """Both news may be heard in one turn of the event loop."""
    app = tally_app(database_url, **{**QUICK, "pulse_interval": 3.0})  # no beat comes in between
    async with app:
        await app.start()
        cluster = await leads(app)
        epoch = cluster.leadership.epoch

        cluster._heard(News("not_leading", {"epoch": epoch, "reason": "a test"}))
        cluster._heard(News("leading", {"epoch": epoch + 1}))
        duties = cluster.balancer._duties
        await cluster.balancer.settle()

        assert duties.term.epoch == epoch + 1
        assert duties.is_at_work


async def test_a_leader_whose_duties_have_ended_takes_them_up_again(database_url: str) -> None:
    app = tally_app(database_url, **QUICK)
    async with app:
        await app.start()
        cluster = await leads(app)

        await cluster.balancer.stop()

        await leads(app)


async def test_work_at_rest_goes_on_when_whoever_held_it_was_killed(database_url: str) -> None:
    app = tally_app(database_url, **QUICK)
    async with app:
        await app.start()
        await app.wait_for(await fill(app, 10))
        op = work_control.rest([SHARD], uuid4(), 0.5, channel="strandline.cluster")
        assert await app.pools.control.run(op) == [SHARD]
        await holds(lambda: SHARD not in app._node.grants)

        await app.wait_for(await fill(app, 10), Versions, timeout=10)

        await app.rebuild(Versions)
        await app.wait_for(20, Versions, timeout=10)


async def test_two_rests_of_the_same_work_take_turns(database_url: str) -> None:
    app = tally_app(database_url, **QUICK)
    async with app:
        await app.start()
        await app.wait_for(await fill(app, 10))
        inside: list[str] = []

        async def rest(name: str) -> None:
            async with app.at_rest([SHARD]):
                inside.append(name)
                assert inside == [name]
                assert SHARD not in app._node.grants
                await asyncio.sleep(0.2)
                inside.remove(name)

        await asyncio.gather(rest("first"), rest("second"))

        await app.wait_for(await fill(app, 10), Versions, timeout=10)


async def test_what_an_operator_paused_stays_paused_after_a_rest(database_url: str) -> None:
    app = tally_app(database_url, **QUICK)
    async with app:
        await app.start()
        await app.wait_for(await fill(app, 10))
        control = app.pools.control
        await control.run(work_control.pause([SHARD], "by hand", channel="strandline.cluster"))

        async with app.at_rest([SHARD]):
            pass

        row = next(one for one in await control.run(list_work()) if one.name == SHARD)
        assert (row.paused_at is not None, row.reason) == (True, "by hand")


async def test_work_that_failed_on_every_node_still_runs_where_the_leader_puts_it(
    database_url: str,
) -> None:
    app = tally_app(database_url, **QUICK)
    async with app, connected(database_url) as operator:
        await app.start()
        await app.wait_for(await fill(app, 10))
        await app.stop()
        await operator.execute(
            "UPDATE strandline.assignments"
            " SET avoid = jsonb_build_object('n1', clock_timestamp() + interval '1 hour')"
        )

        await app.start()

        await app.wait_for(await fill(app, 10), timeout=10)


async def test_a_rebuild_inside_a_solo_node_that_runs_until_told_does_not_end_it(
    database_url: str,
) -> None:
    app = tally_app(database_url, mode="solo")
    running = asyncio.create_task(app.run())
    await app.signals.wait_for("started", timeout=10)
    await app.wait_for(await fill(app, 10))

    await app.rebuild(Versions)

    await app.wait_for(await fill(app, 10), timeout=10)
    assert not running.done()
    await app.stop()
    assert (await running).result == "clean"


async def test_an_evicted_node_joins_again_once_the_schema_is_whole(database_url: str) -> None:
    app = tally_app(database_url, **QUICK)
    async with app, connected(database_url) as operator:
        await app.start()
        await app.wait_for(await fill(app, 10))
        first = app.node_id
        rejoined = asyncio.create_task(app.signals.wait_for("rejoined", timeout=20))
        evicted = asyncio.create_task(app.signals.wait_for("evicted", timeout=10))
        await operator.execute("ALTER TABLE strandline.work RENAME TO away")
        await operator.execute("UPDATE strandline.nodes SET state = 'dead', left_at = now()")
        await evicted
        await app.signals.wait_for("joined", timeout=10)

        await operator.execute("ALTER TABLE strandline.away RENAME TO work")

        await rejoined
        assert app.node_id != first
        await app.wait_for(await fill(app, 10), timeout=10)


async def test_an_agent_whose_task_somebody_cancelled_goes_on(database_url: str) -> None:
    for settings in (QUICK, {"mode": "solo"}):
        app = tally_app(database_url, **settings)
        async with app:
            await app.start()
            await app.wait_for(await fill(app, 10))
            tasks = [
                task
                for task in asyncio.all_tasks()
                if task.get_name() == f"strandline:agent {SHARD}"
            ]
            assert tasks
            for task in tasks:
                task.cancel()

            await app.wait_for(await fill(app, 10), timeout=15)


async def test_an_emptying_that_met_a_change_of_the_cut_does_nothing(database_url: str) -> None:
    """Else the read model would be empty, and its new shards far ahead."""
    app = tally_app(database_url, mode="solo")
    async with app, connected(database_url) as other:
        await app.start()
        await app.wait_for(await fill(app, 10))
        await app.stop()
        change = other.transaction()
        await change.start()
        await other.execute("UPDATE strandline.slicings SET parts = 2 WHERE label = 'versions:v1'")
        await other.execute("DELETE FROM strandline.shards WHERE name = $1", SHARD)
        await other.execute(
            "INSERT INTO strandline.shards (name, position, epoch)"
            " VALUES ('versions:v1:1/2', 10, 9), ('versions:v1:2/2', 10, 9)"
        )
        projection = app.registry.projection(Versions)
        emptying = asyncio.create_task(
            emptied_at_rest(app.pools.work, app.requests, projection, [SHARD])
        )
        await holds(lambda: other.fetchval("SELECT count(*) > 0 FROM pg_locks WHERE NOT granted"))
        await change.commit()

        assert await emptying is False
        assert await app.count(Versions) > 0


async def test_a_drained_node_that_is_evicted_stays_drained(database_url: str) -> None:
    app = tally_app(database_url, **QUICK)
    async with app, connected(database_url) as operator:
        await app.start()
        await app.append("s", Ticked(1))
        drained = asyncio.create_task(app.signals.wait_for("drained", timeout=10))
        await operator.execute(
            "UPDATE strandline.nodes SET drain_requested_at = now(), drain_reason = 'a test'"
        )
        await drained
        rejoined = asyncio.create_task(app.signals.wait_for("rejoined", timeout=10))
        await operator.execute("UPDATE strandline.nodes SET state = 'dead', left_at = now()")

        await rejoined

        query = "SELECT state FROM strandline.nodes WHERE id = $1"
        await holds(lambda: _is(operator, query, app.node_id, "draining"))
        assert app._node.grants == {}


async def _is(operator: Any, query: str, argument: Any, value: str) -> bool:
    return bool(await operator.fetchval(query, argument) == value)
