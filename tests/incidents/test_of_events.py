"""Incidents of the log and of read models: each alert fires when it really happens, and clears."""

from __future__ import annotations

from functools import partial
from typing import Any
from uuid import uuid4

from tally import Ticked, connected, fill

from incidents.faults import opened
from incidents.fragile import Mood, fragile_app
from incidents.nodes import SHARDS
from incidents.scrape import is_level, runs
from strandline.daemon import slicing
from strandline.daemon.checkpoint import claim

REFUSED = """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'a trigger of somebody'; END $$;
CREATE TRIGGER refused BEFORE UPDATE OF target ON strandline.assignments
    FOR EACH ROW EXECUTE FUNCTION refuse()"""
AGES = (
    "strandline_high_water_age_seconds",
    "strandline_shard_lag_seconds",
)


async def test_a_transaction_that_stays_open_holds_up_the_mark(play: Any) -> None:
    async with play("a held mark") as stage:
        app = await stage.node(stale_after=0.3)
        await fill(app, 20)
        await stage.before(is_level)

        report = await opened(stage.url, "held")
        await fill(app, 5)
        await stage.during(lambda now: now.has("strandline_high_water_stale"), grows=AGES)

        await report.execute("ROLLBACK")
        await report.close()
        await stage.after(is_level)
        await stage.judge("HighWaterStale", "HighWaterStalled", "LagRising", "LagHigh")


async def test_a_gap_that_is_skipped_by_force_and_filled_later(play: Any) -> None:
    async with play("a skipped gap") as stage:
        app = await stage.node(stale_after=0.2, force_after=0.4)
        await fill(app, 20)
        await stage.before(is_level)

        report = await opened(stage.url, "skipped")
        await fill(app, 5)
        await stage.during(lambda now: now.has("strandline_skipped_events_total") and is_level(now))
        await report.execute("COMMIT")
        await stage.during(lambda now: now.has("strandline_late_events_total"))
        await report.close()
        await stage.after(is_level)
        await stage.judge("EventsSkipped", "LateEvents")


async def test_a_handler_that_fails_pauses_its_shard(play: Any) -> None:
    mood = Mood()
    async with play("a paused shard") as stage:
        app = await stage.node(make=partial(fragile_app, mood=mood), on_apply_failed="pause")
        await fill(app, 10)
        await stage.before(is_level)

        mood.fails = True
        await fill(app, 5)
        await stage.during(
            lambda now: now.has("strandline_shard_state", state="paused"),
            grows=("strandline_shard_lag_seconds",),
        )

        mood.fails = False
        await stage.after(is_level)
        await stage.judge("ShardPaused", "LagRising", "LagHigh", may=("BatchesFailing",))


async def test_events_that_fail_become_dead_letters(play: Any) -> None:
    mood = Mood()
    async with play("dead letters") as stage:
        app = await stage.node(make=partial(fragile_app, mood=mood), on_apply_failed="park")
        await fill(app, 10)
        await stage.before(is_level)

        mood.fails = True
        for number in range(12):
            await app.append(f"bad {number}", Ticked(number))
        await stage.during(
            lambda now: (
                now.value("strandline_open_letters", status="parked") == 12 and is_level(now)
            )
        )

        mood.fails = False
        await app.letters.retry(all=True)
        await stage.after(lambda now: not now.has("strandline_open_letters") and is_level(now))
        await stage.judge("DeadLetters", "DeadLettersGrowing", may=("BatchesFailing",))


async def test_events_that_fail_are_skipped(play: Any) -> None:
    mood = Mood()
    async with play("skipped events") as stage:
        app = await stage.node(make=partial(fragile_app, mood=mood), on_apply_failed="skip")
        await fill(app, 10)
        await stage.before(is_level)

        mood.fails = True
        await app.append("bad", Ticked(1))
        await stage.during(
            lambda now: (
                now.has("strandline_skipped_events_total", **{"class": "apply"}) and is_level(now)
            )
        )

        mood.fails = False
        await stage.after(is_level)
        await stage.judge("EventsSkipped", may=("BatchesFailing",))


