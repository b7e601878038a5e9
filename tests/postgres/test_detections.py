"""What the detector of the mark tells of its looks, and what is counted from that."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from tally import connected, holds, tally_app

from strandline.events.detections import Detection, Detections
from strandline.telemetry.metrics import Metrics
from strandline.telemetry.signals import Notice, Signals


async def append(connection: Any, stream: str, events: int = 1) -> None:
    """Append through the SQL function."""
    body = json.dumps([{"type": "t", "data": {}}] * events)
    await connection.execute("SELECT strandline.append($1, $2)", stream, body)


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


class Counted:
    """The counters that notices of *signals* feed."""

    def __init__(self, signals: Signals) -> None:
        self.metrics = Metrics(signals, sources=lambda: {"node": "n"})
        self.metrics.start()

    def value(self, name: str, **labels: str) -> float | None:
        body, _ = self.metrics.exposition()
        for family in text_string_to_metric_families(body.decode()):
            for one in family.samples:
                if one.name == name and one.labels == {"node": "n", **labels}:
                    return float(one.value)
        return None


async def test_a_gap_is_told_while_it_waits_and_when_it_is_settled(
    open_lab: Any, database_url: str
) -> None:
    async with open_lab(database_url) as lab:
        counted = Counted(lab.signals)
        clock = HandClock()
        detector = lab.detector(clock)
        await lab.committed(2)
        await detector.tick()
        assert lab.told("high_water_detected") == []  # nothing was missing

        slow, _ = await lab.writing()
        await append(slow, "more", 2)
        await lab.committed(4)
        clock.seconds = 1.0
        await detector.tick()
        (waits,) = lab.told("high_water_detected")
        assert (waits["mark"], waits["settled"], waits["highest"]) == (2, 2, 9)
        assert (waits["difference"], waits["holders"], waits["stale"]) == (7, 1, False)
        assert (waits["skipped"], waits["gaps"], waits["looks"]) == (0, 0, 1)

        await slow.execute("ROLLBACK")
        clock.seconds = 2.0
        await detector.tick()
        _, settled = lab.told("high_water_detected")
        assert (settled["mark"], settled["settled"], settled["difference"]) == (2, 9, 0)
        assert (settled["skipped"], settled["proved"], settled["forced"]) == (3, 3, 0)
        assert settled["gaps"] == 1

        clock.seconds = 3.0
        await detector.tick()
        assert len(lab.told("high_water_detected")) == 2
        numbers = "strandline_high_water_settled_numbers_total"
        assert counted.value(numbers, kind="rolled_back") == 3
        assert counted.value(numbers, kind="forced") == 0
        assert detector.statistics().moves == 2


async def test_a_stale_mark_is_told_with_its_flag_and_counted_once_per_period(
    open_lab: Any, database_url: str
) -> None:
    async with open_lab(database_url, stale_after=3.0) as lab:
        counted = Counted(lab.signals)
        clock = HandClock()
        detector = lab.detector(clock)
        slow, _ = await lab.writing()
        other, _ = await lab.writing()
        await lab.committed()
        await detector.tick()
        clock.seconds = 3.0
        await detector.tick()
        assert lab.told("high_water_detected")[-1]["stale"]
        await other.execute("COMMIT")  # another set of holders is told, and is no new period
        clock.seconds = 3.5
        await detector.tick()
        assert [facts["is_new"] for facts in lab.told("high_water_stale")] == [True, False]
        assert counted.value("strandline_high_water_stale_periods_total") == 1

        await slow.execute("COMMIT")
        clock.seconds = 4.0
        await detector.tick()
        last = lab.told("high_water_detected")[-1]
        assert (last["stale"], last["difference"], last["skipped"]) == (False, 0, 0)


async def test_forced_numbers_are_counted_for_every_projection_of_the_nodes_code(
    database_url: str,
) -> None:
    app = tally_app(
        database_url,
        mode="solo",
        force_after=0.2,
        stale_after=0.1,
        poll_interval=0.05,
    )
    skipped = "strandline_skipped_events_total"
    async with app, connected(database_url) as slow, connected(database_url) as writer:
        counted = Counted(app.signals)
        await app.start()
        await slow.execute("BEGIN")
        await append(slow, "late", 2)
        await append(writer, "s", 1)
        notice = await app.signals.wait_for("high_water_forced", timeout=30.0)
        assert (notice.facts["gaps"], notice.facts["numbers"]) == (1, 2)
        for projection in ("versions:v1", "positions:v1"):
            labels = {"projection": projection, "class": "forced_gap"}
            assert counted.value(skipped, **labels) == 2
        await slow.execute("COMMIT")
        await holds(lambda: counted.value("strandline_late_events_total") == 2, timeout=30.0)
        numbers = "strandline_high_water_settled_numbers_total"
        await holds(lambda: counted.value(numbers, kind="forced") == 2, timeout=30.0)


async def test_a_mark_that_went_back_is_counted(open_lab: Any, database_url: str) -> None:
    async with open_lab(database_url) as lab:
        counted = Counted(lab.signals)
        detector = lab.detector()
        await lab.committed(5)
        await detector.tick()
        admin = await lab.connect()
        await admin.execute("UPDATE strandline.high_water SET position = 2")
        await admin.execute("DELETE FROM strandline.events WHERE position > 2")
        await detector.tick()
        assert counted.value("strandline_high_water_went_back_total") == 1


def test_many_looks_at_an_open_gap_are_summed_and_none_is_lost() -> None:
    signals, clock = Signals(), HandClock()
    notices: list[Notice] = []
    signals.listen(notices.append)
    detections = Detections(signals, clock)
    detections.looked(Detection(position=1, highest=1), seconds=0.001)
    for look in range(1, 101):  # 100 looks in one second, each settles a number
        clock.seconds = look / 100
        now = Detection(position=1 + look, highest=102, proved=look, gaps=look, is_open=True)
        detections.looked(now, seconds=0.001)
    clock.seconds = 2.0
    detections.looked(Detection(position=102, highest=102, proved=100, gaps=100), seconds=0.001)
    clock.seconds = 3.0
    detections.looked(Detection(position=102, highest=102, proved=100, gaps=100), seconds=0.001)

    told = [notice.facts for notice in notices]
    assert len(told) <= 22
    assert sum(facts["proved"] for facts in told) == 100
    assert sum(facts["gaps"] for facts in told) == 100
    assert sum(facts["looks"] for facts in told) == 100
    assert told[0]["mark"] == 1
    for before, after in zip(told, told[1:], strict=False):
        assert after["mark"] == before["settled"]
