"""The chaos suite's oracle finds what is planted, and only that; its schedule comes from the seed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from tally import connected

from chaos import bank, evidence, schedule, unfenced
from chaos.__main__ import ENOUGH
from chaos.evidence import Collector, forgive
from chaos.faults import FAULTS
from chaos.oracle import Oracle, Sample, Violation
from strandline.daemon import checkpoint

STREAMS, NUMBERS, BRANCHES = 4, 9, 3
NODE = "'00000000-0000-0000-0000-00000000000{}'"


@pytest.fixture
def app_under_test() -> Any:
    """The app that chaos runs harm."""
    return bank.app


@dataclass
class Writes:
    """What a writer leaves for the checker."""

    journal: Path
    forgiven: set[bytes] = field(default_factory=set)


@dataclass
class Scene:
    """A bank whose read models are complete, and what the checker has seen of it."""

    app: Any
    url: str
    collector: Collector
    journal: Path
    oracle: Oracle

    async def judged(self) -> list[Violation]:
        """What the oracle says now."""
        return self.oracle.judge(await self.collector.collect(self.url))

    async def do(self, sql: str) -> None:
        """Change the database behind everybody's back."""
        async with connected(self.url) as connection:
            await connection.execute(sql)

    async def look(self, before: int) -> None:
        """Sample the mark, as the watch does."""
        async with connected(self.url) as connection:
            mark, visible = await connection.fetchrow(
                "SELECT h.position, (SELECT count(*) FROM strandline.events e"
                " WHERE e.position > $1 AND e.position <= h.position) FROM strandline.high_water h",
                before,
            )
        self.collector.samples.append(Sample(before, mark, visible))


@asynccontextmanager
async def scene(app: Any, tmp_path: Path) -> AsyncIterator[Scene]:
    """Some streams, one of them with a rolled back append, all projected."""
    url = app.settings.database_url
    app.settings = replace(app.settings, mode="solo")
    journal = tmp_path / "w1.journal"
    await evidence.install(url)
    async with app:
        with journal.open("w") as file:
            for number in range(1, NUMBERS + 1):
                for stream in (f"w1-{one}" for one in range(1, STREAMS + 1)):
                    kind = bank.Deposited if number % 3 else bank.Withdrawn
                    event = kind(number, 10 * number, f"b{number % BRANCHES}")
                    position = (await app.append(stream, event)).position
                    file.write(f"{stream} {number} {position}\n")
            await roll_back(app)
            event = bank.Deposited(NUMBERS + 1, 1, "b0")
            position = (await app.append("w1-1", event)).position
            file.write(f"w1-1 {NUMBERS + 1} {position}\n")
        await app.catch_up()
        found = Scene(app, url, Collector([Writes(journal)]), journal, Oracle())
        await found.look(0)
        yield found


async def roll_back(app: Any) -> None:
    """Draw a position for nothing."""
    with pytest.raises(ZeroDivisionError):
        async with app.transaction() as tx:
            await tx.append("w1-1-never", bank.Deposited(1, 1, "b0"))
            raise ZeroDivisionError


async def test_nothing_is_wrong_with_a_complete_bank(strandline_app: Any, tmp_path: Path) -> None:
    async with scene(strandline_app, tmp_path) as found:
        assert await found.judged() == []

        events = STREAMS * NUMBERS + 1
        assert found.oracle.acknowledged == len(found.oracle.positions) == events


async def test_a_second_check_goes_on_where_the_first_one_ended(
    strandline_app: Any, tmp_path: Path
) -> None:
    async with scene(strandline_app, tmp_path) as found:
        assert await found.judged() == []
        before = found.oracle.positions[-1]
        await found.app.append("w1-2", bank.Deposited(NUMBERS + 1, 5, "b1"))
        await found.app.catch_up()
        await found.look(before)

        assert await found.judged() == []
        assert len(found.oracle.positions) == STREAMS * NUMBERS + 2