async def test_a_subscription_that_hangs_falls_behind(play: Any) -> None:
    mood = Mood()
    async with play("a shard that falls behind") as stage:
        app = await stage.node(make=partial(fragile_app, mood=mood))
        await fill(app, 10)
        await stage.before(is_level)

        mood.goes_on.clear()
        await fill(app, 5)
        await stage.during(
            lambda now: (now.value("strandline_shard_lag_events", shard="told:all") or 0) > 0,
            grows=("strandline_shard_lag_seconds",),
        )

        mood.goes_on.set()
        await stage.after(is_level)
        await stage.judge("LagRising", "LagHigh")


async def test_a_detector_that_does_not_move_the_mark_is_no_lag_of_0(play: Any) -> None:
    async with play("a silent detector") as stage:
        app = await stage.node(stale_after=0.3)
        await fill(app, 20)
        await stage.before(is_level)

        async with connected(stage.url) as somebody:
            await somebody.execute("BEGIN; SELECT FROM strandline.high_water FOR UPDATE")
            await fill(app, 5)
            await stage.during(
                lambda now: now.value("strandline_high_water_detectors") == 0, grows=AGES
            )
            await somebody.execute("ROLLBACK")
        await stage.after(is_level)
        await stage.judge(
            "DetectorMissing", "HighWaterStale", "HighWaterStalled", "LagRising", "LagHigh"
        )


async def test_a_shard_that_cannot_begin(play: Any) -> None:
    async with play("a shard that cannot begin") as stage:
        app = await stage.node("a", "versions")
        await fill(app, 20)
        await stage.before(partial(runs, shards=1))

        await app.pools.control.run(slicing.declare("positions:v1", 1))
        async with connected(stage.url) as somebody:
            await somebody.execute("BEGIN")
            await somebody.execute(
                "SELECT FROM strandline.shards WHERE name = 'positions:v1:all' FOR UPDATE"
            )
            await stage.node("b")
            await stage.during(
                lambda now: now.has("strandline_shard_state", state="claiming"),
                grows=("strandline_shard_lag_seconds",),
            )
            await somebody.execute("ROLLBACK")
        await stage.after(is_level)
        await stage.judge("ShardDown", "LagRising", "LagHigh")


async def test_a_leader_that_cannot_write_its_plan(play: Any) -> None:
    async with play("a plan that is refused") as stage:
        app = await stage.node("a", "versions")
        await fill(app, 20)
        await stage.before(partial(runs, shards=1))

        async with connected(stage.url) as somebody:
            await somebody.execute(REFUSED)
            await stage.node("b")
            # What the leader may have said while b was joining: that nobody can run its shard.
            await somebody.execute("DELETE FROM strandline.node_log WHERE kind = 'plan'")
            await stage.during(
                lambda now: (
                    now.has("strandline_shard_state", state="never_started")
                    and now.has("strandline_loop_failures_total", loop="balancing")
                ),
                grows=("strandline_shard_lag_seconds", "strandline_loop_failures_total"),
            )
            await somebody.execute("DROP TRIGGER refused ON strandline.assignments")
        await stage.after(is_level)
        await stage.judge("ShardDown", "BackgroundLoopFailing", "LagRising", "LagHigh")


async def test_a_shard_whose_code_was_left_out_of_a_deploy(play: Any) -> None:
    async with play("a shard without code") as stage:
        app = await stage.node("a", "versions")
        other = await stage.node("b", "positions")
        await fill(app, 20)
        await stage.before(is_level)

        await other.close()
        stage.forget("b")
        await fill(app, 5)
        await stage.during(
            lambda now: now.has("strandline_shard_state", state="orphaned"),
            grows=("strandline_shard_lag_seconds",),
        )

        await stage.node("c", "positions")
        await stage.after(is_level)
        await stage.judge("ShardOrphaned", "UnplacedWork", "LagRising", "LagHigh")


async def test_a_shard_that_is_taken_from_its_owner(play: Any) -> None:
    async with play("a lost lock") as stage:
        app = await stage.node()
        await fill(app, 20)
        await stage.before(is_level)

        await app.pools.control.run(claim(SHARDS[0], uuid4()))  # as another node would
        await fill(app, 10)
        await stage.during(lambda now: now.has("strandline_ownership_lost_total", shard=SHARDS[0]))

        await stage.after(is_level)
        await stage.judge("OwnershipLost")
