"""What fails where: every category in every phase is told, written down and handled."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from tally import fill, holds, tally_app
from ward import handled, scripted, ward

from strandline.daemon import claiming
from strandline.errors import (
    ApplyFailed,
    CheckpointMoved,
    DatabaseReadOnly,
    InvalidEvent,
    PoolExhausted,
    UndecodableEvent,
    UnknownEventType,
    WrongVersion,
)
from strandline.projections.failure_policy import ErrorPolicy

PAUSE = ErrorPolicy(apply="pause", undecodable="pause", unknown_type="pause")

FAILURES = {
    "apply": ApplyFailed("scripted", "it raised"),
    "undecodable": UndecodableEvent("ticked", "no number"),
    "unknown_type": UnknownEventType("tocked"),
    "database": PoolExhausted("no connection"),
    "other": RuntimeError("a defect"),
}


def fail_in(phase: str, patient: Any, processor: Any, errors: list[Any], patch: Any) -> None:
    """Let the next calls of *phase* raise *errors*, one each."""
    if phase in ("apply", "commit"):
        processor.script["prepare" if phase == "apply" else "commit"] = errors
        return
    home, name = (
        (claiming.Claiming, "checkpoint") if phase == "start" else (type(patient.feed), "page")
    )
    real = getattr(home, name)

    async def failing(*arguments: Any) -> Any:
        if errors:
            raise errors.pop(0)
        return await real(*arguments)

    patch.setattr(home, name, failing)


@pytest.mark.parametrize("category", sorted(FAILURES))
@pytest.mark.parametrize("phase", ["start", "fetch", "apply", "commit"])
async def test_a_failure_is_tried_again_and_told_by_phase_and_category(
    database_url: str, monkeypatch: pytest.MonkeyPatch, phase: str, category: str
) -> None:
    async with tally_app(database_url) as app:
        last = await fill(app, 20)
        processor = await scripted(app)
        async with ward(app, processor, policy=PAUSE, start=False) as patient:
            fail_in(phase, patient, processor, [FAILURES[category]] * 5, monkeypatch)
            patient.agent.start()
            await patient.tries(0.25, 0.5, 1.0)
            row = await holds(lambda: paused(patient))

            assert (row["phase"], row["category"]) == (phase, category)
            assert row["reason"].startswith(type(FAILURES[category]).__name__)
            for name in ("batch_failed", "shard_paused"):
                told = patient.told(name)[-1]
                assert (told["phase"], told["category"]) == (phase, category)
                assert told["error"] is FAILURES[category]
            now = patient.agent.statistics()
            assert (now.phase, now.category, now.attempts) == (phase, category, 4)

            await patient.tries(1.0 if category == "database" else 30.0, 0.25)  # the fifth
            await patient.reaches(last)
            assert [how for _, how in await handled(app)] == ["handled"] * 20


@pytest.mark.parametrize("phase", ["start", "apply", "commit"])
async def test_lost_ownership_is_never_tried_again(
    database_url: str, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    async with tally_app(database_url) as app:
        await fill(app, 20)
        processor = await scripted(app)
        async with ward(app, processor, start=False) as patient:
            lost = CheckpointMoved("scripted:all", epoch=1, position=0)
            fail_in(phase, patient, processor, [lost], monkeypatch)
            if phase != "start":  # the database, when asked, says so too
                real = claiming.Claiming.checkpoint

                async def refused(self: Any, before: Any) -> Any:
                    if before is not None:
                        raise lost
                    return await real(self, before)

                monkeypatch.setattr(claiming.Claiming, "checkpoint", refused)
            patient.agent.start()
            await holds(lambda: patient.agent.state == "stopped")

            assert patient.agent.failure is lost
            assert patient.clock.sleeping == ()
            assert patient.told("shard_paused") == []


async def paused(patient: Any) -> Any:
    row = await patient.status()
    return row if row and row["state"] == "paused" else None


# ---- stopping


@pytest.mark.parametrize("category", sorted(FAILURES))
async def test_what_fails_while_a_shard_stops_is_told_and_not_tried_again(
    database_url: str, category: str
) -> None:
    async with tally_app(database_url) as app:
        await fill(app, 20)
        processor = await scripted(app)
        processor.hang = asyncio.Event()
        async with ward(app, processor) as patient:
            await holds(lambda: processor.hanging)
            stopping = asyncio.create_task(patient.agent.stop(timeout=5.0))
            await asyncio.sleep(0)
            processor.after_hang = FAILURES[category]
            processor.hang.set()

            assert await stopping, "by itself"
            (told,) = patient.told("batch_failed")
            assert (told["phase"], told["category"]) == ("stop", category)
            assert (processor.tries, patient.clock.sleeping) == (1, ())
            row = await patient.status()
            assert row is not None
            assert (row["state"], row["phase"], row["category"]) == ("stopped", "stop", category)
            assert await handled(app) == []


async def test_a_batch_that_does_not_end_in_time_is_cut_off_and_told(database_url: str) -> None:
    async with tally_app(database_url) as app:
        await fill(app, 20)
        processor = await scripted(app)
        processor.hang = asyncio.Event()
        async with ward(app, processor) as patient:
            await holds(lambda: processor.hanging)

            assert not await patient.agent.stop(timeout=0.05)

            (told,) = patient.told("batch_failed")
            assert (told["phase"], told["category"]) == ("stop", "other")
            row = await patient.status()
            assert row is not None
            assert (row["state"], row["phase"]) == ("stopped", "stop")
            assert "did not end in time" in row["reason"]


async def test_a_shard_that_stops_in_good_order_has_nothing_to_say(database_url: str) -> None:
    async with tally_app(database_url) as app:
        last = await fill(app, 20)
        processor = await scripted(app)
        async with ward(app, processor) as patient:
            await patient.reaches(last)
            assert await patient.agent.stop(timeout=5.0)

            row = await patient.status()
            assert row is not None
            assert (row["state"], row["reason"], row["phase"]) == ("stopped", "", None)


# ---- what the user's code raises


@pytest.mark.parametrize("is_pure", [True, False])
@pytest.mark.parametrize("phase", ["prepare", "commit"])
async def test_a_cancellation_out_of_a_handler_is_that_handlers_failure(
    database_url: str, phase: str, is_pure: bool
) -> None:
    async with tally_app(database_url) as app:
        last = await fill(app, 20)
        processor = await scripted(app, is_pure=is_pure)
        processor.fails_in = phase
        processor.poison[last - 5] = asyncio.CancelledError("of a task of the handler's")
        async with ward(app, processor) as patient:
            if not is_pure:
                await patient.tries(0.25, 0.5, 1.0)
            await patient.reaches(last)

            aside = [position for position, how in await handled(app) if how == "park"]
            assert aside == [last - 5]
            told = patient.told("batch_failed")[0]
            assert (told["category"], type(told["error"])) == ("apply", ApplyFailed)
            assert isinstance(told["error"].__cause__, asyncio.CancelledError)
            assert patient.agent.state == "running"


@pytest.mark.parametrize(
    "error",
    [
        InvalidEvent("it holds a NUL character"),
        WrongVersion("s1", expected=1, actual=2, tenant="default"),
    ],
)
async def test_our_own_refusal_of_what_a_handler_did_is_that_handlers_failure(
    database_url: str, error: Exception
) -> None:
    async with tally_app(database_url) as app:
        last = await fill(app, 20)
        processor = await scripted(app)
        processor.fails_in = "raw"
        processor.raw[last - 5] = error
        async with ward(app, processor) as patient:
            await patient.reaches(last)

            assert [one for one, how in await handled(app) if how == "park"] == [last - 5]


async def test_what_cannot_be_stored_of_a_message_does_not_hide_the_failure(
    database_url: str,
) -> None:
    async with tally_app(database_url) as app:
        await fill(app, 20)
        processor = await scripted(app)
        processor.script["prepare"] = [
            RuntimeError("NUL \0, half a pair \ud800, " + "x" * 99_999)
        ] * 4
        async with ward(app, processor) as patient:
            await patient.tries(0.25, 0.5, 1.0)
            row = await holds(lambda: paused(patient))

            assert row["reason"].startswith("RuntimeError: NUL")
            assert len(row["reason"]) <= 2_100
            assert json.loads(row["facts"])["class"] == "RuntimeError"


async def test_a_failure_of_the_note_does_not_stop_the_work(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "strandline.agent")
    async with tally_app(database_url) as app:
        last = await fill(app, 20)
        processor = await scripted(app)
        async with app.pools.work.session() as session:
            await session.connection.execute(
                "ALTER TABLE strandline.shard_status ADD CONSTRAINT none CHECK (false) NOT VALID"
            )
        async with ward(app, processor) as patient:
            await patient.reaches(last)
            assert patient.told("batch_failed") == []
            await holds(lambda: "is not written" in caplog.text)


async def test_a_database_that_takes_no_writes_is_seen_as_such(database_url: str) -> None:
    async with tally_app(database_url) as app:
        async with app.pools.work.session() as session:
            await session.connection.execute("SET default_transaction_read_only = on")
        last = await fill_elsewhere(database_url)
        processor = await scripted_by(app, database_url)
        async with ward(app, processor) as patient:
            await holds(lambda: patient.told("batch_failed"))
            assert isinstance(patient.told("batch_failed")[0]["error"], DatabaseReadOnly)
            await patient.tries(0.25)  # on a new connection
            await patient.reaches(last)


async def fill_elsewhere(url: str) -> int:
    async with tally_app(url) as other:
        return await fill(other, 20)


async def scripted_by(app: Any, url: str) -> Any:
    async with tally_app(url) as other:
        processor = await scripted(other)
    processor._pool = app.pools.work
    return processor