PLANTED: dict[str, tuple[str, str]] = {
    "an event twice in a list": (
        "I1",
        (
            "INSERT INTO chaos.ledger (position, stream, number)"
            " SELECT position, stream, number FROM chaos.ledger ORDER BY seq LIMIT 1"
        ),
    ),
    "an event left out of a list": (
        "I1",
        "DELETE FROM chaos.journal WHERE number = 3 AND stream = 'w1-2'",
    ),
    "a list in another order": (
        "I1",
        (
            "UPDATE chaos.ledger l SET position = o.position, stream = o.stream, number = o.number"
            " FROM chaos.ledger o WHERE l.seq + o.seq = 5 AND l.seq IN (2, 3)"
        ),
    ),
    "events of one stream in another order": (
        "I1",
        (
            "UPDATE chaos.notes l SET position = o.position, number = o.number FROM chaos.notes o"
            " WHERE l.stream = 'w1-2' AND o.stream = 'w1-2' AND l.number + o.number = 5"
            " AND l.number IN (2, 3)"
        ),
    ),
    "an event put aside and never replayed": (
        "I9",
        (
            "INSERT INTO strandline.dead_letters (label, shard, tenant, key, position, stream, version, type, status)"
            " VALUES ('notes', 'notes:all', 'default', 'w1-1', 1, 'w1-1', 1, 'deposited', 'parked')"
        ),
    ),
    "an event applied twice to a document": (
        "I1",
        "UPDATE strandline.doc_accounts_v1 SET data = jsonb_set(data, '{events}', '11') WHERE id = 'w1-1'",
    ),
    "events applied in another order": (
        "I1",
        "UPDATE strandline.doc_branches_v1 SET data = jsonb_set(data, '{chain}', '7') WHERE id = 'b1'",
    ),
    "a document missing": ("I1", "DELETE FROM strandline.doc_sliced_v1 WHERE id = 'w1-3'"),
    "a document too many": (
        "I1",
        "INSERT INTO strandline.doc_sliced_branches_v1 VALUES ('default', 'b9', '{}', 1, 1)",
    ),
    "a row counted twice": (
        "I1",
        "UPDATE strandline.table_turnover_v1 SET bookings = bookings + 1 WHERE branch = 'b2'",
    ),
    "a checkpoint moved back": (
        "I1",
        "UPDATE strandline.shards SET position = position - 1 WHERE name = 'ledger:v1:all'",
    ),
    "an event that turns up below the mark": (
        "I2",
        (
            "INSERT INTO strandline.events (position, version, id, tenant, stream, type, data)"
            " SELECT first, 1, gen_random_uuid(), 'default', 'late', 'deposited',"
            """ '{"number": 1, "amount": 1, "branch": "b0"}' FROM strandline.gaps"""
        ),
    ),
    "a hole that nobody has settled": ("I2", "DELETE FROM strandline.gaps"),
    "a move by another process than the owner": (
        "I3",
        (
            "SET chaos.node = 'n9.1';"
            "UPDATE strandline.shards SET position = position + 1 WHERE name = 'ledger:v1:all'"
        ),
    ),
    "a move after the owner has gone": (
        "I3",
        (
            "UPDATE strandline.shards SET owner = NULL, epoch = epoch + 1 WHERE name = 'ledger:v1:all';"
            "UPDATE strandline.shards SET position = position + 1 WHERE name = 'ledger:v1:all'"
        ),
    ),
    "two owners of a shard in one epoch": (
        "I3",
        f"UPDATE strandline.shards SET owner = {NODE.format(1)} WHERE name = 'journal:all'",
    ),
    "an epoch of a shard that goes back": (
        "I3",
        "UPDATE strandline.shards SET epoch = epoch - 1 WHERE name = 'journal:all'",
    ),
    "a mark that goes back": (
        "I4",
        (
            "UPDATE strandline.high_water SET position = position - 1;"
            "UPDATE strandline.high_water SET position = position + 1"
        ),
    ),
    "two holders of a lease at one epoch": (
        "epochs",
        (
            f"UPDATE strandline.leases SET holder = {NODE.format(1)}, epoch = 5;"
            f"UPDATE strandline.leases SET holder = {NODE.format(2)}"
        ),
    ),
    "an epoch of a lease used twice": (
        "epochs",
        (
            f"UPDATE strandline.leases SET holder = {NODE.format(1)}, epoch = 5;"
            "UPDATE strandline.leases SET holder = NULL;"
            f"UPDATE strandline.leases SET holder = {NODE.format(2)}"
        ),
    ),
    "an epoch of a lease that goes back": (
        "epochs",
        "UPDATE strandline.leases SET epoch = 5; UPDATE strandline.leases SET epoch = 4",
    ),
    "a lease deleted": ("epochs", "DELETE FROM strandline.leases"),
    "two owners of work at one epoch": (
        "epochs",
        (
            "INSERT INTO strandline.work (name) VALUES ('w');"
            f"INSERT INTO strandline.assignments (work, owner, epoch) VALUES ('w', {NODE.format(1)}, 3);"
            f"UPDATE strandline.assignments SET owner = {NODE.format(2)}"
        ),
    ),
    "a dead node that comes back": (
        "membership",
        (
            "INSERT INTO strandline.nodes (id, name, state, mode, pulse, ttl, expires_at)"
            f" VALUES ({NODE.format(1)}, 'n', 'active', 'cluster', 'loop', 1, now());"
            "UPDATE strandline.nodes SET state = 'dead'; UPDATE strandline.nodes SET state = 'active'"
        ),
    ),
    "an acknowledged event lost": (
        "acknowledged",
        "DELETE FROM strandline.events WHERE stream = 'w1-4' AND version = 9",
    ),
    "a number stored twice": (
        "acknowledged",
        (
            "SELECT strandline.append('w1-1',"
            """ '[{"type": "deposited", "data": {"number": 10, "amount": 1, "branch": "b0"}}]')"""
        ),
    ),
    "a rolled back event stored": (
        "acknowledged",
        (
            "SELECT strandline.append('w1-1-never',"
            """ '[{"type": "deposited", "data": {"number": 1, "amount": 1, "branch": "b0"}}]')"""
        ),
    ),
}


