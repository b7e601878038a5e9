"""Incidents of nodes and of their leadership: each alert fires when it really happens, and clears."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path
from typing import Any

from tally import connected, fill, tally_app

from incidents.faults import hours_go_by, never, process
from incidents.nodes import Aside, calm_app, free_port
from incidents.scrape import is_led

HELD = "BEGIN; SELECT FROM strandline.cluster FOR UPDATE"  # who wins the lease writes to it too
LOCKED = "BEGIN; SELECT FROM strandline.leases WHERE name = 'leader' FOR UPDATE"
LATE = "UPDATE strandline.leases SET expires_at = '-infinity' WHERE name = 'leader'"
STRETCHED = """UPDATE strandline.nodes
    SET report = jsonb_set(report, '{seconds}', to_jsonb(150 * (report->>'seconds')::float8))
  WHERE report IS NOT NULL"""
SOON_OVER = {
    "pulse_deadline": 0.3,
    "node_ttl": 20.0,
    "leader_ttl": 1.5,
    "leader_margin": 0.3,
}


async def test_the_leader_leaves_and_nobody_else_may_lead(play: Any) -> None:
    async with play("no leader") as stage:
        leader = await stage.node("leader")
        await stage.node("follower", mode="follower")
        await fill(leader, 10)
        await stage.before(is_led)

        await leader.close()
        stage.forget("leader")
        await stage.during(
            lambda now: (
                now.value("strandline_leader") == 0
                and (now.value("strandline_leader_unseen_seconds") or 0) > 0.2
            ),
            grows=("strandline_leader_unseen_seconds",),
        )

        await stage.node("successor")
        await stage.after(is_led)
        await stage.judge("NoLeader")


async def test_a_transaction_that_nobody_ends_lets_elections_time_out(play: Any) -> None:
    async with play("elections that time out") as stage:
        app = await stage.node(**SOON_OVER)
        await fill(app, 10)
        await stage.before(is_led)

        async with connected(stage.url) as somebody, connected(stage.url) as operator:
            await somebody.execute(HELD)
            await operator.execute(LATE)
            await stage.during(
                lambda now: (
                    (now.value("strandline_elections_total", outcome="timed_out") or 0) > 1
                    and now.value("strandline_leader") == 0
                ),
                grows=("strandline_leader_unseen_seconds", "strandline_elections_total"),
            )
            await somebody.execute("ROLLBACK")
        await stage.after(is_led)
        await stage.judge("ElectionTimeouts", "LeaseLost", "NoLeader")


async def test_a_lease_that_somebody_has_locked_is_lost_to_nobody(play: Any) -> None:
    async with play("a locked lease") as stage:
        app = await stage.node(**SOON_OVER)
        await fill(app, 10)
        await stage.before(is_led)

        async with connected(stage.url) as somebody, connected(stage.url) as operator:
            await operator.execute(LATE)
            await somebody.execute(LOCKED)
            await stage.during(
                lambda now: (
                    (now.value("strandline_elections_total", outcome="lost") or 0) > 1
                    and now.value("strandline_leader") == 0
                ),
                grows=("strandline_leader_unseen_seconds", "strandline_elections_total"),
            )
            await somebody.execute("ROLLBACK")
        await stage.after(is_led)
        await stage.judge("LeaseLost", "NoLeader")


async def test_a_node_that_is_killed(play: Any, tmp_path: Path) -> None:
    async with play("a killed node") as stage:
        leader = await stage.node("leader", pulse="process")
        await fill(leader, 10)
        port = free_port()
        other = await stage.enter(process(stage.url, tmp_path, "other", port))
        await other.until("active", timeout=30)
        stage.watch("other", f"http://127.0.0.1:{port}")
        await stage.before(lambda now: is_led(now) and now.value("up") == 2)

        other.kill()
        await stage.during(
            lambda now: (
                now.value("up") == 1 and now.has("strandline_recent_shutdowns", result="dead")
            )
        )
        stage.forget("other")
        await hours_go_by(stage.url)
        await stage.after(
            lambda now: is_led(now) and not now.has("strandline_recent_shutdowns", result="dead")
        )
        await stage.judge("NodeDown", "NodeDied")


async def test_code_that_blocks_the_event_loop(play: Any) -> None:
    async with play("a blocked event loop") as stage:
        app = calm_app(stage.url, "a", make=tally_app, live_loop_lag=0.5)
        aside = await stage.enter(Aside(app))
        stage.watch("a", app.ops.url)
        await stage.before(is_led)

        over = asyncio.Event()
        loop = asyncio.get_running_loop()

        def block() -> None:
            while not over.is_set():
                time.sleep(0.02)

        aside.call(block)
        try:
            await stage.during(
                lambda now: (now.value("strandline_loop_lag_seconds") or 0) > 1,
                grows=("strandline_loop_lag_seconds",),
            )
        finally:
            loop.call_soon(over.set)
            await asyncio.sleep(0)
        await stage.after(
            lambda now: is_led(now) and (now.value("strandline_loop_lag_seconds") or 0) < 0.5
        )
        await stage.judge("EventLoopBlocked")


async def test_a_rolling_restart_disturbs_nobody(play: Any) -> None:
    async with play("a rolling restart") as stage:
        first = await stage.node("a", rebalance_after=0.2)
        await stage.node("b", rebalance_after=0.2)
        await fill(first, 10)
        await stage.before(lambda now: is_led(now) and now.has("strandline_rebalances_total"))

        await first.close()
        stage.forget("a")
        last = await stage.node("a", rebalance_after=0.2)
        await fill(last, 10)
        await stage.during(is_led)
        await stage.after(is_led)
        await stage.judge()


async def test_a_stop_that_hangs_is_told_by_the_leader(play: Any) -> None:
    async with play("a forced shutdown") as stage:
        leader = await stage.node("leader")
        other = await stage.node("other", on_stop=never, stop_timeout=1.0, stop_reserve=0.5)
        await fill(leader, 10)
        await stage.before(is_led)

        report = await other.stop()
        assert report is not None and report.result == "forced"
        await stage.during(lambda now: now.has("strandline_recent_shutdowns", result="forced"))

        stage.forget("other")
        await hours_go_by(stage.url)
        await stage.after(
            lambda now: is_led(now) and not now.has("strandline_recent_shutdowns", result="forced")
        )
        await stage.judge("ShutdownForced")


async def test_a_stop_that_takes_long_is_told_by_the_leader(play: Any) -> None:
    """The stop takes a tenth of a second; its report is stretched to half a minute."""
    async with play("a slow shutdown") as stage:
        leader = await stage.node("leader")
        other = await stage.node("other", on_stop=partial(asyncio.sleep, 0.2))
        await fill(leader, 10)
        await stage.before(is_led)

        await other.stop()
        async with connected(stage.url) as somebody:
            await somebody.execute(STRETCHED)
        await stage.during(lambda now: (now.value("strandline_recent_shutdown_seconds") or 0) > 20)

        stage.forget("other")
        await hours_go_by(stage.url)
        await stage.after(
            lambda now: is_led(now) and not now.has("strandline_recent_shutdown_seconds")
        )
        await stage.judge("ShutdownSlow")
