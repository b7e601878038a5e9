"""What is told of a held mark: who holds it, what was forced, what came late."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

import pytest

from strandline.events.gaps import cancel_holder, list_gaps, live_gaps
from strandline.postgres.statements import SqlFile


class HandClock:
    """Monotonic time that moves when told."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        """See ``Clock``."""
        return self.seconds

    def now(self) -> datetime:
        """See ``Clock``."""
        return datetime.now(UTC)


async def test_a_stale_gap_names_its_holder_once_and_clears(
    open_lab: Any, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with open_lab(database_url, stale_after=3.0) as lab:
        clock = HandClock()
        detector = lab.detector(clock)
        slow, _ = await lab.writing("nightly report")
        await lab.committed()
        await detector.tick()
        clock.seconds = 2.9
        await detector.tick()
        assert lab.told("high_water_stale") == []

        clock.seconds = 3.0
        for _ in range(3):
            assert await detector.tick() == 0
        (facts,) = lab.told("high_water_stale")
        (holder,) = facts["holders"]
        assert (facts["position"], facts["highest"], facts["seconds"]) == (0, 2, 3.0)
        assert holder.pid == slow.get_server_pid()
        user = await slow.fetchval("SELECT current_user")
        assert (holder.application, holder.user) == ("nightly report", user)
        assert holder.state == "idle in transaction"
        assert holder.client == "127.0.0.1"
        assert holder.age > 0
        assert "strandline.append" in holder.query
        assert f"strandline gaps cancel {holder.pid}" in caplog.text
        assert "nightly report" in caplog.text
        assert caplog.text.count("waits at 0") == 1

        clock.seconds = 4.0
        assert detector.statistics().stale
        assert detector.statistics().stale_seconds == 1.0
        assert detector.statistics().holders == (holder,)

        await slow.execute("ROLLBACK")
        assert await detector.tick() == 2
        assert lab.told("high_water_cleared") == [{"position": 2, "seconds": 1.0}]
        assert not detector.statistics().stale


async def test_a_stale_gap_is_told_again_when_its_holders_change(
    open_lab: Any, database_url: str
) -> None:
    async with open_lab(database_url, stale_after=1.0) as lab:
        clock = HandClock()
        detector = lab.detector(clock)
        one, _ = await lab.writing("one")
        two, _ = await lab.writing("two")
        await lab.committed()
        await detector.tick()
        clock.seconds = 2.0
        await detector.tick()
        await one.execute(f"PREPARE TRANSACTION 'p {database_url[-16:]}'")
        await two.execute("ROLLBACK")
        await detector.tick()

        told = lab.told("high_water_stale")
        assert [{h.application for h in facts["holders"]} for facts in told] == [
            {"one", "two"},
            {None},
        ]
        (prepared,) = told[1]["holders"]
        assert prepared.prepared == f"p {database_url[-16:]}"
        assert "ROLLBACK PREPARED" in prepared.cure
        await one.execute(f"ROLLBACK PREPARED 'p {database_url[-16:]}'")


async def test_only_a_backend_that_holds_streams_can_be_cancelled(
    open_lab: Any, database_url: str
) -> None:
    async with open_lab(database_url) as lab:
        bystander = await lab.connect("bystander")
        await bystander.execute("BEGIN; SELECT count(*) FROM strandline.streams")
        slow, _ = await lab.writing("slow")
        await lab.committed()
        pid = slow.get_server_pid()

        live = await lab.control.run(live_gaps())
        assert [(gap.first, gap.last) for gap in live.gaps] == [(1, 1)]
        assert [holder.pid for holder in live.holders] == [pid]

        assert not await lab.control.run(cancel_holder(bystander.get_server_pid()))
        assert await lab.control.run(cancel_holder(pid))
        await lab.gone(pid)
        assert await bystander.fetchval("SELECT 1") == 1
        assert await lab.detector().tick() == 2
        assert (await lab.control.run(live_gaps())).gaps == []


async def test_a_role_without_privileges_still_proves_and_reports(
    open_lab: Any, database_url: str
) -> None:
    async with open_lab(database_url) as lab:
        slow, _ = await lab.writing("secret work")
        admin = await lab.connect()
        role = f"hw_{database_url[-16:]}"
        await admin.execute(
            f"CREATE ROLE {role}; GRANT USAGE ON SCHEMA strandline TO {role};"
            f" GRANT SELECT ON strandline.streams TO {role}"
        )
        try:
            session = await lab.connect()
            await session.execute(f"SET ROLE {role}")
            text = SqlFile("strandline.events.gaps").blocks["holders"][2]
            (row,) = await session.fetch(text.replace("{schema}", "strandline"))
            assert row["pid"] == slow.get_server_pid()
            assert row["state"] is None
        finally:
            await admin.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_a_forced_skip_names_the_shards_and_a_late_event_is_told(
    open_lab: Any, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_lab(database_url, force_after=5.0, poll_interval=0.01) as lab:
        clock = HandClock()
        detector = lab.detector(clock)
        await lab.committed()
        admin = await lab.connect()
        await admin.execute(
            "INSERT INTO strandline.shards (name, position) VALUES ('behind', 1), ('past', 2)"
        )
        slow, number = await lab.writing()
        await lab.committed()
        assert await detector.tick() == 1
        clock.seconds = 4.9
        assert await detector.tick() == 1
        clock.seconds = 5.0
        assert await detector.tick() == 3

        (gap,) = await lab.control.run(list_gaps())
        assert await lab.control.run(list_gaps(forced=True)) == [gap]
        assert (gap.first, gap.last, gap.kind, gap.watched) == (number, number, "forced", True)
        assert gap.facts["shards"] == ["behind"]
        assert detector.statistics().forced_gaps == 1
        assert [facts["position"] for facts in lab.told("high_water_forced")] == [3]

        successor = lab.detector(clock)  # the watch is in the tables, not in the process
        await successor.tick()
        assert lab.told("late_event") == []
        await slow.execute("COMMIT")
        clock.seconds = 6.0
        await successor.tick()
        await detector.tick()
        (late,) = lab.told("late_event")
        assert late == {"first": number, "last": number, "events": 1, "fresh": 1}
        assert "after it was skipped" in caplog.text
        (gap,) = await lab.control.run(list_gaps())
        assert gap.facts["late"]["events"] == 1
        assert not gap.watched, "its holders have ended: nothing more can come"
        assert await detector.tick() == 3


async def test_the_watch_of_a_forced_gap_lasts_while_a_holder_does(
    open_lab: Any, database_url: str
) -> None:
    async with open_lab(database_url, force_after=1.0, poll_interval=0.01) as lab:
        clock = HandClock()
        detector = lab.detector(clock)
        slow, _ = await lab.writing()
        await lab.committed()
        await detector.tick()
        clock.seconds = 1.0
        assert await detector.tick() == 2

        gid = f"late {database_url[-16:]}"
        await slow.execute(f"PREPARE TRANSACTION '{gid}'")
        for clock.seconds in (2.0, 3.0):
            await detector.tick()
            assert [gap.watched for gap in await lab.control.run(list_gaps())] == [True]
        await slow.execute(f"ROLLBACK PREPARED '{gid}'")
        clock.seconds = 4.0
        await detector.tick()
        assert [gap.watched for gap in await lab.control.run(list_gaps())] == [False]
        assert lab.told("late_event") == []
