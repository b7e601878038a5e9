"""What a review tried on health and metrics of real nodes; most of it went wrong then."""

from __future__ import annotations

import asyncio
import itertools
import logging
import sys
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
from probing import Answered, probed, probed_until
from tally import connected, fill, holds, tally_app

from strandline.app import App, part_checks
from strandline.jobs import maintenance
from strandline.telemetry import metrics
from strandline.telemetry.journal import current_node
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
    "survey_interval": 0.2,
}
ALONE: dict[str, Any] = {
    "ops_port": 0,
    "mode": "solo",
    "poll_interval": 0.1,
    "survey_interval": 0.2,
}


async def ask(app: App, path: str) -> Answered:
    return await asyncio.to_thread(probed, app.ops.url, path)


async def until(what: Callable[[], Any]) -> Any:
    return await holds(what, timeout=30.0)


async def test_a_leader_that_may_have_lost_the_lease_shows_the_cluster_no_more(
    database_url: str,
) -> None:
    pytest.importorskip("prometheus_client")
    app = tally_app(database_url, **FAST)

    @app.job()
    def nothing() -> None: ...

    async with app:
        await app.start()
        await fill(app, 10)
        await until(lambda: app._readings().get("survey") and app._readings().get("job_watch"))
        await until(lambda: "strandline_cluster_nodes{" in app.metrics_page()[0].decode())
        seen: list[Answered] = []
        arguments = (app.ops.url, "/metrics", _leads_no_more, seen)
        probe = threading.Thread(target=probed_until, args=arguments)
        probe.start()
        probe.join(30.0)  # nothing beats and nobody hears any news: this is the event loop

        assert _leads_no_more(seen[-1])
        for told in ("strandline_cluster_nodes{", "strandline_jobs_dead_tuples{"):
            assert told not in seen[-1].text


def _leads_no_more(answer: Answered) -> bool:
    leads = [line for line in answer.text.splitlines() if line.startswith("strandline_leader{")]
    return bool(leads) and leads[0].endswith(" 0.0")


