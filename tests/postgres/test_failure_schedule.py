"""Tries, pauses that grow, and the way back: on a clock that moves when told (jitter off)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tally import fill, holds, tally_app
from ward import SCHEDULE, Ward, handled, scripted, ward

from strandline.backoff import Backoff
from strandline.errors import AnswerTimedOut, ApplyFailed, DatabaseUnavailable, DiskFull
from strandline.projections.failure_policy import ErrorPolicy

PAUSE = ErrorPolicy(apply="pause")
POISON = ValueError("cannot digest this")


async def ill(app: Any, *, most: int = 10) -> tuple[Any, list[int]]:
    """A processor that fails at the thirteenth of thirty events; positions."""
    last = await fill(app, 30)
    processor = await scripted(app, most=most)
    positions = [event.position async for event in app.read_all(settled=False)]
    processor.poison[positions[12]] = POISON
    assert positions[-1] == last
    return processor, positions


async def test_a_batch_is_tried_again_after_250_ms_500_ms_and_1_s_and_then_the_shard_pauses_30_s(
    database_url: str,
) -> None:
    async with tally_app(database_url) as app:
        processor, positions = await ill(app)
        async with ward(app, processor, policy=PAUSE) as patient:
            await patient.tries(0.25, 0.5, 1.0)
            await patient.asleep(30.0)

            assert patient.clock.monotonic() == 1.75
            assert [one["error"].position for one in patient.told("batch_failed")] == [
                positions[12]
            ] * 4
            (told,) = patient.told("shard_paused")
            assert (told["seconds"], told["pauses"]) == (30.0, 1)
            assert (told["phase"], told["category"]) == ("apply", "apply")
            assert patient.agent.state == "paused"
            assert patient.agent.position == positions[9], "what is before its page is processed"
            assert await handled(app) == [(one, "handled") for one in positions[:10]]


async def test_pauses_grow_to_their_cap_while_nothing_succeeds_and_start_over_after_a_batch(
    database_url: str,
) -> None:
    async with tally_app(database_url) as app:
        processor, positions = await ill(app)
        async with ward(app, processor, policy=PAUSE) as patient:
            for seconds in (30.0, 60.0, 120.0, 240.0, 300.0, 300.0):
                await patient.tries(0.25, 0.5, 1.0, seconds)
            assert [one["pauses"] for one in patient.told("shard_paused")] == [1, 2, 3, 4, 5, 6]

            processor.poison = {positions[22]: POISON}
            await patient.tries(0.25, 0.5, 1.0)
            await patient.asleep(30.0)

            assert len(patient.told("shard_recovered")) == 1
            assert patient.told("shard_paused")[-1]["pauses"] == 1
            assert patient.agent.position == positions[19]


async def test_a_shard_goes_on_by_itself_after_its_pause_and_nothing_is_left_of_the_failure(
    database_url: str,
) -> None:
    async with tally_app(database_url) as app:
        processor, positions = await ill(app)
        async with ward(app, processor, policy=PAUSE) as patient:
            await patient.tries(0.25, 0.5, 1.0)
            await patient.asleep(30.0)
            await holds(lambda: is_told(patient, "paused"))
            processor.poison.clear()
            patient.clock.advance(29.0)
            await patient.asleep(1.0)
            assert patient.agent.state == "paused"

            patient.clock.advance(1.0)
            await patient.reaches(positions[-1])

            assert await handled(app) == [(one, "handled") for one in positions], "once, in order"
            assert len(patient.told("shard_recovered")) == 1
            row = await holds(lambda: is_told(patient, "running"))
            assert (row["reason"], row["failure"], row["category"], row["phase"]) == (
                *("", None, None, None),
            )
            assert (row["attempts"], row["pauses"], row["next_at"]) == (0, 0, None)
            now = patient.agent.statistics()
            assert (now.state, now.reason, now.failure, now.next_at) == ("running", "", None, None)
            assert (now.attempts, now.pauses, now.category, now.phase) == (0, 0, "", "")


async def test_a_paused_shard_says_what_failed_where_and_when_it_tries_again(
    database_url: str,
) -> None:
    async with tally_app(database_url) as app:
        processor, positions = await ill(app)
        async with ward(app, processor, policy=PAUSE) as patient:
            await patient.tries(0.25, 0.5, 1.0)
            row = await holds(lambda: is_told(patient, "paused"))

            facts = json.loads(row["facts"])
            assert facts["position"] == positions[12]
            assert (facts["stream"], facts["type"]) == ("s1", "ticked")
            assert facts["version"] == 3
            assert (facts["class"], facts["cause"]) == ("ApplyFailed", repr(POISON))
            assert row["reason"].startswith("ApplyFailed: scripted at position")
            assert (row["category"], row["phase"]) == ("apply", "apply")
            assert (row["attempts"], row["pauses"]) == (4, 1)
            assert 25 < row["left"] <= 30
            now = patient.agent.statistics()
            assert (now.state, now.attempts, now.pauses) == ("paused", 4, 1)
            assert now.next_at is not None
            assert (now.next_at - patient.clock.now()).total_seconds() == 30
            assert json.loads(now.failure or "") == facts


async def test_tries_that_get_somewhere_are_no_tries_of_the_same_batch(database_url: str) -> None:
    async with tally_app(database_url) as app:
        processor, positions = await ill(app, most=5)
        async with ward(app, processor, policy=PAUSE) as patient:
            for at in (12, 17, 22, 27):  # each cure lets one page through
                processor.poison = {positions[at]: POISON}
                await patient.tries(0.25)
            await patient.asleep(0.5)

            assert patient.told("shard_paused") == []


async def test_a_shard_that_is_told_to_stop_neither_waits_nor_tries_again(
    database_url: str,
) -> None:
    async with tally_app(database_url) as app:
        processor, _ = await ill(app)
        async with ward(app, processor, policy=PAUSE) as patient:
            await patient.asleep(0.25)
            tries = processor.tries
            assert await patient.agent.stop(timeout=5.0)

            assert processor.tries == tries
            row = await holds(lambda: is_told(patient, "stopped"))
            assert json.loads(row["facts"])["class"] == "ApplyFailed", "why it stands where it is"
            assert row["next_at"] is None


async def test_a_pause_ends_at_once_when_the_shard_is_told_to_stop(database_url: str) -> None:
    async with tally_app(database_url) as app:
        processor, _ = await ill(app)
        async with ward(app, processor, policy=PAUSE) as patient:
            await patient.tries(0.25, 0.5, 1.0)
            await patient.asleep(30.0)

            assert await patient.agent.stop(timeout=5.0)
            assert patient.agent.state == "stopped"


async def test_an_outage_ends_its_pause_as_soon_as_the_database_takes_writes(
    database_url: str,
) -> None:
    async with tally_app(database_url) as app:
        processor, positions = await ill(app)
        processor.poison.clear()
        processor.script["commit"] = [DatabaseUnavailable("the server is away")] * 4
        async with ward(app, processor) as patient:
            await patient.tries(0.25, 0.5, 1.0)
            await patient.asleep(1.0)  # between looks
            (told,) = patient.told("shard_paused")
            assert (told["seconds"], told["category"], told["phase"]) == (30, "database", "commit")

            patient.clock.advance(1.0)
            await patient.reaches(positions[-1])
            assert await handled(app) == [(one, "handled") for one in positions]


async def test_a_full_disk_is_tried_again_at_the_schedule(database_url: str) -> None:
    """Nothing but a write that needs room can tell whether there is some."""
    async with tally_app(database_url) as app:
        processor, positions = await ill(app)
        processor.poison.clear()
        processor.script["commit"] = [DiskFull("no room")] * 4
        async with ward(app, processor) as patient:
            await patient.tries(0.25, 0.5, 1.0)
            await patient.asleep(30.0)
            patient.clock.advance(30.0)
            await patient.reaches(positions[-1])
            assert await handled(app) == [(one, "handled") for one in positions]


def test_pauses_double_up_to_the_cap_and_never_fall_below_the_first() -> None:
    assert [SCHEDULE.pause_after(n) for n in range(6)] == [30, 60, 120, 240, 300, 300]
    assert SCHEDULE.pause_after(100_000) == 300
    assert Backoff(pause=600.0).pause_after(3) == 600
    assert Backoff(pause=0.0).pause_after(9) == 0


@pytest.mark.parametrize(
    "error", [AnswerTimedOut("late"), ApplyFailed("x", "y"), RuntimeError("?")]
)
async def test_whatever_fails_is_waited_for_in_the_same_way(
    database_url: str, error: Exception
) -> None:
    async with tally_app(database_url) as app:
        processor, positions = await ill(app)
        processor.poison.clear()
        processor.script["prepare"] = [error] * 3
        async with ward(app, processor, policy=PAUSE) as patient:
            await patient.tries(0.25, 0.5, 1.0)
            await patient.reaches(positions[-1])

            assert patient.told("shard_paused") == []
            assert patient.told("shard_recovered") == [], "it has not rested"
            assert await handled(app) == [(one, "handled") for one in positions]


async def is_told(patient: Ward, state: str) -> dict[str, Any] | None:
    row = await patient.status()
    return row if row and row["state"] == state else None
