"""What the probes and the health of a real node say while something is really wrong, and afterwards."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from poisoned import Step, poisoned_app
from probing import Answered, probed, probed_until
from tally import connected, fill, holds, tally_app

import strandline as sl
from strandline.app import App
from strandline.errors import PoolExhausted, Unavailable
from strandline.telemetry.signals import Notice
from strandline.testing.faults import Proxy

FAST: dict[str, Any] = {
    "ops_port": 0,
    "pulse": "loop",
    "pulse_interval": 0.1,
    "pulse_deadline": 0.5,
    "node_ttl": 1.0,
    "leader_ttl": 0.9,
    "leader_margin": 0.2,
    "poll_interval": 0.1,
}
ALONE: dict[str, Any] = {"ops_port": 0, "mode": "solo", "poll_interval": 0.1}
PROBES = ("/livez", "/readyz", "/healthz")


async def ask(app: App, path: str) -> Answered:
    return await asyncio.to_thread(probed, app.ops.url, path)


async def statuses(app: App) -> tuple[int, ...]:
    """Of livez, readyz and healthz."""
    return tuple([(await ask(app, path)).status for path in PROBES])


async def until(what: Callable[[], Any]) -> Any:
    return await holds(what, timeout=30.0)


async def test_a_node_in_good_health_says_so_of_everything(database_url: str) -> None:
    app = tally_app(database_url, **FAST)
    async with app:
        await app.start()
        await fill(app, 20)
        await until(lambda: app.health()["shards"].reason == "2 run here")
        await until(lambda: app.health().status == "ok")

        assert await statuses(app) == (200, 200, 200)
        answer = await ask(app, "/healthz?format=json")

    assert set(answer.checks) >= {
        "event_loop",
        "stop",
        "app",
        "node",
        "pulse",
        "leader",
        "background_loops",
        "high_water",
        "shards",
        "pools",
        "transactions",
        "listener",
        "letters",
    }
    assert answer.checks["shards"]["reason"] == "2 run here"
    assert app.ops.address is None


async def test_an_app_that_is_no_node_is_ready_once_it_is_open(database_url: str) -> None:
    app = App("shop", database_url, ops_port=0)

    assert not app.health().ready
    async with app:
        assert await statuses(app) == (200, 200, 200)
        assert app.health()["node"].reason == "open, and no node: it appends and reads"


async def test_without_a_port_there_is_none_and_health_is_known_all_the_same(
    database_url: str,
) -> None:
    async with tally_app(database_url, mode="solo") as app:
        await app.start()

        assert (app.ops.address, app.ops.url) == (None, "")
        assert app.health().ready


async def test_metrics_are_on_the_same_port(database_url: str) -> None:
    pytest.importorskip("prometheus_client")
    async with tally_app(database_url, **ALONE, node_name="shop-1") as app:
        await app.start()
        answer = await ask(app, "/metrics")

    assert answer.status == 200
    assert 'strandline_pool_limit_connections{node="shop-1",pool="work"} 8.0' in answer.text


async def test_a_blocked_event_loop_fails_liveness_and_names_the_place(database_url: str) -> None:
    async with tally_app(database_url, **ALONE, live_loop_lag=0.2) as app:
        await app.start()
        seen: list[Answered] = []
        probe = threading.Thread(
            target=probed_until, args=(app.ops.url, "/livez", lambda one: one.status == 503, seen)
        )
        probe.start()

        def block_until_seen() -> None:
            probe.join(30.0)

        block_until_seen()

        assert seen[-1].status == 503
        assert "it has not turned for" in seen[-1].text
        assert f"{Path(threading.__file__).name}" in seen[-1].text  # where join waits
        assert await statuses(app) == (200, 200, 200)


async def test_liveness_needs_no_database_and_readiness_comes_back_with_it(
    database_url: str,
) -> None:
    async with Proxy(database_url) as proxy:
        app = tally_app(proxy.url, **FAST, connect_timeout=1.0, acquire_timeout=1.0)
        async with app:
            await app.start()
            await until(lambda: app.health().ready)
            proxy.black_hole()

            await until(lambda: _status(app, "/readyz", 503))
            assert (await ask(app, "/livez")).status == 200
            assert (await ask(app, "/healthz?format=json")).checks["pulse"]["outcome"] == "fail"

            proxy.forward()
            await until(lambda: _status(app, "/readyz", 200))


async def _status(app: App, path: str, status: int) -> bool:
    return (await ask(app, path)).status == status


async def test_while_it_starts_a_node_is_live_and_not_ready(database_url: str) -> None:
    async with Proxy(database_url) as proxy:
        proxy.hold()
        app = tally_app(proxy.url, **FAST)
        opening = asyncio.create_task(app.open())
        await until(lambda: app.ops.url)

        assert await statuses(app) == (200, 503, 200)

        proxy.forward()
        await opening
        assert (await ask(app, "/readyz")).status == 200
        await app.close()


async def test_an_app_that_cannot_be_opened_gives_its_port_back() -> None:
    app = App("shop", "postgresql://nobody@127.0.0.1:1/none", ops_port=0, connect_timeout=1.0)

    with pytest.raises(Unavailable):
        await app.open()

    assert app.ops.address is None


async def test_a_stop_under_way_is_live_and_not_ready_to_its_last_step(database_url: str) -> None:
    app = tally_app(database_url, **FAST)
    inside, goes_on = asyncio.Event(), asyncio.Event()

    @app.on_stop
    async def last_words() -> None:
        inside.set()
        await asyncio.wait_for(goes_on.wait(), 1.9)

    async with app:
        await app.start()
        await until(lambda: app.health().ready)
        stop = asyncio.create_task(app.stop())
        await inside.wait()

        assert (await ask(app, "/livez")).status == 200
        ready = await ask(app, "/readyz")
        goes_on.set()
        await stop

        assert ready.status == 503
        assert "stopping (stop)" in ready.text
        assert "at hook last_words" in ready.text
        assert (await ask(app, "/livez")).status == 200
        assert "has stopped" in (await ask(app, "/readyz")).text

    async with app:  # open again it is as any other
        assert (await ask(app, "/readyz")).status == 200


async def test_a_stop_that_has_outlived_its_time_fails_liveness(database_url: str) -> None:
    app = tally_app(database_url, **ALONE, stop_timeout=0.2, stop_hard=1.0)
    begun = threading.Event()
    seen: list[Answered] = []

    @app.on_stop
    def hang() -> None:
        begun.set()
        probe.join(30.0)  # a hook that blocks the loop cannot be cut off

    async with app:
        await app.start()
        url = app.ops.url
        probe = threading.Thread(
            target=probed_until, args=(url, "/livez", lambda one: one.status == 503, seen)
        )
        probe.start()
        await app.stop()

    assert begun.is_set()
    assert seen[-1].status == 503
    assert "beyond its time" in seen[-1].text


async def test_a_node_that_was_asked_to_drain_is_not_ready_and_live(database_url: str) -> None:
    app = tally_app(database_url, **FAST)
    async with app:
        await app.start()
        await until(lambda: app.health().ready)
        async with connected(database_url) as operator:
            await operator.execute(
                """UPDATE strandline.nodes SET drain_requested_at = now(), drain_reason = 'test'
                    WHERE name = $1""",
                app.node_name,
            )

        await until(lambda: _status(app, "/readyz", 503))

        assert (await ask(app, "/livez")).status == 200
        assert "draining" in app.health()["node"].reason


async def test_an_evicted_node_is_not_ready_until_it_has_joined_again(database_url: str) -> None:
    app = tally_app(database_url, **FAST)
    states: list[str] = []
    async with app:
        await app.start()
        await until(lambda: app.health().ready)
        first = app.node_id

        def hear(notice: Notice) -> None:
            if notice.name == "evicted":
                states.append(app.health()["node"].reason)

        app.signals.listen(hear)
        async with connected(database_url) as operator:
            await operator.execute(
                "UPDATE strandline.nodes SET state = 'dead', left_at = now() WHERE id = $1", first
            )

        await until(lambda: app.node_id != first)
        await until(lambda: _status(app, "/readyz", 200))

    assert len(states) == 1
    assert "declared dead" in states[0]


async def test_a_paused_shard_fails_with_its_reason_and_is_well_after_the_cure(
    database_url: str,
) -> None:
    app = poisoned_app(database_url, on_error=sl.ErrorPolicy(apply="pause"), **ALONE)
    async with app:
        await app.start()
        await app.append("s-1", Step(1, poison=True))

        found = await until(lambda: _check(app, "shards", "fail"))

        assert "steps:v1:all" in found.reason
        assert "cannot digest 1" in found.reason
        assert (await ask(app, "/healthz")).status == 503
        assert (await statuses(app))[:2] == (200, 200)  # neither a restart nor a rollout is told


def _check(app: App, name: str, outcome: str) -> Any:
    found = app.health()[name]
    return found if found.outcome == outcome else None


async def test_dead_letters_are_a_warning_that_names_the_projection(database_url: str) -> None:
    async with poisoned_app(database_url, **ALONE, survey_interval=0.1) as app:
        await app.start()
        await app.append("s-1", Step(1, poison=True))

        found = await until(lambda: _check(app, "letters", "warn"))

        assert "steps:v1: 1" in found.reason
        assert found.cure == "strandline letters groups"


async def test_a_mark_that_waits_names_its_holder_and_how_to_end_it(database_url: str) -> None:
    app = tally_app(database_url, **ALONE, stale_after=0.2)
    async with app, connected(database_url) as operator:
        await app.start()
        transaction = operator.transaction()
        await transaction.start()
        pid = await operator.fetchval("SELECT pg_backend_pid()")
        await operator.fetchval(
            'SELECT position FROM strandline.append(\'held\', \'[{"type": "t", "data": {}}]\')'
        )
        await fill(app, 3)

        await until(lambda: f"pid {pid}" in app.health()["high_water"].reason)
        found = app.health()["high_water"]
        assert found.outcome == "fail"
        assert found.cure.startswith(f"strandline gaps cancel {pid}")

        await transaction.rollback()
        await until(lambda: _check(app, "high_water", "ok"))


async def test_a_pool_that_ran_out_fails_and_is_well_again_later(database_url: str) -> None:
    app = tally_app(database_url, **ALONE, work_connections=2, acquire_timeout=0.2)
    async with app:
        assert app.health()["pools"].outcome == "ok"
        async with app.pools.work.transaction(), app.pools.work.transaction():
            with pytest.raises(PoolExhausted):
                await fill(app, 1)
            found = app.health()["pools"]
        app.ops.growth._lately = 0.0

        assert found.outcome == "fail"
        assert "work: 2 of 2 in use" in found.reason
        assert app.health()["pools"].outcome == "ok"


async def test_a_transaction_that_nobody_ends_is_a_warning(database_url: str) -> None:
    app = tally_app(database_url, **ALONE, leak_after=0.1)
    async with app:
        async with app.pools.work.transaction():
            found = await until(lambda: _check(app, "transactions", "warn"))
        app.ops.growth._lately = 0.0

        assert "one has been open for" in found.reason
        assert app.health()["transactions"].outcome == "ok"


async def test_a_lost_listener_is_a_warning_until_it_is_back(database_url: str) -> None:
    async with Proxy(database_url) as proxy:
        app = tally_app(proxy.url, **ALONE, connect_timeout=1.0)
        async with app:
            await until(lambda: _check(app, "listener", "ok"))
            proxy.refuse()
            proxy.cut()

            await until(lambda: _check(app, "listener", "warn"))
            assert app.health().live

            proxy.forward()
            await until(lambda: _check(app, "listener", "ok"))


async def test_a_background_loop_that_has_died_fails(database_url: str) -> None:
    async with tally_app(database_url, **ALONE) as app:
        await app.start()
        (task,) = [one for one in asyncio.all_tasks() if one.get_name() == "strandline:cuts"]
        task.cancel()

        found = await until(lambda: _check(app, "background_loops", "fail"))

        assert "cuts has ended" in found.reason


async def test_a_taken_port_keeps_no_node_from_working(database_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        app = tally_app(database_url, **{**ALONE, "ops_port": other.getsockname()[1]})
        async with app:
            await app.start()
            last = await fill(app, 5)
            await app.wait_for(last, timeout=30.0)

            found = app.health()
            assert found["ops_port"].outcome == "warn"
            assert found.ready


async def test_two_apps_of_one_process_answer_for_themselves(database_url: str) -> None:
    one = tally_app(database_url, **FAST, node_name="one")
    two = App("two", database_url, ops_port=0, node_name="two")
    async with one, two:
        await one.start()
        await one.stop()

        assert (await ask(one, "/readyz")).status == 503
        assert (await ask(two, "/readyz")).status == 200
        assert (await ask(two, "/readyz")).text.startswith("two: ready")


async def test_probes_take_no_connection_of_the_pools(database_url: str) -> None:
    app = tally_app(database_url, **ALONE, control_connections=2, work_connections=2)
    async with app:
        await app.start()
        before = [one.taken for one in _pools(app)]
        begun = time.monotonic()
        for _ in range(20):
            assert await statuses(app) == (200, 200, 200)
        seconds = time.monotonic() - begun
        own = [one.taken for one in _pools(app)]

    # What is taken is the node's own, which looks again and again; 60 questions would be 60 more
    assert sum(own) - sum(before) < 20 + 40 * seconds


def _pools(app: App) -> list[Any]:
    return [app.pools.work.statistics(), app.pools.control.statistics()]