async def test_what_was_seen_of_jobs_is_not_shown_for_ever(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = App("shop", database_url, **ALONE)

    @app.job()
    def nothing() -> None: ...

    async with app:
        await app.start()
        await until(lambda: app._readings().get("job_watch"))
        monkeypatch.setattr(maintenance, "SHOWN", 0.0)

        assert app._readings()["job_watch"] is None


async def test_what_an_app_tells_has_its_own_node_though_another_was_opened_later(
    database_url: str,
) -> None:
    one = tally_app(database_url, **ALONE, node_name="one")
    two = App("two", database_url, node_name="two")
    nodes: set[str] = set()

    def hear(notice: Notice) -> None:
        if notice.name in ("shard_claimed", "batch_committed"):
            nodes.add(current_node.get())

    one.signals.listen(hear)
    async with one, two:
        await one.start()
        await fill(one, 10)
        await until(lambda: nodes)
        await one.stop()

    assert nodes == {"one"}


async def test_a_stop_in_the_middle_of_a_start_shows_as_a_stop(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = tally_app(database_url, **ALONE)
    seen: list[Any] = []
    close = app._close_rest

    async def closing() -> None:
        seen.append(app.health())
        await close()

    monkeypatch.setattr(app, "_close_rest", closing)
    async with app:  # so that there are tables
        pass
    seen.clear()
    starts = asyncio.Event()
    monkeypatch.setattr("strandline.app.node.Node.start", _never(starts))
    running = asyncio.create_task(app.run())
    await asyncio.wait_for(starts.wait(), 30.0)
    running.cancel()
    await asyncio.wait({running}, timeout=30.0)

    assert running.done()
    assert "stopping" in seen[-1]["stop"].reason
    assert not seen[-1].ready
    assert seen[-1].live
    assert not app.is_running


def _never(begun: asyncio.Event) -> Any:
    async def start(_: Any, __: Any) -> None:
        begun.set()
        await asyncio.Event().wait()

    return start


async def test_an_app_that_is_opened_again_is_seen_anew(database_url: str) -> None:
    app = tally_app(database_url, **FAST)
    ports = []
    for events in (10, 20):
        async with app:
            await app.start()
            await fill(app, events)
            await until(lambda: app.health().status == "ok")
            ports.append(app.ops.address)
            assert (await ask(app, "/readyz")).status == 200
        assert app.ops.address is None
        assert app.loops.statistics() == ()

    assert None not in ports


async def test_a_detector_that_hangs_in_a_look_is_not_said_to_be_well(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_checks, "QUIET", 1.0)
    async with Proxy(database_url) as proxy:
        app = tally_app(proxy.url, **ALONE, connect_timeout=1.0, acquire_timeout=1.0)
        async with app:
            await app.start()
            await fill(app, 10)
            await until(lambda: app.health().status == "ok")
            proxy.black_hole()

            await until(lambda: app.health()["high_water"].outcome != "ok")
            assert app.health()["high_water"].runbook == "high-water-stalled"
            assert (await ask(app, "/livez")).status == 200

            proxy.forward()
            await until(lambda: app.health()["high_water"].outcome == "ok")


async def test_it_can_be_looked_at_at_every_moment_of_its_life(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("prometheus_client")
    app = tally_app(database_url, **FAST)
    ends, failures, looks = threading.Event(), list[BaseException](), itertools.count()

    def look() -> None:
        while not ends.is_set():
            try:
                app.health()
                app._now("ready")
                app._readings()
                app.metrics_page()
                next(looks)
            except BaseException as error:
                failures.append(error)
                return

    monkeypatch.setattr(metrics, "log", Failing(failures))
    watchers = [threading.Thread(target=look) for _ in range(2)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    for one in watchers:
        one.start()
    try:
        for _ in range(2):
            async with app:
                await app.start()
                await fill(app, 30)
                await until(lambda: app.is_running and app.health().ready)
                await _evicted(app)
                await until(lambda: app.is_running and app.health().ready)
    finally:
        ends.set()
        sys.setswitchinterval(before)
        await asyncio.to_thread(lambda: [one.join(30.0) for one in watchers])

    assert not failures
    assert next(looks) > 10


class Failing:
    """A log to which nothing may be told."""

    def __init__(self, failures: list[BaseException]) -> None:
        self._failures = failures

    def tell(self, event: str, **fields: Any) -> None:
        self._failures.append(AssertionError(f"{event}: {fields}"))


async def _evicted(app: App) -> None:
    first = app.node_id
    async with connected(app.url) as other:
        await other.execute("UPDATE strandline.nodes SET state = 'dead' WHERE id = $1", first)
    await until(lambda: app.node_id != first)


async def test_no_password_is_told_to_anybody(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("prometheus_client")
    caplog.set_level(logging.DEBUG)
    async with Proxy(database_url) as proxy:
        parts = urlsplit(proxy.url)
        secret = parts.password or "hunter2-is-secret"  # a server that trusts everybody takes any
        place = f"{parts.username}:{secret}@{parts.netloc.rpartition('@')[2]}"
        url = parts._replace(netloc=place).geturl()
        app = tally_app(url, **{**FAST, "pulse": "process"}, connect_timeout=1.0)
        told: list[str] = []
        async with app:
            await app.start()
            await until(lambda: app.health().ready)
            proxy.black_hole()
            await until(lambda: not app.health().ready)
            for path in ("/livez", "/readyz", "/healthz", "/healthz?format=json", "/metrics"):
                told.append((await ask(app, path)).text)
            proxy.forward()
            await until(lambda: app.health().ready)
    told += [f"{one.getMessage()} {vars(one)}" for one in caplog.records]

    assert all(told)
    assert not any(secret in one for one in told)