@pytest.mark.parametrize("what", PLANTED)
async def test_what_is_planted_is_found(what: str, strandline_app: Any, tmp_path: Path) -> None:
    invariant, sql = PLANTED[what]
    async with scene(strandline_app, tmp_path) as found:
        await found.do(sql)

        assert invariant in {one.invariant for one in await found.judged()}


async def test_an_append_acknowledged_and_never_stored_is_found(
    strandline_app: Any, tmp_path: Path
) -> None:
    async with scene(strandline_app, tmp_path) as found:
        with found.journal.open("a") as file:
            file.write("w1-2 10 999\nw1-3 10 10")  # the second line is still being written

        assert [one.invariant for one in await found.judged()] == ["acknowledged"]


async def test_an_append_that_a_fail_over_lost_is_forgiven_and_no_other(
    strandline_app: Any, tmp_path: Path
) -> None:
    async with scene(strandline_app, tmp_path) as found:
        writes = Writes(found.journal)
        found.collector = Collector([writes])
        for stream in ("w1-2", "w1-3", "w1-4"):  # before the fail-over, lost by it, after it
            with found.journal.open("a") as file:
                file.write(f"{stream} 10 999\n")
            if stream == "w1-2":
                begun = writes.journal.stat().st_size
            if stream == "w1-3":
                await forgive([(writes, begun)], found.url)

        words = [one.words.split(" was")[0] for one in await found.judged()]
        assert words == ["append: w1-2 10", "append: w1-4 10"]


async def test_events_that_were_not_visible_below_the_mark_are_found() -> None:
    oracle = Oracle()
    events = [evidence.Event(at, "w1-1", at, "deposited", at, 1, "b0") for at in (1, 2, 3)]
    seen = [Sample(0, 1, 1), Sample(1, 3, 1)]  # of 2 and 3 only one was there

    found = oracle.judge(evidence.Evidence(events=events, samples=seen, lists={}))

    assert [one.invariant for one in found if "look" in one.words] == ["I2"]


async def test_a_mark_seen_going_back_is_found() -> None:
    oracle = Oracle()
    found = evidence.Evidence(samples=[Sample(0, 0, 0), Sample(0, 5, 0), Sample(5, 4, 0)])

    assert "I4" in {one.invariant for one in oracle.judge(found)}


def test_a_seed_makes_the_same_schedule_again() -> None:
    assert schedule.cycle(7, 0) == schedule.cycle(7, 0)
    assert schedule.cycle(7, 0) != schedule.cycle(8, 0)
    assert schedule.cycle(7, 0) != schedule.cycle(7, 1)


@pytest.mark.parametrize("seed", range(20))
def test_a_short_run_has_every_fault_and_enough_of_them(seed: int) -> None:
    planned = [one.fault for part in schedule.cycle(seed, 0) for one in part]

    assert set(planned) == set(FAULTS) - set(schedule.EXTRA)
    assert len(planned) >= ENOUGH >= 40


def test_only_what_is_asked_for_is_planned() -> None:
    only = ("kill_leader", "freeze_owner")
    planned = {one.fault for part in schedule.cycle(3, 0, only=only) for one in part}

    assert planned == set(only)
    assert {one.fault for part in schedule.cycle(3, 0, only=("cut",)) for one in part} == {"cut"}


@pytest.mark.parametrize("name", unfenced.NAMES)
def test_a_control_group_asks_for_no_epoch(name: str) -> None:
    text = getattr(checkpoint, name).text

    changed = unfenced.unfence(text, "without_epoch")

    assert "epoch = $" not in changed
    assert "owner = $" not in changed
    assert changed.count("position = $") == text.count("position = $")
    assert "position = $4" not in unfenced.unfence(text, "unfenced")


def test_a_control_group_with_nothing_to_remove_is_refused() -> None:
    with pytest.raises(ValueError, match="no condition on owner"):
        unfenced.unfence("UPDATE shards SET position = $5 WHERE name = $1", "without_epoch")
